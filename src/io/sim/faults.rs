//! Faults that come by chance: operations that fail, and operations that stall.
//!
//! Chance is the machine's own, so a seed gives the same faults again; while there are none
//! nothing is drawn, and a run is what it would be without this file.

use super::world::World;
use crate::io::{Op, OpenHow};
use rustix::io::Errno;

/// How often operations fail or stall, each in 1/65,536.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// Reads and maps that end with an I/O error.
    pub reads: u32,
    /// Writes, holes, allocations and sizes that end with an I/O error; a part may be done.
    pub writes: u32,
    /// Syncs of files and directories that fail, with what that does to unsynced writes.
    pub syncs: u32,
    /// Opens, renames, removals and the like that end with an I/O error.
    pub names: u32,
    /// Whatever takes space ends with a full disk; a part may be done.
    pub full: u32,
    /// Operations that complete only after some hundred others.
    pub stalls: u32,
}

impl World {
    /// The error that chance gives this operation, if any.
    pub(super) fn fault(&mut self, op: &Op) -> Option<i32> {
        let faults = self.faults?;
        let (odds, takes_space) = match op {
            Op::Read { .. } | Op::Map { .. } => (faults.reads, false),
            Op::Write { .. } | Op::WriteEach { .. } | Op::Allocate { .. } => (faults.writes, true),
            Op::Punch { .. } | Op::Truncate { .. } => (faults.writes, false),
            Op::Sync { .. } | Op::SyncDir { .. } => (faults.syncs, false),
            Op::Open { how, .. } => (faults.names, matches!(how, OpenHow::CreateNew | OpenHow::CreateEmpty)),
            Op::MapRegion { .. } | Op::MakeDir { .. } => (faults.names, true),
            Op::Rename { .. } | Op::Remove { .. } | Op::RemoveDir { .. } | Op::List { .. } => {
                (faults.names, false)
            }
            _ => (0, false),
        };
        let drawn = self.rng.u32(0..1 << 16);
        let errno = if drawn < odds {
            Errno::IO
        } else if takes_space && drawn < odds + faults.full {
            Errno::NOSPC
        } else {
            return None;
        };
        self.injected += 1;
        Some(errno.raw_os_error())
    }

    /// Until which count of operations one that is submitted now is kept back.
    pub(super) fn stall(&mut self, op: &Op) -> u64 {
        let stalls = self.faults.map_or(0, |faults| faults.stalls);
        let may_stall = stalls > 0 && !matches!(op, Op::Sleep { .. });
        if may_stall && self.rng.u32(0..1 << 16) < stalls { self.ops + self.rng.u64(100..600) } else { 0 }
    }

    /// Operations of an engine that may complete now: those kept back only when there is nothing else.
    pub(super) fn ready(&self, port: usize) -> Vec<usize> {
        let awake = |i: &usize| self.flying[*i].id.0 == port && self.flying[*i].wakes.is_none();
        let all: Vec<usize> = (0..self.flying.len()).filter(awake).collect();
        let free: Vec<usize> =
            all.iter().copied().filter(|i| self.flying[*i].held_until <= self.ops).collect();
        if free.is_empty() { all } else { free }
    }
}
