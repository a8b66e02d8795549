//! Looking at a volume's files: every structure, every checksum, every second copy. Nothing
//! is written, and nothing that is found damaged keeps it from looking at the rest.
//!
//! The same eyes serve a volume that nobody has open (its state comes from the journal) and
//! one that is open (the state is the live one, and what changed meanwhile is no finding).

use super::mend::{GIVEN_UP, Sources, is_damage};
use super::recover;
use super::touched;
use crate::error::{Error, Result};
use crate::format::state::{LayerRecord, SegmentRecord, VolumeState};
use crate::map::{SavedImage, SealedLayer};
use crate::store::save::Walk;
use crate::types::{Block, Epoch, SaveAddr};
use std::path::{Path, PathBuf};

/// What an owner can do about most second copies.
pub(super) const REWRITES: &str = "'check --repair' writes it again from its second copy";

/// Something that is not as it should be.
#[derive(Clone, Debug)]
pub struct Found {
    /// The snapshot affected, by name.
    pub snapshot: Option<String>,
    /// The file.
    pub file: PathBuf,
    /// The block affected.
    pub block: Option<u64>,
    /// What is wrong.
    pub problem: String,
    /// What can be done about it.
    pub advice: String,
}

/// What was looked at.
#[derive(Clone, Debug, Default)]
pub struct Verified {
    /// Files read.
    pub files: u64,
    /// Bytes whose checksum was verified.
    pub bytes: u64,
    /// What is wrong.
    pub found: Vec<Found>,
}

impl Verified {
    /// Adds a finding about a whole file.
    pub(super) fn file(&mut self, file: PathBuf, error: &Error, advice: &str) {
        let problem = error.to_string();
        self.found.push(Found { snapshot: None, file, block: None, problem, advice: advice.to_owned() });
    }
}

/// Eyes for one volume.
pub(super) struct Inspector<'a> {
    pub sources: Sources<'a>,
    pub state: &'a VolumeState,
    /// Also before-images are read.
    pub images: bool,
    /// Nothing is under way: also second copies that a crash may leave old are looked at.
    pub clean: bool,
    pub out: Verified,
}

