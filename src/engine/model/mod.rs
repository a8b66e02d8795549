//! The whole store in a simulation: two machines with a store each, clients that write,
//! trim, flush and read, every command beside them, streams between the machines, and
//! crashes of both at any operation. One seed decides everything.
//!
//! The engines, the store's decisions and the streams are those of production; the disks
//! are simulated and the threads are replaced by a loop that turns over one engine or the
//! commands of one store at a time, by chance. [`oracle`] says what every byte may be.

mod clients;
mod commands;
mod machine;
mod oracle;
mod restart;
mod simulation;
mod tests;
mod transfers;

pub(crate) use simulation::{Counts, Options, run};
