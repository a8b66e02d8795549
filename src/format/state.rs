//! What a volume's journal amounts to: configuration, snapshot queue, layers,
//! segments and long operations under way. The first record of every journal file is
//! one whole [`VolumeState`]; later records change it.

use super::codec::{Fields, Put};
use super::roles::RoleState;
use crate::error::{Error, Result};
use crate::types::{Epoch, Geometry, OnFull, Role, RoleEpoch, Seq, SetStamp};
use std::collections::BTreeMap;
use uuid::Uuid;

/// Bytes of a snapshot without name and holds: a larger bound refuses good states.
const SNAPSHOT_SIZE_MIN: usize = 57;
/// Bytes of a bookmark without name and base.
const BOOKMARK_SIZE_MIN: usize = 94;
/// Role epochs that a volume remembers.
pub const LINEAGE_MAX: usize = 64;

/// A snapshot in the queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotRecord {
    /// Its identity, the same on every store.
    pub uuid: Uuid,
    /// Its name; internal ones begin with `_`.
    pub name: String,
    /// When it was taken, in microseconds since 1970.
    pub created_us: u64,
    /// Its map is all groups from this epoch up to that of the next one.
    pub epoch: Epoch,
    /// Bytes of the volume then.
    pub size: u64,
    /// Granules in use then.
    pub in_use: u64,
    /// Tags that keep it.
    pub holds: Vec<String>,
    /// A session took it or received it.
    pub set: Option<SetStamp>,
}

impl SnapshotRecord {
    /// Whether users don't see it.
    #[must_use]
    pub fn is_internal(&self) -> bool {
        self.name.starts_with('_')
    }
}

/// A sealed layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerRecord {
    /// The first epoch that it covers; also the name of its file.
    pub first: Epoch,
    /// The epoch after the last one that it covers.
    pub end: Epoch,
    /// Before-images in it.
    pub entries: u64,
    /// Before-images by segment.
    pub live: Vec<(u32, u64)>,
    /// Tells apart files that cover the same epochs.
    pub version: u64,
    /// Before-pages in it, which its second file has too.
    pub pages: u32,
}

/// A segment of the save volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentRecord {
    /// Raised at each reuse; groups of another generation are ignored.
    pub generation: u64,
    /// Groups below this offset are known to be durable.
    pub mark: u64,
    /// The epoch of the youngest group, once no more are appended.
    pub closed: Option<Epoch>,
}

/// A receive under way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReceiveRecord {
    /// The identity of the snapshot to come.
    pub target: Uuid,
    /// Its name.
    pub name: String,
    /// When it was taken at its origin, in microseconds since 1970.
    pub created_us: u64,
    /// Its size in bytes.
    pub size: u64,
    /// The base's identity; none for a whole stream.
    pub base: Option<Uuid>,
    /// The snapshot that holds the state from before: the base or a hidden one.
    pub before: Option<Uuid>,
    /// All bytes of the stream below this offset are durable.
    pub durable: u64,
    /// An abort was asked for: the state from before is being restored.
    pub aborting: bool,
    /// All of it is here and verified; it waits for what is to be committed with it.
    pub arrived: bool,
    /// It comes from a session.
    pub set: Option<SetStamp>,
    /// When it began, in microseconds since 1970, by the clock here.
    pub begun_us: u64,
}

/// What is left of a cut that is no snapshot any more: no before-images, so it can't be read,
/// but what has changed since is known, so it can be the base of a delta.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BookmarkRecord {
    /// The identity that it had as a snapshot.
    pub uuid: Uuid,
    /// The name that it had.
    pub name: String,
    /// When it was taken, in microseconds since 1970.
    pub created_us: u64,
    /// The epoch that it began.
    pub epoch: Epoch,
    /// Bytes of the volume then.
    pub size: u64,
    /// The set that it ended.
    pub set: SetStamp,
}

