//! Sessions: a volume of another store follows one of this store by itself.
//!
//! [`plan`] decides what a session does next, from facts alone. [`sender`] and [`receiver`]
//! are the two ends of a session as async functions over a store's decisions and a port: what
//! is said, heard and waited for is the port's. [`wire`] has the bytes between them. Nothing
//! of that blocks, reads a clock or starts a thread: a simulation runs it with two stores, a
//! link that breaks and crashes of both. [`hub`] runs it on threads, over one connection a peer.
//!
//! [`failover`] has a receiver take its sender's place, [`resync`] the old primary follow it,
//! [`handover`] turns a healthy pair around; [`ask`] asks another store one thing.
//! [`compare`] tells whether two stores hold the same of a snapshot.

pub mod ask;
pub mod compare;
pub mod failover;
mod group_failover;
pub mod handover;
pub mod hub;
pub mod manage;
pub mod peer;
pub mod plan;
pub mod receiver;
pub mod resync;
pub mod sender;
pub mod warnings;
pub mod wire;

mod link;
#[cfg(any(test, feature = "simulation"))]
pub mod model;

pub use hub::Hub;
