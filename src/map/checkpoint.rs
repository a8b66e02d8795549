//! The checkpoint: the production meta bit map and the stale bit map in a file, up to a
//! sequence number of the journal.
//!
//! There are two files, written in turn; the journal says which one is current. Neither
//! reading nor writing is done here: [`update`] says what to write where, [`Loader`] what
//! to read and then what it meant. Why a crash is safe: only the file that the journal
//! does not name is written, all of it is synced before its header is, and the header
//! before the record that names it; so the named file is never touched, and a half
//! written one is never believed. An update writes only pages that changed since *this*
//! file was written, and the table sectors about them.
//!
//! What a lying disk lost is told by the page's checksum, by the table sector's, or by
//! the count of set bits in the header.

use super::bitmap::BitMap;
use super::page::{PAGE_BITS, PAGE_WORDS, Page, Words};
use crate::error::{Error, Result};
use crate::format::checkpoint::{
    BODY_LEN, Header, PageState, SECTIONS, SECTOR_ENTRIES, SECTOR_LEN, body_offset, decode_sector,
    encode_sector, sector_offset,
};
use crate::types::Seq;
use bytes::Bytes;
use std::collections::BTreeSet;
use uuid::Uuid;

const _: () = assert!(PAGE_WORDS * 8 == BODY_LEN);
const _: () = assert!(crate::format::checkpoint::BITS_MAX == super::bitmap::BITS_MAX);

/// Bytes in one read or write, at most.
const PIECE: usize = 1 << 20;

/// Bytes to read first: the header.
pub const HEADER_LEN: usize = SECTOR_LEN;

fn body_of(page: &Page) -> Vec<u8> {
    super::layer::le_bytes(&page.to_words())
}

fn state_of(page: &Page) -> PageState {
    match page {
        Page::Empty => PageState::Empty,
        Page::Full => PageState::Full,
        _ => PageState::Bits(crc32c::crc32c(&body_of(page))),
    }
}

/// Writes, in ascending order, joined where they touch.
#[derive(Default)]
struct Writes {
    done: Vec<(u64, Bytes)>,
    open: Option<(u64, Vec<u8>)>,
}

impl Writes {
    fn add(&mut self, offset: u64, bytes: &[u8]) {
        match &mut self.open {
            Some((start, buffer))
                if *start + buffer.len() as u64 == offset && buffer.len() + bytes.len() <= PIECE =>
            {
                buffer.extend_from_slice(bytes);
            }
            open => {
                let full = open.replace((offset, bytes.to_vec()));
                self.done.extend(full.map(|(offset, bytes)| (offset, Bytes::from(bytes))));
            }
        }
    }

    fn finish(mut self) -> Vec<(u64, Bytes)> {
        self.done.extend(self.open.map(|(offset, bytes)| (offset, Bytes::from(bytes))));
        self.done
    }
}

/// What to write to turn a file that holds `previous` into a checkpoint of `current`.
///
/// The maps are the production meta bit map and the stale one, of `bits` bits each.
/// Without `previous` the file must be empty (new, or truncated to nothing). The last
/// write is the header: everything before it is synced first, then it is written alone
/// and synced.
///
/// # Panics
/// If a map has a bit set beyond its size.
#[must_use]
pub fn update(
    previous: Option<(&BitMap, &BitMap)>,
    current: (&BitMap, &BitMap),
    bits: (u64, u64),
    seq: Seq,
    generation: u64,
    volume: Uuid,
) -> Vec<(u64, Bytes)> {
    assert!(
        current.0.next_set(bits.0).is_none() && current.1.next_set(bits.1).is_none(),
        "a checkpoint's maps end at their size"
    );
    let nothing = BitMap::new();
    let previous = previous.unwrap_or((&nothing, &nothing));
    let mut writes = Writes::default();
    let sections = [(previous.0, current.0), (previous.1, current.1)];
    let mut tables = Vec::new();
    for (section, (old, new)) in sections.into_iter().enumerate() {
        let mut sectors = BTreeSet::new();
        for number in old.changed_pages(new) {
            sectors.insert(number / SECTOR_ENTRIES as u64);
            let page = new.page(number);
            if matches!(page, Page::List(_) | Page::Bits(_)) {
                writes.add(body_offset(section, number), &body_of(&page));
            }
        }
        tables.push((section, new, sectors));
    }
    for (section, map, sectors) in tables {
        for sector in sectors {
            let first = sector * SECTOR_ENTRIES as u64;
            let mut states = [PageState::Empty; SECTOR_ENTRIES];
            for (state, number) in states.iter_mut().zip(first..) {
                *state = state_of(&map.page(number));
            }
            writes.add(sector_offset(section, sector), &encode_sector(section, sector, &states));
        }
    }
    let header = Header {
        volume,
        seq,
        generation,
        bits: [bits.0, bits.1],
        set: [current.0.count(), current.1.count()],
    };
    let mut writes = writes.finish();
    writes.push((0, Bytes::copy_from_slice(&header.encode())));
    writes
}

/// What a checkpoint holds.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    /// All changes up to this one are in the maps.
    pub seq: Seq,
    /// Counts the checkpoints of the volume.
    pub generation: u64,
    /// Bits in the two maps.
    pub bits: (u64, u64),
    /// The production meta bit map.
    pub meta: BitMap,
    /// The stale bit map.
    pub stale: BitMap,
}

/// A stretch of the file to read. Where the file ends before it does, that is no error:
/// what was read is handed in as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Read {
    /// Byte offset.
    pub offset: u64,
    /// Bytes.
    pub len: usize,
}

