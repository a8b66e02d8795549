//! Deleting a snapshot, anywhere in the queue.
//!
//! The next older snapshot takes over its layers: an entry is passed on unless that one has
//! the block itself, or no snapshot from it toward the head needs the block. A layer of
//! which everything is passed on stays as it is, and one of which a part is passed on is
//! written anew, one after the other. No before-image is copied. Why a crash is safe: the
//! new layers are durable before the record, the old files go after it, and segments are
//! used again only when the record is durable.
//!
//! All of it is done in steps, beside the writers: what is decided stays right meanwhile,
//! since the layers are sealed and nobody else changes the queue.

use super::origin::is_origin_tag;
use super::volume::{State, Volume, Who};
use crate::error::{Error, Result};
use crate::format::journal::{Record, frame_size};
use crate::format::state::LayerRecord;
use crate::io::Io;
use crate::map::bitmap::BITS_MAX;
use crate::map::{BitMap, BlockMap, LayerContents, LayerRef, PAGE_WORDS, Page, SealedLayer, Words};
use crate::types::Epoch;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::rc::Rc;
use uuid::Uuid;

/// Entries copied before other tasks get their turn.
const ENTRIES_AT_ONCE: usize = 2048;

/// What becomes of the layers of a snapshot that goes.
#[derive(Default)]
struct Passed {
    /// First epochs of those that no longer are.
    removed: Vec<Epoch>,
    /// Those that take their place.
    added: Vec<(LayerRecord, Rc<SealedLayer>)>,
}

/// Whether a snapshot may be deleted, and why not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeleteCheck {
    /// It may.
    Free,
    /// It is held under these tags.
    Held(Vec<String>),
    /// A client, a transfer or a roll-back has it open.
    Open,
    /// A receive under way builds on it.
    Base,
}

/// What is passed on of one layer.
struct Part {
    layer: Rc<SealedLayer>,
    bits: BitMap,
    meta_pages: BTreeMap<u64, Page>,
    /// All of it.
    whole: bool,
}

