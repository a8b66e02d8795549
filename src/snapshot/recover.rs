//! Recovery: what the journal, the checkpoint, the segments' headers and the stage amount
//! to. Nothing is written here but syncs: after an unclean stop everything is made durable
//! before it is believed.
//!
//! In the boot that the volume was last used in, every whole record and every slot counts
//! (the page cache is intact). In another boot the stage means nothing, after-images stand
//! for it, and a record that brought granules with old data into use counts only up to the
//! last barrier.

use crate::error::{Error, Result};
use crate::format::journal::Record;
use crate::format::slot::SlotHeader;
use crate::format::state::VolumeState;
use crate::io::{FileId, Io, OpenHow};
use crate::map::{BitMap, LayerChain, LayerContents, Page, SavedImage, SealedLayer, checkpoint};
use crate::store::Tuning;
use crate::store::paths::VolumePaths;
use crate::store::replay::{self, Replay};
use crate::store::save::SaveVolume;
use crate::store::stage::{self, Seen, Stage};
use crate::types::{Block, Epoch, SaveAddr, Seq};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::Path;
use std::rc::Rc;
use uuid::Uuid;

use super::mend::{Loaded, Sources};
use super::slots::Slots;
use super::touched::Touched;

/// A staged write that must be settled.
#[derive(Clone)]
pub(super) struct Staged {
    pub block: Block,
    pub epoch: Epoch,
    /// The slot that holds it, in the same boot.
    pub index: Option<usize>,
    /// Its data, where no slot holds it.
    pub data: Bytes,
    /// The journal has its after-image.
    pub journaled: bool,
}

/// What a volume is made of again.
pub(super) struct Recovered {
    pub state: VolumeState,
    pub same_boot: bool,
    pub production: BitMap,
    pub stale: BitMap,
    pub checkpoint_maps: Option<(BitMap, BitMap)>,
    pub frozen: BTreeMap<Epoch, BitMap>,
    pub chain: LayerChain,
    pub save: Rc<SaveVolume>,
    pub stage: Option<Stage>,
    pub staged: BTreeMap<Seq, Staged>,
    pub clone_file: FileId,
    pub clone_len: u64,
    /// Layers that were made again, whose files are still to be written.
    pub mended: BTreeMap<Epoch, LayerContents>,
    /// The first epoch that nothing stored carries.
    pub epoch: Epoch,
    pub next_seq: Seq,
    /// What was touched since each mark.
    pub touched: Touched,
}

/// The maps while the journal is replayed.
struct Maps {
    production: BitMap,
    stale: BitMap,
    /// The production map as it was before the first record of an epoch.
    before: BTreeMap<Epoch, BitMap>,
    /// Frozen maps of all snapshots seen, also of those deleted later.
    frozen: BTreeMap<Epoch, BitMap>,
    youngest: Epoch,
    shift: u32,
}

