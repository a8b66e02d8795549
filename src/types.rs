//! The small words that every layer speaks: block addresses, epochs, sizes, names.

use crate::error::{Error, Result};
use std::fmt;
use std::ops::Range;
use std::str::FromStr;
use uuid::Uuid;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(out)
            }
        }

        impl $name {
            /// The one after this.
            #[must_use]
            pub fn next(self) -> Self {
                Self(self.0 + 1)
            }
        }
    };
}

number!(
    /// The address of a block in its volume: byte offset / block size.
    Block
);
number!(
    /// The time between two takes of a volume; before-images and stage slots carry it.
    Epoch
);
number!(
    /// The place of a change in the one order of a volume (slots, trims, meta changes).
    Seq
);

/// The address of a before-image in the save volume: segment number and, in units
/// of 512 bytes, the offset of the image within that segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SaveAddr {
    /// The segment's number.
    pub segment: u32,
    /// Offset in the segment, in sectors of 512 bytes.
    pub sector: u32,
}

impl SaveAddr {
    /// The byte offset within the segment file.
    #[must_use]
    pub fn offset(self) -> u64 {
        u64::from(self.sector) * SECTOR
    }

    /// Both halves in one word, as stored.
    #[must_use]
    pub fn to_word(self) -> u64 {
        (u64::from(self.segment) << 32) | u64::from(self.sector)
    }

    /// The inverse of [`Self::to_word`].
    #[must_use]
    pub fn from_word(word: u64) -> Self {
        #[allow(clippy::cast_possible_truncation, reason = "the halves of a word")]
        let (segment, sector) = ((word >> 32) as u32, word as u32);
        Self { segment, sector }
    }
}

/// Bytes in a sector, the unit that a disk writes whole.
pub const SECTOR: u64 = 512;

/// The largest volume, in bytes: 64 TiB.
pub const VOLUME_SIZE_MAX: u64 = 64 << 40;

/// How a volume is cut: fixed when it is created, but for the size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Bytes that a client sees; a multiple of 512.
    pub size: u64,
    /// Bytes in a block: a power of two from 512 to 65536.
    pub block_size: u32,
    /// Blocks that one bit of the meta bit map stands for: a power of two from 1 to 32768.
    pub granularity: u32,
}

impl Geometry {
    /// Checks the three numbers against each other and their limits.
    ///
    /// # Errors
    /// `Invalid`, naming the number that is wrong and what it may be.
    pub fn new(size: u64, block_size: u32, granularity: u32) -> Result<Self> {
        if !(512..=65536).contains(&block_size) || !block_size.is_power_of_two() {
            return Err(Error::invalid(format!(
                "block size {block_size} is not a power of two from 512 to 64K"
            )));
        }
        if !(1..=32768).contains(&granularity) || !granularity.is_power_of_two() {
            return Err(Error::invalid(format!(
                "granularity {granularity} is not a power of two from 1 to 32768"
            )));
        }
        if size == 0 || !size.is_multiple_of(SECTOR) {
            return Err(Error::invalid(format!("size {size} is not a positive multiple of 512 bytes")));
        }
        if size > VOLUME_SIZE_MAX {
            return Err(Error::invalid(format!("size {size} is above the limit of 64T")));
        }
        Ok(Self { size, block_size, granularity })
    }

    /// Blocks in the volume; the last one may reach past the size.
    #[must_use]
    pub fn blocks(&self) -> u64 {
        self.size.div_ceil(u64::from(self.block_size))
    }

    /// The block that holds the byte at `offset`.
    #[must_use]
    pub fn block_of(&self, offset: u64) -> Block {
        Block(offset / u64::from(self.block_size))
    }

    /// The byte at which `block` starts.
    #[must_use]
    pub fn offset_of(&self, block: Block) -> u64 {
        block.0 * u64::from(self.block_size)
    }

    /// The blocks that a range of bytes touches.
    #[must_use]
    pub fn blocks_touching(&self, offset: u64, len: u64) -> Range<u64> {
        let size = u64::from(self.block_size);
        offset / size..(offset + len).div_ceil(size)
    }
}

/// Whether `name` matches `[A-Za-z0-9][A-Za-z0-9._-]{0,62}`.
fn is_name(name: &str) -> bool {
    let bytes = name.as_bytes();
    (1..=63).contains(&bytes.len())
        && bytes[0].is_ascii_alphanumeric()
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

/// The name of a volume or of a snapshot that a user may give.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(String);

impl Name {
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if is_name(text) {
            return Ok(Self(text.to_owned()));
        }
        if let Ok(DrillName { volume, drill }) = text.parse() {
            return Err(Error::invalid(format!("{text} is a drill, of which that can't be asked")).hint(
                format!("it is attached, listed, and ended with 'snapvol drill {volume} --end {drill}'"),
            ));
        }
        Err(Error::invalid(format!("'{}' is no valid name", text.escape_debug()))
            .hint("a name has 1 to 63 letters, digits, '.', '_' or '-' and starts with a letter or digit"))
    }
}

impl fmt::Display for Name {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

/// `VOL@SNAP`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SnapName {
    /// The volume.
    pub volume: Name,
    /// The snapshot of it.
    pub snapshot: Name,
}

impl FromStr for SnapName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let Some((volume, snapshot)) = text.split_once('@') else {
            return Err(Error::invalid(format!("'{}' names no snapshot", text.escape_debug()))
                .hint("write it as VOL@SNAP"));
        };
        Ok(Self { volume: volume.parse()?, snapshot: snapshot.parse()? })
    }
}

impl fmt::Display for SnapName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}@{}", self.volume, self.snapshot)
    }
}

/// `VOL+N`: drill N of a volume. It is the name of a volume, too, but one that users can't give
/// to theirs.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DrillName {
    /// The volume.
    pub volume: Name,
    /// The drill of it.
    pub drill: Name,
}

