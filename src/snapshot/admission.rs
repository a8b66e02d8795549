//! Admission: every write belongs to the epoch in which it was let in, and a take waits
//! for those of older epochs. What a full disk does to writers is decided here too.

use super::volume::{Volume, Who};
use crate::error::{Error, ErrorKind, Result};
use crate::types::{Epoch, OnFull};
use std::rc::Rc;
use std::time::Duration;

/// How long a writer that waits for space sleeps before it looks again.
const FULL_RETRY: Duration = Duration::from_millis(200);

/// Bytes of journal that must have space before a write is let in, so that its record does
/// not meet a full disk, which latches.
const JOURNAL_ROOM: u64 = 32 << 10;

/// A write that is under way.
pub(super) struct Admitted {
    volume: Rc<Volume>,
    /// Its epoch.
    pub epoch: Epoch,
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let mut s = self.volume.s.borrow_mut();
        if let Some(count) = s.admitted.get_mut(&self.epoch) {
            *count -= 1;
            if *count == 0 {
                s.admitted.remove(&self.epoch);
                drop(s);
                self.volume.changed.notify();
            }
        }
    }
}

impl Volume {
    /// Lets a write in.
    pub(super) async fn admit(self: &Rc<Self>, who: Who) -> Result<Admitted> {
        self.journal.reserve(JOURNAL_ROOM).await?;
        loop {
            if self.s.borrow().paused == 0 || who == Who::Store {
                self.writable(who)?;
                let mut s = self.s.borrow_mut();
                let epoch = s.epoch;
                *s.admitted.entry(epoch).or_default() += 1;
                return Ok(Admitted { volume: Rc::clone(self), epoch });
            }
            self.changed.wait().await;
        }
    }

    /// Waits until no write of an epoch before `epoch` is under way and all their slots
    /// have been written to the clone volume.
    pub(super) async fn settled_before(self: &Rc<Self>, epoch: Epoch) -> Result<()> {
        loop {
            {
                let s = self.s.borrow();
                if s.admitted.range(..epoch).next().is_none() && s.slots.is_settled_before(epoch) {
                    return Ok(());
                }
            }
            self.writable(Who::Store)?;
            self.kick_settler();
            self.changed.wait().await;
        }
    }

    /// Keeps clients' writes from being let in.
    pub fn pause(&self) {
        self.s.borrow_mut().paused += 1;
    }

    /// The inverse of [`Self::pause`].
    pub fn resume(&self) {
        let mut s = self.s.borrow_mut();
        s.paused = s.paused.saturating_sub(1);
        drop(s);
        self.changed.notify();
    }

    /// What becomes of a write that met a full disk: `Ok` when it is to be tried again.
    pub(super) async fn on_full(self: &Rc<Self>, error: Error) -> Result<()> {
        // No space that comes back unlatches a volume.
        let hopeless = self.closing.get() || self.writable(Who::Store).is_err();
        if error.kind() != ErrorKind::Full || hopeless {
            return Err(error);
        }
        let policy = self.s.borrow().durable.on_full;
        if policy == OnFull::Readonly {
            return Err(error);
        }
        if policy == OnFull::DropOldest && !self.busy.get() && self.drop_oldest().await {
            return Ok(());
        }
        if !std::mem::replace(&mut self.s.borrow_mut().frozen_full, true) {
            tracing::warn!("volume {}: writers wait for space: {error}", self.name());
        }
        self.io.sleep(FULL_RETRY).await;
        Ok(())
    }

    /// Deletes the oldest snapshot that nobody needs; false if there is none.
    async fn drop_oldest(self: &Rc<Self>) -> bool {
        let oldest = {
            let s = self.s.borrow();
            let base = s.durable.receive.as_ref().and_then(|r| r.base);
            s.durable
                .snapshots
                .iter()
                .find(|r| {
                    r.holds.is_empty()
                        && !r.is_internal()
                        && !s.opened.contains_key(&r.uuid)
                        && !s.hidden.contains(&r.uuid)
                        && base != Some(r.uuid)
                })
                .map(|r| (r.uuid, r.name.clone()))
        };
        let Some((uuid, name)) = oldest else { return false };
        tracing::warn!("volume {}: no space left, deleting the oldest snapshot {name}", self.name());
        match self.delete(&[uuid]).await {
            Ok(()) => true,
            Err(error) => {
                tracing::error!("volume {}: cannot delete snapshot {name}: {error}", self.name());
                false
            }
        }
    }
}
