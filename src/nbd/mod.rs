//! The NBD server: handshake, transmission, exports.
//!
//! A connection lives in three steps. An accept thread takes it ([`server`]), a short
//! thread of its own negotiates ([`handshake`], a state machine without I/O), and then
//! the socket moves to the thread of the export's engine ([`transmission`]), which
//! answers requests for a [`crate::engine::device::Device`]; `command` knows what each of
//! them means. Bytes on the wire are the business of [`proto`] and [`reply`] alone.
//!
//! What a client sends never panics the server and never takes more memory than the
//! limits say; a client that misbehaves loses its own connection and nothing else.
//! Protocol: <https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md>.

pub mod client;
mod command;
pub mod exports;
pub mod handshake;
mod intake;
mod listen;
pub mod memory;
pub mod metacontext;
mod outbox;
pub mod proto;
pub mod reply;
#[doc(hidden)]
pub mod script;
pub mod server;
pub mod terms;
pub mod transmission;
pub(crate) mod uri;

#[cfg(test)]
mod tests;

pub use exports::{Exports, Found, Serve};
pub use listen::Listen;
pub use server::{Limits, Server};
