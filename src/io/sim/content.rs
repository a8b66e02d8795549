//! What a simulated file holds: sparse pages, a size, and allocated ranges; and the
//! changes that were made to it.

use bytes::Bytes;
use std::collections::BTreeMap;
use std::rc::Rc;

/// Bytes in a page, the unit in which space is counted.
pub(super) const PAGE_BYTES: u64 = 4096;
const PAGE: usize = 4096;

/// Bytes in a sector: what a power cut tears no further.
pub(super) const SECTOR_BYTES: u64 = 512;

/// A change to a file's bytes, its size or its space.
#[derive(Clone, Debug)]
pub(super) enum Change {
    Write { offset: u64, data: Bytes },
    Punch { offset: u64, len: u64 },
    Allocate { offset: u64, len: u64 },
    Truncate { len: u64 },
}

impl Change {
    /// The bytes whose content it decides, from and up to.
    fn bytes(&self) -> (u64, u64) {
        match self {
            Self::Write { offset, data } => (*offset, offset + data.len() as u64),
            Self::Punch { offset, len } | Self::Allocate { offset, len } => (*offset, offset + len),
            Self::Truncate { len } => (*len, u64::MAX),
        }
    }

    /// Whether both decide about some byte.
    pub(super) fn meets(&self, other: &Self) -> bool {
        let ((a, a_end), (b, b_end)) = (self.bytes(), other.bytes());
        a < b_end && b < a_end
    }
}

/// The bytes of a file. A clone shares its pages until one side changes them.
#[derive(Clone, Debug, Default)]
pub(super) struct Content {
    pub(super) len: u64,
    pages: BTreeMap<u64, Rc<[u8; PAGE]>>,
    /// Allocated without data: first page to the page after the last one.
    reserved: BTreeMap<u64, u64>,
}