impl Volume {
    /// Whether the snapshot of that name may be deleted.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn can_delete(&self, name: &str) -> Result<(Uuid, DeleteCheck)> {
        let s = self.s.borrow();
        let Some(record) = s.visible(name) else {
            drop(s);
            return Err(self.no_snapshot(name));
        };
        Ok((record.uuid, s.can_delete(record.uuid)))
    }

    /// Why a snapshot is not deleted, as an error.
    #[must_use]
    pub fn refusal(&self, snapshot: &str, check: &DeleteCheck) -> Option<Error> {
        refusal(&self.name(), snapshot, check)
    }

    /// Hides snapshots that are about to be deleted, all or none: from here on nobody opens
    /// or holds them, so nothing but a failure keeps them from going.
    ///
    /// # Errors
    /// `NotFound`; `Conflict` when one is held, open or a base.
    pub fn hide_for_deletion(&self, names: &[String]) -> Result<Vec<Uuid>> {
        let mut uuids = Vec::new();
        for name in names {
            let (uuid, check) = self.can_delete(name)?;
            if let Some(error) = self.refusal(name, &check) {
                return Err(error);
            }
            uuids.push(uuid);
        }
        self.s.borrow_mut().hidden.extend(&uuids);
        Ok(uuids)
    }

    /// Hides what is left of a deletion that failed, or shows it again.
    pub fn set_hidden(&self, snapshots: &[Uuid], hidden: bool) {
        let s = &mut *self.s.borrow_mut();
        for uuid in snapshots {
            if hidden && s.durable.snapshot(*uuid).is_some() {
                s.hidden.insert(*uuid);
            } else {
                s.hidden.remove(uuid);
            }
        }
    }

    /// Deletes snapshots, one after the other.
    ///
    /// # Errors
    /// `Conflict` when one is held, open or a base; `Io`.
    pub async fn delete(self: &Rc<Self>, snapshots: &[Uuid]) -> Result<()> {
        let _exclusive = self.exclusive().await;
        for uuid in snapshots {
            let result = self.healed(async || self.delete_one(*uuid, false).await).await;
            result.map_err(|e| self.named(e))?;
        }
        self.reclaim().await
    }

    /// Frees what deletions left.
    pub(super) async fn reclaim(self: &Rc<Self>) -> Result<()> {
        let result = self.save.reclaim(&self.journal).await;
        self.kick_puncher();
        self.kick_checkpoint();
        result
    }

    /// Deletes one; a cut that is `remembered` stays as a bookmark.
    pub(super) async fn delete_one(self: &Rc<Self>, uuid: Uuid, remembered: bool) -> Result<()> {
        self.writable(Who::Store)?;
        let Some(record) = self.s.borrow().durable.snapshot(uuid).cloned() else { return Ok(()) };
        let check = self.s.borrow().can_delete(uuid);
        if let Some(error) = refusal(&self.name(), &record.name, &check) {
            return Err(error);
        }
        // From here on nobody opens it.
        self.s.borrow_mut().hidden.insert(uuid);
        let result = self.with_reserve(|| self.delete_hidden(uuid, record.epoch, remembered)).await;
        self.s.borrow_mut().hidden.remove(&uuid);
        result
    }

    async fn delete_hidden(self: &Rc<Self>, uuid: Uuid, epoch: Epoch, remembered: bool) -> Result<()> {
        let is_tail = self.s.borrow().tail() == Some(epoch);
        let end = if is_tail { self.raise_epoch() } else { self.s.borrow().end_of(epoch) };
        self.seal_closed().await?;
        self.load_from(Epoch(0)).await?;
        let older = self.s.borrow().older_than(epoch);
        if older.is_some() {
            // What the older one would take over is not known.
            self.s.borrow().chain.whole(epoch..end).map_err(older_first)?;
        }
        let new_tail =
            if is_tail { older.map(|o| self.thaw(o, epoch)).transpose().map_err(older_first)? } else { None };
        let Passed { removed, added } = Box::pin(self.pass_on(older, epoch..end)).await?;
        let old_records = self.layer_records(&removed);
        let records: Vec<LayerRecord> = added.iter().map(|(record, _)| record.clone()).collect();
        let record = Record::Delete {
            snapshots: vec![uuid],
            removed: removed.clone(),
            added: records.clone(),
            ends_receive: false,
            remembered,
        };
        let room = match self.journal.reserve(frame_size(&record)).await {
            Ok(room) => room,
            Err(error) => {
                self.forget_layers(&records).await;
                return Err(error);
            }
        };
        // Until it is durable a power cut brings the snapshot back, so it is respected as
        // long. Nobody cuts the journal meanwhile.
        self.journal.push(record.clone());
        drop(room);
        self.journal_synced().await?;
        {
            let mut s = self.s.borrow_mut();
            s.durable.apply(&record);
            for first in &removed {
                s.chain.remove(*first);
            }
            for (_, sealed) in &added {
                s.chain.insert_loaded(Rc::clone(sealed));
            }
            s.mended.retain(|first, _| !removed.contains(first));
            s.frozen.remove(&epoch);
            if let (Some(older), Some(map)) = (older, new_tail) {
                s.frozen.insert(older, map);
            }
            s.freed.forget_from(epoch);
            s.forget_retained();
        }
        self.marks_changed();
        self.weigh_layers();
        self.count_dead(&old_records, &records);
        for record in old_records {
            self.remove_layer(&record).await?;
        }
        Ok(())
    }

    /// Removes the files of layers that no record will name. It fails at worst on a disk that
    /// does so for everything; the next open removes them then.
    pub(super) async fn forget_layers(&self, layers: &[LayerRecord]) {
        for layer in layers {
            let _ = self.remove_layer(layer).await;
        }
    }

    /// The records of sealed layers.
    fn layer_records(&self, firsts: &[Epoch]) -> Vec<LayerRecord> {
        let s = self.s.borrow();
        firsts.iter().filter_map(|first| s.durable.layer(*first)).cloned().collect()
    }

    /// The difference between old and new layers is free now.
    fn count_dead(&self, old: &[LayerRecord], new: &[LayerRecord]) {
        let mut counts: BTreeMap<u32, u64> = BTreeMap::new();
        for (segment, count) in old.iter().flat_map(|l| &l.live) {
            *counts.entry(*segment).or_default() += count;
        }
        for (segment, count) in new.iter().flat_map(|l| &l.live) {
            if let Some(total) = counts.get_mut(segment) {
                *total -= count;
            }
        }
        for (segment, count) in counts {
            self.save.drop_live(segment, count);
        }
        self.save.deleted();
        self.space.freed.notify();
    }

    /// The frozen map of the snapshot that becomes the tail, from the one of the tail that
    /// goes.
    pub(super) fn thaw(&self, older: Epoch, tail: Epoch) -> Result<BitMap> {
        let s = self.s.borrow();
        if let Some(map) = s.frozen.get(&older) {
            return Ok(map.clone());
        }
        // A lost layer may have held a page that tells the two apart.
        s.chain.pages_whole(older..Epoch(u64::MAX))?;
        let mut map = s.frozen.get(&tail).cloned().unwrap_or_default();
        for page in s.chain.touched_meta_pages(older..tail)? {
            if let Some(content) = s.chain.meta_page(page, older)? {
                map.set_page(page, content);
            }
        }
        Ok(map)
    }

    /// Gives `older` what it takes over from the layers of `epochs`: files are written, and
    /// nothing names them yet.
    async fn pass_on(self: &Rc<Self>, older: Option<Epoch>, epochs: Range<Epoch>) -> Result<Passed> {
        let mut passed = Passed::default();
        let result = self.pass_on_each(older, epochs, &mut passed).await;
        if let Err(error) = result {
            let records: Vec<LayerRecord> = passed.added.into_iter().map(|(record, _)| record).collect();
            self.forget_layers(&records).await;
            return Err(error);
        }
        Ok(passed)
    }

    async fn pass_on_each(
        self: &Rc<Self>,
        older: Option<Epoch>,
        epochs: Range<Epoch>,
        passed: &mut Passed,
    ) -> Result<()> {
        let (firsts, mut known_pages): (Vec<Epoch>, BTreeSet<u64>) = {
            let s = self.s.borrow();
            let records = s.durable.layers.iter().map(|l| l.first).filter(|first| epochs.contains(first));
            let pages = older.map(|older| s.chain.touched_meta_pages(older..epochs.start)).transpose()?;
            (records.collect(), pages.into_iter().flatten().collect())
        };
        let Some(older) = older else {
            passed.removed = firsts;
            return Ok(());
        };
        let mut run: Vec<Part> = Vec::new();
        for first in firsts {
            let layer = self.s.borrow().chain.get(first);
            let Some(LayerRef::Loaded(layer)) = layer else {
                // It was found damaged just now, and is lost.
                self.s.borrow().chain.whole(first..first.next()).map_err(older_first)?;
                return Err(Error::conflict(format!("the layer of epoch {first} is not loaded")));
            };
            let bits = self.passed_bits(older, epochs.start..first, &layer).await?;
            // Also of the tail: a recovery that starts from the map of a younger snapshot,
            // deleted since, needs them.
            let mut meta_pages = BTreeMap::new();
            let mut whole = bits.count() == layer.entry_count();
            for page in layer.meta_pages() {
                match layer.meta_page(page)? {
                    Some(content) if known_pages.insert(page) => drop(meta_pages.insert(page, content)),
                    _ => whole = false,
                }
            }
            let total = bits.count() + run.iter().map(|part| part.bits.count()).sum::<u64>();
            if total > self.tuning.layer_entries_max as u64 {
                self.pass_run(std::mem::take(&mut run), passed).await?;
            }
            run.push(Part { layer, bits, meta_pages, whole });
        }
        self.pass_run(run, passed).await
    }

    /// Makes one layer of what is passed on of neighbours that are small together.
    async fn pass_run(&self, run: Vec<Part>, passed: &mut Passed) -> Result<()> {
        if run.iter().all(|part| part.whole) && run.len() <= 1 {
            return Ok(());
        }
        let (Some(first), Some(last)) = (run.first(), run.last()) else { return Ok(()) };
        let volume = first.layer.volume();
        let epochs = first.layer.epochs().start..last.layer.epochs().end;
        let (mut bits, mut entries, mut meta_pages) = (BitMap::new(), BlockMap::new(), BTreeMap::new());
        for part in run {
            passed.removed.push(part.layer.epochs().start);
            self.add_entries(&part, &mut entries).await?;
            if bits.is_empty() {
                bits = part.bits;
            } else {
                bits.extend(part.bits.iter_set(0..BITS_MAX));
            }
            meta_pages.extend(part.meta_pages);
        }
        if bits.is_empty() && meta_pages.is_empty() {
            return Ok(());
        }
        let contents = LayerContents { volume, epochs, bits, entries, meta_pages };
        passed.added.push(self.write_layer(contents).await?);
        Ok(())
    }

    /// Which blocks of a layer `older` takes over; those that a layer in `before` has too are
    /// that one's.
    async fn passed_bits(&self, older: Epoch, before: Range<Epoch>, layer: &SealedLayer) -> Result<BitMap> {
        let toward_head: Vec<Epoch> = {
            let s = self.s.borrow();
            s.durable.snapshots.iter().rev().map(|r| r.epoch).filter(|e| *e <= older).collect()
        };
        let mut bits = BitMap::new();
        let mut pace = Pace { io: &self.io, steps: 0, at_once: self.tuning.steps_at_once };
        for page in layer.bit_pages() {
            let mut undecided = layer.bits_page(page)?.to_words();
            if !before.is_empty() {
                let mut first = [0; PAGE_WORDS];
                self.s.borrow().chain.union_bits(page, before.clone(), &mut first)?;
                clear_words(&mut undecided, &first);
            }
            // On the heap: the pages in it would make every future above this one large.
            let kept = Box::pin(self.needed_by(&toward_head, before.start, undecided, page, &mut pace));
            let kept = kept.await?;
            bits.set_page(page, Page::from_words(&kept));
        }
        Ok(bits)
    }

    /// Which blocks of a page some snapshot of `toward_head` needs that finds none of them
    /// in a layer before `end`.
    async fn needed_by(
        &self,
        toward_head: &[Epoch],
        mut end: Epoch,
        mut undecided: Words,
        page: u64,
        pace: &mut Pace<'_>,
    ) -> Result<Words> {
        let mut kept = [0; PAGE_WORDS];
        for snapshot in toward_head {
            {
                let s = self.s.borrow();
                let mut bits = [0; PAGE_WORDS];
                s.chain.union_bits(page, *snapshot..end, &mut bits)?;
                let used = s.frozen_words_or_all(*snapshot, page)?;
                let mut open = 0;
                for i in 0..PAGE_WORDS {
                    undecided[i] &= !bits[i];
                    kept[i] |= undecided[i] & used[i];
                    undecided[i] &= !used[i];
                    open |= undecided[i];
                }
                if open == 0 {
                    break;
                }
            }
            end = *snapshot;
            pace.step().await;
        }
        pace.step().await;
        Ok(kept)
    }

    /// Adds the entries that are passed on of a layer.
    async fn add_entries(&self, part: &Part, entries: &mut BlockMap) -> Result<()> {
        if part.bits.is_empty() {
            return Ok(());
        }
        for (index, entry) in part.layer.entries().enumerate() {
            let (block, image) = entry?;
            if part.bits.get(block.0) {
                entries.insert(block, image);
            }
            if index % ENTRIES_AT_ONCE == ENTRIES_AT_ONCE - 1 {
                self.io.step_aside().await;
            }
        }
        Ok(())
    }

    /// Bytes of before-images that the deletion of a snapshot would free. It is computed when
    /// it is asked for the first time, and again after the queue or the layers changed.
    pub(super) async fn freed_by_delete(self: &Rc<Self>, epoch: Epoch) -> Result<u64> {
        let (end, toward_head, changes) = {
            let s = self.s.borrow();
            if let Some(freed) = s.freed.known(epoch) {
                return Ok(freed * u64::from(s.durable.geometry.block_size));
            }
            let at = s.durable.snapshots.partition_point(|r| r.epoch < epoch);
            let toward_head: Vec<Epoch> = s.durable.snapshots[..at].iter().rev().map(|r| r.epoch).collect();
            (s.end_of(epoch), toward_head, s.freed.changes())
        };
        let mut freed = 0;
        let mut pace = Pace { io: &self.io, steps: 0, at_once: self.tuning.steps_at_once };
        let pages = self.s.borrow().chain.touched_pages(epoch..end)?;
        for page in pages {
            let mut all = [0; PAGE_WORDS];
            self.s.borrow().chain.union_bits(page, epoch..end, &mut all)?;
            let kept = Box::pin(self.needed_by(&toward_head, epoch, all, page, &mut pace)).await?;
            clear_words(&mut all, &kept);
            freed += all.iter().map(|word| u64::from(word.count_ones())).sum::<u64>();
        }
        let s = &mut *self.s.borrow_mut();
        // The tail's layers still change.
        if end != Epoch(u64::MAX) && end <= s.durable.unsealed {
            s.freed.note(epoch, freed, changes);
        }
        Ok(freed * u64::from(s.durable.geometry.block_size))
    }
}

