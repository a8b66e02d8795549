//! The pace of flushes: whether they come so often that small writes are better staged.
//!
//! A flush of scattered writes in the clone volume waits until the disk has each of them in
//! its place. What is staged is durable with one write at the journal's end, and goes to its
//! place later, many blocks together. So while flushes follow each other closely, small
//! writes go to the stage even where no snapshot needs the block, and are settled once a
//! flush has covered them.
//!
//! It is only a choice between two ways that are both right, so nothing of it is kept.

use super::slots::Slots;
use super::volume::{State, Volume};
use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

/// Flushes in a row that make it frequent.
const STREAK: u32 = 2;
/// Blocks of a write that still counts as small.
const SMALL_BLOCKS: u64 = 8;
/// A flush covers little if it covers no more than this part of the stage.
const STAGE_SHARE: u64 = 8;
/// How long a staged write waits for a flush.
const LINGER: Duration = Duration::from_millis(20);

/// How flushes follow each other.
#[derive(Default)]
pub(super) struct Pace {
    /// Blocks written since the last flush.
    written: Cell<u64>,
    /// Flushes in a row that covered little.
    streak: Cell<u32>,
    /// Somebody looks after the writes that wait for a flush.
    lingering: Cell<bool>,
    /// There is no space for a stage that is there for this alone.
    stageless: Cell<bool>,
}

impl Pace {
    /// Whether flushes are frequent.
    pub fn is_frequent(&self) -> bool {
        self.streak.get() >= STREAK && !self.stageless.get()
    }

    fn prefers_stage(&self, blocks: u64) -> bool {
        blocks <= SMALL_BLOCKS && self.is_frequent()
    }

    /// So many blocks were written; the stage has `slots`.
    pub fn wrote(&self, blocks: u64, slots: usize) {
        self.written.set(self.written.get() + blocks);
        if self.written.get() > slots as u64 / STAGE_SHARE {
            self.streak.set(0);
        }
    }

    /// A flush begins.
    pub fn flush(&self, slots: usize) {
        let written = self.written.replace(0);
        if written > 0 && written <= slots as u64 / STAGE_SHARE {
            self.streak.set(self.streak.get().saturating_add(1));
        }
    }

    /// What is staged shall wait for no flush.
    pub fn forget(&self) {
        self.streak.set(0);
    }
}

impl Volume {
    /// Notes a write of so many blocks: whether it is better staged.
    pub(super) fn prefers_stage(&self, s: &State, blocks: u64) -> bool {
        self.pace.wrote(blocks, self.stage_slots(s));
        let stage = s.slots.stage.is_some() && !s.slots.is_pressed();
        // Of a larger granule in use, blocks that nobody wrote may be holes.
        stage && s.shift() == 0 && self.pace.prefers_stage(blocks)
    }

    fn stage_slots(&self, s: &State) -> usize {
        let slots = s.slots.slots();
        if slots > 0 { slots } else { Slots::capacity(&s.durable, self.tuning.stage_bytes) }
    }

    /// Notes that a flush begins.
    pub(super) fn note_flush(self: &Rc<Self>) {
        let (slots, staged) = {
            let s = self.s.borrow();
            (self.stage_slots(&s), s.slots.stage.is_some())
        };
        self.pace.flush(slots);
        let wanted = self.pace.is_frequent() && !staged && !self.closing.get();
        if wanted && !self.mapping_stage.get() {
            let volume = Rc::clone(self);
            self.io.spawn(async move {
                if let Err(error) = volume.map_stage().await {
                    tracing::debug!("volume {}: no stage for small flushes: {error}", volume.name());
                    volume.pace.stageless.set(true);
                }
            });
        }
    }

    /// Whether what is staged and not in the journal waits for a flush.
    pub(super) fn awaits_flush(self: &Rc<Self>) -> bool {
        let waits = self.pace.is_frequent() && !self.closing.get() && !self.s.borrow().slots.is_pressed();
        if waits && !self.pace.lingering.replace(true) {
            let volume = Rc::clone(self);
            self.io.spawn(async move {
                let flushes = volume.flushing.count();
                volume.io.sleep(LINGER).await;
                volume.pace.lingering.set(false);
                if volume.flushing.count() == flushes {
                    volume.pace.forget();
                }
                volume.kick_settler();
            });
        }
        waits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_flushes_in_a_row_make_it_frequent() {
        let pace = Pace::default();
        pace.flush(80);
        assert!(!pace.is_frequent(), "nothing was written");
        for _ in 0..2 {
            assert!(!pace.prefers_stage(1));
            pace.wrote(10, 80);
            pace.flush(80);
        }
        assert!(pace.prefers_stage(1) && !pace.prefers_stage(SMALL_BLOCKS + 1));
        pace.wrote(11, 80);
        assert!(!pace.is_frequent(), "much was written since");
        pace.flush(80);
        assert!(!pace.is_frequent());
    }
}
