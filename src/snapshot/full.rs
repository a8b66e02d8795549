//! What a full disk does: to writers by the volume's policy, to deletions and checkpoints
//! by the reserve.
//!
//! Nothing that was acknowledged ever waits here: its space was allocated before. A writer
//! that waits was not let in, so takes and deletions don't wait for it.

use super::delete::DeleteCheck;
use super::volume::{Volume, Who};
use crate::error::{Error, ErrorKind, Result};
use crate::store::event::Event;
use crate::store::reserve::Lending;
use crate::types::{OnFull, Role};
use futures::future::select;
use std::cell::{Cell, RefCell};
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

/// How long a writer that waits for space sleeps before it looks again.
pub(super) const RETRY: Duration = Duration::from_millis(200);

/// How long nobody may have waited before the log says so.
const QUIET: Duration = Duration::from_secs(5);

/// The share of the stage that may be taken before space is made ahead of it.
const AHEAD: u64 = 16;

/// Bytes that must be free before space is taken ahead of need.
const PLENTY_BYTES: u64 = 512 << 20;

/// Bytes of a sealed layer for each before-image in it, at most: its slot at the load of
/// the table, its place in a list, and a page of its own.
const LAYER_ENTRY_BYTES: u64 = 64;
/// Bytes of a before-page in a sealed layer, at most.
const LAYER_PAGE_BYTES: u64 = 4096 + 24;
/// Bytes of before-pages that the reserve counts with, at most.
const LAYER_PAGES_BYTES_MAX: u64 = 64 << 20;

/// Whether a request is still wanted by whoever asked; it no longer waits if not.
pub type Wanted<'a> = &'a dyn Fn() -> bool;

/// What a volume knows of the space around it.
#[derive(Default)]
pub(super) struct Space {
    /// Writers that wait.
    waiting: Cell<usize>,
    /// There may be more space than before, or another policy. Writers that wait wait for
    /// this and not for any change: each one's own attempt is a change too, and two of them
    /// would wake each other for ever.
    pub freed: Event,
    /// The log says that they do.
    told: Cell<bool>,
    /// The last write that needed space was refused.
    refused: Cell<bool>,
    /// Why staged writes can't be settled, if they meet a full disk.
    pub unsettled: RefCell<Option<Error>>,
    /// The save volume is given space ahead of need.
    pub preparing: Cell<bool>,
    /// There was none a short while ago.
    scarce: Cell<bool>,
    /// Nobody waits: the volume is being opened.
    pub impatient: Cell<bool>,
    /// Snapshots deleted to make room.
    dropped: Cell<u64>,
    /// Bytes that the layers of the snapshot with the largest ones take, about.
    layers: Cell<u64>,
}

/// How a volume stands with the space around it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SpaceSummary {
    /// Requests of writers that wait for space.
    pub waiting: usize,
    /// The last write that needed space was refused.
    pub refused: bool,
    /// Snapshots deleted to make room, since the volume was opened.
    pub dropped: u64,
    /// Bytes kept back for deletions.
    pub reserved: u64,
    /// Bytes that should be kept back.
    pub reserve_wanted: u64,
}

/// One writer that waits for space, until it is dropped.
pub(super) struct Waiting(Rc<Volume>);

impl Drop for Waiting {
    fn drop(&mut self) {
        let space = &self.0.space;
        space.waiting.set(space.waiting.get() - 1);
        if space.waiting.get() > 0 || !space.told.get() || self.0.closing.get() {
            return;
        }
        // Where a little space comes back again and again, that fills no log.
        let volume = Rc::clone(&self.0);
        self.0.io.spawn(async move {
            volume.io.sleep(QUIET).await;
            if volume.space.waiting.get() == 0 && volume.space.told.replace(false) {
                tracing::info!("volume {}: no writer waits for space any more", volume.name());
            }
        });
    }
}

impl Volume {
    /// From now on, writers here stand back while another volume of the store works with
    /// its reserve.
    pub fn share_lending(&self, lending: &Lending) {
        self.reserve.share(lending);
    }

