//! The reactor: one thread's tasks, the operations they wait for, and the driver.
//!
//! An [`Io`] is the tasks' handle: it submits operations and gives futures of their
//! completions. It opens nothing itself and knows no clock; the driver does.

use super::{Driver, FileId, Mapped, Op, OpId, OpenHow, Outcome, Output, Part, Region, Shown, Wake, Work};
use crate::error::{Error, Result};
use bytes::{Bytes, BytesMut};
use futures::executor::{LocalPool, LocalSpawner};
use futures::task::LocalSpawnExt;
use slab::Slab;
use std::cell::{Cell, RefCell};
use std::future::Future;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use uuid::Uuid;

/// An operation under way.
enum Slot {
    /// Nobody asked yet.
    Waiting(Option<Waker>),
    /// It ended before it was asked for.
    Done(Outcome),
    /// Its future is gone; the result is dropped when it comes.
    Abandoned,
}

struct Inner {
    driver: RefCell<Box<dyn Driver>>,
    slots: RefCell<Slab<Slot>>,
    spawner: LocalSpawner,
    /// Operations that the driver has and has not completed.
    under_way: Cell<usize>,
}

/// The handle by which tasks of one reactor submit operations and spawn tasks.
#[derive(Clone)]
pub struct Io(Rc<Inner>);

/// One thread's executor over one driver.
pub struct Reactor {
    pool: LocalPool,
    io: Io,
    done: Vec<(OpId, Outcome)>,
}

impl Reactor {
    /// A reactor without tasks.
    #[must_use]
    pub fn new(driver: Box<dyn Driver>) -> Self {
        let pool = LocalPool::new();
        let io = Io(Rc::new(Inner {
            driver: RefCell::new(driver),
            slots: RefCell::new(Slab::new()),
            spawner: pool.spawner(),
            under_way: Cell::new(0),
        }));
        Self { pool, io, done: Vec::new() }
    }

    /// The tasks' handle.
    #[must_use]
    pub fn io(&self) -> Io {
        self.io.clone()
    }

    /// What ends a wait of this reactor from another thread.
    #[must_use]
    pub fn waker(&self) -> Arc<dyn Wake> {
        self.io.0.driver.borrow().waker()
    }

    /// Runs every task as far as it goes without waiting.
    pub fn run_ready(&mut self) {
        self.pool.run_until_stalled();
    }

    /// One turn: runs what can run, then takes completions, waiting at most `timeout`
    /// for the first one (`None`: no limit).
    pub fn turn(&mut self, timeout: Option<Duration>) {
        self.run_ready();
        self.io.0.driver.borrow_mut().wait(timeout, &mut self.done);
        for (id, outcome) in self.done.drain(..) {
            self.io.complete(id, outcome);
        }
        self.run_ready();
    }

    /// Whether the driver has operations that did not complete yet.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.io.0.under_way.get() > 0
    }

    /// Runs until `future` is done, other tasks beside it.
    ///
    /// # Panics
    /// If nothing is under way that could ever finish the future.
    pub fn block_on<T: 'static>(&mut self, future: impl Future<Output = T> + 'static) -> T {
        let result = Rc::new(RefCell::new(None));
        let cell = Rc::clone(&result);
        self.io.spawn(async move {
            let value = future.await;
            *cell.borrow_mut() = Some(value);
        });
        loop {
            self.run_ready();
            if let Some(value) = result.borrow_mut().take() {
                return value;
            }
            assert!(self.is_busy(), "a task waits for something that nobody does");
            self.turn(None);
        }
    }
}

