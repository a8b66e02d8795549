//! The write procedure.
//!
//! A block that no snapshot needs goes straight to the clone volume; any other is staged
//! and acknowledged, and `settle` carries it over. Why a crash is safe at every point: a
//! staged block is whole in memory that outlives the process before it is acknowledged; a
//! straight one is in the page cache; the record that brings a granule into use is written
//! after its data, and after a reboot counts only if a sync of the clone volume lay between
//! (or nothing but a hole could show).

use super::admission::Admitted;
use super::full::Wanted;
use super::volume::{Volume, Who};
use crate::error::{Error, ErrorKind, Result};
use crate::format::journal::Record;
use crate::map::BitMap;
use crate::types::{Block, Epoch};
use bytes::{Bytes, BytesMut};
use futures::future::join_all;
use std::cell::Cell;
use std::ops::Range;
use std::rc::Rc;

/// What the records of a change need in the journal, in bytes, beside their ranges: two
/// frames, and the barrier that may follow.
pub(super) const RECORD_BYTES: u64 = 256;
/// What a range in a record takes, in bytes.
pub(super) const RANGE_BYTES: u64 = 16;

/// Whole blocks, as a write leaves them.
pub(super) struct Part {
    pub first: u64,
    pub data: Bytes,
}

impl Volume {
    /// Writes bytes at any offset; with `fua` they are durable before it returns.
    ///
    /// # Errors
    /// `OutOfRange`, `ReadOnly`, `Full` (by policy), `Io`.
    pub async fn write(self: &Rc<Self>, who: Who, offset: u64, data: Bytes, fua: bool) -> Result<()> {
        self.write_while(who, &|| true, offset, data, fua).await
    }

    /// The same for somebody who may go: as soon as the write is not wanted any more, it no
    /// longer waits for space.
    ///
    /// # Errors
    /// As for [`Self::write`].
    pub async fn write_while(
        self: &Rc<Self>,
        who: Who,
        wanted: Wanted<'_>,
        offset: u64,
        data: Bytes,
        fua: bool,
    ) -> Result<()> {
        self.pass_brake(who, wanted).await?;
        let staged = Cell::new(0);
        let once = async || {
            staged.set(self.healed(async || self.write_once(who, offset, &data).await).await?);
            Ok(())
        };
        self.with_space(wanted, once).await?;
        self.kick_checkpoint();
        self.paced(staged.get()).await;
        if fua {
            self.flush().await?;
        }
        Ok(())
    }

    /// Checks that a range lies in the volume.
    pub(super) fn in_range(&self, offset: u64, len: u64) -> Result<()> {
        let size = self.s.borrow().durable.geometry.size;
        match offset.checked_add(len) {
            Some(end) if end <= size => Ok(()),
            _ => Err(Error::new(
                ErrorKind::OutOfRange,
                format!("{len} bytes at offset {offset} are outside a volume of {size} bytes"),
            )),
        }
    }

    /// The blocks that must be held to change a range: whole granules.
    pub(super) fn lock_range(&self, offset: u64, len: u64) -> Range<u64> {
        let s = self.s.borrow();
        let blocks = s.durable.geometry.blocks_touching(offset, len);
        let granules = s.granules(&blocks);
        s.blocks(&granules)
    }

    /// Returns how many blocks of it were staged.
    async fn write_once(self: &Rc<Self>, who: Who, offset: u64, data: &Bytes) -> Result<u64> {
        if data.is_empty() {
            return self.in_range(offset, 0).map(|()| 0);
        }
        let granules = data.len() as u64 / u64::from(self.geometry().block_size) + 2;
        let _room = self.journal.reserve(RECORD_BYTES + granules.div_ceil(2) * RANGE_BYTES).await?;
        let admitted = self.admit(who).await?;
        let range = self.lock_range(offset, data.len() as u64);
        let _held = self.locks.lock(range.clone()).await;
        self.in_range(offset, data.len() as u64)?;
        self.know_retained(&range).await?;
        let parts = self.whole_blocks(offset, data).await?;
        let asked: Vec<Range<u64>> = parts.iter().map(|part| self.blocks_of(part)).collect();
        self.touch(std::slice::from_ref(&range), &asked, admitted.epoch).await?;
        self.write_parts(&admitted, &range, parts, &asked).await
    }

