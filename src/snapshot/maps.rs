//! Pages of blocks out of maps of granules and frozen maps out of layers.

use super::volume::{State, Volume};
use crate::error::{ErrorKind, Result};
use crate::map::{BitMap, PAGE_BITS, PAGE_WORDS, Page, Words};
use crate::types::Epoch;
use bitvec::order::Lsb0;
use bitvec::view::BitView;
use std::ops::Range;
use std::rc::Rc;

/// After every epoch.
const MAX: Epoch = Epoch(u64::MAX);

/// A page of blocks from the page of granules that holds it.
pub(super) fn expand(granule_page: &Page, page: u64, shift: u32) -> Words {
    let mut words = [0; PAGE_WORDS];
    if shift == 0 {
        granule_page.load(&mut words);
        return words;
    }
    let first = ((page * PAGE_BITS) >> shift) % PAGE_BITS;
    let mut block = 0;
    while block < PAGE_BITS {
        let granule = first + (block >> shift);
        let end = (((block >> shift) + 1) << shift).min(PAGE_BITS);
        if u16::try_from(granule).is_ok_and(|g| granule_page.get(g)) {
            set_words(&mut words, block..end);
        }
        block = end;
    }
    words
}

/// Sets a range of bits.
pub(super) fn set_words(words: &mut Words, bits: Range<u64>) {
    words.view_bits_mut::<Lsb0>()[index(bits.start)..index(bits.end)].fill(true);
}

/// Whether the bit of a block is set in its page.
pub(super) fn has_bit(words: &Words, block: u64) -> bool {
    words.view_bits::<Lsb0>()[index(block % PAGE_BITS)]
}

fn index(bit: u64) -> usize {
    usize::try_from(bit).expect("a page has few bits")
}

/// The part of a range that lies in a page, counted from the page's start.
pub(super) fn part_of(range: &Range<u64>, page: u64) -> Range<u64> {
    let start = page * PAGE_BITS;
    range.start.max(start) - start..range.end.min(start + PAGE_BITS).saturating_sub(start)
}

/// The runs of set bits in a page, as blocks.
pub(super) fn runs_of(words: &Words, page: u64) -> Vec<Range<u64>> {
    let mut map = BitMap::new();
    map.set_page(page, Page::from_words(words));
    let range = page * PAGE_BITS..(page + 1) * PAGE_BITS;
    map.runs(range).filter(|(_, set)| *set).map(|(r, _)| r).collect()
}

impl State {
    /// Which blocks of a page are in use in a map of granules.
    pub fn used_words(&self, map: &BitMap, page: u64) -> Words {
        expand(&map.page(page >> self.shift()), page, self.shift())
    }

    /// A page of granules of the snapshot taken at `epoch`.
    pub fn frozen_page(&self, epoch: Epoch, granule_page: u64) -> Result<Page> {
        if let Some(map) = self.frozen.get(&epoch) {
            return Ok(map.page(granule_page));
        }
        if let Some(page) = self.chain.meta_page(granule_page, epoch)? {
            return Ok(page);
        }
        let younger = self.frozen.range(epoch..).next().map(|(_, map)| map);
        Ok(younger.unwrap_or(&self.production).page(granule_page))
    }

    /// The same for somebody careful: all, where that is not known any more.
    pub fn frozen_words_or_all(&self, epoch: Epoch, page: u64) -> Result<Words> {
        match self.frozen_words(epoch, page) {
            Err(error)
                if error.kind() == ErrorKind::Corrupt && self.chain.pages_whole(epoch..MAX).is_err() =>
            {
                Ok([u64::MAX; PAGE_WORDS])
            }
            done => done,
        }
    }

    /// Which blocks of a page are in use in the snapshot taken at `epoch`.
    pub fn frozen_words(&self, epoch: Epoch, page: u64) -> Result<Words> {
        Ok(expand(&self.frozen_page(epoch, page >> self.shift())?, page, self.shift()))
    }

    /// Adds to the retained map the blocks of a range, in use until now, that snapshots
    /// need in the clone volume.
    pub fn retain(&mut self, blocks: &Range<u64>) -> Result<()> {
        let Some(tail) = self.tail() else { return Ok(()) };
        for page in blocks.start / PAGE_BITS..=(blocks.end - 1) / PAGE_BITS {
            if self.retained.unknown.contains(&page) {
                continue;
            }
            let needed = self.needed_words(tail, page)?;
            let mut mask = [0; PAGE_WORDS];
            set_words(&mut mask, part_of(blocks, page));
            let mut next = self.retained.next.page(page).to_words();
            for i in 0..PAGE_WORDS {
                next[i] |= needed[i] & mask[i];
            }
            self.retained.next.set_page(page, Page::from_words(&next));
        }
        Ok(())
    }

    /// Blocks of a page that some snapshot needs in the clone volume; `older` is known.
    fn needed_words(&self, tail: Epoch, page: u64) -> Result<Words> {
        let mut bits = [0; PAGE_WORDS];
        self.chain.union_bits(page, tail..MAX, &mut bits)?;
        let used = self.frozen_words_or_all(tail, page)?;
        let mut needed = self.retained.older.page(page).to_words();
        for i in 0..PAGE_WORDS {
            needed[i] = (needed[i] | used[i]) & !bits[i];
        }
        Ok(needed)
    }

