//! Admission: every write belongs to the epoch in which it was let in, and a take waits
//! for those of older epochs.

use super::volume::{Volume, Who};
use crate::error::Result;
use crate::types::Epoch;
use std::rc::Rc;
use std::time::Duration;

/// How long a writer sleeps while a deletion works with the last space there is.
const LENT_RETRY: Duration = Duration::from_millis(10);

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
        loop {
            if self.reserve.is_lent() {
                self.io.sleep(LENT_RETRY).await;
                continue;
            }
            if self.s.borrow().paused == 0 || who == Who::Store {
                self.writable(who)?;
                self.check_gate(who)?;
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
            if self.closing.get()
                && let Some(error) = &*self.space.unsettled.borrow()
            {
                return Err(error.duplicate());
            }
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
}
