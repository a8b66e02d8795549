//! The whole store in a simulation: two machines with a store each, clients that write,
//! trim, flush and read, every command beside them, streams between the machines, and
//! crashes of both at any operation. One seed decides everything.
//!
//! The engines, the store's decisions and the streams are those of production; the disks
//! are simulated and the threads are replaced by a loop that turns over one engine or the
//! commands of one store at a time, by chance. [`oracle`] says what every byte may be.

#![allow(clippy::unwrap_used, reason = "a run that goes wrong panics, and whoever started it says so")]
#![allow(clippy::missing_panics_doc, reason = "a panic is how a violation is told")]

mod clients;
mod commands;
mod machine;
mod oracle;
mod restart;
mod simulation;
#[cfg(test)]
mod tests;
mod transfers;

use crate::snapshot::model::Kind;
#[cfg(test)]
use simulation::Counts;
use simulation::{Options, run};

/// The kinds of random runs of whole stores.
pub const KINDS: &[Kind] = &[Kind {
    name: "store",
    what: "two stores with several volumes and clients, commands and streams, crashes of both kinds",
    run: |whole| {
        let done = run(whole.seed, Options::default());
        whole.count(|counts| {
            counts.operations += done.requests + done.snapshots + done.deletions + done.others + done.received;
            counts.crashes += done.deaths + done.power_cuts;
            counts.checks += done.compared;
        });
    },
}];
