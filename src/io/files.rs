//! Open files: the table of descriptors, and what both kernel drivers do alike.
//!
//! An operation is first tried inline ([`Files::start`]): a read that the page cache
//! answers, a small write, a question about a size. What would wait comes back as a
//! [`Start`] for the driver to finish its own way.
//!
//! Invariants:
//! - An operation under way holds its own reference to the descriptor, so closing a
//!   file never lets the number be reused under it.
//! - A [`FileId`] carries the generation of its place in the table: one that was closed
//!   gives an error, never another file.

use super::helpers::{Finished, Job};
use super::shown::{Part, Shown, Windows};
use super::{FileId, Op, OpenHow, Outcome, Output, cached, disk, region};
use bytes::{Bytes, BytesMut};
use rustix::fs::{Advice, FileType, Mode, OFlags};
use rustix::io::Errno;
use std::io;
use std::num::NonZeroU64;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Writes of up to so many bytes go to the page cache at once; larger ones may have to
/// wait for memory or for the disk.
const WRITE_INLINE_MAX_BYTES: usize = 64 * 1024;

/// Bits of a [`FileId`] that say the place in the table; the others are the generation.
const PLACE_BITS: u32 = 20;

/// What a descriptor stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A regular file or a block device: it never waits for a peer.
    File,
    /// A socket.
    Socket,
    /// A pipe, a terminal, or another byte stream.
    Pipe,
}

/// One open descriptor.
#[derive(Debug)]
pub(super) struct Handle {
    descriptor: OwnedFd,
    pub(super) kind: Kind,
}

impl AsFd for Handle {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

impl AsRawFd for Handle {
    fn as_raw_fd(&self) -> RawFd {
        self.descriptor.as_raw_fd()
    }
}

/// How far an operation came inline.
pub(super) enum Start {
    /// To its end.
    Done(Outcome),
    /// The bytes from `filled` on are not in the page cache.
    Read { handle: Arc<Handle>, offset: u64, buffer: BytesMut, filled: usize },
    /// A large write.
    Write { handle: Arc<Handle>, offset: u64, data: Vec<Bytes> },
    /// A sync of a file.
    Sync { handle: Arc<Handle> },
    /// A file whose dirty pages shall be on their way.
    WriteBack { handle: Arc<Handle> },
    /// A hole to be made.
    Punch { handle: Arc<Handle>, offset: u64, len: u64 },
    /// Space to be allocated.
    Allocate { handle: Arc<Handle>, offset: u64, len: u64 },
    /// Whatever a helper thread has to do.
    Job(Job),
    /// Bytes from a peer.
    Recv { file: FileId, len: usize, into: BytesMut },
    /// Bytes to a peer.
    Send { file: FileId, data: Vec<Part> },
    /// A socket or pipe was closed: what waits for it ends.
    Closed { file: FileId },
    /// A wait.
    Sleep(Duration),
}

struct Place {
    generation: u32,
    handle: Option<Arc<Handle>>,
}

/// The table of open descriptors of one driver.
#[derive(Default)]
pub(super) struct Files {
    places: Vec<Place>,
    vacant: Vec<u32>,
    windows: Windows,
}

impl Files {
    /// The descriptor of that number.
    pub(super) fn handle(&self, file: FileId) -> io::Result<&Arc<Handle>> {
        let place = self.places.get((file.0 & ((1 << PLACE_BITS) - 1)) as usize);
        place
            .filter(|place| place.generation == file.0 >> PLACE_BITS)
            .and_then(|place| place.handle.as_ref())
            .ok_or_else(|| Errno::BADF.into())
    }

    fn insert(&mut self, handle: Handle) -> io::Result<FileId> {
        let handle = Some(Arc::new(handle));
        if let Some(number) = self.vacant.pop() {
            let place = &mut self.places[number as usize];
            place.handle = handle;
            return Ok(FileId(place.generation << PLACE_BITS | number));
        }
        let number = u32::try_from(self.places.len()).ok().filter(|n| *n < 1 << PLACE_BITS);
        let number = number.ok_or(Errno::MFILE)?;
        self.places.push(Place { generation: 0, handle });
        Ok(FileId(number))
    }

