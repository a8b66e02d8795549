//! Making, opening and closing a volume.

use super::recover::Recovered;
use super::retained::Retained;
use super::slots::{Slot, SlotState, Slots};
use super::volume::{State, Volume, Who};
use crate::error::{Error, ErrorKind, Result};
use crate::format::journal::Record;
use crate::format::state::VolumeState;
use crate::io::{Io, OpenHow};
use crate::store::clone_volume::{CloneVolume, too_long};
use crate::store::event::Event;
use crate::store::journal::{self, Journal};
use crate::store::paths::VolumePaths;
use crate::store::reserve::Reserve;
use crate::store::stage::Stage;
use crate::store::{Tuning, replay};
use crate::types::{Epoch, Geometry, OnFull, Role};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::rc::Rc;
use uuid::Uuid;

/// What opening a volume found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Opened {
    /// It had been closed in good order.
    pub clean: bool,
    /// It was last used in this boot of the machine.
    pub same_boot: bool,
    /// Staged writes that were taken up again.
    pub staged: usize,
}

impl Volume {
    /// Makes the files of a new volume in `dir`, which must not exist; the caller makes the
    /// name `dir` durable.
    ///
    /// # Errors
    /// `Unsupported` when the file system takes no file of that size; `Io`, `Full`.
    pub async fn create(
        io: &Io,
        dir: &Path,
        uuid: Uuid,
        geometry: Geometry,
        on_full: OnFull,
        role: Role,
    ) -> Result<()> {
        let paths = VolumePaths(dir.to_owned());
        io.make_dir(dir).await?;
        io.make_dir(&paths.save()).await?;
        io.make_dir(&paths.snapshots()).await?;
        let file = io.open(&paths.clone_volume(), OpenHow::CreateNew).await?;
        let len = CloneVolume::file_len(geometry, geometry.size);
        let result = async {
            io.truncate(file, len).await.map_err(too_long)?;
            io.sync(file).await
        }
        .await;
        io.close(file);
        result?;
        let state = VolumeState::new(uuid, geometry, on_full, role);
        journal::create(io, &paths, uuid, &Record::State(Box::new(state))).await?;
        io.sync_dir(dir).await
    }

    /// Opens a volume. `committed` are the batches that the store has committed.
    ///
    /// # Errors
    /// `Corrupt` when what is stored contradicts itself; `Unsupported` for a newer format.
    pub async fn open(
        io: &Io,
        dir: &Path,
        name: &str,
        tuning: Tuning,
        committed: &BTreeSet<Uuid>,
    ) -> Result<(Rc<Self>, Opened)> {
        let result = Self::open_inner(io, dir, name, tuning, committed).await;
        result.map_err(|e| e.context(format!("volume {name}")))
    }

    async fn open_inner(
        io: &Io,
        dir: &Path,
        name: &str,
        tuning: Tuning,
        committed: &BTreeSet<Uuid>,
    ) -> Result<(Rc<Self>, Opened)> {
        let paths = VolumePaths(dir.to_owned());
        if !io.list(dir).await?.iter().any(|name| name == "journal") {
            return Err(Error::corrupt(format!("{} is missing", paths.journal().display()))
                .hint("restore the volume's directory from a copy"));
        }
        // Without them every single file in them would be called lost.
        for dir in [paths.save(), paths.snapshots()] {
            io.list(&dir).await.map_err(|e| {
                Error::corrupt(format!("{} is missing or can't be read: {e}", dir.display()))
                    .hint("the volume was copied in part; restore its directory from a whole copy")
            })?;
        }
        let mut replay = replay::read(io, &paths.journal()).await?;
        if let Some(what) = &replay.mended {
            tracing::warn!("{}: {what}; its second copy is whole", paths.journal().display());
            // A new file is begun, as after a crash.
            replay.clean = false;
        }
        let (number, end, clean) = (replay.header.number, replay.end, replay.clean);
        let recovered = Recovered::load(io, &paths, tuning, replay, committed).await?;
        let file = io.open(&paths.journal(), OpenHow::Write).await?;
        if !clean {
            // What follows the last whole frame must not be taken for newer frames later.
            io.truncate(file, end).await?;
            io.sync(file).await?;
        }
        let state = &recovered.state;
        let next = recovered.next_seq;
        let step = tuning.journal_step_bytes;
        let journal = Journal::new(io.clone(), paths.clone(), state.uuid, file, number, end, next, step);
        let opened = Opened { clean, same_boot: recovered.same_boot, staged: recovered.staged.len() };
        let volume = Rc::new(Self::assemble(io, name, paths, tuning, journal, recovered).await?);
        if clean {
            volume.save.resume(&volume.journal);
        } else {
            volume.save.close_all(&volume.journal);
            volume.checkpoint().await?;
            volume.remove_leftovers().await?;
        }
        volume.settle_space().await?;
        volume.record(Record::Open { boot: io.boot_id() });
        volume.journal_synced().await?;
        volume.save.deleted();
        volume.save.reclaim(&volume.journal).await?;
        volume.kick_mender();
        volume.finish_pending().await?;
        volume.refill().await?;
        volume.kick_settler();
        volume.kick_puncher();
        Ok((volume, opened))
    }

