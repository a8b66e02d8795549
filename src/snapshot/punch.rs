//! Punching: data that nobody needs is given back to the file system, in the background.
//!
//! A block is punched when it is stale (not in use, and old data may lie there), no
//! snapshot needs it, and nothing staged is on its way to it. The range is held
//! meanwhile, so a write that comes waits. A punched block stays stale until a later sync
//! of the clone volume: only then is it a hole for good, and new data may come into use
//! there without a barrier.
//!
//! A power cut may take a trim back and leave the hole. So where touched maps are kept, a trim is
//! punched only when it is durably known that something in its region may have changed.

use super::maps::runs_of;
use super::volume::Volume;
use crate::error::Result;
use crate::map::{PAGE_BITS, PAGE_WORDS, Words};
use crate::types::Block;
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

/// Holes punched before the puncher lets the disk rest.
const BURST: usize = 32;
const REST: Duration = Duration::from_millis(5);

impl Volume {
    /// Starts the puncher unless it runs.
    pub(super) fn kick_puncher(self: &Rc<Self>) {
        if self.s.borrow().stale.is_empty() || self.closing.get() || self.punching.replace(true) {
            return;
        }
        let volume = Rc::clone(self);
        self.io.spawn(async move {
            if let Err(error) = volume.punch_all().await {
                tracing::warn!("volume {}: space can't be given back: {error}", volume.name());
            }
            volume.punching.set(false);
            volume.changed.notify();
            volume.space.freed.notify();
        });
    }

    async fn punch_all(self: &Rc<Self>) -> Result<()> {
        let mut next = 0;
        let mut burst = 0;
        loop {
            let page = self.s.borrow().stale.pages_from(next).next().map(|(page, _)| page);
            let Some(page) = page else { return Ok(()) };
            next = page + 1;
            self.know_retained(&(page * PAGE_BITS..(page + 1) * PAGE_BITS)).await?;
            let garbage = self.garbage(page);
            for run in runs_of(&garbage, page) {
                if self.closing.get() {
                    return Ok(());
                }
                self.punch_run(run).await?;
                burst += 1;
                if burst % BURST == 0 {
                    self.io.sleep(REST).await;
                }
            }
            self.io.step_aside().await;
        }
    }

    /// Blocks of a page that nobody needs and that were not punched yet.
    fn garbage(&self, page: u64) -> Words {
        let s = self.s.borrow();
        let mut words = s.stale.page(page).to_words();
        let (next, punched) = (s.retained.next.page(page).to_words(), s.punched.page(page).to_words());
        let used = s.used_words(&s.production, page);
        for i in 0..PAGE_WORDS {
            words[i] &= !next[i] & !punched[i] & !used[i];
        }
        for syncing in s.punched_syncing.values() {
            let syncing = syncing.page(page).to_words();
            for i in 0..PAGE_WORDS {
                words[i] &= !syncing[i];
            }
        }
        words
    }

    async fn punch_run(self: &Rc<Self>, run: Range<u64>) -> Result<()> {
        let _held = self.locks.lock(run.clone()).await;
        self.announced_durably(&run).await?;
        let page = run.start / PAGE_BITS;
        // While it waited a take, a write or a deletion may have changed what is needed.
        self.know_retained(&run).await?;
        let garbage = self.garbage(page);
        let still: Vec<Range<u64>> = {
            let s = self.s.borrow();
            let mut still = Vec::new();
            for part in runs_of(&garbage, page) {
                let part = part.start.max(run.start)..part.end.min(run.end);
                if part.is_empty() {
                    continue;
                }
                if s.slots.is_empty() {
                    still.push(part);
                } else {
                    still.extend(part.filter(|b| !s.slots.has(Block(*b))).map(|b| b..b + 1));
                }
            }
            still
        };
        for part in still {
            self.clone_volume.punch(Block(part.start), part.end - part.start).await?;
            self.s.borrow_mut().punched.set_range(part);
        }
        Ok(())
    }
}