impl Recovered {
    /// Reads everything.
    pub async fn load(
        io: &Io,
        paths: &VolumePaths,
        tuning: Tuning,
        replay: Replay,
        committed: &BTreeSet<Uuid>,
    ) -> Result<Self> {
        // Also of those left out below: their frames stay in the file until the next one.
        let last = replay.records.last().map_or(Seq(0), |(seq, _)| *seq);
        let records = without_undone(replay.records, committed);
        let Some((_, Record::State(first))) = records.first() else {
            return Err(Error::corrupt("the journal does not begin with a whole state"));
        };
        let first = (**first).clone();
        let mut state = first.clone();
        for (_, record) in &records[1..] {
            state.apply(record);
        }
        if state.uuid != replay.header.volume {
            return Err(Error::corrupt("the journal's header names another volume"));
        }
        let boot = records
            .iter()
            .rev()
            .find_map(|(_, r)| if let Record::Open { boot } = r { Some(*boot) } else { None });
        let same_boot = boot.is_none_or(|b| b == io.boot_id());
        let clone_file = io.open(&paths.clone_volume(), OpenHow::Write).await?;
        let clone_len = io.size(clone_file).await?;
        let save = Rc::new(SaveVolume::new(
            io.clone(),
            paths.clone(),
            state.uuid,
            state.geometry.block_size,
            tuning,
        ));
        for (number, segment) in &state.segments {
            save.add(*number, segment);
        }
        if !replay.clean {
            make_durable(io, paths, &state, &save, clone_file).await?;
        }
        let checkpoint_maps = match load_checkpoint(io, paths, &first).await? {
            Some((maps, file)) => {
                // The next one goes to the other file, which may be the damaged one.
                state.checkpoint.file = file;
                Some(maps)
            }
            None => None,
        };
        let (production, stale) = checkpoint_maps.clone().unwrap_or_default();
        let mut maps = Maps {
            production,
            stale,
            before: BTreeMap::new(),
            frozen: BTreeMap::new(),
            youngest: first.epoch,
            shift: state.geometry.granularity.trailing_zeros(),
        };
        if let Some(tail) = first.snapshots.last() {
            let mut map = maps.production.clone();
            if first.checkpoint.tail_pages {
                load_tail_pages(io, paths, &first, tail.epoch, &mut map).await?;
            }
            maps.frozen.insert(tail.epoch, map);
        }
        let blocks = clone_len.div_ceil(u64::from(state.geometry.block_size));
        let story = (&first, &records[1..], &state);
        let touched = Touched::load(io, paths, tuning, story, blocks).await?;
        let after_images = maps.replay(&records[1..], same_boot);
        let mut staged = BTreeMap::new();
        let mut stage = None;
        if same_boot && !replay.clean {
            (stage, staged) =
                load_stage(io, paths, tuning, &state, &records, &mut maps, &after_images).await?;
        } else if !same_boot {
            staged = after_images;
        }
        let mut chain = LayerChain::new();
        for layer in &state.layers {
            chain.insert_unloaded(layer.first..layer.end);
            for (segment, count) in &layer.live {
                save.add_live(*segment, *count);
            }
        }
        let groups = rebuild_open(&state, &save, &mut chain).await?;
        let seen =
            [state.epoch, groups, maps.youngest].into_iter().chain(staged.values().map(|s| s.epoch)).max();
        let epoch = seen.unwrap_or_default().next();
        chain.push_open(epoch);
        let size = state.geometry.block_size;
        let sources = Sources { io, paths, save: &save, volume: state.uuid, block_size: size };
        let mut mended = BTreeMap::new();
        let frozen = thaw_all(&sources, &state, &mut chain, &maps, &mut mended).await?;
        let next_seq = last.max(staged.keys().next_back().copied().unwrap_or_default()).next().max(state.seq);
        if !replay.clean {
            maps.distrust(blocks);
        }
        let Maps { production, stale, .. } = maps;
        Ok(Self {
            state,
            same_boot,
            production,
            stale,
            checkpoint_maps,
            frozen,
            chain,
            save,
            stage,
            staged,
            clone_file,
            clone_len,
            mended,
            epoch,
            next_seq,
            touched,
        })
    }
}

/// Leaves out takes whose batch was never committed.
fn without_undone(mut records: Vec<(Seq, Record)>, committed: &BTreeSet<Uuid>) -> Vec<(Seq, Record)> {
    let confirmed = confirmed(&records, committed);
    records.retain(|(_, record)| match record {
        Record::Take { batch: Some(batch), .. } => confirmed.contains(batch),
        _ => true,
    });
    records
}

/// The batches that the store or the volume itself knows to be committed.
fn confirmed(records: &[(Seq, Record)], committed: &BTreeSet<Uuid>) -> BTreeSet<Uuid> {
    let own = records.iter().filter_map(|(_, record)| match record {
        Record::Confirmed { batch } => Some(*batch),
        _ => None,
    });
    committed.iter().copied().chain(own).collect()
}

