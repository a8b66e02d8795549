//! The reserve: a file of allocated space, so that a deletion or a checkpoint works on a
//! full disk. It holds nothing that anybody reads.
//!
//! Its space is lent: given to the file system for as long as the work takes, and taken
//! back as soon as there is as much again. Meanwhile writers of all volumes of the store
//! let no new write in, so that they don't take it. It is only space, never truth: a crash
//! at any point leaves a file that is missing, short or whole, and the next open makes it
//! whole if it can.

use super::paths::VolumePaths;
use crate::error::{ErrorKind, Result};
use crate::io::{FileId, Io, OpenHow};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What it makes do with, in bytes, and the unit of that.
const LEAST_BYTES: u64 = 64 << 10;
/// Bytes by which it grows.
const STEP_BYTES: u64 = 1 << 20;

/// How many volumes of a store have lent their reserve at this moment; shared by all of
/// them, on whatever thread they are.
#[derive(Clone, Debug, Default)]
pub struct Lending(Arc<AtomicUsize>);

impl Lending {
    /// Whether any volume has.
    #[must_use]
    pub fn is_lent(&self) -> bool {
        self.0.load(Ordering::Acquire) > 0
    }
}

/// A volume's reserve.
pub struct Reserve {
    io: Io,
    paths: VolumePaths,
    /// Bytes that it has now.
    has: Cell<u64>,
    /// Bytes that it should have.
    wants: Cell<u64>,
    filling: Cell<bool>,
    /// How often it is lent at this moment.
    out: Rc<Cell<usize>>,
    lending: RefCell<Lending>,
}

/// The reserve is lent until this is dropped.
pub struct Lent {
    out: Rc<Cell<usize>>,
    lending: Lending,
    given_back: bool,
}

impl Lent {
    fn give_back(&mut self) {
        if !std::mem::replace(&mut self.given_back, true) {
            self.out.set(self.out.get() - 1);
        }
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.give_back();
        self.lending.0.fetch_sub(1, Ordering::Release);
    }
}

impl Reserve {
    /// The one that an earlier process left, if it did.
    ///
    /// # Errors
    /// `Io`.
    pub async fn open(io: Io, paths: VolumePaths) -> Result<Self> {
        let mut has = 0;
        if exists(&io, &paths).await? {
            let file = io.open(&paths.reserve(), OpenHow::Read).await?;
            let allocated = io.allocated(file).await;
            io.close(file);
            has = allocated?;
        }
        Ok(Self::new(io, paths, has))
    }

    fn new(io: Io, paths: VolumePaths, has: u64) -> Self {
        Self {
            io,
            paths,
            has: Cell::new(has),
            wants: Cell::new(0),
            filling: Cell::new(false),
            out: Rc::default(),
            lending: RefCell::default(),
        }
    }

    /// From now on it counts with the other volumes of a store.
    pub fn share(&self, lending: &Lending) {
        *self.lending.borrow_mut() = lending.clone();
    }

    /// Bytes that it has.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.has.get()
    }

    /// Bytes that it should have.
    #[must_use]
    pub fn wanted(&self) -> u64 {
        self.wants.get()
    }

    /// Whether it has what it should have.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.has.get() >= self.wants.get()
    }

    /// Whether the reserve of any volume of the store is lent.
    #[must_use]
    pub fn is_lent(&self) -> bool {
        self.lending.borrow().is_lent()
    }

    /// It should have at least so many bytes; [`Self::fill`] sees to that.
    pub fn want(&self, bytes: u64) {
        self.wants.set(self.wants.get().max(bytes.next_multiple_of(STEP_BYTES)));
    }

    /// Makes it whole, unless it is lent or somebody is at it.
    ///
    /// # Errors
    /// `Full`: it has what it had before; `Io`.
    pub async fn fill(&self) -> Result<()> {
        if self.is_whole() || self.out.get() > 0 || self.filling.replace(true) {
            return Ok(());
        }
        let wants = self.wants.get();
        let result = self.allocate(wants).await;
        self.filling.set(false);
        if result.is_ok() {
            self.has.set(wants);
        }
        result.map_err(|e| e.context("reserve"))
    }

    async fn allocate(&self, bytes: u64) -> Result<()> {
        let path = self.paths.reserve();
        let file = match self.io.open(&path, OpenHow::Write).await {
            Ok(file) => file,
            Err(_) => self.io.open(&path, OpenHow::CreateEmpty).await?,
        };
        let result = async {
            self.resize(file, bytes).await?;
            // A power cut on a full disk must not take it.
            self.io.sync(file).await
        };
        let result = result.await;
        self.io.close(file);
        result?;
        self.io.sync_dir(&self.paths.0).await
    }

    async fn resize(&self, file: FileId, bytes: u64) -> Result<()> {
        let result = self.io.allocate(file, 0, bytes).await;
        if result.as_ref().is_err_and(|e| e.kind() == ErrorKind::Full) {
            // Some file systems keep what they found before they gave up.
            self.io.truncate(file, self.has.get()).await?;
        }
        result
    }

    /// Gives its space to the file system; nobody but the caller is to use it while the
    /// answer lives.
    ///
    /// # Errors
    /// `Io`.
    pub async fn lend(&self) -> Result<Lent> {
        let lending = self.lending.borrow().clone();
        lending.0.fetch_add(1, Ordering::AcqRel);
        self.out.set(self.out.get() + 1);
        let lent = Lent { out: Rc::clone(&self.out), lending, given_back: false };
        self.has.set(0);
        if exists(&self.io, &self.paths).await? {
            self.io.remove(&self.paths.reserve()).await?;
            self.io.sync_dir(&self.paths.0).await?;
        }
        Ok(lent)
    }

    /// The work is done: takes the space back before anybody else can, if there is as much.
    pub async fn take_back(&self, mut lent: Lent) {
        lent.give_back();
        let Err(error) = self.fill().await else { return };
        tracing::debug!("{}: {error}", self.paths.reserve().display());
        // As much as there is; what is missing is asked for again before anything more is
        // staged.
        let mut bytes = self.wants.get();
        while error.kind() == ErrorKind::Full && bytes > LEAST_BYTES && self.out.get() == 0 {
            bytes = (bytes - bytes / 8) / LEAST_BYTES * LEAST_BYTES;
            if self.allocate(bytes).await.is_ok() {
                self.has.set(bytes);
                return;
            }
        }
    }
}

async fn exists(io: &Io, paths: &VolumePaths) -> Result<bool> {
    Ok(io.list(&paths.0).await?.iter().any(|name| name == "reserve"))
}
