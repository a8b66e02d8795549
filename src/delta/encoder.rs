//! The encoder: chunks to the frames of a stream.
//!
//! Three steps, so that the costly one can run on many threads: [`PlainChunk`]
//! collects extents; [`PlainChunk::encode`] makes a frame of it, a pure function of
//! chunk, number and choice of compression; [`Encoder::push`] takes the frames in
//! order, counts them and runs the digest.

use crate::error::{Error, ErrorKind, Result};
use crate::format::stream::{
    CHUNK_DATA_MAX, CHUNK_EXTENTS_MAX, Encoding, Extent, ExtentKind, FrameKind, PREFIX_SIZE, Prefix,
    StreamHeader, Trailer, encode_preamble,
};
use bytes::{Bytes, BytesMut};

/// The zstd level: the fastest that still compresses like zstd.
const ZSTD_LEVEL: i32 = 1;

/// Extents on their way into one chunk, with their bytes.
#[derive(Clone, Debug, Default)]
pub struct PlainChunk {
    extents: Vec<Extent>,
    /// The bytes of the data extents, in pieces.
    data: Vec<Bytes>,
    data_len: usize,
    discard_bytes: u64,
}

impl PlainChunk {
    /// An empty one.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether nothing is in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.extents.is_empty()
    }

    /// How many more bytes of data go in; 0 also when the table is full.
    #[must_use]
    pub fn room(&self) -> u64 {
        if self.extents.len() >= CHUNK_EXTENTS_MAX { 0 } else { (CHUNK_DATA_MAX - self.data_len) as u64 }
    }

    /// Whether another discard goes in.
    #[must_use]
    pub fn has_entry(&self) -> bool {
        self.extents.len() < CHUNK_EXTENTS_MAX
    }

    /// Adds bytes at `offset`; the caller has asked for [`Self::room`]. What follows
    /// the previous extent without a gap joins it.
    pub fn data(&mut self, offset: u64, bytes: &[u8]) {
        self.piece(offset, Bytes::copy_from_slice(bytes));
    }

    /// The same, without a copy.
    pub fn piece(&mut self, offset: u64, bytes: Bytes) {
        let len = bytes.len() as u64;
        assert!(len <= self.room(), "a chunk is over-filled");
        self.data_len += bytes.len();
        self.data.push(bytes);
        match self.extents.last_mut() {
            Some(last) if last.kind == ExtentKind::Data && last.end() == offset => last.len += len,
            _ => self.extents.push(Extent { offset, len, kind: ExtentKind::Data }),
        }
    }

    /// Adds a discard of at most [`EXTENT_LEN_MAX`](crate::format::stream::EXTENT_LEN_MAX)
    /// bytes; the caller has asked for [`Self::has_entry`].
    pub fn discard(&mut self, offset: u64, len: u64) {
        assert!(self.has_entry(), "a chunk is over-filled");
        self.extents.push(Extent { offset, len, kind: ExtentKind::Discard });
        self.discard_bytes += len;
    }

    /// The frame with that number.
    ///
    /// # Errors
    /// `Io` when the compressor fails.
    pub fn encode(&self, number: u64, compress: bool) -> Result<Frame> {
        self.encode_into(BytesMut::new(), number, compress)
    }

    /// The same, in a buffer whose content does not matter.
    ///
    /// # Errors
    /// As for [`Self::encode`].
    pub fn encode_into(&self, mut bytes: BytesMut, number: u64, compress: bool) -> Result<Frame> {
        let mut packed = None;
        if compress && self.data_len > 0 {
            let tried = zstd::bulk::compress(&self.data.concat(), ZSTD_LEVEL)
                .map_err(|error| Error::os("can't compress a chunk", error))?;
            // A saving of less than 1/32 is not worth the receiver's time.
            packed = (tried.len() < self.data_len - self.data_len / 32).then_some(tried);
        }
        let encoding = if packed.is_some() { Encoding::Zstd } else { Encoding::Raw };
        let stored = packed.as_ref().map_or(self.data_len, Vec::len);
        let prefix = Prefix {
            kind: FrameKind::Chunk,
            encoding,
            number,
            extents: u32::try_from(self.extents.len()).map_err(too_long)?,
            stored: u32::try_from(stored).map_err(too_long)?,
            body_crc: 0,
        };
        bytes.clear();
        bytes.reserve(PREFIX_SIZE + prefix.body_size());
        bytes.resize(PREFIX_SIZE, 0);
        for extent in &self.extents {
            bytes.extend_from_slice(&extent.encode());
        }
        match &packed {
            Some(packed) => bytes.extend_from_slice(packed),
            None => self.data.iter().for_each(|piece| bytes.extend_from_slice(piece)),
        }
        close(&mut bytes, prefix);
        Ok(Frame { bytes, number, data_bytes: self.data_len as u64, discard_bytes: self.discard_bytes })
    }

    /// Empties it, keeping its memory.
    pub fn clear(&mut self) {
        self.extents.clear();
        self.data.clear();
        self.data_len = 0;
        self.discard_bytes = 0;
    }
}