impl FromStr for DrillName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text.split_once('+') {
            Some((volume, drill)) if is_name(volume) && is_name(drill) => {
                Ok(Self { volume: Name(volume.to_owned()), drill: Name(drill.to_owned()) })
            }
            _ => {
                Err(Error::invalid(format!("'{}' names no drill", text.escape_debug()))
                    .hint("write it as VOL+N"))
            }
        }
    }
}

impl fmt::Display for DrillName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}+{}", self.volume, self.drill)
    }
}

/// What a volume does when there is no space for a write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnFull {
    /// Writers wait until space comes back.
    #[default]
    Freeze,
    /// Writes fail until space comes back.
    Readonly,
    /// The oldest snapshot that nobody needs is deleted; if none is left, as `Freeze`.
    DropOldest,
}

impl FromStr for OnFull {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "freeze" => Ok(Self::Freeze),
            "readonly" => Ok(Self::Readonly),
            "drop-oldest" => Ok(Self::DropOldest),
            _ => Err(Error::invalid(format!("'{}' is no policy for a full disk", text.escape_debug()))
                .hint("use freeze, readonly or drop-oldest")),
        }
    }
}

impl fmt::Display for OnFull {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Freeze => "freeze",
            Self::Readonly => "readonly",
            Self::DropOldest => "drop-oldest",
        })
    }
}

/// Who may change a volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Clients write to it.
    #[default]
    Primary,
    /// Only `receive` changes it.
    Secondary,
}

/// Whether a primary may be written to; of a secondary it says nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Standing {
    /// Clients write.
    #[default]
    Open,
    /// Another volume became the primary: nobody writes here any more.
    Fenced,
    /// Another volume is about to become the primary: nobody writes here until it is known
    /// whether it did.
    HandingOver,
    /// Clients write, also after a start at which no receiver can be asked: the owner said so, and
    /// none was reached since.
    Alone,
}

impl Standing {
    /// Whether clients may write.
    #[must_use]
    pub fn is_open(self) -> bool {
        matches!(self, Self::Open | Self::Alone)
    }
}

/// A part of a volume's line of roles: whoever was primary then wrote under this. It has
/// nothing to do with [`Epoch`], the time between two snapshots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct RoleEpoch {
    /// Counts the changes of roles in its line.
    pub counter: u64,
    /// Made up when it began; two lines never share one.
    pub identity: Uuid,
}

/// What a snapshot that a session took or received says of its set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct SetStamp {
    /// The role epoch in which it was taken.
    pub epoch: RoleEpoch,
    /// Counts the cuts of the volume, over all sessions and roles.
    pub number: u64,
    /// What the set starts from; none: it is whole.
    pub base: Option<Uuid>,
}

/// A set: what turns its base into its target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct SetId {
    /// Epoch, number, base.
    #[serde(flatten)]
    pub stamp: SetStamp,
    /// The identity of the snapshot that it ends in.
    pub target: Uuid,
}

/// A size as people write it: `512`, `64K`, `10G`, `2T`, powers of 1024.
///
/// # Errors
/// `Invalid` when the text is no size or overflows.
pub fn parse_size(text: &str) -> Result<u64> {
    let bad = || {
        Error::invalid(format!("'{}' is no size", text.escape_debug()))
            .hint("write bytes, or a number with K, M, G or T (powers of 1024), such as 64K or 10G")
    };
    let (digits, shift) = match text.char_indices().next_back().ok_or_else(bad)? {
        (at, 'K' | 'k') => (&text[..at], 10),
        (at, 'M' | 'm') => (&text[..at], 20),
        (at, 'G' | 'g') => (&text[..at], 30),
        (at, 'T' | 't') => (&text[..at], 40),
        _ => (text, 0),
    };
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(bad());
    }
    let number: u64 = digits.parse().map_err(|_| bad())?;
    number.checked_mul(1 << shift).ok_or_else(bad)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for good in ["a", "0", "db.main_1-x", &"x".repeat(63)] {
            assert!(good.parse::<Name>().is_ok(), "{good}");
        }
        for bad in ["", "_a", ".", "..", "-x", "a/b", "a b", "ä", "a@b", &"x".repeat(64)] {
            assert!(bad.parse::<Name>().is_err(), "{bad}");
        }
    }

    #[test]
    fn drills() {
        let drill: DrillName = "db.1+try-2".parse().unwrap();
        assert_eq!((drill.volume.as_str(), drill.drill.as_str()), ("db.1", "try-2"));
        assert_eq!(drill.to_string(), "db.1+try-2");
        for bad in ["", "db", "+", "db+", "+x", "db+a+b", "_db+a", "db+_a", "db+a@s", "a/b+c"] {
            assert!(bad.parse::<DrillName>().is_err(), "{bad}");
        }
        let error = "db+try".parse::<Name>().unwrap_err();
        assert!(error.to_string().contains("is a drill"), "{error}");
    }

    #[test]
    fn sizes() {
        assert_eq!(parse_size("512").unwrap(), 512);
        assert_eq!(parse_size("64K").unwrap(), 65536);
        assert_eq!(parse_size("2T").unwrap(), 2 << 40);
        for bad in ["", "K", "-1", "1.5G", "0x10", "99999999999T", "1KB", "+5"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn geometry_limits() {
        assert!(Geometry::new(64 << 40, 4096, 1).is_ok());
        assert!(Geometry::new((64 << 40) + 512, 4096, 1).is_err());
        assert!(Geometry::new(513, 4096, 1).is_err());
        assert!(Geometry::new(512, 4095, 1).is_err());
        assert!(Geometry::new(512, 4096, 3).is_err());
    }
}
