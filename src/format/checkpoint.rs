//! The checkpoint of the production meta bit map, as bytes: header and table sectors.
//!
//! `docs/format.md`, "Checkpoint of the meta bit map", has the tables; the constants here
//! are compared with it by a test. All offsets are fixed, so a volume that grows moves
//! nothing and the file is sparse.

use super::layer::{u32_at, u64_at, uuid_at};
use crate::error::{Error, ErrorKind, Result};
use crate::types::Seq;
use uuid::Uuid;

/// The first bytes of a checkpoint.
pub const MAGIC: [u8; 8] = *b"SVCHECK1";
/// The version that this program writes.
pub const VERSION: u32 = 1;
/// Bytes in the header, which is at offset 0; and in a table sector.
pub const SECTOR_LEN: usize = 512;
/// Bytes in an entry of a table sector.
pub const ENTRY_LEN: usize = 8;
/// Entries in a table sector.
pub const SECTOR_ENTRIES: usize = 63;
/// Bytes in the body of a page.
pub const BODY_LEN: usize = 4096;
/// The two sections: production meta bit map, stale bit map.
pub const SECTIONS: usize = 2;
/// Sizes of a section are below or at this.
pub const BITS_MAX: u64 = super::layer::PAGES_MAX * super::layer::PAGE_BITS as u64;

const TABLE_SHIFT: u32 = 26;
/// Where the bodies begin: behind the longest tables.
const BODIES_AT: u64 = 3 << TABLE_SHIFT;
/// Bodies of one section that lie together; the sections take turns, so that the file is
/// no longer than its volume's maps.
const BODIES_RUN: u64 = 256;
const TAIL: usize = SECTOR_ENTRIES * ENTRY_LEN;
const CRC_AT: usize = SECTOR_LEN - 4;

const _: () = assert!(TAIL + 8 == SECTOR_LEN);
const _: () = assert!(
    super::layer::PAGES_MAX.div_ceil(SECTOR_ENTRIES as u64) * SECTOR_LEN as u64 <= 1 << TABLE_SHIFT,
    "the table of the largest map fits in its area"
);

/// Byte offset of a sector of a section's table.
#[must_use]
pub fn sector_offset(section: usize, sector: u64) -> u64 {
    ((section as u64 + 1) << TABLE_SHIFT) + sector * SECTOR_LEN as u64
}

/// Byte offset of the body of a page.
#[must_use]
pub fn body_offset(section: usize, page: u64) -> u64 {
    let run = page / BODIES_RUN * SECTIONS as u64 + section as u64;
    BODIES_AT + (run * BODIES_RUN + page % BODIES_RUN) * BODY_LEN as u64
}

/// The header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The volume.
    pub volume: Uuid,
    /// All changes up to this one are in the maps.
    pub seq: Seq,
    /// Counts the checkpoints of the volume.
    pub generation: u64,
    /// Bits in each section.
    pub bits: [u64; SECTIONS],
    /// Set bits in each section.
    pub set: [u64; SECTIONS],
}

