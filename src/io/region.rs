#![allow(unsafe_code, reason = "mapped memory")]
//! Mapped memory: files mapped for reading, and the region that stages writes.
//!
//! A region is allocated in full before it is mapped, since a store into a mapped hole
//! of a full disk would kill the process. Nobody else maps or shortens these files: the
//! lock on the store's directory keeps other processes out.

use super::disk;
use memmap2::{Mmap, MmapRaw};
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::ops::Deref;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{Ordering, compiler_fence};

/// Files of up to so many bytes are read into the heap instead: mappings are limited in
/// number, and there is one file per snapshot.
const HEAP_MAX_BYTES: u64 = 256 * 1024;

/// A whole file, mapped for reading and never changed afterwards.
#[derive(Clone)]
pub struct Mapped(Arc<dyn AsRef<[u8]> + Send + Sync>);

impl Mapped {
    /// Wraps whatever holds the bytes.
    #[must_use]
    pub fn new(bytes: Arc<dyn AsRef<[u8]> + Send + Sync>) -> Self {
        Self(bytes)
    }
}

impl Deref for Mapped {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        (*self.0).as_ref()
    }
}

impl fmt::Debug for Mapped {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Mapped({} bytes)", self.len())
    }
}

/// Memory that outlives the process but not the boot.
///
/// One thread uses it. Stores reach the memory in program order, so a process that
/// dies leaves a prefix of them; a single store of many bytes may be left in part.
pub trait Region: fmt::Debug {
    /// Bytes in it.
    fn len(&self) -> usize;

    /// Whether it has no bytes.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Copies `data` to `offset`.
    ///
    /// # Panics
    /// If that is outside the region.
    fn write(&self, offset: usize, data: &[u8]);

    /// Copies from `offset` into `data`.
    ///
    /// # Panics
    /// If that is outside the region.
    fn read(&self, offset: usize, data: &mut [u8]);
}

/// Maps a file for reading, or reads it if it is small.
pub(super) fn map_file(path: &Path) -> io::Result<Mapped> {
    let mut file = File::open(path)?;
    if file.metadata()?.len() <= HEAP_MAX_BYTES {
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        return Ok(Mapped::new(Arc::new(bytes)));
    }
    // SAFETY: the file is never changed once it is mapped (that is what `Mapped` is for),
    // and the store's lock keeps other processes from shortening it.
    let map = unsafe { Mmap::map(&file) }?;
    Ok(Mapped::new(Arc::new(map)))
}

/// A file mapped for reading and writing.
pub(super) struct SharedMemory(MmapRaw);

/// Maps a file of `len` bytes for reading and writing. One of another size, or none, is
/// made anew and holds zeros.
pub(super) fn open_shared(path: &Path, len: u64) -> io::Result<SharedMemory> {
    let file =
        OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
    if file.metadata()?.len() != len {
        file.set_len(0)?;
        file.set_len(len)?;
    }
    if len > 0 {
        // Also for one of the right size: an earlier attempt may have died half-way.
        disk::allocate(&file, 0, len)?;
    }
    Ok(SharedMemory(MmapRaw::map_raw(&file)?))
}

impl SharedMemory {
    /// The address of `len` bytes at `offset`.
    fn at(&self, offset: usize, len: usize) -> *mut u8 {
        let end = offset.checked_add(len).filter(|end| *end <= self.0.len());
        assert!(end.is_some(), "{len} bytes at {offset} are outside a region of {} bytes", self.0.len());
        self.0.as_mut_ptr().wrapping_add(offset)
    }
}

impl fmt::Debug for SharedMemory {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "SharedMemory({} bytes)", self.0.len())
    }
}

impl Region for SharedMemory {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn write(&self, offset: usize, data: &[u8]) {
        let to = self.at(offset, data.len());
        // SAFETY: `at` has checked that the range lies in the mapping, which lives as long
        // as `self`; `data` is a Rust reference and so never memory of this mapping, of
        // which no references are ever given out; one thread uses a region.
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), to, data.len()) };
        // What a dying process leaves must be a prefix of its stores: the compiler may
        // not move or merge them across this point (the kernel sees them in order).
        compiler_fence(Ordering::SeqCst);
    }

    fn read(&self, offset: usize, data: &mut [u8]) {
        let from = self.at(offset, data.len());
        // SAFETY: as for `write`.
        unsafe { std::ptr::copy_nonoverlapping(from, data.as_mut_ptr(), data.len()) };
    }
}