impl BookmarkRecord {
    /// What is remembered of a snapshot; only of those that sessions took or received.
    #[must_use]
    pub fn of(snapshot: &SnapshotRecord) -> Option<Self> {
        Some(Self {
            uuid: snapshot.uuid,
            name: snapshot.name.clone(),
            created_us: snapshot.created_us,
            epoch: snapshot.epoch,
            size: snapshot.size,
            set: snapshot.set?,
        })
    }
}

/// Where the journal's state has what was touched since a mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TouchedRecord {
    /// The epoch of the mark.
    pub mark: Epoch,
    /// The number in the file's name; 0: there is no file, and everything counts as touched.
    pub file: u64,
}

/// The checkpoint that a journal starts from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CheckpointRecord {
    /// 0: there is none; 1: `meta-A`; 2: `meta-B`.
    pub file: u8,
    /// Its generation, which must be the file's.
    pub seq: Seq,
    /// Whether the file `tail-N` holds the tail's meta before-pages up to then.
    pub tail_pages: bool,
}

/// Everything small about a volume that must be durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeState {
    /// The volume's identity.
    pub uuid: Uuid,
    /// Its size and how it is cut.
    pub geometry: Geometry,
    /// What happens when space runs out.
    pub on_full: OnFull,
    /// Who may change it.
    pub role: Role,
    /// The next change's number when this state was written.
    pub seq: Seq,
    /// The youngest epoch in use.
    pub epoch: Epoch,
    /// Groups of an epoch from here on are in no sealed layer.
    pub unsealed: Epoch,
    /// Where the meta bit map starts from.
    pub checkpoint: CheckpointRecord,
    /// Oldest first.
    pub snapshots: Vec<SnapshotRecord>,
    /// By first epoch.
    pub layers: Vec<LayerRecord>,
    /// By number.
    pub segments: BTreeMap<u32, SegmentRecord>,
    /// The snapshot that production is being rolled back to.
    pub rollback: Option<Uuid>,
    /// The receive under way.
    pub receive: Option<ReceiveRecord>,
    /// The role epochs that led to the present one, which is the last; empty while no session
    /// ever was.
    pub lineage: Vec<RoleEpoch>,
    /// The number of the youngest cut that this volume took or received.
    pub last_cut: u64,
    /// Cuts that are remembered and can't be read any more, oldest first.
    pub bookmarks: Vec<BookmarkRecord>,
    /// What was touched since each mark up to the checkpoint, oldest first.
    pub touched: Vec<TouchedRecord>,
    /// First block and count of regions in which anything may have been touched since.
    pub active: Vec<(u64, u64)>,
    /// What turns have left.
    pub roles: RoleState,
}

impl VolumeState {
    /// A new, empty volume.
    #[must_use]
    pub fn new(uuid: Uuid, geometry: Geometry, on_full: OnFull, role: Role) -> Self {
        Self {
            uuid,
            geometry,
            on_full,
            role,
            seq: Seq(1),
            epoch: Epoch(1),
            unsealed: Epoch(1),
            checkpoint: CheckpointRecord::default(),
            snapshots: Vec::new(),
            layers: Vec::new(),
            segments: BTreeMap::new(),
            rollback: None,
            receive: None,
            lineage: Vec::new(),
            last_cut: 0,
            bookmarks: Vec::new(),
            touched: Vec::new(),
            active: Vec::new(),
            roles: RoleState::default(),
        }
    }

    /// The snapshot of that identity.
    #[must_use]
    pub fn snapshot(&self, uuid: Uuid) -> Option<&SnapshotRecord> {
        self.snapshots.iter().find(|s| s.uuid == uuid)
    }

    /// The bookmark of that identity.
    #[must_use]
    pub fn bookmark(&self, uuid: Uuid) -> Option<&BookmarkRecord> {
        self.bookmarks.iter().find(|b| b.uuid == uuid)
    }

    /// The epochs of all marks: cuts and what is left of them, sorted.
    #[must_use]
    pub fn marks(&self) -> Vec<Epoch> {
        let cuts = self.snapshots.iter().filter(|s| s.set.is_some()).map(|s| s.epoch);
        let mut marks: Vec<Epoch> = cuts.chain(self.bookmarks.iter().map(|b| b.epoch)).collect();
        marks.sort_unstable();
        marks
    }

