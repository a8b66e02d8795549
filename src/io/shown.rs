#![allow(
    unsafe_code,
    reason = "what the page cache has, and what this thread waited for, is asked by raw calls"
)]
//! Shown parts: pieces of files that are sent straight from the page cache.
//!
//! A file is mapped in windows, and a send names addresses in them, so what a client reads
//! is copied once, by the kernel. Nothing here ever looks into such a mapping: the file
//! changes under it, and a page that can't be had would end the process. The kernel says
//! `EFAULT` for it instead, and what was shown is read then.
//!
//! Invariants:
//! - Only what was found in the page cache is shown. Should the kernel have taken pages back
//!   since, a send waits for the disk; as soon as that happens, nothing is shown for a while,
//!   and then everything has to be found again.
//! - At most [`WINDOWS_MAX`] windows are mapped, since the page tables of a window stay
//!   when its pages go; one makes room for another only after long disuse.

use super::files::Handle;
use super::{FileId, disk};
use bytes::{Buf, Bytes};
use memmap2::{Advice, MmapOptions, MmapRaw};
use rustc_hash::FxHashMap;
use std::fmt;
use std::io;
use std::rc::Rc;
use std::sync::Arc;

/// Bytes of a window.
const WINDOW_BYTES: u64 = 1 << 30;
/// Windows of one driver.
const WINDOWS_MAX: usize = 32;
/// So many parts were shown since the last one of a window that may be given up.
const DISUSE: u64 = 1 << 20;
/// A shorter part is copied sooner than shown, in bytes.
const PART_BYTES_MIN: usize = 4096;
/// Bytes of a page; where pages are larger, nothing is shown.
const PAGE_BYTES: u64 = 4096;
/// Pages that one entry tells of: a bit each.
const CHUNK_PAGES: u64 = u64::BITS as u64;
/// Entries: together they tell of 16 GiB.
const CHUNKS: usize = 1 << 16;
/// So many parts at least, and at most, are not shown after a wait for the disk.
const REST_MIN: u64 = 1 << 10;
const REST_MAX: u64 = 1 << 20;
/// After so many parts that were shown the last wait for the disk is forgotten.
const REST_FORGOTTEN: u64 = 1 << 20;
/// After so many parts it is asked whether a send had to wait for the disk.
const ASK_EVERY: u64 = 64;

/// A part of a file, as it is when the kernel looks at it.
#[derive(Clone)]
pub struct Shown {
    window: Rc<Window>,
    /// Where in the window.
    start: usize,
    len: usize,
}

impl Shown {
    /// Bytes of it.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Its first address, for the kernel alone.
    fn address(&self) -> *const u8 {
        self.window.map.as_ptr().wrapping_add(self.start)
    }

    /// What it holds now, read from the file.
    fn read(&self) -> io::Result<Bytes> {
        let mut bytes = vec![0; self.len];
        let offset = self.window.offset + self.start as u64;
        let mut filled = 0;
        while filled < self.len {
            let at = offset + filled as u64;
            match disk::retry(|| rustix::io::pread(&*self.window.handle, &mut bytes[filled..], at))? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                read => filled += read,
            }
        }
        Ok(bytes.into())
    }
}

impl fmt::Debug for Shown {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Shown({} bytes at {})", self.len, self.window.offset + self.start as u64)
    }
}

/// A piece of what is sent.
#[derive(Clone, Debug)]
pub enum Part {
    /// Bytes in memory.
    Bytes(Bytes),
    /// Bytes of a file.
    Shown(Shown),
}

impl From<Bytes> for Part {
    fn from(bytes: Bytes) -> Self {
        Self::Bytes(bytes)
    }
}

impl From<Shown> for Part {
    fn from(shown: Shown) -> Self {
        Self::Shown(shown)
    }
}

