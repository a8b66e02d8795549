//! The save volume: segments that before-images are appended to, in groups.
//!
//! Owns the segment files, how far each is written and allocated, and how many live
//! images each holds. A group is one write and one sync, and is durable only together
//! with every earlier group of its segment, so that a scan of the headers finds it. A
//! segment's number and generation are durable in the journal before its first group.
//! A segment is used again only when nothing in it is live, the deletions that made it
//! so are durable, and no reader that started before them is left.

mod reclaim;
mod scan;

use super::Tuning;
use super::event::{Event, Syncer};
use super::journal::Journal;
use super::paths::VolumePaths;
use crate::error::{Error, ErrorKind, Result};
use crate::format::journal::{Record, apply_to_segments};
use crate::format::segment::{GroupEntry, GroupHeader, HEADER_SIZE, SegmentHeader, group_size, images_at};
use crate::format::state::SegmentRecord;
use crate::io::{FileId, Io, OpenHow};
use crate::types::{Block, Epoch, SaveAddr};
use bytes::{Bytes, BytesMut};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;
use uuid::Uuid;

/// Segments that are empty and kept for reuse, at most.
const REUSABLE_MAX: usize = 4;
/// Segment files that are kept open, at most.
const OPEN_MAX: usize = 128;

struct OpenFile {
    io: Io,
    file: FileId,
    syncer: Syncer,
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        self.io.close(self.file);
    }
}

struct Segment {
    generation: u64,
    /// Where the next group goes, in bytes.
    end: u64,
    /// Space allocated, in bytes.
    allocated: u64,
    /// Every group below is completely written.
    prefix: u64,
    /// Groups written beyond `prefix`: start and end.
    beyond: BTreeMap<u64, u64>,
    /// Before-images that some map still names.
    live: u64,
    /// The youngest group's epoch.
    youngest: Epoch,
    closed: bool,
    /// A write failed; no group after it can be found again.
    broken: bool,
}

impl Segment {
    fn new(generation: u64) -> Self {
        let start = HEADER_SIZE as u64;
        Self {
            generation,
            end: start,
            allocated: start,
            prefix: start,
            beyond: BTreeMap::new(),
            live: 0,
            youngest: Epoch(0),
            closed: false,
            broken: false,
        }
    }
}

#[derive(Default)]
struct Inner {
    segments: BTreeMap<u32, Segment>,
    open: BTreeMap<u32, Rc<OpenFile>>,
    active: Option<u32>,
    /// Segments to go on with when the active one is full, in that order.
    spares: VecDeque<u32>,
    reusable: BTreeSet<u32>,
    /// Emptied by a deletion, waiting for readers that started before it.
    waiting: Vec<(u64, u32)>,
    /// Readers by the version that they started at.
    pins: BTreeMap<u64, usize>,
    version: u64,
    /// What the journal says of the segments: all records pushed so far.
    records: BTreeMap<u32, SegmentRecord>,
    /// All numbers below have been used: a file that is being removed keeps its own.
    next_number: u32,
}

/// An open save volume.
pub struct SaveVolume {
    io: Io,
    paths: VolumePaths,
    volume: Uuid,
    block_size: u32,
    tuning: Tuning,
    inner: RefCell<Inner>,
    /// Somebody makes or prepares a segment.
    busy: Cell<bool>,
    event: Event,
}

/// A before-image to be saved.
pub struct Image {
    /// The block that it is of.
    pub block: Block,
    /// The whole block.
    pub data: Bytes,
    /// It could not be read; `data` is zeros.
    pub damaged: bool,
}

pub use scan::{FoundGroup, Walk};

/// Keeps segments that are read from being used again.
pub struct Pin {
    save: Rc<SaveVolume>,
    version: u64,
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut inner = self.save.inner.borrow_mut();
        if let Some(count) = inner.pins.get_mut(&self.version) {
            *count -= 1;
            if *count == 0 {
                inner.pins.remove(&self.version);
            }
        }
    }
}

impl SaveVolume {
    /// An empty one; segments of an existing volume are added with [`Self::add`].
    #[must_use]
    pub fn new(io: Io, paths: VolumePaths, volume: Uuid, block_size: u32, tuning: Tuning) -> Self {
        Self {
            io,
            paths,
            volume,
            block_size,
            tuning,
            inner: RefCell::new(Inner::default()),
            busy: Cell::new(false),
            event: Event::default(),
        }
    }