/// The names of the snapshots of a closed volume that are left out at an open, since
/// neither `committed` nor the volume itself names their batch.
///
/// # Errors
/// As for an open.
pub async fn undecided_takes(io: &Io, dir: &Path, committed: &BTreeSet<Uuid>) -> Result<Vec<String>> {
    let records = replay::read(io, &VolumePaths(dir.to_owned()).journal()).await?.records;
    let confirmed = confirmed(&records, committed);
    let mut undecided: BTreeMap<Uuid, String> = BTreeMap::new();
    for (_, record) in records {
        match record {
            Record::Take { snapshot, batch: Some(batch), .. } if !confirmed.contains(&batch) => {
                undecided.insert(snapshot.uuid, snapshot.name);
            }
            // It was undone, or has been deleted since: either way that is known.
            Record::Delete { snapshots, .. } => undecided.retain(|uuid, _| !snapshots.contains(uuid)),
            _ => {}
        }
    }
    Ok(undecided.into_values().collect())
}

async fn make_durable(
    io: &Io,
    paths: &VolumePaths,
    state: &VolumeState,
    save: &SaveVolume,
    clone_file: FileId,
) -> Result<()> {
    io.sync(clone_file).await?;
    for (number, segment) in &state.segments {
        if segment.closed.is_none_or(|epoch| epoch >= state.unsealed) {
            save.sync_segment(*number).await?;
        }
    }
    let journal = io.open(&paths.journal(), OpenHow::Write).await?;
    let result = io.sync(journal).await;
    io.close(journal);
    result?;
    for dir in [paths.0.clone(), paths.save(), paths.snapshots()] {
        io.sync_dir(&dir).await?;
    }
    Ok(())
}

/// The two maps of the checkpoint that the journal starts from, and in which of the two
/// files they were found: the one that it names, or the other if that is damaged.
async fn load_checkpoint(
    io: &Io,
    paths: &VolumePaths,
    state: &VolumeState,
) -> Result<Option<((BitMap, BitMap), u8)>> {
    let named = state.checkpoint.file;
    if named == 0 {
        return Ok(None);
    }
    match checkpoint_in(io, paths, state, named).await {
        Err(error) if super::mend::is_damage(&error) => {
            match checkpoint_in(io, paths, state, 3 - named).await {
                Ok(maps) => {
                    tracing::warn!("{error}; the second copy of the checkpoint is whole");
                    Ok(Some((maps, 3 - named)))
                }
                Err(_) => Err(error),
            }
        }
        done => done.map(|maps| Some((maps, named))),
    }
}

/// The maps in one of the two files, if it holds the state's checkpoint.
///
/// # Errors
/// `Corrupt`, also for another checkpoint; `Io`.
pub(super) async fn checkpoint_in(
    io: &Io,
    paths: &VolumePaths,
    state: &VolumeState,
    file: u8,
) -> Result<(BitMap, BitMap)> {
    let path = paths.checkpoint(file);
    let result = async {
        let file = io.open(&path, OpenHow::Read).await?;
        let result = read_checkpoint(io, file, state).await;
        io.close(file);
        result
    };
    result.await.map_err(|e| e.context(path.display().to_string()))
}

async fn read_checkpoint(io: &Io, file: FileId, state: &VolumeState) -> Result<(BitMap, BitMap)> {
    let header = io.read(file, 0, 4096).await?;
    let mut loader = checkpoint::Loader::new(&header, state.uuid)?;
    let (found, wanted) = (loader.seq().0, state.checkpoint.seq);
    if found != wanted {
        let which = if found > wanted { "the journal is older" } else { "it is older" };
        return Err(Error::corrupt(format!(
            "the checkpoint is number {found}, and the journal starts from {wanted}: {which} than the rest"
        ))
        .hint("the volume's files are of two copies; restore all of its directory from one"));
    }
    for read in loader.tables() {
        loader.table(&io.read(file, read.offset, read.len).await?)?;
    }
    for read in loader.bodies() {
        let bytes = io.read(file, read.offset, read.len).await?;
        loader.body(read, &bytes)?;
    }
    let checkpoint = loader.finish()?;
    Ok((checkpoint.meta, checkpoint.stale))
}

