//! Replies that wait to be sent, and what each of them holds until it is.
//!
//! Headers gather in one buffer, data stays where it is; so many small replies become
//! one piece of a vectored send. A request's share of the connection's limits is given
//! back when the last byte of its reply has been sent, not before: a client that takes
//! no replies runs into its own limit.

use crate::io::Part;
use bytes::BytesMut;
use std::collections::VecDeque;

/// What is allocated at once for headers and for data that was read at once.
const ROOM_BYTES: usize = 256 << 10;

/// What a request holds of its connection's limits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// Requests.
    pub requests: usize,
    /// Bytes of payload, in either direction.
    pub bytes: u64,
}

/// The replies of one connection on their way out.
#[derive(Debug, Default)]
pub struct Outbox {
    parts: VecDeque<Part>,
    /// Headers behind the last part.
    head: BytesMut,
    /// Where replies end, counted from the first byte ever queued, and what they hold.
    ends: VecDeque<(u64, Share)>,
    /// Bytes in `parts` and all that were taken before.
    queued: u64,
    taken: u64,
}

impl Outbox {
    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty() && self.head.is_empty()
    }

    /// How many replies end in what waits.
    pub fn replies(&self) -> usize {
        self.ends.len()
    }

    /// Where headers are appended.
    pub fn head(&mut self) -> &mut BytesMut {
        &mut self.head
    }

    /// The same with room for so many bytes, so that nothing that is there has to move.
    pub fn room(&mut self, bytes: usize) -> &mut BytesMut {
        if self.head.capacity() - self.head.len() < bytes {
            self.flush_head();
            self.head.reserve(bytes.max(ROOM_BYTES));
        }
        &mut self.head
    }

    /// Appends data, without copying it.
    pub fn push(&mut self, data: impl Into<Part>) {
        let data = data.into();
        if data.is_empty() {
            return;
        }
        self.flush_head();
        self.queued += data.len() as u64;
        self.parts.push_back(data);
    }

    /// A reply ends here.
    pub fn end(&mut self, share: Share) {
        self.ends.push_back((self.queued + self.head.len() as u64, share));
    }

    /// Takes what one send shall carry: at most so many parts and about so many bytes.
    pub fn take(&mut self, parts_max: usize, bytes_max: usize) -> Vec<Part> {
        self.flush_head();
        let mut bytes = 0;
        let mut batch = Vec::with_capacity(self.parts.len().min(parts_max));
        while batch.len() < parts_max && bytes < bytes_max {
            let Some(part) = self.parts.pop_front() else { break };
            bytes += part.len();
            batch.push(part);
        }
        self.taken += bytes as u64;
        batch
    }

    /// What the replies held whose last byte has been taken.
    pub fn release(&mut self) -> Share {
        let mut released = Share::default();
        while let Some((end, share)) = self.ends.front()
            && *end <= self.taken
        {
            released.requests += share.requests;
            released.bytes += share.bytes;
            self.ends.pop_front();
        }
        released
    }

    /// Forgets all that waits; it counts as taken.
    pub fn discard(&mut self) {
        self.flush_head();
        self.parts.clear();
        self.taken = self.queued;
    }

    fn flush_head(&mut self) {
        if !self.head.is_empty() {
            self.queued += self.head.len() as u64;
            self.parts.push_back(self.head.split().freeze().into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    #[test]
    fn shares_come_back_when_all_of_a_reply_was_taken() {
        let mut out = Outbox::default();
        out.head().extend_from_slice(b"ab");
        out.end(Share { requests: 1, bytes: 10 });
        out.head().extend_from_slice(b"cd");
        out.push(Bytes::from_static(b"data"));
        out.end(Share { requests: 1, bytes: 20 });
        assert!(matches!(&out.take(1, usize::MAX)[..], [Part::Bytes(bytes)] if bytes[..] == *b"abcd"));
        assert_eq!(out.release(), Share { requests: 1, bytes: 10 });
        assert_eq!(out.release(), Share::default());
        out.discard();
        assert!(out.is_empty());
        assert_eq!(out.release(), Share { requests: 1, bytes: 20 });
    }
}
