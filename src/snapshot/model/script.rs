//! Operations on a volume, each of which tells the oracle what it does.

use super::oracle::{Fate, Mark, Oracle, Since};
use super::run::{Id, Run};
use super::*;
use crate::ErrorKind;
use crate::error::Error;
use crate::snapshot::{DeltaRun, ReadNow, SnapshotReader, Who};
use crate::types::{RoleEpoch, SetStamp};
use bytes::{Bytes, BytesMut};

/// A unit of cached reads, in bytes.
const CACHED: usize = 4096;

/// What may happen in a life without being a violation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Allowed {
    /// Every operation succeeds.
    #[default]
    Nothing,
    /// The disk may be full: operations may say so.
    Full,
    /// The disk may be full, and then the oldest snapshots go.
    Drops,
    /// Operations may fail: what they were to do is then as if under way for ever.
    Failures,
}

/// Bytes that were read, or how many could not be.
type Part = Result<Vec<u8>, usize>;

/// A volume, its oracle, and chance.
#[derive(Clone)]
pub(super) struct Script {
    pub io: Io,
    pub volume: Rc<Volume>,
    pub oracle: Rc<RefCell<Oracle>>,
    pub rng: Rc<RefCell<fastrand::Rng>>,
    pub disk: Option<SimDisk>,
    pub run: Rc<Run>,
    /// Where in the run it is.
    pub id: Id,
    pub allowed: Allowed,
    /// Before-images may be damaged: a block of a snapshot may be an error, never wrong.
    pub damage: bool,
    /// Something failed after which only the next open makes sense of the volume.
    pub over: Rc<Cell<bool>>,
}

/// The stamp of a cut.
pub(super) fn stamp() -> SetStamp {
    SetStamp { epoch: RoleEpoch::default(), number: 1, base: None }
}

/// One of the geometries to try.
pub(super) fn geometry(rng: &mut fastrand::Rng) -> Geometry {
    let block_size = [512, 512, 4096, 4096, 65536][rng.usize(0..5)];
    let granularity = [1, 1, 1, 4, 64][rng.usize(0..5)];
    let blocks = rng.u64(12..100).min((1 << 20) / u64::from(block_size));
    let odd = rng.u64(0..u64::from(block_size) / 512) * 512;
    Geometry::new(blocks * u64::from(block_size) + odd, block_size, granularity).unwrap()
}

/// Turns `from` into the bytes that a delta makes of it.
pub(super) fn apply_delta(from: &[u8], to: &[u8], runs: impl Iterator<Item = DeltaRun>) -> Vec<u8> {
    let mut out = from.to_vec();
    out.resize(to.len(), 0);
    for run in runs {
        let range = usize::try_from(run.bytes.start).unwrap()..usize::try_from(run.bytes.end).unwrap();
        if run.discard {
            out[range].fill(0);
        } else {
            out[range.clone()].copy_from_slice(&to[range]);
        }
    }
    out
}

impl Script {
    pub fn new(io: &Io, volume: Rc<Volume>, oracle: Rc<RefCell<Oracle>>, run: Rc<Run>, life: u16) -> Self {
        let rng = Rc::new(RefCell::new(run.rng(&[u64::from(life)])));
        Self {
            io: io.clone(),
            volume,
            oracle,
            rng,
            disk: None,
            run,
            id: Id::life(life),
            allowed: Allowed::Nothing,
            damage: false,
            over: Rc::default(),
        }
    }

    pub fn is_dead(&self) -> bool {
        self.disk.as_ref().is_some_and(SimDisk::is_dead)
    }

    /// Whether an operation is done. What ended after the process died never happened.
    pub fn is_done<T>(&self, result: &crate::error::Result<T>) -> bool {
        if self.is_dead() {
            return false;
        }
        match result {
            Ok(_) => true,
            Err(error) if self.may_fail(error) => {
                self.note(|| format!("  failed: {error}"));
                false
            }
            Err(error) => panic!("{error:?}"),
        }
    }

