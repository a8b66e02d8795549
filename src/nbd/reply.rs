//! Replies to requests, from what a device answered to bytes in an outbox.
//!
//! A reply is queued whole, in one go, when its last error has been seen; so every
//! content chunk may carry the flag that says that it is the last one.

use super::outbox::Outbox;
use super::proto::{self, STRING_SIZE_MAX, chunk, errno};
use crate::engine::device::{Extent, Piece, ReadNow};
use bytes::{BufMut, Bytes, BytesMut};

/// The most extents in the reply for one metadata context: half a MiB of them.
pub const EXTENTS_MAX: usize = 64 << 10;

/// Zeros, for holes that must be spelled out.
static ZEROS: [u8; 256 << 10] = [0; 256 << 10];

/// How replies look on this connection, and to which request.
#[derive(Clone, Copy, Debug)]
pub struct Reply {
    /// Structured replies were negotiated.
    pub structured: bool,
    /// The client's number of the request.
    pub cookie: u64,
}

/// An error, as a client is told it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// One of [`errno`].
    pub errno: u32,
    /// A sentence for a person; clients with structured replies get it.
    pub text: String,
}

impl Refusal {
    /// That errno, with a sentence.
    #[must_use]
    pub fn new(errno: u32, text: impl Into<String>) -> Self {
        Self { errno, text: text.into() }
    }
}

impl Reply {
    /// It is done; the request asked for no data.
    pub fn done(self, out: &mut Outbox) {
        proto::put_simple_reply(out.head(), 0, self.cookie);
    }

    /// It failed.
    pub fn refused(self, out: &mut Outbox, refusal: &Refusal) {
        if !self.structured {
            proto::put_simple_reply(out.head(), refusal.errno, self.cookie);
            return;
        }
        let text = proto::cut(&refusal.text, STRING_SIZE_MAX).as_bytes();
        // At most 4096 bytes; the fallbacks are never taken.
        let (len, len_on_wire) =
            (u32::try_from(text.len()).unwrap_or(0), u16::try_from(text.len()).unwrap_or(0));
        let head = out.head();
        proto::put_chunk_header(head, true, chunk::ERROR, self.cookie, 6 + len);
        head.put_u32(refusal.errno);
        head.put_u16(len_on_wire);
        head.put_slice(text);
    }

    /// What `read` shows, or appends to the buffer it is given (true); if it would have to
    /// wait, nothing is queued.
    ///
    /// # Errors
    /// Those of `read`; nothing is queued then.
    pub fn read_now<E>(
        self,
        out: &mut Outbox,
        offset: u64,
        len: u32,
        read: impl FnOnce(&mut BytesMut) -> Result<ReadNow, E>,
    ) -> Result<bool, E> {
        let buffer = out.room(len as usize + proto::CHUNK_HEADER_SIZE + 8);
        let before = buffer.len();
        if self.structured {
            proto::put_chunk_header(buffer, true, chunk::OFFSET_DATA, self.cookie, len.saturating_add(8));
            buffer.put_u64(offset);
        } else {
            proto::put_simple_reply(buffer, 0, self.cookie);
        }
        match read(buffer) {
            Ok(ReadNow::Appended) => Ok(true),
            Ok(ReadNow::Shown(shown)) => {
                out.push(shown);
                Ok(true)
            }
            other => {
                buffer.truncate(before);
                other.map(|_| false)
            }
        }
    }

    /// What a read found. `whole`: in one piece (the flag `DF`).
    ///
    /// # Errors
    /// `EIO` when the pieces do not add up to `len`; nothing was queued then.
    pub fn read(
        self,
        out: &mut Outbox,
        offset: u64,
        len: u32,
        whole: bool,
        pieces: Vec<Piece>,
    ) -> Result<(), Refusal> {
        if pieces.iter().map(piece_len).sum::<u64>() != u64::from(len) {
            return Err(Refusal::new(errno::EIO, "the device gave another length than it was asked for"));
        }
        if !self.structured {
            proto::put_simple_reply(out.head(), 0, self.cookie);
            put_expanded(out, pieces);
        } else if len == 0 {
            proto::put_chunk_header(out.head(), true, chunk::NONE, self.cookie, 0);
        } else if whole && pieces.iter().any(|piece| matches!(piece, Piece::Data(_))) {
            self.put_data_head(out, true, offset, u64::from(len));
            put_expanded(out, pieces);
        } else {
            self.put_chunks(out, offset, u64::from(len), pieces);
        }
        Ok(())
    }

