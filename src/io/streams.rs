#![allow(unsafe_code, reason = "received bytes land in memory that nothing zeroed first")]
//! Sockets and pipes: what waits to be received and sent on each.
//!
//! Every descriptor here is non-blocking, so an operation is first tried inline; what
//! the peer does not allow yet waits in two queues per stream, one for each direction.
//! The driver watches for readiness and calls [`Streams::ready`].
//!
//! Invariants: operations of one direction end in the order of their submission; a send
//! is over only when the kernel has taken all of it; closing a stream ends what waits.

use super::disk;
use super::files::{Handle, Kind};
use super::{FileId, OpId, Outcome, Output};
use bytes::{Bytes, BytesMut};
use rustc_hash::FxHashMap;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags};
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

/// What a stream waits for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Interest {
    pub(super) readable: bool,
    pub(super) writable: bool,
}

struct Stream {
    handle: Arc<Handle>,
    /// Each with the most it takes, and the buffer that it goes on with.
    recvs: VecDeque<(OpId, usize, BytesMut)>,
    sends: VecDeque<(OpId, Vec<Bytes>)>,
}

/// The streams that wait for their peers. A stream is listed from its first wait until
/// it is closed.
#[derive(Default)]
pub(super) struct Streams {
    waiting: FxHashMap<FileId, Stream>,
    /// A buffer into which nothing came yet, for the next attempt.
    spare: BytesMut,
}

impl Streams {
    fn stream(&mut self, file: FileId, handle: &Arc<Handle>) -> &mut Stream {
        self.waiting.entry(file).or_insert_with(|| Stream {
            handle: Arc::clone(handle),
            recvs: VecDeque::new(),
            sends: VecDeque::new(),
        })
    }

    /// Receives inline, or queues it.
    pub(super) fn recv(
        &mut self,
        id: OpId,
        file: FileId,
        handle: &Arc<Handle>,
        len: usize,
        mut into: BytesMut,
    ) -> Option<Outcome> {
        let waits = self.waiting.get(&file).is_some_and(|stream| !stream.recvs.is_empty());
        if !waits && let Some(outcome) = recv(handle, len, &mut into, &mut self.spare) {
            return Some(outcome);
        }
        self.stream(file, handle).recvs.push_back((id, len, into));
        None
    }

    /// Sends inline, or queues what is left.
    pub(super) fn send(
        &mut self,
        id: OpId,
        file: FileId,
        handle: &Arc<Handle>,
        mut data: Vec<Bytes>,
    ) -> Option<Outcome> {
        let waits = self.waiting.get(&file).is_some_and(|stream| !stream.sends.is_empty());
        if !waits && let Some(outcome) = send(handle, &mut data) {
            return Some(outcome);
        }
        self.stream(file, handle).sends.push_back((id, data));
        None
    }

    /// What the stream waits for now.
    pub(super) fn interest(&self, file: FileId) -> Interest {
        self.waiting.get(&file).map_or_else(Interest::default, |stream| Interest {
            readable: !stream.recvs.is_empty(),
            writable: !stream.sends.is_empty(),
        })
    }

    /// Goes on with a stream that became ready in these directions.
    pub(super) fn ready(&mut self, file: FileId, ready: Interest, done: &mut Vec<(OpId, Outcome)>) {
        let Some(stream) = self.waiting.get_mut(&file) else { return };
        while ready.readable
            && let Some((id, len, into)) = stream.recvs.front_mut()
            && let Some(outcome) = recv(&stream.handle, *len, into, &mut self.spare)
        {
            done.push((*id, outcome));
            stream.recvs.pop_front();
        }
        while ready.writable
            && let Some((id, data)) = stream.sends.front_mut()
            && let Some(outcome) = send(&stream.handle, data)
        {
            done.push((*id, outcome));
            stream.sends.pop_front();
        }
    }

    /// The descriptor of a stream that has waited.
    pub(super) fn handle(&self, file: FileId) -> Option<&Arc<Handle>> {
        self.waiting.get(&file).map(|stream| &stream.handle)
    }

    /// Forgets a closed stream; what waited for it ends with an error.
    pub(super) fn close(&mut self, file: FileId, done: &mut Vec<(OpId, Outcome)>) -> Option<Arc<Handle>> {
        let stream = self.waiting.remove(&file)?;
        let waiting =
            stream.recvs.into_iter().map(|(id, ..)| id).chain(stream.sends.into_iter().map(|(id, _)| id));
        done.extend(waiting.map(|id| (id, Err(Errno::CANCELED.into()))));
        Some(stream.handle)
    }
}

/// Receives once, behind what is in `into`; `None` if the peer has sent nothing yet.
fn recv(handle: &Handle, len: usize, into: &mut BytesMut, kept: &mut BytesMut) -> Option<Outcome> {
    let goes_on = !into.is_empty() || into.capacity() > 0;
    let mut buffer = std::mem::take(if goes_on { &mut *into } else { &mut *kept });
    buffer.reserve(len);
    let before = buffer.len();
    let spare = &mut buffer.spare_capacity_mut()[..len];
    let received = disk::retry(|| match handle.kind {
        Kind::Socket => {
            rustix::net::recv(handle, &mut *spare, RecvFlags::DONTWAIT).map(|((got, _), _)| got.len())
        }
        Kind::File | Kind::Pipe => rustix::io::read(handle, &mut *spare).map(|(got, _)| got.len()),
    });
    match received {
        Ok(received) => {
            // SAFETY: the kernel has written that many bytes behind the buffer's end.
            unsafe { buffer.set_len(before + received) };
            Some(Ok(Output::Bytes(buffer)))
        }
        Err(Errno::AGAIN) => {
            *(if goes_on { into } else { kept }) = buffer;
            None
        }
        Err(error) => Some(Err(error.into())),
    }
}

/// Sends as much as goes; `None` if something is left in `data`.
fn send(handle: &Handle, data: &mut Vec<Bytes>) -> Option<Outcome> {
    disk::advance(data, 0);
    while !data.is_empty() {
        let slices = disk::slices(data, 0);
        let sent = disk::retry(|| match handle.kind {
            Kind::Socket => {
                let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
                rustix::net::sendmsg(handle, &slices, &mut SendAncillaryBuffer::default(), flags)
            }
            Kind::File | Kind::Pipe => rustix::io::writev(handle, &slices),
        });
        match sent {
            Ok(0) => return Some(Err(io::ErrorKind::WriteZero.into())),
            Ok(sent) => disk::advance(data, sent),
            Err(Errno::AGAIN) => return None,
            Err(error) => return Some(Err(error.into())),
        }
    }
    Some(Ok(Output::None))
}
