//! The receiver: the chunks of a stream go to a target, in order.
//!
//! The target alone decides what is durable and when the snapshot appears; the
//! receiver promises it that `commit` comes only after the whole stream has been
//! verified, and that what `progress` covers has been handed over completely. It awaits
//! the target; its input it reads on the thread that runs it.

use super::decoder::{Chunk, Decoder};
use crate::error::{Error, ErrorKind, Result};
use crate::format::stream::{ExtentKind, StreamHeader, Trailer};
use bytes::Bytes;
use std::io::Read;

/// Data between two calls of [`Target::progress`], in bytes: each of them waits for the disk.
const PROGRESS_BYTES: u64 = 64 << 20;
/// What an extent counts for besides its data, so that discards make progress too.
const EXTENT_COST: u64 = 512;

/// What a target answers to a stream's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begin {
    /// It holds the target snapshot already, by identity: nothing is to be done.
    AlreadyHave,
    /// It takes the stream. Every byte below `durable` arrived earlier, from a stream
    /// of the same target and base (0: nothing yet), and is left out.
    Resume {
        /// A byte offset in the volume.
        durable: u64,
    },
}

/// What a stream is applied to.
pub trait Target {
    /// Takes or refuses the stream. Nothing that the volume shows changes.
    ///
    /// # Errors
    /// `Conflict` for a missing base, a role, a name taken by another identity, or
    /// another receive under way.
    fn begin(&mut self, header: &StreamHeader) -> impl Future<Output = Result<Begin>>;

    /// Bytes for the volume, whole blocks, ascending.
    ///
    /// # Errors
    /// Whatever writing meets; the receive ends and can be resumed.
    fn data(&mut self, offset: u64, bytes: Bytes) -> impl Future<Output = Result<()>>;

    /// The range reads as zeros afterwards; whole blocks, ascending.
    ///
    /// # Errors
    /// As for [`Self::data`].
    fn discard(&mut self, offset: u64, len: u64) -> impl Future<Output = Result<()>>;

    /// Everything below byte `below` has been handed over: the target makes it durable
    /// and remembers the number, so that a later stream can start there.
    ///
    /// # Errors
    /// As for [`Self::data`].
    fn progress(&mut self, below: u64) -> impl Future<Output = Result<()>>;

    /// What this stream handed over can't be trusted, though every chunk looked good:
    /// only what was below `durable` when it began still counts. As `progress`, but
    /// the number gets smaller.
    ///
    /// # Errors
    /// As for [`Self::data`].
    fn rewind(&mut self, durable: u64) -> impl Future<Output = Result<()>> {
        self.progress(durable)
    }

    /// The stream is complete and verified: the snapshot appears, in one step, with
    /// the header's size.
    ///
    /// # Errors
    /// As for [`Self::data`].
    fn commit(&mut self, trailer: &Trailer) -> impl Future<Output = Result<()>>;
}

/// How a receive went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The stream's header.
    pub header: StreamHeader,
    /// The target was there before; nothing was done.
    pub already: bool,
    /// Bytes of data handed to the target by this call.
    pub data_bytes: u64,
    /// Bytes discarded by this call.
    pub discard_bytes: u64,
}

/// Applies the stream in `input` to `target`, to the end of the input.
///
/// # Errors
/// What is wrong with the stream (see [`Decoder::new`]), or what the target says.
/// Nothing is committed then; what the target has made durable can be resumed.
pub async fn receive<T: Target>(input: &mut dyn Read, target: &mut T) -> Result<Outcome> {
    let mut decoder = Decoder::new(input)?;
    let header = decoder.header().clone();
    let mut outcome = Outcome { header, already: false, data_bytes: 0, discard_bytes: 0 };
    let header = &outcome.header;
    let durable = match target.begin(header).await? {
        Begin::Resume { durable } => durable,
        Begin::AlreadyHave => {
            // The sender must not take our closing for a failure.
            decoder.drain();
            outcome.already = true;
            return Ok(outcome);
        }
    };
    if header.resume_from > durable {
        return Err(Error::conflict(format!(
            "the stream starts at byte {} of the volume, but only what is below byte {durable} has arrived",
            header.resume_from
        ))
        .hint("make the stream again with the token of 'receive VOL --status'"));
    }
    let mut apply =
        Apply { target, durable, below: durable, reported: durable, since: 0, data: 0, discards: 0 };
    loop {
        match decoder.next_chunk() {
            Ok(Some(chunk)) => apply.chunk(&chunk).await?,
            Ok(None) => break,
            Err(error) => return Err(apply.broken(decoder.whole_is_damaged(), error).await),
        }
    }
    let trailer = decoder.trailer().cloned().unwrap_or_default();
    apply.target.commit(&trailer).await?;
    (outcome.data_bytes, outcome.discard_bytes) = (apply.data, apply.discards);
    Ok(outcome)
}

/// The chunks' way to the target.
struct Apply<'a, T> {
    target: &'a mut T,
    /// Below this the target had everything when it began.
    durable: u64,
    /// Below this everything has been handed over.
    below: u64,
    /// What the target has been told of that.
    reported: u64,
    /// The work since then, in bytes.
    since: u64,
    data: u64,
    discards: u64,
}

impl<T: Target> Apply<'_, T> {
    async fn chunk(&mut self, chunk: &Chunk) -> Result<()> {
        for (extent, mut bytes) in chunk.pieces() {
            if extent.end() <= self.durable {
                continue;
            }
            let offset = extent.offset.max(self.durable);
            let len = extent.end() - offset;
            match extent.kind {
                ExtentKind::Data => {
                    // Less than the piece, which is in memory.
                    let skip = usize::try_from(offset - extent.offset).unwrap_or(usize::MAX);
                    self.target.data(offset, bytes.split_off(skip)).await?;
                    self.data += len;
                    self.since += len;
                }
                ExtentKind::Discard => {
                    self.target.discard(offset, len).await?;
                    self.discards += len;
                }
            }
            self.since += EXTENT_COST;
            self.below = extent.end();
        }
        if self.since >= PROGRESS_BYTES {
            self.report().await?;
        }
        Ok(())
    }

    async fn report(&mut self) -> Result<()> {
        if self.below > self.reported {
            self.target.progress(self.below).await?;
            self.reported = self.below;
        }
        self.since = 0;
        Ok(())
    }

    /// The stream broke: what arrived is kept if it is good. The error of the stream
    /// is the one that counts, whatever the target says now.
    async fn broken(&mut self, whole_is_damaged: bool, error: Error) -> Error {
        let kept = match whole_is_damaged {
            true => self.target.rewind(self.durable).await,
            false => self.report().await,
        };
        match kept {
            Err(second) if error.kind() == ErrorKind::Interrupted => {
                error.hint(format!("what arrived last was not kept: {second}"))
            }
            _ => error,
        }
    }
}
