//! The state of a simulated machine, and what each operation does to it.
//!
//! Invariants: a file that no name, open file or unsynced change refers to is only
//! forgotten at a crash; `pending` lists are in the order in which changes completed.

use super::super::region::{Mapped, Region};
use super::content::{Change, Content, index};
use super::faults::Faults;
use super::{SimOptions, crash};
use crate::io::{FileId, Op, OpId, OpenHow, Outcome, Output};
use bytes::{Bytes, BytesMut};
use rustix::io::Errno;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use uuid::Uuid;

/// Reads and writes of up to so many bytes may complete inline.
const INLINE_MAX_BYTES: usize = 64 * 1024;

/// The number of a file or directory.
pub(super) type Ino = u64;

pub(super) const ROOT: Ino = 0;

/// A change that completed and is not durable.
#[derive(Clone, Debug)]
pub(super) struct Unsynced {
    /// In the order of completion, over the whole machine.
    pub(super) sequence: u64,
    pub(super) change: Change,
    /// A failed sync has given it up: no later one makes it durable.
    pub(super) doomed: bool,
}

/// A change of names that is not durable.
#[derive(Clone, Debug)]
pub(super) struct NameChange {
    pub(super) sequence: u64,
    /// What loses its name.
    pub(super) from: Option<(Ino, String)>,
    /// What gets one, or another.
    pub(super) to: Option<(Ino, String, Ino)>,
    pub(super) doomed: bool,
}

impl NameChange {
    fn touches(&self, directory: Ino) -> bool {
        self.from.as_ref().is_some_and(|(dir, _)| *dir == directory)
            || self.to.as_ref().is_some_and(|(dir, _, _)| *dir == directory)
    }

    pub(super) fn names(&self) -> impl Iterator<Item = (Ino, &str)> {
        let from = self.from.iter().map(|(dir, name)| (*dir, name.as_str()));
        from.chain(self.to.iter().map(|(dir, name, _)| (*dir, name.as_str())))
    }
}

/// The memory of a mapped region.
#[derive(Clone, Debug)]
pub(super) struct Memory {
    /// Shared with the process that lives now, if it has mapped it.
    pub(super) bytes: Rc<RefCell<Vec<u8>>>,
    /// What it held when it was mapped last: what the disk may still hold.
    pub(super) stale: Vec<u8>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct FileNode {
    pub(super) live: Content,
    pub(super) durable: Content,
    pub(super) pending: Vec<Unsynced>,
    pub(super) region: Option<Memory>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct DirNode {
    pub(super) live: BTreeMap<String, Ino>,
    pub(super) durable: BTreeMap<String, Ino>,
}

#[derive(Clone, Debug)]
pub(super) enum Node {
    File(FileNode),
    Dir(DirNode),
}

/// An open file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Open {
    pub(super) ino: Ino,
    how: OpenHow,
    /// Only what was submitted before may still use it.
    closed: bool,
}

/// An operation under way.
#[derive(Clone, Debug)]
pub(super) struct Flying {
    /// The driver's number, and the operation's there.
    pub(super) id: (usize, OpId),
    pub(super) op: Op,
    /// What had completed when it was submitted.
    pub(super) sequence: u64,
    /// When it ends, for a sleep.
    pub(super) wakes: Option<Duration>,
    /// It stalls until so many operations have completed.
    pub(super) held_until: u64,
}

/// A machine.
pub(super) struct World {
    pub(super) rng: fastrand::Rng,
    pub(super) options: SimOptions,
    pub(super) nodes: BTreeMap<Ino, Node>,
    pub(super) next_ino: Ino,
    pub(super) names: Vec<NameChange>,
    pub(super) sequence: u64,
    pub(super) open: BTreeMap<u32, Open>,
    pub(super) next_file: u32,
    pub(super) flying: Vec<Flying>,
    now: Duration,
    pub(super) boot: u64,
    pub(super) life: u64,
    /// Drivers made so far.
    pub(super) ports: usize,
    /// Identities given out so far.
    identities: u64,
    /// Operations that completed.
    pub(super) ops: u64,
    /// How many more complete before the process dies.
    pub(super) budget: Option<u64>,
    /// The process died between two stores; what it does from now on never happened.
    pub(super) dead: bool,
    pub(super) failures: BTreeMap<u64, i32>,
    pub(super) faults: Option<Faults>,
    /// Failures that chance gave.
    pub(super) injected: u64,
    pub(super) syncs_fail: bool,
    /// Bytes that files may occupy.
    pub(super) capacity: Option<u64>,
    /// Before which operation the disk fills up, and what is left.
    pub(super) fills: BTreeMap<u64, u64>,
    pub(super) unreadable: BTreeSet<(Ino, u64)>,
}

impl World {
    pub(super) fn new(options: SimOptions) -> Self {
        Self {
            rng: fastrand::Rng::with_seed(options.seed),
            options,
            nodes: BTreeMap::from([(ROOT, Node::Dir(DirNode::default()))]),
            next_ino: ROOT + 1,
            names: Vec::new(),
            sequence: 0,
            open: BTreeMap::new(),
            next_file: 0,
            flying: Vec::new(),
            now: Duration::ZERO,
            boot: 1,
            life: 1,
            ports: 0,
            identities: 0,
            ops: 0,
            budget: None,
            dead: false,
            failures: BTreeMap::new(),
            faults: None,
            injected: 0,
            syncs_fail: false,
            capacity: None,
            fills: BTreeMap::new(),
            unreadable: BTreeSet::new(),
        }
    }