impl Part {
    /// Bytes of it.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.len(),
            Self::Shown(shown) => shown.len,
        }
    }

    /// Whether it has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where the kernel finds it, as long as it lives.
    pub(super) fn vector(&self) -> libc::iovec {
        let address = match self {
            Self::Bytes(bytes) => bytes.as_ptr(),
            Self::Shown(shown) => shown.address(),
        };
        libc::iovec { iov_base: address.cast_mut().cast(), iov_len: self.len() }
    }

    /// Drops its first bytes.
    fn advance(&mut self, count: usize) {
        match self {
            Self::Bytes(bytes) => bytes.advance(count),
            Self::Shown(shown) => {
                shown.start += count;
                shown.len -= count;
            }
        }
    }

    /// Makes bytes in memory of it.
    pub(super) fn copy(&mut self) -> io::Result<()> {
        if let Self::Shown(shown) = self {
            *self = Self::Bytes(shown.read()?);
        }
        Ok(())
    }
}

/// Drops the first `count` bytes of the parts, and parts without any.
pub(super) fn advance(data: &mut Vec<Part>, mut count: usize) {
    let whole = data
        .iter()
        .take_while(|part| {
            let whole = part.len() <= count;
            if whole {
                count -= part.len();
            }
            whole
        })
        .count();
    data.drain(..whole);
    if let Some(first) = data.first_mut() {
        first.advance(count);
    }
}

/// A mapped range of a file, which may end beyond it.
struct Window {
    handle: Arc<Handle>,
    /// Where in the file.
    offset: u64,
    map: MmapRaw,
}

struct Open {
    window: Rc<Window>,
    /// The number of the last part that was shown of it.
    used: u64,
}

/// What one driver has mapped, and what it has found in the page cache.
#[derive(Default)]
pub(super) struct Windows {
    open: FxHashMap<(FileId, u64), Open>,
    /// By number of the chunk in its file; chunks with the same place drive each other out.
    found: Vec<Chunk>,
    /// So many parts more are not shown.
    resting: u64,
    /// As many were not the last time.
    rest: u64,
    /// How many had been shown then.
    rested: u64,
    /// Rounds: each asks for everything anew.
    round: u32,
    /// Parts that were shown.
    shown: u64,
    /// Page faults of this thread that waited for a disk, when it was last asked.
    waited: i64,
    /// The kernel maps nothing more.
    refused: bool,
}

/// File, round and number of a chunk.
type Name = (u32, u32, u64);

#[derive(Clone, Copy, Default)]
struct Chunk {
    name: Name,
    /// A bit for each page that was found.
    pages: u64,
}

impl Windows {
    /// A part of a file, if the page cache has it.
    pub fn show(&mut self, file: FileId, handle: &Arc<Handle>, offset: u64, len: usize) -> Option<Shown> {
        let (number, start) = (offset / WINDOW_BYTES, usize::try_from(offset % WINDOW_BYTES).ok()?);
        if len < PART_BYTES_MIN || start as u64 + len as u64 > WINDOW_BYTES {
            return None;
        }
        if self.found.is_empty() {
            self.found.resize(CHUNKS, Chunk::default());
            self.round = 1;
            self.waited = major_faults();
        }
        if self.resting > 0 {
            self.resting -= 1;
            return None;
        }
        let used = self.shown;
        let window = match self.open.get_mut(&(file, number)) {
            Some(open) => {
                open.used = used;
                Rc::clone(&open.window)
            }
            None => {
                let window = Rc::new(self.map(handle, number * WINDOW_BYTES)?);
                self.open.insert((file, number), Open { window: Rc::clone(&window), used });
                window
            }
        };
        if !self.is_found(file, &window, offset, len as u64) {
            return None;
        }
        if self.shown.is_multiple_of(ASK_EVERY) && self.has_waited() {
            self.rest();
            return None;
        }
        self.shown += 1;
        Some(Shown { window, start, len })
    }

    /// A read found this in the page cache.
    pub fn found(&mut self, file: FileId, offset: u64, len: u64) {
        if self.found.is_empty() {
            return;
        }
        // A page counts only if all of it was found.
        for page in offset.div_ceil(PAGE_BYTES)..(offset + len) / PAGE_BYTES {
            let name = (file.0, self.round, page / CHUNK_PAGES);
            let chunk = &mut self.found[place(name)];
            if chunk.name == name {
                chunk.pages |= 1 << (page % CHUNK_PAGES);
            }
        }
    }

