//! The served volume: engine threads, each with one reactor, and the store over them.

pub mod api;
pub mod device;
pub mod store;

mod batch;
mod check;
mod clients;
mod export;
mod production;
mod receive;
mod report;
mod send;
mod served_snapshot;
mod snapshots;
mod space;
mod thread;
mod transfers;
mod volumes;

pub use export::{Export, ExportInfo};
pub use space::Watch;
pub use store::Store;