    /// The same machine once more; nothing is shared that could change.
    pub(super) fn duplicate(&self) -> Self {
        let mut nodes = self.nodes.clone();
        for node in nodes.values_mut() {
            if let Node::File(file) = node
                && let Some(memory) = &mut file.region
            {
                let copy = memory.bytes.borrow().clone();
                memory.bytes = Rc::new(RefCell::new(copy));
            }
        }
        Self {
            rng: self.rng.clone(),
            nodes,
            names: self.names.clone(),
            open: self.open.clone(),
            flying: self.flying.clone(),
            failures: self.failures.clone(),
            fills: self.fills.clone(),
            unreadable: self.unreadable.clone(),
            ..*self
        }
    }

    pub(super) fn boot_id(&self) -> [u8; 16] {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&self.options.seed.to_le_bytes());
        id[8..].copy_from_slice(&self.boot.to_le_bytes());
        id
    }

    /// The next identity: it depends on the seed and on how many there were, and takes
    /// nothing from the chance that decides about operations.
    pub(super) fn identity(&mut self) -> Uuid {
        self.identities += 1;
        let mut rng = fastrand::Rng::with_seed(self.options.seed ^ self.identities.rotate_left(32));
        Uuid::from_u128(rng.u128(..))
    }

    /// The time of day: the machine was made in 2001.
    pub(super) fn now_us(&self) -> u64 {
        let since = u64::try_from(self.now.as_micros()).unwrap_or(u64::MAX);
        since.saturating_add(1_000_000_000_000_000)
    }

    pub(super) fn is_dead(&self) -> bool {
        self.dead || self.budget == Some(0)
    }

    pub(super) fn submit(
        &mut self,
        id: (usize, OpId),
        op: Op,
        world: &Rc<RefCell<World>>,
    ) -> Option<Outcome> {
        if self.dead {
            return None;
        }
        // As on the real drivers, an operation holds its file from the moment it is
        // submitted, and a close comes into effect at once.
        if let Some(file) = file_of(&op)
            && self.open.get(&file.0).is_none_or(|open| open.closed)
        {
            return Some(bad(Errno::BADF));
        }
        if let Op::Close { file } = op {
            if let Some(open) = self.open.get_mut(&file.0) {
                open.closed = true;
            }
            return Some(Ok(Output::None));
        }
        if self.is_done_at_once(&op) {
            return Some(self.complete(op, self.sequence, world));
        }
        let wakes = match &op {
            // A sleep of no time ends among the other operations: time passes only when there
            // is none.
            Op::Sleep { time } if !time.is_zero() => Some(self.now.saturating_add(*time)),
            _ => None,
        };
        let held_until = self.stall(&op);
        self.flying.push(Flying { id, op, sequence: self.sequence, wakes, held_until });
        None
    }

