//! Waiting for a condition, and syncs that several callers share.

use crate::error::{Error, Result};
use crate::io::{FileId, Io, Op};
use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::task::{Poll, Waker};

/// So many writes at most lie between two syncs that follow each other closely.
const HURRY_MAX: u64 = 256;
/// After so many of them the disk is set going.
const HURRY_STEP: u64 = 8;

/// Wakes everybody who waits for something to change. A waiter checks its condition,
/// waits, and checks again.
#[derive(Default)]
pub struct Event {
    count: Cell<u64>,
    waiting: RefCell<Vec<Waker>>,
}

impl Event {
    /// Something changed.
    pub fn notify(&self) {
        self.count.set(self.count.get() + 1);
        for waker in self.waiting.take() {
            waker.wake();
        }
    }

    /// Waits for the next change.
    pub async fn wait(&self) {
        let before = self.count.get();
        poll_fn(|context| {
            if self.count.get() != before {
                return Poll::Ready(());
            }
            self.waiting.borrow_mut().push(context.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

/// One file's syncs: who asks while one runs shares the next.
///
/// A failed sync latches: what the kernel dropped then can't be told, so every later
/// one fails until the file is opened anew.
pub struct Syncer {
    io: Io,
    file: Cell<FileId>,
    written: Cell<u64>,
    /// What was written when the last sync began.
    begun: Cell<u64>,
    /// So few writes lay between the last two syncs that the next one will come as soon.
    hurried: Cell<bool>,
    synced: Cell<u64>,
    running: Cell<bool>,
    failed: RefCell<Option<Error>>,
    event: Event,
}

impl Syncer {
    /// For a file whose content counts as durable now.
    #[must_use]
    pub fn new(io: Io, file: FileId) -> Self {
        Self {
            io,
            file: Cell::new(file),
            written: Cell::new(0),
            begun: Cell::new(0),
            hurried: Cell::new(false),
            synced: Cell::new(0),
            running: Cell::new(false),
            failed: RefCell::new(None),
            event: Event::default(),
        }
    }

    /// A write to the file completed.
    pub fn wrote(&self) {
        self.written.set(self.written.get() + 1);
        let since = self.written.get() - self.begun.get();
        if self.hurried.get() && since <= HURRY_MAX && since.is_multiple_of(HURRY_STEP) {
            // What is on its way already, the sync need not wait for as long.
            drop(self.io.submit(Op::WriteBack { file: self.file.get() }));
        }
    }

    /// Whether something was written that no sync covers.
    #[must_use]
    pub fn is_dirty(&self) -> bool {
        self.written.get() > self.synced.get()
    }

    /// How the latched failure reads, if there is one.
    #[must_use]
    pub fn failure(&self) -> Option<Error> {
        self.failed.borrow().as_ref().map(Error::duplicate)
    }

    /// Goes on with another file, all of which is durable.
    pub fn replace(&self, file: FileId) {
        self.file.set(file);
        self.synced.set(self.written.get());
    }

    /// Makes everything written so far durable.
    ///
    /// # Errors
    /// `Io`, for this and every later call.
    pub async fn sync(&self) -> Result<()> {
        let target = self.written.get();
        loop {
            if let Some(error) = self.failure() {
                return Err(error);
            }
            if self.synced.get() >= target {
                return Ok(());
            }
            if self.running.get() {
                self.event.wait().await;
                continue;
            }
            self.running.set(true);
            let covers = self.written.get();
            self.hurried.set(covers - self.begun.replace(covers) <= HURRY_MAX);
            let result = self.io.sync(self.file.get()).await;
            self.running.set(false);
            match result {
                Ok(()) => self.synced.set(self.synced.get().max(covers)),
                Err(error) => *self.failed.borrow_mut() = Some(error),
            }
            self.event.notify();
        }
    }
}
