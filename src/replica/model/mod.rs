//! Sessions in a simulation: a primary, its secondaries, the links between them, and crashes of
//! all. One seed decides everything.
//!
//! The sessions, the stores' decisions, the engines and the streams are those of production; the
//! disks are simulated, the links are queues that lose what is on its way when they break, and
//! time is a number that grows. What must hold is said in [`oracle`].

#![allow(clippy::missing_panics_doc, reason = "a panic is how a violation is told")]

mod groups;
mod machine;
mod oracle;
mod ports;
mod roles;
#[cfg(test)]
mod tests;

use crate::snapshot::model::{Kind, Run};
use machine::Machine;
use oracle::Oracle;
use ports::Wire;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

/// The kinds of random runs.
pub const KINDS: &[Kind] = &[
    Kind {
        name: "sessions",
        what: "a primary and its secondaries follow; links break, processes die, the power fails",
        run: |of| simulate(of, Options::default()),
    },
    Kind {
        name: "sessions-calm",
        what: "the same, and nothing goes wrong",
        run: |of| {
            simulate(of, Options { deaths: false, power_cuts: false, cuts: false, ..Options::default() })
        },
    },
    Kind {
        name: "groups",
        what: "a group of three volumes follows as one; links break, processes die, the power fails",
        run: |of| simulate(of, Options { group: true, lives: 8, writes: 1200, ..Options::default() }),
    },
    Kind {
        name: "roles",
        what: "two volumes change roles; links break, processes die, the power fails",
        run: |of| simulate(of, Options { roles: true, writes: 800, lives: 8, ..Options::default() }),
    },
];

fn simulate(of: &Rc<Run>, options: Options) {
    let counts = run(of.seed, options);
    of.count(|total| {
        total.operations += counts.writes + counts.sets + counts.wishes;
        total.crashes += counts.deaths + counts.power_cuts;
        total.checks += counts.compared;
    });
}

/// Turns of everything after which a run must have come to its end.
const TURNS_MAX: u64 = 6_000_000;
/// What a turn takes, at most.
const TURN_TIME_MAX_MS: u64 = 12;

/// What a run does.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Crashes of each machine before the end, at most.
    pub lives: u32,
    /// Writes of the primary's client before the end.
    pub writes: u64,
    /// Processes die.
    pub deaths: bool,
    /// The power of machines fails.
    pub power_cuts: bool,
    /// Links break.
    pub cuts: bool,
    /// Two machines change roles.
    pub roles: bool,
    /// The volumes are a group of three.
    pub group: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { lives: 5, writes: 400, deaths: true, power_cuts: true, cuts: true, roles: false, group: false }
    }
}

/// What a run did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Writes and trims of the client.
    pub writes: u64,
    /// Sets whose shipping was begun, again after an interruption too.
    pub sets: u64,
    /// Of these, whole ones.
    pub wholes: u64,
    /// Of these, resumed ones.
    pub resumed: u64,
    /// Sets confirmed.
    pub confirmed: u64,
    /// Cuts, rests and changes that the owner asked for.
    pub wishes: u64,
    /// Links that broke by themselves.
    pub cuts: u64,
    /// Deaths of processes.
    pub deaths: u64,
    /// Power cuts.
    pub power_cuts: u64,
    /// States compared.
    pub compared: u64,
    /// Secondaries that took their primary's place.
    pub failovers: u64,
    /// Old primaries that began to follow.
    pub resyncs: u64,
    /// Resyncs that were given up.
    pub aborts: u64,
    /// Healthy pairs that were turned around.
    pub handovers: u64,
    /// Primaries that went on alone.
    pub alone: u64,
    /// Writes that were refused.
    pub refused: u64,
}

impl Counts {
    /// Adds another run's.
    pub fn add(&mut self, other: &Self) {
        let Self {
            writes, sets, wholes, resumed, confirmed, wishes, cuts, deaths, power_cuts, compared, ..
        } = other;
        let Self { failovers, resyncs, aborts, handovers, alone, refused, .. } = other;
        self.failovers += failovers;
        self.resyncs += resyncs;
        self.aborts += aborts;
        self.handovers += handovers;
        self.alone += alone;
        self.refused += refused;
        self.writes += writes;
        self.sets += sets;
        self.wholes += wholes;
        self.resumed += resumed;
        self.confirmed += confirmed;
        self.wishes += wishes;
        self.cuts += cuts;
        self.deaths += deaths;
        self.power_cuts += power_cuts;
        self.compared += compared;
    }
}

/// What all tasks of a run share.
struct Shared {
    rng: RefCell<fastrand::Rng>,
    options: Options,
    counts: Cell<Counts>,
    clock: Cell<Duration>,
    block_size: u32,
    /// Nothing goes wrong any more: everything must come to rest.
    calm: Cell<bool>,
    /// All that is to be written was.
    written: Cell<bool>,
    /// The primary is content.
    content: Cell<bool>,
    oracle: RefCell<Oracle>,
    roles: RefCell<roles::Watch>,
    /// Links that wait for a machine to take them up.
    calls: Vec<RefCell<Vec<Wire>>>,
    /// Whether a machine is up.
    up: Vec<Cell<bool>>,
}

impl Shared {
    fn chance(&self, of: u32) -> bool {
        self.rng.borrow_mut().u32(0..of) == 0
    }

    fn count(&self, change: impl FnOnce(&mut Counts)) {
        let mut counts = self.counts.get();
        change(&mut counts);
        self.counts.set(counts);
    }
}

/// Prints the seed if the run fails.
struct Seed(u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("sessions failed with seed {}", self.0);
        }
    }
}

/// Runs a seed to its end.
///
/// # Panics
/// When a session does what it must not.
pub fn run(seed: u64, options: Options) -> Counts {
    let _seed = Seed(seed);
    let mut rng = fastrand::Rng::with_seed(seed);
    let secondaries = if options.roles || options.group { 1 } else { [1, 1, 2, 3][rng.usize(0..4)] };
    let block_size = [512, 4096][rng.usize(0..2)];
    let shared = Rc::new(Shared {
        oracle: RefCell::new(Oracle::new(secondaries)),
        roles: RefCell::default(),
        rng: RefCell::new(rng),
        options,
        counts: Cell::default(),
        clock: Cell::new(Duration::from_secs(1)),
        block_size,
        calm: Cell::new(false),
        written: Cell::new(false),
        content: Cell::new(false),
        calls: (0..=secondaries).map(|_| RefCell::default()).collect(),
        up: (0..=secondaries).map(|_| Cell::new(false)).collect(),
    });
    let mut machines: Vec<Machine> = (0..=secondaries).map(|index| Machine::new(&shared, index)).collect();
    for _ in 0..if options.roles { TURNS_MAX / 4 } else { TURNS_MAX } {
        if shared.content.get() {
            return shared.counts.get();
        }
        let (chosen, time) = {
            let mut rng = shared.rng.borrow_mut();
            (rng.usize(0..machines.len()), rng.u64(0..=TURN_TIME_MAX_MS))
        };
        shared.clock.set(shared.clock.get() + Duration::from_millis(time));
        machines[chosen].turn();
        if shared.written.get() && machines.iter().all(Machine::is_safe) {
            shared.calm.set(true);
        }
    }
    panic!("sessions do not come to rest: {:?}", machines.iter().map(Machine::doing).collect::<Vec<_>>());
}