/// What deletions would free, of the snapshots of which that is known.
#[derive(Default)]
pub(super) struct Freed {
    blocks: BTreeMap<Epoch, u64>,
    changes: u64,
}

impl Freed {
    fn known(&self, epoch: Epoch) -> Option<u64> {
        self.blocks.get(&epoch).copied()
    }

    fn changes(&self) -> u64 {
        self.changes
    }

    /// Takes a note, unless anything changed since `changes`.
    fn note(&mut self, epoch: Epoch, blocks: u64, changes: u64) {
        if changes == self.changes {
            self.blocks.insert(epoch, blocks);
        }
    }

    /// The snapshot of that epoch goes, or another layer was found damaged there: the one
    /// before it takes over what it has, and the younger ones may free more.
    pub(super) fn forget_from(&mut self, epoch: Epoch) {
        self.changes += 1;
        let before = self.blocks.range(..epoch).next_back().map(|(before, _)| *before);
        self.blocks.split_off(&before.unwrap_or(epoch));
    }
}

/// Work in steps, with others' turns between them.
struct Pace<'a> {
    io: &'a Io,
    steps: usize,
    at_once: usize,
}

impl Pace<'_> {
    async fn step(&mut self) {
        self.steps += 1;
        if self.steps.is_multiple_of(self.at_once) {
            self.io.step_aside().await;
        }
    }
}

