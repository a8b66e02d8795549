//! The stream's bytes: preamble, frame prefix, header, extent table, trailer.
//!
//! `docs/stream.md` draws every structure; a test compares its sizes with the
//! constants here. All numbers are little-endian. Nothing here reads or writes: a
//! slice comes in and a struct goes out, or the other way round. Every length is
//! checked against its limit by [`Prefix::decode`], before anybody allocates for it.

use crate::error::{Error, ErrorKind, Result};
use crate::types::{Geometry, SECTOR, VOLUME_SIZE_MAX};
use uuid::Uuid;

/// The first eight bytes of every stream.
pub const MAGIC: [u8; 8] = *b"SVSTREAM";
/// The version that this program writes, and the newest that it reads.
pub const VERSION: u32 = 1;

/// Bytes in the preamble: magic, version, a reserved word.
pub const PREAMBLE_SIZE: usize = 16;
/// Bytes in the prefix of a frame.
pub const PREFIX_SIZE: usize = 32;
/// Bytes in the fixed part of a header's body; four texts follow.
pub const HEADER_FIXED_SIZE: usize = 128;
/// Bytes in the longest body of a header.
pub const HEADER_SIZE_MAX: usize = HEADER_FIXED_SIZE + 4 * TEXT_SIZE_MAX;
/// Bytes in one entry of an extent table.
pub const EXTENT_SIZE: usize = 12;
/// Bytes in the body of a trailer.
pub const TRAILER_SIZE: usize = 64;
/// Bytes in the longest text of a header (a name, a time).
pub const TEXT_SIZE_MAX: usize = 64;
/// Bytes of data in a chunk, at most, before compression.
pub const CHUNK_DATA_MAX: usize = 1 << 20;
/// Extents in a chunk, at most.
pub const CHUNK_EXTENTS_MAX: usize = 8192;
/// Bytes that one extent can span: its length stands in sectors in 32 bits.
pub const EXTENT_LEN_MAX: u64 = (u32::MAX as u64) * SECTOR;

const _: () = {
    assert!(PREAMBLE_SIZE == MAGIC.len() + 4 + 4);
    assert!(PREFIX_SIZE == 4 + 4 + 8 + 4 + 4 + 4 + 4);
    assert!(HEADER_FIXED_SIZE == 8 + 4 * 16 + 5 * 8 + 2 * 4 + 4 + 4);
    assert!(EXTENT_SIZE == 8 + 4);
    assert!(TRAILER_SIZE == 4 * 8 + 32);
    // A chunk of the smallest blocks is limited by its data, not by its table.
    assert!(CHUNK_DATA_MAX / 512 <= CHUNK_EXTENTS_MAX);
    assert!(CHUNK_DATA_MAX.is_multiple_of(65536));
};

/// The header's flag that chunks may be compressed with zstd.
const FEATURE_ZSTD: u64 = 1;
/// Unknown totals stand as all ones.
const UNKNOWN: u64 = u64::MAX;

/// One snapshot, named by identity; the name is for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotId {
    /// Its identity, the same on every store.
    pub uuid: Uuid,
    /// Its name at the sender.
    pub name: String,
}

/// What a stream says of itself before its first chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamHeader {
    /// Made up by the sender for this stream alone.
    pub stream: Uuid,
    /// The volume's identity.
    pub volume: Uuid,
    /// The volume's name at the sender.
    pub volume_name: String,
    /// What the changes start from; none: an empty volume.
    pub base: Option<SnapshotId>,
    /// Size of the volume in the base, in bytes; 0 without one.
    pub base_size: u64,
    /// What the receiver holds afterwards.
    pub target: SnapshotId,
    /// When the target was taken, RFC 3339.
    pub created: String,
    /// Size, block size and granularity of the target.
    pub geometry: Geometry,
    /// Extents below this byte offset are left out: the receiver has them.
    pub resume_from: u64,
    /// Bytes of data in this stream, where known beforehand.
    pub data_bytes: Option<u64>,
    /// Bytes of discards in this stream, where known beforehand.
    pub discard_bytes: Option<u64>,
    /// Chunks may be compressed.
    pub compressed: bool,
}

