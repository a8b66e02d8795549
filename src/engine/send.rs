//! Sending: an engine reads a snapshot or a delta in batches; whoever makes the stream of
//! them asks for one after the other.

use super::api::{SendRequest, TransferInfo};
use super::resync::unite;
use super::sets::{Diverged, OwnChanges};
use super::thread::{Engine, Handle};
use super::volumes::rfc3339;
use crate::delta::sender::Source;
use crate::delta::token::ResumeToken;
use crate::delta::{Extent, ExtentKind, SnapshotId, StreamHeader};
use crate::error::{Error, Result};
use crate::format::state::BookmarkRecord;
use crate::snapshot::{Delta, DeltaRun, Piece, SnapshotReader, Volume};
use crate::types::Geometry;
use bytes::{Bytes, BytesMut};
use futures::FutureExt;
use futures::future::{LocalBoxFuture, join_all};
use slab::Slab;
use std::cell::RefCell;
use std::rc::Rc;
use uuid::Uuid;

/// Bytes read in one batch, about.
const BATCH_BYTES: u64 = 2 << 20;
/// Extents in one batch, at most.
const BATCH_EXTENTS: usize = 4096;

/// What a delta starts from.
enum Base {
    /// A snapshot, which stays as long as this does.
    Snapshot(SnapshotReader),
    /// What is left of one; nothing of it is needed once the delta is computed.
    Bookmark(BookmarkRecord),
}

impl Base {
    fn uuid(&self) -> Uuid {
        match self {
            Self::Snapshot(reader) => reader.uuid(),
            Self::Bookmark(record) => record.uuid,
        }
    }

    fn size(&self) -> u64 {
        match self {
            Self::Snapshot(reader) => reader.size(),
            Self::Bookmark(record) => record.size,
        }
    }

    fn id(&self) -> SnapshotId {
        let name = match self {
            Self::Snapshot(reader) => reader.name().to_owned(),
            Self::Bookmark(record) => record.name.clone(),
        };
        SnapshotId { uuid: self.uuid(), name }
    }
}

/// The sends under way on an engine.
#[derive(Default)]
pub(super) struct Sends(RefCell<Slab<Rc<Sending>>>);

struct Sending {
    target: SnapshotReader,
    _base: Option<Base>,
    delta: Delta,
    volume: String,
    sent: RefCell<u64>,
    total: u64,
}

impl Sends {
    /// For `status`.
    pub fn transfers(&self) -> Vec<TransferInfo> {
        let list = self.0.borrow();
        list.iter()
            .map(|(_, s)| TransferInfo {
                kind: "send".to_owned(),
                volume: s.volume.clone(),
                snapshot: s.target.name().to_owned(),
                data_bytes: *s.sent.borrow(),
                total_bytes: Some(s.total),
            })
            .collect()
    }
}

/// The source of a stream, on whatever thread makes it.
pub(crate) struct EngineSource {
    engine: Handle,
    number: usize,
    header: StreamHeader,
    cursor: u64,
}

impl Drop for EngineSource {
    fn drop(&mut self) {
        let number = self.number;
        drop(self.engine.call(move |engine| async move {
            engine.sends.0.borrow_mut().try_remove(number);
            Ok(())
        }));
    }
}

/// Opens the snapshots, computes the delta, and makes a source of it.
pub(super) async fn open(engine: Handle, request: &SendRequest) -> Result<EngineSource> {
    let asked = request.clone();
    let (number, header) = engine.call(move |engine| async move { begin(&engine, &asked).await }).await?;
    Ok(EngineSource { engine, number, cursor: header.resume_from, header })
}

/// The same of snapshots by identity, internal ones too, and from bookmarks; not compressed.
pub(super) async fn open_by_id(
    engine: Handle,
    volume: &str,
    base: Option<Uuid>,
    target: Uuid,
    resume: Option<String>,
    own: Option<OwnChanges>,
) -> Result<EngineSource> {
    let volume = volume.to_owned();
    let begun = engine.call(move |engine| async move {
        let volume = engine.volume(&volume)?;
        let target = volume.open_snapshot_by_id(target)?;
        let base = match base.map(|base| (base, volume.bookmark(base))) {
            None => None,
            Some((_, Some(bookmark))) => Some(Base::Bookmark(bookmark)),
            Some((base, None)) => Some(Base::Snapshot(volume.open_snapshot_by_id(base)?)),
        };
        begin_between(&engine, &volume, base, target, resume.as_deref(), false, own).await
    });
    let (number, header) = begun.await?;
    Ok(EngineSource { engine, number, cursor: header.resume_from, header })
}

async fn begin(engine: &Engine, request: &SendRequest) -> Result<(usize, StreamHeader)> {
    let volume = engine.volume(&request.volume)?;
    let target = volume.open_snapshot(&request.snapshot)?;
    let base = request.from.as_ref().map(|name| volume.open_snapshot(name)).transpose()?;
    let base = base.map(Base::Snapshot);
    begin_between(engine, &volume, base, target, request.resume.as_deref(), request.compress, None).await
}

