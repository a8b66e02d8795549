//! The journal's writer: records in one order, into the page cache before anything is
//! acknowledged, onto the disk when somebody syncs.
//!
//! Records are numbered when they are pushed and written in that order by one write at
//! a time, so what a dead process leaves is a prefix. A new file is begun beside the
//! old one and takes its name when it holds everything: a crash at any point finds one
//! or the other whole.
//!
//! Space comes before the promise: what is written, what is queued, what is promised to
//! records that are still to come ([`Ledger`]) and a slack for small ones lie within what
//! is allocated, at every admission and in a new file too. So a record meets a full disk
//! only where the slack was used up; then it waits for space, and everything behind it.

use super::event::{Event, Syncer};
use super::journal_copy;
use super::paths::VolumePaths;
use super::room::{Ledger, Room};
use crate::error::{Error, ErrorKind, Result};
use crate::format::journal::{AfterImage, FileHeader, Frame, Record, encode_frame, frame_size};
use crate::io::{FileId, Io, OpenHow};
use crate::types::Seq;
use bytes::Bytes;
use std::cell::{Cell, RefCell};
use std::time::Duration;
use uuid::Uuid;

/// Space for records that nobody reserves for: they are small, and each comes after an
/// admission that made this space whole again.
const SLACK_BYTES: u64 = 64 << 10;
/// What must be left of the slack for a command's record.
const COMMAND_BYTES: u64 = 8 << 10;
/// How long a write that met a full disk waits before it is tried again.
const FULL_RETRY: Duration = Duration::from_millis(200);

struct Inner {
    file: FileId,
    number: u64,
    /// Where the next frame goes, in bytes.
    end: u64,
    /// Space allocated for the file, in bytes.
    allocated: u64,
    /// Every write below has completed.
    completed: u64,
    /// The file is durable up to here.
    durable: u64,
    /// Pushed, not handed to the driver.
    queue: Vec<(Seq, Record)>,
    /// Bytes that the frames in `queue` will take.
    queued: u64,
    /// Pushed and written since the cut of a rotation under way, whose number is `cut`.
    carry: Option<Vec<(Seq, Record)>>,
    cut: Seq,
    failed: Option<Error>,
}

/// An open journal.
pub struct Journal {
    io: Io,
    paths: VolumePaths,
    volume: Uuid,
    step: u64,
    next: Cell<Seq>,
    /// All records before this one are in the page cache.
    written: Cell<Seq>,
    writing: Cell<bool>,
    held: Cell<bool>,
    allocating: Cell<bool>,
    closing: Cell<bool>,
    ledger: Ledger,
    inner: RefCell<Inner>,
    syncer: Syncer,
    event: Event,
}

impl Journal {
    /// Goes on behind `end` of an open file, all of which is durable.
    #[must_use]
    #[allow(clippy::too_many_arguments, reason = "each is one fact about the file")]
    pub fn new(
        io: Io,
        paths: VolumePaths,
        volume: Uuid,
        file: FileId,
        number: u64,
        end: u64,
        next: Seq,
        step: u64,
    ) -> Self {
        let syncer = Syncer::new(io.clone(), file);
        let inner = Inner {
            file,
            number,
            end,
            allocated: end,
            completed: end,
            durable: end,
            queue: Vec::new(),
            queued: 0,
            carry: None,
            cut: Seq(0),
            failed: None,
        };
        Self {
            io,
            paths,
            volume,
            step,
            next: Cell::new(next),
            written: Cell::new(next),
            writing: Cell::new(false),
            held: Cell::new(false),
            allocating: Cell::new(false),
            closing: Cell::new(false),
            ledger: Ledger::default(),
            inner: RefCell::new(inner),
            syncer,
            event: Event::default(),
        }
    }

    /// The number that the next change gets.
    pub fn next_seq(&self) -> Seq {
        self.next.get()
    }

    /// Takes a number for a change that goes to the stage.
    pub fn take_seq(&self) -> Seq {
        let seq = self.next.get();
        self.next.set(seq.next());
        seq
    }

