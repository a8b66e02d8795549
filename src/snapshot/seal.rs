//! Sealing: the layer of an epoch that has ended and settled becomes a file.
//!
//! The file is whole and durable before the record that names it is written; the record
//! need not be durable, since without it the layer is rebuilt from the segments' headers
//! and the frozen map from the journal. What is no longer needed in memory goes then. The
//! before-pages, which can't be rebuilt from anything once the journal starts anew, are in
//! a second file too.

use super::volume::Volume;
use crate::error::Result;
use crate::format::journal::{Record, frame_size};
use crate::format::state::LayerRecord;
use crate::io::{Io, OpenHow};
use crate::map::{BitMap, BlockMap, LayerContents, Page, SealedLayer, layer};
use crate::types::Epoch;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::rc::Rc;
use uuid::Uuid;

/// A layer's file of so many bytes is checked at once: that takes less than to ask a thread.
const OPENED_INLINE_BYTES: usize = 256 << 10;

impl Volume {
    /// Seals in the background what has ended.
    pub(super) fn kick_sealer(self: &Rc<Self>) {
        let volume = Rc::clone(self);
        self.io.spawn(async move {
            if let Err(error) = volume.seal_closed().await {
                tracing::warn!("volume {}: a layer stays in memory: {error}", volume.name());
            }
        });
    }

    /// Seals every layer but the youngest, oldest first.
    ///
    /// # Errors
    /// `Io`, `Full`; what is not sealed stays in memory.
    pub(super) async fn seal_closed(self: &Rc<Self>) -> Result<()> {
        while self.sealing.replace(true) {
            self.changed.wait().await;
        }
        let result = self.seal_all().await;
        self.sealing.set(false);
        self.changed.notify();
        result
    }

    async fn seal_all(self: &Rc<Self>) -> Result<()> {
        loop {
            let closed = self.s.borrow().chain.oldest_closed();
            let Some(epochs) = closed else { return Ok(()) };
            self.settled_before(epochs.end).await?;
            // While a snapshot is being taken its frozen map is not final, and until it is
            // confirmed the one before it may become the tail again.
            let open = {
                let s = self.s.borrow();
                [s.taking, s.unconfirmed].contains(&Some(epochs.end))
            };
            if open {
                return Ok(());
            }
            self.seal_one(epochs).await?;
        }
    }

    async fn seal_one(self: &Rc<Self>, epochs: Range<Epoch>) -> Result<()> {
        let (mut contents, owner_ends) = self.contents_of(&epochs);
        let mut dead = Vec::new();
        if self.s.borrow().owner_of(epochs.start).is_none() {
            // Saved for a take that was undone, with no snapshot before it.
            contents.bits = BitMap::new();
            dead = live_by_segment(&std::mem::take(&mut contents.entries));
        }
        let (layers, sealed): (Vec<LayerRecord>, Option<Rc<SealedLayer>>) =
            if contents.bits.is_empty() && contents.meta_pages.is_empty() {
                (Vec::new(), None)
            } else {
                let (record, sealed) = self.write_layer(contents).await?;
                (vec![record], Some(sealed))
            };
        let record = Record::Seal { layers: layers.clone(), unsealed: epochs.end };
        let room = match self.journal.reserve(frame_size(&record)).await {
            Ok(room) => room,
            Err(error) => {
                self.forget_layers(&layers).await;
                return Err(error);
            }
        };
        for (segment, count) in dead {
            self.save.drop_live(segment, count);
        }
        let mut s = self.s.borrow_mut();
        s.chain.remove(epochs.start);
        if let Some(sealed) = sealed {
            s.chain.insert_loaded(sealed);
        }
        if let Some(owner) = owner_ends {
            s.frozen.remove(&owner);
        }
        drop(s);
        self.record(record);
        drop(room);
        self.weigh_layers();
        Ok(())
    }

