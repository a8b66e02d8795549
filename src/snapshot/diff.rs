//! The delta between two states of a volume, from the maps alone: whole words at a time,
//! and only pages that some map says were touched.

use super::maps::expand;
use super::volume::{State, Volume};
use crate::error::{Error, Result};
use crate::map::{BitMap, PAGE_BITS, PAGE_WORDS, Page, Words};
use crate::types::Epoch;
use std::collections::BTreeSet;
use std::ops::Range;
use std::rc::Rc;

/// Pages decided before other tasks get their turn.
const PAGES_AT_ONCE: usize = 16;

/// What turns one state into a younger one.
#[derive(Clone, Debug, Default)]
pub struct Delta {
    /// Blocks to write.
    pub write: BitMap,
    /// Blocks to discard.
    pub discard: BitMap,
    /// Bytes in a block.
    pub block_size: u32,
    /// Bytes of the volume in the younger state.
    pub size: u64,
}

/// A run of a delta.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeltaRun {
    /// Its bytes.
    pub bytes: Range<u64>,
    /// To be discarded, not written.
    pub discard: bool,
}

impl Delta {
    /// The runs of a range of bytes, sorted, merged, cut at the volume's end.
    pub fn runs(&self, bytes: Range<u64>) -> impl Iterator<Item = DeltaRun> + '_ {
        let size = u64::from(self.block_size);
        let end = bytes.end.min(self.size);
        let mut at = bytes.start;
        std::iter::from_fn(move || {
            if at >= end {
                return None;
            }
            let block = at / size;
            let next = |map: &BitMap| map.next_set(block);
            let (write, discard) = (next(&self.write), next(&self.discard));
            let discards = match (write, discard) {
                (None, None) => return None,
                (Some(w), Some(d)) => d < w,
                (None, Some(_)) => true,
                (Some(_), None) => false,
            };
            let map = if discards { &self.discard } else { &self.write };
            let first = map.next_set(block)?;
            let stop = map.runs(first..end.div_ceil(size)).next().map_or(first + 1, |(run, _)| run.end);
            let run = (first * size).max(at)..(stop * size).min(end);
            at = run.end;
            (run.start < run.end).then_some(DeltaRun { bytes: run, discard: discards })
        })
    }

    /// What lies past the end of the younger state is gone with it.
    fn cut_off(&mut self) {
        let over = self.size.div_ceil(u64::from(self.block_size))..crate::map::bitmap::BITS_MAX;
        self.write.clear_range(over.clone());
        self.discard.clear_range(over);
    }

    /// Bytes to write and to discard in all.
    #[must_use]
    pub fn totals(&self) -> (u64, u64) {
        let size = u64::from(self.block_size);
        let blocks = self.size.div_ceil(size);
        let excess = blocks * size - self.size;
        let bytes = |map: &BitMap| {
            let last = blocks > 0 && map.get(blocks - 1);
            map.count() * size - if last { excess } else { 0 }
        };
        (bytes(&self.write), bytes(&self.discard))
    }

    /// Whether nothing changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.write.is_empty() && self.discard.is_empty()
    }
}

/// The younger end of a delta at one instant.
struct Now {
    map: BitMap,
    staged: BitMap,
}

impl Volume {
    /// The delta from snapshot `from` to the younger `to`, or to now.
    ///
    /// # Errors
    /// `NotFound`; `Invalid` when `from` is not the older; `Corrupt`, `Io`.
    pub async fn delta(self: &Rc<Self>, from: &str, to: Option<&str>) -> Result<Delta> {
        let from = self.open_snapshot(from)?;
        let to = to.map(|name| self.open_snapshot(name)).transpose()?;
        let target = to.as_ref().map(super::reader::SnapshotReader::uuid);
        self.delta_between(Some(from.uuid()), target).await
    }

    /// The same by identity; without `from`, everything that is in use in `to`. The
    /// snapshots must be kept from deletion by the caller. `from` may be a bookmark: then blocks
    /// may be discarded that were not in use before either.
    ///
    /// # Errors
    /// As for [`Self::delta`].
    pub async fn delta_between(
        self: &Rc<Self>,
        from: Option<uuid::Uuid>,
        to: Option<uuid::Uuid>,
    ) -> Result<Delta> {
        self.delta_within(from, to, 0..u64::MAX).await
    }

