//! The volume: the state that its tasks share, and the small steps that keep the maps
//! true to each other.
//!
//! Invariants, between any two awaits:
//! - what is pushed to the journal is applied to `durable` and to the maps in the same
//!   step, so a cut of the journal and the state agree;
//! - a block that is not in use in production reads as zeros, whatever lies in the clone
//!   volume; `stale` holds those of which that may be something else;
//! - the open layer of an epoch exists before anything is saved in it, and a bit is set
//!   before the clone volume is overwritten.

use super::delete::Freed;
use super::locks::Locks;
use super::retained::Retained;
use super::slots::Slots;
use super::touched::Touched;
use crate::error::{Error, ErrorKind, Result};
use crate::format::journal::Record;
use crate::format::state::{SnapshotRecord, VolumeState};
use crate::io::Io;
use crate::map::{BitMap, LayerChain, LayerContents, PAGE_BITS};
use crate::store::Tuning;
use crate::store::clone_volume::CloneVolume;
use crate::store::event::Event;
use crate::store::journal::Journal;
use crate::store::paths::VolumePaths;
use crate::store::reserve::Reserve;
use crate::store::save::SaveVolume;
use crate::types::{Block, Epoch, Geometry, Role, Seq, Standing};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::rc::Rc;
use uuid::Uuid;

/// Who asks for a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// A client: only a primary that is not busy with itself obeys.
    Client,
    /// The store itself: a receive or a roll-back.
    Store,
}

/// An open volume.
pub struct Volume {
    pub(super) io: Io,
    pub(super) name: RefCell<String>,
    pub(super) paths: VolumePaths,
    pub(super) tuning: Tuning,
    pub(super) clone_volume: CloneVolume,
    pub(super) journal: Journal,
    pub(super) save: Rc<SaveVolume>,
    pub(super) reserve: Reserve,
    pub(super) space: super::full::Space,
    pub(super) locks: Rc<Locks>,
    pub(super) s: RefCell<State>,
    /// Something that somebody may wait for changed.
    pub(super) changed: Event,
    pub(super) flushing: super::flush::Gate,
    pub(super) pacer: super::pacing::Pacer,
    pub(super) sealing: Cell<bool>,
    pub(super) punching: Cell<bool>,
    pub(super) checkpointing: Cell<bool>,
    /// A checkpoint failed a short while ago.
    pub(super) resting: Cell<bool>,
    /// Takes, deletions, roll-backs and receives' ends exclude each other.
    pub(super) busy: Cell<bool>,
    pub(super) closing: Cell<bool>,
    /// So many want cuts to stay readable.
    pub(super) readable: Cell<usize>,
    /// A stream is being applied at this moment.
    pub(super) receiving: Cell<bool>,
    /// What it shows where nothing was written to it.
    pub(super) origin: super::origin::Origin,
    /// What keeps writers back.
    pub(super) brakes: super::brake::Brakes,
    pub(super) bulk: super::bulk::Bulk,
    /// Why clients' writes wait, if they do.
    pub(super) gate: Cell<super::roles::Gate>,
    /// A session met another line of role epochs.
    pub(super) split: Cell<bool>,
}

/// What the tasks of a volume share.
pub(super) struct State {
    pub durable: VolumeState,
    /// Snapshots whose record is not durable yet (or whose batch is not committed).
    pub hidden: BTreeSet<Uuid>,
    pub epoch: Epoch,
    /// Granules in use in production.
    pub production: BitMap,
    /// Blocks not in use whose place in the clone volume may hold old data.
    pub stale: BitMap,
    /// Stale blocks that were punched and wait for a sync to begin.
    pub punched: BitMap,
    /// Those for which a sync runs, by the number of the call.
    pub punched_syncing: BTreeMap<u64, BitMap>,
    /// The frozen meta bit maps of snapshots whose layer is not sealed, and of the tail.
    pub frozen: BTreeMap<Epoch, BitMap>,
    /// The snapshot that is being taken.
    pub taking: Option<Epoch>,
    /// The snapshot whose record is written and which may still be undone: the one before
    /// it may be the tail again, so its map stays.
    pub unconfirmed: Option<Epoch>,
    pub retained: Retained,
    pub touched: Touched,
    pub freed: Freed,
    pub chain: LayerChain,
    /// Layers that were made again from redundant copies and have no whole file yet.
    pub mended: BTreeMap<Epoch, LayerContents>,
    pub slots: Slots,
    /// Writes under way, by epoch.
    pub admitted: BTreeMap<Epoch, usize>,
    /// Reasons for clients to wait.
    pub paused: usize,
    /// A flush must write a barrier: old data lay where new data was written.
    pub guarded: bool,
    /// A write failed half-way: data may lie where nothing is in use.
    pub untidy: bool,
    pub latched: Option<Error>,
    /// How often each snapshot is open.
    pub opened: BTreeMap<Uuid, usize>,
    /// The maps as the two checkpoint files hold them: production and stale.
    pub written: [Option<(BitMap, BitMap)>; 2],
    /// Told apart from earlier files of the same epochs.
    pub next_layer_version: u64,
}

