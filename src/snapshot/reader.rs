//! Point-in-time reads: what a snapshot holds, whatever is written meanwhile.
//!
//! A reader looks in the maps, then in the stage (slots from before the take), then in the
//! clone volume; after a read of the clone volume it asks the maps again, and takes the
//! before-image if there is one now. That is correct because a bit is set before the clone
//! volume is overwritten. A pin keeps the segments that it reads from being used again.

use super::maps::has_bit;
use super::read::{Piece, Source, add_source, clip, push_run};
use super::volume::Volume;
use crate::error::{Error, ErrorKind, Result};
use crate::map::{PAGE_BITS, SavedImage, Words};
use crate::types::{Block, Epoch};
use bytes::Bytes;
use futures::future::join_all;
use std::ops::Range;
use std::rc::Rc;
use uuid::Uuid;

/// What is at hand or in the clone volume, and the before-images to read.
type Sources = (Vec<Source>, Vec<(u64, SavedImage)>);

/// An open snapshot; it can't be deleted meanwhile.
pub struct SnapshotReader {
    volume: Rc<Volume>,
    uuid: Uuid,
    name: String,
    epoch: Epoch,
    size: u64,
    created_us: u64,
}

impl Drop for SnapshotReader {
    fn drop(&mut self) {
        let mut s = self.volume.s.borrow_mut();
        if let Some(count) = s.opened.get_mut(&self.uuid) {
            *count -= 1;
            if *count == 0 {
                s.opened.remove(&self.uuid);
            }
        }
    }
}

impl Volume {
    /// Opens a snapshot that users can see, or by identity any.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn open_snapshot(self: &Rc<Self>, name: &str) -> Result<SnapshotReader> {
        let uuid = self.s.borrow().visible(name).map(|r| r.uuid);
        let uuid = uuid.ok_or_else(|| self.no_snapshot(name))?;
        self.open_snapshot_by_id(uuid)
    }

    /// Says that there is no such snapshot.
    pub(super) fn no_snapshot(&self, name: &str) -> Error {
        let volume = self.name();
        Error::not_found(format!("there is no snapshot {volume}@{name}"))
            .hint(format!("'snapvol list {volume}' shows those there are"))
    }

    /// Opens a snapshot by identity.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn open_snapshot_by_id(self: &Rc<Self>, uuid: Uuid) -> Result<SnapshotReader> {
        let mut s = self.s.borrow_mut();
        let found = s.durable.snapshot(uuid).filter(|r| !s.hidden.contains(&r.uuid)).cloned();
        let Some(record) = found else {
            return Err(Error::not_found(format!("volume {} has no snapshot {uuid}", self.name())));
        };
        *s.opened.entry(uuid).or_default() += 1;
        drop(s);
        Ok(SnapshotReader {
            volume: Rc::clone(self),
            uuid,
            name: record.name,
            epoch: record.epoch,
            size: record.size,
            created_us: record.created_us,
        })
    }
}

impl SnapshotReader {
    /// Bytes of the volume when it was taken.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// When it was taken, in microseconds since 1970.
    #[must_use]
    pub fn created_us(&self) -> u64 {
        self.created_us
    }

