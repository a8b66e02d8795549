//! The sender: a source of extents becomes the bytes of a stream, as they are read.
//!
//! [`FrameMaker`] makes one frame after the other and awaits nothing but its source.
//! [`SendStream`] is a `Read` over it for a thread that waits: it makes frames only as
//! fast as somebody reads them; with [`SendStream::read_ahead`] a thread of its own keeps
//! a few ready, so that reading the store, compressing and writing to the peer overlap, and
//! chunks that are to be compressed are dealt to several threads.

use super::encoder::{Encoder, Frame, PlainChunk};
use crate::error::{Error, Result};
use crate::format::stream::{EXTENT_LEN_MAX, Extent, ExtentKind, StreamHeader};
use crate::io::buffers::Buffers;
use bytes::Bytes;
use futures::executor::block_on;
use futures::future::LocalBoxFuture;
use std::collections::VecDeque;
use std::io::Read;
use std::thread::JoinHandle;

/// Frames that the read-ahead keeps ready, of about 1 MiB each.
const FRAMES_AHEAD: usize = 4;
/// Threads that compress for one stream, at most.
const COMPRESSORS_MAX: usize = 8;

/// What a stream is made of.
pub trait Source: Send {
    /// The header; `resume_from` says below which byte nothing is to be sent.
    fn header(&self) -> &StreamHeader;

    /// The next extents, ascending and disjoint, made of whole blocks (the last block of
    /// the volume may end early), each with its bytes (none for a discard); no extents at
    /// the end. A few MiB at a time at most. Extents below `resume_from` may be given or
    /// not: the sender drops them.
    ///
    /// # Errors
    /// Whatever the source meets; the stream then ends without a trailer.
    fn next_extents(&mut self) -> LocalBoxFuture<'_, Result<Vec<(Extent, Bytes)>>>;
}

/// Makes the frames, one after the other.
pub struct FrameMaker {
    source: Box<dyn Source>,
    /// None once the trailer is out.
    encoder: Option<Encoder>,
    first: Option<Vec<u8>>,
    /// What the source gave and is not in a chunk yet.
    ready: VecDeque<(Extent, Bytes)>,
    /// Chunks taken from the source so far.
    gathered: u64,
    buffers: Buffers,
    compress: bool,
    resume_from: u64,
}

impl FrameMaker {
    /// The frames of what `source` gives.
    ///
    /// # Errors
    /// `Invalid` when the source's header contradicts itself.
    pub fn new(source: Box<dyn Source>) -> Result<Self> {
        let header = source.header();
        let (encoder, first) = Encoder::new(header)?;
        let (compress, resume_from) = (header.compressed, header.resume_from);
        let (encoder, first, ready) = (Some(encoder), Some(first), VecDeque::new());
        Ok(Self {
            source,
            encoder,
            first,
            ready,
            gathered: 0,
            buffers: Buffers::default(),
            compress,
            resume_from,
        })
    }

    async fn next_extent(&mut self) -> Result<Option<(Extent, Bytes)>> {
        loop {
            while let Some((extent, bytes)) = self.ready.pop_front() {
                let skip = self.resume_from.saturating_sub(extent.offset).min(extent.len);
                if skip < extent.len {
                    return Ok(Some(after(extent, bytes, skip)));
                }
            }
            let batch = self.source.next_extents().await?;
            if batch.is_empty() {
                return Ok(None);
            }
            for (extent, bytes) in &batch {
                let data = if extent.kind == ExtentKind::Data { extent.len } else { 0 };
                assert_eq!(bytes.len() as u64, data, "the source read another length");
            }
            self.ready.extend(batch);
        }
    }

    /// The bytes of the next frame; none at the end.
    ///
    /// # Errors
    /// The source's.
    pub async fn next_frame(&mut self) -> Result<Option<Bytes>> {
        if let Some(first) = self.first.take() {
            return Ok(Some(first.into()));
        }
        if self.encoder.is_none() {
            return Ok(None);
        }
        match self.next_chunk().await? {
            Some((number, chunk)) => {
                let frame = chunk.encode_into(self.buffers.take(), number, self.compress)?;
                Ok(self.push(frame))
            }
            None => Ok(self.finish()),
        }
    }