fn too_long(_: std::num::TryFromIntError) -> Error {
    Error::new(ErrorKind::OutOfRange, "a chunk is too long")
}

/// Puts the prefix, with the checksum of the body, before the body.
fn close(bytes: &mut [u8], mut prefix: Prefix) {
    prefix.body_crc = crc32c::crc32c(&bytes[PREFIX_SIZE..]);
    bytes[..PREFIX_SIZE].copy_from_slice(&prefix.encode());
}

/// An encoded chunk, not yet part of the stream.
#[derive(Clone, Debug)]
pub struct Frame {
    bytes: BytesMut,
    number: u64,
    data_bytes: u64,
    discard_bytes: u64,
}

/// What must happen in order: numbers, counts, digest.
#[derive(Debug)]
pub struct Encoder {
    digest: blake3::Hasher,
    totals: Trailer,
}

impl Encoder {
    /// Starts a stream; the bytes are preamble and header.
    ///
    /// # Errors
    /// `Invalid` when the header contradicts itself.
    pub fn new(header: &StreamHeader) -> Result<(Self, Vec<u8>)> {
        let body = header.encode()?;
        let frame = frame(FrameKind::Header, 0, &body);
        let mut bytes = encode_preamble().to_vec();
        bytes.extend_from_slice(&frame);
        let mut digest = blake3::Hasher::new();
        digest.update(&bytes);
        Ok((Self { digest, totals: Trailer::default() }, bytes))
    }

    /// The number that the next chunk must carry.
    #[must_use]
    pub fn next_number(&self) -> u64 {
        self.totals.chunks + 1
    }

    /// Takes the next chunk; the bytes are what goes out.
    pub fn push(&mut self, frame: Frame) -> BytesMut {
        assert_eq!(frame.number, self.next_number(), "a chunk out of order");
        self.totals.chunks += 1;
        self.totals.data_bytes += frame.data_bytes;
        self.totals.discard_bytes += frame.discard_bytes;
        self.digest.update(&frame.bytes);
        frame.bytes
    }

    /// Ends the stream; the bytes are the trailer.
    #[must_use]
    pub fn finish(mut self) -> (Vec<u8>, Trailer) {
        self.totals.digest = self.digest.finalize().into();
        let number = self.totals.chunks + 1;
        (frame(FrameKind::Trailer, number, &self.totals.encode()), self.totals)
    }
}

/// A frame without a table; its body is short.
fn frame(kind: FrameKind, number: u64, body: &[u8]) -> Vec<u8> {
    let stored = u32::try_from(body.len()).unwrap_or(u32::MAX);
    let prefix = Prefix { kind, encoding: Encoding::Raw, number, extents: 0, stored, body_crc: 0 };
    let mut bytes = vec![0; PREFIX_SIZE];
    bytes.extend_from_slice(body);
    close(&mut bytes, prefix);
    bytes
}
