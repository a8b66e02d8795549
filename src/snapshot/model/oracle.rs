//! What a volume must hold: a full copy of production and of every snapshot, and what a
//! crash may have left of changes that were on their way.
//!
//! Changes that are under way at the same time never overlap, so what is acknowledged has
//! one meaning. A snapshot's content is exact but for the changes that were under way at
//! its instant; the first look at it settles those. A change that failed may have happened
//! in part, and shows or not until something newer was written in its place.

use crate::types::Role;
use std::collections::BTreeSet;
use std::ops::Range;
use uuid::Uuid;

/// A change of production.
#[derive(Clone)]
pub(super) struct Change {
    pub id: u64,
    pub at: usize,
    pub data: Vec<u8>,
    pub acked: bool,
    /// Where an acknowledged change came over it.
    covered: Vec<Range<usize>>,
    /// Where a flushed change came over it.
    buried: Vec<Range<usize>>,
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
    /// A hold or release is under way, or failed.
    pub holding: bool,
    /// A cut: it may become a bookmark.
    pub cut: bool,
    /// What was changed since, while that is exactly known.
    pub since: Since,
    /// It is becoming a bookmark, or was about to.
    pub shrinking: bool,
}

/// What was changed since a state.
#[derive(Clone, Debug)]
pub(super) enum Since {
    /// Bytes that were written or trimmed.
    Ranges(Vec<Range<usize>>),
    /// It may be more than what clients asked for.
    Unknown,
}

impl Since {
    fn add(&mut self, range: &Range<usize>) {
        if let Self::Ranges(ranges) = self {
            ranges.push(range.clone());
        }
    }
}

/// What is left of a cut.
#[derive(Clone)]
pub(super) struct Mark {
    pub uuid: Uuid,
    /// The content that it had.
    pub image: Vec<u8>,
    pub since: Since,
    /// Whether it is there for certain; while it comes or goes it may be.
    pub must: bool,
    pub busy: bool,
}

/// How a run of a volume ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Crash {
    /// The process died: everything acknowledged is there.
    Process,
    /// The power failed: everything flushed is there.
    Power,
}

/// A receive under way.
#[derive(Clone)]
pub(super) struct Receiving {
    /// What it is to bring.
    pub target: Uuid,
    pub name: String,
    pub image: Vec<u8>,
    /// What an abort restores.
    pub before: Vec<u8>,
}

#[derive(Clone, Default)]
pub(super) struct Oracle {
    /// Everything acknowledged.
    pub live: Vec<u8>,
    /// Everything flushed.
    pub base: Vec<u8>,
    /// Changes that are not flushed, in order; those that failed stay.
    pub pending: Vec<Change>,
    pub snaps: Vec<Snap>,
    pub marks: Vec<Mark>,
    pub committed: BTreeSet<Uuid>,
    /// A roll-back under way: what production may be.
    pub rolling: Option<Vec<u8>>,
    /// Resizes under way, or failed.
    pub resizing: Vec<usize>,
    /// A receive that was begun and neither committed nor dropped.
    pub receiving: Option<Receiving>,
    /// The role, and one that was asked for.
    pub role: Role,
    pub changing_role: Option<Role>,
    /// It stays a secondary; a script of writes makes any other one a primary again.
    pub is_replica: bool,
    next: u64,
}

impl Oracle {
    pub fn new(size: usize) -> Self {
        Self { live: vec![0; size], base: vec![0; size], ..Self::default() }
    }

    /// A change is sent.
    pub fn begin(&mut self, at: usize, data: Vec<u8>) -> u64 {
        self.next += 1;
        let range = at..at + data.len();
        self.snaps.iter_mut().for_each(|snap| snap.since.add(&range));
        self.marks.iter_mut().for_each(|mark| mark.since.add(&range));
        let (covered, buried) = (Vec::new(), Vec::new());
        self.pending.push(Change { id: self.next, at, data, acked: false, covered, buried });
        self.next
    }

    /// It was acknowledged.
    pub fn ack(&mut self, id: u64) {
        let change = self.pending.iter_mut().find(|c| c.id == id).unwrap();
        change.acked = true;
        apply(&mut self.live, change);
        let range = change.range();
        for failed in self.pending.iter_mut().filter(|c| c.id < id && !c.acked) {
            if failed.overlaps(&range) {
                failed.covered.push(range.clone());
            }
        }
    }

    /// What a flush that is sent now covers.
    pub fn acked(&self) -> Vec<u64> {
        self.pending.iter().filter(|c| c.acked).map(|c| c.id).collect()
    }

    /// A flush that covers these returned.
    pub fn flushed(&mut self, ids: &[u64]) {
        let flushed: Vec<Change> = self.pending.extract_if(.., |c| ids.contains(&c.id)).collect();
        for change in flushed {
            apply(&mut self.base, &change);
            let range = change.range();
            for failed in self.pending.iter_mut().filter(|c| c.id < change.id && !c.acked) {
                if failed.overlaps(&range) {
                    failed.buried.push(range.clone());
                }
            }
        }
        self.pending.retain(|c| c.acked || c.buried.is_empty() || !is_whole(&c.buried, &c.range()));
    }

