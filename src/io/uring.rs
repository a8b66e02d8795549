#![allow(unsafe_code, reason = "the kernel reads and writes buffers that entries of the ring point to")]
//! The io_uring driver.
//!
//! One ring per driver. What the page cache answers is done inline, as in
//! [`super::plain`]: a cached write through the ring would go to a worker thread of the
//! kernel and cost twenty times as much. The ring takes uncached reads, large writes,
//! syncs, holes and allocations, and tells when a socket is ready. What the ring has no
//! operation for goes to helper threads.
//!
//! Invariants:
//! - Everything that an entry points to (the buffer, the list of buffers, the open
//!   descriptor) is owned by the table of flights from before the entry is queued until
//!   its completion was taken.
//! - Dropping the driver waits for every flight that has a buffer; if that is impossible
//!   the buffers are leaked, never freed.

use super::files::{Files, Handle, Start};
use super::helpers::{Bell, Helpers, Job};
use super::spin::Spin;
use super::streams::{Interest, Streams};
use super::timers::Timers;
use super::{Driver, FileId, Op, OpId, Outcome, Output, Shown, Wake, disk};
use bytes::{Bytes, BytesMut};
use io_uring::types::{Fd, FsyncFlags, SubmitArgs, Timespec};
use io_uring::{IoUring, opcode, squeue};
use rustc_hash::FxHashMap;
use rustix::io::Errno;
use slab::Slab;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Entries that are submitted at once. More operations than that may be under way: a
/// full queue is handed to the kernel.
const ENTRIES: u32 = 256;

/// Bytes in one operation of the ring; longer ones go on where the last one ended.
const BYTES_MAX: usize = 1 << 30;

/// What an entry of the ring stands for.
enum Flight {
    /// The bell rang.
    Bell,
    /// A stream is ready to receive (or to send).
    Ready { file: FileId, writable: bool, handle: Arc<Handle> },
    /// A read into `buffer` from `filled` on.
    Read { id: OpId, handle: Arc<Handle>, offset: u64, buffer: BytesMut, filled: usize },
    /// A write of `data` but its first `written` bytes, as `list` says.
    Write {
        id: OpId,
        handle: Arc<Handle>,
        offset: u64,
        data: Vec<Bytes>,
        written: usize,
        list: Vec<libc::iovec>,
    },
    /// A sync.
    Sync { id: OpId, handle: Arc<Handle> },
    /// The beginning of one.
    WriteBack { id: OpId, handle: Arc<Handle> },
    /// A hole, or an allocation.
    Range { id: OpId, handle: Arc<Handle>, offset: u64, len: u64, punch: bool },
}

impl Flight {
    /// The entry for the ring. What it points to belongs to the flight, and does not
    /// move when the flight does.
    fn entry(&mut self, bell: &Bell) -> squeue::Entry {
        match self {
            Self::Bell => opcode::PollAdd::new(Fd(bell.as_fd().as_raw_fd()), libc::POLLIN as u32).build(),
            Self::Ready { writable, handle, .. } => {
                let events = if *writable { libc::POLLOUT } else { libc::POLLIN | libc::POLLRDHUP };
                opcode::PollAdd::new(Fd(handle.as_raw_fd()), events.cast_unsigned().into()).build()
            }
            Self::Read { handle, offset, buffer, filled, .. } => {
                let rest = &mut buffer[*filled..];
                let len = u32::try_from(rest.len().min(BYTES_MAX)).unwrap_or(0);
                opcode::Read::new(Fd(handle.as_raw_fd()), rest.as_mut_ptr(), len)
                    .offset(*offset + *filled as u64)
                    .build()
            }
            Self::Write { handle, offset, data, written, list, .. } => {
                list.clear();
                list.extend(disk::slices(data, *written).iter().map(|slice| libc::iovec {
                    iov_base: slice.as_ptr().cast_mut().cast(),
                    iov_len: slice.len(),
                }));
                let len = u32::try_from(list.len()).unwrap_or(0);
                opcode::Writev::new(Fd(handle.as_raw_fd()), list.as_ptr(), len)
                    .offset(*offset + *written as u64)
                    .build()
            }
            Self::Sync { handle, .. } => {
                opcode::Fsync::new(Fd(handle.as_raw_fd())).flags(FsyncFlags::DATASYNC).build()
            }
            Self::WriteBack { handle, .. } => {
                // No length: up to the end of the file.
                let entry = opcode::SyncFileRange::new(Fd(handle.as_raw_fd()), 0);
                entry.flags(libc::SYNC_FILE_RANGE_WRITE).build()
            }
            Self::Range { handle, offset, len, punch, .. } => {
                let mode = if *punch { libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE } else { 0 };
                opcode::Fallocate::new(Fd(handle.as_raw_fd()), *len).offset(*offset).mode(mode).build()
            }
        }
    }

