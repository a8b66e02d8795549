//! Bulk writes: what a receive brings goes to the clone volume without the stage.
//!
//! Nobody waits for a single block of it, so many blocks share one group of before-images
//! and no block is copied into the stage first. Why a crash is safe at every point: a
//! block that a snapshot needs is overwritten only after the group with its before-image
//! is durable, as when a staged write settles; the rest is as for a straight write. Nothing
//! of it is promised until a flush.

use super::admission::Admitted;
use super::volume::{Volume, Who};
use super::write::{Part, RANGE_BYTES, RECORD_BYTES};
use crate::error::Result;
use crate::io::buffers::Buffers;
use crate::types::Block;
use bytes::Bytes;
use futures::future::join_all;
use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::rc::Rc;

/// Bytes in one write to the clone volume, at most. The page cache makes folios of the
/// size of a write, and a small write into a large folio, of which the next delta has
/// many, costs ten times as much.
const WRITE_BYTES_MAX: usize = 64 << 10;

/// Bytes after which the clone volume is synced behind the writer, so that the flush at
/// the end finds little to do.
const SYNC_BYTES: u64 = 8 << 20;

/// What the mark of a group needs in the journal, in bytes.
const MARK_BYTES: u64 = 128;

/// What the bulk writes of a volume share.
#[derive(Default)]
pub(super) struct Bulk {
    /// Bytes since the clone volume was last synced behind them.
    unsynced: Cell<u64>,
    /// It is being synced.
    pub syncing: Cell<bool>,
    /// For before-images.
    pub buffers: RefCell<Buffers>,
}

/// Where the blocks of a bulk write go.
#[derive(Default)]
struct Sorted {
    /// Behind a staged write of the same block.
    staged: Vec<Part>,
    /// To the clone volume.
    straight: Vec<Part>,
    /// Of those, the ones that a snapshot needs.
    needed: Vec<Block>,
}

/// Counts before-images that are about to be saved among those that need space.
struct Saving<'a> {
    volume: &'a Volume,
    count: usize,
}

impl<'a> Saving<'a> {
    fn new(volume: &'a Volume, count: usize) -> Self {
        volume.s.borrow_mut().slots.saving += count;
        Self { volume, count }
    }
}

impl Drop for Saving<'_> {
    fn drop(&mut self) {
        self.volume.s.borrow_mut().slots.saving -= self.count;
    }
}

impl Volume {
    /// Writes pieces of whole blocks (the last block of the volume may end early),
    /// ascending and disjoint, each with its offset.
    ///
    /// # Errors
    /// As for a write; any part of it may have been written then.
    pub(super) async fn write_bulk(self: &Rc<Self>, pieces: &[(u64, Bytes)]) -> Result<()> {
        let once = async || self.healed(async || self.write_bulk_once(pieces).await).await;
        self.with_space(&|| true, once).await?;
        self.kick_checkpoint();
        self.sync_behind(pieces.iter().map(|(_, data)| data.len() as u64).sum());
        Ok(())
    }

    async fn write_bulk_once(self: &Rc<Self>, pieces: &[(u64, Bytes)]) -> Result<()> {
        let size = u64::from(self.geometry().block_size);
        let granules: u64 = pieces.iter().map(|(_, data)| data.len() as u64 / size + 2).sum();
        let groups = granules / self.save.group_count_max() as u64 + 1;
        let needs = RECORD_BYTES + granules.div_ceil(2) * RANGE_BYTES + groups * MARK_BYTES;
        let _room = self.journal.reserve(needs).await?;
        let admitted = self.admit(Who::Store).await?;
        let ranges = merged(pieces.iter().map(|(at, data)| self.lock_range(*at, data.len() as u64)));
        let (Some(first), Some(last)) = (ranges.first(), ranges.last()) else { return Ok(()) };
        // One lock over all of it: nobody else writes while a receive runs.
        let _held = self.locks.lock(first.start..last.end).await;
        let mut parts = Vec::with_capacity(pieces.len());
        for (offset, data) in pieces {
            self.in_range(*offset, data.len() as u64)?;
            parts.extend(self.whole_blocks(*offset, data).await?);
        }
        let asked: Vec<Range<u64>> = parts.iter().map(|part| self.blocks_of(part)).collect();
        self.touch(&ranges, &asked, admitted.epoch).await?;
        for range in &ranges {
            self.know_retained(range).await?;
            self.clear_rest(range, &mut parts).await?;
        }
        if let Err(error) = self.write_sorted(&admitted, &ranges, parts).await {
            for range in &ranges {
                self.note_failed(range);
            }
            return Err(error);
        }
        self.bring_into_use(&asked, admitted.epoch).await
    }

