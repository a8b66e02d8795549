//! An engine: one thread, one reactor, the volumes that live there.
//!
//! Other threads hand it closures, which run on its thread and may start tasks; they are
//! how every command reaches a volume. Nothing of a volume is ever touched elsewhere.

use super::clients::Clients;
use super::receive::Receives;
use super::send::Sends;
use crate::error::{Error, ErrorKind, Result};
use crate::io::{DriverKind, Io, Reactor, Wake, driver};
use crate::snapshot::{TakeTicket, Volume};
use crate::store::reserve::Lending;
use crossbeam::channel::{Receiver, Sender, bounded, unbounded};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;

type Job = Box<dyn FnOnce(&Rc<Engine>) + Send>;

/// What lives on an engine's thread.
pub(super) struct Engine {
    pub io: Io,
    pub volumes: RefCell<BTreeMap<String, Rc<Volume>>>,
    pub clients: Rc<Clients>,
    pub sends: Sends,
    pub receives: Receives,
    /// Whether a volume of the store, on whatever thread, works with its reserve.
    pub lending: Lending,
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

/// What a call will answer.
pub(super) struct Pending<T>(Receiver<Result<T>>);

impl<T> Pending<T> {
    /// Waits for the answer.
    pub fn wait(self) -> Result<T> {
        self.0.recv().unwrap_or_else(|_| Err(gone()))
    }
}

fn gone() -> Error {
    Error::new(ErrorKind::Interrupted, "the store is closing, or its engine stopped")
}

impl Handle {
    /// Runs a task on the engine's thread and waits for what it answers.
    pub fn call<T, F, Fut>(&self, task: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(Rc<Engine>) -> Fut + Send + 'static,
        Fut: Future<Output = Result<T>> + 'static,
    {
        self.start(task).wait()
    }

    /// Runs a task on the engine's thread.
    pub fn start<T, F, Fut>(&self, task: F) -> Pending<T>
    where
        T: Send + 'static,
        F: FnOnce(Rc<Engine>) -> Fut + Send + 'static,
        Fut: Future<Output = Result<T>> + 'static,
    {
        let (answer, pending) = bounded(1);
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
    pub fn start(number: usize, kind: DriverKind, lending: Lending) -> Result<Self> {
        let (jobs, inbox) = unbounded();
        let (ready, started) = bounded(1);
        let join = std::thread::Builder::new()
            .name(format!("engine-{number}"))
            .spawn(move || match driver(kind) {
                Ok(driver) => {
                    let mut reactor = Reactor::new(driver);
                    let _ = ready.send(Ok(reactor.waker()));
                    run(&mut reactor, &inbox, lending);
                }
                Err(error) => {
                    let _ = ready.send(Err(Error::os("cannot start an engine", error)));
                }
            })
            .map_err(|e| Error::os("cannot start a thread", e))?;
        let waker = started.recv().map_err(|_| gone())??;
        Ok(Self { handle: Handle { jobs, waker }, join: Some(join) })
    }

    /// Ends the thread once its tasks have nothing more to do.
    pub fn stop(&mut self) {
        let _ = self.handle.call(|engine| async move {
            engine.stopping.set(true);
            Ok(())
        });
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

fn run(reactor: &mut Reactor, inbox: &Receiver<Job>, lending: Lending) {
    let engine = Rc::new(Engine {
        io: reactor.io(),
        volumes: RefCell::default(),
        clients: Rc::default(),
        sends: Sends::default(),
        receives: Receives::default(),
        lending,
        tickets: RefCell::default(),
        stopping: Cell::new(false),
    });
    while !engine.stopping.get() {
        while let Ok(job) = inbox.try_recv() {
            job(&engine);
        }
        reactor.run_ready();
        if engine.stopping.get() {
            break;
        }
        reactor.turn(None);
    }
}
