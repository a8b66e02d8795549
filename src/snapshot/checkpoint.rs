//! Checkpoints: the production meta bit map goes to the older of its two files, and the
//! journal starts anew from there.
//!
//! Why a crash is safe at every point: the file that is written is not the one that the
//! journal in force names; the clone volume was synced after the cut, so what the maps
//! say is in use has its data; what is still staged then goes into the new journal; and
//! the new journal takes the place of the old one in one rename. Only then is the other
//! file brought to the same content, so that one of them may rot.

use super::touched::TouchedCut;
use super::volume::{Exclusive, Volume, Who};
use crate::error::{ErrorKind, Result};
use crate::format::checkpoint::{Header, SECTOR_LEN as HEADER_LEN};
use crate::format::journal::{AfterImage, Record};
use crate::format::state::{CheckpointRecord, VolumeState};
use crate::io::OpenHow;
use crate::map::{BitMap, BlockMap, LayerContents, checkpoint, layer};
use crate::types::Seq;
use bytes::Bytes;
use std::rc::Rc;
use std::time::Duration;

/// How long the next checkpoint is put off after one that failed.
const REST: Duration = Duration::from_secs(1);

/// What the maps and the journal were at one instant.
struct Cut {
    seq: Seq,
    state: VolumeState,
    production: BitMap,
    stale: BitMap,
    tail: Option<LayerContents>,
    images: Vec<AfterImage>,
    touched: TouchedCut,
}

impl Volume {
    /// Makes a checkpoint in the background if the journal has grown enough, or so much is
    /// active that a crash would cost the next set dearly.
    pub(super) fn kick_checkpoint(self: &Rc<Self>) {
        let wanted = self.journal.len() >= self.tuning.journal_bytes_max
            || self.s.borrow().touched.wants_checkpoint(self.tuning.active_regions);
        if !wanted || self.checkpointing.get() || self.resting.get() || self.closing.get() {
            return;
        }
        let volume = Rc::clone(self);
        self.io.spawn(async move {
            while volume.checkpointing.get() && !volume.closing.get() {
                volume.changed.wait().await;
            }
            // A close makes its own, and what would begin after it must not.
            if volume.closing.get() {
                return;
            }
            if let Err(error) = volume.checkpoint().await {
                tracing::warn!("volume {}: no checkpoint: {error}", volume.name());
                volume.resting.set(true);
                volume.io.sleep(REST).await;
                volume.resting.set(false);
            }
        });
    }

    /// Makes a checkpoint and starts the journal anew.
    ///
    /// # Errors
    /// `Io`, `Full`; the journal in force stays.
    pub(super) async fn checkpoint(self: &Rc<Self>) -> Result<()> {
        while self.checkpointing.replace(true) {
            self.changed.wait().await;
        }
        let result = self.checkpoint_with_reserve().await;
        self.checkpointing.set(false);
        self.changed.notify();
        result
    }

    /// Sees to it that the checkpoint in force and the state that the journal begins with have
    /// their second copies: a crash or a full disk may have come before they were made. A new
    /// checkpoint makes both.
    pub(super) async fn complete_copies(self: &Rc<Self>) {
        while self.checkpointing.replace(true) {
            self.changed.wait().await;
        }
        let complete = self.has_second_copy().await && self.journal.has_second_copy().await;
        if !complete && let Err(error) = self.checkpoint_now(Some(self.exclusive().await)).await {
            tracing::warn!("volume {}: the checkpoint has no second copy: {error}", self.name());
        }
        self.checkpointing.set(false);
        self.changed.notify();
    }

