//! Operations in, completions out: the only way that this program touches files,
//! sockets and time.
//!
//! Everything above this layer asks an [`Io`] for an operation and awaits its
//! completion; a [`Driver`] performs it: [`uring`] and [`plain`] on the kernel,
//! [`sim`] on a simulated disk that loses, tears and reorders what was not synced.
//! All tasks of one [`Reactor`] run on one thread, in an order that depends only on
//! the order of completions, so a run over the simulated disk replays from its seed.
//!
//! Rules a driver keeps:
//! - An operation is started when it is submitted, not when its future is polled. A
//!   future that is dropped early abandons the result, never the operation.
//! - Buffers belong to the operation until it completes.
//! - A sync covers every write to that file that *completed* before the sync was
//!   submitted; nothing is promised about others.
//! - `Read` returns exactly the bytes asked for; bytes past the end of the file are
//!   zeros. `Write` writes all of its bytes or fails. `Recv` returns at least one
//!   byte or, at the end of the stream, none; `Send` sends all.

pub mod buffers;
mod cached;
mod disk;
mod files;
mod helpers;
pub mod plain;
pub mod reactor;
pub mod region;
mod shown;
pub mod sim;
mod spin;
mod streams;
#[cfg(test)]
mod tests;
mod timers;
pub mod uring;

pub use disk::file_system;
pub use reactor::{Io, Reactor};
pub use region::{Mapped, Region};
pub use shown::{Part, Shown};

use bytes::{Bytes, BytesMut};
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use uuid::Uuid;

/// An open file or socket, as the driver numbers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileId(pub u32);

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenHow {
    /// Read only; it must exist.
    Read,
    /// Read and write; it must exist.
    Write,
    /// Read and write; it must not exist yet.
    CreateNew,
    /// Read and write; made empty if it exists.
    CreateEmpty,
}

/// One operation.
#[derive(Clone, Debug)]
pub enum Op {
    /// Reads `len` bytes at `offset`. Output: `Bytes`.
    Read {
        /// The file.
        file: FileId,
        /// Where, in bytes.
        offset: u64,
        /// How much, in bytes.
        len: usize,
    },
    /// Writes the buffers one after the other at `offset`. Output: `None`.
    Write {
        /// The file.
        file: FileId,
        /// Where, in bytes.
        offset: u64,
        /// What.
        data: Vec<Bytes>,
    },
    /// Reads pieces of a file, offset and length, one behind the other behind what is in
    /// `into`, beside the reactor's thread; one that is not at hand is zeros, and named.
    /// Output: `Pieces`.
    ReadEach {
        /// The file.
        file: FileId,
        /// Where, and how much, in bytes.
        pieces: Vec<(u64, usize)>,
        /// What is read goes behind these.
        into: BytesMut,
    },
    /// Writes pieces, each at its offset, in any order, beside the reactor's thread; after an
    /// error any of them may have been written. Output: `None`.
    WriteEach {
        /// The file.
        file: FileId,
        /// Where, in bytes, and what.
        pieces: Vec<(u64, Bytes)>,
    },
    /// Makes what was written durable: data and the metadata needed to read it back
    /// (`fdatasync`). Output: `None`.
    Sync {
        /// The file.
        file: FileId,
    },
    /// Begins to bring to the disk what was written; nothing is durable by it, and a `Sync`
    /// that follows has less to do. Output: `None`.
    WriteBack {
        /// The file.
        file: FileId,
    },
    /// Makes the range a hole that reads as zeros; the size stays. Output: `None`.
    Punch {
        /// The file.
        file: FileId,
        /// Where, in bytes.
        offset: u64,
        /// How much, in bytes.
        len: u64,
    },
    /// Allocates space for the range, growing the file if it ends earlier; what was
    /// there stays. Output: `None`.
    Allocate {
        /// The file.
        file: FileId,
        /// Where, in bytes.
        offset: u64,
        /// How much, in bytes.
        len: u64,
    },
    /// Sets the size of the file, sparse. Output: `None`.
    Truncate {
        /// The file.
        file: FileId,
        /// The size, in bytes.
        len: u64,
    },
    /// The size of the file. Output: `Size`.
    Size {
        /// The file.
        file: FileId,
    },
    /// Bytes of the file system that the file occupies. Output: `Size`.
    Allocated {
        /// The file.
        file: FileId,
    },
    /// Bytes that are free in the file system of `path`. Output: `Size`.
    Free {
        /// A directory in it.
        path: PathBuf,
    },
    /// Opens a file. Output: `File`.
    Open {
        /// Where.
        path: PathBuf,
        /// How.
        how: OpenHow,
    },
    /// Forgets an open file or socket. Output: `None`.
    Close {
        /// The file.
        file: FileId,
    },
    /// Renames, replacing what is there. Output: `None`.
    Rename {
        /// The old path.
        from: PathBuf,
        /// The new path.
        to: PathBuf,
    },
    /// Removes a file. Output: `None`.
    Remove {
        /// The file.
        path: PathBuf,
    },
    /// Makes a directory; its parent must exist. Output: `None`.
    MakeDir {
        /// The directory.
        path: PathBuf,
    },
    /// Removes an empty directory. Output: `None`.
    RemoveDir {
        /// The directory.
        path: PathBuf,
    },
    /// Makes the names in a directory durable. Output: `None`.
    SyncDir {
        /// The directory.
        path: PathBuf,
    },
    /// The names in a directory, sorted. Output: `Names`.
    List {
        /// The directory.
        path: PathBuf,
    },
    /// Maps a whole file for reading; it is never changed afterwards. Output: `Mapped`.
    Map {
        /// The file.
        path: PathBuf,
    },
    /// Maps a file of `len` bytes, made and allocated in full if it is missing or of
    /// another size, for reading and writing by this process alone. What is written
    /// there survives the death of the process, not of the machine. Output: `Region`.
    MapRegion {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        len: u64,
    },
    /// Receives at most `len` bytes from a socket. Output: `Bytes`.
    Recv {
        /// The socket.
        file: FileId,
        /// At most so many bytes.
        len: usize,
        /// What is received goes behind these.
        into: BytesMut,
    },
    /// Sends all the buffers to a socket. Output: `None`.
    Send {
        /// The socket.
        file: FileId,
        /// What.
        data: Vec<Part>,
    },
    /// Has something computed beside the reactor's thread. Output: `None`; what it brings
    /// is where the work put it.
    Compute {
        /// What.
        work: Work,
    },
    /// Completes after that time. Output: `None`.
    Sleep {
        /// How long.
        time: Duration,
    },
}