    /// The instant of a snapshot.
    pub fn raise(&mut self, uuid: Uuid, name: String, batch: bool, cut: bool) {
        let fate = if batch { Fate::MustNot } else { Fate::May };
        let open: Vec<Change> = self.pending.iter().filter(|c| !c.acked).cloned().collect();
        let since = Since::Ranges(open.iter().map(Change::range).collect());
        let image = self.live.clone();
        let (holds, holding, shrinking) = (Vec::new(), false, false);
        self.snaps.push(Snap {
            uuid,
            name,
            fate,
            image,
            open,
            busy: true,
            holds,
            holding,
            cut,
            since,
            shrinking,
        });
    }

    pub fn snap(&mut self, uuid: Uuid) -> &mut Snap {
        self.snaps.iter_mut().find(|s| s.uuid == uuid).unwrap()
    }

    pub fn mark(&mut self, uuid: Uuid) -> &mut Mark {
        self.marks.iter_mut().find(|m| m.uuid == uuid).unwrap()
    }

    /// From here on deltas may hold more than what clients changed.
    pub fn blur(&mut self) {
        self.snaps.iter_mut().for_each(|snap| snap.since = Since::Unknown);
        self.marks.iter_mut().for_each(|mark| mark.since = Since::Unknown);
    }

    pub fn forget(&mut self, uuid: Uuid) {
        self.snaps.retain(|s| s.uuid != uuid);
    }

    /// The size changed; what is cut off is gone for good.
    pub fn resized(&mut self, size: usize) {
        self.resizing.clear();
        self.blur();
        self.live.resize(size, 0);
        self.base.resize(size, 0);
        for change in &mut self.pending {
            let keep = size.saturating_sub(change.at).min(change.data.len());
            change.data.truncate(keep);
        }
    }

    /// Whether production may be this while the process lives.
    pub fn check_live(&self, found: &[u8]) -> Result<(), String> {
        let mut start = self.live.clone();
        if found.len() != start.len() && self.resizing.contains(&found.len()) {
            start.resize(found.len(), 0);
        }
        compare(found, &start, self.pending.iter().filter(|c| !c.acked).map(|c| (c, &c.covered[..])))
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
        match crash {
            Crash::Process => {
                let open = self.pending.iter().filter(|c| !c.acked);
                compare(found, &start, open.map(|c| (c, &c.covered[..])))
            }
            Crash::Power => compare(found, &start, self.pending.iter().map(|c| (c, &c.buried[..]))),
        }
    }

    /// After a crash: production is this, and all of it durable.
    pub fn adopt(&mut self, found: Vec<u8>) {
        self.blur();
        self.live.clone_from(&found);
        self.base = found;
        self.pending.clear();
        self.rolling = None;
        self.resizing.clear();
    }
}

impl Change {
    fn range(&self) -> Range<usize> {
        self.at..self.at + self.data.len()
    }

    fn overlaps(&self, range: &Range<usize>) -> bool {
        let mine = self.range();
        mine.start < range.end && range.start < mine.end
    }
}

impl Snap {
    /// Compares what a read found; the first read settles what was open.
    pub fn check(&mut self, found: &[u8]) -> Result<(), String> {
        self.check_part(found)?;
        self.open.clear();
        self.image = found.to_vec();
        Ok(())
    }

    /// Compares without settling anything.
    pub fn check_part(&self, found: &[u8]) -> Result<(), String> {
        compare(found, &self.image, self.open.iter().map(|c| (c, &c.covered[..])))
            .map_err(|e| format!("snapshot {}: {e}", self.name))
    }
}

fn is_whole(parts: &[Range<usize>], range: &Range<usize>) -> bool {
    range.clone().all(|at| parts.iter().any(|part| part.contains(&at)))
}

fn apply(image: &mut [u8], change: &Change) {
    let end = image.len().min(change.at + change.data.len());
    if change.at < end {
        image[change.at..end].copy_from_slice(&change.data[..end - change.at]);
    }
}

/// Every byte found is the start's, or that of an open change where nothing came over it.
fn compare<'a>(
    found: &[u8],
    start: &[u8],
    open: impl Iterator<Item = (&'a Change, &'a [Range<usize>])>,
) -> Result<(), String> {
    if found.len() != start.len() {
        return Err(format!("{} bytes instead of {}", found.len(), start.len()));
    }
    if found == start {
        return Ok(());
    }
    let mut good: Vec<bool> = found.iter().zip(start).map(|(a, b)| a == b).collect();
    for (change, hidden) in open {
        let end = found.len().min(change.at + change.data.len());
        for at in change.at..end.max(change.at) {
            good[at] |=
                found[at] == change.data[at - change.at] && !hidden.iter().any(|part| part.contains(&at));
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
