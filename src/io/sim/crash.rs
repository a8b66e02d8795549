//! What is left when a process dies or the power fails.

use super::content::{Change, SECTOR_BYTES, index, sectors};
use super::world::{Ino, NameChange, Node, ROOT, World};
use crate::io::Op;
use bytes::Bytes;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;

/// What a power cut does to the changes that were not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// All are lost.
    All,
    /// None is lost.
    None,
    /// Each is kept, lost or torn at sectors, by chance.
    Random,
    /// Every write is torn at sectors, by chance; of the rest each is kept or lost.
    Torn,
    /// Only that one is kept, counted from 0 to [`super::SimDisk::unsynced`]; with it
    /// the earlier changes of the same name, without which it makes no sense.
    Alone(usize),
    /// Only that one is lost, and with it the later changes of the same name.
    AllBut(usize),
}

/// The process stops here: memory that it has mapped stays as it is now, whatever the
/// tasks that still run do to theirs.
pub(super) fn die(world: &mut World) {
    world.dead = true;
    for node in world.nodes.values_mut() {
        if let Node::File(file) = node
            && let Some(memory) = &mut file.region
        {
            let copy = memory.bytes.borrow().clone();
            memory.bytes = Rc::new(RefCell::new(copy));
        }
    }
}

/// The process is dead: what was under way has happened in full, in part or not.
pub(super) fn crash_process(world: &mut World) {
    die(world);
    let mut flying = std::mem::take(&mut world.flying);
    world.rng.shuffle(&mut flying);
    for flying in flying {
        match world.rng.u8(0..3) {
            0 => {}
            // A sync whose caller died has not failed: a later one makes it good.
            1 if matches!(flying.op, Op::Sync { .. }) => {}
            1 => fail(world, flying.op, flying.sequence),
            _ => in_full(world, flying.op, flying.sequence),
        }
    }
    world.open.clear();
    world.dead = false;
    world.budget = None;
    world.life += 1;
}

/// Performs what changes the disk; the rest has no effect on it.
fn in_full(world: &mut World, op: Op, submitted: u64) {
    let changes = matches!(
        op,
        Op::Write { .. }
            | Op::WriteEach { .. }
            | Op::Punch { .. }
            | Op::Allocate { .. }
            | Op::Truncate { .. }
            | Op::Sync { .. }
            | Op::Rename { .. }
            | Op::Remove { .. }
            | Op::MakeDir { .. }
            | Op::RemoveDir { .. }
            | Op::SyncDir { .. }
            | Op::Open { .. }
    );
    if changes {
        // Only a region refers back to the world, and none is made here.
        let nowhere = Rc::new(RefCell::new(World::new(world.options)));
        let _ = world.perform(op, submitted, &nowhere);
    }
}

/// A failing operation has the effect of a part of it, or none.
pub(super) fn fail(world: &mut World, op: Op, submitted: u64) {
    let (file, change) = match op {
        Op::Write { file, offset, data } => {
            (file, Change::Write { offset, data: Bytes::from(data.concat()) })
        }
        Op::WriteEach { file, pieces } => {
            for (offset, data) in pieces {
                match world.rng.u8(0..3) {
                    0 => {}
                    1 => fail(world, Op::Write { file, offset, data: vec![data] }, submitted),
                    _ => drop(world.change(file, Change::Write { offset, data })),
                }
            }
            return;
        }
        Op::Punch { file, offset, len } => (file, Change::Punch { offset, len }),
        Op::Allocate { file, offset, len } => (file, Change::Allocate { offset, len }),
        Op::Sync { file } => {
            if let Some(open) = world.open.get(&file.0).copied() {
                world.give_up(open.ino, submitted);
            }
            return;
        }
        _ => return,
    };
    if let Some(part) = part(&mut world.rng, &change) {
        let _ = world.change(file, part);
    }
}

/// A prefix of a change, by chance; `None` if nothing of it happened.
pub(super) fn part(rng: &mut fastrand::Rng, change: &Change) -> Option<Change> {
    let cut = |rng: &mut fastrand::Rng, offset: u64, len: u64| {
        let end = (offset + rng.u64(0..=len)) / SECTOR_BYTES * SECTOR_BYTES;
        end.saturating_sub(offset)
    };
    let part = match change {
        Change::Write { offset, data } => {
            let len = cut(rng, *offset, data.len() as u64);
            Change::Write { offset: *offset, data: data.slice(..index(len)) }
        }
        Change::Punch { offset, len } => Change::Punch { offset: *offset, len: cut(rng, *offset, *len) },
        Change::Allocate { offset, len } => {
            Change::Allocate { offset: *offset, len: cut(rng, *offset, *len) }
        }
        Change::Truncate { .. } => return None,
    };
    let nothing = match &part {
        Change::Write { data, .. } => data.is_empty(),
        Change::Punch { len, .. } | Change::Allocate { len, .. } => *len == 0,
        Change::Truncate { .. } => false,
    };
    (!nothing).then_some(part)
}

/// Marks for every chosen change the earlier ones of the same names, too.
pub(super) fn close_over_earlier(names: &[NameChange], kept: &mut [bool]) {
    let mut needed: BTreeSet<(Ino, &str)> = BTreeSet::new();
    for (change, kept) in names.iter().zip(kept.iter_mut()).rev() {
        *kept |= change.names().any(|name| needed.contains(&name));
        if *kept {
            needed.extend(change.names());
        }
    }
}