    /// Whether the kernel has to be waited for before the flight may be dropped.
    fn must_land(&self) -> bool {
        !matches!(self, Self::Bell | Self::Ready { .. })
    }
}

/// One ring, for one thread.
pub struct Uring {
    ring: IoUring,
    flights: Slab<Flight>,
    files: Files,
    streams: Streams,
    /// For which directions the ring watches each stream.
    watched: FxHashMap<FileId, Interest>,
    timers: Timers,
    helpers: Helpers,
    bell: Arc<Bell>,
    /// Room for completions between the queue and the table of flights.
    landed: Vec<(u64, i32)>,
    /// The bell rang since the last wait ended.
    rang: bool,
    spin: Spin,
    /// A stream to be watched before the next sleep, if it has nothing to receive until then.
    unwatched: Option<FileId>,
    /// Ended outside of a wait.
    ended: Vec<(OpId, Outcome)>,
    boot_id: [u8; 16],
}

impl Uring {
    /// A driver for the calling thread.
    ///
    /// # Errors
    /// The kernel gives no ring (old, forbidden, or out of locked memory), or one that
    /// can lose completions.
    pub fn new() -> io::Result<Self> {
        let ring = build_ring()?;
        let params = ring.params();
        if !params.is_feature_nodrop() || !params.is_feature_ext_arg() {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "this kernel's io_uring is too old"));
        }
        let bell = Arc::new(Bell::new()?);
        let mut uring = Self {
            ring,
            flights: Slab::new(),
            files: Files::default(),
            streams: Streams::default(),
            watched: FxHashMap::default(),
            timers: Timers::default(),
            helpers: Helpers::new(Arc::clone(&bell)),
            bell,
            landed: Vec::new(),
            rang: false,
            spin: Spin::default(),
            unwatched: None,
            ended: Vec::new(),
            boot_id: disk::boot_id()?,
        };
        uring.launch(Flight::Bell);
        Ok(uring)
    }

    /// Queues an entry for the flight, which stays in the table until it has landed.
    fn launch(&mut self, flight: Flight) {
        let number = self.flights.insert(flight);
        let entry = self.flights[number].entry(&self.bell).user_data(number as u64);
        loop {
            // SAFETY: what the entry points to is on the heap and owned by the flight, which
            // stays in the table until the completion of this entry has been taken.
            if unsafe { self.ring.submission().push(&entry) }.is_ok() {
                return;
            }
            match self.ring.submit() {
                Ok(_) => {}
                Err(error) => self.make_room(&error),
            }
        }
    }

    /// The kernel took no entries: it waits for completions to be taken.
    fn make_room(&mut self, error: &io::Error) {
        match error.raw_os_error() {
            Some(libc::EBUSY | libc::EAGAIN | libc::EINTR) => {
                self.land_outside();
            }
            _ => panic!("io_uring failed on a ring of our own: {error}"),
        }
    }

    fn help(&mut self, id: OpId, job: Job) -> Option<Outcome> {
        self.helpers.give(id, job).err().map(Err)
    }

    /// Has the ring say when a stream is ready for what waits on it.
    fn watch(&mut self, file: FileId) {
        let Some(handle) = self.streams.handle(file).cloned() else { return };
        let wanted = self.streams.interest(file);
        let watched = self.watched.entry(file).or_default();
        let (recv, send) = (wanted.readable && !watched.readable, wanted.writable && !watched.writable);
        watched.readable |= recv;
        watched.writable |= send;
        if recv {
            self.launch(Flight::Ready { file, writable: false, handle: Arc::clone(&handle) });
        }
        if send {
            self.launch(Flight::Ready { file, writable: true, handle });
        }
    }

    /// Ends the watches of a closed stream, which keep its descriptor open: the peer has to
    /// see the end now, though nobody may wait for a long time.
    fn unwatch(&mut self, file: FileId) {
        self.watched.remove(&file);
        let watches = self.flights.iter().filter_map(|(number, flight)| match flight {
            Flight::Ready { file: watched, .. } if *watched == file => Some(number as u64),
            _ => None,
        });
        for number in watches.collect::<Vec<_>>() {
            let entry = opcode::PollRemove::new(number).build().user_data(u64::MAX);
            // SAFETY: the entry points to nothing.
            while unsafe { self.ring.submission().push(&entry) }.is_err() {
                if let Err(error) = self.ring.submit() {
                    self.make_room(&error);
                }
            }
        }
        // Once for the removals, once for the deferred work that follows from them.
        for _ in 0..2 {
            self.enter(Some(Duration::ZERO));
            self.land_outside();
        }
    }

    /// Takes what the ring has completed.
    fn land(&mut self, done: &mut Vec<(OpId, Outcome)>) {
        let mut landed = std::mem::take(&mut self.landed);
        landed.extend(self.ring.completion().map(|entry| (entry.user_data(), entry.result())));
        for (number, result) in landed.drain(..) {
            let Some(number) = usize::try_from(number).ok().filter(|n| self.flights.contains(*n)) else {
                continue;
            };
            let flight = self.flights.remove(number);
            if let Flight::Bell = flight {
                self.rang |= self.bell.silence();
                self.launch(Flight::Bell);
            } else if let Flight::Ready { file, writable, .. } = flight {
                if let Some(watched) = self.watched.get_mut(&file) {
                    if writable {
                        watched.writable = false;
                    } else {
                        watched.readable = false;
                    }
                    self.streams.ready(file, Interest { readable: !writable, writable }, done);
                    self.watch(file);
                }
            } else {
                self.land_file(flight, result, done);
            }
        }
        self.landed = landed;
    }

    /// Takes what the ring has completed, for the next wait to hand over.
    fn land_outside(&mut self) {
        let mut ended = std::mem::take(&mut self.ended);
        self.land(&mut ended);
        self.ended = ended;
    }

    /// Ends or goes on with an operation on a file of which the kernel has done a part.
    fn land_file(&mut self, mut flight: Flight, result: i32, done: &mut Vec<(OpId, Outcome)>) {
        let error = (result < 0).then(|| Errno::from_raw_os_error(-result));
        if matches!(error, Some(Errno::INTR | Errno::AGAIN)) {
            self.launch(flight);
            return;
        }
        let count = usize::try_from(result).unwrap_or(0);
        match &mut flight {
            Flight::Bell | Flight::Ready { .. } => {}
            Flight::Read { id, buffer, filled, .. } => {
                *filled += count;
                if error.is_none() && count > 0 && *filled < buffer.len() {
                    self.launch(flight);
                    return;
                }
                let buffer = std::mem::take(buffer);
                done.push((*id, error.map_or(Ok(Output::Bytes(buffer)), |error| Err(error.into()))));
            }
            Flight::Write { id, data, written, .. } => {
                *written += count;
                let left = *written < data.iter().map(Bytes::len).sum();
                if error.is_none() && count > 0 && left {
                    self.launch(flight);
                    return;
                }
                let outcome = match error {
                    Some(error) => Err(error.into()),
                    None if left => Err(io::ErrorKind::WriteZero.into()),
                    None => Ok(Output::None),
                };
                done.push((*id, outcome));
            }
            Flight::Range { id, handle, offset, len, punch } if error.is_some_and(disk::is_unsupported) => {
                let (id, handle, offset, len, punch) = (*id, Arc::clone(handle), *offset, *len, *punch);
                let job = disk::job(move || match punch {
                    true => disk::punch(&handle, offset, len),
                    false => disk::allocate(&handle, offset, len),
                });
                done.extend(self.help(id, job).map(|outcome| (id, outcome)));
            }
            Flight::Sync { id, .. } | Flight::WriteBack { id, .. } | Flight::Range { id, .. } => {
                done.push((*id, error.map_or(Ok(Output::None), |error| Err(error.into()))));
            }
        }
    }

    /// Hands queued entries to the kernel and looks for a completion that needs no sleep, or
    /// for bytes on the stream that is most likely to go on.
    fn look_out(&mut self, until: Instant, done: &mut Vec<(OpId, Outcome)>) {
        self.catch_up();
        while self.ring.completion().is_empty() && !self.ring.submission().taskrun() {
            if self.streams.try_recent(done) || Instant::now() >= until {
                return;
            }
        }
    }

    /// Has the stream watched that was left out in the hope that it need not be.
    fn watch_rest(&mut self) {
        if let Some(file) = self.unwatched.take() {
            self.watch(file);
        }
    }

    /// Hands queued entries to the kernel and has it hand over completions, if there are any.
    fn catch_up(&mut self) {
        let queue = self.ring.submission();
        let any = !queue.is_empty() || queue.taskrun() || queue.cq_overflow();
        drop(queue);
        if any {
            self.enter(Some(Duration::ZERO));
        }
    }

    /// Hands queued entries to the kernel and waits at most `limit` for a completion.
    fn enter(&mut self, limit: Option<Duration>) {
        let result = if limit == Some(Duration::ZERO) {
            self.ring.submit()
        } else if let Some(limit) = limit {
            let limit = Timespec::from(limit);
            self.ring.submitter().submit_with_args(1, &SubmitArgs::new().timespec(&limit))
        } else {
            self.ring.submit_and_wait(1)
        };
        if let Err(error) = result {
            match error.raw_os_error() {
                Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN) => {}
                _ => panic!("io_uring failed on a ring of our own: {error}"),
            }
        }
    }
}