impl Io {
    /// Runs a task beside the others.
    pub fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        // Spawning fails only once the pool is gone, and then nothing runs anyway.
        let _ = self.0.spawner.spawn_local(task);
    }

    /// Runs a task, at once as far as it goes without waiting.
    ///
    /// What needs no waiting (a cached read, a write that is done inline) then costs no
    /// task at all.
    pub fn run_or_spawn(&self, task: impl Future<Output = ()> + 'static) {
        let mut task: Pin<Box<dyn Future<Output = ()>>> = Box::pin(task);
        let mut context = Context::from_waker(Waker::noop());
        if task.as_mut().poll(&mut context).is_pending() {
            self.spawn(task);
        }
    }

    /// Starts an operation.
    pub fn submit(&self, op: Op) -> Completion {
        let id = self.0.slots.borrow_mut().insert(Slot::Waiting(None));
        let outcome = self.0.driver.borrow_mut().submit(id, op);
        match outcome {
            Some(outcome) => self.0.slots.borrow_mut()[id] = Slot::Done(outcome),
            None => self.0.under_way.set(self.0.under_way.get() + 1),
        }
        Completion { io: self.clone(), id }
    }

    /// Appends `len` bytes of a file to `buffer` if they are at hand (true); else it stays as
    /// it was.
    ///
    /// # Errors
    /// `Io`.
    pub fn read_now(&self, file: FileId, offset: u64, len: usize, buffer: &mut BytesMut) -> Result<bool> {
        let read = self.0.driver.borrow_mut().read_now(file, offset, len, buffer);
        read.map_err(|error| Error::os("cannot read", error))
    }

    /// A part of a file to be sent as it is then, if it is at hand.
    #[must_use]
    pub fn show(&self, file: FileId, offset: u64, len: usize) -> Option<Shown> {
        self.0.driver.borrow_mut().show(file, offset, len)
    }

    /// Writes if that is done at once; `None` when it has to be waited for.
    pub fn write_now(&self, file: FileId, offset: u64, data: &Bytes) -> Option<Result<()>> {
        let written = self.0.driver.borrow_mut().write_now(file, offset, data)?;
        Some(written.map_err(|error| Error::os("cannot write", error)))
    }

    fn complete(&self, id: OpId, outcome: Outcome) {
        self.0.under_way.set(self.0.under_way.get() - 1);
        let mut slots = self.0.slots.borrow_mut();
        match std::mem::replace(&mut slots[id], Slot::Done(outcome)) {
            Slot::Waiting(Some(waker)) => {
                drop(slots);
                waker.wake();
            }
            Slot::Waiting(None) => {}
            Slot::Done(_) => unreachable!("operation {id} completed twice"),
            Slot::Abandoned => {
                slots.remove(id);
            }
        }
    }

    /// How the driver is called.
    #[must_use]
    pub fn driver_name(&self) -> &'static str {
        self.0.driver.borrow().name()
    }

    /// Which boot of the machine this is.
    #[must_use]
    pub fn boot_id(&self) -> [u8; 16] {
        self.0.driver.borrow().boot_id()
    }

    /// An identity that nothing else has.
    #[must_use]
    pub fn identity(&self) -> Uuid {
        self.0.driver.borrow().identity()
    }

    /// The time of day, in microseconds since 1970.
    #[must_use]
    pub fn now_us(&self) -> u64 {
        self.0.driver.borrow().now_us()
    }

    /// Takes over a descriptor that somebody else opened.
    ///
    /// # Errors
    /// What the driver says.
    pub fn adopt(&self, descriptor: OwnedFd) -> Result<FileId> {
        self.0
            .driver
            .borrow_mut()
            .adopt(descriptor)
            .map_err(|e| Error::os("cannot take over a descriptor", e))
    }

    /// Reads exactly `len` bytes; past the end of the file there are zeros.
    ///
    /// # Errors
    /// `Io`.
    pub async fn read(&self, file: FileId, offset: u64, len: usize) -> Result<BytesMut> {
        match self.submit(Op::Read { file, offset, len }).await {
            Ok(Output::Bytes(bytes)) => Ok(bytes),
            other => Err(wrong("read", other)),
        }
    }

    /// Writes one buffer.
    ///
    /// # Errors
    /// `Io`, `Full`.
    pub async fn write(&self, file: FileId, offset: u64, data: Bytes) -> Result<()> {
        self.write_all(file, offset, vec![data]).await
    }

    /// Writes the buffers one after the other.
    ///
    /// # Errors
    /// `Io`, `Full`.
    pub async fn write_all(&self, file: FileId, offset: u64, data: Vec<Bytes>) -> Result<()> {
        nothing("write", self.submit(Op::Write { file, offset, data }).await)
    }

    /// Appends pieces of a file, offset and length, to `into` beside this thread; returns it,
    /// and the numbers of the pieces that were not at hand: zeros are in their places.
    ///
    /// # Errors
    /// `Io`.
    pub async fn read_each(
        &self,
        file: FileId,
        pieces: Vec<(u64, usize)>,
        into: BytesMut,
    ) -> Result<(BytesMut, Vec<usize>)> {
        match self.submit(Op::ReadEach { file, pieces, into }).await {
            Ok(Output::Pieces(bytes, missing)) => Ok((bytes, missing)),
            other => Err(wrong("read", other)),
        }
    }

    /// Writes pieces, each at its offset, beside this thread.
    ///
    /// # Errors
    /// `Io`, `Full`: any of them may have been written.
    pub async fn write_each(&self, file: FileId, pieces: Vec<(u64, Bytes)>) -> Result<()> {
        nothing("write", self.submit(Op::WriteEach { file, pieces }).await)
    }

    /// Makes the file's data durable.
    ///
    /// # Errors
    /// `Io`.
    pub async fn sync(&self, file: FileId) -> Result<()> {
        nothing("sync", self.submit(Op::Sync { file }).await)
    }

    /// Makes the range a hole.
    ///
    /// # Errors
    /// `Io`.
    pub async fn punch(&self, file: FileId, offset: u64, len: u64) -> Result<()> {
        nothing("punch a hole", self.submit(Op::Punch { file, offset, len }).await)
    }

    /// Allocates space for the range.
    ///
    /// # Errors
    /// `Io`, `Full`.
    pub async fn allocate(&self, file: FileId, offset: u64, len: u64) -> Result<()> {
        nothing("allocate space", self.submit(Op::Allocate { file, offset, len }).await)
    }

    /// Sets the file's size.
    ///
    /// # Errors
    /// `Io`.
    pub async fn truncate(&self, file: FileId, len: u64) -> Result<()> {
        nothing("set the size", self.submit(Op::Truncate { file, len }).await)
    }

    /// The file's size in bytes.
    ///
    /// # Errors
    /// `Io`.
    pub async fn size(&self, file: FileId) -> Result<u64> {
        size("ask for the size", self.submit(Op::Size { file }).await)
    }

    /// Bytes of the file system that the file occupies.
    ///
    /// # Errors
    /// `Io`.
    pub async fn allocated(&self, file: FileId) -> Result<u64> {
        size("ask for the space in use", self.submit(Op::Allocated { file }).await)
    }

    /// Bytes free in the file system of `path`.
    ///
    /// # Errors
    /// `Io`.
    pub async fn free(&self, path: impl Into<PathBuf>) -> Result<u64> {
        size("ask for free space", self.submit(Op::Free { path: path.into() }).await)
    }

    /// Opens a file.
    ///
    /// # Errors
    /// `Io`, `NotFound`; the text names the path.
    pub async fn open(&self, path: &Path, how: OpenHow) -> Result<FileId> {
        match self.submit(Op::Open { path: path.to_owned(), how }).await {
            Ok(Output::File(file)) => Ok(file),
            Err(error) => Err(Error::os(format!("cannot open {}", path.display()), error)),
            other => Err(wrong("open", other)),
        }
    }

    /// Closes a file; it happens in the background.
    pub fn close(&self, file: FileId) {
        drop(self.submit(Op::Close { file }));
    }

    /// Renames, replacing what is there.
    ///
    /// # Errors
    /// `Io`.
    pub async fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        let outcome = self.submit(Op::Rename { from: from.to_owned(), to: to.to_owned() }).await;
        named("rename", from, outcome)
    }

    /// Removes a file.
    ///
    /// # Errors
    /// `Io`.
    pub async fn remove(&self, path: &Path) -> Result<()> {
        named("remove", path, self.submit(Op::Remove { path: path.to_owned() }).await)
    }

    /// Makes a directory.
    ///
    /// # Errors
    /// `Io`.
    pub async fn make_dir(&self, path: &Path) -> Result<()> {
        named("make the directory", path, self.submit(Op::MakeDir { path: path.to_owned() }).await)
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    /// `Io`.
    pub async fn remove_dir(&self, path: &Path) -> Result<()> {
        named("remove the directory", path, self.submit(Op::RemoveDir { path: path.to_owned() }).await)
    }

    /// Makes the names in a directory durable.
    ///
    /// # Errors
    /// `Io`.
    pub async fn sync_dir(&self, path: &Path) -> Result<()> {
        named("sync the directory", path, self.submit(Op::SyncDir { path: path.to_owned() }).await)
    }

    /// The names in a directory, sorted.
    ///
    /// # Errors
    /// `Io`.
    pub async fn list(&self, path: &Path) -> Result<Vec<String>> {
        match self.submit(Op::List { path: path.to_owned() }).await {
            Ok(Output::Names(names)) => Ok(names),
            Err(error) => Err(Error::os(format!("cannot list {}", path.display()), error)),
            other => Err(wrong("list", other)),
        }
    }

    /// Maps a file for reading.
    ///
    /// # Errors
    /// `Io`.
    pub async fn map(&self, path: &Path) -> Result<Mapped> {
        match self.submit(Op::Map { path: path.to_owned() }).await {
            Ok(Output::Mapped(mapped)) => Ok(mapped),
            Err(error) => Err(Error::os(format!("cannot map {}", path.display()), error)),
            other => Err(wrong("map", other)),
        }
    }

    /// Maps a file for writing, making it if needed.
    ///
    /// # Errors
    /// `Io`, `Full`.
    pub async fn map_region(&self, path: &Path, len: u64) -> Result<Rc<dyn Region>> {
        match self.submit(Op::MapRegion { path: path.to_owned(), len }).await {
            Ok(Output::Region(region)) => Ok(region),
            Err(error) => Err(Error::os(format!("cannot map {}", path.display()), error)),
            other => Err(wrong("map", other)),
        }
    }

    /// Receives at most `len` bytes; none at the end of the stream.
    ///
    /// # Errors
    /// `Io`.
    pub async fn recv(&self, file: FileId, len: usize) -> Result<BytesMut> {
        self.recv_into(file, len, BytesMut::new()).await
    }

    /// Receives at most `len` bytes behind those in a buffer; none at the end of the stream.
    ///
    /// # Errors
    /// `Io`.
    pub async fn recv_into(&self, file: FileId, len: usize, into: BytesMut) -> Result<BytesMut> {
        match self.submit(Op::Recv { file, len, into }).await {
            Ok(Output::Bytes(bytes)) => Ok(bytes),
            other => Err(wrong("receive", other)),
        }
    }

    /// Sends all the buffers.
    ///
    /// # Errors
    /// `Io`.
    pub async fn send(&self, file: FileId, data: Vec<Part>) -> Result<()> {
        nothing("send", self.submit(Op::Send { file, data }).await)
    }

    /// Has `work` done beside this thread: what takes longer than others should wait for.
    /// It must depend on nothing but what it was given.
    ///
    /// # Errors
    /// `Io` when no thread can be had for it, or the work panicked.
    pub async fn compute<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
        let made = Arc::new(Mutex::new(None));
        let (work, result) = (Mutex::new(Some(work)), Arc::clone(&made));
        let once = move || {
            let work = work.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(work) = work {
                let value = work();
                *result.lock().unwrap_or_else(PoisonError::into_inner) = Some(value);
            }
        };
        nothing("compute", self.submit(Op::Compute { work: Work(Arc::new(once)) }).await)?;
        let value = made.lock().unwrap_or_else(PoisonError::into_inner).take();
        value.ok_or_else(|| Error::os("cannot compute", std::io::ErrorKind::Other.into()))
    }

    /// Waits for that time.
    pub async fn sleep(&self, time: Duration) {
        let _ = self.submit(Op::Sleep { time }).await;
    }

    /// Lets the other tasks run, and what has completed meanwhile reach them: long work on
    /// this thread does this every few hundred microseconds. [`Self::yield_now`] is not
    /// enough for that, since completions are taken only when no task can run.
    pub async fn step_aside(&self) {
        self.sleep(Duration::ZERO).await;
    }

    /// Lets the other tasks that can run do so once.
    pub async fn yield_now(&self) {
        let mut yielded = false;
        std::future::poll_fn(move |context| {
            if yielded {
                return Poll::Ready(());
            }
            yielded = true;
            context.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
    }
}

fn wrong(what: &str, outcome: Outcome) -> Error {
    match outcome {
        Err(error) => Error::os(format!("cannot {what}"), error),
        Ok(output) => unreachable!("{what} gave {output:?}"),
    }
}

fn nothing(what: &str, outcome: Outcome) -> Result<()> {
    match outcome {
        Ok(Output::None) => Ok(()),
        other => Err(wrong(what, other)),
    }
}

fn size(what: &str, outcome: Outcome) -> Result<u64> {
    match outcome {
        Ok(Output::Size(size)) => Ok(size),
        other => Err(wrong(what, other)),
    }
}

fn named(what: &str, path: &Path, outcome: Outcome) -> Result<()> {
    match outcome {
        Ok(Output::None) => Ok(()),
        Err(error) => Err(Error::os(format!("cannot {what} {}", path.display()), error)),
        other => Err(wrong(what, other)),
    }
}

/// The future of an operation's outcome.
pub struct Completion {
    io: Io,
    id: OpId,
}

impl Future for Completion {
    type Output = Outcome;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Outcome> {
        let mut slots = self.io.0.slots.borrow_mut();
        match &mut slots[self.id] {
            Slot::Waiting(waker) => {
                *waker = Some(context.waker().clone());
                Poll::Pending
            }
            done @ Slot::Done(_) => match std::mem::replace(done, Slot::Abandoned) {
                Slot::Done(outcome) => Poll::Ready(outcome),
                _ => unreachable!("it was done"),
            },
            Slot::Abandoned => unreachable!("a completion was polled after it was ready"),
        }
    }
}

impl Drop for Completion {
    fn drop(&mut self) {
        let mut slots = self.io.0.slots.borrow_mut();
        match slots[self.id] {
            Slot::Waiting(_) => slots[self.id] = Slot::Abandoned,
            Slot::Done(_) | Slot::Abandoned => {
                slots.remove(self.id);
            }
        }
    }
}