/// Work that touches nothing but memory of its own; done at most once.
#[derive(Clone)]
pub struct Work(Arc<dyn Fn() + Send + Sync>);

impl Work {
    /// Does it.
    fn run(&self) {
        (self.0)();
    }
}

impl fmt::Debug for Work {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Work")
    }
}

/// What a completed operation brings.
#[derive(Debug)]
pub enum Output {
    /// Nothing but its success.
    None,
    /// What was read or received.
    Bytes(BytesMut),
    /// What was read, and the numbers of the pieces that were not.
    Pieces(BytesMut, Vec<usize>),
    /// The file opened.
    File(FileId),
    /// A size in bytes.
    Size(u64),
    /// Names in a directory, sorted.
    Names(Vec<String>),
    /// A file mapped for reading.
    Mapped(Mapped),
    /// A file mapped for writing.
    Region(Rc<dyn Region>),
}

/// The number of an operation under way.
pub type OpId = usize;

/// How an operation ended.
pub type Outcome = io::Result<Output>;

/// Performs operations. One per reactor, used by its thread only.
pub trait Driver {
    /// Starts an operation. `Some` means that it is done already (a cached write, a
    /// read that needed no disk); `None` that [`Driver::wait`] will say so later.
    fn submit(&mut self, id: OpId, op: Op) -> Option<Outcome>;

    /// Appends exactly `len` bytes of a file to `buffer` if that needs no wait (true); else
    /// the buffer stays as it was and the caller submits an operation.
    ///
    /// # Errors
    /// What the kernel says; the buffer stays as it was.
    fn read_now(
        &mut self,
        _file: FileId,
        _offset: u64,
        _len: usize,
        _buffer: &mut BytesMut,
    ) -> io::Result<bool> {
        Ok(false)
    }

    /// A part of a file to be sent as it is then, without a copy, if it lies in the page
    /// cache; never where the file's content at this moment is what counts.
    fn show(&mut self, _file: FileId, _offset: u64, _len: usize) -> Option<Shown> {
        None
    }

    /// Writes all of `data` if that is done at once; `None` when it must be submitted.
    fn write_now(&mut self, _file: FileId, _offset: u64, _data: &Bytes) -> Option<io::Result<()>> {
        None
    }

    /// Takes over a socket or a file that somebody else opened.
    ///
    /// # Errors
    /// What the kernel says; simulated drivers refuse it.
    fn adopt(&mut self, descriptor: std::os::fd::OwnedFd) -> io::Result<FileId>;

    /// Hands over what has completed. With nothing completed it waits: until something
    /// completes, somebody calls the [`Wake`], or `timeout` passes (`None`: no limit;
    /// zero: do not wait).
    fn wait(&mut self, timeout: Option<Duration>, done: &mut Vec<(OpId, Outcome)>);

    /// Ends a [`Driver::wait`] from any thread.
    fn waker(&self) -> Arc<dyn Wake>;

    /// How it is called: `io_uring`, `plain` or `simulated`.
    fn name(&self) -> &'static str;

    /// Which boot of the machine this is: what a dead process left in the page cache
    /// and in a mapped region counts only within the same boot.
    fn boot_id(&self) -> [u8; 16];

    /// An identity that nothing else has.
    fn identity(&self) -> Uuid {
        Uuid::new_v4()
    }

    /// The time of day, in microseconds since 1970.
    fn now_us(&self) -> u64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        since.map_or(0, |time| u64::try_from(time.as_micros()).unwrap_or(u64::MAX))
    }
}

/// Ends a wait from any thread.
pub trait Wake: Send + Sync {
    /// Makes the driver return from its wait, now or at the next one.
    fn wake(&self);
}

/// Which driver performs the operations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DriverKind {
    /// io_uring where the kernel allows it, else plain.
    #[default]
    Auto,
    /// io_uring, or an error.
    Uring,
    /// pread, pwrite, poll and a few helper threads.
    Plain,
}

/// Makes a driver of that kind for the calling thread.
///
/// # Errors
/// What the kernel says when it can't give a ring or an event descriptor.
pub fn driver(kind: DriverKind) -> io::Result<Box<dyn Driver>> {
    match kind {
        DriverKind::Plain => Ok(Box::new(plain::Plain::new()?)),
        DriverKind::Uring => Ok(Box::new(uring::Uring::new()?)),
        DriverKind::Auto => match uring::Uring::new() {
            Ok(uring) => Ok(Box::new(uring)),
            Err(error) => {
                tracing::info!("io_uring is not available ({error}); using the plain engine");
                Ok(Box::new(plain::Plain::new()?))
            }
        },
    }
}