    /// Bytes of the file.
    pub fn len(&self) -> u64 {
        self.inner.borrow().end
    }

    /// Whether there is nothing in it; never true.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Puts a record in the order. [`Self::written`] makes it outlive the process.
    pub fn push(&self, record: Record) -> Seq {
        let seq = self.take_seq();
        let mut inner = self.inner.borrow_mut();
        inner.queued += frame_size(&record);
        inner.queue.push((seq, record));
        seq
    }

    /// Pushes a record and waits until it would outlive the process.
    ///
    /// # Errors
    /// `Io`, `Full`; from then on every call fails.
    pub async fn append(&self, record: Record) -> Result<Seq> {
        let seq = self.push(record);
        self.written(seq).await?;
        Ok(seq)
    }

    /// Waits until the record of that number is in the page cache.
    ///
    /// # Errors
    /// As for [`Self::append`].
    pub async fn written(&self, seq: Seq) -> Result<()> {
        loop {
            if let Some(error) = &self.inner.borrow().failed {
                return Err(error.duplicate());
            }
            if self.written.get() > seq {
                return Ok(());
            }
            if self.writing.get() || self.held.get() {
                self.event.wait().await;
                continue;
            }
            self.write_queue().await;
        }
    }

    async fn write_queue(&self) {
        self.writing.set(true);
        let (file, at, frames, last, end) = {
            let mut inner = self.inner.borrow_mut();
            let queue = std::mem::take(&mut inner.queue);
            inner.queued = 0;
            let mut frames = Vec::new();
            for (seq, record) in &queue {
                frames.extend(encode_frame(
                    inner.number,
                    Frame { seq: *seq, durable: inner.durable },
                    record,
                ));
            }
            let at = inner.end;
            inner.end += total(&frames);
            let last = queue.last().map(|(seq, _)| seq.next());
            let cut = inner.cut;
            if let Some(carry) = &mut inner.carry {
                carry.extend(queue.into_iter().filter(|(seq, _)| *seq > cut));
            }
            (inner.file, at, frames, last, inner.end)
        };
        let result = self.write_frames(file, at, frames).await;
        self.syncer.wrote();
        self.writing.set(false);
        match result {
            Ok(()) => {
                self.inner.borrow_mut().completed = end;
                if let Some(last) = last {
                    self.written.set(last);
                }
            }
            Err(error) => self.inner.borrow_mut().failed = Some(error.context("journal")),
        }
        self.event.notify();
    }

    /// Makes every record pushed so far durable.
    ///
    /// # Errors
    /// As for [`Self::append`].
    pub async fn sync(&self) -> Result<()> {
        let queued = self.inner.borrow().queue.last().map(|(seq, _)| *seq);
        if let Some(seq) = queued {
            self.written(seq).await?;
        } else {
            while self.writing.get() || self.held.get() {
                self.event.wait().await;
            }
        }
        let (file, end) = {
            let inner = self.inner.borrow();
            if let Some(error) = &inner.failed {
                return Err(error.duplicate());
            }
            // A write that is under way by now is not covered.
            (inner.file, inner.completed)
        };
        self.syncer.sync().await?;
        let mut inner = self.inner.borrow_mut();
        if inner.file == file {
            inner.durable = inner.durable.max(end);
        }
        Ok(())
    }

    /// Writes frames; on a full disk it tries again until there is space. What a death in
    /// between leaves is a torn tail, of which nothing was acknowledged.
    async fn write_frames(&self, file: FileId, at: u64, frames: Vec<Bytes>) -> Result<()> {
        let mut told = false;
        loop {
            match self.io.write_all(file, at, frames.clone()).await {
                Err(error) if error.kind() == ErrorKind::Full && !self.closing.get() => {
                    if !std::mem::replace(&mut told, true) {
                        tracing::error!("{}: waiting for space: {error}", self.paths.journal().display());
                    }
                    self.io.sleep(FULL_RETRY).await;
                }
                other => return other,
            }
        }
    }

