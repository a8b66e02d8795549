//! Random steps: a batch of concurrent operations, or one that stands alone. Each operation
//! draws from a chance of its own, so any of them can be left out of a run.

use super::run::Id;
use super::script::{Allowed, Script, stamp};
use super::*;
use futures::future::{LocalBoxFuture, join_all};
use std::ops::Range;
use std::time::Duration;

/// Changes in a batch, at most.
const CHANGES_MAX: u16 = 7;

impl Script {
    /// The same script for one operation; none if that is left out.
    fn task(&self, step: u16, index: u16) -> Option<Rc<Self>> {
        let id = Id { life: self.id.life, step, index };
        let place = [u64::from(id.life), u64::from(step), u64::from(index)];
        let rng = Rc::new(RefCell::new(self.run.rng(&place)));
        if self.run.is_left_out(id) {
            return None;
        }
        // Also of those that find nothing to do: without them the others run otherwise.
        self.run.note(id, String::new);
        Some(Rc::new(Self { id, rng, ..self.clone() }))
    }

    fn chance(&self, of: u32) -> bool {
        self.rng.borrow_mut().u32(0..of) == 0
    }

    /// One step.
    pub async fn step(&self, step: u16) {
        self.alive().await;
        if self.over.get() {
            return;
        }
        let mut rng = self.run.rng(&[u64::from(self.id.life), u64::from(step)]);
        if matches!(self.allowed, Allowed::Full | Allowed::Drops) {
            self.fill_disk(&mut rng);
        }
        let roll = rng.u32(0..40);
        if roll > 6 {
            self.batch(step, &mut rng).await;
            return;
        }
        let Some(script) = self.task(step, 1) else { return };
        match roll {
            0 | 1 => script.resize().await,
            2 | 3 => script.roll_back().await,
            4 => script.change_role().await,
            5 => script.checkpoint().await,
            _ => script.verify().await,
        }
    }

    /// Leaves little space; whoever waits for more gets it in the end.
    fn fill_disk(&self, rng: &mut fastrand::Rng) {
        let Some(disk) = self.disk.clone() else { return };
        let free = [0, rng.u64(0..8 << 10), rng.u64(0..256 << 10)][rng.usize(0..3)];
        disk.fill(Some(free));
        let io = self.io.clone();
        self.io.spawn(async move {
            io.sleep(Duration::from_secs(2)).await;
            disk.fill(None);
        });
    }

    async fn batch(&self, step: u16, rng: &mut fastrand::Rng) {
        let mut tasks: Vec<LocalBoxFuture<'static, ()>> = Vec::new();
        let size = self.oracle.borrow().live.len();
        let mut taken: Vec<Range<usize>> = Vec::new();
        for index in 1..=rng.u16(1..=CHANGES_MAX) {
            let Some(script) = self.task(step, index) else { continue };
            let range = script.range(size);
            if range.is_empty() || taken.iter().any(|t| t.start < range.end && range.start < t.end) {
                continue;
            }
            taken.push(range.clone());
            tasks.push(Box::pin(async move { script.change(range).await }));
        }
        let mut index = CHANGES_MAX;
        let mut add = |of: u32, task: fn(Rc<Self>) -> LocalBoxFuture<'static, ()>| {
            index += 1;
            if let Some(script) = self.task(step, index)
                && script.chance(of)
            {
                tasks.push(task(script));
            }
        };
        add(4, |script| Box::pin(async move { script.flush().await }));
        add(5, |script| Box::pin(async move { script.take().await }));
        for _ in 0..2 {
            add(7, |script| Box::pin(async move { script.delete().await }));
            add(4, |script| Box::pin(async move { script.read_snapshot().await }));
        }
        add(9, |script| Box::pin(async move { script.hold().await }));
        add(12, |script| {
            Box::pin(async move {
                script.pause().await;
                script.checkpoint().await;
            })
        });
        if self.has_marks() {
            add(5, |script| Box::pin(async move { script.shrink().await }));
            add(10, |script| Box::pin(async move { script.forget().await }));
        }
        add(8, |script| {
            Box::pin(async move {
                script.pause().await;
                let len = script.volume.geometry().size;
                let read = script.volume.read(0, len).await;
                script.is_done(&read);
            })
        });
        rng.shuffle(&mut tasks);
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

    async fn change(&self, range: Range<usize>) {
        self.pause().await;
        let (kind, fua) = {
            let mut rng = self.rng.borrow_mut();
            (rng.u32(0..10), rng.u32(0..8) == 0)
        };
        let mut data = vec![0; range.len()];
        if kind < 6 {
            self.rng.borrow_mut().fill(&mut data);
        }
        self.note(|| {
            let what = ["write", "trim", "write zeros"][usize::from(kind > 5) + usize::from(kind > 8)];
            format!("{what} {}..{}{}", range.start, range.end, if fua { ", durable" } else { "" })
        });
        self.apply(kind, range.start, data, fua).await;
    }

    async fn flush(&self) {
        self.pause().await;
        self.note(|| "flush".to_owned());
        self.flush_now().await;
    }