    /// Whether the file that is not in force was brought to the same content. Its header is
    /// written last, so it stands for all of the file.
    async fn has_second_copy(&self) -> bool {
        let (record, volume, written) = {
            let s = self.s.borrow();
            let record = s.durable.checkpoint;
            let other = usize::from(2_u8.saturating_sub(record.file));
            (record, s.durable.uuid, s.written.get(other).is_some_and(Option::is_some))
        };
        if record.file == 0 || written {
            return true;
        }
        let Ok(file) = self.io.open(&self.paths.checkpoint(3 - record.file), OpenHow::Read).await else {
            return false;
        };
        let read = self.io.read(file, 0, HEADER_LEN).await;
        self.io.close(file);
        let header = read.and_then(|bytes| Header::decode(&bytes));
        header.is_ok_and(|header| header.volume == volume && header.seq == record.seq)
    }

    /// Whoever keeps others away may wait for space himself, and gets none while the reserve
    /// is lent: so he is waited for before.
    async fn checkpoint_with_reserve(self: &Rc<Self>) -> Result<()> {
        match self.checkpoint_now(Some(self.exclusive().await)).await {
            Err(error) if error.kind() == ErrorKind::Full && self.reserve.bytes() > 0 => {}
            other => return other,
        }
        let exclusive = self.exclusive().await;
        self.lending_reserve(self.checkpoint_now(Some(exclusive))).await
    }

    /// Without `exclusive` the caller keeps others away until it is done.
    pub(super) async fn checkpoint_now(self: &Rc<Self>, exclusive: Option<Exclusive>) -> Result<()> {
        // After a rotation that failed nobody knows which journal the next open finds, and
        // that one may start from the file that would be written here.
        self.writable(Who::Store)?;
        let mut cut = {
            // Nobody takes or deletes at the cut, and only the tail is not sealed.
            let _exclusive = exclusive;
            self.seal_closed().await?;
            self.cut()
        };
        let old = self.s.borrow().durable.checkpoint;
        let old_touched = self.touched_files(&self.s.borrow().durable.touched);
        let new = cut.state.checkpoint;
        let (written, maps) = (usize::from(new.file - 1), (cut.production.clone(), cut.stale.clone()));
        let (state, other) = (cut.state.clone(), 3 - new.file);
        if let Err(error) = self.publish_checkpoint(&mut cut).await {
            {
                let mut s = self.s.borrow_mut();
                s.written[written] = None;
                s.touched.uncut(&cut.touched);
            }
            self.journal.uncut();
            return Err(error);
        }
        {
            let mut s = self.s.borrow_mut();
            s.durable.checkpoint = new;
            s.durable.touched.clone_from(&cut.touched.records);
            s.touched.stored(cut.touched);
            s.written[written] = Some(maps.clone());
        }
        match self.write_checkpoint(&state, other, &maps).await {
            Ok(()) => self.s.borrow_mut().written[usize::from(other - 1)] = Some(maps),
            Err(error) => {
                tracing::warn!("volume {}: the checkpoint has no second copy: {error}", self.name());
            }
        }
        let kept = self.touched_files(&self.s.borrow().durable.touched);
        for path in old_touched.iter().filter(|path| !kept.contains(path)) {
            // It may be gone since an earlier crash.
            let _ = self.io.remove(path).await;
        }
        if old.tail_pages {
            for path in [self.paths.tail_pages(old.seq.0), self.paths.second_tail_pages(old.seq.0)] {
                // It may be gone since an earlier crash.
                let _ = self.io.remove(&path).await;
            }
        }
        Ok(())
    }

