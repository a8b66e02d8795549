//! The relay: passes a stream on frame by frame, without opening the chunks.
//!
//! Who ships a stream that another part made sees its header, its progress and
//! whether it is complete; the checks of the content are the receiver's.

use super::decoder::{Decoder, read_body, read_prefix};
use crate::error::Result;
use crate::format::stream::{EXTENT_SIZE, Extent, ExtentKind, FrameKind, PREFIX_SIZE, StreamHeader};
use std::io::Read;

/// A stream on its way through.
pub struct Relay<'a> {
    input: &'a mut dyn Read,
    header: StreamHeader,
    /// What has not been passed on before the first frame: preamble and header.
    first: bool,
    /// The frame; longer than the last one was if an earlier one was longer.
    buffer: Vec<u8>,
    number: u64,
    ended: bool,
}

/// A frame, as it is passed on.
#[derive(Clone, Copy, Debug)]
pub struct Passed<'a> {
    /// Its bytes.
    pub bytes: &'a [u8],
    /// Bytes of data in it, uncompressed.
    pub data_bytes: u64,
}

/// Remembers what was read through it.
struct Recorder<'a> {
    input: &'a mut dyn Read,
    seen: Vec<u8>,
}

impl Read for Recorder<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.input.read(buffer)?;
        self.seen.extend_from_slice(&buffer[..count]);
        Ok(count)
    }
}

impl<'a> Relay<'a> {
    /// Reads the header.
    ///
    /// # Errors
    /// As for [`Decoder::new`].
    pub fn new(input: &'a mut dyn Read) -> Result<Self> {
        let mut recorder = Recorder { input: &mut *input, seen: Vec::new() };
        let header = Decoder::new(&mut recorder)?.header().clone();
        let buffer = recorder.seen;
        Ok(Self { input, header, first: true, buffer, number: 1, ended: false })
    }

    /// What the stream says of itself.
    #[must_use]
    pub fn header(&self) -> &StreamHeader {
        &self.header
    }

    /// The next frame; none after the trailer.
    ///
    /// # Errors
    /// As for [`Decoder::next_chunk`], but for what only the content shows.
    pub fn next_frame(&mut self) -> Result<Option<Passed<'_>>> {
        if std::mem::take(&mut self.first) {
            return Ok(Some(Passed { bytes: &self.buffer, data_bytes: 0 }));
        }
        if self.ended {
            // The last read lets the maker of the stream tidy up.
            let _ = self.input.read(&mut [0]);
            return Ok(None);
        }
        let (prefix, raw) = read_prefix(self.input, self.number, "before its trailer")?;
        let len = PREFIX_SIZE + prefix.body_size();
        if self.buffer.len() < len {
            self.buffer.resize(len, 0);
        }
        self.buffer[..PREFIX_SIZE].copy_from_slice(&raw);
        let body = &mut self.buffer[PREFIX_SIZE..len];
        read_body(self.input, &prefix, body)?;
        let mut data_bytes = 0;
        for entry in body[..prefix.table_size()].as_chunks::<EXTENT_SIZE>().0 {
            let extent = Extent::decode(entry)?;
            if extent.kind == ExtentKind::Data {
                data_bytes += extent.len;
            }
        }
        self.number += 1;
        self.ended = prefix.kind == FrameKind::Trailer;
        Ok(Some(Passed { bytes: &self.buffer[..len], data_bytes }))
    }
}