    /// The same, of the pages that a range of bytes touches.
    ///
    /// # Errors
    /// As for [`Self::delta`].
    pub async fn delta_within(
        self: &Rc<Self>,
        from: Option<uuid::Uuid>,
        to: Option<uuid::Uuid>,
        bytes: Range<u64>,
    ) -> Result<Delta> {
        let mark = from.and_then(|from| self.s.borrow().durable.bookmark(from).map(|b| b.epoch));
        match mark {
            Some(mark) => self.healed(async || self.delta_since_mark(mark, to, bytes.clone()).await).await,
            None => self.healed(async || self.delta_once(from, to, bytes.clone()).await).await,
        }
    }

    /// The epoch and the size of a snapshot.
    fn end_at(&self, uuid: uuid::Uuid) -> Result<(Epoch, u64)> {
        let found = self.s.borrow().durable.snapshot(uuid).map(|r| (r.epoch, r.size));
        found.ok_or_else(|| Error::not_found(format!("volume {} has no snapshot {uuid}", self.name())))
    }

    /// The delta from a bookmark: what was touched since then, to be written where the younger
    /// end uses it and to be discarded elsewhere.
    async fn delta_since_mark(
        self: &Rc<Self>,
        mark: Epoch,
        to: Option<uuid::Uuid>,
        bytes: Range<u64>,
    ) -> Result<Delta> {
        let younger = to.map(|to| self.end_at(to)).transpose()?;
        let end = younger.map_or(Epoch(u64::MAX), |(epoch, _)| epoch);
        if end <= mark {
            return Err(out_of_order());
        }
        if let Some((epoch, _)) = younger {
            self.load_from(epoch).await?;
        }
        let (geometry, touched, now) = {
            let s = self.s.borrow();
            let now = Now { map: s.production.clone(), staged: BitMap::new() };
            (s.durable.geometry, s.touched.between(mark..end), now)
        };
        let size = younger.map_or(geometry.size, |(_, size)| size);
        let mut delta = Delta { block_size: geometry.block_size, size, ..Delta::default() };
        let wanted = page_range(geometry.block_size, &bytes);
        let pages = touched.pages_from(wanted.start).take_while(|(page, _)| wanted.contains(page));
        for (index, (page, changed)) in pages.enumerate() {
            {
                let s = self.s.borrow();
                let used = match younger {
                    Some((epoch, _)) => s.frozen_words(epoch, page)?,
                    None => s.used_words(&now.map, page),
                };
                let (mut write, mut discard) = (changed.to_words(), changed.to_words());
                for i in 0..PAGE_WORDS {
                    write[i] &= used[i];
                    discard[i] &= !used[i];
                }
                delta.write.set_page(page, Page::from_words(&write));
                delta.discard.set_page(page, Page::from_words(&discard));
            }
            if (index + 1).is_multiple_of(PAGES_AT_ONCE) {
                self.io.step_aside().await;
            }
        }
        delta.cut_off();
        Ok(delta)
    }

    async fn delta_once(
        self: &Rc<Self>,
        from: Option<uuid::Uuid>,
        to: Option<uuid::Uuid>,
        bytes: Range<u64>,
    ) -> Result<Delta> {
        self.seal_closed().await?;
        let older = from.map(|from| self.end_at(from)).transpose()?.map(|(epoch, _)| epoch);
        let younger = to.map(|to| self.end_at(to)).transpose()?;
        if let (Some(older), Some((younger, _))) = (older, younger)
            && older >= younger
        {
            return Err(out_of_order());
        }
        self.load_from(older.or(younger.map(|(e, _)| e)).unwrap_or_default()).await?;
        let (geometry, now) = {
            let s = self.s.borrow();
            // Those from before the older end are part of it.
            let since = older.unwrap_or_default();
            let staged = s.slots.in_order().into_iter().filter(|(_, s)| !s.dead && s.epoch >= since);
            let staged = staged.map(|(_, s)| s.block.0);
            (s.durable.geometry, Now { map: s.production.clone(), staged: staged.collect() })
        };
        let end = younger.map_or(Epoch(u64::MAX), |(epoch, _)| epoch);
        let size = younger.map_or(geometry.size, |(_, size)| size);
        let mut delta = Delta { block_size: geometry.block_size, size, ..Delta::default() };
        let blocks = size.div_ceil(u64::from(geometry.block_size));
        let wanted = page_range(geometry.block_size, &bytes);
        let pages = match older {
            Some(older) => self.s.borrow().touched(older, end, &now)?,
            None => self.s.borrow().used_pages(younger.map(|(e, _)| e), &now, blocks)?,
        };
        let pages: Vec<u64> = pages.range(wanted).copied().take_while(|p| p * PAGE_BITS < blocks).collect();
        let to = younger.map(|(e, _)| e);
        let mut changed = Vec::new();
        for pages in pages.chunks(PAGES_AT_ONCE) {
            {
                let s = self.s.borrow();
                changed.clear();
                changed.resize(pages.len(), [0; PAGE_WORDS]);
                if let Some(older) = older {
                    s.chain.union_pages(pages, older..end, &mut changed)?;
                }
                for (page, changed) in pages.iter().zip(&mut changed) {
                    let (write, discard) = s.delta_page(older, to, *page, &now, changed)?;
                    delta.write.set_page(*page, Page::from_words(&write));
                    delta.discard.set_page(*page, Page::from_words(&discard));
                }
            }
            self.io.step_aside().await;
        }
        delta.cut_off();
        Ok(delta)
    }
}