/// What stands after the last chunk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trailer {
    /// Chunks before it.
    pub chunks: u64,
    /// Bytes of data in them, uncompressed.
    pub data_bytes: u64,
    /// Bytes that they discard.
    pub discard_bytes: u64,
    /// BLAKE3 of every byte of the stream before the trailer's prefix.
    pub digest: [u8; 32],
}

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameKind {
    /// The first: [`StreamHeader`].
    Header,
    /// Extents and their data.
    Chunk,
    /// The last: [`Trailer`].
    Trailer,
}

impl FrameKind {
    fn tag(self) -> [u8; 4] {
        match self {
            Self::Header => *b"HEAD",
            Self::Chunk => *b"CHNK",
            Self::Trailer => *b"TAIL",
        }
    }
}

/// How the data of a chunk is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// As it is.
    Raw,
    /// One zstd frame, shorter than the data.
    Zstd,
}

/// The start of every frame; it carries all that is needed to read the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    /// What follows.
    pub kind: FrameKind,
    /// How a chunk's data is stored.
    pub encoding: Encoding,
    /// The place of the frame in its stream; the header is 0.
    pub number: u64,
    /// Entries in the extent table, which is the first part of the body.
    pub extents: u32,
    /// Bytes of the body after the table.
    pub stored: u32,
    /// CRC-32C of the body.
    pub body_crc: u32,
}

/// What is to happen to an extent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExtentKind {
    /// To be written; its bytes are in the chunk.
    Data,
    /// To be discarded: it reads as zeros afterwards.
    Discard,
}

/// A run of bytes of the volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Where it starts, in bytes; a multiple of the block size.
    pub offset: u64,
    /// How long it is, in bytes; it ends at a block's end or the volume's.
    pub len: u64,
    /// What happens to it.
    pub kind: ExtentKind,
}

impl Extent {
    /// The first byte after it.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.offset + self.len
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(std::array::from_fn(|i| bytes[at + i]))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]))
}

fn uuid_at(bytes: &[u8], at: usize) -> Uuid {
    Uuid::from_bytes(std::array::from_fn(|i| bytes[at + i]))
}

/// The preamble of a stream of [`VERSION`].
#[must_use]
pub fn encode_preamble() -> [u8; PREAMBLE_SIZE] {
    let mut out = [0; PREAMBLE_SIZE];
    out[..8].copy_from_slice(&MAGIC);
    out[8..12].copy_from_slice(&VERSION.to_le_bytes());
    out
}

/// Checks the preamble.
///
/// # Errors
/// `Invalid` when this is no stream, `Unsupported` when it is a newer one.
pub fn check_preamble(bytes: &[u8; PREAMBLE_SIZE]) -> Result<()> {
    if bytes[..8] != MAGIC {
        return Err(
            Error::invalid("this is no snapvol stream").hint("receive takes what 'snapvol send' wrote")
        );
    }
    let version = u32_at(bytes, 8);
    if version != VERSION || u32_at(bytes, 12) != 0 {
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!("the stream has format version {version}; this program reads version {VERSION}"),
        )
        .hint("use the release of snapvol that wrote it, or a newer one"));
    }
    Ok(())
}