impl Content {
    /// Fills `data` from `offset`; past the end there are zeros.
    pub(super) fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let end = (offset + data.len() as u64).min(self.len);
        for (page, start, stop, at) in pieces(offset, end) {
            if let Some(bytes) = self.pages.get(&page) {
                data[at..at + stop - start].copy_from_slice(&bytes[start..stop]);
            }
        }
    }

    pub(super) fn apply(&mut self, change: &Change) {
        match change {
            Change::Write { offset, data } => self.write(*offset, data),
            Change::Punch { offset, len } => {
                let end = offset.saturating_add(*len);
                self.zero(*offset, end.min(self.len.next_multiple_of(PAGE_BYTES)));
                self.unreserve(offset.div_ceil(PAGE_BYTES), end / PAGE_BYTES);
            }
            Change::Allocate { offset, len } => {
                let (first, last) = (offset / PAGE_BYTES, (offset + len).div_ceil(PAGE_BYTES));
                self.unreserve(first, last);
                self.reserved.insert(first, last);
                self.len = self.len.max(offset + len);
            }
            Change::Truncate { len } => {
                if *len < self.len {
                    self.zero(*len, self.len.next_multiple_of(PAGE_BYTES));
                    self.unreserve(len.div_ceil(PAGE_BYTES), u64::MAX);
                }
                self.len = *len;
            }
        }
    }

    /// Writes bytes.
    pub(super) fn write(&mut self, offset: u64, data: &[u8]) {
        let end = offset + data.len() as u64;
        for (page, start, stop, at) in pieces(offset, end) {
            let bytes = self.pages.entry(page).or_insert_with(|| Rc::new([0; PAGE]));
            Rc::make_mut(bytes)[start..stop].copy_from_slice(&data[at..at + stop - start]);
        }
        if !data.is_empty() {
            self.len = self.len.max(end);
        }
    }

    fn zero(&mut self, offset: u64, end: u64) {
        if offset >= end {
            return;
        }
        let touched: Vec<u64> =
            self.pages.range(offset / PAGE_BYTES..end.div_ceil(PAGE_BYTES)).map(|(page, _)| *page).collect();
        for page in touched {
            let start = offset.max(page * PAGE_BYTES) - page * PAGE_BYTES;
            let stop = end.min((page + 1) * PAGE_BYTES) - page * PAGE_BYTES;
            if stop - start == PAGE_BYTES {
                self.pages.remove(&page);
            } else if let Some(bytes) = self.pages.get_mut(&page) {
                Rc::make_mut(bytes)[index(start)..index(stop)].fill(0);
            }
        }
    }

    fn unreserve(&mut self, first: u64, last: u64) {
        if first >= last {
            return;
        }
        let touched: Vec<(u64, u64)> = self
            .reserved
            .range(..last)
            .filter(|(_, stop)| **stop > first)
            .map(|(start, stop)| (*start, *stop))
            .collect();
        for (start, stop) in touched {
            self.reserved.remove(&start);
            if start < first {
                self.reserved.insert(start, first);
            }
            if stop > last {
                self.reserved.insert(last, stop);
            }
        }
    }

    fn is_reserved(&self, page: u64) -> bool {
        self.reserved.range(..=page).next_back().is_some_and(|(_, stop)| *stop > page)
    }

    /// Bytes of the disk that it occupies.
    pub(super) fn allocated(&self) -> u64 {
        let reserved: u64 = self.reserved.iter().map(|(start, stop)| stop - start).sum();
        let stored = self.pages.keys().filter(|page| !self.is_reserved(**page)).count() as u64;
        (reserved + stored) * PAGE_BYTES
    }

    /// Bytes of the disk that the change would take in addition.
    pub(super) fn cost(&self, change: &Change) -> u64 {
        let (first, last) = match change {
            Change::Write { offset, data } => {
                (offset / PAGE_BYTES, (offset + data.len() as u64).div_ceil(PAGE_BYTES))
            }
            Change::Allocate { offset, len } => (offset / PAGE_BYTES, (offset + len).div_ceil(PAGE_BYTES)),
            Change::Punch { .. } | Change::Truncate { .. } => return 0,
        };
        let stored =
            self.pages.range(first..last.max(first)).filter(|(page, _)| !self.is_reserved(**page)).count();
        let reserved: u64 = self
            .reserved
            .range(..last)
            .filter(|(_, stop)| **stop > first)
            .map(|(start, stop)| (*stop).min(last) - (*start).max(first))
            .sum();
        (last - first - stored as u64 - reserved) * PAGE_BYTES
    }

    /// Turns one bit over, `bit` counted from the start of the byte at `offset`.
    pub(super) fn flip_bit(&mut self, offset: u64, bit: u8) {
        let mut byte = [0];
        self.read(offset, &mut byte);
        byte[0] ^= 1 << (bit % 8);
        let len = self.len;
        self.write(offset, &byte);
        self.len = len;
    }
}

/// An index into memory: what a simulated file holds in one piece fits there.
pub(super) fn index(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

/// The pages of a range: page, first byte in it, byte after the last one in it, and how
/// far into the range that begins.
fn pieces(offset: u64, end: u64) -> impl Iterator<Item = (u64, usize, usize, usize)> {
    let pages = if offset < end { offset / PAGE_BYTES..end.div_ceil(PAGE_BYTES) } else { 0..0 };
    pages.map(move |page| {
        let base = page * PAGE_BYTES;
        let (start, stop) = (offset.max(base), end.min(base + PAGE_BYTES));
        (page, index(start - base), index(stop - base), index(start - offset))
    })
}

/// The parts of a write between borders of sectors, in order.
pub(super) fn sectors(offset: u64, data: &Bytes) -> impl Iterator<Item = (u64, Bytes)> + '_ {
    let end = offset + data.len() as u64;
    let mut at = offset;
    std::iter::from_fn(move || {
        let stop = end.min((at / SECTOR_BYTES + 1) * SECTOR_BYTES);
        let part = (at < end).then(|| (at, data.slice(index(at - offset)..index(stop - offset))));
        at = stop;
        part
    })
}