    /// What the layer of `epochs` holds, and the snapshot whose map ends with it.
    fn contents_of(&self, epochs: &Range<Epoch>) -> (LayerContents, Option<Epoch>) {
        let s = self.s.borrow();
        let open = super::settle::open_layer(&s.chain, epochs.start);
        let open = open.borrow();
        let owner = s.owner_of(epochs.start);
        let next = owner.map(|o| s.end_of(o));
        let mut meta_pages: BTreeMap<u64, Page> = BTreeMap::new();
        let mut ends = None;
        if let (Some(owner), Some(next)) = (owner, next)
            && next == epochs.end
            && let (Some(mine), Some(theirs)) = (s.frozen.get(&owner), s.frozen.get(&next))
        {
            meta_pages.extend(mine.changed_pages(theirs).map(|page| (page, mine.page(page))));
            ends = Some(owner);
        }
        let contents = LayerContents {
            volume: s.durable.uuid,
            epochs: epochs.clone(),
            bits: open.bits.clone(),
            entries: open.blocks.clone(),
            meta_pages,
        };
        (contents, ends)
    }

    /// Writes a sealed layer's file; it is durable, and nothing names it yet.
    pub(super) async fn write_layer(
        &self,
        contents: LayerContents,
    ) -> Result<(LayerRecord, Rc<SealedLayer>)> {
        let version = {
            let mut s = self.s.borrow_mut();
            s.next_layer_version += 1;
            s.next_layer_version
        };
        let (volume, epochs) = (contents.volume, contents.epochs.clone());
        let (file, second, record) = self.io.compute(move || encode(&contents, version)).await?;
        let path = self.paths.layer(epochs.start, version);
        self.write_layer_file(&path, file).await?;
        if let Some(second) = second {
            self.write_layer_file(&self.paths.layer_pages(epochs.start, version), second).await?;
        }
        self.io.sync_dir(&self.paths.snapshots()).await?;
        let sealed = open_layer_file(&self.io, &path, volume, epochs).await?;
        Ok((record, Rc::new(sealed)))
    }

    /// Writes and syncs a file of that form; the caller syncs the directory.
    pub(super) async fn write_layer_file(&self, path: &Path, pieces: Vec<Bytes>) -> Result<()> {
        let file = self.io.open(path, OpenHow::CreateEmpty).await?;
        let written = async {
            let mut at = 0;
            for piece in pieces {
                let len = piece.len() as u64;
                self.io.write(file, at, piece).await?;
                at += len;
            }
            self.io.sync(file).await
        };
        let result = written.await;
        self.io.close(file);
        if result.is_err() {
            // A part of it would stand in the way of the next attempt on a full disk.
            let _ = self.io.remove(path).await;
        }
        result
    }
}

/// The layer's file, its second one if it has before-pages, and its record.
fn encode(contents: &LayerContents, version: u64) -> (Vec<Bytes>, Option<Vec<Bytes>>, LayerRecord) {
    let pages = u32::try_from(contents.meta_pages.len()).unwrap_or(u32::MAX);
    let second = (pages > 0).then(|| layer::encode(&pages_only(contents)));
    let record = LayerRecord {
        first: contents.epochs.start,
        end: contents.epochs.end,
        entries: contents.entries.len() as u64,
        live: live_by_segment(&contents.entries),
        version,
        pages,
    };
    (layer::encode(contents), second, record)
}

/// Opens a layer's file; the check of a large one's tables keeps nobody waiting.
pub(super) async fn open_layer_file(
    io: &Io,
    path: &Path,
    volume: Uuid,
    epochs: Range<Epoch>,
) -> Result<SealedLayer> {
    let mapped = io.map(path).await?;
    if mapped.len() <= OPENED_INLINE_BYTES {
        return SealedLayer::open(mapped, volume, epochs);
    }
    io.compute(move || SealedLayer::open(mapped, volume, epochs)).await?
}

/// The before-pages of a layer alone: nothing else has them, so they are stored twice.
pub(super) fn pages_only(contents: &LayerContents) -> LayerContents {
    LayerContents { bits: BitMap::new(), entries: BlockMap::new(), ..contents.clone() }
}

/// How many images lie in which segment.
pub(super) fn live_by_segment(entries: &BlockMap) -> Vec<(u32, u64)> {
    let mut live: BTreeMap<u32, u64> = BTreeMap::new();
    for (_, image) in entries.iter() {
        *live.entry(image.addr.segment).or_default() += 1;
    }
    live.into_iter().collect()
}
