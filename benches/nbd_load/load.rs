//! One connection under load: as many requests as the depth allows are made for every
//! batch of replies, and go out in one send.
//!
//! No block has two requests under way, so that every read knows the one generation it
//! must find. Sockets are used without blocking while there is something to send, so that
//! two full directions never wait for each other.

use crate::pattern::Pattern;
use crate::stamp::{self, STAMP_BYTES};
use hdrhistogram::Histogram;
use snapvol::nbd::proto::{Request, SIMPLE_REPLY_MAGIC, SIMPLE_REPLY_SIZE, cmd};
use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

/// Bytes asked for in one receive.
const RECEIVE_BYTES: usize = 1 << 20;

/// What a connection is to do.
pub struct Job {
    pub request_bytes: usize,
    pub depth: usize,
    /// Reads in a hundred requests.
    pub read_percent: u32,
    /// A flush after so many writes; 0: none. Nothing else is sent until it is answered.
    pub flush_every: u64,
    pub until: Option<Instant>,
    pub requests_max: u64,
    pub verify: bool,
    /// Pauses between two batches of replies are listed from here on.
    pub pause_min: Duration,
}

/// What it did.
pub struct Outcome {
    pub requests: u64,
    pub flushes: u64,
    /// Blocks whose content was wrong.
    pub wrong: u64,
    pub errors: u64,
    /// Nanoseconds from the making of a request to the arrival of its reply.
    pub latency: Histogram<u64>,
    pub flush_latency: Histogram<u64>,
    /// When replies stopped coming, on the system's monotonic clock, and for how long.
    pub pauses: Vec<(f64, f64)>,
    pub seconds: f64,
    pub cpu_seconds: f64,
}

impl Outcome {
    fn nothing() -> Self {
        Self {
            requests: 0,
            flushes: 0,
            wrong: 0,
            errors: 0,
            latency: histogram(),
            flush_latency: histogram(),
            pauses: Vec::new(),
            seconds: 0.0,
            cpu_seconds: 0.0,
        }
    }
}

#[derive(Clone, Copy)]
enum Kind {
    Read,
    Write,
    Flush,
}

#[derive(Clone, Copy)]
struct Pending {
    kind: Kind,
    slot: u64,
    since: Instant,
}

/// A connection in its transmission phase.
pub struct Load<'a> {
    socket: &'a OwnedFd,
    job: Job,
    pattern: Pattern,
    /// Generations of the blocks that this run has written or read.
    generations: HashMap<u64, u32, rustc_hash::FxBuildHasher>,
    busy: rustc_hash::FxHashSet<u64>,
    pending: Vec<Option<Pending>>,
    free: Vec<usize>,
    out: Vec<u8>,
    sent: usize,
    received: Vec<u8>,
    begin: usize,
    end: usize,
    writes_since_flush: u64,
    started: u64,
    exhausted: bool,
    outcome: Outcome,
}

fn histogram() -> Histogram<u64> {
    // Three digits; it grows with what it is given.
    Histogram::new(3).expect("three digits are allowed")
}

fn record(histogram: &mut Histogram<u64>, nanoseconds: u64) {
    histogram.record(nanoseconds).expect("it grows");
}

impl<'a> Load<'a> {
    /// A load that starts when [`Self::run`] is called.
    pub fn new(socket: &'a OwnedFd, job: Job, pattern: Pattern) -> Self {
        let reply_bytes = job.request_bytes + SIMPLE_REPLY_SIZE;
        Self {
            socket,
            pattern,
            generations: HashMap::default(),
            busy: rustc_hash::FxHashSet::default(),
            pending: vec![None; job.depth],
            free: (0..job.depth).rev().collect(),
            out: Vec::with_capacity((job.request_bytes + Request::SIZE) * job.depth),
            sent: 0,
            received: vec![0; RECEIVE_BYTES + reply_bytes],
            begin: 0,
            end: 0,
            writes_since_flush: 0,
            started: 0,
            exhausted: false,
            outcome: Outcome::nothing(),
            job,
        }
    }

