//! The decoder: a stream's bytes to checked chunks.
//!
//! What it hands out has been verified: the frame's checksums and number, the order
//! and bounds of its extents, the length of its data. Memory is bounded by one chunk,
//! whatever the bytes say. Only [`Decoder::next_chunk`] returning none has verified
//! the stream as a whole: counts, digest, and that nothing follows.

use crate::error::{Error, ErrorKind, Result};
use crate::format::stream::{
    CHUNK_DATA_MAX, EXTENT_SIZE, Encoding, Extent, ExtentKind, FrameKind, PREAMBLE_SIZE, PREFIX_SIZE, Prefix,
    StreamHeader, Trailer, check_preamble,
};
use crate::io::buffers::Buffers;
use bytes::{Bytes, BytesMut};
use std::io::Read;

/// A verified chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Ascending.
    pub extents: Vec<Extent>,
    /// The bytes of the data extents, one after the other.
    pub data: Bytes,
}

impl Chunk {
    /// The extents, each with its bytes (none for a discard).
    pub fn pieces(&self) -> impl Iterator<Item = (Extent, Bytes)> + '_ {
        let mut at = 0;
        self.extents.iter().map(move |extent| match extent.kind {
            ExtentKind::Discard => (*extent, Bytes::new()),
            ExtentKind::Data => {
                // Together they are `data.len()`, as `check_extents` has seen.
                let len = usize::try_from(extent.len).unwrap_or(usize::MAX);
                at += len;
                (*extent, self.data.slice(at - len..at))
            }
        })
    }
}

/// Reads one stream.
pub struct Decoder<'a> {
    input: &'a mut dyn Read,
    header: StreamHeader,
    digest: blake3::Hasher,
    totals: Trailer,
    /// The next extent starts here or above.
    floor: u64,
    buffers: Buffers,
    trailer: Option<Trailer>,
    damaged: bool,
}

fn truncated(what: &str) -> Error {
    Error::new(ErrorKind::Interrupted, format!("the stream ends {what}"))
        .hint("what arrived is kept: see 'receive VOL --status' for the token to resume with")
}

/// Fills the buffer; `what` says where the stream is, should it end.
fn fill(input: &mut dyn Read, buffer: &mut [u8], what: &str) -> Result<()> {
    let mut at = 0;
    while at < buffer.len() {
        match input.read(&mut buffer[at..]) {
            Ok(0) => return Err(truncated(what)),
            Ok(count) => at += count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(from_reader(error)),
        }
    }
    Ok(())
}

/// What a failed read means: a stream made in this process carries the crate's own
/// error inside; a peer that vanished is an interruption.
#[must_use]
pub fn from_reader(error: std::io::Error) -> Error {
    use std::io::ErrorKind as K;
    match error.kind() {
        K::UnexpectedEof | K::BrokenPipe | K::ConnectionReset | K::ConnectionAborted | K::TimedOut => {
            truncated("too early, the other side is gone")
        }
        _ => match error.downcast::<Error>() {
            Ok(inner) => inner,
            Err(error) => Error::os("can't read the stream", error),
        },
    }
}

impl<'a> Decoder<'a> {
    /// Reads preamble and header.
    ///
    /// # Errors
    /// `Invalid`: no stream. `Unsupported`: a newer one. `Corrupt`: damaged.
    /// `Interrupted`: it ends here.
    pub fn new(input: &'a mut dyn Read) -> Result<Self> {
        let mut preamble = [0; PREAMBLE_SIZE];
        fill(input, &mut preamble[..8], "before it begins")?;
        if preamble[..8] == crate::format::stream::MAGIC {
            fill(input, &mut preamble[8..], "in its preamble")?;
        }
        check_preamble(&preamble)?;
        let mut digest = blake3::Hasher::new();
        digest.update(&preamble);
        let (prefix, raw) = read_prefix(input, 0, "in its header")?;
        if prefix.kind != FrameKind::Header {
            return Err(Error::corrupt("the stream does not begin with a header"));
        }
        let mut body = vec![0; prefix.body_size()];
        read_body(input, &prefix, &mut body)?;
        digest.update(&raw);
        digest.update(&body);
        let header = StreamHeader::decode(&body)?;
        let floor = header.resume_from;
        Ok(Self {
            input,
            header,
            digest,
            totals: Trailer::default(),
            floor,
            buffers: Buffers::default(),
            trailer: None,
            damaged: false,
        })
    }

    /// What the stream says of itself.
    #[must_use]
    pub fn header(&self) -> &StreamHeader {
        &self.header
    }

    /// The verified trailer, once [`Self::next_chunk`] has returned none.
    #[must_use]
    pub fn trailer(&self) -> Option<&Trailer> {
        self.trailer.as_ref()
    }

    /// Whether an error of [`Self::next_chunk`] speaks against the stream as a whole,
    /// chunks included that were good by themselves.
    #[must_use]
    pub fn whole_is_damaged(&self) -> bool {
        self.damaged
    }

    /// Data and discards so far, in bytes.
    #[must_use]
    pub fn progress(&self) -> (u64, u64) {
        (self.totals.data_bytes, self.totals.discard_bytes)
    }