impl Prefix {
    /// The bytes of the prefix, its own checksum last.
    #[must_use]
    pub fn encode(&self) -> [u8; PREFIX_SIZE] {
        let mut out = [0; PREFIX_SIZE];
        out[..4].copy_from_slice(&self.kind.tag());
        let encoding: u32 = match self.encoding {
            Encoding::Raw => 0,
            Encoding::Zstd => 1,
        };
        out[4..8].copy_from_slice(&encoding.to_le_bytes());
        out[8..16].copy_from_slice(&self.number.to_le_bytes());
        out[16..20].copy_from_slice(&self.extents.to_le_bytes());
        out[20..24].copy_from_slice(&self.stored.to_le_bytes());
        out[24..28].copy_from_slice(&self.body_crc.to_le_bytes());
        let crc = crc32c::crc32c(&out[..28]);
        out[28..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Reads a prefix and checks its checksum and every length in it.
    ///
    /// # Errors
    /// `Corrupt` for a wrong checksum, `Invalid` for what no sender writes.
    pub fn decode(bytes: &[u8; PREFIX_SIZE]) -> Result<Self> {
        if crc32c::crc32c(&bytes[..28]) != u32_at(bytes, 28) {
            return Err(Error::corrupt("a frame's prefix does not match its checksum"));
        }
        let kind = [FrameKind::Header, FrameKind::Chunk, FrameKind::Trailer]
            .into_iter()
            .find(|kind| kind.tag() == bytes[..4])
            .ok_or_else(|| Error::invalid("a frame of unknown kind"))?;
        let encoding = match u32_at(bytes, 4) {
            0 => Encoding::Raw,
            1 if kind == FrameKind::Chunk => Encoding::Zstd,
            other => return Err(Error::invalid(format!("a frame of unknown encoding {other}"))),
        };
        let prefix = Self {
            kind,
            encoding,
            number: u64_at(bytes, 8),
            extents: u32_at(bytes, 16),
            stored: u32_at(bytes, 20),
            body_crc: u32_at(bytes, 24),
        };
        let (extents, stored) = (prefix.extents as usize, prefix.stored as usize);
        let fits = match kind {
            FrameKind::Header => extents == 0 && (HEADER_FIXED_SIZE..=HEADER_SIZE_MAX).contains(&stored),
            FrameKind::Chunk => (1..=CHUNK_EXTENTS_MAX).contains(&extents) && stored <= CHUNK_DATA_MAX,
            FrameKind::Trailer => extents == 0 && stored == TRAILER_SIZE,
        };
        if !fits {
            return Err(Error::invalid(format!(
                "a frame of impossible size ({extents} extents, {stored} bytes)"
            )));
        }
        Ok(prefix)
    }

    /// Bytes in the extent table.
    #[must_use]
    pub fn table_size(&self) -> usize {
        self.extents as usize * EXTENT_SIZE
    }

    /// Bytes between this prefix and the next one.
    #[must_use]
    pub fn body_size(&self) -> usize {
        self.table_size() + self.stored as usize
    }
}

/// Whether a text may stand as a name in a stream: what users may type, and the
/// internal names that begin with `_`.
fn is_stream_name(name: &str) -> bool {
    let bytes = name.as_bytes();
    (1..=63).contains(&bytes.len())
        && (bytes[0].is_ascii_alphanumeric() || bytes[0] == b'_')
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

impl StreamHeader {
    /// Checks what a codec can check: names, geometry, sizes, the place to resume.
    ///
    /// # Errors
    /// `Invalid`, naming the field.
    pub fn validate(&self) -> Result<()> {
        let wrong = |what: &str| Err(Error::invalid(format!("the stream's header has {what}")));
        let names =
            [Some(&self.volume_name), Some(&self.target.name), self.base.as_ref().map(|base| &base.name)];
        if !names.into_iter().flatten().all(|name| is_stream_name(name)) {
            return wrong("a bad name");
        }
        if !(1..=TEXT_SIZE_MAX).contains(&self.created.len())
            || !self.created.bytes().all(|b| b.is_ascii_graphic())
        {
            return wrong("a bad time");
        }
        if self.volume.is_nil() || self.target.uuid.is_nil() {
            return wrong("no identity");
        }
        if let Some(base) = &self.base {
            if base.uuid.is_nil() || base.uuid == self.target.uuid {
                return wrong("a bad base");
            }
            if self.base_size == 0
                || !self.base_size.is_multiple_of(SECTOR)
                || self.base_size > VOLUME_SIZE_MAX
            {
                return wrong("a bad size of the base");
            }
        } else if self.base_size != 0 {
            return wrong("a size of a base and no base");
        }
        let Geometry { size, block_size, granularity } = self.geometry;
        Geometry::new(size, block_size, granularity)?;
        if self.resume_from > size
            || (!self.resume_from.is_multiple_of(u64::from(block_size)) && self.resume_from != size)
        {
            return wrong("a bad place to resume");
        }
        Ok(())
    }

    /// The body of the header frame.
    ///
    /// # Errors
    /// As for [`Self::validate`].
    pub fn encode(&self) -> Result<Vec<u8>> {
        self.validate()?;
        let base = self.base.as_ref();
        let mut out = Vec::with_capacity(HEADER_SIZE_MAX);
        out.extend_from_slice(&(if self.compressed { FEATURE_ZSTD } else { 0 }).to_le_bytes());
        for uuid in [self.volume, self.target.uuid, base.map_or(Uuid::nil(), |base| base.uuid), self.stream] {
            out.extend_from_slice(uuid.as_bytes());
        }
        let totals = [self.data_bytes, self.discard_bytes].map(|total| total.unwrap_or(UNKNOWN));
        for word in [self.geometry.size, self.base_size, self.resume_from, totals[0], totals[1]] {
            out.extend_from_slice(&word.to_le_bytes());
        }
        out.extend_from_slice(&self.geometry.block_size.to_le_bytes());
        out.extend_from_slice(&self.geometry.granularity.to_le_bytes());
        let base_name = base.map_or("", |base| base.name.as_str());
        let texts = [self.volume_name.as_str(), self.target.name.as_str(), base_name, self.created.as_str()];
        // Their lengths fit a byte: `validate` has seen them.
        out.extend(texts.iter().map(|text| u8::try_from(text.len()).unwrap_or(u8::MAX)));
        out.extend_from_slice(&[0; 4]);
        for text in texts {
            out.extend_from_slice(text.as_bytes());
        }
        Ok(out)
    }

    /// Reads the body of a header frame.
    ///
    /// # Errors
    /// `Invalid` for contradictions, `Unsupported` for unknown features.
    pub fn decode(body: &[u8]) -> Result<Self> {
        if body.len() < HEADER_FIXED_SIZE {
            return Err(Error::invalid("the stream's header is too short"));
        }
        let features = u64_at(body, 0);
        if features & !FEATURE_ZSTD != 0 {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("the stream uses features that this program does not know ({features:#x})"),
            )
            .hint("use a newer release of snapvol"));
        }
        let mut at = HEADER_FIXED_SIZE;
        let mut texts = [const { String::new() }; 4];
        for (text, len) in texts.iter_mut().zip(&body[120..124]) {
            let end = at + usize::from(*len);
            let bytes =
                body.get(at..end).ok_or_else(|| Error::invalid("the stream's header is too short"))?;
            *text = String::from_utf8(bytes.to_vec())
                .map_err(|_| Error::invalid("the stream's header has a bad text"))?;
            at = end;
        }
        if at != body.len() || u32_at(body, 124) != 0 {
            return Err(Error::invalid("the stream's header is too long"));
        }
        let [volume_name, target_name, base_name, created] = texts;
        let base_uuid = uuid_at(body, 40);
        let base = if base_uuid.is_nil() && base_name.is_empty() {
            None
        } else {
            Some(SnapshotId { uuid: base_uuid, name: base_name })
        };
        let known = |total: u64| (total != UNKNOWN).then_some(total);
        let header = Self {
            stream: uuid_at(body, 56),
            volume: uuid_at(body, 8),
            volume_name,
            base,
            base_size: u64_at(body, 80),
            target: SnapshotId { uuid: uuid_at(body, 24), name: target_name },
            created,
            geometry: Geometry {
                size: u64_at(body, 72),
                block_size: u32_at(body, 112),
                granularity: u32_at(body, 116),
            },
            resume_from: u64_at(body, 88),
            data_bytes: known(u64_at(body, 96)),
            discard_bytes: known(u64_at(body, 104)),
            compressed: features & FEATURE_ZSTD != 0,
        };
        header.validate()?;
        Ok(header)
    }
}

impl Extent {
    /// The bytes of a table entry. The length is at most [`EXTENT_LEN_MAX`].
    #[must_use]
    pub fn encode(&self) -> [u8; EXTENT_SIZE] {
        debug_assert!(self.offset.is_multiple_of(SECTOR) && self.len.is_multiple_of(SECTOR));
        let kind = match self.kind {
            ExtentKind::Data => 0,
            ExtentKind::Discard => 1,
        };
        let sectors = u32::try_from(self.len / SECTOR).unwrap_or(u32::MAX);
        let mut out = [0; EXTENT_SIZE];
        out[..8].copy_from_slice(&(self.offset | kind).to_le_bytes());
        out[8..].copy_from_slice(&sectors.to_le_bytes());
        out
    }

