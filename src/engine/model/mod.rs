//! The whole store in a simulation: two machines with a store each, clients that write,
//! trim, flush and read, every command beside them, streams between the machines, and
//! crashes of both at any operation. One seed decides everything.
//!
//! The engines, the store's decisions and the streams are those of production; the disks
//! are simulated and the threads are replaced by a loop that turns over one engine or the
//! commands of one store at a time, by chance. [`oracle`] says what every byte may be.

#![allow(clippy::missing_panics_doc, reason = "a panic is how a violation is told")]

mod clients;
mod commands;
mod machine;
mod oracle;
mod restart;
pub(crate) mod rig;
#[cfg(test)]
mod rules;
mod simulation;
#[cfg(test)]
mod tests;
mod transfers;

pub use simulation::{Counts, Options, run};

use crate::snapshot::model::{Kind, Run};
use std::rc::Rc;

/// The kinds of random runs.
pub const KINDS: &[Kind] = &[
    Kind {
        name: "store",
        what: "two stores, their commands and streams; processes die and the power fails",
        run: |of| store(of, Options::default()),
    },
    Kind {
        name: "store-calm",
        what: "the same, and nothing goes wrong",
        run: |of| store(of, Options { deaths: false, power_cuts: false, ..Options::default() }),
    },
];

fn store(of: &Rc<Run>, options: Options) {
    let counts = run(of.seed, options);
    of.count(|total| {
        total.operations += counts.done();
        total.crashes += counts.deaths + counts.power_cuts;
        total.checks += counts.compared;
    });
}