    /// The sealed layer of that first epoch.
    #[must_use]
    pub fn layer(&self, first: Epoch) -> Option<&LayerRecord> {
        self.layers.binary_search_by_key(&first, |layer| layer.first).ok().map(|at| &self.layers[at])
    }

    /// The snapshot of that name.
    #[must_use]
    pub fn named(&self, name: &str) -> Option<&SnapshotRecord> {
        self.snapshots.iter().find(|s| s.name == name)
    }

    /// Appends the fields.
    pub fn put(&self, out: &mut Put) {
        out.uuid(self.uuid);
        out.u64(self.geometry.size);
        out.u32(self.geometry.block_size);
        out.u32(self.geometry.granularity);
        out.u8(on_full_code(self.on_full));
        out.u8(role_code(self.role));
        out.u64(self.seq.0);
        out.u64(self.epoch.0);
        out.u64(self.unsealed.0);
        out.u8(self.checkpoint.file);
        out.u64(self.checkpoint.seq.0);
        out.u8(u8::from(self.checkpoint.tail_pages));
        out.count(self.snapshots.len());
        for snapshot in &self.snapshots {
            put_snapshot(out, snapshot);
        }
        out.count(self.layers.len());
        for layer in &self.layers {
            put_layer(out, layer);
        }
        out.count(self.segments.len());
        for (number, segment) in &self.segments {
            out.u32(*number);
            out.u64(segment.generation);
            out.u64(segment.mark);
            out.u8(u8::from(segment.closed.is_some()));
            out.u64(segment.closed.unwrap_or_default().0);
        }
        out.maybe_uuid(self.rollback);
        out.u8(u8::from(self.receive.is_some()));
        if let Some(receive) = &self.receive {
            put_receive(out, receive);
        }
        put_lineage(out, &self.lineage);
        out.u64(self.last_cut);
        out.count(self.bookmarks.len());
        for bookmark in &self.bookmarks {
            put_bookmark(out, bookmark);
        }
        out.count(self.touched.len());
        for touched in &self.touched {
            out.u64(touched.mark.0);
            out.u64(touched.file);
        }
        put_ranges(out, &self.active);
        self.roles.put(out);
    }

    /// Reads what [`Self::put`] wrote.
    ///
    /// # Errors
    /// `Corrupt`.
    pub fn take(from: &mut Fields<'_>) -> Result<Self> {
        let uuid = from.uuid()?;
        let (size, block_size, granularity) = (from.u64()?, from.u32()?, from.u32()?);
        let geometry =
            Geometry::new(size, block_size, granularity).map_err(|e| Error::corrupt(e.to_string()))?;
        let on_full = on_full_from(from.u8()?)?;
        let role = role_from(from.u8()?)?;
        let seq = Seq(from.u64()?);
        let epoch = Epoch(from.u64()?);
        let unsealed = Epoch(from.u64()?);
        let checkpoint =
            CheckpointRecord { file: from.u8()?, seq: Seq(from.u64()?), tail_pages: from.flag()? };
        if checkpoint.file > 2 {
            return Err(Error::corrupt("the checkpoint names no file"));
        }
        let snapshots =
            (0..from.count(SNAPSHOT_SIZE_MIN)?).map(|_| take_snapshot(from)).collect::<Result<_>>()?;
        let layers = (0..from.count(40)?).map(|_| take_layer(from)).collect::<Result<_>>()?;
        let mut segments = BTreeMap::new();
        for _ in 0..from.count(29)? {
            let number = from.u32()?;
            let (generation, mark, closed, epoch) = (from.u64()?, from.u64()?, from.flag()?, from.u64()?);
            segments
                .insert(number, SegmentRecord { generation, mark, closed: closed.then_some(Epoch(epoch)) });
        }
        let rollback = from.maybe_uuid()?;
        let receive = if from.flag()? { Some(take_receive(from)?) } else { None };
        let lineage = take_lineage(from)?;
        let last_cut = from.u64()?;
        let bookmarks =
            (0..from.count(BOOKMARK_SIZE_MIN)?).map(|_| take_bookmark(from)).collect::<Result<_>>()?;
        let touched = (0..from.count(16)?)
            .map(|_| Ok(TouchedRecord { mark: Epoch(from.u64()?), file: from.u64()? }))
            .collect::<Result<_>>()?;
        let active = take_ranges(from)?;
        let roles = RoleState::take(from)?;
        Ok(Self {
            uuid,
            geometry,
            on_full,
            role,
            seq,
            epoch,
            unsealed,
            checkpoint,
            snapshots,
            layers,
            segments,
            rollback,
            receive,
            lineage,
            last_cut,
            bookmarks,
            touched,
            active,
            roles,
        })
    }
}

