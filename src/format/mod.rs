//! Bytes to structs and back, nothing else. The truth about every byte stands in
//! `docs/format.md`.

pub mod checkpoint;
pub mod codec;
pub mod envelope;
pub mod group;
pub mod journal;
pub mod layer;
pub mod roles;
pub mod segment;
pub mod session;
pub mod slot;
pub mod state;
pub mod store;
pub mod stream;
pub mod upkeep;

#[cfg(test)]
mod page_test;