    async fn checkpoint(&self) {
        self.note(|| "checkpoint".to_owned());
        let done = self.volume.checkpoint().await;
        self.is_done(&done);
    }

    async fn verify(&self) {
        self.note(|| "verify".to_owned());
        let verified = self.volume.verify(true).await;
        // A file that could not be opened or read is a finding too.
        if self.is_done(&verified) && !self.damage && self.allowed != Allowed::Failures {
            let verified = verified.unwrap();
            assert!(verified.found.is_empty(), "{:?}", verified.found);
        }
        let summary = self.volume.summary().await;
        self.is_done(&summary);
    }

    /// A take in its steps, sometimes given up between them.
    async fn take(&self) {
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
        let set = (self.has_marks() && self.rng.borrow_mut().bool()).then(stamp);
        let name = format!("s{}", uuid.simple());
        self.note(|| {
            let how = match (give_up, batch) {
                (0, _) => ", given up at once",
                (1, _) => ", given up after the raise",
                (2, _) => ", undone after its record",
                (_, Some(_)) => ", in a batch",
                _ => "",
            };
            format!("take {name}{}{how}", if set.is_some() { ", a cut" } else { "" })
        });
        let request = TakeRequest { uuid, name, created_us: 5, batch, received: false, set };
        self.take_as(request, give_up).await;
    }

    /// Whether cuts are taken in this run, and become bookmarks.
    fn has_marks(&self) -> bool {
        [0, 2, 3, 4].contains(&(self.run.seed % 8))
    }

    async fn shrink(&self) {
        self.pause().await;
        let Some(uuid) = self.pick() else { return };
        {
            let mut oracle = self.oracle.borrow_mut();
            let snap = oracle.snap(uuid);
            // Nobody could look at it yet, or it is held.
            if !snap.cut || !snap.open.is_empty() || snap.holding || !snap.holds.is_empty() {
                snap.busy = false;
                return;
            }
        }
        self.note(|| format!("shrink {:?}", self.names(&[uuid])));
        self.shrink_it(uuid).await;
    }

    async fn forget(&self) {
        self.pause().await;
        let idle: Vec<Uuid> = {
            let oracle = self.oracle.borrow();
            oracle.marks.iter().filter(|mark| mark.must && !mark.busy).map(|mark| mark.uuid).collect()
        };
        let chosen = self.rng.borrow_mut().usize(0..idle.len().max(1));
        let Some(uuid) = idle.get(chosen).copied() else { return };
        self.note(|| format!("forget bookmark {uuid}"));
        self.forget_mark(uuid).await;
    }

    async fn delete(&self) {
        self.pause().await;
        let mut uuids: Vec<Uuid> = self.pick().into_iter().collect();
        if self.chance(3) {
            uuids.extend(self.pick());
        }
        uuids.retain(|uuid| {
            let held = {
                let mut oracle = self.oracle.borrow_mut();
                let snap = oracle.snap(*uuid);
                snap.holding || !snap.holds.is_empty()
            };
            if held {
                self.put_back(*uuid);
            }
            !held
        });
        self.note(|| format!("delete {:?}", self.names(&uuids)));
        self.delete_these(uuids).await;
    }

    fn names(&self, uuids: &[Uuid]) -> Vec<String> {
        uuids.iter().map(|uuid| self.oracle.borrow_mut().snap(*uuid).name.clone()).collect()
    }

    async fn hold(&self) {
        self.pause().await;
        let Some(uuid) = self.pick() else { return };
        self.note(|| format!("hold or release {:?}", self.names(&[uuid])));
        self.hold_or_release(uuid).await;
    }

    async fn read_snapshot(&self) {
        self.pause().await;
        let Some(uuid) = self.pick() else { return };
        self.note(|| format!("read {:?}", self.names(&[uuid])));
        self.look_at(uuid).await;
    }

    async fn resize(&self) {
        let old = self.oracle.borrow().live.len();
        let new = {
            let mut rng = self.rng.borrow_mut();
            let max = 200 * self.volume.geometry().block_size as usize;
            let around = rng.usize(old / 2..=old + old / 2).min(max);
            around.next_multiple_of(512).max(512)
        };
        self.note(|| format!("resize from {old} to {new}"));
        self.resize_to(new).await;
    }

    async fn roll_back(&self) {
        let Some(uuid) = self.pick() else { return };
        // Nobody could look at it yet: it may hold changes that were under way.
        if self.oracle.borrow().snaps.iter().any(|snap| snap.uuid == uuid && !snap.open.is_empty()) {
            self.put_back(uuid);
            return;
        }
        self.note(|| format!("roll back to {:?}", self.names(&[uuid])));
        self.roll_back_to(uuid).await;
    }

    async fn change_role(&self) {
        self.note(|| "demote and promote".to_owned());
        self.set_role(Role::Secondary).await;
        if self.oracle.borrow().role == Role::Secondary {
            self.set_role(Role::Primary).await;
        }
    }
}