    /// How it stands with the space around it.
    #[must_use]
    pub fn space(&self) -> SpaceSummary {
        SpaceSummary {
            waiting: self.space.waiting.get(),
            refused: self.space.refused.get(),
            dropped: self.space.dropped.get(),
            reserved: self.reserve.bytes(),
            reserve_wanted: self.reserve.wanted(),
        }
    }

    /// Nobody waits for space any more: the volume is about to be closed.
    pub fn stop_waiting(&self) {
        self.closing.set(true);
        self.journal.close();
        self.changed.notify();
        self.space.freed.notify();
    }

    /// Sees to it that the save volume has space before writers need it: all of them would
    /// wait for the syncs that a new segment takes.
    pub(super) fn kick_space(self: &Rc<Self>) {
        let fill = self.s.borrow().slots.fill();
        if fill.taken * AHEAD > fill.slots {
            self.make_space_ahead(fill.slots / 2);
        }
    }

    /// The same before a take: from then on every write needs some. It is enough until more is
    /// made behind the first writes.
    pub(super) async fn space_for_take(self: &Rc<Self>) {
        let slots = self.s.borrow().slots.fill().slots;
        self.make_space_ahead(slots / AHEAD);
        while self.space.preparing.get() {
            self.changed.wait().await;
        }
    }

    /// Makes it, beside writers, for what is staged and for so many blocks more.
    fn make_space_ahead(self: &Rc<Self>, ahead: u64) {
        let space = &self.space;
        let blocks = self.s.borrow().slots.unsettled() + usize::try_from(ahead).unwrap_or(usize::MAX);
        if space.preparing.get() || space.scarce.get() || self.closing.get() {
            return;
        }
        if self.save.has_room(blocks as u64) || self.writable(Who::Store).is_err() || self.reserve.is_lent() {
            return;
        }
        space.preparing.set(true);
        let volume = Rc::clone(self);
        self.io.spawn(async move {
            let free = volume.io.free(volume.paths.0.clone()).await.unwrap_or(0);
            // The last space is for what is needed now, the reserve above all. Whoever needs
            // it hears why there is none.
            let scarce = free < PLENTY_BYTES || volume.save.reserve(&volume.journal, blocks).await.is_err();
            volume.space.scarce.set(scarce);
            volume.space.preparing.set(false);
            volume.changed.notify();
            if scarce {
                volume.io.sleep(RETRY).await;
                volume.space.scarce.set(false);
            }
        });
    }

    /// Does a step of a request until it has found space, or is not to wait for any.
    ///
    /// # Errors
    /// What the step says; `Full` by policy.
    pub(super) async fn with_space(
        self: &Rc<Self>,
        wanted: Wanted<'_>,
        step: impl AsyncFn() -> Result<()>,
    ) -> Result<()> {
        let mut waiting = None;
        while let Err(error) = step().await {
            if self.passed_gate(&error, wanted).await {
                continue;
            }
            self.on_full(error, wanted, &mut waiting).await.map_err(|e| self.named(e))?;
        }
        Ok(())
    }

    /// What becomes of a request that met a full disk: `Ok` when it is to be tried again.
    async fn on_full(
        self: &Rc<Self>,
        error: Error,
        wanted: Wanted<'_>,
        waiting: &mut Option<Waiting>,
    ) -> Result<()> {
        // No space that comes back unlatches a volume.
        let hopeless = self.closing.get() || self.space.impatient.get() || self.writable(Who::Store).is_err();
        if error.kind() != ErrorKind::Full || hopeless || !wanted() {
            return Err(error);
        }
        if self.reserve.is_lent() {
            // It met the space that is lent to a deletion, and is let in after that.
            return Ok(());
        }
        // What nobody needs goes first.
        if self.save.give_back(&self.journal).await? {
            return Ok(());
        }
        if self.punching.get() {
            self.space.freed.wait().await;
            return Ok(());
        }
        let (policy, role) = {
            let s = self.s.borrow();
            (s.durable.on_full, s.durable.role)
        };
        // Whoever feeds a secondary is told, and tries again by himself.
        if policy == OnFull::Readonly || (role == Role::Secondary && policy == OnFull::Freeze) {
            return Err(self.refuse(error));
        }
        if policy == OnFull::DropOldest {
            if self.busy.get() {
                // Somebody deletes already, or takes a snapshot.
                self.io.sleep(RETRY).await;
                return Ok(());
            }
            if self.drop_oldest(&error).await {
                return Ok(());
            }
            if role == Role::Secondary {
                return Err(self.refuse(error));
            }
        }
        if waiting.is_none() {
            self.space.waiting.set(self.space.waiting.get() + 1);
            *waiting = Some(Waiting(Rc::clone(self)));
            if !self.space.told.replace(true) {
                tracing::warn!("volume {}: writers wait for space: {error}", self.name());
            }
            // What was settled leaves space for a little more.
            select(pin!(self.io.sleep(RETRY)), pin!(self.space.freed.wait())).await;
            return Ok(());
        }
        // It has staged a part of itself before it met the full disk again: that settles, too,
        // and whoever took it for a sign would go round and round.
        self.io.sleep(RETRY).await;
        Ok(())
    }