    /// Does a read or a write at once, or not at all.
    pub(super) fn now(&mut self, op: Op, world: &Rc<RefCell<World>>) -> Option<Outcome> {
        if file_of(&op).is_some_and(|file| self.open.get(&file.0).is_none_or(|open| open.closed)) {
            return Some(bad(Errno::BADF));
        }
        self.is_done_at_once(&op).then(|| self.complete(op, self.sequence, world))
    }

    fn is_done_at_once(&self, op: &Op) -> bool {
        self.options.inline && is_inline(op) && !self.is_dead()
    }

    pub(super) fn wait(
        &mut self,
        port: usize,
        timeout: Option<Duration>,
        world: &Rc<RefCell<World>>,
        done: &mut Vec<(OpId, Outcome)>,
    ) {
        let is_awake = |flying: &Flying| flying.id.0 == port && flying.wakes.is_none();
        let awake = self.flying.iter().filter(|flying| is_awake(flying)).count();
        if awake == 0 {
            self.pass_time(port, timeout, done);
            return;
        }
        for _ in 0..1 + self.rng.usize(0..awake.min(4)) {
            if self.is_dead() {
                return;
            }
            let ready = self.ready(port);
            let chosen = if self.options.reorder { self.rng.usize(0..ready.len()) } else { 0 };
            let flying = self.flying.remove(ready[chosen]);
            let outcome = self.complete(flying.op, flying.sequence, world);
            done.push((flying.id.1, outcome));
        }
    }

    /// Only sleeps are under way: the next one ends, if the wait is as long as that.
    fn pass_time(&mut self, port: usize, timeout: Option<Duration>, done: &mut Vec<(OpId, Outcome)>) {
        let end = timeout.map(|timeout| self.now.saturating_add(timeout));
        let own = (0..self.flying.len()).filter(|i| self.flying[*i].id.0 == port);
        let next = own.min_by_key(|i| self.flying[*i].wakes);
        let next = next.filter(|_| !self.is_dead());
        match next.map(|i| (i, self.flying[i].wakes.unwrap_or_default())) {
            Some((i, wakes)) if end.is_none_or(|end| wakes <= end) => {
                self.now = self.now.max(wakes);
                done.push((self.flying.remove(i).id.1, Ok(Output::None)));
            }
            _ => self.now = end.unwrap_or(self.now),
        }
    }

    fn complete(&mut self, op: Op, submitted: u64, world: &Rc<RefCell<World>>) -> Outcome {
        self.ops += 1;
        self.budget = self.budget.map(|budget| budget.saturating_sub(1));
        if let Some(free) = self.fills.remove(&self.ops) {
            self.capacity = Some(self.used() + free);
        }
        if let Some(errno) = self.failures.remove(&self.ops) {
            crash::fail(self, op, submitted);
            return Err(io::Error::from_raw_os_error(errno));
        }
        if let Some(errno) = self.fault(&op) {
            crash::fail(self, op, submitted);
            return Err(io::Error::from_raw_os_error(errno));
        }
        self.perform(op, submitted, world)
    }