    /// The file was closed.
    pub fn forget(&mut self, file: FileId) {
        self.open.retain(|(of, _), _| *of != file);
    }

    fn is_found(&mut self, file: FileId, window: &Window, offset: u64, len: u64) -> bool {
        let mut pages = offset / PAGE_BYTES..(offset + len).div_ceil(PAGE_BYTES);
        pages.all(|page| {
            let name = (file.0, self.round, page / CHUNK_PAGES);
            let chunk = &mut self.found[place(name)];
            if chunk.name != name {
                *chunk = Chunk { name, pages: window.cached(name.2) };
            }
            chunk.pages >> (page % CHUNK_PAGES) & 1 == 1
        })
    }

    /// The kernel takes pages back: nothing is shown for a while, the longer the sooner after
    /// the last time, and then everything has to be found again.
    fn rest(&mut self) {
        let soon = self.shown - self.rested < REST_FORGOTTEN;
        self.rested = self.shown;
        self.rest = if soon { (self.rest * 2).clamp(REST_MIN, REST_MAX) } else { REST_MIN };
        self.resting = self.rest;
        self.round = self.round.wrapping_add(1).max(1);
    }

    /// Whether a page fault of this thread had to wait for a disk since the last question.
    fn has_waited(&mut self) -> bool {
        let waited = major_faults();
        std::mem::replace(&mut self.waited, waited) != waited
    }

    fn map(&mut self, handle: &Arc<Handle>, offset: u64) -> Option<Window> {
        if self.refused || rustix::param::page_size() as u64 != PAGE_BYTES {
            return None;
        }
        if self.open.len() >= WINDOWS_MAX {
            let (name, oldest) = self.open.iter().min_by_key(|(_, open)| open.used)?;
            if self.shown - oldest.used < DISUSE {
                return None;
            }
            let name = *name;
            self.open.remove(&name);
        }
        let len = usize::try_from(WINDOW_BYTES).ok()?;
        let map = MmapOptions::new().offset(offset).len(len).map_raw_read_only(&**handle);
        let Ok(map) = map else {
            self.refused = true;
            return None;
        };
        // Read-ahead fills the page cache with large folios, and small writes into those are
        // dear. It is only advice.
        let _ = map.advise(Advice::Random);
        Some(Window { handle: Arc::clone(handle), offset, map })
    }
}

impl Window {
    /// Which pages of a chunk the page cache has, a bit for each.
    fn cached(&self, chunk: u64) -> u64 {
        let start = chunk * CHUNK_PAGES * PAGE_BYTES - self.offset;
        let Ok(start) = usize::try_from(start) else { return 0 };
        let mut pages = [0_u8; u64::BITS as usize];
        let Ok(len) = usize::try_from(CHUNK_PAGES * PAGE_BYTES) else { return 0 };
        let address = self.map.as_mut_ptr().wrapping_add(start);
        // SAFETY: a chunk lies in one window, so the range is mapped; the kernel writes a byte
        // for each of its pages, whose size was compared before anything was mapped.
        let asked = unsafe { libc::mincore(address.cast(), len, pages.as_mut_ptr()) };
        let bits = pages.iter().rev().fold(0, |bits, page| bits << 1 | u64::from(page & 1));
        if asked == 0 { bits } else { 0 }
    }
}

fn place((file, _, chunk): Name) -> usize {
    // Chunks of one file that follow each other have places that do so.
    let number = chunk.wrapping_add(u64::from(file).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32);
    usize::try_from(number % CHUNKS as u64).unwrap_or(0)
}

/// Page faults of this thread that waited for a disk, since it began.
fn major_faults() -> i64 {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the call fills the structure, of which every bit pattern is valid, zeros too.
    let usage = unsafe {
        libc::getrusage(libc::RUSAGE_THREAD, usage.as_mut_ptr());
        usage.assume_init()
    };
    usage.ru_majflt
}

#[cfg(test)]
mod tests;