/// Makes the marked changes durable, in order.
pub(super) fn make_names_durable(world: &mut World, kept: &[bool]) {
    let names = std::mem::take(&mut world.names);
    for (change, kept) in names.into_iter().zip(kept) {
        if !kept {
            world.names.push(change);
            continue;
        }
        if let Some((directory, name)) = &change.from
            && let Some(Node::Dir(dir)) = world.nodes.get_mut(directory)
        {
            dir.durable.remove(name);
        }
        if let Some((directory, name, ino)) = change.to
            && let Some(Node::Dir(dir)) = world.nodes.get_mut(&directory)
        {
            dir.durable.insert(name, ino);
        }
    }
}

/// How many changes are not durable.
pub(super) fn unsynced(world: &World) -> usize {
    let files = world.nodes.values().map(|node| match node {
        Node::File(file) => file.pending.len(),
        Node::Dir(_) => 0,
    });
    files.sum::<usize>() + world.names.len()
}

/// Whether a failed sync has given something up.
pub(super) fn has_doomed(world: &World) -> bool {
    let doomed = |node: &Node| matches!(node, Node::File(file) if file.pending.iter().any(|u| u.doomed));
    world.nodes.values().any(doomed) || world.names.iter().any(|change| change.doomed)
}

/// A later sync covers what failed ones gave up.
pub(super) fn forgive(world: &mut World) {
    for node in world.nodes.values_mut() {
        if let Node::File(file) = node {
            file.pending.iter_mut().for_each(|unsynced| unsynced.doomed = false);
        }
    }
    world.names.iter_mut().for_each(|change| change.doomed = false);
}

/// How one unsynced change fares.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Kept,
    Lost,
    Torn,
}

/// The power fails, and comes back.
pub(super) fn power_cut(world: &mut World, loss: Loss) {
    crash_process(world);
    // Some cuts lose nearly all, some nearly nothing: both find what the middle hides.
    let odds = world.rng.u8(0..=8);
    let mut index = 0;
    let mut fate = |rng: &mut fastrand::Rng, doomed: bool| {
        let this = index;
        index += 1;
        match loss {
            _ if doomed && loss != Loss::None => Fate::Lost,
            Loss::All => Fate::Lost,
            Loss::None => Fate::Kept,
            Loss::Alone(alone) if alone == this => Fate::Kept,
            Loss::Alone(_) => Fate::Lost,
            Loss::AllBut(lost) if lost == this => Fate::Lost,
            Loss::AllBut(_) => Fate::Kept,
            Loss::Torn => Fate::Torn,
            Loss::Random if rng.u8(0..4) == 0 => Fate::Torn,
            Loss::Random if rng.u8(0..8) < odds => Fate::Kept,
            Loss::Random => Fate::Lost,
        }
    };
    let rng = &mut world.rng;
    for node in world.nodes.values_mut() {
        let Node::File(file) = node else { continue };
        for unsynced in std::mem::take(&mut file.pending) {
            match (fate(rng, unsynced.doomed), &unsynced.change) {
                (Fate::Lost, _) => {}
                (Fate::Kept, change) => file.durable.apply(change),
                (Fate::Torn, Change::Write { offset, data }) => {
                    for (at, sector) in sectors(*offset, data) {
                        if rng.bool() {
                            file.durable.write(at, &sector);
                        }
                    }
                }
                (Fate::Torn, change) => {
                    if let Some(part) = part(rng, change) {
                        file.durable.apply(&part);
                    }
                }
            }
        }
        file.live = file.durable.clone();
        spoil_region(rng, file);
    }
    let mut kept: Vec<bool> = Vec::with_capacity(world.names.len());
    for change in &world.names {
        // A name is never torn: it changes or it does not.
        let fate = match fate(&mut world.rng, change.doomed) {
            Fate::Torn if loss == Loss::Torn && world.rng.bool() => Fate::Kept,
            fate => fate,
        };
        kept.push(fate == Fate::Kept);
    }
    if let Loss::AllBut(_) = loss {
        let mut lost: Vec<bool> = kept.iter().map(|kept| !kept).collect();
        let mut spoiled: BTreeSet<(Ino, &str)> = BTreeSet::new();
        for (change, lost) in world.names.iter().zip(lost.iter_mut()) {
            *lost |= change.names().any(|name| spoiled.contains(&name));
            if *lost {
                spoiled.extend(change.names());
            }
        }
        kept = lost.iter().map(|lost| !lost).collect();
    }
    close_over_earlier(&world.names, &mut kept);
    make_names_durable(world, &kept);
    world.names.clear();
    reboot(world);
}

fn spoil_region(rng: &mut fastrand::Rng, file: &mut super::world::FileNode) {
    let Some(memory) = file.region.take() else { return };
    // Mapped only after the last sync of its directory and size: it may not be there.
    let len = index(file.durable.len);
    if len != memory.stale.len() {
        return;
    }
    let mut bytes = memory.bytes.borrow().clone();
    for (page, stale) in bytes.chunks_mut(4096).zip(memory.stale.chunks(4096)) {
        match rng.u8(0..4) {
            0 => page.fill(0),
            1 => rng.fill(page),
            2 => page.copy_from_slice(stale),
            _ => {}
        }
    }
    let bytes = Rc::new(RefCell::new(bytes));
    file.region = Some(super::world::Memory { bytes, stale: memory.stale });
}

/// Starts from the durable names, without what no name leads to.
fn reboot(world: &mut World) {
    let mut reached = BTreeSet::new();
    let mut next = vec![ROOT];
    while let Some(ino) = next.pop() {
        if reached.insert(ino)
            && let Some(Node::Dir(dir)) = world.nodes.get_mut(&ino)
        {
            dir.live = dir.durable.clone();
            next.extend(dir.live.values());
        }
    }
    world.nodes.retain(|ino, _| reached.contains(ino));
    world.boot += 1;
}