    fn may_fail(&self, error: &Error) -> bool {
        match self.allowed {
            Allowed::Nothing => self.damage && error.kind() == ErrorKind::Corrupt,
            Allowed::Full => error.kind() == ErrorKind::Full,
            Allowed::Drops => [ErrorKind::Full, ErrorKind::NotFound].contains(&error.kind()),
            Allowed::Failures => true,
        }
    }

    pub fn note(&self, what: impl FnOnce() -> String) {
        self.run.note(self.id, what);
    }

    pub fn count(&self) {
        self.run.count(|counts| counts.operations += 1);
    }

    pub async fn pause(&self) {
        let (yields, other) = {
            let mut rng = self.rng.borrow_mut();
            (rng.u32(0..6), rng.u32(0..4))
        };
        for _ in 0..yields {
            self.io.yield_now().await;
        }
        for _ in 0..other.saturating_sub(1) {
            let _ = self.io.list(Path::new("/")).await;
        }
    }

    /// Writes (`kind` below 6), trims (below 9), or writes zeros.
    pub async fn apply(&self, kind: u32, start: usize, data: Vec<u8>, fua: bool) {
        let len = data.len() as u64;
        let (id, before) = {
            let mut oracle = self.oracle.borrow_mut();
            let before = oracle.acked();
            (oracle.begin(start, data.clone()), before)
        };
        let at = start as u64;
        let who = match self.oracle.borrow().role {
            Role::Primary => Who::Client,
            Role::Secondary => Who::Store,
        };
        let data = Bytes::from(data);
        let result = match kind {
            0..3 if !fua && self.volume.write_now(who, at, &data) => Ok(()),
            0..6 => self.volume.write(who, at, data, fua).await,
            6..9 => self.volume.trim(who, at, len, fua).await,
            _ => self.volume.write_zeros(who, at, len, fua).await,
        };
        if !self.is_done(&result) {
            return;
        }
        let mut oracle = self.oracle.borrow_mut();
        oracle.ack(id);
        if fua {
            oracle.flushed(&[&before[..], &[id]].concat());
        }
        self.count();
    }

    pub async fn flush_now(&self) {
        let covered = self.oracle.borrow().acked();
        let result = self.volume.flush().await;
        if !self.is_done(&result) {
            return;
        }
        self.oracle.borrow_mut().flushed(&covered);
        self.count();
    }

    /// Takes; gives up before the raise (0), after it (1), or after the record (2).
    pub async fn take_as(&self, request: TakeRequest, give_up: u32) {
        let TakeRequest { uuid, ref name, batch, set, .. } = request;
        let name = name.clone();
        let prepared = self.volume.prepare_take(request).await;
        if !self.is_done(&prepared) {
            return;
        }
        let mut ticket = prepared.unwrap();
        self.pause().await;
        if give_up == 0 {
            return;
        }
        ticket.raise();
        if self.is_dead() {
            return;
        }
        self.oracle.borrow_mut().raise(uuid, name, batch.is_some(), set.is_some());
        self.pause().await;
        if give_up == 1 {
            drop(ticket);
            self.oracle.borrow_mut().forget(uuid);
            return;
        }
        let result = ticket.finish().await;
        if !self.is_done(&result) {
            return;
        }
        self.pause().await;
        if self.is_dead() {
            return;
        }
        if give_up == 2 {
            let result = ticket.undo().await;
            if self.is_done(&result) {
                self.oracle.borrow_mut().forget(uuid);
            }
            return;
        }
        if let Some(batch) = batch {
            self.oracle.borrow_mut().committed.insert(batch);
        }
        self.oracle.borrow_mut().snap(uuid).fate = Fate::Must;
        self.pause().await;
        ticket.publish();
        let mut oracle = self.oracle.borrow_mut();
        oracle.snap(uuid).busy = false;
        self.count();
    }

    /// Picks a snapshot that no other task works on, and marks it.
    pub fn pick(&self) -> Option<Uuid> {
        let mut oracle = self.oracle.borrow_mut();
        let idle: Vec<usize> = (0..oracle.snaps.len()).filter(|i| !oracle.snaps[*i].busy).collect();
        let chosen = *idle.get(self.rng.borrow_mut().usize(0..idle.len().max(1)))?;
        oracle.snaps[chosen].busy = true;
        Some(oracle.snaps[chosen].uuid)
    }

