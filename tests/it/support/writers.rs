//! Verifying writers: many requests of all kinds in flight on connections of their own,
//! each noted in the volume's model before it is sent and when it is answered.
//!
//! A writer has sectors of its own, so that the order of its requests is known; the
//! borders lie within blocks, so that neighbours share one. A flush of one writer covers
//! what all writers of the volume had acknowledged.

use super::oracle::{Allowed, Death, Issued, Model, SECTOR};
use snapvol::nbd::client::Client;
use snapvol::nbd::proto::{cmd, cmd_flag, errno};
use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// How to reach an export.
pub type Connect = Arc<dyn Fn(&str) -> snapvol::Result<Client> + Send + Sync>;

/// Where stamps come from; a later request has a higher one.
static STAMPS: AtomicU64 = AtomicU64::new(1);

/// Sectors at the start of every volume that no writer but the pendulum uses.
pub const RESERVED: u64 = 8;

/// A volume that writers work on.
pub struct Volume {
    pub name: String,
    model: Mutex<Model>,
    /// Writers hold back and let go of their connections.
    paused: AtomicBool,
    /// Connections of writers that are open.
    writers: AtomicU64,
}

/// What all threads of a life see: whether it is about to end.
#[derive(Clone, Default)]
pub struct Life(Arc<AtomicBool>);

impl Life {
    pub fn end(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    pub fn ended(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

impl Volume {
    pub fn new(name: &str, salt: u64, sectors: u64, death: Death) -> Self {
        Self {
            name: name.to_owned(),
            model: Mutex::new(Model::new(salt, sectors, death)),
            paused: AtomicBool::new(false),
            writers: AtomicU64::new(0),
        }
    }

    pub fn model(&self) -> MutexGuard<'_, Model> {
        self.model.lock().unwrap()
    }

    /// Holds writers back; with `drain` until all of them have left.
    pub fn pause(&self, drain: bool) {
        self.paused.store(true, Ordering::SeqCst);
        let start = Instant::now();
        while drain && self.writers.load(Ordering::SeqCst) > 0 {
            assert!(start.elapsed() < Duration::from_secs(60), "writers do not end");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    pub fn unpause(&self) {
        self.paused.store(false, Ordering::SeqCst);
    }

    /// All of an export, as stamps.
    ///
    /// # Errors
    /// When the server goes away meanwhile. Bytes that nobody wrote fail the test.
    pub fn read_all(&self, connect: &Connect, export: &str) -> snapvol::Result<Vec<u64>> {
        let mut client = connect(export)?;
        assert_eq!(client.size, self.model().sector_count() * SECTOR as u64, "{export}");
        let mut bytes = Vec::new();
        while (bytes.len() as u64) < client.size {
            let at = bytes.len() as u64;
            let len = u32::try_from((client.size - at).min(1 << 20)).unwrap();
            bytes.extend(client.read(at, len)?);
        }
        // It has told all that was asked.
        let _ = client.disconnect();
        let stamps = self.model().stamps(0, &bytes);
        Ok(stamps.unwrap_or_else(|wrong| panic!("{export}: {wrong}")))
    }
}

/// How a writer goes about it.
#[derive(Clone, Copy, Debug)]
pub struct Habits {
    /// Requests in flight.
    pub depth: usize,
    /// Whether it ever flushes, or asks for a durable write.
    pub flushes: bool,
    /// The longest request, in sectors.
    pub longest: u64,
}

/// What a request in flight was.
enum Asked {
    Change(Issued, bool),
    Read(Range<u64>, Allowed),
    Flush(u64),
}

impl Asked {
    fn sectors(&self) -> Range<u64> {
        match self {
            Self::Change(issued, _) => issued.sectors.clone(),
            Self::Read(sectors, _) => sectors.clone(),
            Self::Flush(_) => 0..0,
        }
    }
}

/// Writes to `own` until the life ends; the number of requests that were answered.
pub fn write(
    volume: &Volume,
    connect: &Connect,
    own: Range<u64>,
    habits: Habits,
    life: &Life,
    mut rng: fastrand::Rng,
) -> u64 {
    let mut answered = 0;
    while !life.ended() {
        if volume.paused.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(1));
            continue;
        }
        volume.writers.fetch_add(1, Ordering::SeqCst);
        // Asked again now that it counts, so that whoever pauses knows.
        let paused = volume.paused.load(Ordering::SeqCst);
        if !paused && let Ok(client) = connect(&volume.name) {
            Writer { volume, client, own: own.clone(), habits, under_way: HashMap::new() }.run(
                life,
                &mut rng,
                &mut answered,
            );
        }
        volume.writers.fetch_sub(1, Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(1));
    }
    answered
}

struct Writer<'a> {
    volume: &'a Volume,
    client: Client,
    own: Range<u64>,
    habits: Habits,
    under_way: HashMap<u64, Asked>,
}

impl Writer<'_> {
    /// Until the connection breaks, or the volume is paused and all is answered.
    fn run(mut self, life: &Life, rng: &mut fastrand::Rng, answered: &mut u64) {
        loop {
            let pausing = self.volume.paused.load(Ordering::SeqCst);
            if pausing && self.under_way.is_empty() {
                // The server may be gone already.
                let _ = self.client.disconnect();
                return;
            }
            while !pausing && self.under_way.len() < self.habits.depth {
                if life.ended() || self.ask(rng).is_err() {
                    return;
                }
            }
            match self.client.receive() {
                // Cut off by whoever took the volume away.
                Ok(reply) if reply.errno == errno::ESHUTDOWN => return,
                Ok(reply) => {
                    self.answer(&reply);
                    *answered += 1;
                }
                Err(_) => return,
            }
        }
    }