    /// One chunk for each run of data and each run of holes.
    fn put_chunks(self, out: &mut Outbox, offset: u64, len: u64, pieces: Vec<Piece>) {
        let end = offset + len;
        let mut at = offset;
        let mut pieces = pieces.into_iter().filter(|piece| piece_len(piece) > 0).peekable();
        while let Some(piece) = pieces.next() {
            let start = at;
            at += piece_len(&piece);
            match piece {
                Piece::Hole(_) => {
                    while let Some(Piece::Hole(more)) =
                        pieces.next_if(|piece| matches!(piece, Piece::Hole(_)))
                    {
                        at += more;
                    }
                    let head = out.head();
                    proto::put_chunk_header(head, at == end, chunk::OFFSET_HOLE, self.cookie, 12);
                    head.put_u64(start);
                    head.put_u32(u32::try_from(at - start).unwrap_or(u32::MAX));
                }
                Piece::Data(data) => {
                    let mut run = vec![data];
                    while let Some(Piece::Data(more)) =
                        pieces.next_if(|piece| matches!(piece, Piece::Data(_)))
                    {
                        at += more.len() as u64;
                        run.push(more);
                    }
                    self.put_data_head(out, at == end, start, at - start);
                    run.into_iter().for_each(|data| out.push(data));
                }
            }
        }
    }

    fn put_data_head(self, out: &mut Outbox, done: bool, offset: u64, len: u64) {
        let len = u32::try_from(len + 8).unwrap_or(u32::MAX);
        let head = out.head();
        proto::put_chunk_header(head, done, chunk::OFFSET_DATA, self.cookie, len);
        head.put_u64(offset);
    }

    /// What is where: one chunk for each context, by its number. `one`: only the first
    /// extent of each (the flag `REQ_ONE`).
    ///
    /// # Errors
    /// `EIO` when the device found no extent; nothing was queued then.
    pub fn status(
        self,
        out: &mut Outbox,
        len: u32,
        one: bool,
        contexts: &[(u32, Vec<Extent>)],
    ) -> Result<(), Refusal> {
        let nothing = |(_, extents): &(u32, Vec<Extent>)| extents.iter().all(|extent| extent.len == 0);
        if contexts.is_empty() || contexts.iter().any(nothing) {
            return Err(Refusal::new(errno::EIO, "the device could not say what is there"));
        }
        for (at, (id, extents)) in contexts.iter().enumerate() {
            let extents_max = if one { 1 } else { EXTENTS_MAX };
            let runs = clip(extents, len, extents_max);
            let head = out.head();
            // At most EXTENTS_MAX runs; the fallback is never taken.
            let size = u32::try_from(4 + runs.len() * 8).unwrap_or(u32::MAX);
            let done = at + 1 == contexts.len();
            proto::put_chunk_header(head, done, chunk::BLOCK_STATUS, self.cookie, size);
            head.put_u32(*id);
            for (len, flags) in runs {
                head.put_u32(len);
                head.put_u32(flags);
            }
        }
        Ok(())
    }
}

/// The first extents, merged, that lie within `len` bytes.
fn clip(extents: &[Extent], len: u32, extents_max: usize) -> Vec<(u32, u32)> {
    let mut runs: Vec<(u32, u32)> = Vec::with_capacity(extents.len().min(extents_max));
    let mut left = len;
    for extent in extents {
        let here = u32::try_from(extent.len).unwrap_or(u32::MAX).min(left);
        if here == 0 {
            continue;
        }
        left -= here;
        let is_full = runs.len() == extents_max;
        match runs.last_mut() {
            Some(last) if last.1 == extent.flags => last.0 += here,
            _ if is_full => break,
            _ => runs.push((here, extent.flags)),
        }
    }
    runs
}

fn piece_len(piece: &Piece) -> u64 {
    match piece {
        Piece::Data(data) => data.len() as u64,
        Piece::Hole(len) => *len,
    }
}

/// The pieces as bytes, holes as zeros that exist once in memory.
fn put_expanded(out: &mut Outbox, pieces: Vec<Piece>) {
    for piece in pieces {
        match piece {
            Piece::Data(data) => out.push(data),
            Piece::Hole(mut left) => {
                while left > 0 {
                    let here = usize::try_from(left).unwrap_or(usize::MAX).min(ZEROS.len());
                    out.push(Bytes::from_static(&ZEROS[..here]));
                    left -= here as u64;
                }
            }
        }
    }
}