/// Puts the tail's own pages into the map of the checkpoint; the second file stands in for
/// the first.
async fn load_tail_pages(
    io: &Io,
    paths: &VolumePaths,
    state: &VolumeState,
    tail: Epoch,
    map: &mut BitMap,
) -> Result<()> {
    let seq = state.checkpoint.seq.0;
    let first = tail_pages_of(io, &paths.tail_pages(seq), state.uuid, tail).await;
    let pages = match first {
        Err(error) if super::mend::is_damage(&error) => {
            let second = tail_pages_of(io, &paths.second_tail_pages(seq), state.uuid, tail).await;
            // Both are gone: what is wrong with the first one says it.
            let Ok(pages) = second else { return Err(error) };
            tracing::warn!("{error}; its second copy is whole");
            pages
        }
        done => done?,
    };
    for (page, content) in pages {
        map.set_page(page, content);
    }
    Ok(())
}

/// The pages in a file of the tail's before-pages.
///
/// # Errors
/// `Corrupt`, `Io`.
pub(super) async fn tail_pages_of(
    io: &Io,
    path: &Path,
    volume: Uuid,
    tail: Epoch,
) -> Result<Vec<(u64, Page)>> {
    let result = async {
        let layer = SealedLayer::open(io.map(path).await?, volume, tail..tail.next())?;
        layer.verify()?;
        let mut pages = Vec::new();
        for page in layer.meta_pages() {
            pages.extend(layer.meta_page(page)?.map(|content| (page, content)));
        }
        Ok(pages)
    };
    result.await.map_err(|e: Error| e.context(path.display().to_string()))
}

impl Maps {
    fn blocks(&self, granules: &Range<u64>) -> Range<u64> {
        granules.start << self.shift..granules.end << self.shift
    }

    /// The map before the first change of an epoch is what a take of that epoch froze.
    fn enter(&mut self, epoch: Epoch) {
        if epoch > self.youngest {
            self.youngest = epoch;
            self.before.insert(epoch, self.production.clone());
        }
    }

    fn set(&mut self, granules: Range<u64>, epoch: Epoch) {
        self.enter(epoch);
        self.stale.clear_range(self.blocks(&granules));
        for (_, map) in self.before.range_mut(epoch.next()..) {
            map.set_range(granules.clone());
        }
        self.production.set_range(granules);
    }

    fn clear(&mut self, granules: &Range<u64>, epoch: Epoch) {
        self.enter(epoch);
        let used: Vec<Range<u64>> =
            self.production.runs(granules.clone()).filter(|(_, set)| *set).map(|(r, _)| r).collect();
        for run in used {
            self.stale.set_range(self.blocks(&run));
            self.production.clear_range(run);
        }
        for (_, map) in self.before.range_mut(epoch.next()..) {
            map.clear_range(granules.clone());
        }
    }

    fn take(&mut self, epoch: Epoch) {
        let map = self.before.range(epoch..).next().map_or(&self.production, |(_, map)| map).clone();
        self.frozen.insert(epoch, map);
        self.before = self.before.split_off(&epoch.next());
        self.youngest = self.youngest.max(epoch);
    }

    /// Whatever is not in use may hold data all the same: of a write whose record was not
    /// made, or was lost. It is stale until it was punched.
    fn distrust(&mut self, blocks: u64) {
        let granules = 0..blocks.div_ceil(1 << self.shift);
        for (run, used) in self.production.runs(granules) {
            if !used {
                self.stale.set_range(run.start << self.shift..run.end << self.shift);
            }
        }
    }