    /// Completes the first and the last block from what is there.
    pub(super) async fn whole_blocks(&self, offset: u64, data: &Bytes) -> Result<Vec<Part>> {
        let size = u64::from(self.geometry().block_size);
        let end = offset + data.len() as u64;
        let mut parts = Vec::with_capacity(3);
        let mut at = offset;
        while at < end {
            let block = at / size;
            let from = to_usize(at - offset);
            if at.is_multiple_of(size) && end - at >= size {
                let whole = (end - at) / size * size;
                parts.push(Part { first: block, data: data.slice(from..from + to_usize(whole)) });
                at += whole;
                continue;
            }
            let stop = ((block + 1) * size).min(end);
            let mut merged = self.read_block(Block(block)).await?;
            let skip = to_usize(at - block * size);
            merged[skip..skip + to_usize(stop - at)].copy_from_slice(&data[from..from + to_usize(stop - at)]);
            parts.push(Part { first: block, data: merged.freeze() });
            at = stop;
        }
        Ok(parts)
    }

    /// A block of production; what is not in use is zeros, or the origin's.
    async fn read_block(&self, block: Block) -> Result<BytesMut> {
        let in_use = {
            let s = self.s.borrow();
            if let Some(staged) = s.slots.production(block) {
                return Ok(BytesMut::from(&staged[..]));
            }
            s.in_use(block.0)
        };
        if in_use { self.clone_volume.read(block, 1).await } else { self.unused_block(block.0).await }
    }

    /// Takes care of the other blocks of granules that come into use and are no holes: zeros
    /// for those that a snapshot or a staged write still needs, holes for the rest.
    pub(super) async fn clear_rest(self: &Rc<Self>, range: &Range<u64>, parts: &mut Vec<Part>) -> Result<()> {
        if self.s.borrow().shift() == 0 {
            return Ok(());
        }
        // A deletion may have made it unknown since the range was locked.
        self.know_retained(range).await?;
        let mut rest = BitMap::new();
        {
            let s = self.s.borrow();
            // Also past the end: a larger volume would show what lies there.
            for (run, _) in s.production.runs(s.granules(range)).filter(|(_, used)| !used) {
                for (stale, _) in s.stale.runs(s.blocks(&run)).filter(|(_, stale)| *stale) {
                    rest.set_range(stale);
                }
            }
            for blocks in parts.iter().map(|part| self.blocks_of(part)) {
                if blocks.start < range.end && range.start < blocks.end {
                    rest.clear_range(blocks);
                }
            }
            let zeros = Bytes::from(vec![0; s.durable.geometry.block_size as usize]);
            let kept: Vec<u64> = rest
                .iter_set(range.clone())
                .filter(|b| s.retained.next.get(*b) || s.slots.has(Block(*b)))
                .collect();
            for block in kept {
                rest.clear(block);
                parts.push(Part { first: block, data: zeros.clone() });
            }
        }
        let runs: Vec<Range<u64>> =
            rest.runs(range.clone()).filter(|(_, set)| *set).map(|(run, _)| run).collect();
        for run in runs {
            self.clone_volume.punch(Block(run.start), run.end - run.start).await?;
        }
        Ok(())
    }

    async fn write_parts(
        self: &Rc<Self>,
        admitted: &Admitted,
        range: &Range<u64>,
        mut parts: Vec<Part>,
        asked: &[Range<u64>],
    ) -> Result<u64> {
        let epoch = admitted.epoch;
        self.clear_rest(range, &mut parts).await?;
        let size = self.geometry().block_size as usize;
        let mut straight: Vec<Part> = Vec::new();
        let mut staged: Vec<Part> = Vec::new();
        {
            let s = self.s.borrow();
            let free = s.slots.is_empty() && s.tail_for(epoch).is_none();
            for part in parts {
                if free {
                    straight.push(part);
                    continue;
                }
                for (index, block) in self.blocks_of(&part).enumerate() {
                    let data = part.data.slice(index * size..(index + 1) * size);
                    let waits = s.slots.has(Block(block)) || s.needs_save(Block(block), epoch)?;
                    let kind = if waits { &mut staged } else { &mut straight };
                    kind.push(Part { first: block, data });
                }
            }
        }
        let needs_space = !staged.is_empty() || {
            let s = self.s.borrow();
            s.production.runs(s.granules(range)).any(|(_, used)| !used)
        };
        let count = staged.len() as u64;
        let write = async {
            if needs_space {
                self.space_for_staging(&staged).await?;
            }
            for part in staged {
                self.stage(Block(part.first), epoch, &part.data).await?;
            }
            self.write_straight(straight, size).await
        };
        if let Err(error) = write.await {
            self.note_failed(range);
            return Err(error);
        }
        self.bring_into_use(asked, epoch).await?;
        if needs_space {
            self.found_space();
        }
        Ok(count)
    }

    /// A write to a range failed: what is not in use there may be no hole any more.
    pub(super) fn note_failed(&self, range: &Range<u64>) {
        let mut s = self.s.borrow_mut();
        let unused: Vec<Range<u64>> =
            s.production.runs(s.granules(range)).filter(|(_, used)| !used).map(|(r, _)| r).collect();
        for run in unused {
            let blocks = s.blocks(&run);
            s.stale.set_range(blocks.clone());
            s.forget_punched(&blocks);
        }
        s.untidy = true;
    }