    /// Runs until the time, the number or the pattern ends, and all is answered.
    pub fn run(&mut self) -> io::Result<Outcome> {
        let clock = crate::cpu::monotonic_seconds();
        let start = Instant::now();
        let cpu = crate::cpu::thread_seconds();
        let mut last = start;
        let mut now = start;
        loop {
            self.make_requests(now);
            if self.in_flight() == 0 {
                break;
            }
            self.send()?;
            if !self.receive()? {
                continue;
            }
            now = Instant::now();
            if now - last >= self.job.pause_min {
                let since = clock + (last - start).as_secs_f64();
                self.outcome.pauses.push((since, (now - last).as_secs_f64()));
            }
            last = now;
            self.take_replies(now)?;
        }
        self.outcome.seconds = start.elapsed().as_secs_f64();
        self.outcome.cpu_seconds = crate::cpu::thread_seconds() - cpu;
        Ok(std::mem::replace(&mut self.outcome, Outcome::nothing()))
    }

    /// Reads some of the blocks back whose content this run knows, and counts those that
    /// are wrong.
    pub fn read_back(&mut self, count: usize) -> io::Result<u64> {
        let per_slot = (self.job.request_bytes / STAMP_BYTES) as u64;
        let blocks: Vec<u64> = self.generations.keys().take(count).map(|block| block / per_slot).collect();
        let job = Job {
            depth: self.job.depth,
            request_bytes: self.job.request_bytes,
            read_percent: 100,
            flush_every: 0,
            until: None,
            requests_max: u64::MAX,
            verify: true,
            pause_min: Duration::MAX,
        };
        self.job = job;
        self.pattern = Pattern::of(blocks);
        self.exhausted = false;
        self.started = 0;
        let outcome = self.run()?;
        Ok(outcome.wrong + outcome.errors)
    }

    fn in_flight(&self) -> usize {
        self.job.depth - self.free.len()
    }

    fn ends(&self, now: Instant) -> bool {
        self.exhausted
            || self.started >= self.job.requests_max
            || self.job.until.is_some_and(|until| now >= until)
    }

    fn make_requests(&mut self, now: Instant) {
        while !self.free.is_empty() && !self.ends(now) {
            if self.job.flush_every > 0 && self.writes_since_flush >= self.job.flush_every {
                // What the flush is to cover has to be acknowledged first.
                if self.in_flight() == 0 {
                    self.writes_since_flush = 0;
                    self.put(Kind::Flush, 0, now);
                }
                return;
            }
            let Some(slot) = self.pattern.next() else {
                self.exhausted = true;
                return;
            };
            if !self.busy.insert(slot) {
                // By chance the same block again: rather a batch less than a wait.
                if self.in_flight() > 0 {
                    return;
                }
                continue;
            }
            self.started += 1;
            if self.pattern.chance(self.job.read_percent) {
                self.put(Kind::Read, slot, now);
            } else {
                self.writes_since_flush += 1;
                self.put(Kind::Write, slot, now);
            }
        }
    }

    fn put(&mut self, kind: Kind, slot: u64, now: Instant) {
        let Some(index) = self.free.pop() else { return };
        self.pending[index] = Some(Pending { kind, slot, since: now });
        let (command, len) = match kind {
            Kind::Read => (cmd::READ, self.job.request_bytes),
            Kind::Write => (cmd::WRITE, self.job.request_bytes),
            Kind::Flush => (cmd::FLUSH, 0),
        };
        let offset = slot * self.job.request_bytes as u64;
        let len = u32::try_from(len).unwrap_or(u32::MAX);
        Request { flags: 0, command, cookie: index as u64, offset, len }.encode(&mut self.out);
        if matches!(kind, Kind::Write) {
            let from = self.out.len();
            self.out.resize(from + self.job.request_bytes, 0);
            let first = offset / STAMP_BYTES as u64;
            for (block, data) in (first..).zip(self.out[from..].chunks_exact_mut(STAMP_BYTES)) {
                let generation = self.generations.entry(block).or_insert_with(|| fastrand::u32(..) >> 1);
                *generation += 1;
                stamp::fill(data, block, *generation);
            }
        }
    }