    /// The next chunk; none after the trailer, with everything verified.
    ///
    /// # Errors
    /// As for [`Self::new`]; after an error the decoder is of no more use.
    pub fn next_chunk(&mut self) -> Result<Option<Chunk>> {
        if self.trailer.is_some() {
            return Ok(None);
        }
        let number = self.totals.chunks + 1;
        let (prefix, raw) = read_prefix(self.input, number, "before its trailer")?;
        let mut body = self.buffers.take_len(prefix.body_size());
        read_body(self.input, &prefix, &mut body)?;
        match prefix.kind {
            FrameKind::Header => Err(Error::corrupt("the stream has a second header")),
            FrameKind::Trailer => {
                let trailer = Trailer::decode(&body)?;
                self.check_trailer(&trailer)?;
                self.trailer = Some(trailer);
                Ok(None)
            }
            FrameKind::Chunk => {
                self.digest.update(&raw);
                self.digest.update(&body);
                let chunk =
                    self.chunk(&prefix, body).map_err(|error| error.context(format!("chunk {number}")))?;
                self.totals.chunks = number;
                Ok(Some(chunk))
            }
        }
    }

    /// Reads the rest of the input and forgets it.
    pub fn drain(&mut self) {
        let _ = std::io::copy(self.input, &mut std::io::sink());
    }

    fn chunk(&mut self, prefix: &Prefix, body: BytesMut) -> Result<Chunk> {
        let body = self.buffers.share(body);
        let stored = body.slice(prefix.table_size()..);
        let table = &body[..prefix.table_size()];
        let mut extents = Vec::with_capacity(prefix.extents as usize);
        let (mut floor, mut data_bytes, mut discard_bytes) = (self.floor, 0, 0);
        for entry in table.as_chunks::<EXTENT_SIZE>().0 {
            let extent = Extent::decode(entry)?;
            check_extent(&self.header, floor, &extent)?;
            floor = extent.end();
            match extent.kind {
                ExtentKind::Data => data_bytes += extent.len,
                ExtentKind::Discard => discard_bytes += extent.len,
            }
            extents.push(extent);
        }
        let data_len = usize::try_from(data_bytes).unwrap_or(usize::MAX);
        if data_len > CHUNK_DATA_MAX {
            return Err(Error::invalid("more data than a chunk may hold"));
        }
        let data = match prefix.encoding {
            Encoding::Raw if stored.len() == data_len => stored,
            Encoding::Zstd if stored.len() < data_len && self.header.compressed => {
                let mut out = self.buffers.take_len(data_len);
                // Decompressing into a buffer of known size needs no window.
                let count = zstd::bulk::Decompressor::new()
                    .and_then(|mut zstd| zstd.decompress_to_buffer(&stored, &mut out[..]))
                    .map_err(|_| Error::corrupt("the data can't be decompressed"))?;
                if count != data_len {
                    return Err(Error::corrupt("the data decompresses to another length"));
                }
                self.buffers.share(out)
            }
            _ => return Err(Error::invalid("the data's length does not match its extents")),
        };
        self.floor = floor;
        self.totals.data_bytes += data_bytes;
        self.totals.discard_bytes += discard_bytes;
        Ok(Chunk { extents, data })
    }

    fn check_trailer(&mut self, trailer: &Trailer) -> Result<()> {
        self.damaged = true;
        let digest: [u8; 32] = self.digest.finalize().into();
        if *trailer != (Trailer { digest, ..self.totals.clone() }) {
            return Err(Error::corrupt("the stream does not match the digest in its trailer"));
        }
        let totals = [
            (self.header.data_bytes, trailer.data_bytes),
            (self.header.discard_bytes, trailer.discard_bytes),
        ];
        if totals.into_iter().any(|(said, was)| said.is_some_and(|said| said != was)) {
            return Err(Error::corrupt("the stream does not hold as much as its header says"));
        }
        let mut more = [0];
        loop {
            match self.input.read(&mut more) {
                Ok(0) => {
                    self.damaged = false;
                    return Ok(());
                }
                Ok(_) => return Err(Error::corrupt("more bytes follow the stream's trailer")),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(from_reader(error)),
            }
        }
    }
}

pub(super) fn read_prefix(
    input: &mut dyn Read,
    number: u64,
    what: &str,
) -> Result<(Prefix, [u8; PREFIX_SIZE])> {
    let mut raw = [0; PREFIX_SIZE];
    fill(input, &mut raw, what)?;
    let prefix = Prefix::decode(&raw)?;
    if prefix.number != number {
        return Err(Error::corrupt(format!(
            "frame {number} of the stream is missing or out of order: frame {} is in its place",
            prefix.number
        )));
    }
    Ok((prefix, raw))
}

/// Fills `body`, whose length is the body's.
pub(super) fn read_body(input: &mut dyn Read, prefix: &Prefix, body: &mut [u8]) -> Result<()> {
    fill(input, body, "within a frame")?;
    if crc32c::crc32c(body) != prefix.body_crc {
        return Err(Error::corrupt(format!(
            "frame {} of the stream does not match its checksum",
            prefix.number
        )));
    }
    Ok(())
}

fn check_extent(header: &StreamHeader, floor: u64, extent: &Extent) -> Result<()> {
    let size = header.geometry.size;
    let block = u64::from(header.geometry.block_size);
    if extent.offset < floor {
        return Err(Error::corrupt(format!("the extent at byte {} is out of order", extent.offset)));
    }
    if extent.end() > size {
        return Err(Error::invalid(format!(
            "the extent at byte {} reaches past the volume's end",
            extent.offset
        )));
    }
    if !extent.offset.is_multiple_of(block) || (!extent.end().is_multiple_of(block) && extent.end() != size) {
        return Err(Error::invalid(format!(
            "the extent at byte {} is not made of whole blocks",
            extent.offset
        )));
    }
    Ok(())
}