    /// A segment that the journal knows.
    pub fn add(&self, number: u32, record: &SegmentRecord) {
        let mut segment = Segment::new(record.generation);
        segment.closed = record.closed.is_some();
        segment.youngest = record.closed.unwrap_or_default();
        let mut inner = self.inner.borrow_mut();
        inner.segments.insert(number, segment);
        inner.records.insert(number, record.clone());
        inner.next_number = inner.next_number.max(number + 1);
    }

    /// Pushes a record about a segment and applies it, as one step.
    fn push(&self, journal: &Journal, record: Record) {
        apply_to_segments(&mut self.inner.borrow_mut().records, &record);
        journal.push(record);
    }

    /// What the journal says of the segments, everything pushed so far included.
    #[must_use]
    pub fn records(&self) -> BTreeMap<u32, SegmentRecord> {
        self.inner.borrow().records.clone()
    }

    /// Numbers of all segments.
    #[must_use]
    pub fn numbers(&self) -> Vec<u32> {
        self.inner.borrow().segments.keys().copied().collect()
    }

    /// Images per group that keep it within the tuning's bytes.
    #[must_use]
    pub fn group_count_max(&self) -> usize {
        let by_bytes = self.tuning.group_bytes_max / u64::from(self.block_size);
        let room = (self.tuning.segment_bytes - HEADER_SIZE as u64) / 2 / u64::from(self.block_size + 32);
        usize::try_from(by_bytes.min(room))
            .unwrap_or(usize::MAX)
            .clamp(1, crate::format::segment::GROUP_COUNT_MAX)
    }

    /// A map names `count` more images of a segment.
    pub fn add_live(&self, number: u32, count: u64) {
        if let Some(segment) = self.inner.borrow_mut().segments.get_mut(&number) {
            segment.live += count;
        }
    }

    /// Maps name `count` fewer images; the deletion that made it so is durable.
    pub fn drop_live(&self, number: u32, count: u64) {
        if let Some(segment) = self.inner.borrow_mut().segments.get_mut(&number) {
            debug_assert!(
                segment.live >= count,
                "segment {number} has {} live images, not {count}",
                segment.live
            );
            segment.live = segment.live.saturating_sub(count);
        }
    }

    /// Bytes of live images in all.
    #[must_use]
    pub fn live_bytes(&self) -> u64 {
        self.inner.borrow().segments.values().map(|s| s.live).sum::<u64>() * u64::from(self.block_size)
    }

    /// Starts reading: no segment that is live now is used again before the pin is gone.
    #[must_use]
    pub fn pin(self: &Rc<Self>) -> Pin {
        let mut inner = self.inner.borrow_mut();
        let version = inner.version;
        *inner.pins.entry(version).or_default() += 1;
        Pin { save: Rc::clone(self), version }
    }

    async fn open_file(&self, number: u32) -> Result<Rc<OpenFile>> {
        if let Some(file) = self.inner.borrow().open.get(&number) {
            return Ok(Rc::clone(file));
        }
        let file = self.io.open(&self.paths.segment(number), OpenHow::Write).await?;
        Ok(self.keep_open(number, file))
    }

    fn keep_open(&self, number: u32, file: FileId) -> Rc<OpenFile> {
        let mut inner = self.inner.borrow_mut();
        if let Some(other) = inner.open.get(&number) {
            // Somebody else was faster; what this caller opened is closed again.
            self.io.close(file);
            return Rc::clone(other);
        }
        let open =
            Rc::new(OpenFile { io: self.io.clone(), file, syncer: Syncer::new(self.io.clone(), file) });
        inner.open.insert(number, Rc::clone(&open));
        if inner.open.len() > OPEN_MAX {
            let keep: Vec<u32> =
                inner.active.into_iter().chain(inner.spares.iter().copied()).chain([number]).collect();
            let idle = inner
                .open
                .iter()
                .find(|(n, f)| !keep.contains(n) && Rc::strong_count(f) == 1 && !f.syncer.is_dirty())
                .map(|(n, _)| *n);
            if let Some(idle) = idle {
                inner.open.remove(&idle);
            }
        }
        open
    }

    /// Reads one before-image and checks it.
    ///
    /// # Errors
    /// `Corrupt` when it is not what was saved; `Io`.
    pub async fn read(&self, addr: SaveAddr, crc: u32) -> Result<BytesMut> {
        let what = || format!("segment {:08}, offset {}", addr.segment, addr.offset());
        let file = self.open_file(addr.segment).await.map_err(|e| e.context(what()))?;
        let image = self
            .io
            .read(file.file, addr.offset(), self.block_size as usize)
            .await
            .map_err(|e| e.context(what()))?;
        if crc32c::crc32c(&image) != crc {
            return Err(Error::corrupt("the before-image has a wrong checksum").context(what()));
        }
        Ok(image)
    }