    fn send(&mut self) -> io::Result<()> {
        while self.sent < self.out.len() {
            let flags = rustix::net::SendFlags::DONTWAIT | rustix::net::SendFlags::NOSIGNAL;
            match rustix::net::send(self.socket, &self.out[self.sent..], flags) {
                Ok(count) => self.sent += count,
                Err(rustix::io::Errno::AGAIN) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
        self.out.clear();
        self.sent = 0;
        Ok(())
    }

    /// Waits until something came (true) or more can be sent (false).
    fn receive(&mut self) -> io::Result<bool> {
        let flags = if self.out.is_empty() {
            rustix::net::RecvFlags::empty()
        } else {
            rustix::net::RecvFlags::DONTWAIT
        };
        if self.end + RECEIVE_BYTES > self.received.len() {
            self.received.copy_within(self.begin..self.end, 0);
            self.end -= self.begin;
            self.begin = 0;
        }
        let room = self.end + RECEIVE_BYTES.min(self.received.len() - self.end);
        match rustix::net::recv(self.socket, &mut self.received[self.end..room], flags) {
            Ok((0, _)) => Err(ErrorKind::UnexpectedEof.into()),
            Ok((count, _)) => {
                self.end += count;
                Ok(true)
            }
            Err(rustix::io::Errno::AGAIN) => {
                use rustix::event::{PollFd, PollFlags, poll};
                let mut ready = [PollFd::new(self.socket, PollFlags::IN | PollFlags::OUT)];
                poll(&mut ready, None)?;
                Ok(false)
            }
            Err(rustix::io::Errno::INTR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn take_replies(&mut self, now: Instant) -> io::Result<()> {
        loop {
            let have = &self.received[self.begin..self.end];
            let Some((head, rest)) = have.split_first_chunk::<SIMPLE_REPLY_SIZE>() else { break };
            let word = |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
            let index = word(12) as usize;
            let pending = self.pending.get(index).copied().flatten();
            let (Some(pending), SIMPLE_REPLY_MAGIC) = (pending, word(0)) else {
                return Err(io::Error::other("the server sent a reply to nothing"));
            };
            let failed = word(4) != 0;
            let mut used = SIMPLE_REPLY_SIZE;
            if matches!(pending.kind, Kind::Read) && !failed {
                let Some(data) = rest.get(..self.job.request_bytes) else { break };
                used += data.len();
                if self.job.verify {
                    self.outcome.wrong +=
                        wrong_blocks(data, pending.slot, self.job.request_bytes, &mut self.generations);
                }
            }
            self.begin += used;
            self.pending[index] = None;
            self.free.push(index);
            self.outcome.errors += u64::from(failed);
            let nanoseconds = u64::try_from((now - pending.since).as_nanos()).unwrap_or(u64::MAX);
            if matches!(pending.kind, Kind::Flush) {
                self.outcome.flushes += 1;
                record(&mut self.outcome.flush_latency, nanoseconds);
            } else {
                self.busy.remove(&pending.slot);
                self.outcome.requests += 1;
                record(&mut self.outcome.latency, nanoseconds);
            }
        }
        if self.begin == self.end {
            self.begin = 0;
            self.end = 0;
        }
        Ok(())
    }
}

/// Counts the blocks that are not what this run wrote, or no whole stamp of any time.
fn wrong_blocks(
    data: &[u8],
    slot: u64,
    request_bytes: usize,
    generations: &mut HashMap<u64, u32, rustc_hash::FxBuildHasher>,
) -> u64 {
    let first = slot * (request_bytes / STAMP_BYTES) as u64;
    let mut wrong = 0;
    for (block, data) in (first..).zip(data.chunks_exact(STAMP_BYTES)) {
        let right = match (stamp::check(data, block), generations.get(&block)) {
            (Some(found), Some(expected)) => found == *expected,
            (Some(_), None) => true,
            (None, _) => false,
        };
        wrong += u64::from(!right);
    }
    wrong
}
