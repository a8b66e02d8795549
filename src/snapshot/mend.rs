//! Mending sealed layers: a file that is missing or damaged is made again.
//!
//! The entries come from the heads of the groups in the segments that the layer's record
//! names, by the one rule for maps (all groups of its epochs, oldest first, the first image
//! of a block wins); the before-pages, which no segment has, from the layer's second file.
//! Deletions may have dropped entries whose groups are still there. They come back then and
//! do no harm: nobody needs those blocks, so nobody looks for them. But nothing may be
//! missing: a layer is believed only if it has at least what its record counted, else it is
//! lost, and whoever must know what it held gets an error.
//!
//! The layer works from memory at once. Its new file, and the record that names it, follow
//! when the volume is open; the damaged file goes after that record is durable, and stays
//! where anything is lost.

use super::volume::Volume;
use crate::error::{Error, ErrorKind, Result};
use crate::format::journal::Record;
use crate::format::state::LayerRecord;
use crate::io::{Io, Mapped};
use crate::map::{BitMap, BlockMap, LayerContents, Page, SavedImage, SealedLayer, layer};
use crate::store::paths::VolumePaths;
use crate::store::save::SaveVolume;
use crate::types::SaveAddr;
use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use uuid::Uuid;

/// The version of a layer that has no file: a repair gave it up.
pub(super) const GIVEN_UP: u64 = 0;

/// What became of a layer that was to be loaded.
pub(super) enum Loaded {
    /// Its file is whole.
    Whole(SealedLayer),
    /// It was made again; why that was necessary.
    Mended(Mended),
    /// It is lost, and why.
    Lost(String),
}

/// A layer made again, whose file is still to be written.
pub(super) struct Mended {
    pub layer: SealedLayer,
    pub contents: LayerContents,
    pub why: String,
}

/// Where layers come from.
pub(super) struct Sources<'a> {
    pub io: &'a Io,
    pub paths: &'a VolumePaths,
    pub save: &'a SaveVolume,
    pub volume: Uuid,
    pub block_size: u32,
}

/// Whether an error says that a file is not what it was, now and later: not that there are
/// too many open files, or no memory.
pub(crate) fn is_damage(error: &Error) -> bool {
    const ENOENT: i32 = 2;
    const EIO: i32 = 5;
    error.kind() == ErrorKind::Corrupt || matches!(error.os_code(), Some(ENOENT | EIO))
}

