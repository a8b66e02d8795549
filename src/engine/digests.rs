//! Digests of a snapshot: an engine reads it chunk by chunk and has the bytes hashed beside
//! its thread. Whoever compares asks for a part at a time, so nothing is read ahead of them.
//!
//! Between two questions the snapshot is kept open for the comparison: until that says it is
//! done, or, since its process may be gone, has asked nothing for a while.

use super::core::Core;
use super::thread::Engine;
use crate::delta::digest::{Answer, BlockOf, CHUNK, Content, Found, Grain, Question, Span, spans_of};
use crate::error::{Error, Result};
use crate::snapshot::{Piece, Readable, SnapshotReader, is_damage};
use bytes::BytesMut;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;
use uuid::Uuid;

/// How long a comparison may be silent before its snapshot is closed.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// Bytes in use of which one answer tells, about.
const ANSWER_BYTES: u64 = 64 << 20;
/// Bytes read at once.
const BATCH_BYTES: u64 = 2 << 20;
/// Bytes whose allocation is looked up at once.
const WINDOW: u64 = 32 * CHUNK;
/// Windows that one answer goes through, at most: those where nothing is in use are quick.
const WINDOWS_MAX: u64 = 8192;

/// The snapshots that an engine keeps open for comparisons, and the volumes whose cuts do not
/// shrink to bookmarks meanwhile.
#[derive(Default)]
pub(super) struct Comparisons(RefCell<BTreeMap<Uuid, Rc<Open>>>, RefCell<BTreeMap<Uuid, Kept>>);

/// A volume whose cuts stay readable for a comparison.
struct Kept {
    _readable: Readable,
    /// It was asked for again since somebody last looked.
    asked: bool,
}

struct Open {
    reader: SnapshotReader,
    /// Something was asked since somebody last looked.
    asked: Cell<bool>,
}

impl Comparisons {
    /// The snapshot that a comparison is about, open from now on.
    fn open(&self, engine: &Rc<Engine>, comparison: Uuid, volume: &str, snapshot: Uuid) -> Result<Rc<Open>> {
        let volume = engine.volume(volume)?;
        let known = self.0.borrow().get(&comparison).cloned();
        let is_it =
            |open: &Rc<Open>| open.reader.uuid() == snapshot && Rc::ptr_eq(open.reader.volume(), &volume);
        if let Some(open) = known.as_ref().filter(|open| is_it(open)) {
            open.asked.set(true);
            return Ok(Rc::clone(open));
        }
        let reader = volume.open_snapshot_by_id(snapshot)?;
        let open = Rc::new(Open { reader, asked: Cell::new(true) });
        self.0.borrow_mut().insert(comparison, Rc::clone(&open));
        if known.is_none() {
            let io = engine.io.clone();
            let engine = Rc::downgrade(engine);
            io.clone().spawn(async move {
                loop {
                    io.sleep(SILENCE_MAX).await;
                    let Some(engine) = engine.upgrade() else { return };
                    let open = engine.comparisons.0.borrow().get(&comparison).cloned();
                    match open {
                        Some(open) if open.asked.replace(false) => {}
                        _ => return drop(engine.comparisons.0.borrow_mut().remove(&comparison)),
                    }
                }
            });
        }
        Ok(open)
    }
}

/// Keeps the cuts of a volume readable until nobody asks for it any more.
fn keep(engine: &Rc<Engine>, volume: &str, comparison: Uuid) -> Result<()> {
    let kept = Kept { _readable: engine.volume(volume)?.keep_readable(), asked: true };
    if engine.comparisons.1.borrow_mut().insert(comparison, kept).is_some() {
        return Ok(());
    }
    let io = engine.io.clone();
    let engine = Rc::downgrade(engine);
    io.clone().spawn(async move {
        loop {
            io.sleep(SILENCE_MAX).await;
            let Some(engine) = engine.upgrade() else { return };
            let mut all = engine.comparisons.1.borrow_mut();
            let asked = all.get_mut(&comparison).is_some_and(|kept| std::mem::take(&mut kept.asked));
            if !asked {
                return drop(all.remove(&comparison));
            }
        }
    });
    Ok(())
}

impl Core {
    /// For a comparison, cuts of a volume do not shrink to bookmarks: what every receiver has
    /// can be read. It has to be said again before a minute is over.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn keep_readable(&self, volume: &str, comparison: Uuid) -> Result<()> {
        let name = volume.to_owned();
        self.on_engine(volume, move |engine, _| async move { keep(&engine, &name, comparison) }).await
    }

    /// Whether somebody wants that.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn is_kept_readable(&self, volume: &str) -> Result<bool> {
        self.with(volume, |volume| async move { Ok(volume.is_kept_readable()) }).await
    }

    /// A comparison is done with a volume. What was kept readable for it is so no longer.
    pub async fn end_digests(&self, volume: &str, comparison: Uuid) -> Result<()> {
        let ended = self.on_engine(volume, move |engine, _| async move {
            drop(engine.comparisons.0.borrow_mut().remove(&comparison));
            let kept = engine.comparisons.1.borrow_mut().remove(&comparison);
            Ok(kept.is_some())
        });
        if ended.await? { self.prune_sent(volume).await } else { Ok(()) }
    }

    /// The content of a block of the snapshot that a comparison is about; none: it is damaged.
    pub async fn content(&self, of: BlockOf) -> Result<Option<Content>> {
        let volume = of.volume.clone();
        self.on_engine(&volume, move |engine, _| async move { content(&engine, &of).await }).await
    }

    /// Puts a damaged block of that snapshot right; false: nothing proves that it had this
    /// content.
    pub async fn restore(&self, of: BlockOf, content: Content) -> Result<bool> {
        let volume = of.volume.clone();
        self.on_engine(&volume, move |engine, _| async move {
            let open = engine.comparisons.open(&engine, of.comparison, &of.volume, of.snapshot)?;
            open.reader.restore_block(of.at, &content.0).await
        })
        .await
    }

    /// The digests of a range of a snapshot, or of as much of it as one answer has.
    pub async fn digests(&self, question: &Question) -> Result<Answer> {
        let asked = question.clone();
        self.on_engine(&question.volume, |engine, _| async move { answer(&engine, &asked).await }).await
    }
}