pub(super) fn on_full_code(value: OnFull) -> u8 {
    match value {
        OnFull::Freeze => 0,
        OnFull::Readonly => 1,
        OnFull::DropOldest => 2,
    }
}

pub(super) fn on_full_from(code: u8) -> Result<OnFull> {
    match code {
        0 => Ok(OnFull::Freeze),
        1 => Ok(OnFull::Readonly),
        2 => Ok(OnFull::DropOldest),
        _ => Err(Error::corrupt(format!("policy {code} is unknown"))),
    }
}

pub(super) fn role_code(value: Role) -> u8 {
    match value {
        Role::Primary => 0,
        Role::Secondary => 1,
    }
}

pub(super) fn role_from(code: u8) -> Result<Role> {
    match code {
        0 => Ok(Role::Primary),
        1 => Ok(Role::Secondary),
        _ => Err(Error::corrupt(format!("role {code} is unknown"))),
    }
}

pub(super) fn put_snapshot(out: &mut Put, snapshot: &SnapshotRecord) {
    out.uuid(snapshot.uuid);
    out.text(&snapshot.name);
    out.u64(snapshot.created_us);
    out.u64(snapshot.epoch.0);
    out.u64(snapshot.size);
    out.u64(snapshot.in_use);
    out.count(snapshot.holds.len());
    for tag in &snapshot.holds {
        out.text(tag);
    }
    put_set(out, snapshot.set);
}

pub(super) fn take_snapshot(from: &mut Fields<'_>) -> Result<SnapshotRecord> {
    Ok(SnapshotRecord {
        uuid: from.uuid()?,
        name: from.text()?,
        created_us: from.u64()?,
        epoch: Epoch(from.u64()?),
        size: from.u64()?,
        in_use: from.u64()?,
        holds: (0..from.count(4)?).map(|_| from.text()).collect::<Result<_>>()?,
        set: take_set(from)?,
    })
}

fn put_bookmark(out: &mut Put, bookmark: &BookmarkRecord) {
    out.uuid(bookmark.uuid);
    out.text(&bookmark.name);
    out.u64(bookmark.created_us);
    out.u64(bookmark.epoch.0);
    out.u64(bookmark.size);
    put_set(out, Some(bookmark.set));
}

fn take_bookmark(from: &mut Fields<'_>) -> Result<BookmarkRecord> {
    Ok(BookmarkRecord {
        uuid: from.uuid()?,
        name: from.text()?,
        created_us: from.u64()?,
        epoch: Epoch(from.u64()?),
        size: from.u64()?,
        set: take_set(from)?.ok_or_else(|| Error::corrupt("a bookmark belongs to no set"))?,
    })
}

pub(super) fn put_ranges(out: &mut Put, ranges: &[(u64, u64)]) {
    out.count(ranges.len());
    for (first, count) in ranges {
        out.u64(*first);
        out.u64(*count);
    }
}

pub(super) fn take_ranges(from: &mut Fields<'_>) -> Result<Vec<(u64, u64)>> {
    (0..from.count(16)?)
        .map(|_| {
            let (start, count) = (from.u64()?, from.u64()?);
            match start.checked_add(count) {
                Some(end) if count > 0 && end <= 1 << 40 => Ok((start, count)),
                _ => Err(Error::corrupt("a range of blocks or granules is outside every volume")),
            }
        })
        .collect()
}