    /// Does an operation at this moment.
    pub(super) fn perform(&mut self, op: Op, submitted: u64, world: &Rc<RefCell<World>>) -> Outcome {
        match op {
            Op::Read { file, offset, len } => self.read(file, offset, len),
            Op::Write { file, offset, data } => {
                let data = Bytes::from(data.concat());
                self.change(file, Change::Write { offset, data })
            }
            Op::ReadEach { file, pieces, into } => self.read_each(file, &pieces, into),
            Op::WriteEach { file, pieces } => {
                for (offset, data) in pieces {
                    self.change(file, Change::Write { offset, data })?;
                }
                Ok(Output::None)
            }
            Op::Punch { file, offset, len } => self.change(file, Change::Punch { offset, len }),
            Op::Allocate { file, offset, len } => self.change(file, Change::Allocate { offset, len }),
            Op::Truncate { file, len } => self.change(file, Change::Truncate { len }),
            Op::Sync { file } => self.sync(file, submitted),
            Op::Size { file } => Ok(Output::Size(self.file(file)?.live.len)),
            Op::Allocated { file } => Ok(Output::Size(self.file(file)?.live.allocated())),
            Op::Free { path } => {
                self.find(&path)?;
                Ok(Output::Size(self.free()))
            }
            Op::Open { path, how } => self.open(&path, how),
            Op::Rename { from, to } => self.rename(&from, &to),
            Op::Remove { path } => self.unlink(&path, false),
            Op::MakeDir { path } => {
                let (parent, name) = self.parent(&path)?;
                if self.dir(parent)?.live.contains_key(&name) {
                    return bad(Errno::EXIST);
                }
                self.link(parent, name, Node::Dir(DirNode::default()));
                Ok(Output::None)
            }
            Op::RemoveDir { path } => self.unlink(&path, true),
            Op::SyncDir { path } => self.sync_dir(&path, submitted),
            Op::List { path } => {
                let directory = self.find(&path)?;
                Ok(Output::Names(self.dir(directory)?.live.keys().cloned().collect()))
            }
            Op::Map { path } => {
                let ino = self.find(&path)?;
                let content = &self.file_at(ino)?.live;
                let mut bytes = vec![0; index(content.len)];
                content.read(0, &mut bytes);
                Ok(Output::Mapped(Mapped::new(Arc::new(bytes))))
            }
            Op::MapRegion { path, len } => self.map_region(&path, len, world),
            Op::Recv { .. } | Op::Send { .. } => bad(Errno::OPNOTSUPP),
            Op::Compute { work } => {
                work.run();
                Ok(Output::None)
            }
            // Anything that is not synced may be on the disk or not, at any time.
            Op::Sleep { .. } | Op::Close { .. } | Op::WriteBack { .. } => Ok(Output::None),
        }
    }

    fn read(&mut self, file: FileId, offset: u64, len: usize) -> Outcome {
        let ino = self.opened(file)?.ino;
        let sectors = offset / 512..(offset + len as u64).div_ceil(512);
        if self.unreadable.range((ino, sectors.start)..(ino, sectors.end)).next().is_some() {
            return bad(Errno::IO);
        }
        let mut bytes = BytesMut::zeroed(len);
        self.file(file)?.live.read(offset, &mut bytes);
        Ok(Output::Bytes(bytes))
    }

    /// Chance says what is at hand.
    fn read_each(&mut self, file: FileId, pieces: &[(u64, usize)], mut into: BytesMut) -> Outcome {
        let mut missing = Vec::new();
        for (number, (offset, len)) in pieces.iter().enumerate() {
            match self.read(file, *offset, *len) {
                Ok(Output::Bytes(bytes)) if self.rng.u8(0..4) > 0 => into.extend_from_slice(&bytes),
                _ => {
                    into.resize(into.len() + len, 0);
                    missing.push(number);
                }
            }
        }
        Ok(Output::Pieces(into, missing))
    }

    /// Changes a file; a full disk takes a part of a write, by chance.
    pub(super) fn change(&mut self, file: FileId, change: Change) -> Outcome {
        let Open { ino, how, .. } = self.opened(file)?;
        if how == OpenHow::Read {
            return bad(Errno::BADF);
        }
        let cost = self.file_at(ino)?.live.cost(&change);
        if cost > self.free() {
            if let Some(part) = crash::part(&mut self.rng, &change)
                && self.file_at(ino)?.live.cost(&part) <= self.free()
            {
                self.record(ino, part);
            }
            return bad(Errno::NOSPC);
        }
        self.record(ino, change);
        Ok(Output::None)
    }

    /// Makes a change live, and notes that it is not durable.
    pub(super) fn record(&mut self, ino: Ino, change: Change) {
        self.sequence += 1;
        let sequence = self.sequence;
        if let Some(Node::File(file)) = self.nodes.get_mut(&ino) {
            file.live.apply(&change);
            if let Change::Write { offset, data } = &change {
                let end = (offset + data.len() as u64).div_ceil(512);
                for sector in offset / 512..end {
                    self.unreadable.remove(&(ino, sector));
                }
            }
            file.pending.push(Unsynced { sequence, change, doomed: false });
        }
    }

