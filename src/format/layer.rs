//! The sealed layer, as bytes: header, page tables, buckets of the hash table.
//!
//! `docs/format.md`, "Sealed layer", has the tables; the constants here are compared
//! with it by a test. Decoding checks all that can be checked without the rest of the
//! file, and allocates nothing.

use crate::error::{Error, ErrorKind, Result};
use crate::types::Epoch;
use std::ops::Range;
use uuid::Uuid;

/// The first bytes of a sealed layer.
pub const MAGIC: [u8; 8] = *b"SVLAYER1";
/// The version that this program writes.
pub const VERSION: u32 = 1;
/// Bytes in the header.
pub const HEADER_LEN: usize = 128;
/// Bytes in an entry of a page table.
pub const PAGE_ENTRY_LEN: usize = 24;
/// Bytes in a slot of the hash table.
pub const SLOT_LEN: usize = 24;
/// Slots in a bucket of the hash table.
pub const BUCKET_SLOTS: usize = 170;
/// Bytes in a bucket; buckets are aligned to this.
pub const BUCKET_LEN: usize = 4096;
/// Entries per bucket on average, at most: a load of not quite 0.75.
pub const BUCKET_LOAD: u64 = 127;
/// Bits in a page; a page of bits has an eighth of that in bytes.
pub const PAGE_BITS: u32 = 32_768;
/// The body of a page that is stored as bits.
pub const PAGE_BITS_LEN: usize = 4096;
/// Bits in a list, at most.
pub const LIST_MAX: u32 = 256;
/// Page numbers are below this (64 TiB in blocks of 512 bytes).
pub const PAGES_MAX: u64 = 1 << 22;

const _: () = assert!(BUCKET_SLOTS * SLOT_LEN + 16 == BUCKET_LEN);
const _: () = assert!(PAGE_BITS as usize / 8 == PAGE_BITS_LEN);
const _: () = assert!(BUCKET_LOAD * 4 <= BUCKET_SLOTS as u64 * 3);

const CRC_AT: usize = HEADER_LEN - 4;
const BUCKET_TAIL: usize = BUCKET_SLOTS * SLOT_LEN;

/// Little-endian numbers out of a slice that is known to be long enough.
pub(super) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

pub(super) fn uuid_at(bytes: &[u8], at: usize) -> Uuid {
    let mut raw = [0; 16];
    raw.copy_from_slice(&bytes[at..at + 16]);
    Uuid::from_bytes(raw)
}

/// The header of a sealed layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The volume.
    pub volume: Uuid,
    /// The epochs whose before-images are here.
    pub epochs: Range<Epoch>,
    /// Set bits, which is also the number of entries in the hash table.
    pub entries: u64,
    /// Entries in the table of bit pages.
    pub bit_pages: u32,
    /// Entries in the table of meta before-pages.
    pub meta_pages: u32,
    /// Buckets in the hash table.
    pub buckets: u32,
    /// Byte offset of the first bucket; zeros fill the file up to it.
    pub hash_offset: u64,
    /// crc32c of both page tables.
    pub tables_crc: u32,
}

impl Header {
    /// Byte range of the table of bit pages.
    #[must_use]
    pub fn bit_table(&self) -> Range<u64> {
        let start = HEADER_LEN as u64;
        start..start + u64::from(self.bit_pages) * PAGE_ENTRY_LEN as u64
    }

    /// Byte range of the table of meta before-pages.
    #[must_use]
    pub fn meta_table(&self) -> Range<u64> {
        let start = self.bit_table().end;
        start..start + u64::from(self.meta_pages) * PAGE_ENTRY_LEN as u64
    }

    /// Byte range in which all page bodies are.
    #[must_use]
    pub fn bodies(&self) -> Range<u64> {
        self.meta_table().end..self.hash_offset
    }

    /// Bytes in the file.
    #[must_use]
    pub fn file_len(&self) -> u64 {
        self.hash_offset.saturating_add(u64::from(self.buckets) * BUCKET_LEN as u64)
    }

