//! Settling: staged writes are carried to the clone volume, in groups.
//!
//! A group reads the before-images that some snapshot still needs, appends them to the
//! save volume and waits until they are durable, sets bits and map entries, and only then
//! writes the staged data to the clone volume. Why a crash is safe at every point: the
//! slots stay until the end, and doing a part of it again changes nothing (a bit that is
//! set saves nothing again; the same data is written).

use super::slots::SlotState;
use super::volume::{Volume, Who};
use crate::error::{ErrorKind, Result};
use crate::map::SavedImage;
use crate::store::save::Image;
use crate::types::{Block, Epoch};
use bytes::Bytes;
use futures::future::join_all;
use std::rc::Rc;
use std::time::Duration;

/// How long a group that failed waits before it is tried again.
const RETRY: Duration = Duration::from_millis(200);

impl Volume {
    /// Starts as many groups as may be in flight, and frees settled slots that others wait
    /// for.
    pub(super) fn kick_settler(self: &Rc<Self>) {
        self.kick_retire();
        self.kick_pacer();
        self.kick_space();
        while let Some((mut left, epoch)) = self.next_group() {
            let volume = Rc::clone(self);
            self.io.spawn(async move {
                let result = volume.settle_group(&mut left, epoch).await;
                volume.s.borrow_mut().slots.groups -= 1;
                let failed = result.err();
                volume.note_settled(failed.as_ref());
                if failed.is_some() {
                    volume.io.sleep(RETRY).await;
                    let mut s = volume.s.borrow_mut();
                    for index in left.iter().rev() {
                        s.slots.requeue(*index);
                    }
                }
                volume.changed.notify();
                if volume.writable(Who::Store).is_ok() {
                    volume.kick_settler();
                    volume.kick_checkpoint();
                }
            });
        }
    }

    /// Takes what can be settled next: slots of one epoch, the oldest of their blocks.
    fn next_group(&self) -> Option<(Vec<usize>, Epoch)> {
        let mut s = self.s.borrow_mut();
        if s.slots.groups >= self.tuning.groups_in_flight_max {
            return None;
        }
        let epoch = s.slots.ready.front().map(|i| s.slots.get(*i).epoch)?;
        let mut indices = Vec::new();
        while indices.len() < self.save.group_count_max()
            && let Some(index) = s.slots.ready.front().copied()
            && s.slots.get(index).epoch == epoch
        {
            s.slots.ready.pop_front();
            s.slots.set_state(index, SlotState::InFlight);
            indices.push(index);
        }
        s.slots.groups += 1;
        Some((indices, epoch))
    }

    /// Settles the slots of a group; those that are done are not `left` any more, whatever
    /// becomes of the others.
    async fn settle_group(self: &Rc<Self>, left: &mut Vec<usize>, epoch: Epoch) -> Result<()> {
        if self.s.borrow().chain.is_alarmed() {
            self.heal().await?;
        }
        let mut needed = Vec::new();
        {
            let s = self.s.borrow();
            left.sort_unstable_by_key(|i| s.slots.get(*i).block);
            for block in left.iter().map(|i| s.slots.get(*i).block) {
                if s.needs_save(block, epoch)? {
                    needed.push(block);
                }
            }
        }
        if !needed.is_empty() {
            self.save_group(&needed, epoch).await?;
        }
        // A part at a time: clients get their turn in between, and slots become free evenly.
        while !left.is_empty() {
            let part = left.len().min(self.tuning.steps_at_once);
            self.write_staged(&left[..part]).await?;
            {
                let mut s = self.s.borrow_mut();
                for index in left.drain(..part) {
                    if s.slots.get(index).journaled {
                        s.slots.set_state(index, SlotState::Settled);
                    } else {
                        s.slots.release(index);
                    }
                }
            }
            if !left.is_empty() {
                self.io.step_aside().await;
            }
        }
        Ok(())
    }

