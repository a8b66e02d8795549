//! Flush: what was acknowledged before becomes durable.
//!
//! Staged data goes to the journal as after-images, synced beside the clone volume. Only
//! when new data was written over old remains does a barrier have to follow the clone
//! volume's sync, so nothing waits for more than two syncs in a row.

use super::slots::SlotState;
use super::volume::{Volume, Who};
use crate::error::{Error, Result};
use crate::format::journal::{AfterImage, Record};
use crate::store::event::Event;
use futures::future::join;
use std::cell::{Cell, RefCell};
use std::rc::Rc;

/// Bytes of after-images in one record, about.
const RECORD_BYTES: usize = 4 << 20;

/// Lets flushes that come while one runs share the next.
#[derive(Default)]
pub(super) struct Gate {
    wanted: Cell<u64>,
    done: Cell<u64>,
    running: Cell<bool>,
    failed: RefCell<Option<(u64, Error)>>,
    event: Event,
}

impl Volume {
    /// Makes everything acknowledged before durable.
    ///
    /// # Errors
    /// `Io`; the volume is read-only from then on.
    pub async fn flush(self: &Rc<Self>) -> Result<()> {
        let gate = &self.flushing;
        let mine = gate.wanted.get() + 1;
        gate.wanted.set(mine);
        loop {
            if let Some((upto, error)) = &*gate.failed.borrow()
                && mine <= *upto
            {
                return Err(self.named(error.duplicate()));
            }
            if gate.done.get() >= mine {
                return Ok(());
            }
            if gate.running.get() {
                gate.event.wait().await;
                continue;
            }
            gate.running.set(true);
            let covers = gate.wanted.get();
            let result = self.flush_round().await;
            gate.running.set(false);
            match result {
                Ok(()) => gate.done.set(covers),
                Err(error) => *gate.failed.borrow_mut() = Some((covers, error)),
            }
            gate.event.notify();
        }
    }

    /// Makes durable what was let in before an epoch, once all of that has been settled; what
    /// is staged in that epoch may be lost with the power as it might before. So nothing but
    /// the clone volume has to be synced, unless data was written where old data may lie: then
    /// its records need a barrier, which stands for everything before it.
    pub(super) async fn flush_settled(self: &Rc<Self>) -> Result<()> {
        // One that runs may have taken upon itself to write that barrier.
        while self.flushing.running.get() {
            self.flushing.event.wait().await;
        }
        self.writable(Who::Store)?;
        if self.s.borrow().guarded {
            return self.flush().await;
        }
        self.clone_synced_if_dirty().await
    }

    async fn flush_round(self: &Rc<Self>) -> Result<()> {
        self.writable(Who::Store)?;
        // What is staged has its space, but for what an open on a full disk took over.
        self.wait_for_journal().await?;
        self.journal_in_steps().await;
        let (guarded, images) = {
            let mut s = self.s.borrow_mut();
            let fresh = s.slots.journal_all();
            (std::mem::take(&mut s.guarded), fresh)
        };
        let up_to = self.journal.next_seq();
        self.push_after_images(&images);
        if !guarded {
            let (cloned, journaled) = join(self.clone_synced_if_dirty(), self.journal_synced()).await;
            return cloned.and(journaled);
        }
        if let Err(error) = self.clone_synced_if_dirty().await {
            self.s.borrow_mut().guarded = true;
            return Err(error);
        }
        self.record(Record::Barrier { up_to });
        self.journal_synced().await
    }

    /// Puts most of what is staged into the journal, a part at a time: others get their turn
    /// in between. What comes meanwhile, and what gives way to a newer write, is left to the
    /// step that follows and takes everything.
    async fn journal_in_steps(&self) {
        let at_once = self.tuning.steps_at_once;
        let steps = self.s.borrow().slots.len() / at_once;
        for _ in 0..steps {
            let some = self.s.borrow_mut().slots.journal_some(at_once);
            if some.is_empty() {
                return;
            }
            self.push_after_images(&some);
            self.io.step_aside().await;
        }
    }

    pub(super) fn push_after_images(&self, slots: &[usize]) {
        let per_record = (RECORD_BYTES / self.geometry().block_size as usize).max(1);
        for part in slots.chunks(per_record) {
            let images = self.after_images(part);
            self.record(Record::AfterImages(images));
        }
    }

    /// The content of slots, for the journal.
    pub(super) fn after_images(&self, slots: &[usize]) -> Vec<AfterImage> {
        let s = self.s.borrow();
        slots
            .iter()
            .map(|index| {
                let slot = s.slots.get(*index);
                AfterImage { seq: slot.seq, block: slot.block, epoch: slot.epoch, data: s.slots.data(*index) }
            })
            .collect()
    }

    async fn clone_synced_if_dirty(self: &Rc<Self>) -> Result<()> {
        if self.clone_volume.syncer.is_dirty() { self.clone_synced().await } else { Ok(()) }
    }

    /// Syncs the clone volume; then settled slots are free, and punched blocks are holes
    /// for good.
    pub(super) async fn clone_synced(self: &Rc<Self>) -> Result<()> {
        let (settled, call) = {
            let mut s = self.s.borrow_mut();
            let call = s.punched_syncing.last_key_value().map_or(0, |(k, _)| k + 1);
            let punched = std::mem::take(&mut s.punched);
            s.punched_syncing.insert(call, punched);
            (s.slots.take_settled(), call)
        };
        let result = self.clone_volume.syncer.sync().await;
        let result = self.latch_on(result);
        let seqs = {
            let mut s = self.s.borrow_mut();
            let punched = s.punched_syncing.remove(&call).unwrap_or_default();
            if result.is_err() {
                s.slots.put_back_settled(settled);
                return result;
            }
            for (page, words) in punched.pages() {
                for run in super::maps::runs_of(&words.to_words(), page) {
                    s.stale.clear_range(run);
                }
            }
            settled
                .iter()
                .map(|i| {
                    s.slots.set_state(*i, SlotState::Retired);
                    s.slots.get(*i).seq
                })
                .collect::<Vec<_>>()
        };
        if !seqs.is_empty() {
            let seq = self.record(Record::Settled { seqs });
            let result = self.journal.written(seq).await;
            self.latch_on(result)?;
            let mut s = self.s.borrow_mut();
            for index in settled {
                s.slots.release(index);
            }
            drop(s);
            self.changed.notify();
            self.kick_settler();
        }
        Ok(())
    }

    /// Frees settled slots in the background when somebody waits for them.
    pub(super) fn kick_retire(self: &Rc<Self>) {
        if self.s.borrow().slots.wants_retire() {
            let volume = Rc::clone(self);
            self.io.spawn(async move {
                // A failure latches the volume; whoever writes next hears of it.
                let _ = volume.clone_synced().await;
            });
        }
    }
}
