//! Trim and write-zeroes.
//!
//! Whole granules go out of use: one record, no data is touched. What snapshots need stays
//! where it is, as its own before-image; what nobody needs is punched out later. Partial
//! granules are written as zeros. A trim that was acknowledged is in the journal, so no
//! crash shows what was there before once a flush covers it.

use super::full::Wanted;
use super::slots::SlotState;
use super::volume::{Volume, Who};
use crate::error::Result;
use crate::format::journal::Record;
use crate::types::{Block, Epoch};
use bytes::Bytes;
use std::cell::Cell;
use std::ops::Range;
use std::rc::Rc;

/// Bytes of zeros written at a time.
const ZERO_STEP: u64 = 1 << 20;
/// Granules trimmed in one record, at most, so that a trim of a whole volume lets others in.
const TRIM_STEP: u64 = 1 << 22;

impl Volume {
    /// Makes a range read as zeros and gives its space back where whole granules are in it.
    ///
    /// # Errors
    /// As for a write.
    pub async fn trim(self: &Rc<Self>, who: Who, offset: u64, len: u64, fua: bool) -> Result<()> {
        self.trim_while(who, &|| true, offset, len, fua).await
    }

    /// The same for somebody who may go: see [`Self::write_while`].
    ///
    /// # Errors
    /// As for a write.
    pub async fn trim_while(
        self: &Rc<Self>,
        who: Who,
        wanted: Wanted<'_>,
        offset: u64,
        len: u64,
        fua: bool,
    ) -> Result<()> {
        self.in_range(offset, len).map_err(|e| self.named(e))?;
        self.pass_brake(who, wanted).await?;
        match self.origin.get() {
            Some(origin) => self.trim_over(&origin, who, wanted, offset..offset + len).await?,
            None => self.trim_own(who, wanted, offset, len).await?,
        }
        if fua {
            self.flush().await?;
        }
        Ok(())
    }

    /// Takes whole granules of a range out of use and writes zeros over the rest.
    pub(super) async fn trim_own(
        self: &Rc<Self>,
        who: Who,
        wanted: Wanted<'_>,
        offset: u64,
        len: u64,
    ) -> Result<()> {
        let (unit, size) = {
            let s = self.s.borrow();
            let geometry = s.durable.geometry;
            (u64::from(geometry.block_size) << s.shift(), geometry.size)
        };
        let end = offset + len;
        let first = offset.div_ceil(unit);
        // The last granule counts as whole when the range reaches the end of the volume.
        let mut last = if end == size { end.div_ceil(unit) } else { end / unit };
        if first < last {
            self.zero_used(who, wanted, offset, first * unit).await?;
            let mut granule = first;
            while granule < last {
                let step = granule..(granule + TRIM_STEP).min(last);
                let whole = Cell::new(true);
                let trim = async || {
                    whole.set(self.trim_granules(who, step.clone(), end).await?);
                    Ok(())
                };
                self.with_space(wanted, trim).await?;
                if whole.get() {
                    granule = step.end;
                } else {
                    last = end / unit;
                }
            }
            self.zero_used(who, wanted, last * unit, end).await?;
        } else {
            self.zero_used(who, wanted, offset, end).await?;
        }
        Ok(())
    }

    /// Writes zeros, keeping or making the space allocated.
    ///
    /// # Errors
    /// As for a write.
    pub async fn write_zeros(self: &Rc<Self>, who: Who, offset: u64, len: u64, fua: bool) -> Result<()> {
        self.write_zeros_while(who, &|| true, offset, len, fua).await
    }

    /// The same for somebody who may go: see [`Self::write_while`].
    ///
    /// # Errors
    /// As for a write.
    pub async fn write_zeros_while(
        self: &Rc<Self>,
        who: Who,
        wanted: Wanted<'_>,
        offset: u64,
        len: u64,
        fua: bool,
    ) -> Result<()> {
        self.in_range(offset, len).map_err(|e| self.named(e))?;
        let zeros = Bytes::from(vec![0; usize::try_from(ZERO_STEP.min(len)).unwrap_or(0)]);
        let mut at = offset;
        while at < offset + len {
            let step = ZERO_STEP.min(offset + len - at);
            let part = zeros.slice(..usize::try_from(step).unwrap_or(0));
            self.write_while(who, wanted, at, part, false).await?;
            at += step;
        }
        if fua {
            self.flush().await?;
        }
        Ok(())
    }

