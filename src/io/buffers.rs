//! Buffers that are used again when nobody holds a part of them any more.
//!
//! Memory from the kernel for every megabyte that passes through costs more than what is
//! done with it. A buffer is never taken while anybody can still see it.

use bytes::{Bytes, BytesMut};

/// Buffers that are kept: as many as are under way at a time.
const KEPT_MAX: usize = 8;
/// A shorter one is not worth keeping, in bytes.
const KEPT_BYTES_MIN: usize = 64 << 10;

/// The buffers of one task that moves much data.
#[derive(Debug, Default)]
pub struct Buffers(Vec<Bytes>);

impl Buffers {
    /// A buffer with whatever was in it.
    #[must_use]
    pub fn take(&mut self) -> BytesMut {
        let free = self.0.iter().position(Bytes::is_unique);
        free.and_then(|index| self.0.swap_remove(index).try_into_mut().ok()).unwrap_or_default()
    }

    /// The same with that length.
    #[must_use]
    pub fn take_len(&mut self, len: usize) -> BytesMut {
        let mut buffer = self.take();
        buffer.resize(len, 0);
        buffer
    }

    /// The buffer is filled and shared from now on.
    pub fn share(&mut self, buffer: BytesMut) -> Bytes {
        let bytes = buffer.freeze();
        if self.0.len() < KEPT_MAX && bytes.len() >= KEPT_BYTES_MIN {
            self.0.push(bytes.clone());
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_that_somebody_holds_is_not_taken() {
        let mut buffers = Buffers::default();
        let mut first = buffers.take_len(KEPT_BYTES_MIN);
        first.fill(1);
        let held = buffers.share(first).slice(10..20);
        let mut second = buffers.take_len(KEPT_BYTES_MIN);
        second.fill(2);
        assert_eq!(held[..], [1; 10]);
        drop(held);
        let third = buffers.take_len(KEPT_BYTES_MIN);
        assert!(third.iter().all(|byte| *byte == 1), "it is the first one again");
        drop(buffers.share(second));
        assert_eq!(buffers.0.len(), 1);
    }
}