    /// Takes over a descriptor; sockets and pipes become non-blocking.
    pub(super) fn adopt(&mut self, descriptor: OwnedFd) -> io::Result<FileId> {
        let stat = rustix::fs::fstat(&descriptor)?;
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile | FileType::BlockDevice | FileType::Directory => Kind::File,
            FileType::Socket => Kind::Socket,
            _ => Kind::Pipe,
        };
        if kind != Kind::File {
            let flags = rustix::fs::fcntl_getfl(&descriptor)?;
            rustix::fs::fcntl_setfl(&descriptor, flags | OFlags::NONBLOCK)?;
        }
        self.insert(Handle { descriptor, kind })
    }

    fn open(&mut self, path: &Path, how: OpenHow) -> io::Result<FileId> {
        let flags = OFlags::CLOEXEC
            | match how {
                OpenHow::Read => OFlags::RDONLY,
                OpenHow::Write => OFlags::RDWR,
                OpenHow::CreateNew => OFlags::RDWR | OFlags::CREATE | OFlags::EXCL,
                OpenHow::CreateEmpty => OFlags::RDWR | OFlags::CREATE | OFlags::TRUNC,
            };
        let descriptor = disk::retry(|| rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR))?;
        // Read-ahead fills the page cache with large folios, and small writes into those
        // are dear. It is only advice: a file system without it works as well.
        let _ = rustix::fs::fadvise(&descriptor, 0, None::<NonZeroU64>, Advice::Random);
        self.insert(Handle { descriptor, kind: Kind::File })
    }

    /// Forgets a descriptor; operations under way keep theirs until they end.
    fn close(&mut self, file: FileId) -> io::Result<Arc<Handle>> {
        self.handle(file)?;
        self.windows.forget(file);
        let number = file.0 & ((1 << PLACE_BITS) - 1);
        let place = &mut self.places[number as usize];
        let handle = place.handle.take().ok_or(Errno::BADF)?;
        place.generation = (place.generation + 1) & (u32::MAX >> PLACE_BITS);
        self.vacant.push(number);
        Ok(handle)
    }

    /// Appends what the page cache has, all of it or nothing.
    pub(super) fn read_now(
        &mut self,
        file: FileId,
        offset: u64,
        len: usize,
        buffer: &mut BytesMut,
    ) -> io::Result<bool> {
        let cached = cached::read_appending(self.handle(file)?, offset, len, buffer)?;
        if cached {
            self.windows.found(file, offset, len as u64);
        }
        Ok(cached)
    }

    /// A part of a file, if it was found in the page cache.
    pub(super) fn show(&mut self, file: FileId, offset: u64, len: usize) -> Option<Shown> {
        let place = self.places.get((file.0 & ((1 << PLACE_BITS) - 1)) as usize)?;
        let handle = place.handle.as_ref().filter(|_| place.generation == file.0 >> PLACE_BITS)?;
        self.windows.show(file, handle, offset, len)
    }

    /// Writes to the page cache, if it is little.
    pub(super) fn write_now(&self, file: FileId, offset: u64, data: &Bytes) -> Option<io::Result<()>> {
        let write = || disk::write_one(self.handle(file)?, offset, data);
        (data.len() <= WRITE_INLINE_MAX_BYTES).then(write)
    }

    /// Does an operation inline, or says what is left of it.
    pub(super) fn start(&mut self, op: Op) -> Start {
        self.try_start(op).unwrap_or_else(|error| Start::Done(Err(error)))
    }

    fn try_start(&mut self, op: Op) -> io::Result<Start> {
        let handle = |file| self.handle(file).cloned();
        let output = match op {
            Op::Read { file, offset, len } => {
                let handle = handle(file)?;
                let mut buffer = BytesMut::zeroed(len);
                match disk::read_cached(&handle, offset, &mut buffer)? {
                    disk::Cached::All => Output::Bytes(buffer),
                    disk::Cached::Until(filled) => {
                        return Ok(Start::Read { handle, offset, buffer, filled });
                    }
                }
            }
            Op::Write { file, offset, data } => {
                let handle = handle(file)?;
                if data.iter().map(Bytes::len).sum::<usize>() > WRITE_INLINE_MAX_BYTES {
                    return Ok(Start::Write { handle, offset, data });
                }
                disk::write_all(&handle, offset, &data, 0)?;
                Output::None
            }
            Op::ReadEach { file, pieces, mut into } => {
                let handle = handle(file)?;
                return Ok(Start::Job(Box::new(move || {
                    let missing = cached::read_each(&handle, &pieces, &mut into);
                    Ok(Finished::Pieces(into, missing))
                })));
            }
            Op::WriteEach { file, pieces } => {
                let handle = handle(file)?;
                return Ok(job(move || {
                    pieces.iter().try_for_each(|(offset, data)| disk::write_one(&handle, *offset, data))
                }));
            }
            Op::Sync { file } => return Ok(Start::Sync { handle: handle(file)? }),
            Op::WriteBack { file } => return Ok(Start::WriteBack { handle: handle(file)? }),
            Op::Punch { len: 0, .. } | Op::Allocate { len: 0, .. } => Output::None,
            Op::Punch { file, offset, len } => {
                return Ok(Start::Punch { handle: handle(file)?, offset, len });
            }
            Op::Allocate { file, offset, len } => {
                return Ok(Start::Allocate { handle: handle(file)?, offset, len });
            }
            Op::Truncate { file, len } => {
                let handle = handle(file)?;
                return Ok(job(move || Ok(disk::retry(|| rustix::fs::ftruncate(&handle, len))?)));
            }
            Op::Size { file } => Output::Size(disk::size(self.handle(file)?)?),
            Op::Allocated { file } => Output::Size(disk::allocated(self.handle(file)?)?),
            Op::Free { path } => Output::Size(disk::free(&path)?),
            Op::Open { path, how } => Output::File(self.open(&path, how)?),
            Op::Close { file } => {
                let handle = self.close(file)?;
                if handle.kind != Kind::File {
                    return Ok(Start::Closed { file });
                }
                // The last close of a file that was removed gives its blocks back, which takes
                // long for a large one.
                return Ok(job(move || {
                    drop(handle);
                    Ok(())
                }));
            }
            Op::Map { path } => Output::Mapped(region::map_file(&path)?),
            Op::Rename { from, to } => return Ok(job(move || std::fs::rename(from, to))),
            Op::Remove { path } => return Ok(job(move || std::fs::remove_file(path))),
            Op::MakeDir { path } => return Ok(job(move || disk::make_dir(&path))),
            Op::RemoveDir { path } => return Ok(job(move || std::fs::remove_dir(path))),
            Op::SyncDir { path } => return Ok(job(move || disk::sync_dir(&path))),
            Op::List { path } => {
                return Ok(Start::Job(Box::new(move || Ok(Finished::Names(disk::list(&path)?)))));
            }
            Op::Compute { work } => {
                return Ok(job(move || {
                    work.run();
                    Ok(())
                }));
            }
            Op::MapRegion { path, len } => {
                return Ok(Start::Job(Box::new(move || {
                    Ok(Finished::Region(region::open_shared(&path, len)?))
                })));
            }
            Op::Recv { file, len, into } => return Ok(Start::Recv { file, len, into }),
            Op::Send { file, data } => return Ok(Start::Send { file, data }),
            Op::Sleep { time } => return Ok(Start::Sleep(time)),
        };
        Ok(Start::Done(Ok(output)))
    }
}

/// A job that gives nothing but its success.
fn job(work: impl FnOnce() -> io::Result<()> + Send + 'static) -> Start {
    Start::Job(disk::job(work))
}