impl Sources<'_> {
    /// Loads a layer, or makes it again.
    ///
    /// # Errors
    /// What keeps it from looking now; `Unsupported` for a newer version.
    pub(super) async fn load(&self, record: &LayerRecord) -> Result<Loaded> {
        if record.version == GIVEN_UP {
            return Ok(Loaded::Lost("a repair gave it up".to_owned()));
        }
        let path = self.paths.layer(record.first, record.version);
        match self.open(&path, record).await {
            Ok(layer) => Ok(Loaded::Whole(layer)),
            Err(error) => self.instead(record, error).await,
        }
    }

    /// A layer whose file is damaged, as `error` says.
    pub(super) async fn instead(&self, record: &LayerRecord, error: Error) -> Result<Loaded> {
        if !is_damage(&error) {
            return Err(error);
        }
        match self.make_again(record).await {
            Ok(contents) => {
                let bytes = layer::encode(&contents).concat();
                let layer =
                    SealedLayer::open(Mapped::new(Arc::new(bytes)), self.volume, record.first..record.end)?;
                Ok(Loaded::Mended(Mended { layer, contents, why: error.to_string() }))
            }
            Err(more) if is_damage(&more) => Ok(Loaded::Lost(format!("{error}; {more}"))),
            Err(more) => Err(more),
        }
    }

    /// Opens a layer's file; its parts are not looked at yet.
    ///
    /// # Errors
    /// `Corrupt`, `Io`, `Unsupported`.
    pub(super) async fn open(&self, path: &Path, record: &LayerRecord) -> Result<SealedLayer> {
        let result = async {
            let epochs = record.first..record.end;
            let layer = super::seal::open_layer_file(self.io, path, self.volume, epochs).await?;
            let pages = layer.meta_pages().count();
            if layer.entry_count() != record.entries || pages != record.pages as usize {
                return Err(Error::corrupt(format!(
                    "{} entries and {pages} before-pages, not {} and {}",
                    layer.entry_count(),
                    record.entries,
                    record.pages
                )));
            }
            Ok(layer)
        };
        result.await.map_err(|e| e.context(path.display().to_string()))
    }

    /// What the layer holds, from its redundant copies.
    ///
    /// # Errors
    /// `Corrupt` or `Io` when something of it is lost.
    pub(super) async fn make_again(&self, record: &LayerRecord) -> Result<LayerContents> {
        let mut groups = Vec::new();
        for (number, _) in &record.live {
            let known = self.save.records();
            let Some(segment) = known.get(number) else {
                return Err(Error::corrupt(format!("segment {number:08} is gone")));
            };
            let walk = self.save.walk(*number, segment.mark, false).await?;
            if let Some(gap) = walk.gaps.first() {
                return Err(Error::corrupt(format!(
                    "segment {number:08}: the group at offset {} is damaged, head and tail",
                    gap.start
                )));
            }
            groups.extend(walk.groups);
        }
        groups.retain(|g| (record.first..record.end).contains(&g.header.epoch));
        groups.sort_by_key(|g| g.header.epoch);
        let (mut bits, mut entries) = (BitMap::new(), BlockMap::new());
        let sectors = self.block_size / 512;
        for group in groups {
            for (index, entry) in (0u32..).zip(&group.header.entries) {
                let addr =
                    SaveAddr { segment: group.images.segment, sector: group.images.sector + index * sectors };
                let image = SavedImage { addr, crc: entry.crc, damaged: entry.damaged };
                if entries.insert(entry.block, image) {
                    bits.set(entry.block.0);
                }
            }
        }
        let found: BTreeMap<u32, u64> = super::seal::live_by_segment(&entries).into_iter().collect();
        for (number, live) in &record.live {
            let found = found.get(number).copied().unwrap_or(0);
            if found < *live {
                return Err(Error::corrupt(format!(
                    "segment {number:08} lists {found} of {live} before-images"
                )));
            }
        }
        let meta_pages = self.second_pages(record).await?;
        Ok(LayerContents { volume: self.volume, epochs: record.first..record.end, bits, entries, meta_pages })
    }

    /// The before-pages of a layer from its second file.
    async fn second_pages(&self, record: &LayerRecord) -> Result<BTreeMap<u64, Page>> {
        if record.pages == 0 {
            return Ok(BTreeMap::new());
        }
        let path = self.paths.layer_pages(record.first, record.version);
        self.pages_of(&path, record).await
    }

    /// All before-pages of a file.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub(super) async fn pages_of(&self, path: &Path, record: &LayerRecord) -> Result<BTreeMap<u64, Page>> {
        let result = async {
            let layer = SealedLayer::open(self.io.map(path).await?, self.volume, record.first..record.end)?;
            layer.verify()?;
            let mut pages = BTreeMap::new();
            for page in layer.meta_pages() {
                pages.extend(layer.meta_page(page)?.map(|content| (page, content)));
            }
            if pages.len() != record.pages as usize {
                return Err(Error::corrupt(format!("{} before-pages, not {}", pages.len(), record.pages)));
            }
            Ok(pages)
        };
        result.await.map_err(|e| e.context(path.display().to_string()))
    }
}