    /// Replays the records after the state; returns the after-images in force.
    fn replay(&mut self, records: &[(Seq, Record)], same_boot: bool) -> BTreeMap<Seq, Staged> {
        let barrier = records
            .iter()
            .filter_map(|(_, r)| if let Record::Barrier { up_to } = r { Some(*up_to) } else { None })
            .max()
            .unwrap_or_default();
        let mut images: BTreeMap<Seq, Staged> = BTreeMap::new();
        for (seq, record) in records {
            match record {
                Record::MetaSet { epoch, guarded, ranges } if same_boot || !guarded || *seq < barrier => {
                    for (start, count) in ranges {
                        self.set(*start..start + count, *epoch);
                    }
                }
                Record::MetaClear { epoch, ranges } => {
                    for (start, count) in ranges {
                        let granules = *start..start + count;
                        let blocks = self.blocks(&granules);
                        self.clear(&granules, *epoch);
                        images.retain(|_, i| !blocks.contains(&i.block.0));
                    }
                }
                Record::AfterImages(list) => {
                    for image in list {
                        let granule = image.block.0 >> self.shift;
                        if !same_boot && self.shift == 0 && !self.production.get(granule) {
                            self.set(granule..granule + 1, image.epoch);
                        }
                        let staged = Staged {
                            block: image.block,
                            epoch: image.epoch,
                            index: None,
                            data: image.data.clone(),
                            journaled: true,
                        };
                        images.insert(image.seq, staged);
                    }
                }
                Record::Settled { seqs } => {
                    for seq in seqs {
                        images.remove(seq);
                    }
                }
                Record::Take { snapshot, .. } => self.take(snapshot.epoch),
                _ => {}
            }
        }
        // A granule that did not come into use by the end: its other blocks may hold old
        // data, and no flush that wrote this one had ended.
        images.retain(|_, i| self.production.get(i.block.0 >> self.shift));
        images
    }
}

/// Takes in what a dead process of this boot left in the stage.
async fn load_stage(
    io: &Io,
    paths: &VolumePaths,
    tuning: Tuning,
    state: &VolumeState,
    records: &[(Seq, Record)],
    maps: &mut Maps,
    after_images: &BTreeMap<Seq, Staged>,
) -> Result<(Option<Stage>, BTreeMap<Seq, Staged>)> {
    // Before a snapshot is recorded, and before a volume with snapshots is opened, the stage
    // is whole: what it holds now was acknowledged.
    let needed = !state.snapshots.is_empty();
    let (slots, bad) = match stage::look(io, &paths.stage(), state.uuid, state.geometry.block_size).await? {
        Seen::Missing if !needed => return Ok((None, BTreeMap::new())),
        Seen::Unfit(_) if !needed => (Slots::capacity(state, tuning.stage_bytes), Vec::new()),
        Seen::Missing => return Err(lost_stage(paths, "it is missing")),
        Seen::Unfit(why) => return Err(lost_stage(paths, &why)),
        // It keeps its size, whatever size a new one would have.
        Seen::Fit(slots, bad) => (slots, bad),
    };
    let (mut stage, left) =
        Stage::open(io, &paths.stage(), state.uuid, slots, state.geometry.block_size).await?;
    let mut by_block: BTreeMap<u64, Vec<(Seq, usize, Epoch)>> = BTreeMap::new();
    for slot in left {
        let entry = by_block.entry(slot.header.block.0).or_default();
        entry.push((slot.header.seq, slot.index, slot.header.epoch));
    }
    let done: BTreeSet<Seq> = records
        .iter()
        .filter_map(|(_, r)| if let Record::Settled { seqs } = r { Some(seqs) } else { None })
        .flatten()
        .copied()
        .collect();
    for slots in by_block.values_mut() {
        slots.retain(|(seq, index, _)| {
            let keep = !done.contains(seq);
            if !keep {
                stage.release(*index);
            }
            keep
        });
    }
    let from_journal =
        instead_of(&bad, records, after_images, maps.shift).map_err(|why| lost_stage(paths, &why))?;
    for (index, _) in &bad {
        tracing::warn!("{}: slot {index} is damaged; nothing is lost with it", paths.stage().display());
    }
    let clears = records.iter().filter_map(|(seq, r)| match r {
        Record::MetaClear { ranges, .. } => Some((*seq, ranges)),
        _ => None,
    });
    for (seq, ranges) in clears {
        for (start, count) in ranges {
            let blocks = maps.blocks(&(*start..start + count));
            for (_, slots) in by_block.range_mut(blocks) {
                slots.retain(|(slot_seq, index, _)| {
                    let keep = *slot_seq > seq;
                    if !keep {
                        stage.release(*index);
                    }
                    keep
                });
            }
        }
    }
    let mut staged = BTreeMap::new();
    for (block, slots) in by_block {
        for (seq, index, epoch) in slots {
            let granule = block >> maps.shift;
            if !maps.production.get(granule) {
                if maps.shift > 0 {
                    // The write was not acknowledged: its granule never came into use.
                    stage.release(index);
                    continue;
                }
                maps.set(granule..granule + 1, epoch);
            }
            let journaled = after_images.contains_key(&seq);
            staged.insert(
                seq,
                Staged { block: Block(block), epoch, index: Some(index), data: Bytes::new(), journaled },
            );
        }
    }
    staged.extend(from_journal);
    Ok((Some(stage), staged))
}