    pub fn put_back(&self, uuid: Uuid) {
        self.oracle.borrow_mut().snap(uuid).busy = false;
    }

    pub async fn delete_these(&self, mut uuids: Vec<Uuid>) {
        // A take may have failed.
        uuids.retain(|uuid| self.oracle.borrow().snaps.iter().any(|s| s.uuid == *uuid));
        for uuid in &uuids {
            self.oracle.borrow_mut().snap(*uuid).fate = Fate::May;
        }
        let result = self.volume.delete(&uuids).await;
        if !self.is_done(&result) {
            return;
        }
        for uuid in uuids {
            self.oracle.borrow_mut().forget(uuid);
            self.count();
        }
    }

    /// A cut becomes a bookmark.
    pub async fn shrink_it(&self, uuid: Uuid) {
        {
            let mut oracle = self.oracle.borrow_mut();
            // A take may have failed.
            let Some(snap) = oracle.snaps.iter_mut().find(|snap| snap.uuid == uuid) else { return };
            if snap.fate != Fate::Must {
                return;
            }
            (snap.fate, snap.shrinking, snap.busy) = (Fate::May, true, true);
            let (image, since) = (snap.image.clone(), snap.since.clone());
            oracle.marks.push(Mark { uuid, image, since, must: false, busy: true });
        }
        let done = self.volume.shrink(uuid).await;
        if !self.is_done(&done) {
            return;
        }
        let mut oracle = self.oracle.borrow_mut();
        oracle.forget(uuid);
        let mark = oracle.mark(uuid);
        (mark.must, mark.busy) = (true, false);
        self.count();
    }

    /// A bookmark goes.
    pub async fn forget_mark(&self, uuid: Uuid) {
        {
            let mut oracle = self.oracle.borrow_mut();
            let Some(mark) = oracle.marks.iter_mut().find(|mark| mark.uuid == uuid) else { return };
            (mark.must, mark.busy) = (false, true);
        }
        let done = self.volume.forget_bookmarks(&[uuid]).await;
        if self.is_done(&done) {
            assert!(self.volume.bookmarks().iter().all(|bookmark| bookmark.uuid != uuid));
            self.oracle.borrow_mut().marks.retain(|mark| mark.uuid != uuid);
            self.count();
        }
    }

    /// Holds the snapshot, or releases it.
    pub async fn hold_or_release(&self, uuid: Uuid) {
        let (name, holds) = {
            let mut oracle = self.oracle.borrow_mut();
            let snap = oracle.snap(uuid);
            snap.holding = true;
            (snap.name.clone(), snap.holds.clone())
        };
        let done = if holds.is_empty() {
            let done = self.volume.hold(&name, "t").await;
            if done.is_ok() && !self.is_dead() && self.allowed == Allowed::Nothing && !self.damage {
                assert_eq!(self.volume.hold(&name, "t").await.unwrap_err().kind(), ErrorKind::Conflict);
                let refused = self.volume.delete(&[uuid]).await.unwrap_err();
                assert_eq!(refused.kind(), ErrorKind::Conflict);
            }
            done
        } else {
            self.volume.release(&name, "t").await
        };
        if !self.is_done(&done) {
            return;
        }
        let mut oracle = self.oracle.borrow_mut();
        let snap = oracle.snap(uuid);
        snap.holding = false;
        snap.holds = if holds.is_empty() { vec!["t".to_owned()] } else { Vec::new() };
        snap.busy = false;
        self.count();
    }

    /// Reads and compares a snapshot.
    pub async fn look_at(&self, uuid: Uuid) {
        let opened = self.volume.open_snapshot_by_id(uuid);
        if !self.is_done(&opened) {
            return;
        }
        let found = self.read_all(&opened.unwrap()).await;
        if self.is_dead() {
            return;
        }
        self.compare_snapshot(uuid, &found);
        self.put_back(uuid);
        self.count();
    }