    async fn assemble(
        io: &Io,
        name: &str,
        paths: VolumePaths,
        tuning: Tuning,
        journal: Journal,
        recovered: Recovered,
    ) -> Result<Self> {
        let Recovered { state, production, stale, frozen, chain, save, .. } = recovered;
        let Recovered { clone_file, clone_len, mended, epoch, touched, .. } = recovered;
        let clone_volume = CloneVolume::new(io.clone(), clone_file, state.geometry, clone_len);
        let reserve = Reserve::open(io.clone(), paths.clone()).await?;
        let mut slots = Slots::new(journal.ledger(), state.geometry.block_size);
        let mut stage = recovered.stage;
        if stage.is_none() && (!state.snapshots.is_empty() || !recovered.staged.is_empty()) {
            let count = Slots::capacity(&state, tuning.stage_bytes).max(recovered.staged.len());
            let size = state.geometry.block_size;
            let path = paths.stage();
            let open = || Stage::open(io, &path, state.uuid, count, size);
            let mut result = open().await;
            if result.as_ref().is_err_and(|e| e.kind() == ErrorKind::Full) {
                // The file may have been lost with the power, on a disk that is full.
                let _lent = reserve.lend().await?;
                result = open().await;
            }
            match result {
                Ok((mut opened, left)) => {
                    // Slots of this boot that no record needs any more.
                    for slot in left {
                        opened.release(slot.index);
                    }
                    stage = Some(opened);
                }
                Err(error) if error.kind() == ErrorKind::Full && recovered.staged.is_empty() => {
                    tracing::warn!("volume {name}: no space to stage writes: {error}");
                }
                Err(error) => return Err(error),
            }
        }
        slots.stage = stage;
        for (seq, staged) in recovered.staged {
            match staged.index {
                Some(index) => {
                    let slot = Slot {
                        seq,
                        block: staged.block,
                        epoch,
                        state: SlotState::Waiting,
                        journaled: recovered.same_boot && staged.journaled,
                        dead: false,
                    };
                    slots.adopt(index, slot);
                }
                None => {
                    if !slots.put_journaled(seq, staged.block, epoch, &staged.data) {
                        return Err(Error::corrupt("the journal holds more staged writes than the stage"));
                    }
                }
            }
        }
        let mut retained = Retained::default();
        retained.forget(&stale, slots.blocks());
        let next_layer_version = state.layers.iter().map(|l| l.version).max().unwrap_or(0).max(state.seq.0);
        let mut written = [None, None];
        if let (Some(maps), 1..) = (recovered.checkpoint_maps, state.checkpoint.file) {
            written[usize::from(state.checkpoint.file - 1)] = Some(maps);
        }
        let state = State {
            durable: state,
            hidden: BTreeSet::new(),
            epoch,
            production,
            stale,
            punched: crate::map::BitMap::new(),
            punched_syncing: BTreeMap::new(),
            frozen,
            taking: None,
            unconfirmed: None,
            retained,
            touched,
            freed: super::delete::Freed::default(),
            chain,
            mended,
            slots,
            admitted: BTreeMap::new(),
            paused: 0,
            guarded: false,
            untidy: false,
            latched: None,
            opened: BTreeMap::new(),
            written,
            next_layer_version,
        };
        Ok(Self {
            io: io.clone(),
            name: RefCell::new(name.to_owned()),
            reserve,
            space: super::full::Space::default(),
            paths,
            tuning,
            clone_volume,
            journal,
            save,
            locks: Rc::default(),
            s: RefCell::new(state),
            changed: Event::default(),
            flushing: super::flush::Gate::default(),
            pacer: super::pacing::Pacer::default(),
            sealing: Cell::new(false),
            punching: Cell::new(false),
            checkpointing: Cell::new(false),
            resting: Cell::new(false),
            busy: Cell::new(false),
            closing: Cell::new(false),
            readable: Cell::new(0),
            receiving: Cell::new(false),
            origin: super::origin::Origin::default(),
            brakes: super::brake::Brakes::default(),
            bulk: super::bulk::Bulk::default(),
            gate: Cell::default(),
            split: Cell::new(false),
        })
    }

