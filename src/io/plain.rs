//! The plain driver: pread, pwrite, epoll and a few helper threads.
//!
//! It works on every kernel and in every container. What needs no waiting is done
//! inline; what waits for the disk goes to helper threads; what waits for a peer is
//! watched by epoll.

use super::files::{Files, Start};
use super::helpers::{Bell, Finished, Helpers, Job};
use super::spin::Spin;
use super::streams::{Interest, Streams};
use super::timers::Timers;
use super::{Driver, FileId, Op, OpId, Outcome, Output, Shown, Wake, cached, disk};
use bytes::{Bytes, BytesMut};
use rustc_hash::FxHashMap;
use rustix::event::{Timespec, epoll};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// So often the stream that is most likely to go on is tried before all others are asked for.
const TRIES: usize = 8;

/// The bell's number among the watched descriptors; files have 32 bits only.
const BELL: u64 = u64::MAX;

/// pread, pwrite, epoll and a few helper threads.
pub struct Plain {
    files: Files,
    streams: Streams,
    timers: Timers,
    helpers: Helpers,
    bell: Arc<Bell>,
    epoll: OwnedFd,
    /// What epoll watches each stream for.
    watched: FxHashMap<FileId, Interest>,
    /// Ended outside of a wait.
    ended: Vec<(OpId, Outcome)>,
    spin: Spin,
    boot_id: [u8; 16],
}

impl Plain {
    /// A driver for the calling thread.
    ///
    /// # Errors
    /// No event descriptor.
    pub fn new() -> io::Result<Self> {
        let bell = Arc::new(Bell::new()?);
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &*bell, epoll::EventData::new_u64(BELL), epoll::EventFlags::IN)?;
        Ok(Self {
            files: Files::default(),
            streams: Streams::default(),
            timers: Timers::default(),
            helpers: Helpers::new(Arc::clone(&bell)),
            bell,
            epoll,
            watched: FxHashMap::default(),
            ended: Vec::new(),
            spin: Spin::default(),
            boot_id: disk::boot_id()?,
        })
    }

    fn help(&mut self, id: OpId, job: Job) -> Option<Outcome> {
        self.helpers.give(id, job).err().map(Err)
    }

    /// Has epoll watch the stream for what it waits for.
    ///
    /// Readiness to receive stays watched once it was asked for: edge-triggered, it costs
    /// nothing while nobody waits. Readiness to send is watched only while a send waits,
    /// since every byte that the peer takes would end a wait otherwise.
    fn watch(&mut self, file: FileId) -> io::Result<()> {
        let wanted = self.streams.interest(file);
        let Some(handle) = self.streams.handle(file) else { return Ok(()) };
        let known = self.watched.get(&file).copied();
        let now = known.unwrap_or_default();
        let next = Interest { readable: wanted.readable || now.readable, writable: wanted.writable };
        if next == now {
            return Ok(());
        }
        let mut flags = epoll::EventFlags::ET;
        flags.set(epoll::EventFlags::IN | epoll::EventFlags::RDHUP, next.readable);
        flags.set(epoll::EventFlags::OUT, next.writable);
        let data = epoll::EventData::new_u64(u64::from(file.0));
        if known.is_some() {
            epoll::modify(&self.epoll, handle, data, flags)?;
        } else {
            epoll::add(&self.epoll, handle, data, flags)?;
        }
        self.watched.insert(file, next);
        Ok(())
    }

    /// Ends everything that waits for a stream which can't be watched.
    fn watch_or_end(&mut self, file: FileId) {
        if let Err(error) = self.watch(file) {
            tracing::warn!("cannot watch a stream: {error}");
            self.streams.close(file, &mut self.ended);
        }
    }

    /// Looks for events, and sleeps only when there is none until then.
    fn look_out(&mut self, until: Instant, limit: Option<Duration>, done: &mut Vec<(OpId, Outcome)>) -> bool {
        loop {
            for _ in 0..TRIES {
                if self.streams.try_recent(done) {
                    return false;
                }
            }
            let rang = self.poll(Some(Duration::ZERO), done);
            if rang || !done.is_empty() {
                return rang;
            }
            if Instant::now() >= until {
                return self.poll(limit, done);
            }
        }
    }

    fn poll(&mut self, limit: Option<Duration>, done: &mut Vec<(OpId, Outcome)>) -> bool {
        let mut events = [MaybeUninit::<epoll::Event>::uninit(); 64];
        let limit = limit.and_then(|limit| Timespec::try_from(limit).ok());
        let events = match epoll::wait(&self.epoll, &mut events, limit.as_ref()) {
            Ok((events, _)) => events,
            Err(rustix::io::Errno::INTR) => return false,
            Err(error) => panic!("epoll failed on a descriptor of our own: {error}"),
        };
        let mut rang = false;
        for event in events {
            if event.data.u64() == BELL {
                rang |= self.bell.silence();
                continue;
            }
            let Ok(number) = u32::try_from(event.data.u64()) else { continue };
            let (file, flags) = (FileId(number), event.flags);
            let broken = flags.intersects(epoll::EventFlags::ERR | epoll::EventFlags::HUP);
            let ready = Interest {
                readable: broken || flags.intersects(epoll::EventFlags::IN | epoll::EventFlags::RDHUP),
                writable: broken || flags.intersects(epoll::EventFlags::OUT),
            };
            self.streams.ready(file, ready, done);
            self.watch_or_end(file);
        }
        rang
    }
}