    /// The promises of space here, to be added to where something is staged.
    #[must_use]
    pub fn ledger(&self) -> Ledger {
        self.ledger.clone()
    }

    /// From now on a full disk is not waited for.
    pub fn close(&self) {
        self.closing.set(true);
    }

    /// Makes sure that so many more bytes have space for as long as the promise is kept.
    ///
    /// # Errors
    /// `Full`, `Io`; nothing was pushed and nothing latches.
    pub async fn reserve(&self, bytes: u64) -> Result<Room> {
        let room = self.ledger.room(bytes);
        self.ensure().await?;
        Ok(room)
    }

    /// Whether so many more bytes have space at this moment.
    pub fn has_room(&self, bytes: u64) -> bool {
        let inner = self.inner.borrow();
        let need = inner.end + inner.queued + self.ledger.promised() + bytes + SLACK_BYTES;
        need <= inner.allocated && !self.held.get()
    }

    /// Makes sure that all that was promised has space, and the slack.
    ///
    /// # Errors
    /// As for [`Self::reserve`].
    pub async fn ensure(&self) -> Result<()> {
        loop {
            let (file, from, need) = {
                if self.has_room(0) {
                    return Ok(());
                }
                let inner = self.inner.borrow();
                let need = inner.end + inner.queued + self.ledger.promised() + SLACK_BYTES;
                (inner.file, inner.allocated, need)
            };
            if let Some(error) = self.failure() {
                return Err(error);
            }
            // A new file that is about to be in force has space for what is promised now,
            // and not for more.
            if self.held.get() || self.allocating.get() {
                self.event.wait().await;
                continue;
            }
            self.allocating.set(true);
            let result = allocate(&self.io, file, from, need, self.step).await;
            self.allocating.set(false);
            self.event.notify();
            let allocated = result.map_err(|e| e.context("journal"))?;
            let mut inner = self.inner.borrow_mut();
            if inner.file == file {
                inner.allocated = inner.allocated.max(allocated);
            }
        }
    }

    /// Makes sure that a command's small record has space, if only from the slack.
    ///
    /// # Errors
    /// `Full`, `Io`.
    pub async fn ensure_for_command(&self) -> Result<()> {
        let Err(error) = self.ensure().await else { return Ok(()) };
        let inner = self.inner.borrow();
        let need = inner.end + inner.queued + self.ledger.promised() + COMMAND_BYTES;
        if error.kind() == ErrorKind::Full && need <= inner.allocated { Ok(()) } else { Err(error) }
    }

    /// From now on, what is pushed also goes to the file that [`Self::rotate`] makes.
    /// Everything pushed so far must be part of the state given there. Returns the number
    /// of that state; the two after it are set aside for the boot and for what is staged.
    pub fn cut(&self) -> Seq {
        let state = self.take_seq();
        self.take_seq();
        let images = self.take_seq();
        let mut inner = self.inner.borrow_mut();
        inner.carry = Some(Vec::new());
        inner.cut = images;
        state
    }

    /// Gives up a rotation that was cut.
    pub fn uncut(&self) {
        self.inner.borrow_mut().carry = None;
    }

    /// Begins a new file with `state` as of the cut, `images` of what was staged then,
    /// and what was written since.
    ///
    /// # Errors
    /// `Io`, `Full`; the old file stays in force.
    pub async fn rotate(&self, state: (Seq, Record), images: Vec<AfterImage>) -> Result<()> {
        let number = self.inner.borrow().number + 1;
        let result = match self.drain(state.0).await {
            Ok(()) => self.write_new(number, &state, images).await,
            Err(error) => Err(error),
        };
        self.held.set(false);
        self.inner.borrow_mut().carry = None;
        self.event.notify();
        result?;
        let header = FileHeader { volume: self.volume, number };
        let copied = journal_copy::write(&self.io, &self.paths, header, (state.0, &state.1)).await;
        if let Err(error) = copied {
            tracing::warn!(
                "{}: the journal's state has no second copy: {error}",
                self.paths.journal().display()
            );
        }
        Ok(())
    }

