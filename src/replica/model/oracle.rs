//! What must hold: of every state that a secondary has, and of what each side still has after
//! a crash.
//!
//! - A set's target has the bytes that production had at one moment of one life of the primary.
//! - It has the same bytes at the primary and at every secondary, whatever crashed.
//! - What a receiver has confirmed is still there after its crash, and after the primary's the
//!   primary still has it too: so a delta can always go on from it.
//! - A secondary that is ahead has the states of those behind it.

use crate::types::SetId;
use std::collections::{BTreeMap, BTreeSet};
use uuid::Uuid;

/// The stamps of all blocks; 0: nothing.
pub(super) type Image = Vec<u64>;

/// Blocks of the volume.
pub(super) const BLOCKS: usize = 48;

/// A life of the primary: what production held at its begin, and what was written then.
struct Life {
    first: Image,
    writes: Vec<(usize, u64)>,
}

pub(super) struct Oracle {
    lives: Vec<Life>,
    last_stamp: u64,
    /// What the targets of sets hold.
    images: BTreeMap<Uuid, Image>,
    /// The last set that each secondary has confirmed, by its number.
    confirmed: Vec<Option<(u64, Uuid)>>,
    /// The number of the whole copy that each one began with.
    since: Vec<u64>,
}

impl Oracle {
    pub fn new(secondaries: usize) -> Self {
        let (images, confirmed) = (BTreeMap::new(), vec![None; secondaries + 1]);
        let since = vec![u64::MAX; secondaries + 1];
        Self { lives: Vec::new(), last_stamp: 0, images, confirmed, since }
    }

    /// A life of the primary begins with that in production.
    pub fn begin(&mut self, first: Image) -> usize {
        self.lives.push(Life { first, writes: Vec::new() });
        self.lives.len() - 1
    }

    /// A write or a trim begins in a life; returns what is to be written.
    pub fn write(&mut self, life: usize, block: usize, trim: bool) -> u64 {
        self.last_stamp += 1;
        let stamp = if trim { 0 } else { self.last_stamp };
        self.lives[life].writes.push((block, stamp));
        stamp
    }

    /// The last write of a life was refused: nothing of it is there.
    pub fn refuse(&mut self, life: usize) {
        self.lives[life].writes.pop();
    }

    /// What production holds at the end of a life, so far.
    pub fn last_image(&self, life: usize) -> Image {
        let life = &self.lives[life];
        let mut now = life.first.clone();
        for (block, stamp) in &life.writes {
            now[*block] = *stamp;
        }
        now
    }

    /// What the target of a set that was shipped holds.
    pub fn image(&self, target: Uuid) -> Option<&Image> {
        self.images.get(&target)
    }

    /// The number of the last set that a machine has confirmed.
    pub fn confirmed(&self, machine: usize) -> Option<u64> {
        self.confirmed[machine].map(|(number, _)| number)
    }

    /// A set is about to be shipped whose target holds that.
    pub fn shipped(&mut self, target: Uuid, image: &Image) {
        if let Some(known) = self.images.get(&target) {
            assert_eq!(known, image, "a cut changed");
            return;
        }
        let was = self.lives.iter().any(|life| {
            let mut now = life.first.clone();
            now == *image
                || life.writes.iter().any(|(block, stamp)| {
                    now[*block] = *stamp;
                    now == *image
                })
        });
        assert!(was, "a cut holds what production never did: {image:?}");
        self.images.insert(target, image.clone());
    }

    /// A secondary shows that.
    pub fn shows(&self, secondary: usize, target: Uuid, image: &Image) {
        let known = self.images.get(&target);
        assert_eq!(Some(image), known, "secondary {secondary} shows another state than was shipped");
    }

    /// A secondary confirmed a set.
    pub fn confirms(&mut self, secondary: usize, set: &SetId) {
        let (number, target) = (set.stamp.number, set.target);
        if set.stamp.base.is_none() {
            self.since[secondary] = number;
        }
        let last = self.confirmed[secondary];
        assert!(last.is_none_or(|(last, _)| number >= last), "secondary {secondary} goes back");
        self.confirmed[secondary] = Some((number, target));
    }

    /// A secondary that confirmed a set has these states, by number: where it was following before
    /// the others were where they are, their states are among its own, so it could feed them.
    pub fn could_feed(&self, secondary: usize, states: &[(u64, Uuid)]) {
        let Some((mine, _)) = self.confirmed[secondary] else { return };
        for (other, confirmed) in self.confirmed.iter().enumerate().filter(|(other, _)| *other != secondary) {
            let Some((number, target)) = confirmed else { continue };
            if *number < mine && self.since[secondary] <= *number {
                assert!(
                    states.contains(&(*number, *target)),
                    "secondary {secondary} passed {number}, where {other} is: it has {states:?}"
                );
            }
        }
    }

    /// After an open: the states of that secondary, by number.
    pub fn still_has(&self, secondary: usize, states: &[(u64, Uuid)]) {
        let Some((number, target)) = self.confirmed[secondary] else { return };
        let newest = states.last();
        assert!(
            states.contains(&(number, target)) || newest.is_some_and(|(newest, _)| *newest > number),
            "secondary {secondary} lost what it confirmed: {number}, and has {states:?}"
        );
    }

    /// The last set that was shipped holds what is here.
    pub fn holds(&self, target: Uuid, image: &Image) {
        assert_eq!(self.images.get(&target), Some(image), "the last cut is not what is here");
    }

    /// After an open of the primary: its cuts, with what they hold, and all that deltas can
    /// start from.
    pub fn still_sends(&self, cuts: &BTreeMap<Uuid, Image>, marks: &BTreeSet<Uuid>) {
        for (uuid, image) in cuts {
            if let Some(known) = self.images.get(uuid) {
                assert_eq!(known, image, "a cut changed in a crash");
            }
        }
        for (secondary, confirmed) in self.confirmed.iter().enumerate() {
            if let Some((number, target)) = confirmed {
                assert!(marks.contains(target), "the primary lost {number}, which {secondary} confirmed");
            }
        }
    }
}
