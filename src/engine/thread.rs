//! An engine: one reactor, the volumes that live there, and an inbox.
//!
//! Whoever holds a [`Handle`] hands it closures, which run beside the volumes and may
//! start tasks; they are how every command reaches a volume. Nothing of a volume is ever
//! touched elsewhere. A [`Worker`] turns an engine over: an [`EngineThread`] on a thread
//! of its own, a simulation several of them on one thread in an order of its choice.

use super::clients::Clients;
use super::digests::Comparisons;
use super::receive::Receives;
use super::send::Sends;
use crate::error::{Error, ErrorKind, Result};
use crate::io::{Driver, DriverKind, Io, Reactor, Wake, driver};
use crate::snapshot::{TakeTicket, Volume};
use crossbeam::channel::{Receiver, Sender, bounded, unbounded};
use futures::channel::oneshot;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::thread::JoinHandle;
use std::time::Duration;

type Job = Box<dyn FnOnce(&Rc<Engine>) + Send>;

/// What lives in an engine.
pub(super) struct Engine {
    pub io: Io,
    pub volumes: RefCell<BTreeMap<String, Rc<Volume>>>,
    pub clients: Rc<Clients>,
    pub sends: Sends,
    pub comparisons: Comparisons,
    pub receives: Receives,
    /// Takes over several volumes that are between their steps.
    pub tickets: RefCell<BTreeMap<String, TakeTicket>>,
    stopping: Cell<bool>,
}

impl Engine {
    /// The volume of that name.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn volume(&self, name: &str) -> Result<Rc<Volume>> {
        self.volumes.borrow().get(name).map(Rc::clone).ok_or_else(|| no_volume(name))
    }
}

/// Says that there is no such volume.
pub(super) fn no_volume(name: &str) -> Error {
    Error::not_found(format!("there is no volume '{}'", name.escape_debug()))
        .hint("'snapvol list' shows those there are")
}

/// The handle by which other threads reach an engine.
#[derive(Clone)]
pub(super) struct Handle {
    jobs: Sender<Job>,
    waker: Arc<dyn Wake>,
}

/// What a call will answer. The task runs whether or not anybody waits for it.
pub(super) struct Pending<T>(oneshot::Receiver<Result<T>>);

impl<T> Future for Pending<T> {
    type Output = Result<T>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<T>> {
        let answer = Pin::new(&mut self.0).poll(context);
        answer.map(|answer| answer.unwrap_or_else(|_| Err(gone())))
    }
}

fn gone() -> Error {
    Error::new(ErrorKind::Interrupted, "the store is closing, or its engine stopped")
}

impl Handle {
    /// Hands a task to the engine; it comes to the inbox at once, in the order of calls.
    pub fn call<T, F, Fut>(&self, task: F) -> Pending<T>
    where
        T: Send + 'static,
        F: FnOnce(Rc<Engine>) -> Fut + Send + 'static,
        Fut: Future<Output = Result<T>> + 'static,
    {
        let (answer, pending) = oneshot::channel();
        let job: Job = Box::new(move |engine| {
            let future = task(Rc::clone(engine));
            engine.io.run_or_spawn(async move {
                // Nobody waits any more if this fails.
                let _ = answer.send(future.await);
            });
        });
        // If the engine is gone, the job and its answer's sender are dropped with it.
        if self.jobs.send(job).is_ok() {
            self.waker.wake();
        }
        Pending(pending)
    }
}

/// An engine and what turns it over. Dropped, it takes the engine's tasks with it.
pub(super) struct Worker {
    pub engine: Rc<Engine>,
    reactor: Reactor,
    inbox: Receiver<Job>,
}

impl Worker {
    /// An engine without volumes, and how it is reached.
    pub fn new(driver: Box<dyn Driver>) -> (Self, Handle) {
        let (jobs, inbox) = unbounded();
        let reactor = Reactor::new(driver);
        let handle = Handle { jobs, waker: reactor.waker() };
        let engine = Rc::new(Engine {
            io: reactor.io(),
            volumes: RefCell::default(),
            clients: Rc::default(),
            sends: Sends::default(),
            comparisons: Comparisons::default(),
            receives: Receives::default(),
            tickets: RefCell::default(),
            stopping: Cell::new(false),
        });
        (Self { engine, reactor, inbox }, handle)
    }

    /// One turn: what the inbox holds, what the tasks can do, then completions, waiting at
    /// most `timeout` for the first one (`None`: no limit).
    pub fn turn(&mut self, timeout: Option<Duration>) {
        while let Ok(job) = self.inbox.try_recv() {
            job(&self.engine);
        }
        self.reactor.run_ready();
        if !self.engine.stopping.get() {
            self.reactor.turn(timeout);
        }
    }

    /// Turns until somebody says stop.
    fn run(&mut self) {
        while !self.engine.stopping.get() {
            self.turn(None);
        }
    }
}

/// A running engine.
pub(super) struct EngineThread {
    pub handle: Handle,
    join: Option<JoinHandle<()>>,
}

impl EngineThread {
    /// Starts the thread.
    ///
    /// # Errors
    /// `Io` when there is no ring, descriptor or thread to be had.
    pub fn start(number: usize, kind: DriverKind) -> Result<Self> {
        let (ready, started) = bounded(1);
        let join = std::thread::Builder::new()
            .name(format!("engine-{number}"))
            .spawn(move || match driver(kind) {
                Ok(driver) => {
                    let (mut worker, handle) = Worker::new(driver);
                    let _ = ready.send(Ok(handle));
                    worker.run();
                }
                Err(error) => {
                    let _ = ready.send(Err(Error::os("cannot start an engine", error)));
                }
            })
            .map_err(|e| Error::os("cannot start a thread", e))?;
        let handle = started.recv().map_err(|_| gone())??;
        Ok(Self { handle, join: Some(join) })
    }

    /// Ends the thread once its tasks have nothing more to do.
    pub fn stop(&mut self) {
        // The engine hears of it in its turn; the answer is that the thread ends.
        drop(self.handle.call(|engine| async move {
            engine.stopping.set(true);
            Ok(())
        }));
        if let Some(join) = self.join.take()
            && join.join().is_err()
        {
            tracing::error!("an engine thread panicked");
        }
    }
}

impl Drop for EngineThread {
    fn drop(&mut self) {
        if self.join.is_some() {
            self.stop();
        }
    }
}
