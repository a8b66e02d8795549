//! Random operations, many at a time, each of which tells the oracle what it does.

use super::oracle::{Fate, Oracle};
use super::*;
use crate::ErrorKind;
use crate::snapshot::{DeltaRun, SnapshotReader, Who};
use bytes::Bytes;
use futures::future::{LocalBoxFuture, join_all};
use std::cell::Cell;
use std::ops::Range;

/// What one run of the script did, over all its lives.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    pub operations: u64,
    pub crashes: u64,
    pub checks: u64,
}

/// A volume, its oracle, and chance.
pub(super) struct Script {
    pub io: Io,
    pub volume: Rc<Volume>,
    pub oracle: Rc<RefCell<Oracle>>,
    pub rng: Rc<RefCell<fastrand::Rng>>,
    pub disk: Option<SimDisk>,
    pub counts: Rc<Cell<Counts>>,
    /// Operations may fail: what they were to do is then as if under way for ever.
    pub failing: bool,
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
    fn is_dead(&self) -> bool {
        self.disk.as_ref().is_some_and(SimDisk::is_dead)
    }

    /// Whether an operation is done. What ended after the process died never happened.
    fn is_done<T>(&self, result: &crate::error::Result<T>) -> bool {
        if self.is_dead() {
            return false;
        }
        match result {
            Ok(_) => true,
            Err(_) if self.failing => false,
            Err(error) => panic!("{error:?}"),
        }
    }

    fn chance(&self, of: u32) -> bool {
        self.rng.borrow_mut().u32(0..of) == 0
    }

    fn count(&self) {
        let mut counts = self.counts.get();
        counts.operations += 1;
        self.counts.set(counts);
    }

    async fn pause(&self) {
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

    /// One step: a batch of concurrent operations, or one that stands alone.
    pub async fn step(self: &Rc<Self>) {
        let roll = self.rng.borrow_mut().u32(0..40);
        match roll {
            0 | 1 => self.resize().await,
            2 | 3 => self.roll_back().await,
            4 => self.change_role().await,
            5 => self.volume.checkpoint().await.unwrap(),
            6 => {
                let verified = self.volume.verify(true).await.unwrap();
                assert!(verified.found.is_empty(), "{:?}", verified.found);
                self.volume.summary().await.unwrap();
            }
            _ => self.batch().await,
        }
    }

    async fn batch(self: &Rc<Self>) {
        let mut tasks: Vec<LocalBoxFuture<'static, ()>> = Vec::new();
        let size = self.oracle.borrow().live.len();
        let mut taken: Vec<Range<usize>> = Vec::new();
        let count = self.rng.borrow_mut().usize(1..8);
        for _ in 0..count {
            let range = self.range(size);
            if range.is_empty() || taken.iter().any(|t| t.start < range.end && range.start < t.end) {
                continue;
            }
            taken.push(range.clone());
            let script = Rc::clone(self);
            tasks.push(Box::pin(async move { script.change(range).await }));
        }
        let mut add = |of: u32, task: LocalBoxFuture<'static, ()>| {
            if self.chance(of) {
                tasks.push(task);
            }
        };
        let own = || Rc::clone(self);
        let script = own();
        add(4, Box::pin(async move { script.flush().await }));
        let script = own();
        add(5, Box::pin(async move { script.take().await }));
        for _ in 0..2 {
            let script = own();
            add(7, Box::pin(async move { script.delete().await }));
            let script = own();
            add(4, Box::pin(async move { script.read_snapshot().await }));
        }
        let script = own();
        add(9, Box::pin(async move { script.hold().await }));
        let script = own();
        add(
            12,
            Box::pin(async move {
                script.pause().await;
                script.volume.checkpoint().await.unwrap();
            }),
        );
        let script = own();
        add(
            8,
            Box::pin(async move {
                script.pause().await;
                let len = script.volume.geometry().size;
                script.volume.read(0, len).await.unwrap();
            }),
        );
        self.rng.borrow_mut().shuffle(&mut tasks);
        join_all(tasks).await;
    }

    /// A random range of bytes, often aligned, sometimes large.
    fn range(&self, size: usize) -> Range<usize> {
        let mut rng = self.rng.borrow_mut();
        let geometry = self.volume.geometry();
        let block = geometry.block_size as usize;
        let start = rng.usize(0..size);
        let len = match rng.u32(0..10) {
            0 => rng.usize(1..=size),
            1..4 => rng.usize(1..=block * 3),
            4 => block * geometry.granularity as usize,
            _ => rng.usize(1..=4) * block,
        };
        let start = if rng.u32(0..3) == 0 { start } else { start / block * block };
        start..(start + len).min(size)
    }

