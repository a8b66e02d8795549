//! The index over the stage: which slots a block has, which may be settled next.
//!
//! A block's slots form a chain, oldest first; only the oldest may be settled, and a
//! later one only when it is gone. A slot whose after-image is in the journal stays,
//! settled, until the clone volume was synced and the journal knows: else a replay of
//! the after-image would put older data over newer.

use super::pacing::Fill;
use crate::format::state::VolumeState;
use crate::store::room::Ledger;
use crate::store::stage::Stage;
use crate::types::{Block, Epoch, Seq};
use bytes::Bytes;
use rustc_hash::FxHashMap;
use std::collections::VecDeque;

/// Where a slot is on its way to the clone volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotState {
    /// Not begun.
    Waiting,
    /// In a group that is being settled.
    InFlight,
    /// Written to the clone volume; its after-image is still in force.
    Settled,
    /// Durable there, and the record that ends its after-image is on its way.
    Retired,
}

/// A staged write.
#[derive(Clone, Copy, Debug)]
pub struct Slot {
    /// Its place in the order of changes.
    pub seq: Seq,
    /// The block.
    pub block: Block,
    /// The epoch of the write.
    pub epoch: Epoch,
    /// How far it is.
    pub state: SlotState,
    /// The journal has its after-image, or is about to.
    pub journaled: bool,
    /// A later trim took it out of production.
    pub dead: bool,
}

/// What the journal may need for a slot, in bytes, beside its after-image: its share of
/// *Settled* and *Mark*, each in a frame of its own.
const NOTE_BYTES: u64 = 192;

/// What the after-image of a block needs in the journal, in a frame of its own.
const IMAGE_BYTES: u64 = 80;

/// All staged writes of a volume.
#[derive(Default)]
pub struct Slots {
    /// Where space in the journal is promised to what is staged.
    ledger: Ledger,
    /// Bytes of an after-image in the journal.
    image_bytes: u64,
    /// Mapped at the first staged write.
    pub stage: Option<Stage>,
    table: FxHashMap<usize, Slot>,
    chains: FxHashMap<Block, VecDeque<usize>>,
    /// Heads of chains that wait to be settled.
    pub ready: VecDeque<usize>,
    /// Slots in state `Settled`.
    settled: Vec<usize>,
    /// A later write waits behind one of them.
    blocking: bool,
    /// Groups being settled now.
    pub groups: usize,
    /// Slots that became free, ever.
    freed: u64,
    /// Before-images that bulk writes are about to save.
    pub saving: usize,
}

impl Slots {
    /// None, for blocks of that size; what each will need in the journal is promised to it.
    pub fn new(ledger: Ledger, block_size: u32) -> Self {
        Self { ledger, image_bytes: u64::from(block_size) + IMAGE_BYTES, ..Self::default() }
    }

    /// Bytes of blocks that fit in.
    pub fn bytes(&self) -> u64 {
        let slots = self.stage.as_ref().map_or(0, Stage::len) as u64;
        slots * (self.image_bytes - IMAGE_BYTES)
    }

    /// What the journal must have space for before a block may be staged.
    pub fn room(&self) -> u64 {
        self.image_bytes + NOTE_BYTES
    }

    fn room_of(&self, slot: &Slot) -> u64 {
        NOTE_BYTES + if slot.journaled { 0 } else { self.image_bytes }
    }

    /// How full the stage is; one that is not mapped has no slots.
    pub fn fill(&self) -> Fill {
        let (slots, free) = self.stage.as_ref().map_or((0, 0), |s| (s.len() as u64, s.free() as u64));
        Fill { taken: slots - free, slots, freed: self.freed }
    }

    /// Whether nothing is staged.
    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// How many are staged.
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// The before-images that are to come: of slots that have not been written to the clone
    /// volume, and of bulk writes under way.
    pub fn unsettled(&self) -> usize {
        self.table.len() - self.settled.len() + self.saving
    }

    /// Whether `block` has any.
    pub fn has(&self, block: Block) -> bool {
        self.chains.contains_key(&block)
    }

    /// The slot.
    pub fn get(&self, index: usize) -> Slot {
        self.table[&index]
    }

    /// The slot, if it is still there.
    pub fn find(&self, index: usize) -> Option<Slot> {
        self.table.get(&index).copied()
    }

