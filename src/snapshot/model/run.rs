//! One run of the model: the seed that everything comes from, what of it is left out, and
//! what it did.
//!
//! Every choice is drawn from the seed and from its own place (life, step, operation), so
//! leaving an operation out changes nothing about the choices of the others. That is what
//! lets a failing run be made smaller.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

/// What runs did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Operations of clients and commands that succeeded.
    pub operations: u64,
    /// Crashes, each after an operation chosen by chance or by counting.
    pub crashes: u64,
    /// Operations of the disk that failed, bits that were turned over.
    pub failures: u64,
    /// Comparisons of everything with the oracle.
    pub checks: u64,
}

impl Counts {
    /// Adds those of another run.
    pub fn add(&mut self, other: Self) {
        self.operations += other.operations;
        self.crashes += other.crashes;
        self.failures += other.failures;
        self.checks += other.checks;
    }
}

/// The place of an operation: the life of the process, the step in it, the operation in
/// that; step and operation count from 1, and 0 means the life itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Id {
    /// Which life of the process.
    pub life: u16,
    /// Which step.
    pub step: u16,
    /// Which operation.
    pub index: u16,
}

impl Id {
    /// A life itself.
    #[must_use]
    pub fn life(life: u16) -> Self {
        Self { life, step: 0, index: 0 }
    }
}

impl fmt::Display for Id {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.step == 0 {
            return write!(out, "{}", self.life);
        }
        write!(out, "{}.{}.{}", self.life, self.step, self.index)
    }
}

impl FromStr for Id {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut parts = text.split('.');
        let mut next = || parts.next().map_or(Ok(0), str::parse);
        Ok(Self { life: next()?, step: next()?, index: next()? })
    }
}

/// One run.
#[derive(Debug, Default)]
pub struct Run {
    /// Where all chance comes from.
    pub seed: u64,
    /// Another order of completions and other places of crashes for the same operations.
    pub vary: u64,
    /// All that is done, if not everything.
    pub only: Option<BTreeSet<Id>>,
    /// Whether [`Run::did`] is kept.
    pub is_noted: bool,
    counts: Cell<Counts>,
    did: RefCell<Vec<(Id, String)>>,
}

impl Run {
    /// A whole run from that seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { seed, ..Self::default() }
    }

    /// The same run, its operations noted.
    #[must_use]
    pub fn noted(self) -> Self {
        Self { is_noted: true, ..self }
    }

    /// A part of the run, or all of it, in a variation.
    #[must_use]
    pub fn part(self, only: Option<BTreeSet<Id>>, vary: u64) -> Self {
        Self { only, vary, ..self }
    }

    /// What it did so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.counts.get()
    }

    /// Its operations so far, if they were to be noted; those that did nothing without text.
    #[must_use]
    pub fn did(&self) -> Vec<(Id, String)> {
        self.did.borrow().clone()
    }

    /// Chance for one place of the run.
    pub(super) fn rng(&self, place: &[u64]) -> fastrand::Rng {
        let mix = |hash: u64, value: &u64| {
            let mixed = (hash ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            mixed ^ (mixed >> 29)
        };
        fastrand::Rng::with_seed(place.iter().fold(self.seed, mix))
    }

    /// Chance for one place, another one in each variation.
    pub(super) fn varied(&self, place: &[u64]) -> fastrand::Rng {
        self.rng(&[place, &[self.vary]].concat())
    }

    pub(super) fn is_left_out(&self, id: Id) -> bool {
        self.only.as_ref().is_some_and(|only| !only.contains(&id))
    }

    pub(super) fn note(&self, id: Id, what: impl FnOnce() -> String) {
        if self.is_noted {
            self.did.borrow_mut().push((id, what()));
        }
    }

    pub(crate) fn count(&self, change: impl FnOnce(&mut Counts)) {
        let mut counts = self.counts.get();
        change(&mut counts);
        self.counts.set(counts);
    }
}