    /// Goes on with what a crash interrupted. What a full disk keeps it from is left for
    /// later: the volume is there, and takes no writes of clients before.
    async fn finish_pending(self: &Rc<Self>) -> Result<()> {
        self.space.impatient.set(true);
        let result = self.finish_interrupted().await;
        self.space.impatient.set(false);
        match result {
            Err(error) if error.kind() == ErrorKind::Full => {
                tracing::error!("volume {}: not finished for lack of space: {error}", self.name());
                Ok(())
            }
            other => other,
        }
    }

    /// A roll-back, an abort of a receive, a hidden snapshot that nobody needs any more.
    async fn finish_interrupted(self: &Rc<Self>) -> Result<()> {
        let (rollback, aborting) = {
            let s = self.s.borrow();
            (s.durable.rollback, s.durable.receive.as_ref().is_some_and(|r| r.aborting))
        };
        if let Some(target) = rollback {
            self.roll_back_to(target).await?;
        }
        if aborting {
            match self.restore_before_receive().await {
                // What is shown is the state from before it: whoever asks again goes on.
                Err(error) if error.kind() == ErrorKind::Full => {
                    tracing::warn!("volume {}: what was half received stays for now: {error}", self.name());
                }
                restored => restored?,
            }
        }
        let left: Vec<Uuid> = {
            let s = self.s.borrow();
            let before = s.durable.receive.as_ref().and_then(|r| r.before);
            let internal = s.durable.snapshots.iter();
            let internal = internal.filter(|r| r.is_internal() && r.set.is_none() && Some(r.uuid) != before);
            internal.map(|r| r.uuid).collect()
        };
        if !left.is_empty() {
            self.delete(&left).await?;
        }
        Ok(())
    }

    /// Removes what a crash left: files that no record names.
    async fn remove_leftovers(self: &Rc<Self>) -> Result<()> {
        let left = super::verify::leftovers(&self.io, &self.paths, self).await?;
        for path in &left {
            self.io.remove(path).await?;
        }
        Ok(())
    }

    /// Settles everything, makes it durable and says so in the journal.
    ///
    /// # Errors
    /// `Io`; the next open recovers then.
    pub async fn close(self: &Rc<Self>) -> Result<()> {
        self.pause();
        self.stop_waiting();
        let space = &self.space.preparing;
        let busy = [&self.punching, &self.checkpointing, &self.sealing, &self.bulk.syncing, space];
        while busy.iter().any(|task| task.get()) {
            self.changed.wait().await;
        }
        self.writable(Who::Store)?;
        self.complete_copies().await;
        // Before the others are kept away: one of them may be about to make a checkpoint.
        while self.checkpointing.replace(true) {
            self.changed.wait().await;
        }
        let result = self.close_now().await;
        self.checkpointing.set(false);
        self.changed.notify();
        result
    }

    async fn close_now(self: &Rc<Self>) -> Result<()> {
        let _exclusive = self.exclusive().await;
        self.settled_before(Epoch(u64::MAX)).await?;
        self.seal_closed().await?;
        self.flush().await?;
        self.clone_synced().await?;
        while !self.s.borrow().slots.is_empty() {
            self.writable(Who::Store)?;
            self.kick_settler();
            self.changed.wait().await;
            self.clone_synced().await?;
        }
        self.store_touched().await;
        let sound = {
            let s = self.s.borrow();
            s.latched.is_none() && !s.untidy
        };
        if sound {
            let seq = self.record(Record::Close);
            self.journal_synced().await?;
            self.journal.closed(seq).await;
        }
        Ok(())
    }
}