    /// An encoded chunk as what goes out.
    fn push(&mut self, frame: Frame) -> Option<Bytes> {
        let bytes = self.encoder.as_mut()?.push(frame);
        Some(self.buffers.share(bytes))
    }

    /// The trailer, once.
    fn finish(&mut self) -> Option<Bytes> {
        self.encoder.take().map(|encoder| encoder.finish().0.into())
    }

    /// The next chunk with its number; none when the source has no more.
    async fn next_chunk(&mut self) -> Result<Option<(u64, PlainChunk)>> {
        let mut chunk = PlainChunk::new();
        while let Some((extent, bytes)) = self.next_extent().await? {
            let fits = match extent.kind {
                ExtentKind::Data => extent.len.min(chunk.room()),
                ExtentKind::Discard if chunk.has_entry() => extent.len.min(DISCARD_LEN_MAX),
                ExtentKind::Discard => 0,
            };
            if fits > 0 && extent.kind == ExtentKind::Data {
                // Less than the extent, which is in memory.
                let len = usize::try_from(fits).unwrap_or(usize::MAX);
                chunk.piece(extent.offset, bytes.slice(..len));
            } else if fits > 0 {
                chunk.discard(extent.offset, fits);
            }
            if fits < extent.len {
                self.ready.push_front(after(extent, bytes, fits));
            }
            if fits == 0 {
                break;
            }
        }
        if chunk.is_empty() {
            return Ok(None);
        }
        self.gathered += 1;
        Ok(Some((self.gathered, chunk)))
    }

    /// Gives all frames to `output`, in order, until it takes no more (false).
    fn run(&mut self, mut output: impl FnMut(Bytes) -> bool) -> Result<()> {
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(COMPRESSORS_MAX);
        if self.compress && threads > 1 {
            return self.run_compressing(threads, output);
        }
        while let Some(frame) = block_on(self.next_frame())? {
            if !output(frame) {
                return Ok(());
            }
        }
        Ok(())
    }

    /// The same, with that many threads which compress.
    fn run_compressing(&mut self, threads: usize, mut output: impl FnMut(Bytes) -> bool) -> Result<()> {
        if let Some(first) = self.first.take()
            && !output(first.into())
        {
            return Ok(());
        }
        std::thread::scope(|scope| {
            // Dropped at the end of this closure, which ends the threads.
            let (jobs, queue) = crossbeam::channel::unbounded::<(u64, PlainChunk, Reply)>();
            for _ in 0..threads {
                let queue = queue.clone();
                scope.spawn(move || {
                    for (number, chunk, reply) in queue {
                        // Nobody waits for it once the stream has failed.
                        let _ = reply.send(chunk.encode(number, true));
                    }
                });
            }
            let mut ahead = VecDeque::new();
            // What came of the last chunk: what was sent before an error still goes out.
            let mut end = None;
            loop {
                while ahead.len() <= threads && end.is_none() {
                    match block_on(self.next_chunk()) {
                        Ok(Some((number, chunk))) => {
                            let (reply, encoded) = crossbeam::channel::bounded(1);
                            jobs.send((number, chunk, reply)).map_err(|_| stopped())?;
                            ahead.push_back(encoded);
                        }
                        Ok(None) => end = Some(Ok(())),
                        Err(error) => end = Some(Err(error)),
                    }
                }
                let next = match ahead.pop_front() {
                    Some(encoded) => self.push(encoded.recv().map_err(|_| stopped())??),
                    None => match end {
                        Some(Err(error)) => return Err(error),
                        _ => self.finish(),
                    },
                };
                if !next.is_some_and(&mut output) {
                    return Ok(());
                }
            }
        })
    }
}