    /// A write that needs space is refused, and the log says so once.
    fn refuse(&self, error: Error) -> Error {
        if !self.space.refused.replace(true) {
            tracing::warn!("volume {}: writes are refused: {error}", self.name());
        }
        error.hint("delete snapshots, or free space in the file system of the store")
    }

    /// A write that needed space was done.
    pub(super) fn found_space(&self) {
        if self.space.refused.replace(false) {
            tracing::info!("volume {}: there is space again, writes are taken", self.name());
        }
    }

    /// A group of staged writes was settled, or why not.
    pub(super) fn note_settled(&self, failed: Option<&Error>) {
        if failed.is_none() {
            self.space.freed.notify();
        }
        let full = failed.filter(|e| e.kind() == ErrorKind::Full).map(Error::duplicate);
        if let Some(error) = failed
            && (full.is_none() || self.space.unsettled.borrow().is_none())
        {
            tracing::warn!("volume {}: staged writes wait: {error}", self.name());
        }
        *self.space.unsettled.borrow_mut() = full;
    }

    /// Waits until the journal has space for all that is staged.
    pub(super) async fn wait_for_journal(&self) -> Result<()> {
        let mut told = false;
        loop {
            match self.journal.ensure_for_command().await {
                Err(error) if error.kind() == ErrorKind::Full && !self.closing.get() => {
                    if !std::mem::replace(&mut told, true) {
                        tracing::warn!("volume {}: a flush waits for space: {error}", self.name());
                    }
                    self.io.sleep(RETRY).await;
                }
                other => return other,
            }
        }
    }

    /// At an open: finds space for what it took over. Where there is none for the
    /// before-images, the staged writes wait where they are.
    ///
    /// # Errors
    /// `Full` when there is not even space for a record; `Io`.
    pub(super) async fn settle_space(self: &Rc<Self>) -> Result<()> {
        match self.with_reserve(|| self.space_for_staged()).await {
            Err(error) if error.kind() == ErrorKind::Full => {
                tracing::warn!("volume {}: staged writes wait for space: {error}", self.name());
                let hint = "free space in the file system of the store, then open it again";
                self.journal.ensure_for_command().await.map_err(|e| e.hint(hint))
            }
            other => other,
        }
    }

    async fn space_for_staged(&self) -> Result<()> {
        self.journal.ensure().await?;
        let staged = self.s.borrow().slots.unsettled();
        if staged > 0 {
            self.save.reserve(&self.journal, staged).await?;
        }
        Ok(())
    }

    /// Makes the reserve of a volume with snapshots whole, if it can.
    ///
    /// # Errors
    /// `Io`.
    pub(super) async fn refill(&self) -> Result<()> {
        if self.s.borrow().slots.stage.is_none() {
            return Ok(());
        }
        self.weigh_layers();
        match self.fill_reserve(0).await {
            Err(error) if error.kind() == ErrorKind::Full => {
                tracing::warn!("volume {}: no space for its reserve: {error}", self.name());
                Ok(())
            }
            other => other,
        }
    }