    /// Makes durable what had completed when the sync was submitted, and a prefix of what
    /// did since.
    fn sync(&mut self, file: FileId, submitted: u64) -> Outcome {
        let ino = self.opened(file)?.ino;
        if self.syncs_fail {
            self.give_up(ino, submitted);
            return bad(Errno::IO);
        }
        let until = submitted + self.rng.u64(0..=self.sequence - submitted);
        let Some(Node::File(file)) = self.nodes.get_mut(&ino) else { return bad(Errno::BADF) };
        let mut made = Vec::new();
        for unsynced in &file.pending {
            if unsynced.sequence <= until && !unsynced.doomed {
                file.durable.apply(&unsynced.change);
                made.push((unsynced.sequence, unsynced.change.clone()));
            }
        }
        file.pending.retain(|unsynced| unsynced.sequence > until || unsynced.doomed);
        // What was given up does not come back over what was written there later.
        file.pending.retain(|given_up| {
            let older = |(sequence, change): &(u64, Change)| {
                given_up.sequence < *sequence && given_up.change.meets(change)
            };
            !given_up.doomed || !made.iter().any(older)
        });
        Ok(Output::None)
    }

    /// What a failed sync leaves: some of it durable, the rest never.
    pub(super) fn give_up(&mut self, ino: Ino, submitted: u64) {
        let Some(Node::File(file)) = self.nodes.get_mut(&ino) else { return };
        for unsynced in file.pending.iter_mut().filter(|unsynced| unsynced.sequence <= submitted) {
            unsynced.doomed |= self.rng.bool();
        }
    }

    fn sync_dir(&mut self, path: &Path, submitted: u64) -> Outcome {
        let directory = self.find(path)?;
        self.dir(directory)?;
        if self.syncs_fail {
            return bad(Errno::IO);
        }
        let until = submitted + self.rng.u64(0..=self.sequence - submitted);
        let mut kept: Vec<bool> = self
            .names
            .iter()
            .map(|change| change.touches(directory) && change.sequence <= until && !change.doomed)
            .collect();
        crash::close_over_earlier(&self.names, &mut kept);
        crash::make_names_durable(self, &kept);
        Ok(Output::None)
    }

    fn open(&mut self, path: &Path, how: OpenHow) -> Outcome {
        let (parent, name) = self.parent(path)?;
        let found = self.dir(parent)?.live.get(&name).copied();
        let ino = match (found, how) {
            (Some(_), OpenHow::CreateNew) => return bad(Errno::EXIST),
            (Some(ino), _) => {
                if self.file_at(ino).is_err() && how != OpenHow::Read {
                    return bad(Errno::ISDIR);
                }
                if how == OpenHow::CreateEmpty && self.file_at(ino)?.live.len > 0 {
                    self.record(ino, Change::Truncate { len: 0 });
                }
                ino
            }
            (None, OpenHow::Read | OpenHow::Write) => return bad(Errno::NOENT),
            (None, _) => self.link(parent, name, Node::File(FileNode::default())),
        };
        let number = self.next_file;
        self.next_file += 1;
        self.open.insert(number, Open { ino, how, closed: false });
        Ok(Output::File(FileId(number)))
    }

    fn link(&mut self, parent: Ino, name: String, node: Node) -> Ino {
        let ino = self.next_ino;
        self.next_ino += 1;
        self.nodes.insert(ino, node);
        self.rename_to(None, Some((parent, name, ino)));
        ino
    }

    /// Changes names, live, and notes that they are not durable.
    fn rename_to(&mut self, from: Option<(Ino, String)>, to: Option<(Ino, String, Ino)>) {
        self.sequence += 1;
        if let Some((directory, name)) = &from
            && let Some(Node::Dir(dir)) = self.nodes.get_mut(directory)
        {
            dir.live.remove(name);
        }
        if let Some((directory, name, ino)) = &to
            && let Some(Node::Dir(dir)) = self.nodes.get_mut(directory)
        {
            dir.live.insert(name.clone(), *ino);
        }
        self.names.push(NameChange { sequence: self.sequence, from, to, doomed: false });
    }