    /// Writes a before-image again where it lies, durably.
    ///
    /// # Errors
    /// `Io`.
    pub async fn restore(&self, addr: SaveAddr, image: Bytes) -> Result<()> {
        let what = || format!("segment {:08}, offset {}", addr.segment, addr.offset());
        let written = async {
            let file = self.open_file(addr.segment).await?;
            self.io.write(file.file, addr.offset(), image).await?;
            file.syncer.wrote();
            file.syncer.sync().await
        };
        written.await.map_err(|e| e.context(what()))
    }

    /// Makes sure that `blocks` more before-images have space, however they are grouped.
    ///
    /// # Errors
    /// `Full`, `Io`.
    pub async fn reserve(&self, journal: &Journal, blocks: usize) -> Result<()> {
        while !self.has_room(blocks as u64) {
            if self.busy.get() {
                self.event.wait().await;
                continue;
            }
            self.busy.set(true);
            let result = self.add_room(journal).await;
            self.busy.set(false);
            self.event.notify();
            result?;
        }
        Ok(())
    }

    /// Whether so many more before-images have space at this moment.
    pub fn has_room(&self, blocks: u64) -> bool {
        let group = group_size(self.group_count_max(), self.block_size);
        self.room() >= blocks * (u64::from(self.block_size) + 4096) + group
    }

    fn room(&self) -> u64 {
        let inner = self.inner.borrow();
        let numbers = inner.active.iter().chain(&inner.spares);
        numbers
            .filter_map(|n| inner.segments.get(n))
            .filter(|s| !s.broken)
            .map(|s| s.allocated.saturating_sub(s.end))
            .sum()
    }

    /// Allocates one more step, in a new segment if the others have all that they may have.
    async fn add_room(&self, journal: &Journal) -> Result<()> {
        let growing = {
            let inner = self.inner.borrow();
            inner.active.iter().chain(&inner.spares).copied().find(|n| {
                inner.segments.get(n).is_some_and(|s| !s.broken && s.allocated < self.tuning.segment_bytes)
            })
        };
        let number = match growing {
            Some(number) => number,
            None => {
                let number = self.begin_segment(journal).await?;
                let mut inner = self.inner.borrow_mut();
                if inner.active.is_none() {
                    inner.active = Some(number);
                } else {
                    inner.spares.push_back(number);
                }
                number
            }
        };
        let file = self.open_file(number).await?;
        let from = self.inner.borrow().segments.get(&number).map_or(0, |s| s.allocated);
        let step = self.tuning.segment_step_bytes.min(self.tuning.segment_bytes.saturating_sub(from));
        let mut result = self.io.allocate(file.file, from, step).await;
        if result.as_ref().is_err_and(|e| e.kind() == ErrorKind::Full) && self.give_back(journal).await? {
            result = self.io.allocate(file.file, from, step).await;
        }
        result.map_err(|e| e.context(format!("segment {number:08}")))?;
        // The size of the file is part of what a sync of a group must make durable.
        file.syncer.wrote();
        if let Some(segment) = self.inner.borrow_mut().segments.get_mut(&number) {
            segment.allocated = from + step;
        }
        Ok(())
    }

    /// A new segment, or an empty one in its next generation; durable.
    async fn begin_segment(&self, journal: &Journal) -> Result<u32> {
        let (number, generation, exists) = {
            let mut inner = self.inner.borrow_mut();
            match inner.reusable.pop_first() {
                Some(number) => {
                    // A deletion that ends meanwhile must not find it empty again.
                    let segment = inner.segments.get_mut(&number);
                    let generation = segment.map_or(1, |segment| {
                        segment.closed = false;
                        segment.generation + 1
                    });
                    (number, generation, true)
                }
                None => {
                    let number = inner.next_number.max(1);
                    inner.next_number = number + 1;
                    (number, 1, false)
                }
            }
        };
        let result = self.write_header(number, generation, exists).await;
        if let Err(error) = result {
            self.give_up_segment(number);
            if !exists {
                // Nothing names it; on a full disk there would be one for every attempt.
                let _ = self.io.remove(&self.paths.segment(number)).await;
            }
            return Err(error);
        }
        self.push(journal, Record::Segment { segment: number, generation });
        journal.sync().await?;
        let mut segment = Segment::new(generation);
        if exists {
            segment.allocated = self.tuning.segment_bytes;
        }
        self.inner.borrow_mut().segments.insert(number, segment);
        Ok(number)
    }