    /// Reads a table entry; what it says must still be checked against the volume.
    ///
    /// # Errors
    /// `Invalid` for an unknown kind or an empty extent.
    pub fn decode(bytes: &[u8; EXTENT_SIZE]) -> Result<Self> {
        let word = u64_at(bytes, 0);
        let kind = match word % SECTOR {
            0 => ExtentKind::Data,
            1 => ExtentKind::Discard,
            _ => return Err(Error::invalid("an extent of unknown kind")),
        };
        let len = u64::from(u32_at(bytes, 8)) * SECTOR;
        let offset = word - word % SECTOR;
        if len == 0 || offset.checked_add(len).is_none() {
            return Err(Error::invalid("an extent of impossible length"));
        }
        Ok(Self { offset, len, kind })
    }
}

impl Trailer {
    /// The body of the trailer frame.
    #[must_use]
    pub fn encode(&self) -> [u8; TRAILER_SIZE] {
        let mut out = [0; TRAILER_SIZE];
        out[..8].copy_from_slice(&self.chunks.to_le_bytes());
        out[8..16].copy_from_slice(&self.data_bytes.to_le_bytes());
        out[16..24].copy_from_slice(&self.discard_bytes.to_le_bytes());
        out[32..].copy_from_slice(&self.digest);
        out
    }

