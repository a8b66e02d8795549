//! The near end of a connection to a peer store: one far program, for all sessions with it.
//!
//! A thread reads what it says and hands it to the channels, one sends heartbeats, and one ends
//! a connection on which nothing was heard for too long, or whose greeting takes too long. Whoever writes waits for the pipe; when the far program is gone, that ends too.

use super::sender::Event;
use super::wire::{Body, Frame, Greet, Message, broke, far_failure};
use crate::error::{Error, ErrorKind, Result};
use crate::transport::{Destination, Peer};
use std::collections::HashMap;
use std::io::BufRead;
use std::process::ChildStdin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use uuid::Uuid;

/// How often a side that has nothing to say says that it is there.
pub(super) const HEARTBEAT: Duration = Duration::from_secs(1);
/// After how long a silence the other side is taken for dead.
pub(super) const SILENCE_MAX: Duration = Duration::from_secs(5);
/// How long a connection may take until the far program has greeted.
const GREETING_WAIT: Duration = Duration::from_secs(45);

/// What comes into a session: from a channel, or, without one, from its owner.
pub(super) type Inbound = (Option<Uuid>, Event);

/// A connection.
pub(super) struct Link {
    start: Instant,
    writer: Mutex<Option<ChildStdin>>,
    peer: Mutex<Option<Peer>>,
    channels: Mutex<HashMap<Uuid, Sender<Inbound>>>,
    /// Milliseconds since `start`.
    heard: AtomicU64,
    said: AtomicU64,
    greeted: AtomicBool,
    down: AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Link {
    /// Starts the far program; [`Self::greet`] makes it a connection.
    pub fn start(there: &Destination, program: Option<&str>) -> Result<Arc<Self>> {
        let peer = Peer::start(there, program, &["peer"])?;
        Ok(Arc::new(Self {
            start: Instant::now(),
            writer: Mutex::new(None),
            peer: Mutex::new(Some(peer)),
            channels: Mutex::default(),
            heard: AtomicU64::new(0),
            said: AtomicU64::new(0),
            greeted: AtomicBool::new(false),
            down: AtomicBool::new(false),
        }))
    }

    /// Greets and hears the other side's greeting; from then on the connection stands. Returns
    /// the identity of the store there.
    pub fn greet(self: &Arc<Self>, greet: Greet) -> Result<Uuid> {
        let (input, mut output) = match lock(&self.peer).as_mut() {
            Some(peer) => (peer.input(), peer.output()),
            None => return Err(broke()),
        };
        *lock(&self.writer) = Some(input);
        let watched = Arc::clone(self);
        spawn("peer-watch", move || watched.watch())?;
        let beating = Arc::clone(self);
        spawn("peer-beat", move || beating.beat())?;
        let greeted = self.say(&Frame::of_connection(Body::Message(Message::Greet(greet))));
        let heard = greeted.and_then(|()| self.their_greeting(&mut output));
        let store = match heard {
            Ok(greet) => greet.store,
            Err(error) => return Err(self.ended(error)),
        };
        self.note_heard();
        self.greeted.store(true, Ordering::Relaxed);
        let reading = Arc::clone(self);
        spawn("peer-read", move || reading.read(&mut output))?;
        Ok(store)
    }

    fn their_greeting(&self, output: &mut impl BufRead) -> Result<Greet> {
        loop {
            match Frame::read(output)?.map(|frame| frame.body) {
                Some(Body::Message(Message::Greet(greet))) => {
                    greet.version()?;
                    return Ok(greet);
                }
                Some(Body::Message(Message::Failed { kind, message, hint })) => {
                    return Err(far_failure(&kind, &message, hint.as_deref()));
                }
                Some(Body::Heartbeat) => self.note_heard(),
                Some(_) => return Err(Error::invalid("the other side does not begin with a greeting")),
                None => return Err(broke()),
            }
        }
    }

    fn millis(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn note_heard(&self) {
        self.heard.store(self.millis(), Ordering::Relaxed);
    }

    /// Whether it can still be used.
    pub fn is_up(&self) -> bool {
        !self.down.load(Ordering::Relaxed)
    }

    /// What the channel hears goes to `inbox` from now on.
    pub fn join(&self, channel: Uuid, inbox: Sender<Inbound>) -> Result<()> {
        lock(&self.channels).insert(channel, inbox);
        // Whoever ends the connection tells those who joined before.
        if self.is_up() { Ok(()) } else { Err(broke()) }
    }

    /// Nobody listens to the channel any more.
    pub fn leave(&self, channel: Uuid) {
        lock(&self.channels).remove(&channel);
        let leave = Frame { channel, epoch: Uuid::nil(), body: Body::Message(Message::Leave) };
        // A connection that broke needs no leave.
        let _ = self.say(&leave);
    }

    /// Says something; waits while the pipe is full.
    pub fn say(&self, frame: &Frame) -> Result<()> {
        let mut writer = lock(&self.writer);
        let said = match writer.as_mut() {
            Some(output) => frame.write(output),
            None => Err(broke()),
        };
        self.said.store(self.millis(), Ordering::Relaxed);
        said
    }

    /// Ends the far program; all who wait for it are told.
    pub fn kill(&self) {
        self.down.store(true, Ordering::Relaxed);
        if let Some(peer) = lock(&self.peer).as_mut() {
            peer.kill();
        }
    }

    /// Listens whether anything is heard at all.
    fn watch(&self) {
        while self.is_up() {
            std::thread::sleep(HEARTBEAT / 4);
            let silent = self.millis().saturating_sub(self.heard.load(Ordering::Relaxed));
            let greeted = self.greeted.load(Ordering::Relaxed);
            let patience = if greeted { SILENCE_MAX } else { GREETING_WAIT };
            if Duration::from_millis(silent) > patience {
                self.kill();
            }
        }
    }

    /// Sends heartbeats. The pipe may be full, so it is another thread that watches.
    fn beat(&self) {
        while self.is_up() {
            std::thread::sleep(HEARTBEAT / 4);
            let quiet = self.millis().saturating_sub(self.said.load(Ordering::Relaxed));
            if Duration::from_millis(quiet) >= HEARTBEAT && self.greeted.load(Ordering::Relaxed) {
                // The reader hears of a connection that broke.
                let _ = self.say(&Frame::of_connection(Body::Heartbeat));
            }
        }
    }

    /// Hands on what the far side says, until its end.
    fn read(&self, output: &mut impl BufRead) {
        let error = loop {
            let frame = match Frame::read(output) {
                Ok(Some(frame)) => frame,
                Ok(None) => break broke(),
                Err(error) => break error,
            };
            self.note_heard();
            if let Body::Message(message) = frame.body {
                if frame.channel.is_nil() {
                    if let Message::Failed { kind, message, hint } = message {
                        break far_failure(&kind, &message, hint.as_deref());
                    }
                    continue;
                }
                let channels = lock(&self.channels);
                if let Some(inbox) = channels.get(&frame.channel) {
                    // A session that has ended needs no more.
                    let _ = inbox.send((Some(frame.channel), Event::Message(message)));
                }
            }
        };
        let error = self.ended(error);
        for (channel, inbox) in lock(&self.channels).drain() {
            let _ = inbox.send((Some(channel), Event::Down(error.duplicate())));
        }
    }

    /// The connection is over; returns the best explanation there is.
    fn ended(&self, error: Error) -> Error {
        let silent = self.down.swap(true, Ordering::Relaxed);
        let peer = lock(&self.peer).take();
        let Some(mut peer) = peer else { return error };
        if error.kind() != ErrorKind::Interrupted || error.hint_text().is_some() {
            peer.kill();
            return error.context(peer.place().to_owned());
        }
        let place = peer.place().to_owned();
        if silent {
            return Error::new(ErrorKind::Interrupted, format!("{place}: the other side is silent"));
        }
        // What the far program said at its end explains it best. It ends when its input does.
        if let Ok(mut writer) = self.writer.try_lock() {
            writer.take();
        }
        peer.finish().err().unwrap_or(error.context(place))
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<()> {
    let spawned = std::thread::Builder::new().name(name.to_owned()).spawn(work);
    spawned.map(drop).map_err(|error| Error::os("cannot start a thread", error))
}