    /// Writes what was pushed before that number to the file in force: it is part of the
    /// state, and must not come after it in the new file.
    async fn drain(&self, before: Seq) -> Result<()> {
        loop {
            {
                let inner = self.inner.borrow();
                if let Some(error) = &inner.failed {
                    return Err(error.duplicate());
                }
                if !self.writing.get() && inner.queue.first().is_none_or(|(seq, _)| *seq >= before) {
                    return Ok(());
                }
            }
            if self.writing.get() {
                self.event.wait().await;
            } else {
                self.write_queue().await;
            }
        }
    }

    async fn write_new(&self, number: u64, state: &(Seq, Record), images: Vec<AfterImage>) -> Result<()> {
        let path = self.paths.journal_new();
        let file = self.io.open(&path, OpenHow::CreateEmpty).await?;
        let mut out = NewFile { io: &self.io, file, number, end: 0 };
        let allocated = match self.fill_new(&mut out, state, images).await {
            Ok(allocated) => allocated,
            Err(error) => {
                self.io.close(file);
                // It may be what fills the disk; the next attempt begins with an empty one.
                let _ = self.io.remove(&path).await;
                return Err(error);
            }
        };
        let renamed = async {
            self.io.rename(&path, &self.paths.journal()).await?;
            self.io.sync_dir(&self.paths.0).await
        };
        if let Err(error) = renamed.await {
            // Nobody knows which of the two files the next open finds.
            self.inner.borrow_mut().failed = Some(error.duplicate().context("journal"));
            return Err(error);
        }
        let old = {
            let mut inner = self.inner.borrow_mut();
            let old = std::mem::replace(&mut inner.file, file);
            inner.number = number;
            inner.end = out.end;
            inner.allocated = allocated;
            inner.completed = out.end;
            inner.durable = out.end;
            old
        };
        self.syncer.replace(file);
        self.io.close(old);
        Ok(())
    }

    /// Writes all that a new file begins with and makes it durable; from its last part on
    /// nothing else is written. Returns up to where it is allocated.
    async fn fill_new(
        &self,
        out: &mut NewFile<'_>,
        state: &(Seq, Record),
        images: Vec<AfterImage>,
    ) -> Result<u64> {
        let (volume, number) = (self.volume, out.number);
        out.raw(vec![Bytes::from(FileHeader { volume, number }.encode())]).await?;
        out.record(state.0, &state.1).await?;
        // Without it the next open could not tell whether it is in the same boot.
        out.record(state.0.next(), &Record::Open { boot: self.io.boot_id() }).await?;
        out.images(state.0, images).await?;
        let carried = self.inner.borrow_mut().carry.replace(Vec::new()).unwrap_or_default();
        out.records(&carried).await?;
        self.io.sync(out.file).await?;
        // From here on nothing else is written until the new file is in force.
        self.held.set(true);
        while self.writing.get() {
            self.event.wait().await;
        }
        let carried = self.inner.borrow_mut().carry.take().unwrap_or_default();
        out.records(&carried).await?;
        let need = out.end + self.inner.borrow().queued + self.ledger.promised() + SLACK_BYTES;
        let allocated = allocate(&self.io, out.file, out.end, need, self.step).await?;
        self.io.sync(out.file).await?;
        Ok(allocated)
    }

    /// Whether the second copy of the state is that of the file in force. It is renamed into its
    /// place as a whole, so its header stands for all of it.
    pub async fn has_second_copy(&self) -> bool {
        let number = self.inner.borrow().number;
        let header = FileHeader { volume: self.volume, number };
        journal_copy::header(&self.io, &self.paths.journal_copy()).await.is_ok_and(|copy| copy == header)
    }