impl Driver for Plain {
    fn submit(&mut self, id: OpId, op: Op) -> Option<Outcome> {
        match self.files.start(op) {
            Start::Done(outcome) => Some(outcome),
            Start::Read { handle, offset, mut buffer, filled } => self.help(
                id,
                Box::new(move || {
                    disk::read_rest(&handle, offset, &mut buffer, filled)?;
                    Ok(Finished::Bytes(buffer))
                }),
            ),
            Start::Write { handle, offset, data } => {
                self.help(id, disk::job(move || disk::write_all(&handle, offset, &data, 0)))
            }
            Start::Sync { handle } => self.help(id, disk::job(move || disk::sync(&handle))),
            Start::WriteBack { handle } => self.help(id, disk::job(move || cached::write_back(&handle))),
            Start::Punch { handle, offset, len } => {
                self.help(id, disk::job(move || disk::punch(&handle, offset, len)))
            }
            Start::Allocate { handle, offset, len } => {
                self.help(id, disk::job(move || disk::allocate(&handle, offset, len)))
            }
            Start::Job(job) => self.help(id, job),
            Start::Recv { file, len, into } => {
                let outcome = match self.files.handle(file) {
                    Ok(handle) => self.streams.recv(id, file, handle, len, into),
                    Err(error) => Some(Err(error)),
                };
                if outcome.is_none() {
                    self.watch_or_end(file);
                }
                outcome
            }
            Start::Send { file, data } => {
                let outcome = match self.files.handle(file) {
                    Ok(handle) => self.streams.send(id, file, handle, data),
                    Err(error) => Some(Err(error)),
                };
                if outcome.is_none() {
                    self.watch_or_end(file);
                }
                outcome
            }
            Start::Closed { file } => {
                if let Some(handle) = self.streams.close(file, &mut self.ended)
                    && self.watched.remove(&file).is_some()
                {
                    let _ = epoll::delete(&self.epoll, &handle);
                }
                Some(Ok(Output::None))
            }
            Start::Sleep(time) => {
                self.timers.start(id, time);
                None
            }
        }
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
            done.append(&mut self.ended);
            self.helpers.collect(done);
            self.timers.collect(done);
            let rang = if done.is_empty() {
                let limit = self.timers.limit(deadline);
                let rang = match self.spin.begin(Instant::now(), limit) {
                    Some(until) => self.look_out(until, limit, done),
                    None => self.poll(limit, done),
                };
                self.spin.end(Instant::now());
                rang
            } else {
                self.poll(Some(Duration::ZERO), done)
            };
            self.helpers.collect(done);
            self.timers.collect(done);
            done.append(&mut self.ended);
            let over = deadline.is_some_and(|deadline| Instant::now() >= deadline);
            if rang || over || !done.is_empty() {
                return;
            }
        }
    }

    fn waker(&self) -> Arc<dyn Wake> {
        Arc::clone(&self.bell) as Arc<dyn Wake>
    }

    fn name(&self) -> &'static str {
        "plain"
    }

    fn boot_id(&self) -> [u8; 16] {
        self.boot_id
    }
}
