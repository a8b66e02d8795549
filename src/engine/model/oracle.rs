//! What a store must hold: production and every snapshot of every volume, and what a
//! crash may have left of what was on its way.
//!
//! It watches from outside, as a client does: it knows when something was asked and when
//! it was answered, and nothing in between. Changes that are under way at the same time
//! never overlap. A snapshot holds what was acknowledged before it was asked for, none of
//! what was sent after it was answered, and of each change between those either; the
//! first look at it settles which.

use crate::types::Role;
use std::collections::BTreeMap;
use std::ops::Range;

/// A change of production.
#[derive(Clone, Debug)]
pub(super) struct Change {
    id: u64,
    at: usize,
    data: Vec<u8>,
    begun: u64,
    acked: Option<u64>,
}

/// What a crash may do to a thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It is there.
    Must,
    /// It is on its way here or away.
    May,
}

/// How a life of a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Crash {
    /// The process died: everything acknowledged is there.
    Process,
    /// The power failed: everything flushed is there.
    Power,
}

/// A snapshot.
#[derive(Clone, Debug)]
pub(super) struct Snap {
    pub name: String,
    pub fate: Fate,
    /// Those of the same number come and go together.
    pub group: Option<u64>,
    /// Those of the same number were taken at one instant.
    instant: Option<u64>,
    /// Its content; where `open` says so, it may be another one.
    pub image: Vec<u8>,
    open: Vec<Change>,
    taking: bool,
    /// A command works with it; others leave it alone.
    pub busy: bool,
    pub held: bool,
    /// A hold or a release is under way.
    pub holding: bool,
}

impl Snap {
    pub fn received(name: String, image: Vec<u8>) -> Self {
        Self {
            name,
            fate: Fate::Must,
            group: None,
            instant: None,
            image,
            open: Vec::new(),
            taking: false,
            busy: false,
            held: false,
            holding: false,
        }
    }
}

/// A snapshot that a stream brings.
#[derive(Clone, Debug)]
pub(super) struct Arrival {
    pub name: String,
    pub image: Vec<u8>,
    /// The stream is whole and good, so the snapshot may appear.
    pub complete: bool,
}

/// A volume.
#[derive(Clone, Debug)]
pub(super) struct Vol {
    pub fate: Fate,
    pub role: Role,
    /// A change of role is under way.
    pub role_changing: bool,
    /// Everything acknowledged.
    pub live: Vec<u8>,
    /// Everything flushed.
    base: Vec<u8>,
    /// Changes that are not flushed, in order.
    pending: Vec<Change>,
    /// A roll-back under way: what production may be.
    pub rolling: Option<Vec<u8>>,
    /// A resize under way.
    pub resizing: Option<usize>,
    pub snaps: Vec<Snap>,
    /// A command works with it; others leave it alone.
    pub busy: bool,
    /// Clients leave, and none comes.
    pub shut: bool,
    pub clients: usize,
    /// Ranges that clients work on.
    pub flying: Vec<Range<usize>>,
    /// A receive under way.
    pub arrival: Option<Arrival>,
    /// A receive was begun and not ended: production is nobody's to read.
    pub half: bool,
    /// Which: the snapshot and its base.
    pub half_of: Option<(String, Option<String>)>,
    /// Crashes since production was looked at last.
    unseen: Option<Crash>,
}

/// All volumes of a store, and the order of what happened to them.
#[derive(Default)]
pub(super) struct Oracle {
    pub volumes: BTreeMap<String, Vol>,
    clock: u64,
    /// Of each instant: the latest begin of a change that is in one of its snapshots, and the
    /// earliest answer to one that is not.
    instants: BTreeMap<u64, (u64, u64)>,
}

impl Vol {
    pub fn new(size: usize, role: Role) -> Self {
        Self {
            fate: Fate::May,
            role,
            role_changing: false,
            live: vec![0; size],
            base: vec![0; size],
            pending: Vec::new(),
            rolling: None,
            resizing: None,
            snaps: Vec::new(),
            busy: false,
            shut: false,
            clients: 0,
            flying: Vec::new(),
            arrival: None,
            half: false,
            half_of: None,
            unseen: None,
        }
    }

