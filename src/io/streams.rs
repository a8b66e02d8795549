#![allow(
    unsafe_code,
    reason = "received bytes land in memory that nothing zeroed first; sent ones may lie in mapped files"
)]
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
use super::shown::advance;
use super::{FileId, OpId, Outcome, Output, Part};
use bytes::BytesMut;
use rustc_hash::FxHashMap;
use rustix::io::Errno;
use rustix::net::RecvFlags;
use std::collections::VecDeque;
use std::io;
use std::os::fd::AsRawFd;
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
    sends: VecDeque<(OpId, Vec<Part>)>,
}

/// The streams that wait for their peers. A stream is listed from its first wait until
/// it is closed.
#[derive(Default)]
pub(super) struct Streams {
    waiting: FxHashMap<FileId, Stream>,
    /// A buffer into which nothing came yet, for the next attempt.
    spare: BytesMut,
    /// Where a receive was queued last.
    recent: Option<FileId>,
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
        self.recent = Some(file);
        None
    }

    /// Tries the receive again that was queued last; whether it has ended.
    pub(super) fn try_recent(&mut self, done: &mut Vec<(OpId, Outcome)>) -> bool {
        if let Some(file) = self.recent {
            self.ready(file, Interest { readable: true, writable: false }, done);
        }
        !done.is_empty()
    }

    /// Sends inline, or queues what is left.
    pub(super) fn send(
        &mut self,
        id: OpId,
        file: FileId,
        handle: &Arc<Handle>,
        mut data: Vec<Part>,
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
fn send(handle: &Handle, data: &mut Vec<Part>) -> Option<Outcome> {
    advance(data, 0);
    while !data.is_empty() {
        match disk::retry(|| send_once(handle, data)) {
            Ok(0) => return Some(Err(io::ErrorKind::WriteZero.into())),
            Ok(sent) => advance(data, sent),
            Err(Errno::AGAIN) => return None,
            // A page that was shown is not to be had this way; reading it says why.
            Err(Errno::FAULT) => {
                if let Err(error) = data.iter_mut().try_for_each(Part::copy) {
                    return Some(Err(error));
                }
            }
            Err(error) => return Some(Err(error.into())),
        }
    }
    Some(Ok(Output::None))
}

/// One system call's worth.
fn send_once(handle: &Handle, data: &[Part]) -> Result<usize, Errno> {
    let vectors: Vec<libc::iovec> = data.iter().take(disk::BUFFERS_MAX).map(Part::vector).collect();
    let sent = match handle.kind {
        Kind::Socket => {
            // SAFETY: every bit pattern of the structure is valid, zeros too.
            let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
            message.msg_iov = vectors.as_ptr().cast_mut();
            message.msg_iovlen = vectors.len() as _;
            let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
            // SAFETY: the message names the vectors and they name the parts, all of which live
            // beyond the call; the kernel only reads them.
            unsafe { libc::sendmsg(handle.as_raw_fd(), &raw const message, flags) }
        }
        Kind::File | Kind::Pipe => {
            let count = libc::c_int::try_from(vectors.len()).unwrap_or(libc::c_int::MAX);
            // SAFETY: as above.
            unsafe { libc::writev(handle.as_raw_fd(), vectors.as_ptr(), count) }
        }
    };
    usize::try_from(sent).map_err(|_| Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO))
}