    /// A step of the walk from the tail to the head that computes an unknown page of the
    /// retained maps: `walk` has seen the snapshots from `end` on.
    fn walk_retained(&self, walk: &mut Walk, page: u64, epoch: Epoch) -> Result<()> {
        self.chain.union_bits(page, epoch..walk.end, &mut walk.bits)?;
        let used = self.frozen_words_or_all(epoch, page)?;
        for ((older, used), bits) in walk.older.iter_mut().zip(&used).zip(walk.bits.iter()) {
            *older |= used & !bits;
        }
        walk.end = epoch;
        Ok(())
    }

    /// The walk is at its end: both maps are known in that page.
    fn end_walk(&mut self, walk: &Walk, page: u64) -> Result<()> {
        let Some(tail) = self.tail() else {
            self.retained.older.set_page(page, Page::Empty);
            self.retained.next.set_page(page, Page::Empty);
            self.retained.unknown.remove(&page);
            return Ok(());
        };
        // What was saved since the walk began is in the tail's layers.
        let mut bits = [0; PAGE_WORDS];
        self.chain.union_bits(page, tail..MAX, &mut bits)?;
        let used = self.frozen_words_or_all(tail, page)?;
        let mut older = *walk.older;
        for i in 0..PAGE_WORDS {
            older[i] &= !used[i] & !bits[i];
        }
        self.retained.older.set_page(page, Page::from_words(&older));
        let mut next = self.needed_words(tail, page)?;
        let used = self.used_words(&self.production, page);
        for i in 0..PAGE_WORDS {
            next[i] &= !used[i];
        }
        self.retained.next.set_page(page, Page::from_words(&next));
        self.retained.unknown.remove(&page);
        Ok(())
    }
}

/// What a walk from the tail to the head has found in a page.
struct Walk {
    /// Blocks that a snapshot older than the tail needs in the clone volume.
    older: Box<Words>,
    /// Blocks with a before-image in any layer seen.
    bits: Box<Words>,
    /// The first epoch seen.
    end: Epoch,
}

impl Volume {
    /// Loads every sealed layer from an epoch on, so that maps can be asked. One whose file
    /// is damaged is made again, or counts as lost.
    pub(super) async fn load_from(self: &Rc<Self>, epoch: Epoch) -> Result<()> {
        if self.s.borrow().chain.is_alarmed() {
            self.heal().await?;
        }
        loop {
            let missing = self.s.borrow().chain.unloaded(epoch);
            if missing.is_empty() {
                return Ok(());
            }
            for epochs in missing {
                self.load_layer(epochs).await?;
            }
            self.kick_mender();
        }
    }

    async fn load_layer(&self, epochs: Range<Epoch>) -> Result<()> {
        let record = self.s.borrow().durable.layer(epochs.start).cloned();
        let Some(record) = record else { return Ok(()) };
        let loaded = self.sources().load(&record).await?;
        let mut s = self.s.borrow_mut();
        // Meanwhile somebody else may have loaded it, or a deletion replaced it.
        let current = s.durable.layer(epochs.start) == Some(&record);
        let wanted = s.chain.is_unloaded(&epochs);
        if current && wanted {
            s.take_in(&record, loaded, &self.name());
        }
        Ok(())
    }

    /// Makes the retained maps known over a range.
    pub(super) async fn know_retained(self: &Rc<Self>, blocks: &Range<u64>) -> Result<()> {
        while self.s.borrow().retained.unknown_in(blocks).is_some() {
            self.load_from(Epoch(0)).await?;
            let page = self.s.borrow().retained.unknown_in(blocks);
            if let Some(page) = page {
                Box::pin(self.resolve_retained(page)).await?;
            }
        }
        Ok(())
    }

    /// Walks from the tail to the head for a page, in steps where the queue is long. If it
    /// changes meanwhile the page stays unknown, and is walked for again.
    async fn resolve_retained(&self, page: u64) -> Result<()> {
        let (queue, changes) = {
            let s = self.s.borrow();
            (s.queue(), s.retained.changes())
        };
        let end = queue.last().copied().unwrap_or(MAX);
        let (older, bits) = (Box::new([0; PAGE_WORDS]), Box::new([0; PAGE_WORDS]));
        let mut walk = Walk { older, bits, end };
        self.s.borrow().chain.union_bits(page, end..MAX, &mut walk.bits)?;
        for (index, epoch) in queue.iter().rev().skip(1).enumerate() {
            if (index + 1).is_multiple_of(self.tuning.steps_at_once) {
                self.io.step_aside().await;
                if self.s.borrow().retained.changes() != changes {
                    return Ok(());
                }
            }
            self.s.borrow().walk_retained(&mut walk, page, *epoch)?;
        }
        let mut s = self.s.borrow_mut();
        if s.retained.unknown.contains(&page) {
            s.end_walk(&walk, page)?;
        }
        Ok(())
    }
}
