//! Touched maps: which blocks anything has changed since a mark.
//!
//! A *mark* is a cut, or a bookmark: what is left of a cut without its before-images. As long
//! as a volume has any, each change is noted in the map of the youngest mark that is no younger
//! than the change's epoch. What leads from a bookmark to a younger state is the union of the
//! maps between the two: it may name more than what changed, and never less.
//!
//! Why that holds after a crash at any point: a map is stored with each checkpoint, as of its
//! cut. What is touched after that lies in an *active* region. A region is active once a record
//! says so, which is durable before anything of the region is overwritten or punched, and in the
//! journal before the record of a trim. So what was touched since the cut is in regions that the journal
//! names, and all of these count as touched. Noting a change and the look whether its regions
//! are active are one step: a cut comes before both, and forgets the region, or after both, and
//! stores the note.

use super::volume::Volume;
use super::write::RANGE_BYTES;
use crate::error::Result;
use crate::format::journal::Record;
use crate::format::state::{TouchedRecord, VolumeState};
use crate::io::Io;
use crate::map::{BitMap, BlockMap, LayerContents, PAGE_BITS, Page, layer};
use crate::store::Tuning;
use crate::store::paths::VolumePaths;
use crate::types::{Epoch, Geometry, Seq};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;
use std::rc::Rc;

/// Regions that a volume has, at most, but for what it grows by while it is open. More would
/// make records and their syncs more frequent than what they spare after a crash is worth.
const REGIONS_MAX: u64 = 1 << 16;

/// Marks after which a checkpoint looks which regions are still being written.
const MARKS_MAX: u64 = 64;

/// A frame with a record of regions, without its ranges, in bytes.
const ACTIVE_BYTES: u64 = 64;

/// What was touched since each mark, and where it is durably known that more may be.
#[derive(Default)]
pub(super) struct Touched {
    /// log2 of the blocks in a region.
    shift: u32,
    /// What was touched from each mark's epoch on up to the next one's.
    maps: BTreeMap<Epoch, BitMap>,
    /// What the file of a mark holds, and the number in its name.
    files: BTreeMap<Epoch, (u64, BitMap)>,
    /// Regions whose record is durable.
    active: BitMap,
    /// Those, and the regions whose record was pushed.
    announced: BitMap,
    /// Regions that were touched since the last cut.
    recent: BitMap,
    /// Counts the cuts: each one forgets regions.
    round: u64,
    /// Regions that the last cut left active.
    kept: u64,
    /// Marks that began since then.
    marks: u64,
}

/// The maps as of a cut of the journal.
pub(super) struct TouchedCut {
    /// Where each mark's map is.
    pub records: Vec<TouchedRecord>,
    /// Maps whose files are still to be written.
    fresh: Vec<(Epoch, BitMap)>,
    /// Regions that stay active: first block and count.
    pub active: Vec<(u64, u64)>,
    /// What was active, announced and touched before, should there be no new journal.
    before: [BitMap; 3],
}

/// Blocks in a region of a volume of that size, as a power of two.
fn region_shift(geometry: Geometry, tuning: Tuning) -> u32 {
    let mut bytes = tuning.region_bytes;
    while geometry.size.div_ceil(bytes) > REGIONS_MAX {
        bytes *= 2;
    }
    let blocks = (bytes / u64::from(geometry.block_size)).max(u64::from(geometry.granularity));
    blocks.next_power_of_two().trailing_zeros()
}

/// Adds all bits of one map to another.
fn unite(map: &mut BitMap, more: &BitMap) {
    for (number, page) in more.pages() {
        let mut words = map.page(number).to_words();
        let united = match map.page(number) {
            Page::Empty => page,
            _ => {
                page.or_into(&mut words);
                Page::from_words(&words)
            }
        };
        map.set_page(number, united);
    }
}

/// The bits that both maps have.
fn common(one: &BitMap, other: &BitMap) -> BitMap {
    let mut map = BitMap::new();
    for (number, page) in one.pages() {
        let (mut words, mask) = (page.to_words(), other.page(number).to_words());
        words.iter_mut().zip(mask).for_each(|(word, mask)| *word &= mask);
        map.set_page(number, Page::from_words(&words));
    }
    map
}

impl Touched {
    fn regions(&self, blocks: &Range<u64>) -> Range<u64> {
        if blocks.is_empty() {
            return 0..0;
        }
        blocks.start >> self.shift..((blocks.end - 1) >> self.shift) + 1
    }

    /// Whether changes of that epoch are noted.
    fn concerns(&self, epoch: Epoch) -> bool {
        self.maps.range(..=epoch).next_back().is_some()
    }