/// A ring with what this kernel knows to make it cheaper, or a plain one.
fn build_ring() -> io::Result<IoUring> {
    let mut builder = IoUring::builder();
    builder.setup_clamp().setup_cqsize(4 * ENTRIES).dontfork();
    let plain = builder.clone();
    builder.setup_single_issuer().setup_coop_taskrun().setup_taskrun_flag().setup_defer_taskrun();
    builder.build(ENTRIES).or_else(|_| plain.build(ENTRIES))
}

impl Driver for Uring {
    fn submit(&mut self, id: OpId, op: Op) -> Option<Outcome> {
        let flight = match self.files.start(op) {
            Start::Done(outcome) => return Some(outcome),
            Start::Read { handle, offset, buffer, filled } => {
                Flight::Read { id, handle, offset, buffer, filled }
            }
            Start::Write { handle, offset, data } => {
                Flight::Write { id, handle, offset, data, written: 0, list: Vec::new() }
            }
            Start::Sync { handle } => Flight::Sync { id, handle },
            Start::WriteBack { handle } => Flight::WriteBack { id, handle },
            Start::Punch { handle, offset, len } => Flight::Range { id, handle, offset, len, punch: true },
            Start::Allocate { handle, offset, len } => {
                Flight::Range { id, handle, offset, len, punch: false }
            }
            Start::Job(job) => return self.help(id, job),
            Start::Recv { file, len, into } => {
                let outcome = match self.files.handle(file) {
                    Ok(handle) => self.streams.recv(id, file, handle, len, into),
                    Err(error) => Some(Err(error)),
                };
                if outcome.is_none() {
                    self.watch_rest();
                    self.unwatched = Some(file);
                }
                return outcome;
            }
            Start::Send { file, data } => {
                let outcome = match self.files.handle(file) {
                    Ok(handle) => self.streams.send(id, file, handle, data),
                    Err(error) => Some(Err(error)),
                };
                if outcome.is_none() {
                    self.watch(file);
                }
                return outcome;
            }
            Start::Closed { file } => {
                if self.streams.close(file, &mut self.ended).is_some() {
                    self.unwatch(file);
                }
                return Some(Ok(Output::None));
            }
            Start::Sleep(time) => {
                self.timers.start(id, time);
                return None;
            }
        };
        self.launch(flight);
        None
    }