/// Where a compressed chunk goes.
type Reply = crossbeam::channel::Sender<Result<Frame>>;

fn stopped() -> Error {
    Error::new(crate::ErrorKind::Interrupted, "the sender stopped unexpectedly")
}

/// An extent without its first `skip` bytes.
fn after(extent: Extent, mut bytes: Bytes, skip: u64) -> (Extent, Bytes) {
    if extent.kind == ExtentKind::Data {
        let _ = bytes.split_to(usize::try_from(skip).unwrap_or(usize::MAX));
    }
    (Extent { offset: extent.offset + skip, len: extent.len - skip, ..extent }, bytes)
}

/// The longest discard of one entry, a multiple of every block size.
const DISCARD_LEN_MAX: u64 = 1 << 40;
const _: () = assert!(DISCARD_LEN_MAX <= EXTENT_LEN_MAX);

enum Frames {
    Here(Box<FrameMaker>),
    /// The thread ends after an error or the trailer, or when the receiver is dropped.
    Ahead(crossbeam::channel::Receiver<Result<Bytes>>, Option<JoinHandle<()>>),
    Ended,
}

/// The bytes of a stream. An error of the source comes out as an [`std::io::Error`]
/// with the [`Error`] inside (`downcast` gives it back); then the stream is over.
pub struct SendStream {
    frames: Frames,
    frame: Bytes,
}

impl SendStream {
    /// A stream of what `source` gives, made on the thread that reads it, which is not one
    /// that runs tasks.
    ///
    /// # Errors
    /// `Invalid` when the source's header contradicts itself.
    pub fn new(source: Box<dyn Source>) -> Result<Self> {
        Ok(Self { frames: Frames::Here(Box::new(FrameMaker::new(source)?)), frame: Bytes::new() })
    }

    /// The same, made ahead of the reader on a thread of its own; dropping the stream
    /// ends the thread, after the source's call that is under way.
    ///
    /// # Errors
    /// As for [`Self::new`]; `Io` when there can be no thread.
    pub fn read_ahead(source: Box<dyn Source>) -> Result<Self> {
        let mut maker = FrameMaker::new(source)?;
        let (sender, receiver) = crossbeam::channel::bounded(FRAMES_AHEAD);
        let work = move || {
            let end = maker.run(|frame| sender.send(Ok(frame)).is_ok());
            // A closed channel alone would look like a panic of this thread.
            let _ = sender.send(end.map(|()| Bytes::new()));
        };
        let thread = std::thread::Builder::new()
            .name("send".to_owned())
            .spawn(work)
            .map_err(|error| Error::os("can't start a thread", error))?;
        Ok(Self { frames: Frames::Ahead(receiver, Some(thread)), frame: Bytes::new() })
    }

    fn next_frame(&mut self) -> Result<Bytes> {
        let next = match &mut self.frames {
            Frames::Here(maker) => block_on(maker.next_frame()).map(Option::unwrap_or_default),
            Frames::Ahead(receiver, _) => receiver.recv().unwrap_or_else(|_| Err(stopped())),
            Frames::Ended => Ok(Bytes::new()),
        };
        if !matches!(&next, Ok(frame) if !frame.is_empty()) {
            self.end();
        }
        next
    }

    fn end(&mut self) {
        if let Frames::Ahead(receiver, thread) = std::mem::replace(&mut self.frames, Frames::Ended) {
            drop(receiver);
            if let Some(thread) = thread {
                let _ = thread.join();
            }
        }
    }
}

impl Drop for SendStream {
    fn drop(&mut self) {
        self.end();
    }
}

impl Read for SendStream {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.frame.is_empty() && !buffer.is_empty() {
            self.frame = self.next_frame().map_err(std::io::Error::other)?;
        }
        let count = buffer.len().min(self.frame.len());
        buffer[..count].copy_from_slice(&self.frame.split_to(count));
        Ok(count)
    }
}