    /// A mark begins with that epoch; if it is not taken in the end, [`Self::keep`] says so.
    pub fn begin(&mut self, mark: Epoch) {
        self.maps.entry(mark).or_default();
        self.marks += 1;
    }

    /// Whether a checkpoint is worth its while: a crash would make of a few changes more than
    /// twice what it would have made of them right after the last one, or that was long ago.
    pub fn wants_checkpoint(&self, few: u64) -> bool {
        let active = self.announced.count();
        active > few && (active > 2 * self.kept || self.marks >= MARKS_MAX)
    }

    /// Marks came or went: the map of one that is gone belongs to the mark before it.
    pub fn keep(&mut self, marks: &[Epoch]) {
        let gone: Vec<Epoch> = self.maps.keys().copied().filter(|mark| !marks.contains(mark)).collect();
        for mark in gone {
            self.files.remove(&mark);
            let Some(map) = self.maps.remove(&mark) else { continue };
            if let Some((_, before)) = self.maps.range_mut(..mark).next_back() {
                unite(before, &map);
            }
        }
    }

    /// Notes that `blocks` of `held` are about to be changed by a write of that epoch; false,
    /// and nothing is noted, if some of their regions are not active yet.
    pub fn note(&mut self, held: &[Range<u64>], blocks: &[Range<u64>], epoch: Epoch) -> bool {
        let Some((_, map)) = self.maps.range_mut(..=epoch).next_back() else { return true };
        let shift = self.shift;
        let regions = |range: &Range<u64>| range.start >> shift..((range.end - 1) >> shift) + 1;
        for range in held.iter().filter(|range| !range.is_empty()).map(regions) {
            if self.active.runs(range.clone()).next() != Some((range, true)) {
                return false;
            }
        }
        for range in held.iter().filter(|range| !range.is_empty()) {
            self.recent.set_range(regions(range));
        }
        for range in blocks {
            map.set_range(range.clone());
        }
        true
    }

    /// Notes that blocks go out of use by a trim of that epoch.
    pub fn note_trim(&mut self, blocks: &Range<u64>, epoch: Epoch) {
        if let Some((_, map)) = self.maps.range_mut(..=epoch).next_back() {
            map.set_range(blocks.clone());
        }
    }

    /// The ranges that a record must name before blocks change; from now on it counts as
    /// pushed.
    pub fn announce(&mut self, blocks: &[Range<u64>], epoch: Epoch) -> Vec<(u64, u64)> {
        let mut ranges = Vec::new();
        if !self.concerns(epoch) {
            return ranges;
        }
        for range in blocks {
            let regions = self.regions(range);
            let fresh: Vec<Range<u64>> = self
                .announced
                .runs(regions.clone())
                .filter(|(_, known)| !known)
                .map(|(run, _)| run)
                .collect();
            self.announced.set_range(regions.clone());
            self.recent.set_range(regions);
            let blocks = |run: Range<u64>| (run.start << self.shift, (run.end - run.start) << self.shift);
            ranges.extend(fresh.into_iter().map(blocks));
        }
        ranges
    }

    /// What the records for blocks take in the journal at most, in bytes.
    pub fn room(&self, blocks: &[Range<u64>]) -> u64 {
        let regions = |range: &Range<u64>| {
            let regions = self.regions(range);
            (regions.end - regions.start).div_ceil(2)
        };
        ACTIVE_BYTES + blocks.iter().map(regions).sum::<u64>() * RANGE_BYTES
    }

    /// The records of blocks that were announced in that round are durable. A cut that came
    /// since has forgotten them.
    fn confirm(&mut self, blocks: &[Range<u64>], round: u64) {
        if self.round == round {
            for range in blocks {
                let regions = self.regions(range);
                self.active.set_range(regions);
            }
        }
    }

    /// The parts of a range whose record is pushed and may not be durable.
    fn under_way(&self, blocks: &Range<u64>) -> Vec<Range<u64>> {
        let announced = self.announced.runs(self.regions(blocks)).filter(|(_, known)| *known);
        let waiting = announced.flat_map(|(run, _)| self.active.runs(run)).filter(|(_, active)| !active);
        waiting.map(|(run, _)| run.start << self.shift..run.end << self.shift).collect()
    }

    /// The blocks touched from one mark's epoch on up to another epoch.
    pub fn between(&self, epochs: Range<Epoch>) -> BitMap {
        let mut all = BitMap::new();
        for (_, map) in self.maps.range(epochs) {
            if all.is_empty() {
                all = map.clone();
            } else {
                unite(&mut all, map);
            }
        }
        all
    }

