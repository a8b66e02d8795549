//! The server: listens, negotiates with each client on a thread of its own, hands the
//! socket to the engine of the export, and knows all connections so that it can end
//! them.
//!
//! The thread that accepts never waits for a client, and an engine never waits for a
//! handshake. A handshake has a limit of time in all; transmission has one for requests and
//! replies that a client leaves half done. The count of connections is limited, handshakes
//! included, and so are the bytes that all of them hold.

use super::exports::{Exports, Serve, describe_device};
use super::handshake::{self, Choice, Handshake, Step};
use super::listen::{Listen, Listener, Stream};
use super::metacontext::Context;
use super::terms::{Budget, Terms};
use super::transmission::{self, Session};
use super::uri;
use crate::engine::device::Device;
use crate::error::{Error, ErrorKind, Result};
use crate::io::Io;
use bytes::BytesMut;
use futures::FutureExt;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::Shutdown;
use std::collections::HashMap;
use std::fmt;
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long the accepting thread rests when it can take nobody.
const EXHAUSTED_RETRY: Duration = Duration::from_millis(200);

/// What clients may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at one time, those in their handshake included.
    pub connections: usize,
    /// How long a handshake may take in all.
    pub handshake: Duration,
    /// How long clients may take their last replies when the server stops.
    pub stop: Duration,
    /// How long a client may leave a request unfinished or replies untaken.
    pub patience: Duration,
    /// Bytes of payload that all connections together hold, where one has more than one
    /// request.
    pub in_flight_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 1024,
            handshake: Duration::from_secs(10),
            stop: Duration::from_secs(5),
            patience: Duration::from_secs(60),
            in_flight_bytes: 1 << 30,
        }
    }
}

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// The absolute path of a unix socket.
    Unix(PathBuf),
    /// A TCP address with the actual port.
    Tcp(SocketAddr),
}

impl fmt::Display for Address {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => path.display().fmt(out),
            Self::Tcp(address) => address.fmt(out),
        }
    }
}

/// A running server. It stops when it is dropped.
pub struct Server {
    addresses: Vec<Address>,
    shared: Arc<Shared>,
    /// Written to once, to end the accepting thread.
    wake: UnixStream,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    exports: Box<dyn Exports>,
    limits: Limits,
    connections: Mutex<Connections>,
    /// Told when a connection ends.
    ended: Condvar,
    /// Clients are being refused, and the log says so already.
    crowded: AtomicBool,
    /// Nobody can be taken, and the log says so already.
    exhausted: AtomicBool,
    budget: Budget,
}

#[derive(Default)]
struct Connections {
    stopping: bool,
    next: u64,
    /// A second descriptor of each socket, by which it can be shut down.
    sockets: HashMap<u64, Arc<OwnedFd>>,
}

impl Shared {
    fn connections(&self) -> MutexGuard<'_, Connections> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One connection's place in the table of them; given back when dropped.
struct Place {
    shared: Arc<Shared>,
    number: u64,
    socket: Arc<OwnedFd>,
}

impl Place {
    /// Finds room for a new connection.
    fn take(shared: &Arc<Shared>, stream: &Stream) -> Result<Self> {
        let socket = stream
            .as_fd()
            .try_clone_to_owned()
            .map_err(|error| Error::os("cannot duplicate a descriptor", error))?;
        let socket = Arc::new(socket);
        let mut connections = shared.connections();
        if connections.stopping {
            return Err(Error::new(ErrorKind::Interrupted, "the server is stopping"));
        }
        if connections.sockets.len() >= shared.limits.connections {
            return Err(Error::conflict(format!(
                "{} clients are connected already",
                shared.limits.connections
            )));
        }
        let number = connections.next;
        connections.next += 1;
        connections.sockets.insert(number, Arc::clone(&socket));
        drop(connections);
        Ok(Self { shared: Arc::clone(shared), number, socket })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.shared.connections().sockets.remove(&self.number);
        self.shared.ended.notify_all();
    }
}

impl Server {
    /// Listens on all of `listen` and serves `exports` there.
    ///
    /// # Errors
    /// As for the sockets: `Conflict` for one in use, `Invalid` for one that can't be
    /// understood, `Io`. Nothing listens then.
    pub fn start(exports: impl Exports + 'static, listen: &[Listen], limits: Limits) -> Result<Self> {
        let mut listeners = Listeners(Vec::with_capacity(listen.len()));
        let mut addresses = Vec::with_capacity(listen.len());
        for one in listen {
            let listener = Listener::open(one)?;
            listeners.0.push(listener);
            addresses.extend(listeners.0.last().map(Listener::address).transpose()?);
        }
        let (wake, woken) =
            UnixStream::pair().map_err(|error| Error::os("cannot make a socket pair", error))?;
        let shared = Arc::new(Shared {
            exports: Box::new(exports),
            limits,
            connections: Mutex::default(),
            ended: Condvar::new(),
            crowded: AtomicBool::new(false),
            exhausted: AtomicBool::new(false),
            budget: Budget::new(limits.in_flight_bytes),
        });
        let accepting = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("nbd-accept".to_owned())
            .spawn(move || accept_all(&accepting, &listeners, &woken))
            .map_err(|error| Error::os("cannot start a thread", error))?;
        Ok(Self { addresses, shared, wake, thread: Some(thread) })
    }