    /// The header as stored.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut out = [0; HEADER_LEN];
        out[..8].copy_from_slice(&MAGIC);
        out[8..12].copy_from_slice(&VERSION.to_le_bytes());
        out[16..32].copy_from_slice(self.volume.as_bytes());
        out[32..40].copy_from_slice(&self.epochs.start.0.to_le_bytes());
        out[40..48].copy_from_slice(&self.epochs.end.0.to_le_bytes());
        out[48..56].copy_from_slice(&self.file_len().to_le_bytes());
        out[56..64].copy_from_slice(&self.entries.to_le_bytes());
        out[64..68].copy_from_slice(&self.bit_pages.to_le_bytes());
        out[68..72].copy_from_slice(&self.meta_pages.to_le_bytes());
        out[72..80].copy_from_slice(&self.hash_offset.to_le_bytes());
        out[80..84].copy_from_slice(&self.buckets.to_le_bytes());
        out[84..88].copy_from_slice(&self.tables_crc.to_le_bytes());
        let crc = crc32c::crc32c(&out[..CRC_AT]);
        out[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Reads the header of a file of `file_len` bytes; its sections lie within the file.
    ///
    /// # Errors
    /// `Unsupported` for a newer version, else `Corrupt`.
    pub fn decode(file: &[u8]) -> Result<Self> {
        let Some(bytes) = file.get(..HEADER_LEN) else {
            return Err(Error::corrupt(format!("a layer of {} bytes has no header", file.len())));
        };
        if bytes[..8] != MAGIC {
            return Err(Error::corrupt("this file is no sealed layer"));
        }
        let version = u32_at(bytes, 8);
        let crc_fits = crc32c::crc32c(&bytes[..CRC_AT]) == u32_at(bytes, CRC_AT);
        if version > VERSION && crc_fits {
            return Err(Error::new(ErrorKind::Unsupported, format!("layer of version {version}"))
                .hint(format!("this program reads version {VERSION}; use a newer one")));
        }
        if !crc_fits || version != VERSION {
            return Err(Error::corrupt("the checksum of the layer's header does not match"));
        }
        let header = Self {
            volume: uuid_at(bytes, 16),
            epochs: Epoch(u64_at(bytes, 32))..Epoch(u64_at(bytes, 40)),
            entries: u64_at(bytes, 56),
            bit_pages: u32_at(bytes, 64),
            meta_pages: u32_at(bytes, 68),
            hash_offset: u64_at(bytes, 72),
            buckets: u32_at(bytes, 80),
            tables_crc: u32_at(bytes, 84),
        };
        let zeros = bytes[12..16].iter().chain(&bytes[88..CRC_AT]).all(|&byte| byte == 0);
        let len = u64_at(bytes, 48);
        if !zeros
            || len != header.file_len()
            || header.epochs.is_empty()
            || !header.hash_offset.is_multiple_of(BUCKET_LEN as u64)
            || header.hash_offset < header.meta_table().end
            || u64::from(header.buckets) != header.entries.div_ceil(BUCKET_LOAD)
        {
            return Err(Error::corrupt("the layer's header contradicts itself"));
        }
        if len != file.len() as u64 {
            return Err(Error::corrupt(format!("the layer has {} bytes instead of {len}", file.len())));
        }
        Ok(header)
    }
}

/// How a page is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageKind {
    /// No bit is set; no body.
    Empty,
    /// Every bit is set; no body.
    Full,
    /// The numbers of the set bits, ascending, two bytes each.
    List,
    /// One bit each, 4096 bytes; bit 0 is the lowest of the first byte.
    Bits,
}

/// An entry of a page table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageEntry {
    /// The page's number.
    pub page: u64,
    /// How it is stored.
    pub kind: PageKind,
    /// Its set bits.
    pub count: u32,
    /// crc32c of the body.
    pub crc: u32,
    /// Byte offset of the body in the file; 0 if there is none.
    pub offset: u64,
}

impl PageEntry {
    /// Bytes in the body of a page of that kind.
    #[must_use]
    pub fn body_len(&self) -> usize {
        match self.kind {
            PageKind::Empty | PageKind::Full => 0,
            PageKind::List => self.count as usize * 2,
            PageKind::Bits => PAGE_BITS_LEN,
        }
    }

    /// The entry as stored.
    #[must_use]
    pub fn encode(&self) -> [u8; PAGE_ENTRY_LEN] {
        let mut out = [0; PAGE_ENTRY_LEN];
        out[..8].copy_from_slice(&self.page.to_le_bytes());
        out[8] = match self.kind {
            PageKind::Empty => 0,
            PageKind::Full => 1,
            PageKind::List => 2,
            PageKind::Bits => 3,
        };
        #[allow(clippy::cast_possible_truncation, reason = "at most 32768")]
        out[10..12].copy_from_slice(&(self.count as u16).to_le_bytes());
        out[12..16].copy_from_slice(&self.crc.to_le_bytes());
        out[16..].copy_from_slice(&self.offset.to_le_bytes());
        out
    }