    pub fn snap(&mut self, name: &str) -> &mut Snap {
        self.snaps.iter_mut().find(|snap| snap.name == name).expect("a snapshot that the oracle knows")
    }

    pub fn has(&self, name: &str) -> bool {
        self.snaps.iter().any(|snap| snap.name == name)
    }

    /// What a flush that is sent now covers.
    pub fn acked(&self) -> Vec<u64> {
        self.pending.iter().filter(|change| change.acked.is_some()).map(|change| change.id).collect()
    }

    /// A flush that covers these was answered.
    pub fn flushed(&mut self, ids: &[u64]) {
        for change in self.pending.extract_if(.., |change| ids.contains(&change.id)) {
            apply(&mut self.base, &change);
        }
    }

    /// Everything acknowledged is durable.
    pub fn all_flushed(&mut self) {
        let ids = self.acked();
        self.flushed(&ids);
    }

    /// The size changed; what is cut off is gone for good.
    pub fn resized(&mut self, size: usize) {
        self.resizing = None;
        self.live.resize(size, 0);
        self.base.resize(size, 0);
        for change in &mut self.pending {
            let keep = size.saturating_sub(change.at).min(change.data.len());
            change.data.truncate(keep);
        }
    }

    /// Production is this, and all of it durable.
    pub fn adopt(&mut self, found: Vec<u8>) {
        self.live.clone_from(&found);
        self.base = found;
        self.pending.clear();
        self.rolling = None;
        self.resizing = None;
        self.unseen = None;
    }

    /// A process that used the volume is gone.
    pub fn crashed(&mut self, crash: Crash) {
        self.unseen = self.unseen.max(Some(crash));
        self.busy = false;
        self.shut = false;
        self.clients = 0;
        self.flying.clear();
        for snap in &mut self.snaps {
            snap.busy = false;
            snap.taking = false;
        }
    }

    /// Compares production with what it may be, and goes on from what was found.
    pub fn check_production(&mut self, found: Vec<u8>) -> Result<(), String> {
        let Some(crash) = self.unseen else {
            return compare(&found, &self.live, std::iter::empty());
        };
        if self.rolling.as_ref() != Some(&found) {
            let power = crash == Crash::Power;
            let mut start = if power { self.base.clone() } else { self.live.clone() };
            if self.resizing == Some(found.len()) {
                start.resize(found.len(), 0);
            }
            let open = self.pending.iter().filter(|change| power || change.acked.is_none());
            compare(&found, &start, open).map_err(|e| format!("{e}, after a crash ({crash:?})"))?;
        }
        self.adopt(found);
        Ok(())
    }
}

impl Oracle {
    pub fn vol(&mut self, volume: &str) -> &mut Vol {
        self.volumes.get_mut(volume).expect("a volume that the oracle knows")
    }

    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// A change is sent.
    pub fn begin(&mut self, volume: &str, at: usize, data: Vec<u8>) -> u64 {
        let now = self.tick();
        let change = Change { id: now, at, data, begun: now, acked: None };
        let vol = self.vol(volume);
        for snap in vol.snaps.iter_mut().filter(|snap| snap.taking) {
            snap.open.push(change.clone());
        }
        vol.pending.push(change);
        now
    }

    /// It was answered.
    pub fn ack(&mut self, volume: &str, id: u64) {
        let now = self.tick();
        let vol = self.vol(volume);
        let change = vol.pending.iter_mut().find(|change| change.id == id).expect("a change under way");
        change.acked = Some(now);
        apply(&mut vol.live, change);
        for change in vol.snaps.iter_mut().filter(|snap| snap.taking).flat_map(|snap| &mut snap.open) {
            if change.id == id {
                change.acked = Some(now);
            }
        }
    }