    /// Where it listens, in the order in which it was asked to.
    #[must_use]
    pub fn addresses(&self) -> &[Address] {
        &self.addresses
    }

    /// The URIs of an export, one for each address.
    #[must_use]
    pub fn uris(&self, export: &str) -> Vec<String> {
        self.addresses.iter().map(|address| uri::uri(address, export)).collect()
    }

    /// How many clients are connected, those in their handshake included.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.shared.connections().sockets.len()
    }

    /// Bytes of payload that connections with more than one request hold together.
    #[must_use]
    pub fn held_bytes(&self) -> u64 {
        self.shared.budget.held()
    }

    /// Stops: takes no more clients, removes the sockets' files, lets every connection
    /// finish the requests that it received, and waits for that as long as the limits
    /// say; what is left then is cut off. Stopping again does nothing.
    pub fn stop(&mut self) {
        let Some(thread) = self.thread.take() else { return };
        self.shared.connections().stopping = true;
        // Fails only if the thread is gone, and then there is nothing to wake.
        let _ = self.wake.write_all(&[0]);
        if thread.join().is_err() {
            tracing::error!("the accepting thread panicked");
        }
        // The end of the stream, as every connection sees it next.
        self.shut_down(Shutdown::Read);
        if !self.wait_for_end(self.shared.limits.stop) {
            tracing::warn!("{} clients did not take their replies; cutting them off", self.connections());
            self.shut_down(Shutdown::Both);
            self.wait_for_end(self.shared.limits.stop);
        }
    }

    fn shut_down(&self, how: Shutdown) {
        for socket in self.shared.connections().sockets.values() {
            // It fails when the client has gone, which is as good.
            let _ = rustix::net::shutdown(socket, how);
        }
    }

    /// Whether all connections ended within `time`.
    fn wait_for_end(&self, time: Duration) -> bool {
        let connections = self.shared.connections();
        let waited = self
            .shared
            .ended
            .wait_timeout_while(connections, time, |connections| !connections.sockets.is_empty());
        let (connections, _) = waited.unwrap_or_else(PoisonError::into_inner);
        connections.sockets.is_empty()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Server").field("addresses", &self.addresses).finish_non_exhaustive()
    }
}

/// Listening sockets whose files go when they do.
struct Listeners(Vec<Listener>);

impl Drop for Listeners {
    fn drop(&mut self) {
        self.0.iter().for_each(Listener::remove_file);
    }
}

/// Takes clients until it is woken.
fn accept_all(shared: &Arc<Shared>, listeners: &Listeners, woken: &UnixStream) {
    loop {
        let mut waiting: Vec<PollFd<'_>> =
            listeners.0.iter().map(|listener| PollFd::new(listener, PollFlags::IN)).collect();
        waiting.push(PollFd::new(woken, PollFlags::IN));
        if let Err(error) = poll(&mut waiting, None)
            && error != rustix::io::Errno::INTR
        {
            tracing::error!("cannot wait for clients: {error}");
            return;
        }
        if shared.connections().stopping {
            return;
        }
        for listener in &listeners.0 {
            accept(shared, listener);
        }
    }
}

/// Takes all clients that wait at one socket.
fn accept(shared: &Arc<Shared>, listener: &Listener) {
    loop {
        let (stream, peer) = match listener.accept() {
            Ok(accepted) => accepted,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => {
                // Out of descriptors, most likely; somebody will go. Clients wait until then.
                if !shared.exhausted.swap(true, Ordering::Relaxed) {
                    tracing::error!("no client can be taken, they wait: {error}");
                }
                std::thread::sleep(EXHAUSTED_RETRY);
                return;
            }
        };
        if shared.exhausted.swap(false, Ordering::Relaxed) {
            tracing::info!("clients are taken again");
        }
        let place = match Place::take(shared, &stream) {
            Ok(place) => {
                shared.crowded.store(false, Ordering::Relaxed);
                place
            }
            Err(error) => {
                if !shared.crowded.swap(true, Ordering::Relaxed) {
                    tracing::warn!(peer, "refusing clients: {error}");
                }
                continue;
            }
        };
        let client = Client { place, stream, peer, deadline: Instant::now() + shared.limits.handshake };
        let thread = std::thread::Builder::new().name("nbd-handshake".to_owned()).stack_size(512 << 10);
        if let Err(error) = thread.spawn(move || client.negotiate()) {
            tracing::warn!("cannot start a thread for a client: {error}");
        }
    }
}

/// A client in its handshake.
struct Client {
    place: Place,
    stream: Stream,
    peer: String,
    deadline: Instant,
}

/// What became of a client whose device was asked.
enum Verdict {
    /// The engine has the socket now.
    Taken,
    /// The device did not take it.
    Refused(Box<(Client, Handshake)>, Error),
}

impl Client {
    fn negotiate(self) {
        let peer = self.peer.clone();
        match self.haggle() {
            Ok(()) => {}
            Err(error) => tracing::debug!(peer, "the handshake failed: {error}"),
        }
    }