    /// Deletes the oldest snapshot that nobody needs; false if there is none.
    async fn drop_oldest(self: &Rc<Self>, why: &Error) -> bool {
        let oldest = {
            let s = self.s.borrow();
            let mut queue = s.durable.snapshots.iter();
            let free = queue.find(|r| {
                !r.is_internal() && !s.hidden.contains(&r.uuid) && s.can_delete(r.uuid) == DeleteCheck::Free
            });
            free.map(|r| (r.uuid, r.name.clone()))
        };
        let Some((uuid, name)) = oldest else { return false };
        tracing::warn!("volume {}: deleting the oldest snapshot, {name}, to make room: {why}", self.name());
        if let Err(error) = self.delete(&[uuid]).await {
            tracing::error!("volume {}: cannot delete snapshot {name}: {error}", self.name());
            return false;
        }
        self.space.dropped.set(self.space.dropped.get() + 1);
        // What it held in the clone volume is given back before another one has to go.
        while self.punching.get() {
            self.changed.wait().await;
        }
        true
    }

    /// Does work that frees space, with the reserve where the disk is too full for it.
    ///
    /// # Errors
    /// Those of the work.
    pub async fn with_reserve<T, F>(self: &Rc<Self>, work: impl Fn() -> F) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        match work().await {
            Err(error) if error.kind() == ErrorKind::Full && self.reserve.bytes() > 0 => {}
            other => return other,
        }
        self.lending_reserve(work()).await
    }

    /// Does work that frees space while the reserve is lent. It must not wait for anybody
    /// who may wait for space.
    pub(super) async fn lending_reserve<T>(
        self: &Rc<Self>,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let lent = self.reserve.lend().await?;
        let result = work.await;
        self.reserve.take_back(lent).await;
        self.changed.notify();
        self.space.freed.notify();
        result
    }

    /// Makes the reserve as large as the deletion of any snapshot could need it, once
    /// `staged` more blocks have been saved.
    ///
    /// # Errors
    /// `Full`, `Io`.
    pub(super) async fn fill_reserve(&self, staged: u64) -> Result<()> {
        self.want_reserve(staged);
        match self.reserve.fill().await {
            // Dropping what was half received gives space back: it does not wait for a reserve.
            Err(error) if error.kind() == ErrorKind::Full && self.is_aborting() => Ok(()),
            filled => filled,
        }
    }

    /// What was half received is being dropped.
    fn is_aborting(&self) -> bool {
        self.s.borrow().durable.receive.as_ref().is_some_and(|receive| receive.aborting)
    }

    /// Whether the reserve is as [`Self::fill_reserve`] would make it.
    pub(super) fn has_reserve(&self, staged: u64) -> bool {
        self.want_reserve(staged);
        self.reserve.is_whole()
    }

    fn want_reserve(&self, staged: u64) {
        let open: u64 = {
            let s = self.s.borrow();
            s.chain.open_entries() + (s.slots.len() + s.slots.saving) as u64
        };
        // Sealed once, and once more as what an older snapshot takes over.
        let growing = 2 * (open + staged) * LAYER_ENTRY_BYTES;
        let stage = self.s.borrow().slots.bytes();
        self.reserve.want(self.tuning.reserve_bytes + stage + self.space.layers.get() + growing);
    }

    /// Sealed layers came or went: what the deletion of one snapshot writes at most.
    pub(super) fn weigh_layers(&self) {
        let s = self.s.borrow();
        let mut largest = 0;
        let mut of_one = (0, 0);
        for layer in &s.durable.layers {
            // Both lists are in the order of epochs, and there may be thousands of each.
            let owner = s.durable.snapshots.partition_point(|r| r.epoch <= layer.first);
            if owner != of_one.0 {
                of_one = (owner, 0);
            }
            of_one.1 += layer.entries * LAYER_ENTRY_BYTES;
            largest = largest.max(of_one.1);
        }
        let pages = s.production.page_count() * LAYER_PAGE_BYTES;
        let touched = s.touched.page_count() * LAYER_PAGE_BYTES;
        // In the layer that is sealed and in the one that takes over, and in each one's second
        // file of them; and those of the touched maps in a checkpoint.
        let pages = 4 * pages.min(LAYER_PAGES_BYTES_MAX) + touched.min(LAYER_PAGES_BYTES_MAX);
        self.space.layers.set(largest + pages);
    }
}