    /// The file of a mark is damaged: the next checkpoint writes another one.
    pub fn distrust(&mut self, mark: Epoch) {
        self.files.remove(&mark);
    }

    /// Pages in all maps.
    pub fn page_count(&self) -> u64 {
        self.maps.values().map(BitMap::page_count).sum()
    }

    /// Whether the next open would count more as touched than what was.
    fn is_unsaved(&self) -> bool {
        !self.maps.is_empty() && (!self.announced.is_empty() || self.maps.keys().ne(self.files.keys()))
    }

    /// The instant of a checkpoint of that number. Regions that were not touched since the last
    /// one are active no longer; with `ends`, none is.
    pub fn cut(&mut self, number: Seq, ends: bool) -> TouchedCut {
        let recent = std::mem::take(&mut self.recent);
        let before = [self.active.clone(), self.announced.clone(), recent.clone()];
        let keep = if ends || self.maps.is_empty() { BitMap::new() } else { recent };
        // A region whose record is on its way is in the state that follows, and not durable yet.
        self.active = common(&self.active, &keep);
        (self.kept, self.marks) = (keep.count(), 0);
        self.announced = keep;
        self.round += 1;
        let (mut records, mut fresh) = (Vec::new(), Vec::new());
        for (mark, map) in &self.maps {
            let file = match self.files.get(mark) {
                Some((file, stored)) if stored.changed_pages(map).next().is_none() => *file,
                _ => {
                    fresh.push((*mark, map.clone()));
                    number.0
                }
            };
            records.push(TouchedRecord { mark: *mark, file });
        }
        let end = self.announced.pages().last().map_or(0, |(page, _)| (page + 1) * PAGE_BITS);
        let runs = self.announced.runs(0..end).filter(|(_, active)| *active);
        let active =
            runs.map(|(run, _)| (run.start << self.shift, (run.end - run.start) << self.shift)).collect();
        TouchedCut { records, fresh, active, before }
    }

    /// There is no checkpoint with that cut: the journal before it stays in force.
    pub fn uncut(&mut self, cut: &TouchedCut) {
        let [active, announced, recent] = &cut.before;
        unite(&mut self.active, active);
        unite(&mut self.announced, announced);
        unite(&mut self.recent, recent);
    }

    /// The checkpoint with that cut is in force.
    pub fn stored(&mut self, cut: TouchedCut) {
        for (mark, map) in cut.fresh {
            let record = cut.records.iter().find(|record| record.mark == mark);
            match record.filter(|record| record.file != 0) {
                Some(record) => drop(self.files.insert(mark, (record.file, map))),
                None => drop(self.files.remove(&mark)),
            }
        }
        self.files.retain(|mark, _| self.maps.contains_key(mark));
    }

    /// What the files, the journal and the marks amount to at an open. `first` is the state at
    /// the journal's start and `state` the one at its end; the clone volume has so many blocks.
    pub async fn load(
        io: &Io,
        paths: &VolumePaths,
        tuning: Tuning,
        (first, records, state): (&VolumeState, &[(Seq, Record)], &VolumeState),
        blocks: u64,
    ) -> Result<Self> {
        let mut touched = Self { shift: region_shift(state.geometry, tuning), ..Self::default() };
        let mut all = BitMap::new();
        all.set_range(0..blocks);
        for record in &first.touched {
            let map = match load_map(io, paths, first, record).await {
                Ok(map) => {
                    touched.files.insert(record.mark, (record.file, map.clone()));
                    map
                }
                Err(error) if super::mend::is_damage(&error) => {
                    tracing::warn!("{error}; everything counts as changed since that mark");
                    all.clone()
                }
                Err(error) => return Err(error),
            };
            touched.maps.insert(record.mark, map);
        }
        for (_, record) in records {
            if let Record::Take { snapshot, .. } = record
                && snapshot.set.is_some()
            {
                touched.begin(snapshot.epoch);
            }
        }
        let marks = state.marks();
        for mark in &marks {
            touched.maps.entry(*mark).or_insert_with(|| all.clone());
        }
        let open = first.touched.last().map_or(Epoch(0), |record| record.mark);
        for (start, count) in &state.active {
            for (_, map) in touched.maps.range_mut(open..) {
                map.set_range(*start..start + count);
            }
            let whole = start.div_ceil(1 << touched.shift)..(start + count) >> touched.shift;
            if whole.start < whole.end {
                touched.active.set_range(whole);
            }
        }
        touched.keep(&marks);
        if touched.maps.is_empty() {
            touched.active = BitMap::new();
        }
        (touched.announced, touched.recent) = (touched.active.clone(), touched.active.clone());
        touched.kept = touched.active.count();
        Ok(touched)
    }
}