    /// Reads the body of a trailer frame.
    ///
    /// # Errors
    /// `Invalid` when the body has the wrong length or a reserved word is set.
    pub fn decode(body: &[u8]) -> Result<Self> {
        if body.len() != TRAILER_SIZE || u64_at(body, 24) != 0 {
            return Err(Error::invalid("the stream's trailer is malformed"));
        }
        Ok(Self {
            chunks: u64_at(body, 0),
            data_bytes: u64_at(body, 8),
            discard_bytes: u64_at(body, 16),
            digest: std::array::from_fn(|i| body[32 + i]),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The sizes that `docs/stream.md` gives, against those of the codec.
    #[test]
    fn the_document_says_the_same() {
        let document = include_str!("../../docs/stream.md");
        for (name, size) in [
            ("PREAMBLE_SIZE", PREAMBLE_SIZE),
            ("PREFIX_SIZE", PREFIX_SIZE),
            ("HEADER_FIXED_SIZE", HEADER_FIXED_SIZE),
            ("HEADER_SIZE_MAX", HEADER_SIZE_MAX),
            ("EXTENT_SIZE", EXTENT_SIZE),
            ("TRAILER_SIZE", TRAILER_SIZE),
            ("TEXT_SIZE_MAX", TEXT_SIZE_MAX),
            ("CHUNK_DATA_MAX", CHUNK_DATA_MAX),
            ("CHUNK_EXTENTS_MAX", CHUNK_EXTENTS_MAX),
            ("VERSION", VERSION as usize),
        ] {
            assert!(document.contains(&format!("| `{name}` | {size} |")), "{name} = {size}");
        }
        for (heading, size) in [
            ("Preamble", PREAMBLE_SIZE),
            ("Frame prefix", PREFIX_SIZE),
            ("Header body", HEADER_FIXED_SIZE),
            ("Extent", EXTENT_SIZE),
            ("Trailer body", TRAILER_SIZE),
        ] {
            let section = document.split("\n## ").find(|part| part.starts_with(heading)).expect(heading);
            let mut at = 0;
            for row in
                section.lines().filter(|line| line.starts_with("| ") && line.as_bytes()[2].is_ascii_digit())
            {
                let mut cells = row.split('|').map(str::trim).skip(1);
                assert_eq!(cells.next().unwrap().parse::<usize>().unwrap(), at, "{heading}: {row}");
                at += cells.next().unwrap().parse::<usize>().unwrap();
            }
            assert_eq!(at, size, "{heading}");
        }
    }

    #[test]
    fn preamble_tells_foreign_and_newer_apart() {
        let mut bytes = encode_preamble();
        check_preamble(&bytes).unwrap();
        bytes[8] = 2;
        assert_eq!(check_preamble(&bytes).unwrap_err().kind(), ErrorKind::Unsupported);
        assert_eq!(check_preamble(b"#!/bin/sh\necho x").unwrap_err().kind(), ErrorKind::Invalid);
    }
}