    /// A segment could not be begun: an empty one of before is kept for reuse.
    fn give_up_segment(&self, number: u32) {
        let mut inner = self.inner.borrow_mut();
        let failed = inner.open.remove(&number).is_some_and(|open| open.syncer.failure().is_some());
        if let Some(segment) = inner.segments.get_mut(&number) {
            segment.closed = true;
            // A file whose sync failed is never written again, but removed.
            segment.broken = failed;
            if !failed {
                inner.reusable.insert(number);
            }
        }
    }

    async fn write_header(&self, number: u32, generation: u64, exists: bool) -> Result<()> {
        let header = SegmentHeader { volume: self.volume, segment: number, generation }.encode();
        let open = if exists {
            self.open_file(number).await?
        } else {
            let file = self.io.open(&self.paths.segment(number), OpenHow::CreateEmpty).await?;
            self.keep_open(number, file)
        };
        if exists {
            // An old segment may be shorter than a full one; its space is what a group needs.
            self.io.allocate(open.file, 0, self.tuning.segment_bytes).await?;
        }
        self.io.write(open.file, 0, Bytes::from(header)).await?;
        open.syncer.wrote();
        open.syncer.sync().await?;
        if !exists {
            self.io.sync_dir(&self.paths.save()).await?;
        }
        Ok(())
    }

    /// Appends one group and makes it durable; returns where each image is, and its checksum.
    /// The images count as live from the start.
    ///
    /// # Errors
    /// `Io`, `Full`: nothing of the group counts then.
    pub async fn append(
        &self,
        journal: &Journal,
        epoch: Epoch,
        images: &[Image],
    ) -> Result<Vec<(SaveAddr, u32)>> {
        let crcs = self.checksums(images).await?;
        let size = group_size(images.len(), self.block_size);
        let (number, at, generation) = self.place(journal, size, epoch, images.len() as u64).await?;
        let header = GroupHeader {
            volume: self.volume,
            segment: number,
            generation,
            epoch,
            block_size: self.block_size,
            entries: images
                .iter()
                .zip(crcs)
                .map(|(i, crc)| GroupEntry { block: i.block, crc, damaged: i.damaged })
                .collect(),
        };
        let mut data = vec![Bytes::from(header.encode())];
        data.extend(images.iter().map(|i| i.data.clone()));
        let filled = images_at(images.len()) + images.len() * self.block_size as usize;
        let tail = header.encode_tail();
        let padding = usize::try_from(size).unwrap_or(filled).saturating_sub(filled + tail.len());
        data.push(Bytes::from([vec![0; padding], tail].concat()));
        let result = async {
            let open = self.open_file(number).await?;
            self.io.write_all(open.file, at, data).await?;
            Ok::<_, Error>(open)
        }
        .await;
        let open = match result {
            Ok(open) => open,
            Err(error) => {
                self.abandon(number);
                self.drop_live(number, images.len() as u64);
                return Err(error.context(format!("segment {number:08}")));
            }
        };
        self.complete(number, at, at + size);
        let result = async {
            self.wait_for_prefix(number, at).await?;
            open.syncer.wrote();
            open.syncer.sync().await
        }
        .await;
        if let Err(error) = result {
            self.abandon(number);
            self.drop_live(number, images.len() as u64);
            return Err(error.context(format!("segment {number:08}")));
        }
        self.push(journal, Record::Mark { segment: number, offset: at + size, closed: None });
        let first = at + images_at(images.len()) as u64;
        let step = u64::from(self.block_size);
        let addrs = (0..).map(|i| addr(number, first + i * step));
        Ok(addrs.zip(&header.entries).map(|(addr, entry)| (addr, entry.crc)).collect())
    }

    /// The checksums of images; those of many are made beside this thread.
    async fn checksums(&self, images: &[Image]) -> Result<Vec<u32>> {
        if images.len() < self.tuning.beside_blocks_min {
            return Ok(images.iter().map(|image| crc32c::crc32c(&image.data)).collect());
        }
        let data: Vec<Bytes> = images.iter().map(|image| image.data.clone()).collect();
        self.io.compute(move || data.iter().map(|data| crc32c::crc32c(data)).collect()).await
    }