    fn haggle(mut self) -> io::Result<()> {
        let mut out = BytesMut::new();
        let mut handshake = Handshake::new(&mut out);
        let mut buffer = vec![0; 16 << 10];
        loop {
            self.send(&mut out)?;
            let exports = Arc::clone(&self.place.shared);
            let mut step = handshake.advance(&*exports.exports, &mut out);
            if let Step::Enter(choice) = step {
                match self.enter(handshake, choice.clone()) {
                    Verdict::Taken => return Ok(()),
                    Verdict::Refused(back, error) => {
                        (self, handshake) = *back;
                        tracing::debug!(peer = self.peer, export = choice.export, "refused: {error}");
                        step = handshake.refuse(&choice, &error, &mut out);
                    }
                }
            }
            match step {
                Step::Again | Step::Enter(_) => {}
                Step::NeedMore => {
                    self.send(&mut out)?;
                    let len = self.receive(&mut buffer)?;
                    if len == 0 {
                        return Ok(());
                    }
                    handshake.feed(&buffer[..len]);
                }
                Step::Close(why) => {
                    tracing::debug!(peer = self.peer, "closing a client: {why}");
                    return self.send(&mut out);
                }
            }
        }
    }

    fn set_timeouts(&self) -> io::Result<()> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.stream.set_timeouts(left)
    }

    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            self.set_timeouts()?;
            match self.stream.read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                outcome => return outcome,
            }
        }
    }

    fn send(&mut self, out: &mut BytesMut) -> io::Result<()> {
        while !out.is_empty() {
            self.set_timeouts()?;
            match self.stream.write(out) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(len) => drop(out.split_to(len)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Moves the connection to the engine of the export that was chosen.
    fn enter(self, handshake: Handshake, choice: Choice) -> Verdict {
        let found = match self.place.shared.exports.find(&choice.export) {
            Ok(found) => found,
            Err(error) => return Verdict::Refused(Box::new((self, handshake)), error),
        };
        let (peer, deadline) = (self.peer.clone(), self.deadline);
        let (answer, verdict) = mpsc::sync_channel(1);
        // Shared, so that the client is still here if the engine never calls.
        let parcel = Arc::new(Mutex::new(Some((self, handshake))));
        let parcel_sent = Arc::clone(&parcel);
        let serve: Serve = Box::new(move |io, device| {
            let parcel = parcel_sent.lock().unwrap_or_else(PoisonError::into_inner).take();
            let Some((client, handshake)) = parcel else { return async {}.boxed_local() };
            match pin_contexts(&*device, &choice) {
                Ok(()) => {
                    let _ = answer.send(Verdict::Taken);
                    client.transmit(handshake, choice, io, device).boxed_local()
                }
                Err(error) => {
                    let _ = answer.send(Verdict::Refused(Box::new((client, handshake)), error));
                    async {}.boxed_local()
                }
            }
        });
        let error = match found.run(peer, serve) {
            Ok(()) => match verdict.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(verdict) => return verdict,
                Err(RecvTimeoutError::Disconnected) => {
                    Error::new(ErrorKind::Interrupted, "the export is closing")
                }
                Err(RecvTimeoutError::Timeout) => Error::new(ErrorKind::Interrupted, "the export is busy"),
            },
            Err(error) => error,
        };
        match parcel.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(back) => Verdict::Refused(Box::new(back), error),
            None => Verdict::Taken,
        }
    }

    /// The rest of the connection, on the engine's thread.
    async fn transmit(self, handshake: Handshake, choice: Choice, io: Io, device: Rc<dyn Device>) {
        let Self { place, stream, peer, .. } = self;
        let mut greeting = BytesMut::new();
        handshake::accept(&choice, &describe_device(&*device), &mut greeting);
        let socket = stream
            .into_fd()
            .map_err(|error| Error::os("cannot prepare a socket", error))
            .and_then(|descriptor| io.adopt(descriptor));
        let socket = match socket {
            Ok(socket) => socket,
            Err(error) => {
                tracing::warn!(peer, "a client is lost: {error}");
                return;
            }
        };
        tracing::info!(peer, export = choice.export, "connected");
        let session = Session::new(&choice, greeting.freeze(), handshake.into_leftover());
        let line = Arc::clone(&place.socket);
        let hang_up: Rc<dyn Fn()> = Rc::new(move || {
            let _ = rustix::net::shutdown(&line, Shutdown::Both);
        });
        let terms =
            Terms { patience: Some(place.shared.limits.patience), budget: place.shared.budget.clone() };
        let end = transmission::serve_on(terms, io, socket, device, session, hang_up).await;
        tracing::info!(peer, export = choice.export, ?end, "disconnected");
        drop(place);
    }
}

/// Pins the snapshots whose deltas the client will ask for.
fn pin_contexts(device: &dyn Device, choice: &Choice) -> Result<()> {
    for selected in &choice.contexts {
        if let Context::Delta(snapshot) = &selected.context {
            device.pin_delta(snapshot)?;
        }
    }
    Ok(())
}