/// Reads a checkpoint in three steps: header, tables, bodies.
///
/// [`Self::tables`] are all read and handed to [`Self::table`], then all of
/// [`Self::bodies`] to [`Self::body`], each in order; then [`Self::finish`].
#[derive(Debug)]
pub struct Loader {
    header: Header,
    maps: [BitMap; SECTIONS],
    /// (section, first sector, sectors) of each read.
    tables: Vec<(usize, u64, u64)>,
    tables_done: usize,
    /// Section, page and checksum of each body, in the order of the file.
    pages: Vec<(usize, u64, u32)>,
    pages_done: usize,
}

impl Loader {
    /// Starts with the first [`HEADER_LEN`] bytes of the file.
    ///
    /// # Errors
    /// `Unsupported` for a newer version, `Corrupt` for damage or another volume's file.
    pub fn new(header: &[u8], volume: Uuid) -> Result<Self> {
        let header = Header::decode(header)?;
        if header.volume != volume {
            return Err(Error::corrupt(format!(
                "the checkpoint is of volume {}, not of {volume}",
                header.volume
            )));
        }
        let step = (PIECE / SECTOR_LEN) as u64;
        let mut tables = Vec::new();
        for (section, bits) in header.bits.iter().enumerate() {
            let sectors = bits.div_ceil(PAGE_BITS).div_ceil(SECTOR_ENTRIES as u64);
            let mut first = 0;
            while first < sectors {
                tables.push((section, first, step.min(sectors - first)));
                first += step;
            }
        }
        Ok(Self {
            header,
            maps: Default::default(),
            tables,
            tables_done: 0,
            pages: Vec::new(),
            pages_done: 0,
        })
    }

    /// The journal's sequence number and the generation in the header.
    #[must_use]
    pub fn seq(&self) -> (Seq, u64) {
        (self.header.seq, self.header.generation)
    }

    /// The parts of the tables to read, each for one call of [`Self::table`].
    #[must_use]
    pub fn tables(&self) -> Vec<Read> {
        let read = |&(section, first, sectors): &(usize, u64, u64)| Read {
            offset: sector_offset(section, first),
            len: usize::try_from(sectors).unwrap_or(usize::MAX).saturating_mul(SECTOR_LEN),
        };
        self.tables.iter().map(read).collect()
    }

    /// Takes the bytes of the next part of the tables; shorter where the file ended.
    ///
    /// # Errors
    /// `Corrupt`, naming the table's sector.
    ///
    /// # Panics
    /// If no part is left.
    pub fn table(&mut self, bytes: &[u8]) -> Result<()> {
        let (section, first, sectors) = self.tables[self.tables_done];
        self.tables_done += 1;
        let mut rest = bytes;
        for sector in first..first + sectors {
            let (bytes, after) = rest.split_at(rest.len().min(SECTOR_LEN));
            rest = after;
            let states = decode_sector(section, sector, bytes)?;
            for (state, number) in states.into_iter().zip(sector * SECTOR_ENTRIES as u64..) {
                if state != PageState::Empty && number >= self.header.bits[section].div_ceil(PAGE_BITS) {
                    return Err(Error::corrupt(format!("page {number} of the checkpoint is beyond its end")));
                }
                match state {
                    PageState::Empty => {}
                    PageState::Full => self.maps[section].set_page(number, Page::Full),
                    PageState::Bits(crc) => self.pages.push((section, number, crc)),
                }
            }
        }
        Ok(())
    }

    /// The bodies to read, joined where they touch, each for one call of [`Self::body`].
    ///
    /// # Panics
    /// If parts of the tables are still to be taken.
    #[must_use]
    pub fn bodies(&self) -> Vec<Read> {
        assert_eq!(self.tables_done, self.tables.len(), "the tables come before the bodies");
        let mut reads: Vec<Read> = Vec::new();
        for &(section, number, _) in &self.pages {
            let offset = body_offset(section, number);
            match reads.last_mut() {
                Some(last) if last.offset + last.len as u64 == offset && last.len < PIECE => {
                    last.len += BODY_LEN;
                }
                _ => reads.push(Read { offset, len: BODY_LEN }),
            }
        }
        reads
    }

    /// Takes the bytes of the next of the bodies.
    ///
    /// # Errors
    /// `Corrupt`, naming the page.
    pub fn body(&mut self, read: Read, bytes: &[u8]) -> Result<()> {
        for index in 0..read.len / BODY_LEN {
            let Some(&(section, number, crc)) = self.pages.get(self.pages_done) else {
                return Err(Error::corrupt("the checkpoint has more bodies than pages"));
            };
            let bad =
                || Error::corrupt(format!("page {number} of map {section} of the checkpoint is damaged"));
            self.pages_done += 1;
            let body = bytes.get(index * BODY_LEN..(index + 1) * BODY_LEN).ok_or_else(bad)?;
            if crc32c::crc32c(body) != crc {
                return Err(bad());
            }
            let mut words: Words = [0; PAGE_WORDS];
            for (word, raw) in words.iter_mut().zip(body.chunks_exact(8)) {
                *word = raw.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
            }
            self.maps[section].set_page(number, Page::from_words(&words));
        }
        Ok(())
    }

    /// The maps.
    ///
    /// # Errors
    /// `Corrupt` if they are not what the header counted.
    pub fn finish(self) -> Result<Checkpoint> {
        let [meta, stale] = self.maps;
        let bits = self.header.bits;
        let counts = [meta.count(), stale.count()];
        let ends = meta.next_set(bits[0]).is_none() && stale.next_set(bits[1]).is_none();
        if self.pages_done != self.pages.len() || counts != self.header.set || !ends {
            return Err(Error::corrupt("the checkpoint's maps are not what its header counted"));
        }
        Ok(Checkpoint {
            seq: self.header.seq,
            generation: self.header.generation,
            bits: (bits[0], bits[1]),
            meta,
            stale,
        })
    }
}

#[cfg(test)]
mod tests;