    /// Reads an entry; its body lies within `bodies`.
    ///
    /// # Errors
    /// `Corrupt`, naming the page.
    pub fn decode(bytes: &[u8], bodies: &Range<u64>) -> Result<Self> {
        let page = u64_at(bytes, 0);
        let bad = || Error::corrupt(format!("the table entry of page {page} makes no sense"));
        let kind = match bytes[8] {
            0 => PageKind::Empty,
            1 => PageKind::Full,
            2 => PageKind::List,
            3 => PageKind::Bits,
            _ => return Err(bad()),
        };
        let count = u32::from(u16_at(bytes, 10));
        let entry = Self { page, kind, count, crc: u32_at(bytes, 12), offset: u64_at(bytes, 16) };
        let counts = match kind {
            PageKind::Empty => 0..=0,
            PageKind::Full => PAGE_BITS..=PAGE_BITS,
            PageKind::List => 1..=LIST_MAX,
            PageKind::Bits => 1..=PAGE_BITS - 1,
        };
        let len = entry.body_len() as u64;
        let inside = match len {
            0 => entry.offset == 0 && entry.crc == 0,
            _ => entry.offset >= bodies.start && entry.offset.saturating_add(len) <= bodies.end,
        };
        if page >= PAGES_MAX || bytes[9] != 0 || !counts.contains(&count) || !inside {
            return Err(bad());
        }
        Ok(entry)
    }
}

/// A used slot of the hash table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// The block.
    pub block: u64,
    /// The save address, as a word.
    pub addr: u64,
    /// crc32c of the before-image.
    pub crc: u32,
    /// The before-image could not be read when it was to be saved.
    pub damaged: bool,
}

const USED: u32 = 1;
const DAMAGED: u32 = 2;

impl Slot {
    /// The slot as stored.
    #[must_use]
    pub fn encode(&self) -> [u8; SLOT_LEN] {
        let mut out = [0; SLOT_LEN];
        out[..8].copy_from_slice(&self.block.to_le_bytes());
        out[8..16].copy_from_slice(&self.addr.to_le_bytes());
        out[16..20].copy_from_slice(&self.crc.to_le_bytes());
        let flags = USED | if self.damaged { DAMAGED } else { 0 };
        out[20..].copy_from_slice(&flags.to_le_bytes());
        out
    }

    /// Reads a slot; `None` if it is not in use.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let flags = u32_at(bytes, 20);
        (flags & USED != 0).then(|| Self {
            block: u64_at(bytes, 0),
            addr: u64_at(bytes, 8),
            crc: u32_at(bytes, 16),
            damaged: flags & DAMAGED != 0,
        })
    }
}

/// The hash of a block: the finaliser of splitmix64. It is part of the format.
#[must_use]
pub fn hash(block: u64) -> u64 {
    let mut z = block.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Where the search for a block starts: the bucket, and the slot in it. It goes on
/// through the slots after it, round to those before it, then from slot 0 of the next
/// bucket, and ends at a slot that is not in use.
#[must_use]
pub fn home(block: u64, buckets: u32) -> (u32, usize) {
    let hash = hash(block);
    #[allow(clippy::cast_possible_truncation, reason = "below `buckets`; below 170")]
    let (bucket, slot) =
        ((((hash >> 32) * u64::from(buckets)) >> 32) as u32, (hash & 0xffff_ffff) as usize % BUCKET_SLOTS);
    (bucket, slot)
}

/// Fills in a bucket's number and checksum after its slots.
pub fn close_bucket(bucket: &mut [u8], number: u32) {
    bucket[BUCKET_TAIL..BUCKET_TAIL + 4].copy_from_slice(&number.to_le_bytes());
    let crc = crc32c::crc32c(&bucket[..BUCKET_LEN - 4]);
    bucket[BUCKET_LEN - 4..BUCKET_LEN].copy_from_slice(&crc.to_le_bytes());
}

/// Checks a bucket of `BUCKET_LEN` bytes.
///
/// # Errors
/// `Corrupt`, naming the bucket.
pub fn check_bucket(bucket: &[u8], number: u32) -> Result<()> {
    let crc = crc32c::crc32c(&bucket[..BUCKET_LEN - 4]);
    if crc != u32_at(bucket, BUCKET_LEN - 4) || u32_at(bucket, BUCKET_TAIL) != number {
        return Err(Error::corrupt(format!(
            "the checksum of bucket {number} of the block map does not match"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
