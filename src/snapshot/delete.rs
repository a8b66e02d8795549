//! Deleting a snapshot, anywhere in the queue.
//!
//! Its layers are written anew with what the next older snapshot takes over: an entry is
//! passed on unless that one has the block itself, or no snapshot from it toward the head
//! needs the block. No before-image is copied. Why a crash is safe: the new layer is
//! durable before the record, the old files go after it, and segments are used again only
//! when the record is durable.

use super::volume::{State, Volume, Who};
use crate::error::{Error, Result};
use crate::format::journal::{Record, frame_size};
use crate::format::state::LayerRecord;
use crate::map::{BitMap, BlockMap, LayerContents, LayerRef, PAGE_WORDS, Page, SealedLayer, Words};
use crate::types::Epoch;
use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;
use uuid::Uuid;

/// Pages decided before other tasks get their turn.
const PAGES_AT_ONCE: usize = 8;
/// Entries copied before other tasks get their turn.
const ENTRIES_AT_ONCE: usize = 2048;

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
    async fn reclaim(self: &Rc<Self>) -> Result<()> {
        let result = self.save.reclaim(&self.journal).await;
        self.kick_puncher();
        self.kick_checkpoint();
        result
    }

    pub(super) async fn delete_one(self: &Rc<Self>, uuid: Uuid, ends_receive: bool) -> Result<()> {
        self.writable(Who::Store)?;
        let Some(record) = self.s.borrow().durable.snapshot(uuid).cloned() else { return Ok(()) };
        let check = self.s.borrow().can_delete(uuid);
        if let Some(error) = refusal(&self.name(), &record.name, &check)
            && !ends_receive
        {
            return Err(error);
        }
        // From here on nobody opens it.
        self.s.borrow_mut().hidden.insert(uuid);
        let result = self.with_reserve(|| self.delete_hidden(uuid, record.epoch, ends_receive)).await;
        self.s.borrow_mut().hidden.remove(&uuid);
        result
    }

    async fn delete_hidden(self: &Rc<Self>, uuid: Uuid, epoch: Epoch, ends_receive: bool) -> Result<()> {
        let is_tail = self.s.borrow().tail() == Some(epoch);
        let end = if is_tail { self.raise_epoch() } else { self.s.borrow().end_of(epoch) };
        self.seal_closed().await?;
        self.load_from(Epoch(0)).await?;
        let older = self.s.borrow().queue().into_iter().rev().find(|e| *e < epoch);
        if older.is_some() {
            // What the older one would take over is not known.
            self.s.borrow().chain.whole(epoch..end).map_err(older_first)?;
        }
        let (removed, old_records) = self.layers_in(&(epoch..end));
        let kept = match older {
            Some(older) => self.kept(older, epoch..end).await?,
            None => None,
        };
        let added = match kept {
            Some(contents) => Some(self.write_layer(&contents).await?),
            None => None,
        };
        let records: Vec<LayerRecord> = added.iter().map(|(record, _)| record.clone()).collect();
        let new_tail =
            if is_tail { older.map(|o| self.thaw(o, epoch)).transpose().map_err(older_first)? } else { None };
        let record =
            Record::Delete { snapshots: vec![uuid], removed: removed.clone(), added: records, ends_receive };
        let room = match self.journal.reserve(frame_size(&record)).await {
            Ok(room) => room,
            Err(error) => {
                self.forget_layer(added.as_ref().map(|(record, _)| record)).await;
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
            if let Some((_, sealed)) = &added {
                s.chain.insert_loaded(Rc::clone(sealed));
            }
            s.mended.retain(|first, _| !removed.contains(first));
            s.frozen.remove(&epoch);
            if let (Some(older), Some(map)) = (older, new_tail) {
                s.frozen.insert(older, map);
            }
            s.forget_retained();
        }
        self.weigh_layers();
        self.count_dead(&old_records, added.as_ref().map(|(record, _)| record));
        for record in old_records {
            self.remove_layer(&record).await?;
        }
        Ok(())
    }

    /// Removes the file of a layer that no record will name. It fails at worst on a disk that
    /// does so for everything; the next open removes it then.
    pub(super) async fn forget_layer(&self, layer: Option<&LayerRecord>) {
        if let Some(layer) = layer {
            let _ = self.io.remove(&self.paths.layer(layer.first, layer.version)).await;
        }
    }

    /// Sealed layers that begin in a range of epochs.
    fn layers_in(&self, epochs: &Range<Epoch>) -> (Vec<Epoch>, Vec<LayerRecord>) {
        let s = self.s.borrow();
        let records: Vec<LayerRecord> =
            s.durable.layers.iter().filter(|l| epochs.contains(&l.first)).cloned().collect();
        (records.iter().map(|l| l.first).collect(), records)
    }

    /// The difference between old and new layers is free now.
    fn count_dead(&self, old: &[LayerRecord], new: Option<&LayerRecord>) {
        let mut counts: BTreeMap<u32, u64> = BTreeMap::new();
        for (segment, count) in old.iter().flat_map(|l| &l.live) {
            *counts.entry(*segment).or_default() += count;
        }
        for (segment, count) in new.into_iter().flat_map(|l| &l.live) {
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
        let mut map = s.frozen.get(&tail).cloned().unwrap_or_default();
        for page in s.chain.touched_meta_pages(older..tail)? {
            if let Some(content) = s.chain.meta_page(page, older)? {
                map.set_page(page, content);
            }
        }
        Ok(map)
    }

    /// What `older` takes over from the layers of `epochs`; none if that is nothing.
    async fn kept(self: &Rc<Self>, older: Epoch, epochs: Range<Epoch>) -> Result<Option<LayerContents>> {
        let layers: Vec<Rc<SealedLayer>> = {
            let s = self.s.borrow();
            let all = s.chain.layers_from(epochs.start).take_while(|(first, _)| *first < epochs.end);
            all.filter_map(|(_, l)| if let LayerRef::Loaded(sealed) = l { Some(sealed) } else { None })
                .collect()
        };
        let (Some(first), Some(last)) = (layers.first(), layers.last()) else { return Ok(None) };
        let covered = first.epochs().start..last.epochs().end;
        let mut bits = BitMap::new();
        let pages = self.s.borrow().chain.touched_pages(epochs.clone())?;
        for (index, page) in pages.into_iter().enumerate() {
            let words = self.s.borrow().kept_words(older, &epochs, page)?;
            bits.set_page(page, Page::from_words(&words));
            if index % PAGES_AT_ONCE == PAGES_AT_ONCE - 1 {
                self.io.yield_now().await;
            }
        }
        let entries = self.kept_entries(&layers, &bits).await?;
        let mut meta_pages = BTreeMap::new();
        {
            // Also of the tail: a recovery that starts from the map of a younger snapshot,
            // deleted since, needs them.
            let s = self.s.borrow();
            let has: Vec<u64> = s.chain.touched_meta_pages(older..epochs.start)?;
            for page in s.chain.touched_meta_pages(epochs.clone())? {
                if has.binary_search(&page).is_err()
                    && let Some(content) = s.chain.meta_page(page, epochs.start)?
                {
                    meta_pages.insert(page, content);
                }
            }
        }
        if bits.is_empty() && meta_pages.is_empty() {
            return Ok(None);
        }
        let volume = self.s.borrow().durable.uuid;
        Ok(Some(LayerContents { volume, epochs: covered, bits, entries, meta_pages }))
    }

    /// The entries of `bits`; of several layers the oldest image of a block counts.
    async fn kept_entries(&self, layers: &[Rc<SealedLayer>], bits: &BitMap) -> Result<BlockMap> {
        let mut entries = BlockMap::new();
        let mut count = 0;
        for layer in layers {
            for entry in layer.entries() {
                let (block, image) = entry?;
                if bits.get(block.0) {
                    // It keeps the first one.
                    entries.insert(block, image);
                }
                count += 1;
                if count % ENTRIES_AT_ONCE == 0 {
                    self.io.yield_now().await;
                }
            }
        }
        debug_assert_eq!(bits.count(), entries.len() as u64);
        Ok(entries)
    }

    /// Bytes of before-images that the deletion of a snapshot would free.
    pub(super) fn freed_by_delete(&self, epoch: Epoch) -> Result<u64> {
        let s = self.s.borrow();
        let end = s.end_of(epoch);
        let older = s.queue().into_iter().rev().find(|e| *e < epoch);
        let mut freed = 0;
        for page in s.chain.touched_pages(epoch..end)? {
            let mut all = [0; PAGE_WORDS];
            s.chain.union_bits(page, epoch..end, &mut all)?;
            let kept = match older {
                Some(older) => s.kept_words(older, &(epoch..end), page)?,
                None => [0; PAGE_WORDS],
            };
            freed += all.iter().zip(&kept).map(|(a, k)| u64::from((a & !k).count_ones())).sum::<u64>();
        }
        Ok(freed * u64::from(s.durable.geometry.block_size))
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

    /// Which bits of a page, of layers in `epochs`, the snapshot of `older` takes over.
    fn kept_words(&self, older: Epoch, epochs: &Range<Epoch>, page: u64) -> Result<Words> {
        let mut undecided = [0; PAGE_WORDS];
        self.chain.union_bits(page, epochs.clone(), &mut undecided)?;
        let mut kept = [0; PAGE_WORDS];
        let mut end = epochs.start;
        for snapshot in self.queue().into_iter().rev().filter(|e| *e <= older) {
            let mut bits = [0; PAGE_WORDS];
            self.chain.union_bits(page, snapshot..end, &mut bits)?;
            let used = self.frozen_words_or_all(snapshot, page)?;
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
            end = snapshot;
        }
        Ok(kept)
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