    /// A snapshot is asked for.
    pub fn take(&mut self, volume: &str, name: &str, group: u64) {
        let vol = self.vol(volume);
        let open = vol.pending.iter().filter(|change| change.acked.is_none()).cloned().collect();
        let snap = Snap {
            fate: Fate::May,
            group: Some(group),
            instant: Some(group),
            open,
            taking: true,
            busy: true,
            ..Snap::received(name.to_owned(), vol.live.clone())
        };
        vol.snaps.push(snap);
    }

    /// It was taken.
    pub fn taken(&mut self, volume: &str, name: &str) {
        let snap = self.vol(volume).snap(name);
        (snap.fate, snap.taking, snap.busy) = (Fate::Must, false, false);
    }

    /// Compares a snapshot with what it may be; the first look settles what was open, and
    /// tells whether the snapshots of a group have one instant.
    pub fn check_snapshot(&mut self, volume: &str, name: &str, found: &[u8]) -> Result<(), String> {
        let snap = self.volumes.get_mut(volume).expect("a volume").snap(name);
        compare(found, &snap.image, snap.open.iter()).map_err(|e| format!("{volume}@{name}: {e}"))?;
        let open = std::mem::take(&mut snap.open);
        let (mut last_in, mut first_out) = (0, u64::MAX);
        for change in &open {
            let range = change.at..change.at + change.data.len();
            let alone = !open.iter().any(|other| other.id != change.id && overlaps(other, &range));
            if !alone || range.end > found.len() || snap.image[range.clone()] == change.data[..] {
                continue;
            }
            if found[range] == change.data[..] {
                last_in = last_in.max(change.begun);
            } else {
                first_out = first_out.min(change.acked.unwrap_or(u64::MAX));
            }
        }
        snap.image = found.to_vec();
        if let Some(instant) = snap.instant {
            let instant = self.instants.entry(instant).or_insert((0, u64::MAX));
            *instant = (instant.0.max(last_in), instant.1.min(first_out));
            if instant.0 > instant.1 {
                return Err(format!("{volume}@{name} is of another instant than those taken with it"));
            }
        }
        Ok(())
    }
}

fn overlaps(change: &Change, range: &Range<usize>) -> bool {
    change.at < range.end && range.start < change.at + change.data.len()
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

/// The oracle's rules are as strict as they say.
#[test]
fn the_oracle_tells_one_instant_from_two() {
    let mut oracle = Oracle::default();
    for name in ["a", "b"] {
        oracle.volumes.insert(name.to_owned(), Vol::new(64, Role::Primary));
        oracle.take(name, "s", 1);
    }
    let first = oracle.begin("a", 0, vec![1; 8]);
    oracle.ack("a", first);
    let second = oracle.begin("b", 0, vec![2; 8]);
    oracle.ack("b", second);
    let (with_second, without_first) = ([vec![2; 8], vec![0; 56]].concat(), vec![0; 64]);
    oracle.taken("a", "s");
    oracle.taken("b", "s");
    assert!(oracle.check_snapshot("b", "s", &with_second).is_ok());
    assert!(oracle.check_snapshot("a", "s", &without_first).is_err());
}

#[test]
fn the_oracle_tells_old_from_older() {
    let mut oracle = Oracle::default();
    oracle.volumes.insert("v".to_owned(), Vol::new(4, Role::Primary));
    let first = oracle.begin("v", 0, vec![1; 4]);
    oracle.ack("v", first);
    oracle.vol("v").all_flushed();
    let second = oracle.begin("v", 1, vec![2; 2]);
    oracle.ack("v", second);
    let check = |crash, found: [u8; 4]| {
        let mut vol = oracle.volumes["v"].clone();
        vol.crashed(crash);
        vol.check_production(found.to_vec()).is_ok()
    };
    assert!(!check(Crash::Process, [1, 1, 1, 1]) && check(Crash::Process, [1, 2, 2, 1]));
    assert!(check(Crash::Power, [1, 2, 1, 1]) && !check(Crash::Power, [1, 0, 1, 1]));
}
