//! The served volume: engines, each with one reactor, the store's decisions over them, and
//! the threads that run both.

pub mod api;
pub mod device;
pub mod store;

mod batch;
mod check;
mod clients;
pub(crate) mod core;
mod digests;
pub mod drill;
mod export;
pub mod groups;
#[cfg(any(test, feature = "simulation"))]
pub mod model;
mod production;
mod receive;
mod report;
pub mod resync;
pub mod roles;
pub mod schedule;
mod send;
mod served_snapshot;
pub(crate) mod sessions;
pub mod sets;
mod snapshots;
mod space;
mod thread;
pub mod together;
mod transfers;
pub(crate) mod turns;
mod upkeep;
mod volumes;

#[doc(hidden)]
pub use batch::{decode_deletions, encode_deletions};
pub use export::{Export, ExportInfo};
pub use schedule::Ticker;
pub use space::Watch;
pub use store::Store;
pub(crate) use volumes::rfc3339;
