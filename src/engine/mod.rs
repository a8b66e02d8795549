//! The served volume: engine threads, each with one reactor, and the store over them.

pub mod api;
pub mod device;
pub mod store;

pub use store::Store;