impl Volume {
    /// Where this volume's layers come from.
    pub(super) fn sources(&self) -> Sources<'_> {
        let s = self.s.borrow();
        Sources {
            io: &self.io,
            paths: &self.paths,
            save: &self.save,
            volume: s.durable.uuid,
            block_size: s.durable.geometry.block_size,
        }
    }

    /// Asks once more when a part of a layer was found damaged on the way.
    pub(super) async fn healed<T>(self: &Rc<Self>, ask: impl AsyncFn() -> Result<T>) -> Result<T> {
        match ask().await {
            Err(error) if error.kind() == ErrorKind::Corrupt && self.s.borrow().chain.is_alarmed() => {
                self.heal().await?;
                ask().await
            }
            done => done,
        }
    }

    /// Makes again those loaded layers of which a part was found damaged. Whoever got that
    /// error may ask once more then.
    pub(super) async fn heal(self: &Rc<Self>) -> Result<()> {
        let damaged = self.s.borrow().chain.take_damaged();
        for epochs in damaged {
            let record = self.s.borrow().durable.layer(epochs.start).cloned();
            let Some(record) = record else { continue };
            let error = Error::corrupt(format!(
                "{} is damaged",
                self.paths.layer(record.first, record.version).display()
            ));
            let loaded = self.sources().instead(&record, error).await?;
            let mut s = self.s.borrow_mut();
            if s.durable.layers.contains(&record) {
                s.take_in(&record, loaded, &self.name());
            }
        }
        self.kick_mender();
        Ok(())
    }

    /// Writes the files of mended layers in the background.
    pub(super) fn kick_mender(self: &Rc<Self>) {
        if self.s.borrow().mended.is_empty() || self.closing.get() {
            return;
        }
        let volume = Rc::clone(self);
        self.io.spawn(async move {
            if let Err(error) = volume.write_mended().await {
                tracing::warn!("volume {}: a mended layer stays in memory: {error}", volume.name());
            }
        });
    }

    /// Writes the files of the layers that were made again, and their records.
    ///
    /// # Errors
    /// `Io`, `Full`; the layers go on working from memory.
    pub(super) async fn write_mended(self: &Rc<Self>) -> Result<()> {
        let _exclusive = self.exclusive().await;
        loop {
            let next = {
                let mut s = self.s.borrow_mut();
                let Some((first, contents)) = s.mended.pop_first() else { return Ok(()) };
                s.durable.layers.iter().find(|l| l.first == first).cloned().map(|old| (old, contents))
            };
            let Some((old, contents)) = next else { continue };
            if let Err(error) = self.replace_layer(&old, &contents).await {
                self.s.borrow_mut().mended.insert(old.first, contents);
                return Err(error);
            }
        }
    }

    async fn replace_layer(self: &Rc<Self>, old: &LayerRecord, contents: &LayerContents) -> Result<()> {
        self.writable(super::volume::Who::Store)?;
        let (new, sealed) = self.write_layer(contents.clone()).await?;
        let record = Record::Delete {
            snapshots: Vec::new(),
            removed: vec![old.first],
            added: vec![new.clone()],
            ends_receive: false,
            remembered: false,
        };
        for (segment, count) in &new.live {
            self.save.add_live(*segment, *count);
        }
        {
            let mut s = self.s.borrow_mut();
            s.chain.remove(old.first);
            s.chain.insert_loaded(sealed);
        }
        self.record(record);
        self.journal_synced().await?;
        for (segment, count) in &old.live {
            self.save.drop_live(*segment, *count);
        }
        self.remove_layer(old).await?;
        tracing::warn!(
            "volume {}: the layer of epochs {} to {} was made again: {}",
            self.name(),
            old.first,
            old.end,
            self.paths.layer(new.first, new.version).display()
        );
        Ok(())
    }

    /// Removes the files of a layer that no record names any more. They may be missing:
    /// that may be why.
    pub(super) async fn remove_layer(&self, record: &LayerRecord) -> Result<()> {
        let mut paths = vec![self.paths.layer(record.first, record.version)];
        if record.pages > 0 {
            paths.push(self.paths.layer_pages(record.first, record.version));
        }
        for path in paths {
            match self.io.remove(&path).await {
                Err(error) if !is_damage(&error) => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }
}

impl super::volume::State {
    /// Takes a loaded layer into the chain.
    pub(super) fn take_in(&mut self, record: &LayerRecord, loaded: Loaded, volume: &str) {
        match loaded {
            Loaded::Whole(layer) => self.chain.load(record.first, Rc::new(layer)),
            Loaded::Mended(mended) => {
                tracing::warn!("volume {volume}: {}; its layer is made again", mended.why);
                self.chain.load(record.first, Rc::new(mended.layer));
                self.freed.forget_from(record.first);
                self.mended.insert(record.first, mended.contents);
            }
            Loaded::Lost(why) => {
                tracing::error!(
                    "volume {volume}: the map of epochs {} to {} is lost: {why}",
                    record.first,
                    record.end
                );
                self.chain.lose(record.first, record.pages > 0, &why);
                self.freed.forget_from(record.first);
            }
        }
    }
}