    fn rename(&mut self, from: &Path, to: &Path) -> Outcome {
        let (old_dir, old_name) = self.parent(from)?;
        let (new_dir, new_name) = self.parent(to)?;
        let ino = *self.dir(old_dir)?.live.get(&old_name).ok_or(Errno::NOENT)?;
        if let Some(replaced) = self.dir(new_dir)?.live.get(&new_name) {
            match (&self.nodes[&ino], &self.nodes[replaced]) {
                _ if *replaced == ino => return Ok(Output::None),
                (Node::Dir(_), Node::Dir(dir)) if !dir.live.is_empty() => return bad(Errno::NOTEMPTY),
                (Node::Dir(_), Node::File(_)) => return bad(Errno::NOTDIR),
                (Node::File(_), Node::Dir(_)) => return bad(Errno::ISDIR),
                _ => {}
            }
        }
        self.rename_to(Some((old_dir, old_name)), Some((new_dir, new_name, ino)));
        Ok(Output::None)
    }

    fn unlink(&mut self, path: &Path, directory: bool) -> Outcome {
        let (parent, name) = self.parent(path)?;
        let ino = *self.dir(parent)?.live.get(&name).ok_or(Errno::NOENT)?;
        match &self.nodes[&ino] {
            Node::Dir(_) if !directory => return bad(Errno::ISDIR),
            Node::File(_) if directory => return bad(Errno::NOTDIR),
            Node::Dir(dir) if !dir.live.is_empty() => return bad(Errno::NOTEMPTY),
            _ => {}
        }
        self.rename_to(Some((parent, name)), None);
        Ok(Output::None)
    }

    fn map_region(&mut self, path: &Path, len: u64, world: &Rc<RefCell<World>>) -> Outcome {
        let (parent, name) = self.parent(path)?;
        let found = self.dir(parent)?.live.get(&name).copied();
        let size = index(len);
        let have = match found {
            Some(ino) => self.file_at(ino)?.live.allocated(),
            None => 0,
        };
        if len.saturating_sub(have) > self.free() {
            return bad(Errno::NOSPC);
        }
        let ino = found.unwrap_or_else(|| self.link(parent, name, Node::File(FileNode::default())));
        let Some(Node::File(file)) = self.nodes.get_mut(&ino) else { return bad(Errno::ISDIR) };
        let old = file.region.take().filter(|memory| memory.bytes.borrow().len() == size);
        let memory = old
            .unwrap_or_else(|| Memory { bytes: Rc::new(RefCell::new(vec![0; size])), stale: vec![0; size] });
        let stale = memory.bytes.borrow().clone();
        let bytes = Rc::clone(&memory.bytes);
        file.region = Some(Memory { stale, ..memory });
        if file.live.len != len {
            self.record(ino, Change::Truncate { len: 0 });
            self.record(ino, Change::Allocate { offset: 0, len });
        }
        let region = SimRegion { world: Rc::clone(world), life: self.life, bytes };
        Ok(Output::Region(Rc::new(region)))
    }

    /// Bytes that files may still take.
    pub(super) fn free(&self) -> u64 {
        self.capacity.map_or(1 << 50, |capacity| capacity.saturating_sub(self.used()))
    }

    /// Bytes that files with a name or an open file occupy.
    pub(super) fn used(&self) -> u64 {
        let mut seen: BTreeSet<Ino> =
            self.open.values().filter(|open| !open.closed).map(|open| open.ino).collect();
        for node in self.nodes.values() {
            if let Node::Dir(dir) = node {
                seen.extend(dir.live.values());
            }
        }
        let files = seen.iter().filter_map(|ino| match self.nodes.get(ino) {
            Some(Node::File(file)) => Some(file.live.allocated()),
            _ => None,
        });
        files.sum()
    }

    fn opened(&self, file: FileId) -> io::Result<Open> {
        self.open.get(&file.0).copied().ok_or_else(|| Errno::BADF.into())
    }

    fn file(&self, file: FileId) -> io::Result<&FileNode> {
        self.file_at(self.opened(file)?.ino)
    }

    pub(super) fn file_at(&self, ino: Ino) -> io::Result<&FileNode> {
        match self.nodes.get(&ino) {
            Some(Node::File(file)) => Ok(file),
            _ => Err(Errno::ISDIR.into()),
        }
    }