    /// Holds what was read of a snapshot, where it could be read, against the oracle.
    fn compare_snapshot(&self, uuid: Uuid, found: &[Part]) {
        let mut oracle = self.oracle.borrow_mut();
        let snap = oracle.snap(uuid);
        let mut bytes = Vec::with_capacity(snap.image.len());
        for part in found {
            match part {
                Ok(part) => bytes.extend_from_slice(part),
                Err(len) => {
                    let end = snap.image.len().min(bytes.len() + len);
                    bytes.extend_from_slice(&snap.image[bytes.len()..end]);
                }
            }
        }
        let whole = found.iter().all(Part::is_ok);
        let result = if whole { snap.check(&bytes) } else { snap.check_part(&bytes) };
        result.unwrap();
    }

    /// All of a snapshot in parts, as small as a block where it can't be read.
    async fn read_all(&self, reader: &SnapshotReader) -> Vec<Part> {
        let mut found = Vec::new();
        let size = reader.size();
        let block = u64::from(self.volume.geometry().block_size);
        let mut at = 0;
        while at < size {
            let len = {
                let mut rng = self.rng.borrow_mut();
                if rng.u32(0..3) == 0 { rng.u64(1..=size) } else { size }
            };
            let len = len.min(size - at);
            let result = reader.read(at, len).await;
            if self.is_done(&result) {
                found.push(Ok(bytes_of(result.unwrap())));
            } else {
                self.alive().await;
                for start in (at..at + len).step_by(usize::try_from(block).unwrap()) {
                    let len = block.min(at + len - start);
                    let result = reader.read(start, len).await;
                    let done = self.is_done(&result);
                    found.push(result.map(bytes_of).map_err(|_| usize::try_from(len).unwrap()));
                    if !done {
                        self.alive().await;
                    }
                }
            }
            at += len;
        }
        found
    }

    pub async fn resize_to(&self, new: usize) {
        let old = self.oracle.borrow().live.len();
        let cut_off = {
            let mut oracle = self.oracle.borrow_mut();
            oracle.resizing.push(new);
            (new < old).then(|| oracle.begin(new, vec![0; old - new]))
        };
        let result = self.volume.resize(new as u64).await;
        if !self.is_done(&result) {
            self.over.set(true);
            return;
        }
        let mut oracle = self.oracle.borrow_mut();
        if let Some(cut_off) = cut_off {
            // A shrink flushes.
            oracle.ack(cut_off);
            let acked = oracle.acked();
            oracle.flushed(&acked);
        }
        oracle.resized(new);
        self.count();
    }

    pub async fn roll_back_to(&self, uuid: Uuid) {
        let (name, image) = {
            let mut oracle = self.oracle.borrow_mut();
            let snap = oracle.snap(uuid);
            (snap.name.clone(), snap.image.clone())
        };
        if self.damage && !self.is_readable(uuid).await {
            // It would stop half-way, and no open could end it.
            return;
        }
        self.oracle.borrow_mut().rolling = Some(image.clone());
        let result = self.volume.roll_back(&name).await;
        if !self.is_done(&result) {
            self.over.set(true);
            return;
        }
        self.put_back(uuid);
        self.oracle.borrow_mut().adopt(image);
        self.count();
    }

    async fn is_readable(&self, uuid: Uuid) -> bool {
        match self.volume.open_snapshot_by_id(uuid) {
            Ok(reader) => reader.read(0, reader.size()).await.is_ok(),
            Err(_) => false,
        }
    }

    pub async fn set_role(&self, role: Role) {
        self.alive().await;
        // After a change that failed either of the two roles may be there.
        self.oracle.borrow_mut().changing_role.get_or_insert(role);
        let result = self.volume.set_role(role).await;
        if !self.is_done(&result) {
            return;
        }
        {
            let mut oracle = self.oracle.borrow_mut();
            oracle.role = role;
            oracle.changing_role = None;
        }
        if role == Role::Secondary {
            let refused = self.volume.write(Who::Client, 0, bytes::Bytes::from_static(b"no"), false).await;
            assert!(refused.is_err(), "a secondary takes no write");
        }
        self.count();
    }