    async fn write_sorted(
        self: &Rc<Self>,
        admitted: &Admitted,
        ranges: &[Range<u64>],
        parts: Vec<Part>,
    ) -> Result<()> {
        let epoch = admitted.epoch;
        let sorted = self.sort(admitted, parts)?;
        let fresh = {
            let s = self.s.borrow();
            ranges.iter().any(|range| s.production.runs(s.granules(range)).any(|(_, used)| !used))
        };
        let saving = Saving::new(self, sorted.needed.len());
        if fresh || !sorted.staged.is_empty() || !sorted.needed.is_empty() {
            self.space_for_staging(&sorted.staged).await?;
        }
        for part in sorted.staged {
            self.stage(Block(part.first), epoch, &part.data).await?;
        }
        if !sorted.needed.is_empty() {
            self.fill_reserve(0).await?;
            loop {
                let need = self.s.borrow().slots.unsettled();
                self.save.reserve(&self.journal, need).await?;
                // What was reserved may have been promised to others meanwhile.
                if self.s.borrow().slots.unsettled() <= need {
                    break;
                }
            }
            let groups = sorted.needed.chunks(self.save.group_count_max());
            let saved = join_all(groups.map(|group| self.save_group(group, epoch))).await;
            saved.into_iter().collect::<Result<()>>()?;
        }
        drop(saving);
        for (first, data) in runs(sorted.straight, self.geometry().block_size as usize) {
            self.clone_volume.write(first, data).await?;
        }
        if fresh {
            self.found_space();
        }
        Ok(())
    }

    fn sort(&self, admitted: &Admitted, parts: Vec<Part>) -> Result<Sorted> {
        let s = self.s.borrow();
        let mut sorted = Sorted::default();
        if s.slots.is_empty() && s.tail_for(admitted.epoch).is_none() {
            return Ok(Sorted { straight: parts, ..sorted });
        }
        let size = s.durable.geometry.block_size as usize;
        for part in parts {
            for (index, block) in self.blocks_of(&part).enumerate() {
                let data = part.data.slice(index * size..(index + 1) * size);
                let part = Part { first: block, data };
                if s.slots.has(Block(block)) {
                    sorted.staged.push(part);
                    continue;
                }
                if s.needs_save(Block(block), admitted.epoch)? {
                    sorted.needed.push(Block(block));
                }
                sorted.straight.push(part);
            }
        }
        sorted.needed.sort_unstable();
        sorted.straight.sort_unstable_by_key(|part| part.first);
        Ok(sorted)
    }

    /// Syncs the clone volume in the background from time to time.
    fn sync_behind(self: &Rc<Self>, written: u64) {
        let since = self.bulk.unsynced.get() + written;
        self.bulk.unsynced.set(since);
        if since < SYNC_BYTES || self.bulk.syncing.replace(true) {
            return;
        }
        self.bulk.unsynced.set(0);
        let volume = Rc::clone(self);
        self.io.spawn(async move {
            // A failure latches the volume; the flush at the end tells.
            let _ = volume.clone_synced().await;
            volume.bulk.syncing.set(false);
            volume.changed.notify();
        });
    }
}

/// Ascending ranges, those that touch merged.
fn merged(ranges: impl Iterator<Item = Range<u64>>) -> Vec<Range<u64>> {
    let mut all: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        match all.last_mut() {
            Some(last) if last.end >= range.start => last.end = last.end.max(range.end),
            _ => all.push(range),
        }
    }
    all
}

/// Adjacent blocks as the writes that they are made with.
fn runs(parts: Vec<Part>, block_size: usize) -> Vec<(Block, Vec<Bytes>)> {
    let mut runs: Vec<(Block, Vec<Bytes>)> = Vec::new();
    let (mut next, mut room) = (0, 0);
    for Part { mut first, mut data } in parts {
        while !data.is_empty() {
            if first != next || room == 0 {
                runs.push((Block(first), Vec::new()));
                room = WRITE_BYTES_MAX.max(block_size);
            }
            let piece = data.split_to(data.len().min(room / block_size * block_size));
            let blocks = (piece.len() / block_size) as u64;
            room -= piece.len();
            if room < block_size {
                room = 0;
            }
            first += blocks;
            next = first;
            if let Some((_, run)) = runs.last_mut() {
                run.push(piece);
            }
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adjacent_blocks_share_a_write_up_to_its_limit() {
        let data = Bytes::from(vec![7; 4096 * 40]);
        let part = |first, blocks: usize| Part { first, data: data.slice(..blocks * 4096) };
        let lens = |parts| -> Vec<(u64, usize)> {
            let runs: Vec<(Block, Vec<Bytes>)> = runs(parts, 4096);
            runs.iter()
                .map(|(first, run)| (first.0, run.iter().map(Bytes::len).sum::<usize>() / 4096))
                .collect()
        };
        assert_eq!(lens(vec![part(3, 1), part(4, 1), part(9, 2)]), [(3, 2), (9, 2)]);
        assert_eq!(lens(vec![part(3, 1), part(4, 40)]), [(3, 16), (19, 16), (35, 9)]);
        let large = Bytes::from(vec![7; 3 << 20]);
        let runs = super::runs(vec![Part { first: 1, data: large }], 1 << 20);
        assert_eq!(runs.iter().map(|(first, _)| first.0).collect::<Vec<_>>(), [1, 2, 3]);
    }

    #[test]
    fn ranges_that_touch_are_one() {
        assert_eq!(merged([0..2, 1..3, 3..4, 6..7].into_iter()), [0..4, 6..7]);
    }
}