    fn ask(&mut self, rng: &mut fastrand::Rng) -> snapvol::Result<()> {
        if self.habits.flushes && rng.u8(0..24) == 0 {
            let moment = self.volume.model().moment();
            let cookie = self.client.send(cmd::FLUSH, 0, 0, 0, &[])?;
            self.under_way.insert(cookie, Asked::Flush(moment));
            return Ok(());
        }
        let sectors = loop {
            let len = match rng.u8(0..4) {
                0 => 1,
                1 => rng.u64(1..=8),
                _ => rng.u64(1..=self.habits.longest),
            };
            // Half of the requests meet in a small part of the sectors.
            let end = if rng.bool() { self.own.end } else { self.own.end.min(self.own.start + 512) };
            let mut start = rng.u64(self.own.start..end);
            if rng.bool() {
                start = (start & !7).max(self.own.start);
            }
            let sectors = start..(start + len).min(self.own.end);
            let overlaps = |other: Range<u64>| sectors.start < other.end && other.start < sectors.end;
            if !self.under_way.values().any(|asked| overlaps(asked.sectors())) {
                break sectors;
            }
        };
        let (offset, bytes) = (sectors.start * SECTOR as u64, (sectors.end - sectors.start) * SECTOR as u64);
        let len = u32::try_from(bytes).unwrap();
        let kind = rng.u8(0..16);
        if kind < 2 {
            let allowed = self.volume.model().now(sectors.clone());
            let cookie = self.client.send(cmd::READ, 0, offset, len, &[])?;
            self.under_way.insert(cookie, Asked::Read(sectors, allowed));
            return Ok(());
        }
        let durable = self.habits.flushes && rng.u8(0..12) == 0;
        let mut flags = if durable { cmd_flag::FUA } else { 0 };
        let (command, stamp) = match kind {
            2 | 3 => (cmd::TRIM, 0),
            4 | 5 => {
                flags |= if rng.bool() { cmd_flag::NO_HOLE } else { 0 };
                (cmd::WRITE_ZEROES, 0)
            }
            _ => (cmd::WRITE, STAMPS.fetch_add(1, Ordering::SeqCst)),
        };
        let issued = Issued { sectors, stamp };
        let payload = {
            let mut model = self.volume.model();
            model.issue(&issued);
            if command == cmd::WRITE { model.content(&issued) } else { Vec::new() }
        };
        let cookie = self.client.send(command, flags, offset, len, &payload)?;
        self.under_way.insert(cookie, Asked::Change(issued, durable));
        Ok(())
    }

    fn answer(&mut self, reply: &snapvol::nbd::client::Reply) {
        assert_eq!(reply.errno, 0, "{}: {}", self.volume.name, reply.message);
        match self.under_way.remove(&reply.cookie) {
            Some(Asked::Change(issued, durable)) => self.volume.model().acknowledge(&issued, durable),
            Some(Asked::Flush(moment)) => self.volume.model().flushed(moment),
            Some(Asked::Read(sectors, allowed)) => {
                let found = self.volume.model().stamps(sectors.start, &reply.data);
                let wrong = found.and_then(|found| allowed.admits(&found));
                assert_eq!(wrong, Ok(()), "{} from sector {}", self.volume.name, sectors.start);
            }
            None => panic!("{}: an answer to nothing", self.volume.name),
        }
    }
}

/// Writes the same stamp into the first sector of one volume after the other, each when
/// the one before is acknowledged: at any instant no volume is ahead of the one before
/// it, and none more than one step behind. The first step is done when this returns.
pub fn swing(
    volumes: Vec<Arc<Volume>>,
    swings: Arc<Mutex<Vec<u64>>>,
    connect: &Connect,
    life: &Life,
) -> std::thread::JoinHandle<()> {
    let mut clients: Vec<Client> = volumes.iter().map(|volume| connect(&volume.name).unwrap()).collect();
    let mut step = move || -> snapvol::Result<()> {
        let issued = Issued { sectors: 0..1, stamp: STAMPS.fetch_add(1, Ordering::SeqCst) };
        swings.lock().unwrap().push(issued.stamp);
        for (volume, client) in volumes.iter().zip(&mut clients) {
            let content = {
                let mut model = volume.model();
                model.issue(&issued);
                model.content(&issued)
            };
            client.write(0, &content, false)?;
            volume.model().acknowledge(&issued, false);
        }
        Ok(())
    };
    step().unwrap();
    let life = life.clone();
    std::thread::spawn(move || while !life.ended() && step().is_ok() {})
}