impl Header {
    /// The header as stored.
    #[must_use]
    pub fn encode(&self) -> [u8; SECTOR_LEN] {
        let mut out = [0; SECTOR_LEN];
        out[..8].copy_from_slice(&MAGIC);
        out[8..12].copy_from_slice(&VERSION.to_le_bytes());
        out[16..32].copy_from_slice(self.volume.as_bytes());
        let numbers = [self.seq.0, self.generation, self.bits[0], self.bits[1], self.set[0], self.set[1]];
        for (number, place) in numbers.iter().zip(out[32..80].chunks_exact_mut(8)) {
            place.copy_from_slice(&number.to_le_bytes());
        }
        let crc = crc32c::crc32c(&out[..CRC_AT]);
        out[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Reads a header.
    ///
    /// # Errors
    /// `Unsupported` for a newer version, else `Corrupt`.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let Some(bytes) = bytes.get(..SECTOR_LEN) else {
            return Err(Error::corrupt("the checkpoint has no whole header"));
        };
        if bytes[..8] != MAGIC {
            return Err(Error::corrupt("this file is no checkpoint of a meta bit map"));
        }
        if crc32c::crc32c(&bytes[..CRC_AT]) != u32_at(bytes, CRC_AT) {
            return Err(Error::corrupt("the checksum of the checkpoint's header does not match"));
        }
        let version = u32_at(bytes, 8);
        if version > VERSION {
            return Err(Error::new(ErrorKind::Unsupported, format!("checkpoint of version {version}"))
                .hint(format!("this program reads version {VERSION}; use a newer one")));
        }
        let header = Self {
            volume: uuid_at(bytes, 16),
            seq: Seq(u64_at(bytes, 32)),
            generation: u64_at(bytes, 40),
            bits: [u64_at(bytes, 48), u64_at(bytes, 56)],
            set: [u64_at(bytes, 64), u64_at(bytes, 72)],
        };
        let zeros = bytes[12..16].iter().chain(&bytes[80..CRC_AT]).all(|&byte| byte == 0);
        let fits = header.bits.iter().zip(&header.set).all(|(bits, set)| *bits <= BITS_MAX && set <= bits);
        if version != VERSION || !zeros || !fits {
            return Err(Error::corrupt("the checkpoint's header contradicts itself"));
        }
        Ok(header)
    }
}

/// What a table says of a page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PageState {
    /// No bit is set; its body means nothing.
    #[default]
    Empty,
    /// Every bit is set; its body means nothing.
    Full,
    /// Its body has that crc32c.
    Bits(u32),
}

/// A table sector as stored; `number` is its place in the table of its section.
#[must_use]
pub fn encode_sector(section: usize, number: u64, states: &[PageState; SECTOR_ENTRIES]) -> [u8; SECTOR_LEN] {
    let mut out = [0; SECTOR_LEN];
    for (state, place) in states.iter().zip(out.chunks_exact_mut(ENTRY_LEN)) {
        let (kind, crc) = match state {
            PageState::Empty => (0, 0),
            PageState::Full => (1, 0),
            PageState::Bits(crc) => (2, *crc),
        };
        place[..4].copy_from_slice(&crc.to_le_bytes());
        place[4] = kind;
    }
    out[TAIL..CRC_AT].copy_from_slice(&mark(section, number).to_le_bytes());
    let crc = crc32c::crc32c(&out[..CRC_AT]);
    out[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
    out
}

/// The section and number of a table sector in one word.
#[allow(clippy::cast_possible_truncation, reason = "a table has less than 2^24 sectors")]
fn mark(section: usize, number: u64) -> u32 {
    ((section as u32 + 1) << 24) | number as u32
}

/// Reads a table sector. One that was never written is all zeros: all pages are empty.
///
/// # Errors
/// `Corrupt`, naming the sector.
pub fn decode_sector(section: usize, number: u64, bytes: &[u8]) -> Result<[PageState; SECTOR_ENTRIES]> {
    let bad = || Error::corrupt(format!("sector {number} of table {section} of the checkpoint is damaged"));
    let mut states = [PageState::Empty; SECTOR_ENTRIES];
    if bytes.iter().all(|&byte| byte == 0) {
        return Ok(states);
    }
    let bytes = bytes.get(..SECTOR_LEN).ok_or_else(bad)?;
    if crc32c::crc32c(&bytes[..CRC_AT]) != u32_at(bytes, CRC_AT)
        || u32_at(bytes, TAIL) != mark(section, number)
    {
        return Err(bad());
    }
    for (state, entry) in states.iter_mut().zip(bytes.chunks_exact(ENTRY_LEN)) {
        *state = match (entry[4], u32_at(entry, 0)) {
            (0, 0) => PageState::Empty,
            (1, 0) => PageState::Full,
            (2, crc) => PageState::Bits(crc),
            _ => return Err(bad()),
        };
        if entry[5..] != [0; 3] {
            return Err(bad());
        }
    }
    Ok(states)
}

#[cfg(test)]
mod tests;