fn clear_words(words: &mut Words, gone: &Words) {
    for (word, gone) in words.iter_mut().zip(gone) {
        *word &= !gone;
    }
}

impl State {
    pub(super) fn can_delete(&self, uuid: Uuid) -> DeleteCheck {
        let Some(record) = self.durable.snapshot(uuid) else { return DeleteCheck::Free };
        if !record.holds.is_empty() {
            return DeleteCheck::Held(record.holds.clone());
        }
        if self.opened.contains_key(&uuid) || self.durable.rollback == Some(uuid) {
            return DeleteCheck::Open;
        }
        let receive = self.durable.receive.as_ref();
        if receive.is_some_and(|r| r.base == Some(uuid) || r.before == Some(uuid)) {
            return DeleteCheck::Base;
        }
        DeleteCheck::Free
    }
}

/// A lost layer is in the way, but not to the deletion of the oldest.
fn older_first(error: Error) -> Error {
    error.hint("delete the older snapshots first: they depend on what is lost")
}

/// Why it is refused, as an error.
#[must_use]
pub(super) fn refusal(volume: &str, snapshot: &str, check: &DeleteCheck) -> Option<Error> {
    let name = format!("{volume}@{snapshot}");
    match check {
        DeleteCheck::Free => None,
        DeleteCheck::Held(tags) if tags.iter().any(|tag| is_origin_tag(tag)) => {
            let drills: Vec<String> = tags
                .iter()
                .filter_map(|tag| tag.strip_prefix('+'))
                .map(|n| format!("{volume}+{n}"))
                .collect();
            Some(
                Error::conflict(format!("snapshot {name} is what a drill shows: {}", drills.join(", ")))
                    .hint(format!("'snapvol drill {volume} --end N' ends drill N")),
            )
        }
        DeleteCheck::Held(tags) => Some(
            Error::conflict(format!("snapshot {name} is held: {}", tags.join(", ")))
                .hint(format!("'snapvol release {name} TAG' lets go of it")),
        ),
        DeleteCheck::Open => {
            Some(Error::conflict(format!("snapshot {name} is in use")).hint("disconnect its clients first"))
        }
        DeleteCheck::Base => Some(
            Error::conflict(format!("a receive under way builds on snapshot {name}"))
                .hint(format!("let it finish, or drop it with 'snapvol receive {volume} --abort'")),
        ),
    }
}