impl Inspector<'_> {
    /// The snapshot that a layer or a group of that epoch belongs to.
    fn owner(&self, epoch: Epoch) -> Option<String> {
        self.state.snapshots.iter().rev().find(|r| r.epoch <= epoch).map(|r| r.name.clone())
    }

    fn add(&mut self, epoch: Epoch, file: &Path, block: Option<Block>, problem: String, advice: &str) {
        self.out.found.push(Found {
            snapshot: self.owner(epoch),
            file: file.to_owned(),
            block: block.map(|block| block.0),
            problem,
            advice: advice.to_owned(),
        });
    }

    /// One sealed layer, its second file, and its before-images.
    ///
    /// # Errors
    /// What keeps it from looking.
    pub(super) async fn layer(&mut self, record: &LayerRecord) -> Result<()> {
        let path = self.sources.paths.layer(record.first, record.version);
        if record.version == GIVEN_UP {
            let advice = "what it held is lost for good: delete the snapshot and the older ones";
            self.add(
                record.first,
                &path,
                None,
                "a repair gave up the map of this snapshot".to_owned(),
                advice,
            );
            return Ok(());
        }
        self.out.files += 1;
        let entries = match self.whole(&path, record).await {
            Ok(layer) => layer.entries().collect::<Result<Vec<_>>>()?,
            Err(error) => {
                let again = self.sources.make_again(record).await;
                let advice = match &again {
                    Ok(_) => "it is made again from the segments when the volume is opened".to_owned(),
                    Err(more) => format!(
                        "it can't be made again ({more}): restore the snapshot from a copy, or delete it \
                         and the older ones"
                    ),
                };
                self.add(record.first, &path, None, error.to_string(), &advice);
                again.map(|contents| contents.entries.sorted()).unwrap_or_default()
            }
        };
        if record.pages > 0 {
            self.out.files += 1;
            let second = self.sources.paths.layer_pages(record.first, record.version);
            match self.sources.pages_of(&second, record).await {
                Ok(pages) => self.out.bytes += pages.len() as u64 * 24,
                Err(error) => self.add(record.first, &second, None, error.to_string(), REWRITES),
            }
        }
        if self.images && self.owner(record.first).is_some() {
            for (block, image) in entries {
                self.image(record.first, block, image).await;
            }
        }
        Ok(())
    }

    async fn whole(&mut self, path: &Path, record: &LayerRecord) -> Result<SealedLayer> {
        let layer = self.sources.open(path, record).await?;
        layer.verify().map_err(|e| e.context(path.display().to_string()))?;
        self.out.bytes += layer.len();
        Ok(layer)
    }

    /// One before-image.
    pub(super) async fn image(&mut self, epoch: Epoch, block: Block, image: SavedImage) {
        self.out.bytes += u64::from(self.sources.block_size);
        let problem = if image.damaged {
            Some("the block could not be read when it was to be saved".to_owned())
        } else {
            self.sources.save.read(image.addr, image.crc).await.err().map(|e| e.to_string())
        };
        if let Some(problem) = problem {
            let file = self.sources.paths.segment(image.addr.segment);
            let advice = "nothing else has this block of the snapshot: restore the snapshot from a copy";
            self.add(epoch, &file, Some(block), problem, advice);
        }
    }

    /// One segment: its header and the heads and tails of its groups; of groups that are in
    /// no sealed layer also the images.
    pub(super) async fn segment(&mut self, number: u32, record: &SegmentRecord, live: bool) {
        self.out.files += 1;
        let path = self.sources.paths.segment(number);
        let walk = match self.sources.save.walk(number, record.mark, true).await {
            Ok(walk) => walk,
            Err(error) => {
                let advice = "the before-images in it are lost unless the file is put back from a copy";
                self.out.file(path, &error, advice);
                return;
            }
        };
        self.out.bytes += walk.verified;
        if walk.end == 0 && live {
            let error =
                Error::corrupt("the segment has begun a new life, and snapshots still need the old one");
            self.out.file(
                path,
                &error,
                "the journal is older than the rest: restore the volume from one copy",
            );
            return;
        }
        for (at, _, what) in &walk.spoiled {
            let problem = format!("{what} at offset {at} is damaged; it stands there twice");
            self.out.file(path.clone(), &Error::corrupt(problem), REWRITES);
        }
        for gap in &walk.gaps {
            let problem =
                format!("the groups from offset {} to {} are damaged, head and tail", gap.start, gap.end);
            let unsealed = record.closed.is_none_or(|epoch| epoch >= self.state.unsealed);
            let advice = if unsealed {
                "'check --repair' gives up what the youngest snapshot and the older ones read from them"
            } else {
                "the sealed layers still find the before-images; delete the snapshots to be rid of it"
            };
            self.out.file(path.clone(), &Error::corrupt(problem), advice);
        }
        if self.images {
            self.unsealed_images(&walk).await;
        }
    }

    async fn unsealed_images(&mut self, walk: &Walk) {
        let sectors = self.sources.block_size / 512;
        for group in walk.groups.iter().filter(|g| g.header.epoch >= self.state.unsealed) {
            if self.owner(group.header.epoch).is_none() {
                continue;
            }
            for (index, entry) in (0u32..).zip(&group.header.entries) {
                let addr =
                    SaveAddr { segment: group.images.segment, sector: group.images.sector + index * sectors };
                let image = SavedImage { addr, crc: entry.crc, damaged: entry.damaged };
                self.image(group.header.epoch, entry.block, image).await;
            }
        }
    }

    /// The checkpoint that the journal starts from, and the tail's pages.
    ///
    /// # Errors
    /// What keeps it from looking.
    pub(super) async fn checkpoint(&mut self, first: &VolumeState) -> Result<()> {
        let (io, paths) = (self.sources.io, self.sources.paths);
        if first.checkpoint.file == 0 {
            return Ok(());
        }
        let named = first.checkpoint.file;
        for file in [named, 3 - named] {
            self.out.files += 1;
            match recover::checkpoint_in(io, paths, first, file).await {
                Ok((meta, stale)) => {
                    let pages = meta.pages().count() + stale.pages().count();
                    self.out.bytes += 512 + pages as u64 * 4096;
                }
                // A crash may have come before the second file was brought to the same.
                Err(_) if file != named && !self.clean => {}
                Err(error) if is_damage(&error) => {
                    let other = recover::checkpoint_in(io, paths, first, 3 - file).await;
                    let advice = match other {
                        Ok(_) => REWRITES,
                        Err(_) => "both copies are damaged: restore the volume's directory from a copy",
                    };
                    self.out.file(paths.checkpoint(file), &error, advice);
                }
                Err(error) => return Err(error),
            }
        }
        for record in first.touched.iter().filter(|record| record.file != 0) {
            self.out.files += 1;
            match touched::load_map(io, paths, first, record).await {
                Ok(map) => self.out.bytes += map.page_count() * 24,
                Err(error) if is_damage(&error) => {
                    let advice = "everything counts as changed since that set: the next one of its sessions \
                                  may be as large as the volume";
                    self.out.file(paths.touched(record.mark, record.file), &error, advice);
                }
                Err(error) => return Err(error),
            }
        }
        if let (true, Some(tail)) = (first.checkpoint.tail_pages, first.snapshots.last()) {
            let seq = first.checkpoint.seq.0;
            for path in [paths.tail_pages(seq), paths.second_tail_pages(seq)] {
                self.out.files += 1;
                match recover::tail_pages_of(io, &path, first.uuid, tail.epoch).await {
                    Ok(pages) => self.out.bytes += pages.len() as u64 * 24,
                    Err(error) if is_damage(&error) => {
                        self.add(tail.epoch, &path, None, error.to_string(), REWRITES);
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    /// Whether any map names an image in a segment.
    pub(super) fn is_live(&self, number: u32) -> bool {
        self.state.layers.iter().any(|l| l.live.iter().any(|(n, _)| *n == number))
    }

    /// All layers and segments.
    ///
    /// # Errors
    /// What keeps it from looking.
    pub(super) async fn layers_and_segments(&mut self) -> Result<()> {
        for record in &self.state.layers.clone() {
            self.layer(record).await?;
            self.sources.io.step_aside().await;
        }
        for (number, record) in &self.state.segments.clone() {
            self.segment(*number, record, self.is_live(*number)).await;
            self.sources.io.step_aside().await;
        }
        Ok(())
    }
}