    /// Finds a place for `size` bytes, in the next segment if this one has no room.
    async fn place(&self, journal: &Journal, size: u64, epoch: Epoch, count: u64) -> Result<(u32, u64, u64)> {
        loop {
            {
                let mut inner = self.inner.borrow_mut();
                let active = inner.active;
                if let Some(number) = active
                    && let Some(segment) = inner.segments.get_mut(&number)
                    && !segment.broken
                    && segment.end + size <= self.tuning.segment_bytes
                {
                    let at = segment.end;
                    segment.end += size;
                    segment.live += count;
                    segment.youngest = segment.youngest.max(epoch);
                    return Ok((number, at, segment.generation));
                }
            }
            if self.busy.get() {
                self.event.wait().await;
                continue;
            }
            self.busy.set(true);
            let result = self.roll(journal).await;
            self.busy.set(false);
            self.event.notify();
            result?;
        }
    }

    /// Goes on with the spare segment or a new one.
    async fn roll(&self, journal: &Journal) -> Result<()> {
        let spare = self.inner.borrow_mut().spares.pop_front();
        let next = match spare {
            Some(spare) => spare,
            None => self.begin_segment(journal).await?,
        };
        let old = self.inner.borrow_mut().active.replace(next);
        if let Some(number) = old {
            self.close_segment(journal, number, 0);
        }
        Ok(())
    }

    /// No more groups follow; those below `found` are durable.
    fn close_segment(&self, journal: &Journal, number: u32, found: u64) {
        let youngest = self.inner.borrow_mut().segments.get_mut(&number).map(|segment| {
            segment.closed = true;
            segment.youngest
        });
        if let Some(youngest) = youngest {
            // Groups may still be on their way to the disk: they raise the mark later.
            self.push(journal, Record::Mark { segment: number, offset: found, closed: Some(youngest) });
        }
    }

    fn abandon(&self, number: u32) {
        let mut inner = self.inner.borrow_mut();
        if let Some(segment) = inner.segments.get_mut(&number) {
            segment.broken = true;
        }
        drop(inner);
        self.event.notify();
    }

    fn complete(&self, number: u32, from: u64, to: u64) {
        let mut inner = self.inner.borrow_mut();
        if let Some(segment) = inner.segments.get_mut(&number) {
            segment.beyond.insert(from, to);
            while let Some(to) = segment.beyond.remove(&segment.prefix) {
                segment.prefix = to;
            }
        }
        drop(inner);
        self.event.notify();
    }

    async fn wait_for_prefix(&self, number: u32, at: u64) -> Result<()> {
        loop {
            {
                let inner = self.inner.borrow();
                let Some(segment) = inner.segments.get(&number) else { return Ok(()) };
                if segment.prefix > at {
                    return Ok(());
                }
                if segment.broken {
                    return Err(Error::new(
                        crate::ErrorKind::Io,
                        format!("an earlier write to segment {number:08} failed"),
                    ));
                }
            }
            self.event.wait().await;
        }
    }

    /// Goes on with the youngest open segment after a close in good order: nothing but
    /// zeros follows its last group.
    pub fn resume(&self, journal: &Journal) {
        let open: Vec<u32> =
            self.inner.borrow().segments.iter().filter(|(_, s)| !s.closed).map(|(n, _)| *n).collect();
        if let Some((last, others)) = open.split_last() {
            for number in others {
                self.close_segment(journal, *number, 0);
            }
            self.inner.borrow_mut().active = Some(*last);
        }
    }

    /// Closes every segment that is open for appending; used after a recovery: what a crash
    /// left behind the last whole group must not be taken for a later group.
    pub fn close_all(&self, journal: &Journal) {
        let open: Vec<(u32, u64)> = {
            let inner = self.inner.borrow();
            inner.segments.iter().filter(|(_, s)| !s.closed).map(|(n, s)| (*n, s.prefix)).collect()
        };
        for (number, found) in open {
            // The recovery synced the segment before it looked for its groups: the mark may
            // say so, and an image that rots later does not put its whole group in doubt.
            self.close_segment(journal, number, found);
        }
        let mut inner = self.inner.borrow_mut();
        inner.active = None;
        inner.spares.clear();
    }
}

fn addr(segment: u32, offset: u64) -> SaveAddr {
    let sector = u32::try_from(offset / 512).expect("a segment is smaller than 2 TiB");
    SaveAddr { segment, sector }
}
