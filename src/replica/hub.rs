//! The hub: runs the sessions that this store sends, a thread each, over one connection for
//! each peer store.

use super::handover::Wish;
use super::link::{Inbound, Link};
use super::manage;
use super::sender::{self, Event, Port};
use super::warnings::{self, Mark, Say};
use super::wire::{Body, Frame, Greet};
use crate::engine::Store;
use crate::engine::api::SessionStatus;
use crate::error::{Error, ErrorKind, Result};
use crate::format::session::{SessionRecord, Side};
use crate::transport::Destination;
use futures::executor::block_on;
use std::collections::HashMap;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use uuid::Uuid;

/// How long a hook may take.
const HOOK_WAIT: Duration = Duration::from_secs(60);
/// The longest wait for something; anything longer is waited for in steps.
const WAIT_MAX: Duration = Duration::from_secs(3600);

/// A connection to a peer, where there is one: what is connected to whom is decided in turn.
type Place = Arc<Mutex<Option<(Arc<Link>, Uuid)>>>;

struct Shared {
    store: Arc<Store>,
    /// By host, store and program.
    places: Mutex<HashMap<(String, String), Place>>,
    /// Every connection, also one that is still greeting.
    links: Mutex<Vec<std::sync::Weak<Link>>>,
    stopping: AtomicBool,
}

/// A session's thread.
struct Worker {
    inbox: Sender<Inbound>,
    status: Arc<Mutex<SessionStatus>>,
    wishes: u64,
    thread: JoinHandle<()>,
}