    /// The record that ends a good order is durable, and was the last one.
    pub async fn closed(&self, seq: Seq) {
        let (number, end) = {
            let inner = self.inner.borrow();
            (inner.number, inner.end)
        };
        if let Err(error) = journal_copy::closed(&self.io, &self.paths, number, seq, end).await {
            tracing::warn!("{}: {error}", self.paths.journal_copy().display());
        }
    }

    /// Reads the file in force again and checks every frame that was written. The caller
    /// keeps rotations away.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub async fn verify(&self) -> Result<super::replay::Replay> {
        let (file, end) = {
            let inner = self.inner.borrow();
            (inner.file, inner.completed)
        };
        match super::replay::read_below(&self.io, file, end).await? {
            found if found.end == end => Ok(found),
            found => Err(Error::corrupt(format!("the record at offset {} is damaged", found.end))),
        }
    }

    /// Why nothing can be appended any more, if so.
    pub fn failure(&self) -> Option<Error> {
        let failed = self.inner.borrow().failed.as_ref().map(Error::duplicate);
        failed.or_else(|| self.syncer.failure())
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.io.close(self.inner.borrow().file);
    }
}

/// Writes a first journal: `state` and nothing else. The caller syncs the directory.
///
/// # Errors
/// `Io`, `Full`.
pub async fn create(io: &Io, paths: &VolumePaths, volume: Uuid, state: &Record) -> Result<()> {
    let file = io.open(&paths.journal(), OpenHow::CreateNew).await?;
    let mut out = NewFile { io, file, number: 1, end: 0 };
    out.raw(vec![Bytes::from(FileHeader { volume, number: 1 }.encode())]).await?;
    out.record(Seq(1), state).await?;
    out.record(Seq(2), &Record::Close).await?;
    io.sync(file).await?;
    io.close(file);
    journal_copy::write(io, paths, FileHeader { volume, number: 1 }, (Seq(1), state)).await
}

/// A journal file that nobody else writes yet.
struct NewFile<'a> {
    io: &'a Io,
    file: FileId,
    number: u64,
    end: u64,
}

impl NewFile<'_> {
    async fn raw(&mut self, data: Vec<Bytes>) -> Result<()> {
        let len = total(&data);
        self.io.write_all(self.file, self.end, data).await?;
        self.end += len;
        Ok(())
    }

    async fn record(&mut self, seq: Seq, record: &Record) -> Result<()> {
        self.raw(encode_frame(self.number, Frame { seq, durable: 0 }, record)).await
    }

    async fn records(&mut self, records: &[(Seq, Record)]) -> Result<()> {
        for part in records.chunks(256) {
            let mut frames = Vec::new();
            for (seq, record) in part {
                frames.extend(encode_frame(self.number, Frame { seq: *seq, durable: 0 }, record));
            }
            self.raw(frames).await?;
        }
        Ok(())
    }

    /// One record, under the number that was set aside at the cut.
    async fn images(&mut self, state: Seq, images: Vec<AfterImage>) -> Result<()> {
        if images.is_empty() {
            return Ok(());
        }
        let total: usize = images.iter().map(|i| i.data.len()).sum();
        assert!(total <= crate::format::journal::PAYLOAD_SIZE_MAX / 2, "the stage fits one record");
        self.record(state.next().next(), &Record::AfterImages(images)).await
    }
}

/// Allocates a file from `from` to at least `need`; returns up to where. Where there is no
/// space for a whole step, what is needed is enough.
async fn allocate(io: &Io, file: FileId, from: u64, need: u64, step: u64) -> Result<u64> {
    let generous = need.next_multiple_of(step) + step;
    match io.allocate(file, from, generous - from).await {
        Err(error) if error.kind() == ErrorKind::Full => {}
        other => return other.map(|()| generous),
    }
    let exact = need.next_multiple_of(4096);
    io.allocate(file, from, exact - from).await.map(|()| exact)
}

fn total(data: &[Bytes]) -> u64 {
    data.iter().map(|d| d.len() as u64).sum()
}