/// If a volume was not closed, and in this boot its stage held acknowledged writes that
/// can't be read any more: why. Nothing is changed.
pub(super) async fn stage_lost(io: &Io, paths: &VolumePaths, replay: &Replay) -> Result<Option<Error>> {
    let Some((_, Record::State(first))) = replay.records.first() else { return Ok(None) };
    let mut state = (**first).clone();
    replay.records[1..].iter().for_each(|(_, record)| state.apply(record));
    let boots = replay.records.iter().rev();
    let mut boots = boots.filter_map(|(_, r)| if let Record::Open { boot } = r { Some(*boot) } else { None });
    if replay.clean || boots.next().is_some_and(|boot| boot != io.boot_id()) {
        return Ok(None);
    }
    let mut maps = Maps {
        production: BitMap::new(),
        stale: BitMap::new(),
        before: BTreeMap::new(),
        frozen: BTreeMap::new(),
        youngest: first.epoch,
        shift: state.geometry.granularity.trailing_zeros(),
    };
    // All blocks, so that no after-image is left out for want of the checkpoint.
    maps.production.set_range(0..state.geometry.blocks());
    let images = maps.replay(&replay.records[1..], true);
    let needed = !state.snapshots.is_empty();
    let why = match stage::look(io, &paths.stage(), state.uuid, state.geometry.block_size).await? {
        Seen::Missing if needed => Some("it is missing".to_owned()),
        Seen::Unfit(why) if needed => Some(why),
        Seen::Fit(_, bad) => instead_of(&bad, &replay.records, &images, maps.shift).err(),
        _ => None,
    };
    Ok(why.map(|why| lost_stage(paths, &why)))
}

/// What the journal has of damaged slots. One that is settled, or trimmed since, is nothing.
fn instead_of(
    bad: &[(usize, Option<SlotHeader>)],
    records: &[(Seq, Record)],
    after_images: &BTreeMap<Seq, Staged>,
    shift: u32,
) -> std::result::Result<BTreeMap<Seq, Staged>, String> {
    let mut found = BTreeMap::new();
    for (index, header) in bad {
        let Some(header) = header else {
            return Err(format!("slot {index} is damaged, and which block it held is not known"));
        };
        if let Some(image) = after_images.get(&header.seq) {
            found.insert(header.seq, image.clone());
            continue;
        }
        let granule = header.block.0 >> shift;
        let over = records.iter().any(|(seq, record)| match record {
            Record::Settled { seqs } => seqs.contains(&header.seq),
            Record::MetaClear { ranges, .. } => {
                *seq > header.seq
                    && ranges.iter().any(|(start, count)| (*start..start + count).contains(&granule))
            }
            _ => false,
        });
        if !over {
            return Err(format!("the staged write of block {} is damaged", header.block));
        }
    }
    Ok(found)
}

/// Writes that were acknowledged are lost; nothing is opened over that in silence.
fn lost_stage(paths: &VolumePaths, why: &str) -> Error {
    Error::corrupt(format!("{}: {why}, and it held acknowledged writes", paths.stage().display())).hint(
        "put the file back, or run 'snapvol check --repair' to go on with what was flushed, as after a power cut",
    )
}

