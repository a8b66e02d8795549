//! The model: random operations on a volume beside an oracle that keeps a full copy of
//! production and of every snapshot, on the simulated disk and on the real drivers.
//!
//! Everything comes from a seed, which is printed when a run fails. In the tests
//! `SNAPVOL_SEED` sets the first one and `SNAPVOL_ROUNDS` how many rounds each test runs; the
//! program `simulate` runs the same for as long as one likes. What is wrong panics.

#![allow(clippy::unwrap_used, reason = "a run that goes wrong panics, and whoever started it says so")]
#![allow(clippy::missing_panics_doc, reason = "a panic is how a violation is told")]

mod exhaustive;
mod kinds;
mod lives;
mod oracle;
mod origins;
mod receive;
mod run;
mod script;
mod step;
mod tails;

#[cfg(test)]
mod crash;
#[cfg(test)]
mod damage;
#[cfg(test)]
mod drivers;
#[cfg(test)]
mod full;
#[cfg(test)]
mod rules;
#[cfg(test)]
mod smoke;

pub use exhaustive::{Config, Exhaustive, configs};
pub use kinds::{KINDS, Kind};
pub use run::{Counts, Id, Run};

use super::{TakeRequest, Volume};
use crate::io::sim::SimDisk;
use crate::io::{Driver, Io, Reactor};
use crate::store::Tuning;
use crate::types::{Geometry, OnFull, Role};
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::path::Path;
use std::rc::Rc;
use uuid::Uuid;

/// Turns of a reactor after which a run counts as spinning.
const TURNS_MAX: u64 = 300_000;

/// Operations under way at a time after which a run counts as one that never ends.
const UNDER_WAY_MAX: usize = 5_000;

/// The directory of the volume on a simulated disk.
const DIR: &str = "/v";

/// Sizes that make everything happen often.
pub(crate) fn tuning(block_size: u32) -> Tuning {
    let block = u64::from(block_size);
    Tuning {
        segment_bytes: (block * 16).max(128 << 10),
        segment_step_bytes: (block * 4).max(32 << 10),
        stage_bytes: block * 24,
        journal_bytes_max: 32 << 10,
        journal_step_bytes: 16 << 10,
        group_bytes_max: block * 4,
        groups_in_flight_max: 2,
        layer_entries_max: 9,
        steps_at_once: 2,
        beside_blocks_min: 2,
        reserve_bytes: 1 << 20,
        region_bytes: block * 4,
        active_regions: 6,
    }
}

#[cfg(test)]
/// The first seed and the number of rounds of a test.
fn rounds(seed: u64, count: u64) -> std::ops::Range<u64> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let seed = number("SNAPVOL_SEED").unwrap_or(seed);
    seed..seed + number("SNAPVOL_ROUNDS").unwrap_or(count)
}

#[cfg(test)]
/// Prints a seed if the test fails while it is alive.
struct Seed(String);

#[cfg(test)]
impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("failed with {}", self.0);
        }
    }
}

/// Runs a task until it ends or `dead` says that the process died (`None`); looks around
/// after every turn.
fn drive<T: 'static, F: Future<Output = T> + 'static>(
    driver: Box<dyn Driver>,
    dead: impl Fn() -> bool,
    mut look: impl FnMut(),
    task: impl FnOnce(Io) -> F,
) -> Option<T> {
    let mut reactor = Reactor::new(driver);
    let io = reactor.io();
    let result = Rc::new(RefCell::new(None));
    let (task, cell) = (task(io.clone()), Rc::clone(&result));
    io.spawn(async move {
        let value = task.await;
        *cell.borrow_mut() = Some(value);
    });
    for _ in 0..TURNS_MAX {
        reactor.run_ready();
        if dead() {
            return None;
        }
        if let Some(value) = result.borrow_mut().take() {
            return Some(value);
        }
        assert!(reactor.is_busy(), "a task waits for something that nobody does");
        look();
        reactor.turn(None);
    }
    panic!("it goes round in circles");
}

/// Runs a task on a simulated disk; `None` if the process died.
fn on_sim<T: 'static, F: Future<Output = T> + 'static>(
    disk: &SimDisk,
    task: impl FnOnce(Io) -> F,
) -> Option<T> {
    drive(Box::new(disk.driver()), || disk.is_dead(), || (), task)
}

/// The same, looking around after every turn.
fn on_sim_watched<T: 'static, F: Future<Output = T> + 'static>(
    disk: &SimDisk,
    mut look: impl FnMut(),
    task: impl FnOnce(Io) -> F,
) -> Option<T> {
    let look = || {
        let count = disk.under_way();
        if count > UNDER_WAY_MAX {
            let mut text = format!("{disk:?}");
            text.truncate(2000);
            panic!("{count} operations are under way: {text}");
        }
        look();
    };
    drive(Box::new(disk.driver()), || disk.is_dead(), look, task)
}

/// Makes a volume in `dir`, durable with its name.
async fn create(io: &Io, dir: &Path, geometry: Geometry, role: Role) {
    let uuid = Uuid::from_u128(7);
    Volume::create(io, dir, uuid, geometry, OnFull::Freeze, role).await.unwrap();
    io.sync_dir(dir.parent().unwrap()).await.unwrap();
}

/// Opens the volume in `dir`.
async fn open(io: &Io, dir: &Path, block_size: u32, committed: &BTreeSet<Uuid>) -> Rc<Volume> {
    Volume::open(io, dir, "vol", tuning(block_size), committed).await.unwrap().0
}

/// A take of that name.
#[cfg(test)]
fn request(name: &str) -> TakeRequest {
    TakeRequest {
        uuid: Uuid::new_v4(),
        name: name.to_owned(),
        created_us: 1,
        batch: None,
        received: false,
        set: None,
    }
}

/// All bytes of pieces.
fn bytes_of(pieces: Vec<super::Piece>) -> Vec<u8> {
    let mut out = Vec::new();
    for piece in pieces {
        match piece {
            super::Piece::Data(data) => out.extend_from_slice(&data),
            super::Piece::Hole(len) => out.resize(out.len() + usize::try_from(len).unwrap(), 0),
        }
    }
    out
}

/// All of production.
async fn production(volume: &Rc<Volume>) -> Vec<u8> {
    bytes_of(volume.read(0, volume.geometry().size).await.unwrap())
}

/// All of a snapshot.
async fn snapshot(volume: &Rc<Volume>, name: &str) -> Vec<u8> {
    let reader = volume.open_snapshot(name).unwrap();
    bytes_of(reader.read(0, reader.size()).await.unwrap())
}