    fn dir(&self, ino: Ino) -> io::Result<&DirNode> {
        match self.nodes.get(&ino) {
            Some(Node::Dir(dir)) => Ok(dir),
            _ => Err(Errno::NOTDIR.into()),
        }
    }

    /// The file or directory at a path, relative or not: there is one root.
    pub(super) fn find(&self, path: &Path) -> io::Result<Ino> {
        let mut ino = ROOT;
        for component in path.components() {
            match component {
                Component::Normal(name) => {
                    let name = name.to_str().ok_or(Errno::INVAL)?;
                    ino = *self.dir(ino)?.live.get(name).ok_or(Errno::NOENT)?;
                }
                Component::RootDir | Component::CurDir => {}
                Component::ParentDir | Component::Prefix(_) => return Err(Errno::INVAL.into()),
            }
        }
        Ok(ino)
    }

    /// The paths of all files that have a name.
    pub(super) fn files(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut next = vec![(ROOT, PathBuf::from("/"))];
        while let Some((ino, path)) = next.pop() {
            match self.nodes.get(&ino) {
                Some(Node::Dir(dir)) => {
                    next.extend(dir.live.iter().map(|(name, ino)| (*ino, path.join(name))));
                }
                Some(Node::File(_)) => found.push(path),
                None => {}
            }
        }
        found.sort();
        found
    }

    fn parent(&self, path: &Path) -> io::Result<(Ino, String)> {
        let name = path.file_name().and_then(|name| name.to_str()).ok_or(Errno::INVAL)?;
        let parent = self.find(path.parent().unwrap_or(Path::new("")))?;
        self.dir(parent)?;
        Ok((parent, name.to_owned()))
    }
}

fn is_inline(op: &Op) -> bool {
    match op {
        Op::Read { len, .. } => *len <= INLINE_MAX_BYTES,
        Op::Write { data, .. } => data.iter().map(Bytes::len).sum::<usize>() <= INLINE_MAX_BYTES,
        Op::Size { .. } | Op::Allocated { .. } | Op::Free { .. } => true,
        Op::Open { .. } | Op::Map { .. } => true,
        _ => false,
    }
}

/// The open file that an operation is about.
fn file_of(op: &Op) -> Option<FileId> {
    match op {
        Op::Read { file, .. }
        | Op::Write { file, .. }
        | Op::ReadEach { file, .. }
        | Op::WriteEach { file, .. }
        | Op::Sync { file }
        | Op::Punch { file, .. }
        | Op::Allocate { file, .. }
        | Op::Truncate { file, .. }
        | Op::Size { file }
        | Op::Allocated { file }
        | Op::Close { file } => Some(*file),
        _ => None,
    }
}

fn bad(errno: Errno) -> Outcome {
    Err(errno.into())
}

/// A region mapped by one life of the process.
struct SimRegion {
    world: Rc<RefCell<World>>,
    life: u64,
    bytes: Rc<RefCell<Vec<u8>>>,
}

impl std::fmt::Debug for SimRegion {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "SimRegion({} bytes)", self.bytes.borrow().len())
    }
}

impl Region for SimRegion {
    fn len(&self) -> usize {
        self.bytes.borrow().len()
    }

    /// Counts as an operation, so that a process can die between two stores, or in one.
    fn write(&self, offset: usize, data: &[u8]) {
        let world = &mut *self.world.borrow_mut();
        if world.life == self.life && !world.dead {
            if world.is_dead() {
                // A store of eight bytes is one instruction: all of it or nothing.
                let some = world.rng.usize(0..=data.len());
                let kept = if data.len() > 8 { some } else { some / data.len().max(1) * data.len() };
                self.bytes.borrow_mut()[offset..offset + kept].copy_from_slice(&data[..kept]);
                crash::die(world);
            } else {
                world.ops += 1;
                world.budget = world.budget.map(|budget| budget - 1);
            }
        }
        self.bytes.borrow_mut()[offset..offset + data.len()].copy_from_slice(data);
    }

    fn read(&self, offset: usize, data: &mut [u8]) {
        data.copy_from_slice(&self.bytes.borrow()[offset..offset + data.len()]);
    }
}