fn out_of_order() -> Error {
    Error::invalid("the first snapshot is not the older of the two").hint("swap them")
}

/// The pages of blocks that a range of bytes touches.
fn page_range(block_size: u32, bytes: &Range<u64>) -> Range<u64> {
    let page_bytes = PAGE_BITS * u64::from(block_size);
    bytes.start / page_bytes..bytes.end.div_ceil(page_bytes)
}

impl State {
    /// Pages of blocks that some map touched from `from` up to `end`.
    fn touched(&self, from: Epoch, end: Epoch, now: &Now) -> Result<BTreeSet<u64>> {
        // What a lost layer held may have changed.
        self.chain.whole(from..end)?;
        let mut pages: BTreeSet<u64> = self.chain.touched_pages(from..end)?.into_iter().collect();
        let mut granule_pages: BTreeSet<u64> =
            self.chain.touched_meta_pages(from..end)?.into_iter().collect();
        // Frozen maps that are in no layer yet differ from each other, and the last from now.
        let maps: Vec<&BitMap> =
            self.frozen.range(from..).filter(|(e, _)| **e <= end).map(|(_, m)| m).collect();
        for pair in maps.windows(2) {
            granule_pages.extend(pair[0].changed_pages(pair[1]));
        }
        if end == Epoch(u64::MAX) {
            if let Some(last) = maps.last() {
                granule_pages.extend(last.changed_pages(&now.map));
            }
            pages.extend(now.staged.pages().map(|(page, _)| page));
        }
        for page in granule_pages {
            pages.extend(self.pages_of_granules(page));
        }
        Ok(pages)
    }

    /// Pages of blocks in which a snapshot, or production, uses anything.
    fn used_pages(&self, of: Option<Epoch>, now: &Now, blocks: u64) -> Result<BTreeSet<u64>> {
        let mut pages = BTreeSet::new();
        let Some(epoch) = of else {
            for (page, _) in now.map.pages() {
                pages.extend(self.pages_of_granules(page));
            }
            return Ok(pages);
        };
        let granules = blocks.div_ceil(1 << self.shift());
        for page in 0..granules.div_ceil(PAGE_BITS) {
            if !self.frozen_page(epoch, page)?.is_empty() {
                pages.extend(self.pages_of_granules(page));
            }
        }
        Ok(pages)
    }

    fn pages_of_granules(&self, page: u64) -> Range<u64> {
        page << self.shift()..(page + 1) << self.shift()
    }

    /// One page: blocks to write and to discard; `changed` are those that some layer between
    /// the two has.
    fn delta_page(
        &self,
        from: Option<Epoch>,
        to: Option<Epoch>,
        page: u64,
        now: &Now,
        changed: &mut Words,
    ) -> Result<(Words, Words)> {
        let used_to = match to {
            Some(epoch) => self.frozen_words(epoch, page)?,
            None => expand(&now.map.page(page >> self.shift()), page, self.shift()),
        };
        let Some(from) = from else { return Ok((used_to, [0; PAGE_WORDS])) };
        let used_from = self.frozen_words(from, page)?;
        if to.is_none() {
            now.staged.page(page).or_into(changed);
        }
        let (mut write, mut discard) = ([0; PAGE_WORDS], [0; PAGE_WORDS]);
        for i in 0..PAGE_WORDS {
            write[i] = used_to[i] & (!used_from[i] | changed[i]);
            discard[i] = used_from[i] & !used_to[i];
        }
        Ok((write, discard))
    }
}