    /// Goes no further in a process that is dead: what needs no operation would still run.
    pub async fn alive(&self) {
        if self.is_dead() {
            std::future::pending().await
        }
    }

    /// Compares what can be read without a wait.
    fn check_cached(&self, found: &[u8]) {
        for (index, expected) in found.chunks(3 * CACHED).enumerate() {
            let mut cached = BytesMut::from(&b"before"[..]);
            let at = (index * 3 * CACHED) as u64;
            match self.volume.read_now(at, expected.len(), &mut cached) {
                Ok(ReadNow::Appended) => assert!(cached[6..] == *expected, "a cached read at {at} differs"),
                _ => assert!(cached[..] == b"before"[..]),
            }
        }
    }

    /// Compares production and every snapshot.
    pub async fn check(&self) {
        self.alive().await;
        if self.over.get() {
            return;
        }
        let found = self.volume.read(0, self.volume.geometry().size).await;
        if !self.is_done(&found) {
            return;
        }
        let found = bytes_of(found.unwrap());
        self.check_cached(&found);
        if self.oracle.borrow().receiving.is_none() {
            let compared = self.oracle.borrow().check_live(&found);
            if let Err(error) = compared {
                panic!("production differs: {error}");
            }
        }
        // A write that failed may show and yet not be in use.
        if self.oracle.borrow().pending.iter().all(|change| change.acked) {
            holes_are_zero(&self.volume.allocation(0, found.len() as u64).unwrap(), &found);
        }
        self.check_snapshots().await;
        if self.oracle.borrow().pending.iter().all(|change| change.acked) {
            self.check_deltas(&found).await;
            self.check_marks(&found).await;
        }
        self.run.count(|counts| counts.checks += 1);
    }

    async fn check_snapshots(&self) {
        let records = self.volume.snapshots();
        let there: Vec<Uuid> = records.iter().map(|r| r.uuid).collect();
        if self.allowed == Allowed::Drops {
            let mut oracle = self.oracle.borrow_mut();
            oracle.snaps.retain(|s| there.contains(&s.uuid) || !s.holds.is_empty());
        }
        {
            let oracle = self.oracle.borrow();
            let mut expected =
                oracle.snaps.iter().filter(|s| s.fate == Fate::Must || there.contains(&s.uuid));
            let same =
                records.iter().all(|r| expected.next().is_some_and(|s| s.uuid == r.uuid && s.name == r.name));
            assert!(same && expected.next().is_none(), "the queue is {there:?}");
        }
        for record in records {
            let opened = self.volume.open_snapshot(&record.name);
            if !self.is_done(&opened) {
                continue;
            }
            let reader = opened.unwrap();
            let found = self.read_all(&reader).await;
            self.alive().await;
            if found.iter().all(Part::is_ok) {
                let bytes: Vec<u8> = found.iter().flatten().flatten().copied().collect();
                let allocation = reader.allocation(0, reader.size()).await;
                if self.is_done(&allocation) {
                    holes_are_zero(&allocation.unwrap(), &bytes);
                }
                assert_eq!(record.size, bytes.len() as u64);
            }
            self.compare_snapshot(record.uuid, &found);
            let mut oracle = self.oracle.borrow_mut();
            let snap = oracle.snap(record.uuid);
            assert!(snap.holding || record.holds == snap.holds, "holds of {}", record.name);
        }
    }