    /// Writes slots, sorted by their blocks, to the clone volume.
    async fn write_staged(&self, indices: &[usize]) -> Result<()> {
        let size = self.geometry().block_size as usize;
        let mut blocks = Vec::with_capacity(indices.len());
        let mut buffer = self.bulk.buffers.borrow_mut().take_len(indices.len() * size);
        {
            let s = self.s.borrow();
            for (index, data) in indices.iter().zip(buffer.chunks_mut(size)) {
                blocks.push(s.slots.get(*index).block);
                s.slots.read(*index, data);
            }
        }
        let mut data = self.bulk.buffers.borrow_mut().share(buffer);
        let runs = runs(&blocks).into_iter().map(|(first, count)| {
            (first, data.split_to(usize::try_from(count).unwrap_or(usize::MAX) * size))
        });
        if indices.len() >= self.tuning.beside_blocks_min {
            return self.clone_volume.write_runs(runs).await;
        }
        let writes = runs.map(|(first, run)| self.clone_volume.write(first, vec![run]));
        join_all(writes).await.into_iter().collect()
    }

    /// Makes before-images durable and enters them in the open layer of the epoch.
    pub(super) async fn append_images(self: &Rc<Self>, images: &[Image], epoch: Epoch) -> Result<()> {
        let saved = self.save.append(&self.journal, epoch, images).await?;
        let full = {
            let s = self.s.borrow();
            let open = open_layer(&s.chain, epoch);
            let mut layer = open.borrow_mut();
            for (image, (addr, crc)) in images.iter().zip(saved) {
                if !layer.insert(image.block, SavedImage { addr, crc, damaged: image.damaged }) {
                    self.save.drop_live(addr.segment, 1);
                }
            }
            layer.end.is_none() && layer.blocks.len() >= self.tuning.layer_entries_max
        };
        if full {
            self.begin_layer();
        }
        Ok(())
    }

    /// The youngest layer has grown enough: the next one begins, and this one is sealed. A
    /// snapshot may have any number of layers, so nothing else changes.
    fn begin_layer(self: &Rc<Self>) {
        let taking = {
            let s = self.s.borrow();
            s.taking.is_some() || s.unconfirmed.is_some()
        };
        // Else the take has begun one just now, or its end is near.
        if !taking {
            self.raise_epoch();
            self.kick_sealer();
        }
    }

    /// A run could not be read: the blocks that can't are saved as damaged, and the write
    /// goes on.
    pub(super) async fn read_one_by_one(
        &self,
        first: Block,
        count: u64,
        images: &mut Vec<Image>,
    ) -> Result<()> {
        for block in (first.0..first.0 + count).map(Block) {
            match self.clone_volume.read(block, 1).await {
                Ok(bytes) => images.push(Image { block, data: bytes.freeze(), damaged: false }),
                Err(error) if error.kind() == ErrorKind::Io => {
                    tracing::error!("volume {}: block {block} can't be saved: {error}", self.name());
                    let zeros = Bytes::from(vec![0; self.geometry().block_size as usize]);
                    images.push(Image { block, data: zeros, damaged: true });
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// The open layer that an epoch's groups belong to.
pub(super) fn open_layer(
    chain: &crate::map::LayerChain,
    epoch: Epoch,
) -> Rc<std::cell::RefCell<crate::map::OpenLayer>> {
    match chain.open_for(epoch) {
        Some(open) => Rc::clone(open),
        None => unreachable!("the layer of epoch {epoch} is open as long as its writes are under way"),
    }
}

/// Sorted blocks as runs.
pub(super) fn runs(blocks: &[Block]) -> Vec<(Block, u64)> {
    let mut runs: Vec<(Block, u64)> = Vec::new();
    for block in blocks {
        match runs.last_mut() {
            Some((first, count)) if first.0 + *count == block.0 => *count += 1,
            _ => runs.push((*block, 1)),
        }
    }
    runs
}
