//! The retained maps: blocks that snapshots need in the clone volume though they are not
//! in use any more.
//!
//! `older` holds the blocks that some snapshot older than the tail needs though the tail
//! does not use them; a write to one must save it. `next` holds the blocks that any
//! snapshot needs though production does not use them: what `older` becomes at the next
//! take, and what must not be punched. Both are kept as pages; a page that is *unknown*
//! (after an open or a deletion) is computed by one walk of the queue when it is asked for.

use crate::map::{BitMap, PAGE_BITS};
use crate::types::Block;
use std::collections::BTreeSet;
use std::ops::{Range, RangeInclusive};

/// The two maps.
#[derive(Default)]
pub struct Retained {
    /// Needed by a snapshot older than the tail, not in use in the tail.
    pub older: BitMap,
    /// Needed by any snapshot, not in use in production.
    pub next: BitMap,
    /// Pages of which neither is known.
    pub unknown: BTreeSet<u64>,
    /// How often the queue, or what belongs to a snapshot, changed: a walk of the queue that
    /// began before such a change found nothing.
    changes: u64,
}

impl Retained {
    /// The first page of a range that is not known.
    pub fn unknown_in(&self, blocks: &Range<u64>) -> Option<u64> {
        if self.unknown.is_empty() || blocks.is_empty() {
            return None;
        }
        self.unknown.range(blocks.start / PAGE_BITS..=(blocks.end - 1) / PAGE_BITS).next().copied()
    }

    /// See [`Self::forget`], [`Self::take`] and [`Self::doubt`]: how often they were called.
    pub fn changes(&self) -> u64 {
        self.changes
    }

    /// What is known of these pages is no longer sure.
    pub fn doubt(&mut self, pages: RangeInclusive<u64>) {
        self.changes += 1;
        self.unknown.extend(pages);
    }

    /// A new tail was taken.
    pub fn take(&mut self) {
        self.changes += 1;
        self.older = self.next.clone();
    }

    /// The queue changed in the middle: pages are computed anew where old data may lie in
    /// the clone volume that is not in use, or that a staged write has yet to save.
    pub fn forget(&mut self, stale: &BitMap, staged: impl Iterator<Item = Block>) {
        self.changes += 1;
        self.older = BitMap::new();
        self.next = BitMap::new();
        self.unknown = stale.pages().map(|(page, _)| page).collect();
        self.unknown.extend(staged.map(|block| block.0 / PAGE_BITS));
    }
}