async fn begin_between(
    engine: &Engine,
    volume: &Rc<Volume>,
    base: Option<Base>,
    target: SnapshotReader,
    resume: Option<&str>,
    compressed: bool,
    own: Option<OwnChanges>,
) -> Result<(usize, StreamHeader)> {
    let common = base.as_ref().map(Base::uuid);
    let (base_id, base_size) = match (&own, &base) {
        // The receiver has the common state and changes of its own above it.
        (Some(own), _) => {
            let Diverged { shown, size, .. } = own.diverged;
            (Some(SnapshotId { uuid: shown, name: "diverged".to_owned() }), size)
        }
        (None, Some(base)) => (Some(base.id()), base.size()),
        (None, None) => (None, 0),
    };
    let base_uuid = base_id.as_ref().map(|base| base.uuid);
    let resume_from = match resume {
        Some(text) => {
            let token: ResumeToken = text.parse()?;
            token.check(target.uuid(), base_uuid)?;
            token.durable
        }
        None => 0,
    };
    let mut delta = volume.delta_between(common, Some(target.uuid())).await?;
    if let Some(own) = &own {
        unite(volume, &mut delta, target.uuid(), &own.ranges).await?;
    }
    let (mut data_bytes, mut discard_bytes) = (0, 0);
    if resume_from == 0 {
        (data_bytes, discard_bytes) = delta.totals();
    } else {
        for run in delta.runs(resume_from..delta.size) {
            let total = if run.discard { &mut discard_bytes } else { &mut data_bytes };
            *total += run.bytes.end - run.bytes.start;
        }
    }
    let created = rfc3339(target.created_us());
    let geometry = volume.geometry();
    let header = StreamHeader {
        stream: engine.io.identity(),
        volume: volume.uuid(),
        volume_name: volume.name(),
        base: base_id,
        base_size,
        target: SnapshotId { uuid: target.uuid(), name: target.name().to_owned() },
        created,
        geometry: Geometry { size: target.size(), ..geometry },
        resume_from,
        data_bytes: Some(data_bytes),
        discard_bytes: Some(discard_bytes),
        compressed,
    };
    let sending = Sending {
        target,
        _base: base,
        delta,
        volume: volume.name(),
        sent: RefCell::new(0),
        total: data_bytes,
    };
    Ok((engine.sends.0.borrow_mut().insert(Rc::new(sending)), header))
}

/// Reads the next batch of extents from `cursor` on.
async fn fetch(engine: &Engine, number: usize, cursor: u64) -> Result<Vec<(Extent, Bytes)>> {
    let sending = engine.sends.0.borrow().get(number).map(Rc::clone);
    let sending = sending.ok_or_else(|| Error::invalid("that transfer has ended"))?;
    let mut runs: Vec<DeltaRun> = Vec::new();
    let mut bytes = 0;
    for mut run in sending.delta.runs(cursor..sending.delta.size).take(BATCH_EXTENTS) {
        if !run.discard {
            run.bytes.end = run.bytes.end.min(run.bytes.start + (BATCH_BYTES - bytes));
            bytes += run.bytes.end - run.bytes.start;
        }
        runs.push(run);
        if bytes >= BATCH_BYTES {
            break;
        }
    }
    let reads = runs.into_iter().map(|run| {
        let sending = Rc::clone(&sending);
        async move {
            let len = run.bytes.end - run.bytes.start;
            let kind = if run.discard { ExtentKind::Discard } else { ExtentKind::Data };
            let extent = Extent { offset: run.bytes.start, len, kind };
            if run.discard {
                return Ok((extent, Bytes::new()));
            }
            let pieces = sending.target.read(extent.offset, len).await?;
            *sending.sent.borrow_mut() += len;
            Ok((extent, join(pieces)))
        }
    });
    join_all(reads).await.into_iter().collect()
}

fn join(mut pieces: Vec<Piece>) -> Bytes {
    if let [Piece::Data(_)] = &pieces[..]
        && let Some(Piece::Data(data)) = pieces.pop()
    {
        return data;
    }
    let mut all = BytesMut::new();
    for piece in pieces {
        match piece {
            Piece::Data(data) => all.extend_from_slice(&data),
            Piece::Hole(len) => all.resize(all.len() + usize::try_from(len).unwrap_or(0), 0),
        }
    }
    all.freeze()
}

impl Source for EngineSource {
    fn header(&self) -> &StreamHeader {
        &self.header
    }

    fn next_extents(&mut self) -> LocalBoxFuture<'_, Result<Vec<(Extent, Bytes)>>> {
        async move {
            let (number, cursor) = (self.number, self.cursor);
            let batch = self.engine.call(move |engine| async move { fetch(&engine, number, cursor).await });
            let batch = batch.await?;
            if let Some((extent, _)) = batch.last() {
                self.cursor = extent.end();
            }
            Ok(batch)
        }
        .boxed_local()
    }
}