/// Rebuilds the layers that are in no file from the segments' headers: the oldest image of
/// a block counts. Returns the youngest epoch of any group.
async fn rebuild_open(state: &VolumeState, save: &SaveVolume, chain: &mut LayerChain) -> Result<Epoch> {
    let mut groups = Vec::new();
    for (number, segment) in &state.segments {
        if segment.closed.is_none_or(|epoch| epoch >= state.unsealed) {
            groups.extend(save.scan(*number, segment.mark).await?);
        }
    }
    let youngest = groups.iter().map(|g| g.header.epoch).max().unwrap_or_default();
    groups.retain(|g| g.header.epoch >= state.unsealed);
    groups.sort_by_key(|g| g.header.epoch);
    chain.push_open(state.unsealed);
    for snapshot in &state.snapshots {
        if snapshot.epoch > state.unsealed {
            chain.push_open(snapshot.epoch);
        }
    }
    if state.snapshots.is_empty() {
        // Nobody needs what they hold.
        return Ok(youngest);
    }
    let sectors = state.geometry.block_size / 512;
    for group in groups {
        let layer = super::settle::open_layer(chain, group.header.epoch);
        let mut layer = layer.borrow_mut();
        for (index, entry) in (0u32..).zip(&group.header.entries) {
            let addr =
                SaveAddr { segment: group.images.segment, sector: group.images.sector + index * sectors };
            let image = SavedImage { addr, crc: entry.crc, damaged: entry.damaged };
            if layer.insert(entry.block, image) {
                save.add_live(addr.segment, 1);
            }
        }
    }
    Ok(youngest)
}

/// The frozen maps that must be in memory: of the tail, and of what is not sealed. A map
/// that depends on a lost layer is left out: nobody knows it.
async fn thaw_all(
    sources: &Sources<'_>,
    state: &VolumeState,
    chain: &mut LayerChain,
    maps: &Maps,
    mended: &mut BTreeMap<Epoch, LayerContents>,
) -> Result<BTreeMap<Epoch, BitMap>> {
    let mut frozen = BTreeMap::new();
    let mut end = None;
    let mut known = maps.frozen.clone();
    for snapshot in state.snapshots.iter().rev() {
        let sealed = end.is_some_and(|end| end <= state.unsealed);
        let tail = end.is_none();
        end = Some(snapshot.epoch);
        if sealed {
            break;
        }
        // The tail's own map is asked at every write.
        if tail || !known.contains_key(&snapshot.epoch) {
            load_layers(sources, state, chain, snapshot.epoch, mended).await?;
        }
        if chain.pages_whole(snapshot.epoch..Epoch(u64::MAX)).is_err() {
            continue;
        }
        let map = match known.get(&snapshot.epoch) {
            Some(map) => map.clone(),
            None => {
                // A younger snapshot that is gone was its neighbour: from that one's map and
                // the before-pages in its own layers.
                let base = known.range(snapshot.epoch..).next().map(|(_, map)| map.clone());
                let mut map = base.unwrap_or_else(|| maps.production.clone());
                for page in chain.touched_meta_pages(snapshot.epoch..Epoch(u64::MAX))? {
                    if let Some(content) = chain.meta_page(page, snapshot.epoch)? {
                        map.set_page(page, content);
                    }
                }
                map
            }
        };
        known.insert(snapshot.epoch, map.clone());
        frozen.insert(snapshot.epoch, map);
    }
    Ok(frozen)
}

/// Loads the layers from an epoch on. One that is damaged is made again in memory: nothing
/// is written before the recovery is through.
async fn load_layers(
    sources: &Sources<'_>,
    state: &VolumeState,
    chain: &mut LayerChain,
    from: Epoch,
    mended: &mut BTreeMap<Epoch, LayerContents>,
) -> Result<()> {
    for epochs in chain.unloaded(from) {
        let Some(record) = state.layer(epochs.start) else { continue };
        match sources.load(record).await? {
            Loaded::Whole(layer) => chain.load(record.first, Rc::new(layer)),
            Loaded::Mended(found) => {
                tracing::warn!("{}; the layer is made again", found.why);
                chain.load(record.first, Rc::new(found.layer));
                mended.insert(record.first, found.contents);
            }
            Loaded::Lost(why) => {
                tracing::error!("the map of epochs {} to {} is lost: {why}", record.first, record.end);
                chain.lose(record.first, record.pages > 0, &why);
            }
        }
    }
    Ok(())
}