    async fn check_deltas(&self, now: &[u8]) {
        let snaps: Vec<(Uuid, Vec<u8>)> = {
            let oracle = self.oracle.borrow();
            let whole = oracle.snaps.iter().filter(|s| s.open.is_empty() && !s.busy);
            whole.map(|s| (s.uuid, s.image.clone())).collect()
        };
        let Some((from, to)) = ({
            let mut rng = self.rng.borrow_mut();
            let from = rng.usize(0..snaps.len() + 1);
            (from < snaps.len()).then(|| (from, rng.usize(from + 1..snaps.len() + 1)))
        }) else {
            return;
        };
        let (to_uuid, to) = match snaps.get(to) {
            Some((uuid, image)) => (Some(*uuid), &image[..]),
            None => (None, now),
        };
        let delta = self.volume.delta_between(Some(snaps[from].0), to_uuid).await;
        if !self.is_done(&delta) {
            return;
        }
        let delta = delta.unwrap();
        assert_eq!(delta.size, to.len() as u64);
        let made = apply_delta(&snaps[from].1, to, delta.runs(0..delta.size));
        if made != to {
            let at = made.iter().zip(to).position(|(a, b)| a != b).unwrap();
            panic!("the delta of {} to {to_uuid:?} lacks byte {at}", snaps[from].0);
        }
        let whole = self.volume.delta_between(None, to_uuid).await;
        if self.is_done(&whole) {
            let whole = whole.unwrap();
            let made = apply_delta(&[], to, whole.runs(0..whole.size));
            assert!(made == to, "the whole delta lacks something");
        }
    }
}

impl Script {
    /// What leads on from each bookmark makes the younger states of it.
    async fn check_marks(&self, now: &[u8]) {
        let there = self.volume.bookmarks();
        for mark in self.oracle.borrow().marks.iter().filter(|mark| mark.must) {
            assert!(there.iter().any(|b| b.uuid == mark.uuid), "bookmark {} is gone", mark.uuid);
        }
        let records = self.volume.snapshots();
        for bookmark in there {
            let mark = self.oracle.borrow().marks.iter().find(|mark| mark.uuid == bookmark.uuid).cloned();
            let Some(mark) = mark else { panic!("bookmark {} comes from nowhere", bookmark.uuid) };
            assert_eq!(mark.image.len() as u64, bookmark.size);
            let younger: Vec<(Uuid, Vec<u8>)> = {
                let oracle = self.oracle.borrow();
                let whole = oracle.snaps.iter().filter(|s| s.open.is_empty() && !s.busy);
                let behind =
                    whole.filter(|s| records.iter().any(|r| r.uuid == s.uuid && r.epoch > bookmark.epoch));
                behind.map(|s| (s.uuid, s.image.clone())).collect()
            };
            let chosen = self.rng.borrow_mut().usize(0..younger.len() + 1);
            let (to, image) = match younger.get(chosen) {
                Some((uuid, image)) => (Some(*uuid), &image[..]),
                None => (None, now),
            };
            let delta = self.volume.delta_between(Some(bookmark.uuid), to).await;
            if !self.is_done(&delta) {
                continue;
            }
            let delta = delta.unwrap();
            assert_eq!(delta.size, image.len() as u64);
            let made = apply_delta(&mark.image, image, delta.runs(0..delta.size));
            if made != image {
                let at = made.iter().zip(image).position(|(a, b)| a != b);
                panic!("the delta of bookmark {} to {to:?} lacks byte {at:?}", bookmark.uuid);
            }
            if let (Since::Ranges(ranges), None) = (&mark.since, to) {
                self.no_more_than(ranges, delta.runs(0..delta.size));
            }
        }
    }

    /// Nothing is in the delta but granules that clients changed something in.
    fn no_more_than(&self, ranges: &[std::ops::Range<usize>], runs: impl Iterator<Item = DeltaRun>) {
        let geometry = self.volume.geometry();
        let unit = geometry.block_size as usize * geometry.granularity as usize;
        for run in runs {
            for at in run.bytes.step_by(512).map(|at| usize::try_from(at).unwrap()) {
                let granule = at / unit * unit..(at / unit + 1) * unit;
                let touched = ranges.iter().any(|r| r.start < granule.end && granule.start < r.end);
                assert!(touched, "the delta names byte {at}, which nobody changed");
            }
        }
    }
}

/// What is said to be unused holds zeros.
fn holes_are_zero(runs: &[(u64, bool)], bytes: &[u8]) {
    let mut at = 0;
    for (len, used) in runs {
        let end = at + usize::try_from(*len).unwrap();
        assert!(*used || bytes[at..end].iter().all(|b| *b == 0), "data in a hole at {at}..{end}");
        at = end;
    }
    assert_eq!(at, bytes.len());
}
