//! The control server: a thread for every connection, one request each.
//!
//! A stream of many gigabytes occupies its own thread and a fixed buffer; short
//! requests pass beside it. How many connections there may be is bounded, and so is
//! the time in which a peer must have said what it wants. A peer that is neither the
//! store's owner nor root gets a refusal, whatever the socket's mode says.

use super::client::body_kind;
use super::http::{self, Body, CopyFailure, Framing};
use super::service::Service;
use super::wire::{Call, FeedPath, WireError, status_of};
use super::{SOCKET_NAME, SocketPath, error_of};
use crate::engine::api::SendRequest;
use crate::error::{Error, Result};
use serde_json::Value;
use std::collections::HashMap;
use std::io::{BufReader, BufWriter, Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How many connections are served at once.
const CONNECTIONS_MAX: usize = 128;
/// How long a peer may take for the head and the arguments of a request, in all.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// How long requests under way may go on once the server stops.
const STOP_PATIENCE: Duration = Duration::from_secs(3);

struct Shared {
    service: Arc<dyn Service>,
    owner: u32,
    stopping: AtomicBool,
    /// The connections under way, to cut them off at the end.
    open: Mutex<HashMap<u64, UnixStream>>,
    /// Told whenever a connection ends.
    ended: Condvar,
}

impl Shared {
    fn open(&self) -> MutexGuard<'_, HashMap<u64, UnixStream>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until no connection is open or the time is over.
    fn drained(&self, patience: Duration) -> bool {
        let until = Instant::now() + patience;
        let mut open = self.open();
        while !open.is_empty() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            open = self.ended.wait_timeout(open, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }
}

/// A running control server.
pub struct Server {
    shared: Arc<Shared>,
    dir: PathBuf,
    accepting: Option<JoinHandle<()>>,
}

impl Server {
    /// Listens on `STORE/control.sock`. The caller holds the store's lock, so a socket
    /// that stands there is of a daemon that died, and is replaced.
    ///
    /// # Errors
    /// `Io` when the socket can't be made.
    pub fn start(dir: &Path, service: Arc<dyn Service>) -> Result<Self> {
        let failed = |error| Error::os(format!("listen on {}", dir.join(SOCKET_NAME).display()), error);
        let owner = std::fs::metadata(dir).map_err(failed)?.uid();
        let socket = SocketPath::new(dir, SOCKET_NAME).map_err(failed)?;
        match std::fs::remove_file(socket.path()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        let listener = UnixListener::bind(socket.path()).map_err(failed)?;
        std::fs::set_permissions(socket.path(), std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
        let shared = Arc::new(Shared {
            service,
            owner,
            stopping: AtomicBool::new(false),
            open: Mutex::default(),
            ended: Condvar::new(),
        });
        let accepting = {
            let shared = Arc::clone(&shared);
            std::thread::Builder::new()
                .name("control".to_owned())
                .spawn(move || accept(&listener, &shared))
                .map_err(failed)?
        };
        Ok(Self { shared, dir: dir.to_owned(), accepting: Some(accepting) })
    }

    /// Takes the socket away, lets short requests end and cuts streams off.
    pub fn stop(&mut self) {
        let Some(accepting) = self.accepting.take() else { return };
        self.shared.stopping.store(true, Ordering::SeqCst);
        if let Ok(socket) = SocketPath::new(&self.dir, SOCKET_NAME) {
            // Wakes the accept; it sees the flag before it serves anything.
            let woken = UnixStream::connect(socket.path()).is_ok();
            let _ = std::fs::remove_file(socket.path());
            if woken {
                let _ = accepting.join();
            }
        }
        if !self.shared.drained(STOP_PATIENCE) {
            for stream in self.shared.open().values() {
                let _ = stream.shutdown(Shutdown::Both);
            }
            if !self.shared.drained(STOP_PATIENCE) {
                tracing::warn!("some control requests are still running; going on without them");
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A connection whose reads end at one moment, however little each of them brings.
struct Timely<'a> {
    stream: &'a UnixStream,
    until: Instant,
    /// From now on the peer may take its time.
    patient: AtomicBool,
}

impl Read for &Timely<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if !self.patient.load(Ordering::Relaxed) {
            let left = self.until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(std::io::ErrorKind::TimedOut.into());
            }
            self.stream.set_read_timeout(Some(left))?;
        }
        (&mut &*self.stream).read(buffer)
    }
}

fn accept(listener: &UnixListener, shared: &Arc<Shared>) {
    let mut number = 0u64;
    let mut exhausted = false;
    loop {
        let accepted = listener.accept();
        if shared.stopping.load(Ordering::SeqCst) {
            return;
        }
        match accepted {
            Ok((stream, _)) => {
                exhausted = false;
                number += 1;
                admit(stream, number, shared);
            }
            Err(error) => {
                // Out of descriptors, most likely; whoever asks waits until there are some.
                if !std::mem::replace(&mut exhausted, true) {
                    tracing::error!("no control connection can be accepted: {error}");
                }
                std::thread::sleep(Duration::from_millis(100));
            }
        }
    }
}

/// Gives the connection a thread of its own, or refuses it.
fn admit(stream: UnixStream, number: u64, shared: &Arc<Shared>) {
    let _ = stream.set_read_timeout(Some(REQUEST_TIMEOUT));
    let _ = stream.set_write_timeout(Some(REQUEST_TIMEOUT));
    let refusal = match rustix::net::sockopt::socket_peercred(&stream) {
        Ok(peer) if peer.uid.is_root() || peer.uid.as_raw() == shared.owner => None,
        Ok(peer) => {
            tracing::warn!("user {} was refused at the control socket", peer.uid.as_raw());
            Some((
                403,
                Error::conflict("this store belongs to somebody else")
                    .hint("run the command as the store's owner or as root"),
            ))
        }
        Err(error) => Some((403, Error::os("find out who is at the control socket", error.into()))),
    };
    let busy = || {
        let error = Error::conflict("the daemon has too many control connections");
        (503, error.hint("wait until some of the transfers have ended"))
    };
    let refusal = refusal.or_else(|| (shared.open().len() >= CONNECTIONS_MAX).then(busy));
    if let Some((status, error)) = refusal {
        let _ = answer_error(&mut &stream, status, &error);
        return;
    }
    let handle = match stream.try_clone() {
        Ok(handle) => handle,
        Err(error) => {
            let _ = answer_error(&mut &stream, 503, &Error::os("take up a control connection", error));
            return;
        }
    };
    shared.open().insert(number, handle);
    let for_thread = Arc::clone(shared);
    let spawned = std::thread::Builder::new().name(format!("control-{number}")).spawn(move || {
        let _ended = Ended { shared: &for_thread, number };
        if let Err(error) = serve(&stream, for_thread.service.as_ref()) {
            tracing::debug!("control connection {number}: {error}");
        }
        let _ = stream.shutdown(Shutdown::Both);
    });
    if let Err(error) = spawned {
        tracing::warn!("no thread for a control connection: {error}");
        shared.open().remove(&number);
    }
}

/// Forgets the connection however its thread ends.
struct Ended<'a> {
    shared: &'a Shared,
    number: u64,
}

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.shared.open().remove(&self.number);
        self.shared.ended.notify_all();
    }
}

fn answer_json(output: &mut dyn Write, value: &Value) -> std::io::Result<()> {
    let body = serde_json::to_vec(value)?;
    http::write_answer(output, 200, body_kind::JSON, Framing::Length(body.len() as u64))?;
    output.write_all(&body)?;
    output.flush()
}

fn answer_error(output: &mut dyn Write, status: u16, error: &Error) -> std::io::Result<()> {
    let body = serde_json::to_vec(&WireError::from(error))?;
    http::write_answer(output, status, body_kind::JSON, Framing::Length(body.len() as u64))?;
    output.write_all(&body)?;
    output.flush()
}

fn answer(output: &mut dyn Write, result: Result<Value>) -> Result<()> {
    let written = match result {
        Ok(value) => answer_json(output, &value),
        Err(error) => answer_error(output, status_of(error.kind()), &error),
    };
    written.map_err(|error| Error::os("answer a control request", error))
}

/// Serves the one request of a connection.
fn serve(stream: &UnixStream, service: &dyn Service) -> Result<()> {
    let timely = Timely { stream, until: Instant::now() + REQUEST_TIMEOUT, patient: AtomicBool::new(false) };
    let mut input = BufReader::with_capacity(64 << 10, &timely);
    let mut output = BufWriter::with_capacity(64 << 10, stream);
    let head = match http::read_request(&mut input) {
        Ok(Some(head)) => head,
        Ok(None) => return Ok(()),
        Err(error) => return answer(&mut output, Err(error)),
    };
    let Some(op) = head.path.strip_prefix("/v1/").filter(|_| head.method == "POST") else {
        let error = Error::invalid(format!(
            "the control socket has no {} {}",
            head.method.escape_debug(),
            head.path.escape_debug()
        ));
        return answer(&mut output, Err(error.hint("operations are POST /v1/OPERATION")));
    };
    let mut body = Body::new(input, head.framing);
    if let Some(feed) = op.strip_prefix("receive-set/") {
        let feed = match FeedPath::parse(feed) {
            Ok(feed) => feed,
            Err(error) => return answer(&mut output, Err(error)),
        };
        timely.patient.store(true, Ordering::Relaxed);
        let _ = stream.set_read_timeout(None);
        let received = service.receive_set(&feed, &mut body);
        return answer(
            &mut output,
            received.and_then(|received| serde_json::to_value(received).map_err(bad_json)),
        );
    }
    if let Some(volume) = op.strip_prefix("receive/") {
        // The sender of a stream may be slow; it is heard for as long as it lives.
        timely.patient.store(true, Ordering::Relaxed);
        let _ = stream.set_read_timeout(None);
        let received = service.receive(volume, &mut body);
        return answer(
            &mut output,
            received.and_then(|received| serde_json::to_value(received).map_err(bad_json)),
        );
    }
    let arguments = match body.read_all(http::REQUEST_JSON_LEN_MAX) {
        Ok(arguments) => arguments,
        Err(error) => return answer(&mut output, Err(error)),
    };
    if op == "send" {
        let request = serde_json::from_slice::<SendRequest>(&arguments)
            .map_err(|error| Error::invalid(format!("the request 'send' is not understood: {error}")));
        return match request.and_then(|request| service.send(&request)) {
            Ok(source) => {
                // The receiver of a stream may be slow too.
                let _ = stream.set_write_timeout(None);
                stream_out(&mut output, source)
            }
            Err(error) => answer(&mut output, Err(error)),
        };
    }
    let result = Call::from_parts(op, &arguments).and_then(|call| service.call(call));
    answer(&mut output, result)
}

fn bad_json(error: serde_json::Error) -> Error {
    Error::os("write an answer as JSON", error.into())
}

fn stream_out(output: &mut dyn Write, mut source: Box<dyn Read + Send>) -> Result<()> {
    let broken = |error| Error::os("send a stream over the control socket", error);
    http::write_answer(output, 200, body_kind::STREAM, Framing::Chunked).map_err(broken)?;
    match http::write_chunks(output, &mut source) {
        Ok(_) => http::write_last_chunk(output).map_err(broken),
        Err(CopyFailure::Output(error)) => Err(broken(error)),
        Err(CopyFailure::Input(error)) => {
            let error = error_of("make the stream", error);
            http::write_failure(output, &error).map_err(broken)?;
            Err(error)
        }
    }
}
