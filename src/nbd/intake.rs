//! What was received and not yet understood, cut into requests without copying.
//!
//! A payload that lies whole in one receive is a slice of that buffer. One that does
//! not is gathered in a buffer of its own size, each byte copied once.

use super::proto::Request;
use bytes::{Bytes, BytesMut};

/// The received bytes of one connection.
#[derive(Debug, Default)]
pub struct Intake {
    /// What was received last.
    chunk: BytesMut,
    /// The start of a request header whose end was not received yet.
    partial: [u8; Request::SIZE],
    partial_len: usize,
}

impl Intake {
    /// Starts with bytes that came with something else.
    pub fn new(chunk: BytesMut) -> Self {
        Self { chunk, ..Self::default() }
    }

    /// Takes newly received bytes; all that came before was taken out already, but for
    /// the start of a header.
    pub fn feed(&mut self, chunk: BytesMut) {
        debug_assert!(self.chunk.is_empty(), "received bytes would be lost");
        self.chunk = chunk;
    }

    /// Whether a part of a header is here.
    pub fn is_in_header(&self) -> bool {
        self.partial_len > 0
    }

    /// The next header, if all of it is here.
    pub fn header(&mut self) -> Option<[u8; Request::SIZE]> {
        if self.partial_len == 0
            && let Some(header) = self.chunk.first_chunk()
        {
            let header = *header;
            let _ = self.chunk.split_to(Request::SIZE);
            return Some(header);
        }
        let here = self.chunk.len().min(Request::SIZE - self.partial_len);
        self.partial[self.partial_len..][..here].copy_from_slice(&self.chunk.split_to(here));
        self.partial_len += here;
        if self.partial_len < Request::SIZE {
            return None;
        }
        self.partial_len = 0;
        Some(self.partial)
    }

    /// `len` bytes, if the last receive has them all.
    pub fn payload(&mut self, len: usize) -> Option<Bytes> {
        (self.chunk.len() >= len).then(|| self.chunk.split_to(len).freeze())
    }

    /// At most `len` bytes of what the last receive has left.
    pub fn some(&mut self, len: usize) -> BytesMut {
        self.chunk.split_to(len.min(self.chunk.len()))
    }
}
