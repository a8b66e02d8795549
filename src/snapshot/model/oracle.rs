//! What a volume must hold: a full copy of production and of every snapshot, and what a
//! crash may have left of changes that were on their way.
//!
//! Changes that are under way at the same time never overlap, so what is acknowledged has
//! one meaning. A snapshot's content is exact but for the changes that were under way at
//! its instant; the first look at it settles those.

use std::collections::BTreeSet;
use uuid::Uuid;

/// A change of production.
#[derive(Clone)]
pub(super) struct Change {
    pub id: u64,
    pub at: usize,
    pub data: Vec<u8>,
    pub acked: bool,
}

/// What a crash may do to a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It is there.
    Must,
    /// It was on its way here or away.
    May,
    /// Its batch was not committed.
    MustNot,
}

/// A snapshot.
#[derive(Clone)]
pub(super) struct Snap {
    pub uuid: Uuid,
    pub name: String,
    pub fate: Fate,
    /// Its content; where `open` says so, it may be another one.
    pub image: Vec<u8>,
    /// Changes that were under way at its instant.
    pub open: Vec<Change>,
    /// A task works on it; others leave it alone.
    pub busy: bool,
    pub holds: Vec<String>,
}

/// How a run of a volume ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Crash {
    /// The process died: everything acknowledged is there.
    Process,
    /// The power failed: everything flushed is there.
    Power,
}

#[derive(Clone, Default)]
pub(super) struct Oracle {
    /// Everything acknowledged.
    pub live: Vec<u8>,
    /// Everything flushed.
    pub base: Vec<u8>,
    /// Changes that are not flushed, in order.
    pub pending: Vec<Change>,
    pub snaps: Vec<Snap>,
    pub committed: BTreeSet<Uuid>,
    /// A roll-back under way: what production may be.
    pub rolling: Option<Vec<u8>>,
    /// Resizes under way, or failed.
    pub resizing: Vec<usize>,
    next: u64,
}

impl Oracle {
    pub fn new(size: usize) -> Self {
        Self { live: vec![0; size], base: vec![0; size], ..Self::default() }
    }

    /// A change is sent.
    pub fn begin(&mut self, at: usize, data: Vec<u8>) -> u64 {
        self.next += 1;
        self.pending.push(Change { id: self.next, at, data, acked: false });
        self.next
    }

    /// It was acknowledged.
    pub fn ack(&mut self, id: u64) {
        let change = self.pending.iter_mut().find(|c| c.id == id).unwrap();
        change.acked = true;
        apply(&mut self.live, change);
    }

    /// What a flush that is sent now covers.
    pub fn acked(&self) -> Vec<u64> {
        self.pending.iter().filter(|c| c.acked).map(|c| c.id).collect()
    }

    /// A flush that covers these returned.
    pub fn flushed(&mut self, ids: &[u64]) {
        for change in self.pending.extract_if(.., |c| ids.contains(&c.id)) {
            apply(&mut self.base, &change);
        }
    }

    /// The instant of a snapshot.
    pub fn raise(&mut self, uuid: Uuid, name: String, batch: bool) {
        let fate = if batch { Fate::MustNot } else { Fate::May };
        let open = self.pending.iter().filter(|c| !c.acked).cloned().collect();
        let image = self.live.clone();
        self.snaps.push(Snap { uuid, name, fate, image, open, busy: true, holds: Vec::new() });
    }

    pub fn snap(&mut self, uuid: Uuid) -> &mut Snap {
        self.snaps.iter_mut().find(|s| s.uuid == uuid).unwrap()
    }

    pub fn forget(&mut self, uuid: Uuid) {
        self.snaps.retain(|s| s.uuid != uuid);
    }

    /// The size changed; what is cut off is gone for good.
    pub fn resized(&mut self, size: usize) {
        self.resizing.clear();
        self.live.resize(size, 0);
        self.base.resize(size, 0);
        for change in &mut self.pending {
            let keep = size.saturating_sub(change.at).min(change.data.len());
            change.data.truncate(keep);
        }
    }

    /// Whether production may be this after a crash.
    pub fn check_crash(&self, found: &[u8], crash: Crash) -> Result<(), String> {
        if self.rolling.as_ref().is_some_and(|image| image == found) {
            return Ok(());
        }
        let mut start = if crash == Crash::Power { self.base.clone() } else { self.live.clone() };
        if start.len() != found.len() {
            if !self.resizing.contains(&found.len()) {
                return Err(format!("{} bytes instead of {}", found.len(), start.len()));
            }
            start.resize(found.len(), 0);
        }
        let open = self.pending.iter().filter(|c| crash == Crash::Power || !c.acked);
        compare(found, &start, open)
    }

    /// After a crash: production is this, and all of it durable.
    pub fn adopt(&mut self, found: Vec<u8>) {
        self.live.clone_from(&found);
        self.base = found;
        self.pending.clear();
        self.rolling = None;
        self.resizing.clear();
    }
}

impl Snap {
    /// Compares what a read found; the first read settles what was open.
    pub fn check(&mut self, found: &[u8]) -> Result<(), String> {
        compare(found, &self.image, self.open.iter()).map_err(|e| format!("snapshot {}: {e}", self.name))?;
        self.open.clear();
        self.image = found.to_vec();
        Ok(())
    }
}

fn apply(image: &mut [u8], change: &Change) {
    let end = image.len().min(change.at + change.data.len());
    if change.at < end {
        image[change.at..end].copy_from_slice(&change.data[..end - change.at]);
    }
}

/// Every byte found is the start's, or that of an open change.
fn compare<'a>(found: &[u8], start: &[u8], open: impl Iterator<Item = &'a Change>) -> Result<(), String> {
    if found.len() != start.len() {
        return Err(format!("{} bytes instead of {}", found.len(), start.len()));
    }
    if found == start {
        return Ok(());
    }
    let mut good: Vec<bool> = found.iter().zip(start).map(|(a, b)| a == b).collect();
    for change in open {
        let end = found.len().min(change.at + change.data.len());
        for at in change.at..end.max(change.at) {
            good[at] |= found[at] == change.data[at - change.at];
        }
    }
    match good.iter().position(|good| !good) {
        None => Ok(()),
        Some(at) => {
            let bad = good.iter().filter(|good| !**good).count();
            Err(format!("{bad} wrong bytes, the first at {at}: {:#x}, not {:#x}", found[at], start[at]))
        }
    }
}