    /// The instant: everything pushed so far is in the state and the maps.
    fn cut(&self) -> Cut {
        // A flush takes for granted that what is marked as journaled is in the file in force,
        // which until the rename is the old one.
        let fresh = self.s.borrow_mut().slots.journal_all();
        self.push_after_images(&fresh);
        let images = self.after_images(&self.s.borrow().slots.in_force());
        let seq = self.journal.cut();
        let s = &mut *self.s.borrow_mut();
        let ends = self.closing.get() && s.admitted.is_empty() && s.slots.is_empty();
        let touched = s.touched.cut(seq, ends);
        s.durable.active.clone_from(&touched.active);
        let mut state = s.durable.clone();
        state.seq = self.journal.next_seq();
        state.epoch = s.epoch;
        state.segments = self.save.records();
        let tail = s.tail().and_then(|epoch| {
            let frozen = s.frozen.get(&epoch)?;
            let meta_pages: std::collections::BTreeMap<_, _> =
                frozen.changed_pages(&s.production).map(|page| (page, frozen.page(page))).collect();
            (!meta_pages.is_empty()).then(|| LayerContents {
                volume: s.durable.uuid,
                epochs: epoch..epoch.next(),
                bits: BitMap::new(),
                entries: BlockMap::new(),
                meta_pages,
            })
        });
        let file = if state.checkpoint.file == 1 { 2 } else { 1 };
        state.checkpoint = CheckpointRecord { file, seq, tail_pages: tail.is_some() };
        let (production, stale) = (s.production.clone(), s.stale.clone());
        Cut { seq, state, production, stale, tail, images, touched }
    }

    async fn publish_checkpoint(self: &Rc<Self>, cut: &mut Cut) -> Result<()> {
        self.clone_synced().await?;
        let maps = (cut.production.clone(), cut.stale.clone());
        self.write_checkpoint(&cut.state, cut.state.checkpoint.file, &maps).await?;
        self.write_touched(&mut cut.touched).await?;
        cut.state.touched.clone_from(&cut.touched.records);
        if let Some(contents) = cut.tail.take() {
            let pieces = self.io.compute(move || layer::encode(&contents)).await?;
            for path in [self.paths.tail_pages(cut.seq.0), self.paths.second_tail_pages(cut.seq.0)] {
                self.write_layer_file(&path, pieces.clone()).await?;
            }
            self.io.sync_dir(&self.paths.snapshots()).await?;
        }
        let state = Record::State(Box::new(cut.state.clone()));
        self.journal.rotate((cut.seq, state), std::mem::take(&mut cut.images)).await
    }

    /// Writes one of the two files: the maps that the state's checkpoint stands for.
    async fn write_checkpoint(&self, state: &VolumeState, file: u8, maps: &(BitMap, BitMap)) -> Result<()> {
        let path = self.paths.checkpoint(file);
        let previous = self.s.borrow_mut().written[usize::from(file - 1)].take();
        let geometry = state.geometry;
        let bits = (geometry.blocks().div_ceil(u64::from(geometry.granularity)), geometry.blocks());
        let seq = state.checkpoint.seq;
        let pieces = checkpoint::update(
            previous.as_ref().map(|(p, s)| (p, s)),
            (&maps.0, &maps.1),
            bits_for(bits, maps),
            seq,
            seq.0,
            state.uuid,
        );
        let how = if previous.is_some() { OpenHow::Write } else { OpenHow::CreateEmpty };
        let handle = self.io.open(&path, how).await?;
        let result = self.write_pieces(handle, pieces).await;
        self.io.close(handle);
        result?;
        self.io.sync_dir(&self.paths.0).await
    }

    async fn write_pieces(&self, file: crate::io::FileId, mut pieces: Vec<(u64, Bytes)>) -> Result<()> {
        let Some((at, header)) = pieces.pop() else { return Ok(()) };
        for (at, piece) in pieces {
            self.io.write(file, at, piece).await?;
        }
        self.io.sync(file).await?;
        self.io.write(file, at, header).await?;
        self.io.sync(file).await
    }
}

/// Bits in each map: those of the geometry, or more where a shrink left some behind.
fn bits_for(bits: (u64, u64), maps: &(BitMap, BitMap)) -> (u64, u64) {
    let last = |map: &BitMap| {
        let page = map.pages().last().map_or(0, |(page, _)| page + 1);
        page * crate::map::PAGE_BITS
    };
    (bits.0.max(last(&maps.0)), bits.1.max(last(&maps.1)))
}
