//! One run: the machines, chance, and the loop that gives each its turn.

use super::machine::Machine;
use super::transfers::{News, Transfer};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

/// Turns without any operation after which a run counts as stuck.
const IDLE_TURNS_MAX: u64 = 200_000;

/// What a run does.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Lives of a process on each machine, before the one that only looks.
    pub lives: u32,
    /// Commands in each life.
    pub commands: u32,
    /// Processes die.
    pub deaths: bool,
    /// The power of machines fails.
    pub power_cuts: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { lives: 5, commands: 80, deaths: true, power_cuts: true }
    }
}

/// What a run did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Requests of clients.
    pub requests: u64,
    /// Snapshots taken, those of several volumes at one instant among them.
    pub snapshots: u64,
    /// Takes over several volumes.
    pub batches: u64,
    /// Snapshots deleted.
    pub deletions: u64,
    /// Deletions over several snapshots.
    pub group_deletions: u64,
    /// Volumes made and removed.
    pub volumes: u64,
    /// Holds, releases, resizes, roll-backs, changes of role.
    pub others: u64,
    /// Streams received whole.
    pub received: u64,
    /// Those of them that were deltas.
    pub deltas: u64,
    /// Those of them that went on where another one had ended.
    pub resumed: u64,
    /// Streams that were cut, altered or refused.
    pub refused: u64,
    /// Receives given up.
    pub aborted: u64,
    /// Deaths of processes.
    pub deaths: u64,
    /// Power cuts.
    pub power_cuts: u64,
    /// Crashes before an open had ended.
    pub in_recovery: u64,
    /// Volumes and snapshots compared with the oracle.
    pub compared: u64,
    /// Operations of the disks.
    pub operations: u64,
}

impl Counts {
    /// Requests and commands.
    #[must_use]
    pub fn done(&self) -> u64 {
        let streams = self.received + self.refused + self.aborted;
        self.requests + self.snapshots + self.deletions + self.volumes + self.others + streams
    }

    /// Adds another run's.
    pub fn add(&mut self, other: &Self) {
        let Self {
            requests,
            snapshots,
            batches,
            deletions,
            group_deletions,
            volumes,
            others,
            received,
            deltas,
            resumed,
            refused,
            aborted,
            deaths,
            power_cuts,
            in_recovery,
            compared,
            operations,
        } = other;
        self.requests += requests;
        self.snapshots += snapshots;
        self.batches += batches;
        self.deletions += deletions;
        self.group_deletions += group_deletions;
        self.volumes += volumes;
        self.others += others;
        self.received += received;
        self.deltas += deltas;
        self.resumed += resumed;
        self.refused += refused;
        self.aborted += aborted;
        self.deaths += deaths;
        self.power_cuts += power_cuts;
        self.in_recovery += in_recovery;
        self.compared += compared;
        self.operations += operations;
    }
}

/// What all tasks of a run share.
pub(super) struct Shared {
    pub rng: RefCell<fastrand::Rng>,
    pub options: Options,
    pub counts: Cell<Counts>,
    /// Bytes in a block of every volume.
    pub block_size: u32,
    /// Numbers for names.
    pub numbers: Cell<u64>,
    /// Streams on their way to each machine.
    pub wire: [RefCell<Vec<Transfer>>; 2],
    /// The newest snapshot that a volume received, and what it lacks of another one: its
    /// owner tells that to whoever sends.
    pub news: RefCell<BTreeMap<String, News>>,
}

impl Shared {
    /// True once in so many times.
    pub fn chance(&self, of: u32) -> bool {
        self.rng.borrow_mut().u32(0..of) == 0
    }

    pub fn number(&self) -> u64 {
        self.numbers.set(self.numbers.get() + 1);
        self.numbers.get()
    }

    pub fn count(&self, change: impl FnOnce(&mut Counts)) {
        let mut counts = self.counts.get();
        change(&mut counts);
        self.counts.set(counts);
    }

    /// Something by chance, if there is anything.
    pub fn pick<T>(&self, mut of: Vec<T>) -> Option<T> {
        if of.is_empty() {
            return None;
        }
        let index = self.rng.borrow_mut().usize(0..of.len());
        Some(of.swap_remove(index))
    }
}

/// Prints the seed if the run fails.
struct Seed(u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the whole store failed with seed {}", self.0);
        }
    }
}

/// Runs a seed to its end.
///
/// # Panics
/// When the store does what it must not.
pub fn run(seed: u64, options: Options) -> Counts {
    let _seed = Seed(seed);
    let mut rng = fastrand::Rng::with_seed(seed);
    let block_size = [512, 4096, 4096][rng.usize(0..3)];
    let shared = Rc::new(Shared {
        rng: RefCell::new(rng),
        options,
        counts: Cell::default(),
        block_size,
        numbers: Cell::default(),
        wire: Default::default(),
        news: RefCell::default(),
    });
    let mut machines = [Machine::new(&shared, 0), Machine::new(&shared, 1)];
    let mut idle = 0;
    let mut operations = 0;
    while !machines.iter().all(Machine::is_done) {
        let chosen = shared.rng.borrow_mut().usize(0..2);
        machines[chosen].turn();
        let now = machines.iter().map(Machine::operations).sum();
        idle = if now == operations { idle + 1 } else { 0 };
        operations = now;
        assert!(
            idle < IDLE_TURNS_MAX,
            "nothing moves any more: {:?}",
            machines.each_ref().map(Machine::doing)
        );
    }
    shared.count(|counts| counts.operations = operations);
    shared.counts.get()
}