    /// The indices of a block's slots, oldest first.
    pub fn chain(&self, block: Block) -> impl DoubleEndedIterator<Item = usize> + '_ {
        self.chains.get(&block).into_iter().flatten().copied()
    }

    /// The data of a slot.
    pub fn data(&self, index: usize) -> Bytes {
        self.stage.as_ref().map(|s| s.data(index)).unwrap_or_default()
    }

    /// Copies the data of a slot into a buffer as long as a block.
    pub fn read(&self, index: usize, data: &mut [u8]) {
        if let Some(stage) = &self.stage {
            stage.read(index, data);
        }
    }

    /// What production reads of the block: its youngest slot, unless a trim came later.
    pub fn production(&self, block: Block) -> Option<Bytes> {
        let last = self.chain(block).next_back()?;
        (!self.get(last).dead).then(|| self.data(last))
    }

    /// What a snapshot taken at `epoch` sees of the block in the stage.
    pub fn before(&self, block: Block, epoch: Epoch) -> Option<Bytes> {
        self.chain(block).rev().find(|i| self.get(*i).epoch < epoch).map(|i| self.data(i))
    }

    /// Stages a write; false when no slot is free. An older one of the same epoch that
    /// nobody has begun gives way.
    pub fn put(&mut self, seq: Seq, block: Block, epoch: Epoch, data: &[u8]) -> bool {
        let Some(index) = self.stage.as_mut().and_then(|s| s.put(seq, block, epoch, data)) else {
            return false;
        };
        self.adopt(
            index,
            Slot { seq, block, epoch, state: SlotState::Waiting, journaled: false, dead: false },
        );
        let before = self.chain(block).nth_back(1);
        if let Some(older) = before {
            let slot = self.get(older);
            if slot.epoch == epoch && slot.state == SlotState::Waiting && !slot.journaled {
                self.release(older);
            }
        }
        true
    }

    /// Stages what an after-image in the journal holds.
    pub fn put_journaled(&mut self, seq: Seq, block: Block, epoch: Epoch, data: &[u8]) -> bool {
        let Some(index) = self.stage.as_mut().and_then(|s| s.put(seq, block, epoch, data)) else {
            return false;
        };
        self.adopt(
            index,
            Slot { seq, block, epoch, state: SlotState::Waiting, journaled: true, dead: false },
        );
        true
    }

    /// Takes in a slot that is in the stage.
    pub fn adopt(&mut self, index: usize, slot: Slot) {
        let chain = self.chains.entry(slot.block).or_default();
        chain.push_back(index);
        if chain.len() == 1 {
            self.ready.push_back(index);
        }
        let head = chain.front().and_then(|i| self.table.get(i));
        self.blocking |= head.is_some_and(|s| s.state == SlotState::Settled);
        self.ledger.promise(self.room_of(&slot));
        self.table.insert(index, slot);
    }

    /// Marks a slot.
    pub fn set_state(&mut self, index: usize, state: SlotState) {
        if let Some(slot) = self.table.get_mut(&index) {
            slot.state = state;
            if state == SlotState::Settled {
                self.settled.push(index);
                self.blocking |= self.chains.get(&slot.block).is_some_and(|c| c.len() > 1);
            }
        }
    }

    /// A group failed: its slots wait again.
    pub fn requeue(&mut self, index: usize) {
        self.set_state(index, SlotState::Waiting);
        self.ready.push_front(index);
    }

    /// A trim took the slot out of production.
    pub fn kill(&mut self, index: usize) {
        if let Some(slot) = self.table.get_mut(&index) {
            slot.dead = true;
        }
    }

    /// A dead slot's trim is in the journal: a later process must not take it up again.
    pub fn disown(&mut self, index: usize) {
        if let Some(stage) = &self.stage {
            stage.disown(index);
        }
    }

    /// Frees a slot; the next one of its block may be settled.
    pub fn release(&mut self, index: usize) {
        let Some(slot) = self.table.remove(&index) else { return };
        self.ledger.end(self.room_of(&slot));
        if let Some(chain) = self.chains.get_mut(&slot.block) {
            let was_head = chain.front() == Some(&index);
            chain.retain(|i| *i != index);
            match chain.front() {
                Some(next) if was_head => self.ready.push_back(*next),
                Some(_) => {}
                None => {
                    self.chains.remove(&slot.block);
                }
            }
        }
        if slot.state == SlotState::Waiting {
            self.ready.retain(|i| *i != index);
        }
        if let Some(stage) = &mut self.stage {
            stage.release(index);
            self.freed += 1;
        }
    }

    /// Takes the settled slots that wait for a sync of the clone volume.
    pub fn take_settled(&mut self) -> Vec<usize> {
        self.blocking = false;
        std::mem::take(&mut self.settled)
    }

    /// The sync did not happen: they wait on.
    pub fn put_back_settled(&mut self, slots: Vec<usize>) {
        self.settled.extend(slots);
    }

    /// Whether a later write waits behind a settled slot, or they take much of the stage.
    pub fn wants_retire(&self) -> bool {
        let many = self.stage.as_ref().is_some_and(|s| self.settled.len() * 4 >= s.len());
        self.blocking || many
    }

    /// Whether every slot of an epoch before `epoch` has been written to the clone volume.
    pub fn is_settled_before(&self, epoch: Epoch) -> bool {
        let done = [SlotState::Settled, SlotState::Retired];
        self.table.values().all(|s| s.epoch >= epoch || done.contains(&s.state))
    }

    /// The blocks that have any.
    pub fn blocks(&self) -> impl Iterator<Item = Block> + '_ {
        self.chains.keys().copied()
    }

    /// All slots in the order of changes.
    pub fn in_order(&self) -> Vec<(usize, Slot)> {
        let mut all: Vec<_> = self.table.iter().map(|(i, s)| (*i, *s)).collect();
        all.sort_by_key(|(_, s)| s.seq);
        all
    }

    /// The slots whose after-images a new journal file must hold, oldest first.
    pub fn in_force(&self) -> Vec<usize> {
        let all = self.in_order().into_iter();
        all.filter(|(_, s)| s.journaled && !s.dead && s.state != SlotState::Retired).map(|(i, _)| i).collect()
    }

    /// Marks as journaled every slot whose after-image is not in force, oldest first.
    pub fn journal_all(&mut self) -> Vec<usize> {
        self.journal_some(usize::MAX)
    }

    /// The same, of the oldest so many.
    pub fn journal_some(&mut self, count: usize) -> Vec<usize> {
        let mut fresh: Vec<(Seq, usize)> =
            self.table.iter().filter(|(_, s)| !s.journaled && !s.dead).map(|(i, s)| (s.seq, *i)).collect();
        fresh.sort_unstable();
        fresh.truncate(count);
        for (_, index) in &fresh {
            if let Some(slot) = self.table.get_mut(index) {
                slot.journaled = true;
                self.ledger.end(self.image_bytes);
            }
        }
        fresh.into_iter().map(|(_, i)| i).collect()
    }

    /// Slots that a stage for that volume has.
    pub fn capacity(state: &VolumeState, bytes: u64) -> usize {
        Stage::slots_of(bytes, state.geometry.block_size)
    }
}