/// The content of a block; none: it is damaged.
async fn content(engine: &Rc<Engine>, of: &BlockOf) -> Result<Option<Content>> {
    let open = engine.comparisons.open(engine, of.comparison, &of.volume, of.snapshot)?;
    let size = u64::from(open.reader.volume().geometry().block_size);
    let len = size.min(open.reader.size().saturating_sub(of.at));
    let pieces = match open.reader.read(of.at, len).await {
        Err(error) if is_damage(&error) => return Ok(None),
        pieces => pieces?,
    };
    let mut bytes = BytesMut::new();
    for piece in pieces {
        match piece {
            Piece::Data(data) => bytes.extend_from_slice(&data),
            Piece::Hole(len) => bytes.resize(bytes.len() + usize::try_from(len).unwrap_or(0), 0),
        }
    }
    Ok(Some(Content(bytes.freeze())))
}

async fn answer(engine: &Rc<Engine>, question: &Question) -> Result<Answer> {
    if !question.from.is_multiple_of(CHUNK) {
        return Err(Error::invalid("digests are of whole chunks"));
    }
    let open = engine.comparisons.open(engine, question.comparison, &question.volume, question.snapshot)?;
    let reader = &open.reader;
    let block_size = reader.volume().geometry().block_size;
    let end = question.to.min(reader.size());
    let mut answer = Answer {
        name: reader.name().to_owned(),
        size: reader.size(),
        block_size,
        reached: question.from.min(end),
        spans: Vec::new(),
    };
    let (mut work, mut windows) = (0, 0);
    while answer.reached < end && work < ANSWER_BYTES && windows < WINDOWS_MAX {
        let window = answer.reached..(answer.reached + WINDOW).min(end);
        let used = used_in(reader, window.clone()).await?;
        let mut at = window.start;
        while at < window.end && work < ANSWER_BYTES {
            let chunk = at..(at + CHUNK).min(window.end);
            // Not one step a chunk where nothing is in use.
            let Some(next) = used.iter().find(|run| run.end > at) else {
                at = window.end;
                break;
            };
            if next.start >= chunk.end {
                at = next.start / CHUNK * CHUNK;
                continue;
            }
            let (in_use, spans) = digest(engine, reader, &chunk, &used, question.by).await?;
            answer.spans.extend(spans);
            work += in_use;
            at = chunk.end;
        }
        answer.reached = at;
        windows += 1;
        engine.io.step_aside().await;
    }
    Ok(answer)
}

/// The runs of a range that are in use.
async fn used_in(reader: &SnapshotReader, bytes: Range<u64>) -> Result<Vec<Range<u64>>> {
    let mut at = bytes.start;
    let mut used = Vec::new();
    for (len, in_use) in reader.allocation(bytes.start, bytes.end - bytes.start).await? {
        if in_use {
            used.push(at..at + len);
        }
        at += len;
    }
    Ok(used)
}

/// Bytes in use of a chunk, and its spans.
async fn digest(
    engine: &Engine,
    reader: &SnapshotReader,
    chunk: &Range<u64>,
    used: &[Range<u64>],
    by: Grain,
) -> Result<(u64, Vec<Span>)> {
    let (mut in_use, mut found) = (0, Vec::new());
    let block_size = reader.volume().geometry().block_size;
    for run in used {
        let mut at = run.start.max(chunk.start);
        let end = run.end.min(chunk.end);
        while at < end {
            let stop = (at + BATCH_BYTES).min(end);
            read(reader, at..stop, u64::from(block_size), &mut found).await?;
            in_use += stop - at;
            at = stop;
        }
    }
    let at = chunk.start;
    let spans = engine.io.compute(move || spans_of(at, in_use, &found, block_size as usize, by)).await?;
    Ok((in_use, spans))
}

/// Reads a run of whole blocks; where that meets damage, block by block.
async fn read(reader: &SnapshotReader, run: Range<u64>, block: u64, found: &mut Vec<Found>) -> Result<()> {
    match reader.read(run.start, run.end - run.start).await {
        Ok(pieces) => add(run.start, pieces, found),
        Err(error) if !is_damage(&error) => return Err(error),
        Err(_) => {
            let mut at = run.start;
            while at < run.end {
                let stop = (at + block).min(run.end);
                match reader.read(at, stop - at).await {
                    Ok(pieces) => add(at, pieces, found),
                    Err(error) if is_damage(&error) => found.push(Found::Damaged(at)),
                    Err(error) => return Err(error),
                }
                at = stop;
            }
        }
    }
    Ok(())
}

fn add(mut at: u64, pieces: Vec<Piece>, found: &mut Vec<Found>) {
    for piece in pieces {
        let len = piece.len();
        if let Piece::Data(data) = piece {
            found.push(Found::Data(at, data));
        }
        at += len;
    }
}