    /// Writes zeros over the parts of a range that are in use.
    async fn zero_used(self: &Rc<Self>, who: Who, wanted: Wanted<'_>, from: u64, to: u64) -> Result<()> {
        let size = u64::from(self.geometry().block_size);
        let mut at = from;
        while at < to {
            let block = at / size;
            let stop = ((block + 1) * size).min(to);
            let range = self.lock_range(at, stop - at);
            let used = {
                // What is not in use must be so in the journal, too: whoever trims it at this
                // moment holds it until then, or has latched the volume.
                let _held = self.locks.lock(range).await;
                self.writable(Who::Store)?;
                let s = self.s.borrow();
                s.in_use(block) || s.slots.has(Block(block))
            };
            // A write may bring the block into use after this look; then both ran at the same
            // time and either may win.
            if used {
                self.write_zeros_while(who, wanted, at, stop - at, false).await?;
            }
            at = stop;
        }
        Ok(())
    }

    /// Trims granules that are whole up to `end`, in bytes; false, and nothing is done, if the
    /// volume has grown meanwhile, so that the last one goes on behind it.
    async fn trim_granules(self: &Rc<Self>, who: Who, granules: Range<u64>, end: u64) -> Result<bool> {
        let needs = {
            let s = self.s.borrow();
            super::write::RECORD_BYTES + s.touched.room(&[s.blocks(&granules)])
        };
        let _room = self.journal.reserve(needs).await?;
        let admitted = self.admit(who).await?;
        let epoch = admitted.epoch;
        let blocks = self.s.borrow().blocks(&granules);
        let _held = self.locks.lock(blocks.clone()).await;
        self.wait_for_flight(&blocks).await?;
        // Pages that nobody uses need not be known.
        let used: Vec<Range<u64>> = {
            let s = self.s.borrow();
            s.production.runs(granules.clone()).filter(|(_, set)| *set).map(|(r, _)| r).collect()
        };
        for run in &used {
            let blocks = self.s.borrow().blocks(run);
            self.know_retained(&blocks).await?;
        }
        let (seq, slots) = {
            {
                let s = self.s.borrow();
                let geometry = s.durable.geometry;
                if blocks.end * u64::from(geometry.block_size) > end && geometry.size > end {
                    return Ok(false);
                }
            }
            let slots = self.slots_in(&blocks);
            if used.is_empty() && slots.is_empty() {
                return Ok(true);
            }
            let mut s = self.s.borrow_mut();
            s.mark_unused(&granules, epoch)?;
            for index in &slots {
                s.slots.kill(*index);
            }
            let touched: Vec<Range<u64>> = used.iter().map(|run| s.blocks(run)).collect();
            drop(s);
            self.announce_trim(&touched, epoch);
            let ranges = vec![(granules.start, granules.end - granules.start)];
            let seq = self.record(Record::MetaClear { epoch, ranges });
            (seq, slots)
        };
        let result = self.journal.written(seq).await;
        self.latch_on(result)?;
        self.drop_dead(&slots, epoch);
        self.kick_puncher();
        self.kick_checkpoint();
        Ok(true)
    }

    /// Slots of a range of blocks.
    fn slots_in(&self, blocks: &Range<u64>) -> Vec<usize> {
        let s = self.s.borrow();
        if s.slots.is_empty() {
            return Vec::new();
        }
        s.slots
            .in_order()
            .into_iter()
            .filter(|(_, slot)| blocks.contains(&slot.block.0))
            .map(|(i, _)| i)
            .collect()
    }

    /// Waits until no slot of the range is being settled.
    async fn wait_for_flight(self: &Rc<Self>, blocks: &Range<u64>) -> Result<()> {
        loop {
            let flying = {
                let s = self.s.borrow();
                self.slots_in(blocks).into_iter().any(|i| s.slots.get(i).state == SlotState::InFlight)
            };
            if !flying {
                return Ok(());
            }
            self.writable(Who::Store)?;
            self.changed.wait().await;
        }
    }

    /// Frees the slots that only production needed; the others are settled as usual.
    fn drop_dead(&self, slots: &[usize], epoch: Epoch) {
        let mut s = self.s.borrow_mut();
        for index in slots {
            // It may have been settled and freed since.
            let Some(slot) = s.slots.find(*index) else { continue };
            if slot.dead && slot.epoch == epoch && slot.state == SlotState::Waiting && !slot.journaled {
                s.slots.release(*index);
            } else if slot.dead {
                s.slots.disown(*index);
            }
        }
    }
}
