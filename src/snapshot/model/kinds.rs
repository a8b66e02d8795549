//! The kinds of random runs.

use super::lives::{Profile, Trouble, lives};
use super::origins::copies;
use super::receive::secondary;
use super::run::Run;
use std::rc::Rc;

/// A kind of runs.
pub struct Kind {
    /// How it is called.
    pub name: &'static str,
    /// What it tries.
    pub what: &'static str,
    /// Does one run; panics at a violation.
    pub run: fn(&Rc<Run>),
}

/// All kinds.
pub const KINDS: &[Kind] = &[
    Kind { name: "calm", what: "nothing goes wrong", run: |run| volume(run, false, false, Trouble::None) },
    Kind {
        name: "process",
        what: "the process dies at any operation",
        run: |run| volume(run, true, false, Trouble::None),
    },
    Kind {
        name: "power",
        what: "the power fails at any operation",
        run: |run| volume(run, false, true, Trouble::None),
    },
    Kind {
        name: "both",
        what: "one or the other, also during recovery",
        run: |run| volume(run, true, true, Trouble::None),
    },
    Kind {
        name: "faults",
        what: "operations fail and stall by chance, also during recovery, between crashes of both kinds",
        run: |run| volume(run, true, true, Trouble::Faults),
    },
    Kind {
        name: "full",
        what: "the disk is full now and then, under each policy, between crashes of both kinds",
        run: |run| volume(run, true, true, Trouble::Full),
    },
    Kind {
        name: "flips",
        what: "bits turn over in segments, layers and checkpoints, between crashes of both kinds",
        run: |run| volume(run, true, true, Trouble::Flips),
    },
    Kind {
        name: "receive",
        what: "a secondary receives, dies, resumes and aborts",
        run: |run| secondary(run, true, run.seed.is_multiple_of(2)),
    },
    Kind {
        name: "copies",
        what: "a copy by copy on write, while its origin's volume goes on, between crashes of both kinds",
        run: copies,
    },
];

fn volume(run: &Rc<Run>, process_dies: bool, power_fails: bool, trouble: Trouble) {
    lives(run, Profile { process_dies, power_fails, trouble });
}