    fn read_now(&mut self, file: FileId, offset: u64, len: usize, buffer: &mut BytesMut) -> io::Result<bool> {
        self.files.read_now(file, offset, len, buffer)
    }

    fn show(&mut self, file: FileId, offset: u64, len: usize) -> Option<Shown> {
        self.files.show(file, offset, len)
    }

    fn write_now(&mut self, file: FileId, offset: u64, data: &Bytes) -> Option<io::Result<()>> {
        self.files.write_now(file, offset, data)
    }

    fn adopt(&mut self, descriptor: OwnedFd) -> io::Result<FileId> {
        self.files.adopt(descriptor)
    }

    fn wait(&mut self, timeout: Option<Duration>, done: &mut Vec<(OpId, Outcome)>) {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        loop {
            self.land(done);
            done.append(&mut self.ended);
            self.helpers.collect(done);
            self.timers.collect(done);
            let idle = done.is_empty() && !self.rang;
            if idle {
                let limit = self.timers.limit(deadline);
                if let Some(until) = self.spin.begin(Instant::now(), limit) {
                    self.look_out(until, done);
                }
                if done.is_empty() {
                    self.watch_rest();
                    self.enter(limit);
                }
                self.spin.end(Instant::now());
            } else {
                self.watch_rest();
                self.catch_up();
            }
            self.land(done);
            self.helpers.collect(done);
            self.timers.collect(done);
            done.append(&mut self.ended);
            let over = deadline.is_some_and(|deadline| Instant::now() >= deadline);
            if std::mem::take(&mut self.rang) || over || !done.is_empty() {
                return;
            }
        }
    }

    fn waker(&self) -> Arc<dyn Wake> {
        Arc::clone(&self.bell) as Arc<dyn Wake>
    }

    fn name(&self) -> &'static str {
        "io_uring"
    }

    fn boot_id(&self) -> [u8; 16] {
        self.boot_id
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        // Operations were started when they were submitted: they run to their end, as they
        // do in the plain driver, and only then their buffers go.
        while self.flights.iter().any(|(_, flight)| flight.must_land()) {
            match self.ring.submit_and_wait(1) {
                Ok(_) => {}
                Err(error)
                    if matches!(error.raw_os_error(), Some(libc::EINTR | libc::EBUSY | libc::EAGAIN)) => {}
                Err(error) => {
                    tracing::error!("io_uring does not end its operations: {error}");
                    std::mem::forget(std::mem::take(&mut self.flights));
                    return;
                }
            }
            self.land(&mut Vec::new());
        }
    }
}