impl State {
    /// log2 of the blocks in a granule.
    pub fn shift(&self) -> u32 {
        self.durable.geometry.granularity.trailing_zeros()
    }

    /// The granules that blocks touch.
    pub fn granules(&self, blocks: &Range<u64>) -> Range<u64> {
        let shift = self.shift();
        if blocks.is_empty() {
            return 0..0;
        }
        blocks.start >> shift..((blocks.end - 1) >> shift) + 1
    }

    /// The blocks of granules, none past the end of the largest volume.
    pub fn blocks(&self, granules: &Range<u64>) -> Range<u64> {
        granules.start << self.shift()..granules.end << self.shift()
    }

    /// Whether a block is in use in production.
    pub fn in_use(&self, block: u64) -> bool {
        self.production.get(block >> self.shift())
    }

    /// The epoch of the youngest snapshot that a write of `epoch` must respect.
    pub fn tail_for(&self, epoch: Epoch) -> Option<Epoch> {
        if let Some(taking) = self.taking
            && taking <= epoch
        {
            return Some(taking);
        }
        self.durable.snapshots.iter().rev().map(|s| s.epoch).find(|e| *e <= epoch)
    }

    /// The epoch of the tail, the one being taken included.
    pub fn tail(&self) -> Option<Epoch> {
        self.tail_for(Epoch(u64::MAX))
    }

    /// All epochs of snapshots, oldest first, the one being taken included.
    pub fn queue(&self) -> Vec<Epoch> {
        let mut queue: Vec<Epoch> = self.durable.snapshots.iter().map(|s| s.epoch).collect();
        if let Some(taking) = self.taking
            && queue.last() != Some(&taking)
        {
            queue.push(taking);
        }
        queue
    }

    /// The snapshot that a layer beginning at `first` belongs to.
    pub fn owner_of(&self, first: Epoch) -> Option<Epoch> {
        self.tail_for(first)
    }

    /// The epoch at which the map of the snapshot of `epoch` ends.
    pub fn end_of(&self, epoch: Epoch) -> Epoch {
        let next = self.durable.snapshots.partition_point(|s| s.epoch <= epoch);
        let next = self.durable.snapshots.get(next).map(|s| s.epoch);
        next.or(self.taking.filter(|taking| *taking > epoch)).unwrap_or(Epoch(u64::MAX))
    }

    /// The epoch of the snapshot before that of `epoch`.
    pub fn older_than(&self, epoch: Epoch) -> Option<Epoch> {
        let at = self.durable.snapshots.partition_point(|s| s.epoch < epoch);
        at.checked_sub(1).map(|before| self.durable.snapshots[before].epoch)
    }

    /// Whether a write of `epoch` must save `block` first: some snapshot needs what the
    /// clone volume holds. It may say yes too often, never no too often.
    pub fn needs_save(&self, block: Block, epoch: Epoch) -> Result<bool> {
        let Some(tail) = self.tail_for(epoch) else { return Ok(false) };
        if self.chain.has_bit(block, tail)? {
            return Ok(false);
        }
        if self.frozen.get(&tail).is_none_or(|m| m.get(block.0 >> self.shift())) {
            return Ok(true);
        }
        if self.tail() != Some(tail) || self.retained.unknown.contains(&(block.0 / PAGE_BITS)) {
            return Ok(true);
        }
        Ok(self.retained.older.get(block.0))
    }

    /// Granules come into use by a write of `epoch`.
    pub fn mark_used(&mut self, granules: &Range<u64>, epoch: Epoch) {
        self.production.set_range(granules.clone());
        let blocks = self.blocks(granules);
        if let Some(taking) = self.taking
            && epoch < taking
        {
            // The write belongs to the snapshot that is being taken.
            if let Some(map) = self.frozen.get_mut(&taking) {
                map.set_range(granules.clone());
            }
            self.retained.older.clear_range(blocks.clone());
        }
        self.stale.clear_range(blocks.clone());
        self.forget_punched(&blocks);
        self.retained.next.clear_range(blocks);
    }

    /// What lies in these blocks is no hole any more, whatever a punch did before.
    pub fn forget_punched(&mut self, blocks: &Range<u64>) {
        self.punched.clear_range(blocks.clone());
        for syncing in self.punched_syncing.values_mut() {
            syncing.clear_range(blocks.clone());
        }
    }

    /// Granules go out of use by a trim of `epoch`.
    pub fn mark_unused(&mut self, granules: &Range<u64>, epoch: Epoch) -> Result<()> {
        let used: Vec<Range<u64>> =
            self.production.runs(granules.clone()).filter(|(_, set)| *set).map(|(r, _)| r).collect();
        for run in used {
            let blocks = self.blocks(&run);
            self.retain(&blocks)?;
            self.touched.note_trim(&blocks, epoch);
            self.production.clear_range(run.clone());
            self.stale.set_range(blocks.clone());
            self.forget_punched(&blocks);
            if let Some(taking) = self.taking
                && epoch < taking
            {
                if let Some(map) = self.frozen.get_mut(&taking) {
                    map.clear_range(run);
                }
                let pages = blocks.start / PAGE_BITS..=(blocks.end - 1) / PAGE_BITS;
                self.retained.doubt(pages);
            }
        }
        Ok(())
    }