    pub(super) fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Its identity.
    #[must_use]
    pub fn uuid(&self) -> Uuid {
        self.uuid
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Names of the snapshots that users see and that are older than this one.
    #[must_use]
    pub fn older(&self) -> Vec<String> {
        let all = self.volume.snapshots();
        all.into_iter().filter(|r| r.epoch < self.epoch).map(|r| r.name).collect()
    }

    /// The volume that it is of.
    #[must_use]
    pub fn volume(&self) -> &Rc<Volume> {
        &self.volume
    }

    pub(super) fn check_range(&self, offset: u64, len: u64) -> Result<()> {
        match offset.checked_add(len) {
            Some(end) if end <= self.size => Ok(()),
            _ => Err(Error::new(
                ErrorKind::OutOfRange,
                format!("{len} bytes at offset {offset} are outside a snapshot of {} bytes", self.size),
            )),
        }
    }

    fn named(&self, error: Error) -> Error {
        error.context(format!("snapshot {}@{}", self.volume.name(), self.name))
    }

    /// Reads a range.
    ///
    /// # Errors
    /// `OutOfRange`; `Corrupt` when a before-image is damaged; `Io`.
    pub async fn read(&self, offset: u64, len: u64) -> Result<Vec<Piece>> {
        let result = self.volume.healed(async || self.read_inner(offset, len).await).await;
        result.map_err(|e| self.named(e))
    }

    async fn read_inner(&self, offset: u64, len: u64) -> Result<Vec<Piece>> {
        self.check_range(offset, len)?;
        let volume = &self.volume;
        volume.load_from(self.epoch).await?;
        let _pin = volume.save.pin();
        let geometry = volume.geometry();
        let size = u64::from(geometry.block_size);
        let blocks = geometry.blocks_touching(offset, len);
        let (sources, images) = self.sources(&blocks)?;
        let saved = join_all(images.iter().map(|(block, image)| self.read_image(*block, *image)));
        let plain = join_all(sources.into_iter().map(|source| self.read_source(source)));
        let (saved, plain) = futures::future::join(saved, plain).await;
        let mut found: Vec<(u64, Piece)> = Vec::new();
        for ((block, _), data) in images.iter().zip(saved) {
            found.push((*block, Piece::Data(data?)));
        }
        for pieces in plain {
            found.extend(pieces?);
        }
        found.sort_by_key(|(block, _)| *block);
        Ok(clip(found.into_iter().map(|(_, p)| p).collect(), offset - blocks.start * size, len))
    }

    /// One walk over the maps and the stage: what is at hand, and which images to read.
    fn sources(&self, blocks: &Range<u64>) -> Result<Sources> {
        let s = self.volume.s.borrow();
        let (mut sources, mut images) = (Vec::new(), Vec::new());
        let mut page: Option<(u64, Words)> = None;
        for block in blocks.clone() {
            let number = block / PAGE_BITS;
            let words = match &page {
                Some((known, words)) if *known == number => words,
                _ => &page.insert((number, s.frozen_words(self.epoch, number)?)).1,
            };
            if !has_bit(words, block) {
                add_source(&mut sources, Source::Hole(block..block + 1));
            } else if let Some((_, image)) = s.chain.find(Block(block), self.epoch)? {
                images.push((block, image));
            } else if let Some(data) = s.slots.before(Block(block), self.epoch) {
                sources.push(Source::Data(block, data));
            } else {
                add_source(&mut sources, Source::Clone(block..block + 1));
            }
        }
        Ok((sources, images))
    }

    async fn read_image(&self, block: u64, image: SavedImage) -> Result<Bytes> {
        if image.damaged {
            return Err(Error::corrupt(format!("block {block} could not be read when it was to be saved")));
        }
        let data = self.volume.save.read(image.addr, image.crc).await;
        data.map(bytes::BytesMut::freeze).map_err(|e| e.context(format!("block {block}")))
    }

    async fn read_source(&self, source: Source) -> Result<Vec<(u64, Piece)>> {
        let size = u64::from(self.volume.geometry().block_size);
        match source {
            Source::Hole(run) => Ok(vec![(run.start, Piece::Hole((run.end - run.start) * size))]),
            Source::Data(block, data) => Ok(vec![(block, Piece::Data(data))]),
            Source::Clone(run) => self.read_clone(run, size).await,
        }
    }

    /// Reads blocks of the clone volume, and before-images of those that were overwritten
    /// while it read.
    async fn read_clone(&self, run: Range<u64>, size: u64) -> Result<Vec<(u64, Piece)>> {
        let data = self.volume.clone_volume.read(Block(run.start), run.end - run.start).await?.freeze();
        let mut late = Vec::new();
        {
            let s = self.volume.s.borrow();
            for block in run.clone() {
                if let Some((_, image)) = s.chain.find(Block(block), self.epoch)? {
                    late.push((block, image));
                }
            }
        }
        if late.is_empty() {
            return Ok(vec![(run.start, Piece::Data(data))]);
        }
        let at = |block: u64| usize::try_from((block - run.start) * size).unwrap_or(0);
        let mut pieces = Vec::new();
        let mut from = run.start;
        for (block, image) in late {
            if from < block {
                pieces.push((from, Piece::Data(data.slice(at(from)..at(block)))));
            }
            pieces.push((block, Piece::Data(self.read_image(block, image).await?)));
            from = block + 1;
        }
        if from < run.end {
            pieces.push((from, Piece::Data(data.slice(at(from)..))));
        }
        Ok(pieces)
    }

    /// Runs of a range that were in use or not: length in bytes, in use.
    ///
    /// # Errors
    /// `OutOfRange`, `Corrupt`, `Io`.
    pub async fn allocation(&self, offset: u64, len: u64) -> Result<Vec<(u64, bool)>> {
        let result = self.volume.healed(async || self.allocation_inner(offset, len).await).await;
        result.map_err(|e| self.named(e))
    }

    async fn allocation_inner(&self, offset: u64, len: u64) -> Result<Vec<(u64, bool)>> {
        self.check_range(offset, len)?;
        self.volume.load_from(self.epoch).await?;
        let s = self.volume.s.borrow();
        let geometry = s.durable.geometry;
        let size = u64::from(geometry.block_size);
        let blocks = geometry.blocks_touching(offset, len);
        let mut runs = Vec::new();
        let mut block = blocks.start;
        while block < blocks.end {
            let page = block / PAGE_BITS;
            let stop = ((page + 1) * PAGE_BITS).min(blocks.end);
            let map = s.frozen_page(self.epoch, page >> s.shift())?;
            let uniform = map.is_empty() || matches!(map, crate::map::Page::Full);
            if uniform {
                push_run(&mut runs, bytes_of(block..stop, size, offset, len), !map.is_empty());
            } else {
                let words = super::maps::expand(&map, page, s.shift());
                for block in block..stop {
                    let used = has_bit(&words, block);
                    push_run(&mut runs, bytes_of(block..block + 1, size, offset, len), used);
                }
            }
            block = stop;
        }
        Ok(runs)
    }
}

/// The bytes of blocks that lie in a range of bytes.
fn bytes_of(blocks: Range<u64>, size: u64, offset: u64, len: u64) -> u64 {
    (blocks.end * size).min(offset + len) - (blocks.start * size).max(offset)
}