    async fn change(self: Rc<Self>, range: Range<usize>) {
        self.pause().await;
        let (kind, fua) = {
            let mut rng = self.rng.borrow_mut();
            (rng.u32(0..10), rng.u32(0..8) == 0)
        };
        let mut data = vec![0; range.len()];
        if kind < 6 {
            self.rng.borrow_mut().fill(&mut data);
        }
        self.apply(kind, range.start, data, fua).await;
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
        let result = match kind {
            0..6 => self.volume.write(Who::Client, at, Bytes::from(data), fua).await,
            6..9 => self.volume.trim(Who::Client, at, len, fua).await,
            _ => self.volume.write_zeros(Who::Client, at, len, fua).await,
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

    async fn flush(self: Rc<Self>) {
        self.pause().await;
        self.flush_now().await;
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

    /// A take in its steps, sometimes given up between them.
    async fn take(self: Rc<Self>) {
        self.pause().await;
        if self.oracle.borrow().snaps.len() > 7 {
            return;
        }
        let (uuid, batch, give_up) = {
            let mut rng = self.rng.borrow_mut();
            let uuid = Uuid::from_u128(rng.u128(..));
            let batch = (rng.u32(0..4) == 0).then(|| Uuid::from_u128(rng.u128(..)));
            (uuid, batch, rng.u32(0..12))
        };
        let name = format!("s{}", uuid.simple());
        let request = TakeRequest { uuid, name: name.clone(), created_us: 5, batch, received: false };
        self.take_as(request, give_up).await;
    }

    /// Takes; gives up before the raise (0), after it (1), or after the record (2).
    pub async fn take_as(&self, request: TakeRequest, give_up: u32) {
        let TakeRequest { uuid, ref name, batch, .. } = request;
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
        self.oracle.borrow_mut().raise(uuid, name, batch.is_some());
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
    fn pick(&self) -> Option<Uuid> {
        let mut oracle = self.oracle.borrow_mut();
        let idle: Vec<usize> = (0..oracle.snaps.len()).filter(|i| !oracle.snaps[*i].busy).collect();
        let chosen = *idle.get(self.rng.borrow_mut().usize(0..idle.len().max(1)))?;
        oracle.snaps[chosen].busy = true;
        Some(oracle.snaps[chosen].uuid)
    }

    fn put_back(&self, uuid: Uuid) {
        self.oracle.borrow_mut().snap(uuid).busy = false;
    }

    async fn delete(self: Rc<Self>) {
        self.pause().await;
        let mut uuids = Vec::new();
        for _ in 0..if self.chance(4) { 3 } else { 1 } {
            uuids.extend(self.pick());
        }
        uuids.retain(|uuid| {
            let held = !self.oracle.borrow_mut().snap(*uuid).holds.is_empty();
            if held {
                self.put_back(*uuid);
            }
            !held
        });
        self.delete_these(uuids).await;
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

    async fn hold(self: Rc<Self>) {
        self.pause().await;
        let Some(uuid) = self.pick() else { return };
        let (name, holds) = {
            let mut oracle = self.oracle.borrow_mut();
            let snap = oracle.snap(uuid);
            (snap.name.clone(), snap.holds.clone())
        };
        if holds.is_empty() {
            self.volume.hold(&name, "t").await.unwrap();
            assert_eq!(self.volume.hold(&name, "t").await.unwrap_err().kind(), ErrorKind::Conflict);
            let refused = self.volume.delete(&[uuid]).await.unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::Conflict);
        } else {
            self.volume.release(&name, "t").await.unwrap();
        }
        if self.is_dead() {
            return;
        }
        self.oracle.borrow_mut().snap(uuid).holds =
            if holds.is_empty() { vec!["t".to_owned()] } else { Vec::new() };
        self.put_back(uuid);
        self.count();
    }

    async fn read_snapshot(self: Rc<Self>) {
        self.pause().await;
        let Some(uuid) = self.pick() else { return };
        let reader = self.volume.open_snapshot_by_id(uuid).unwrap();
        let found = self.read_all(&reader).await;
        drop(reader);
        if self.is_dead() {
            return;
        }
        self.oracle.borrow_mut().snap(uuid).check(&found).unwrap();
        self.put_back(uuid);
        self.count();
    }

    async fn read_all(&self, reader: &SnapshotReader) -> Vec<u8> {
        let mut found = Vec::new();
        let size = reader.size();
        while (found.len() as u64) < size {
            let at = found.len() as u64;
            let len = {
                let mut rng = self.rng.borrow_mut();
                if rng.u32(0..3) == 0 { rng.u64(1..=size) } else { size }
            };
            found.extend(bytes_of(reader.read(at, len.min(size - at)).await.unwrap()));
        }
        found
    }

    async fn resize(&self) {
        let old = self.oracle.borrow().live.len();
        let new = {
            let mut rng = self.rng.borrow_mut();
            let max = 200 * self.volume.geometry().block_size as usize;
            let around = rng.usize(old / 2..=old + old / 2).min(max);
            around.next_multiple_of(512).max(512)
        };
        self.resize_to(new).await;
    }

    pub async fn resize_to(&self, new: usize) {
        let old = self.oracle.borrow().live.len();
        {
            let mut oracle = self.oracle.borrow_mut();
            oracle.resizing.push(new);
            if new < old {
                oracle.begin(new, vec![0; old - new]);
            }
        }
        let result = self.volume.resize(new as u64).await;
        if !self.is_done(&result) {
            return;
        }
        let mut oracle = self.oracle.borrow_mut();
        if new < old {
            // A shrink flushes.
            let ids: Vec<u64> = oracle.pending.iter().map(|c| c.id).collect();
            oracle.flushed(&ids);
        }
        oracle.resized(new);
        self.count();
    }

    async fn roll_back(&self) {
        let Some(uuid) = self.pick() else { return };
        self.roll_back_to(uuid).await;
    }

    pub async fn roll_back_to(&self, uuid: Uuid) {
        let (name, image) = {
            let mut oracle = self.oracle.borrow_mut();
            let snap = oracle.snap(uuid);
            (snap.name.clone(), snap.image.clone())
        };
        self.oracle.borrow_mut().rolling = Some(image.clone());
        let result = self.volume.roll_back(&name).await;
        if !self.is_done(&result) {
            return;
        }
        self.put_back(uuid);
        self.oracle.borrow_mut().adopt(image);
        self.count();
    }

    async fn change_role(self: &Rc<Self>) {
        self.volume.set_role(Role::Secondary).await.unwrap();
        let refused = self.volume.write(Who::Client, 0, Bytes::from_static(b"no"), false).await;
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::ReadOnly);
        self.volume.set_role(Role::Primary).await.unwrap();
        self.count();
    }

    /// Compares production and every snapshot.
    pub async fn check(&self) {
        if self.is_dead() {
            // What the last step did is not in the oracle.
            return;
        }
        let found = production(&self.volume).await;
        {
            let oracle = self.oracle.borrow();
            assert_eq!(found.len(), oracle.live.len(), "size");
            if found != oracle.live {
                let at = found.iter().zip(&oracle.live).position(|(a, b)| a != b).unwrap();
                let block = at / self.volume.geometry().block_size as usize;
                panic!(
                    "production differs at {at}, block {block}: {:#x}, not {:#x}",
                    found[at], oracle.live[at]
                );
            }
        }
        holes_are_zero(&self.volume.allocation(0, found.len() as u64).unwrap(), &found);
        self.check_snapshots().await;
        self.check_deltas(&found).await;
        let mut counts = self.counts.get();
        counts.checks += 1;
        self.counts.set(counts);
    }

    async fn check_snapshots(&self) {
        let records = self.volume.snapshots();
        let there: Vec<(Uuid, String)> = records.iter().map(|r| (r.uuid, r.name.clone())).collect();
        let expected: Vec<(Uuid, String)> =
            self.oracle.borrow().snaps.iter().map(|s| (s.uuid, s.name.clone())).collect();
        assert_eq!(there, expected, "the queue");
        for record in records {
            let reader = self.volume.open_snapshot(&record.name).unwrap();
            let found = self.read_all(&reader).await;
            holes_are_zero(&reader.allocation(0, reader.size()).await.unwrap(), &found);
            let mut oracle = self.oracle.borrow_mut();
            let snap = oracle.snap(record.uuid);
            snap.check(&found).unwrap();
            assert_eq!(record.holds, snap.holds);
            assert_eq!(record.size, found.len() as u64);
        }
    }

    async fn check_deltas(&self, now: &[u8]) {
        let snaps: Vec<(Uuid, Vec<u8>)> =
            self.oracle.borrow().snaps.iter().map(|s| (s.uuid, s.image.clone())).collect();
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
        let delta = self.volume.delta_between(Some(snaps[from].0), to_uuid).await.unwrap();
        assert_eq!(delta.size, to.len() as u64);
        let made = apply_delta(&snaps[from].1, to, delta.runs(0..delta.size));
        if made != to {
            let at = made.iter().zip(to).position(|(a, b)| a != b).unwrap();
            panic!("the delta of {} to {to_uuid:?} lacks byte {at}", snaps[from].0);
        }
        let whole = self.volume.delta_between(None, to_uuid).await.unwrap();
        let made = apply_delta(&[], to, whole.runs(0..whole.size));
        assert!(made == to, "the whole delta lacks something");
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