    /// The queue changed in the middle: what is retained is computed anew.
    pub fn forget_retained(&mut self) {
        let Self { retained, stale, slots, .. } = self;
        retained.forget(stale, slots.blocks());
    }

    /// The snapshot of that name which users can see.
    pub fn visible(&self, name: &str) -> Option<&SnapshotRecord> {
        self.durable.named(name).filter(|s| !s.is_internal() && !self.hidden.contains(&s.uuid))
    }
}

impl Volume {
    /// How the volume is cut.
    #[must_use]
    pub fn geometry(&self) -> Geometry {
        self.s.borrow().durable.geometry
    }

    /// Its identity.
    #[must_use]
    pub fn uuid(&self) -> Uuid {
        self.s.borrow().durable.uuid
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> String {
        self.name.borrow().clone()
    }

    /// Its role.
    #[must_use]
    pub fn role(&self) -> Role {
        self.s.borrow().durable.role
    }

    /// The reactor's handle.
    #[must_use]
    pub fn io(&self) -> Io {
        self.io.clone()
    }

    /// Pushes a record and applies it, as one step.
    pub(super) fn record(&self, record: Record) -> Seq {
        self.s.borrow_mut().durable.apply(&record);
        self.journal.push(record)
    }

    /// Makes a record durable.
    pub(super) async fn record_durably(&self, record: Record) -> Result<Seq> {
        self.journal.ensure_for_command().await?;
        let seq = self.record(record);
        self.journal_synced().await?;
        Ok(seq)
    }

    /// Syncs the journal; a failure latches the volume.
    pub(super) async fn journal_synced(&self) -> Result<()> {
        let result = self.journal.sync().await;
        self.latch_on(result)
    }

    /// After a failure that leaves unknown what is durable, nothing is written any more.
    pub(super) fn latch_on<T>(&self, result: Result<T>) -> Result<T> {
        if let Err(error) = &result {
            let mut s = self.s.borrow_mut();
            if s.latched.is_none() {
                tracing::error!("volume {}: read-only from now on: {error}", self.name.borrow());
                s.latched = Some(error.duplicate());
                drop(s);
                // Whoever waits for progress must hear that there is none.
                self.changed.notify();
            }
        }
        result
    }

    /// The volume takes no more writes; reads go on.
    pub fn fail(&self, error: Error) {
        let _ = self.latch_on::<()>(Err(error));
    }

    /// Whether the volume can be changed at all.
    ///
    /// # Errors
    /// What latched it; `ReadOnly` for clients of a secondary.
    pub fn writable(&self, who: Who) -> Result<()> {
        let s = self.s.borrow();
        let failure = s.latched.as_ref().map(Error::duplicate).or_else(|| self.journal.failure());
        if let Some(error) = failure.or_else(|| self.clone_volume.syncer.failure()) {
            return Err(error
                .context(format!("volume {} is read-only after a failed write", self.name.borrow()))
                .hint("free space or mend the disk, then open the store again"));
        }
        if who == Who::Client && s.durable.rollback.is_some() {
            // It will be done again from the start, over whatever is written until then.
            let name = self.name.borrow();
            return Err(Error::new(ErrorKind::ReadOnly, format!("volume {name} is half rolled back"))
                .hint("roll it back again, or open the store again"));
        }
        if who == Who::Client && s.durable.role == Role::Secondary {
            return Err(Error::new(
                ErrorKind::ReadOnly,
                format!("volume {} is a secondary", self.name.borrow()),
            )
            .hint(format!("'snapvol promote {}' makes it writable", self.name.borrow())));
        }
        let standing = s.durable.roles.standing;
        // Of a volume that is being handed over they wait, at the gate.
        if who == Who::Client && standing != Standing::HandingOver {
            self.check_standing(standing)?;
        }
        Ok(())
    }

    /// The volume's name as the outermost context of an error.
    pub(super) fn named(&self, error: Error) -> Error {
        error.context(format!("volume {}", self.name.borrow()))
    }

    /// Waits until nobody else takes, deletes or rolls back, and keeps others from it.
    pub(super) async fn exclusive(self: &Rc<Self>) -> Exclusive {
        while self.busy.replace(true) {
            self.changed.wait().await;
        }
        Exclusive(Rc::clone(self))
    }
}

/// Keeps other commands that change the queue away until it is dropped.
pub(super) struct Exclusive(Rc<Volume>);

impl Drop for Exclusive {
    fn drop(&mut self) {
        self.0.busy.set(false);
        self.0.changed.notify();
    }
}