/// The map in a mark's file.
///
/// # Errors
/// `Corrupt` when there is none or it is damaged; `Io`.
pub(super) async fn load_map(
    io: &Io,
    paths: &VolumePaths,
    state: &VolumeState,
    record: &TouchedRecord,
) -> Result<BitMap> {
    if record.file == 0 {
        let what = format!("what was touched since epoch {} found no space", record.mark);
        return Err(crate::error::Error::corrupt(what));
    }
    let path = paths.touched(record.mark, record.file);
    let mut map = BitMap::new();
    for (page, content) in super::recover::tail_pages_of(io, &path, state.uuid, record.mark).await? {
        map.set_page(page, content);
    }
    Ok(map)
}

impl Volume {
    /// Notes that blocks are about to change, once it is durably known that something in their
    /// regions may. `held` are the ranges that are locked, `blocks` what will change in them.
    pub(super) async fn touch(&self, held: &[Range<u64>], blocks: &[Range<u64>], epoch: Epoch) -> Result<()> {
        loop {
            if self.s.borrow_mut().touched.note(held, blocks, epoch) {
                return Ok(());
            }
            let needs = self.s.borrow().touched.room(held);
            let room = self.journal.reserve(needs).await?;
            let (ranges, round) = {
                let mut s = self.s.borrow_mut();
                (s.touched.announce(held, epoch), s.touched.round)
            };
            if !ranges.is_empty() {
                self.record(Record::Active { ranges });
            }
            drop(room);
            self.journal_synced().await?;
            self.s.borrow_mut().touched.confirm(held, round);
        }
    }

    /// Waits until every record that names a region of the range is durable.
    pub(super) async fn announced_durably(&self, range: &Range<u64>) -> Result<()> {
        loop {
            let (waiting, round) = {
                let s = self.s.borrow();
                (s.touched.under_way(range), s.touched.round)
            };
            if waiting.is_empty() {
                return Ok(());
            }
            self.journal_synced().await?;
            self.s.borrow_mut().touched.confirm(&waiting, round);
        }
    }

    /// Pushes the record that stands before that of a trim.
    pub(super) fn announce_trim(&self, blocks: &[Range<u64>], epoch: Epoch) {
        let ranges = self.s.borrow_mut().touched.announce(blocks, epoch);
        if !ranges.is_empty() {
            self.record(Record::Active { ranges });
        }
    }

    /// Marks came or went.
    pub(super) fn marks_changed(&self) {
        let s = &mut *self.s.borrow_mut();
        s.touched.keep(&s.durable.marks());
    }

    /// Writes the files of a cut, of which a journal is to be told. Where there is no space for
    /// one, everything counts as touched at the next open, and the checkpoint goes on.
    pub(super) async fn write_touched(&self, cut: &mut TouchedCut) -> Result<()> {
        if cut.fresh.is_empty() {
            return Ok(());
        }
        let volume = self.uuid();
        for (mark, map) in &cut.fresh {
            let Some(record) = cut.records.iter_mut().find(|record| record.mark == *mark) else { continue };
            let contents = LayerContents {
                volume,
                epochs: *mark..mark.next(),
                bits: BitMap::new(),
                entries: BlockMap::new(),
                meta_pages: map.pages().collect(),
            };
            let pieces = self.io.compute(move || layer::encode(&contents)).await?;
            let path = self.paths.touched(*mark, record.file);
            match self.write_layer_file(&path, pieces).await {
                Err(error) if error.kind() == crate::ErrorKind::Full => {
                    tracing::warn!("{}: what has changed is not told exactly: {error}", path.display());
                    record.file = 0;
                }
                done => done?,
            }
        }
        self.io.sync_dir(&self.paths.snapshots()).await
    }

    /// The files that a state names.
    pub(super) fn touched_files(&self, records: &[TouchedRecord]) -> Vec<PathBuf> {
        let stored = records.iter().filter(|record| record.file != 0);
        stored.map(|record| self.paths.touched(record.mark, record.file)).collect()
    }

    /// Before a close in good order: the next open is to know exactly what was touched. The
    /// caller keeps others away, also from checkpoints.
    pub(super) async fn store_touched(self: &Rc<Self>) {
        if !self.s.borrow().touched.is_unsaved() {
            return;
        }
        if let Err(error) = self.checkpoint_now(None).await {
            tracing::warn!("volume {}: what has changed is not told exactly: {error}", self.name());
        }
    }
}

#[cfg(test)]
mod tests;
