//! `snapvol`: a copy-on-write block store in user space.
//!
//! The modules are layers, from the top down: `cli`, `control`, `replica`, `nbd`, `engine`,
//! `delta`, `snapshot`, `store`, `map`, `format`, `transport`, `io`. Each uses only what stands below
//! it (a test walks the sources and fails on an upward import). `ARCHITECTURE.md` is the map.

pub mod cli;
pub mod control;
pub mod delta;
pub mod engine;
pub mod format;
pub mod io;
pub mod map;
pub mod nbd;
pub mod replica;
pub mod snapshot;
pub mod store;
pub mod transport;

pub mod error;
pub mod types;

pub use error::{Error, ErrorKind, Result};
