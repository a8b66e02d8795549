//! The snapshot delta on its way: making and reading the stream.
//!
//! [`sender`] makes a stream of a [`Source`]; [`receiver`] applies one to a [`Target`].
//! Both know no store: what they read and write stands behind the two traits, which they
//! await.

pub mod decoder;
pub mod digest;
pub mod encoder;
pub mod receiver;
pub mod relay;
pub mod sender;
pub mod token;

pub use decoder::{Chunk, Decoder};
pub use encoder::{Encoder, PlainChunk};
pub use receiver::{Begin, Outcome, Target, receive};
pub use relay::Relay;
pub use sender::{FrameMaker, SendStream, Source};
pub use token::ResumeToken;

pub use crate::format::stream::{Extent, ExtentKind, SnapshotId, StreamHeader, Trailer};

#[cfg(test)]
mod golden;
#[cfg(test)]
pub(crate) mod tests;