/// Runs sessions until it is stopped.
pub struct Hub {
    shared: Arc<Shared>,
    workers: Mutex<HashMap<Uuid, Worker>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Hub {
    /// Runs the sessions of a store.
    #[must_use]
    pub fn start(store: &Arc<Store>) -> Arc<Self> {
        let shared = Shared {
            store: Arc::clone(store),
            places: Mutex::default(),
            links: Mutex::default(),
            stopping: AtomicBool::new(false),
        };
        let hub = Arc::new(Self { shared: Arc::new(shared), workers: Mutex::default() });
        manage::tidy(store);
        hub.refresh();
        hub
    }

    /// Looks at the records again: sessions begin, change and end.
    pub fn refresh(&self) {
        let mut sessions = self.shared.store.core().sessions();
        sessions.retain(|record| record.side == Side::Sender);
        let mut ended = Vec::new();
        {
            let mut workers = lock(&self.workers);
            if self.shared.stopping.load(Ordering::Relaxed) {
                return;
            }
            let gone: Vec<Uuid> = workers
                .keys()
                .copied()
                .filter(|session| !sessions.iter().any(|record| record.session == *session))
                .collect();
            ended.extend(gone.iter().filter_map(|session| workers.remove(session)));
            for record in &sessions {
                match workers.get(&record.session) {
                    Some(worker) => drop(worker.inbox.send((None, Event::Changed))),
                    None => match self.begin(record.session) {
                        Ok(worker) => drop(workers.insert(record.session, worker)),
                        Err(error) => tracing::error!("replication of {}: {error}", record.unit),
                    },
                }
            }
        }
        for worker in ended {
            worker.stop();
        }
    }

    fn begin(&self, session: Uuid) -> Result<Worker> {
        let (inbox, events) = channel();
        let status = Arc::new(Mutex::new(SessionStatus { session, ..SessionStatus::default() }));
        let mut port = HubPort {
            shared: Arc::clone(&self.shared),
            inbox: inbox.clone(),
            events,
            line: None,
            status: Arc::clone(&status),
            start: Instant::now(),
        };
        let thread = std::thread::Builder::new().name("session".to_owned()).spawn(move || {
            let shared = Arc::clone(&port.shared);
            block_on(sender::run(shared.store.core(), &mut port, session));
        });
        let thread = thread.map_err(|error| Error::os("cannot start a thread", error))?;
        Ok(Worker { inbox, status, wishes: 0, thread })
    }

    /// Wants a cut of every session of a volume; returns the sessions and the number of the
    /// wish, which their status shows when it has come true.
    ///
    /// # Errors
    /// `NotFound` when there is no session.
    pub fn cut(&self, volume: &str) -> Result<Vec<(Uuid, u64)>> {
        let core = self.shared.store.core();
        let sessions = core.sessions_named(volume, Side::Sender);
        if sessions.is_empty() {
            core.check_alone(volume, "cut")?;
        }
        let mut wishes = Vec::new();
        let mut workers = lock(&self.workers);
        for record in sessions {
            if let Some(worker) = workers.get_mut(&record.session) {
                worker.wishes += 1;
                wishes.push((record.session, worker.wishes));
                let _ = worker.inbox.send((None, Event::Cut(worker.wishes)));
            }
        }
        if wishes.is_empty() {
            return Err(Error::not_found(format!("volume {volume} has no session that it is sent by")));
        }
        Ok(wishes)
    }

    /// Makes the receiver of a volume's session the primary, and waits for the end of that.
    ///
    /// # Errors
    /// `NotFound` when there is no session, `Invalid` when there are several and none is named;
    /// `Conflict` when writers are connected or would wait for too long; `Interrupted` when it is not
    /// known how it ended: the session finds out.
    pub fn hand_over(
        &self,
        volume: &str,
        session: Option<Uuid>,
        pause_max: Duration,
        force: bool,
    ) -> Result<()> {
        let core = self.shared.store.core();
        let mut sessions = core.sessions_named(volume, Side::Sender);
        if sessions.is_empty() {
            core.check_alone(volume, "failback")?;
        }
        sessions.retain(|record| session.is_none_or(|session| record.session == session));
        let record = match &sessions[..] {
            [] => {
                return Err(Error::not_found(format!("volume {volume} has no session that it is sent by"))
                    .hint("'snapvol status' shows those there are"));
            }
            [one] => one.clone(),
            _ => {
                return Err(Error::invalid(format!("volume {volume} has several sessions"))
                    .hint("run 'snapvol failback' at the side that is to become the primary"));
            }
        };
        let (answer, answered) = futures::channel::oneshot::channel();
        {
            let workers = lock(&self.workers);
            let Some(worker) = workers.get(&record.session) else {
                return Err(Error::conflict("the session is not running"));
            };
            let wish = Wish { pause_max, force, answer };
            let _ = worker.inbox.send((None, Event::HandOver(wish)));
        }
        let done = block_on(answered).unwrap_or_else(|_| {
            Err(Error::new(ErrorKind::Interrupted, "the session ended before the handover did")
                .hint("'snapvol list' shows how the volume stands; the command may be given again"))
        });
        self.refresh();
        done
    }

    /// How all sessions stand, also those that this store receives.
    #[must_use]
    pub fn statuses(&self) -> Vec<SessionStatus> {
        let core = self.shared.store.core();
        let mut all: Vec<SessionStatus> =
            lock(&self.workers).values().map(|worker| lock(&worker.status).clone()).collect();
        // A session may have been forgotten by another one, and its thread not know that yet.
        all.retain(|status| core.session(status.session).is_ok());
        all.extend(manage::idle_statuses(&self.shared.store, true));
        all.sort_by(|a, b| (&a.unit, &a.peer).cmp(&(&b.unit, &b.peer)));
        for status in &mut all {
            if let Ok(record) = self.shared.store.core().session(status.session) {
                status.warnings = warnings::passed(&record.policy, status);
            }
        }
        all
    }

    /// Says in the log which marks sessions have passed since the last look.
    pub fn watch(&self, watch: &mut warnings::Watch) {
        let statuses = self.statuses();
        watch.retain(|session| statuses.iter().any(|status| status.session == session));
        for status in &statuses {
            let Ok(record) = self.shared.store.core().session(status.session) else { continue };
            for say in watch.see(&record.policy, status) {
                match say {
                    Say::Passed(what) => {
                        tracing::warn!("replication of {} to {}: {what}", status.unit, status.peer);
                    }
                    Say::Clear(mark) => {
                        let what = if mark == Mark::Lag { "lag" } else { "backlog" };
                        tracing::info!(
                            "replication of {} to {}: its {what} is below the mark again",
                            status.unit,
                            status.peer
                        );
                    }
                }
            }
        }
    }

    /// Ends all sessions' threads and connections.
    pub fn stop(&self) {
        self.shared.stopping.store(true, Ordering::Relaxed);
        let workers: Vec<Worker> = lock(&self.workers).drain().map(|(_, worker)| worker).collect();
        for worker in &workers {
            let _ = worker.inbox.send((None, Event::Stop));
        }
        for link in lock(&self.shared.links).iter().filter_map(std::sync::Weak::upgrade) {
            link.kill();
        }
        for worker in workers {
            worker.stop();
        }
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Worker {
    fn stop(self) {
        let _ = self.inbox.send((None, Event::Stop));
        if self.thread.join().is_err() {
            tracing::error!("a session's thread panicked");
        }
    }
}

impl Shared {
    /// The connection to a peer, made if there is none.
    fn link(&self, record: &SessionRecord) -> Result<(Arc<Link>, Uuid)> {
        let there: Destination = record.destination.parse()?;
        let host = there.host.as_ref().map(|_| {
            let whole = there.to_string();
            whole.strip_suffix(&format!("/{}", there.volume)).unwrap_or(&whole).to_owned()
        });
        let key = (host.unwrap_or_else(|| there.store.clone()), record.remote_command.clone());
        let place = Arc::clone(lock(&self.places).entry(key).or_default());
        let mut place = lock(&place);
        if let Some((link, store)) = place.as_ref().filter(|(link, _)| link.is_up()) {
            return Ok((Arc::clone(link), *store));
        }
        *place = None;
        let program = Some(record.remote_command.as_str()).filter(|command| !command.is_empty());
        let link = Link::start(&there, program)?;
        {
            let mut links = lock(&self.links);
            links.retain(|link| link.strong_count() > 0);
            links.push(Arc::downgrade(&link));
        }
        if self.stopping.load(Ordering::Relaxed) {
            link.kill();
        }
        let store = link.greet(Greet::of(self.store.core().identity()))?;
        *place = Some((Arc::clone(&link), store));
        Ok((link, store))
    }
}

/// A session's port on its thread.
struct HubPort {
    shared: Arc<Shared>,
    inbox: Sender<Inbound>,
    events: Receiver<Inbound>,
    /// The connection and the channel on it.
    line: Option<(Arc<Link>, Uuid)>,
    status: Arc<Mutex<SessionStatus>>,
    start: Instant,
}

impl Port for HubPort {
    async fn connect(&mut self, record: &SessionRecord) -> Result<Uuid> {
        let (link, store) = self.shared.link(record)?;
        let channel = Uuid::new_v4();
        link.join(channel, self.inbox.clone())?;
        self.line = Some((link, channel));
        Ok(store)
    }

    fn hang_up(&mut self) {
        if let Some((link, channel)) = self.line.take() {
            link.leave(channel);
        }
    }

    async fn say(&mut self, epoch: Uuid, body: Body) -> Result<()> {
        match &self.line {
            Some((link, channel)) => link.say(&Frame { channel: *channel, epoch, body }),
            None => Err(super::wire::broke()),
        }
    }

    async fn next(&mut self, wait: Duration) -> Event {
        let until = Instant::now() + wait.min(WAIT_MAX);
        loop {
            match self.events.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok((None, event)) => return event,
                Ok((of, event)) if of == self.line.as_ref().map(|(_, channel)| *channel) => return event,
                // Of an earlier channel.
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) => return Event::Timeout,
                Err(RecvTimeoutError::Disconnected) => return Event::Stop,
            }
        }
    }

    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    async fn hook(&mut self, name: &str, command: &str, record: &SessionRecord) -> Result<()> {
        run_hook(name, command, record)
    }

    fn show(&mut self, status: &SessionStatus) {
        lock(&self.status).clone_from(status);
    }
}

/// Runs a hook by the shell, with the session in its environment, and waits for its end.
fn run_hook(name: &str, command: &str, record: &SessionRecord) -> Result<()> {
    let failed = |what: &str| {
        Error::new(ErrorKind::Io, format!("the hook {name} {what}: '{}'", command.escape_debug()))
    };
    let mut child = Command::new("sh")
        .args(["-c", command])
        .env("SNAPVOL_HOOK", name)
        .env("SNAPVOL_UNIT", &record.unit)
        .env("SNAPVOL_DEST", &record.destination)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .map_err(|error| Error::os(format!("cannot run the hook {name}"), error))?;
    let until = Instant::now() + HOOK_WAIT;
    loop {
        match child.try_wait() {
            Ok(Some(status)) if status.success() => return Ok(()),
            Ok(Some(status)) => return Err(failed(&format!("ended with {status}"))),
            Ok(None) if Instant::now() < until => std::thread::sleep(Duration::from_millis(5)),
            _ => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(failed("does not end"));
            }
        }
    }
}