pub(super) fn put_set(out: &mut Put, set: Option<SetStamp>) {
    out.u8(u8::from(set.is_some()));
    if let Some(set) = set {
        put_role_epoch(out, set.epoch);
        out.u64(set.number);
        out.maybe_uuid(set.base);
    }
}

pub(super) fn take_set(from: &mut Fields<'_>) -> Result<Option<SetStamp>> {
    if !from.flag()? {
        return Ok(None);
    }
    Ok(Some(SetStamp { epoch: take_role_epoch(from)?, number: from.u64()?, base: from.maybe_uuid()? }))
}

fn put_role_epoch(out: &mut Put, epoch: RoleEpoch) {
    out.u64(epoch.counter);
    out.uuid(epoch.identity);
}

fn take_role_epoch(from: &mut Fields<'_>) -> Result<RoleEpoch> {
    Ok(RoleEpoch { counter: from.u64()?, identity: from.uuid()? })
}

pub(super) fn put_lineage(out: &mut Put, lineage: &[RoleEpoch]) {
    out.count(lineage.len());
    for epoch in lineage {
        put_role_epoch(out, *epoch);
    }
}

pub(super) fn take_lineage(from: &mut Fields<'_>) -> Result<Vec<RoleEpoch>> {
    let count = from.count(24)?;
    if count > LINEAGE_MAX {
        return Err(Error::corrupt("a lineage is longer than any"));
    }
    (0..count).map(|_| take_role_epoch(from)).collect()
}

pub(super) fn put_layer(out: &mut Put, layer: &LayerRecord) {
    out.u64(layer.first.0);
    out.u64(layer.end.0);
    out.u64(layer.entries);
    out.u64(layer.version);
    out.u32(layer.pages);
    out.count(layer.live.len());
    for (segment, count) in &layer.live {
        out.u32(*segment);
        out.u64(*count);
    }
}

pub(super) fn take_layer(from: &mut Fields<'_>) -> Result<LayerRecord> {
    let (first, end, entries, version) = (Epoch(from.u64()?), Epoch(from.u64()?), from.u64()?, from.u64()?);
    let pages = from.u32()?;
    if first >= end {
        return Err(Error::corrupt("a layer covers no epoch"));
    }
    let live = (0..from.count(12)?).map(|_| Ok((from.u32()?, from.u64()?))).collect::<Result<_>>()?;
    Ok(LayerRecord { first, end, entries, live, version, pages })
}

pub(super) fn put_receive(out: &mut Put, receive: &ReceiveRecord) {
    out.uuid(receive.target);
    out.text(&receive.name);
    out.u64(receive.created_us);
    out.u64(receive.size);
    out.maybe_uuid(receive.base);
    out.maybe_uuid(receive.before);
    out.u64(receive.durable);
    out.u8(match (receive.aborting, receive.arrived) {
        (false, false) => 0,
        (true, _) => 1,
        (false, true) => 2,
    });
    put_set(out, receive.set);
    out.u64(receive.begun_us);
}

pub(super) fn take_receive(from: &mut Fields<'_>) -> Result<ReceiveRecord> {
    let (target, name) = (from.uuid()?, from.text()?);
    let (created_us, size) = (from.u64()?, from.u64()?);
    let (base, before) = (from.maybe_uuid()?, from.maybe_uuid()?);
    let durable = from.u64()?;
    let (aborting, arrived) = match from.u8()? {
        0 => (false, false),
        1 => (true, false),
        2 => (false, true),
        other => return Err(Error::corrupt(format!("the stage {other} of a receive is unknown"))),
    };
    let (set, begun_us) = (take_set(from)?, from.u64()?);
    Ok(ReceiveRecord {
        target,
        name,
        created_us,
        size,
        base,
        before,
        durable,
        aborting,
        arrived,
        set,
        begun_us,
    })
}

#[cfg(test)]
pub(in crate::format) mod tests;