    /// Space that must be there before anything takes more: in the reserve, and, for blocks
    /// that are to be staged, in the clone volume, where one may be a hole.
    pub(super) async fn space_for_staging(self: &Rc<Self>, staged: &[Part]) -> Result<()> {
        if self.reserve.is_lent() {
            return Err(Error::new(ErrorKind::Full, "the last space is lent to a deletion"));
        }
        if self.s.borrow().slots.stage.is_none() {
            if staged.is_empty() {
                return Ok(());
            }
            // There was no space for it when the volume was opened.
            self.map_stage().await?;
        }
        self.fill_reserve(staged.len() as u64).await?;
        let holes: Vec<Block> = {
            let s = self.s.borrow();
            // A granule may be in use of which some blocks were never written.
            let whole = s.shift() == 0;
            let blocks = staged.iter().map(|part| Block(part.first));
            // What is staged has its place already, and somebody may be writing there.
            blocks.filter(|b| !(s.slots.has(*b) || whole && s.in_use(b.0))).collect()
        };
        for block in holes {
            self.clone_volume.allocate(block, 1).await?;
        }
        Ok(())
    }

    pub(super) fn blocks_of(&self, part: &Part) -> Range<u64> {
        part.first..part.first + part.data.len() as u64 / u64::from(self.geometry().block_size)
    }

    async fn write_straight(&self, parts: Vec<Part>, size: usize) -> Result<()> {
        let mut runs: Vec<(u64, u64, Vec<Bytes>)> = Vec::new();
        for part in parts {
            let blocks = (part.data.len() / size) as u64;
            match runs.last_mut() {
                Some((first, count, data)) if *first + *count == part.first => {
                    *count += blocks;
                    data.push(part.data);
                }
                _ => runs.push((part.first, blocks, vec![part.data])),
            }
        }
        if let [(first, _, data)] = &mut runs[..] {
            return self.clone_volume.write(Block(*first), std::mem::take(data)).await;
        }
        let writes = runs.into_iter().map(|(first, _, data)| self.clone_volume.write(Block(first), data));
        join_all(writes).await.into_iter().collect()
    }

    /// The granules of written blocks come into use, in the journal and in the maps.
    pub(super) async fn bring_into_use(&self, asked: &[Range<u64>], epoch: Epoch) -> Result<()> {
        let last = {
            let mut records: [Vec<(u64, u64)>; 2] = Default::default();
            {
                let s = self.s.borrow();
                for blocks in asked {
                    for (run, used) in s.production.runs(s.granules(blocks)) {
                        if used {
                            continue;
                        }
                        let blocks = s.blocks(&run);
                        // Without its data the block would show what lay there, or the zeros of a
                        // hole where the origin has something else.
                        let is_dirty = s.stale.next_set(blocks.start).is_some_and(|b| b < blocks.end);
                        let guarded = is_dirty || self.origin.get().is_some();
                        records[usize::from(guarded)].push((run.start, run.end - run.start));
                    }
                }
            }
            let mut last = None;
            for (guarded, ranges) in [false, true].into_iter().zip(records) {
                if ranges.is_empty() {
                    continue;
                }
                let mut s = self.s.borrow_mut();
                for (start, count) in &ranges {
                    s.mark_used(&(*start..start + count), epoch);
                }
                s.guarded |= guarded;
                drop(s);
                last = Some(self.record(Record::MetaSet { epoch, guarded, ranges }));
            }
            last
        };
        match last {
            Some(seq) => {
                let result = self.journal.written(seq).await;
                self.latch_on(result)
            }
            None => Ok(()),
        }
    }

    /// Copies a block into the stage, waiting for a free slot.
    pub(super) async fn stage(self: &Rc<Self>, block: Block, epoch: Epoch, data: &[u8]) -> Result<()> {
        let needs = self.s.borrow().slots.room();
        let room = self.journal.reserve(needs).await?;
        loop {
            let need = self.s.borrow().slots.unsettled() + 1;
            self.save.reserve(&self.journal, need).await?;
            // What was reserved may have been taken meanwhile: look again before staging.
            if self.s.borrow().slots.unsettled() + 1 > need {
                continue;
            }
            let seq = self.journal.take_seq();
            if self.s.borrow_mut().slots.put(seq, block, epoch, data) {
                // The slot has a promise of its own now.
                drop(room);
                self.kick_settler();
                return Ok(());
            }
            self.kick_settler();
            self.writable(Who::Store)?;
            self.changed.wait().await;
        }
    }
}

fn to_usize(value: u64) -> usize {
    usize::try_from(value).expect("a request is shorter than the address space")
}
