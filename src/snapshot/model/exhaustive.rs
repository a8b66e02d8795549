//! Short scripts, cut short after every single operation, and with every single operation
//! failing once.

use super::crash::recovered;
use super::oracle::{Crash, Oracle};
use super::script::Script;
use super::*;
use crate::io::sim::{EIO, ENOSPC, Loss, SimOptions};
use futures::future::{LocalBoxFuture, join};
use std::cell::Cell;

const BLOCK: usize = 4096;
const SIZE: usize = 24 * BLOCK + 512;

type Tail = fn(Rc<Script>) -> LocalBoxFuture<'static, ()>;

/// Writes `len` bytes of `byte`.
async fn put(script: &Script, at: usize, len: usize, byte: u8) {
    script.apply(0, at, vec![byte; len], false).await;
}

async fn trim(script: &Script, at: usize, len: usize) {
    script.apply(6, at, vec![0; len], false).await;
}

async fn take(script: &Script, number: u128) {
    let uuid = Uuid::from_u128(number);
    let request =
        TakeRequest { uuid, name: format!("n{number}"), created_us: 1, batch: None, received: false };
    script.take_as(request, 9).await;
}

async fn delete(script: &Script, number: u128) {
    script.delete_these(vec![Uuid::from_u128(number)]).await;
}

/// What every script starts from: snapshots 1, 2 and 3 with something in each.
async fn prepare(script: &Script) {
    put(script, 0, 12 * BLOCK, 1).await;
    take(script, 1).await;
    put(script, BLOCK, 3 * BLOCK, 2).await;
    trim(script, 6 * BLOCK, 2 * BLOCK).await;
    take(script, 2).await;
    put(script, 2 * BLOCK, 4 * BLOCK, 3).await;
    put(script, 7 * BLOCK, BLOCK, 3).await;
    take(script, 3).await;
    put(script, 3 * BLOCK + 100, BLOCK, 4).await;
    script.flush_now().await;
}

macro_rules! tails {
    ($($name:literal: |$s:ident| $body:block)*) => {
        &[$(($name, |$s| Box::pin(async move { $body }))),*]
    };
}

/// The scripts.
const TAILS: &[(&str, Tail)] = tails! {
    "first write" : |s| { put(&s, 20 * BLOCK, BLOCK, 9).await; s.flush_now().await; }
    "rewrite": |s| { put(&s, 0, BLOCK, 9).await; put(&s, 0, BLOCK, 10).await; s.flush_now().await; put(&s, 0, BLOCK, 11).await; }
    "partial block": |s| { put(&s, 700, 900, 9).await; put(&s, 15 * BLOCK + 7, 10, 9).await; s.flush_now().await; }
    "trim and rewrite": |s| {
        trim(&s, 0, 6 * BLOCK).await;
        s.flush_now().await;
        put(&s, BLOCK, BLOCK, 9).await;
        trim(&s, 13 * BLOCK, 2 * BLOCK).await;
        put(&s, BLOCK, 100, 10).await;
        trim(&s, BLOCK, BLOCK).await;
        s.flush_now().await;
        put(&s, BLOCK, BLOCK, 11).await;
    }
    "snapshot with writes beside it": |s| {
        put(&s, 0, 2 * BLOCK, 9).await;
        join(take(&s, 4), put(&s, 5 * BLOCK, 2 * BLOCK, 10)).await;
        put(&s, 0, BLOCK, 11).await;
    }
    "delete the head": |s| { delete(&s, 1).await; put(&s, 0, BLOCK, 9).await; }
    "delete in the middle": |s| { join(delete(&s, 2), put(&s, 8 * BLOCK, BLOCK, 9)).await; put(&s, 2 * BLOCK, BLOCK, 9).await; }
    "delete the tail": |s| { join(delete(&s, 3), put(&s, 8 * BLOCK, BLOCK, 9)).await; put(&s, 2 * BLOCK, BLOCK, 9).await; }
    "delete all": |s| {
        s.delete_these(vec![Uuid::from_u128(3), Uuid::from_u128(1), Uuid::from_u128(2)]).await;
        put(&s, 0, BLOCK, 9).await;
    }
    "roll back": |s| { put(&s, 0, 100, 9).await; s.roll_back_to(Uuid::from_u128(1)).await; put(&s, 0, 100, 9).await; }
    "undone takes": |s| {
        for give_up in 1..3 {
            let uuid = Uuid::from_u128(50 + u128::from(give_up));
            let request = TakeRequest { uuid, name: format!("u{give_up}"), created_us: 1, batch: None, received: false };
            join(s.take_as(request, give_up), put(&s, 8 * BLOCK, BLOCK, 9)).await;
            put(&s, 9 * BLOCK, BLOCK, 9).await;
        }
        take(&s, 4).await;
        put(&s, 8 * BLOCK, 2 * BLOCK, 10).await;
    }
    "segments used again": |s| {
        for round in 0..3_u8 {
            put(&s, 0, 16 * BLOCK, 20 + round).await;
            take(&s, 100 + u128::from(round)).await;
        }
        delete(&s, 101).await;
        delete(&s, 100).await;
        put(&s, 0, 16 * BLOCK, 30).await;
    }
    "grow": |s| { put(&s, 24 * BLOCK, 512, 9).await; s.resize_to(30 * BLOCK).await; put(&s, 24 * BLOCK + 512, 2 * BLOCK, 10).await; s.flush_now().await; }
    "shrink and grow": |s| { s.resize_to(5 * BLOCK + 512).await; put(&s, 5 * BLOCK, 512, 9).await; s.resize_to(SIZE).await; put(&s, 7 * BLOCK, 10, 10).await; }
    "checkpoint": |s| {
        put(&s, 0, 2 * BLOCK, 9).await;
        let checkpoint = async {
            let done = s.volume.checkpoint().await;
            assert!(done.is_ok() || s.failing);
        };
        join(checkpoint, async { put(&s, 10 * BLOCK, 2 * BLOCK, 10).await; s.flush_now().await; trim(&s, 0, BLOCK).await; }).await;
        put(&s, 0, BLOCK, 11).await;
    }
    "promote and close": |s| {
        let _ = s.volume.set_role(Role::Secondary).await;
        let _ = s.volume.set_role(Role::Primary).await;
        put(&s, 2 * BLOCK, BLOCK, 9).await;
        let _ = s.volume.close().await;
    }
};

/// Every how many operations one is tried; all of them when rounds are asked for.
fn stride() -> u64 {
    if std::env::var("SNAPVOL_ROUNDS").is_ok() { 1 } else { 7 }
}

/// A closed volume with some history, and its oracle.
fn prepared(granularity: u32, inline: bool) -> (SimDisk, Oracle) {
    let disk = SimDisk::new(SimOptions { seed: 5, inline, reorder: !inline });
    let geometry = Geometry::new(SIZE as u64, 4096, granularity).unwrap();
    let machine = disk.clone();
    let oracle = on_sim(&disk, move |io| async move {
        create(&io, Path::new(DIR), geometry, Role::Primary).await;
        let script = script(&io, &machine, Oracle::new(SIZE), false).await.unwrap();
        prepare(&script).await;
        script.volume.close().await.unwrap();
        script.oracle.take()
    });
    disk.crash_process();
    let mut oracle = oracle.unwrap();
    let live = oracle.live.clone();
    oracle.adopt(live);
    (disk, oracle)
}

async fn script(io: &Io, disk: &SimDisk, oracle: Oracle, failing: bool) -> Option<Rc<Script>> {
    let committed = oracle.committed.clone();
    let opened = Volume::open(io, Path::new(DIR), "vol", tuning(4096), &committed).await;
    if failing && opened.is_err() {
        return None;
    }
    Some(Rc::new(Script {
        io: io.clone(),
        volume: opened.unwrap().0,
        oracle: Rc::new(RefCell::new(oracle)),
        rng: Rc::new(RefCell::new(fastrand::Rng::with_seed(1))),
        disk: Some(disk.clone()),
        counts: Rc::new(Cell::default()),
        failing,
    }))
}

/// Opens after a crash, compares, and goes on a little.
fn survives(disk: &SimDisk, oracle: Oracle, crash: Crash) {
    let machine = disk.clone();
    on_sim(disk, move |io| async move {
        let script = script(&io, &machine, oracle, false).await.unwrap();
        recovered(&script, crash).await;
        script.check().await;
        put(&script, BLOCK, 3 * BLOCK, 77).await;
        trim(&script, 4 * BLOCK, BLOCK).await;
        script.check().await;
        script.volume.close().await.unwrap();
    });
    disk.crash_process();
}

/// Runs a script with what `before` prepares; what it left in the oracle, and whether it
/// ran to its end.
fn run(
    disk: &SimDisk,
    oracle: &Oracle,
    tail: Tail,
    failing: bool,
    before: impl Fn(&SimDisk) + 'static,
) -> (Oracle, bool) {
    let shared = Rc::new(RefCell::new(None));
    let (machine, oracle, cell) = (disk.clone(), oracle.clone(), Rc::clone(&shared));
    let start = oracle.clone();
    let ended = on_sim(disk, move |io| async move {
        let opened = script(&io, &machine, oracle, false).await.unwrap();
        let script = Rc::new(Script { failing, ..Rc::into_inner(opened).unwrap() });
        *cell.borrow_mut() = Some(Rc::clone(&script.oracle));
        before(&machine);
        tail(script).await;
    });
    let left = shared.take().map_or(start, |oracle| oracle.borrow().clone());
    (left, ended.is_some())
}

#[test]
fn every_operation_can_be_the_last() {
    let mut points = 0;
    for (granularity, inline) in [(1, true), (4, false)] {
        let (start, oracle) = prepared(granularity, inline);
        for (index, (name, tail)) in TAILS.iter().enumerate() {
            let mut n = index as u64 % stride();
            loop {
                let _seed =
                    Seed(format!("'{name}', granularity {granularity}, inline {inline}, operation {n}"));
                let disk = start.fork();
                let (left, ended) = run(&disk, &oracle, *tail, false, move |disk| disk.crash_after(n));
                points += 1;
                let process = disk.fork();
                process.crash_process();
                survives(&process, left.clone(), Crash::Process);
                let loss =
                    [Loss::All, Loss::Random, Loss::None, Loss::Random][usize::try_from(n % 4).unwrap()];
                disk.power_cut(loss);
                survives(&disk, left, Crash::Power);
                if ended {
                    break;
                }
                n += stride();
            }
        }
    }
    println!("{points} crash points");
}

#[test]
fn every_operation_can_fail_once() {
    let mut points = 0;
    for (granularity, errno) in [(1, EIO), (4, ENOSPC)] {
        let (start, oracle) = prepared(granularity, true);
        for (index, (name, tail)) in TAILS.iter().enumerate() {
            let mut n = 1 + index as u64 % stride();
            loop {
                let _seed =
                    Seed(format!("'{name}', granularity {granularity}, error {errno}, operation {n}"));
                let disk = start.fork();
                let first = Rc::new(Cell::new(0));
                let seen = Rc::clone(&first);
                let (left, _) = run(&disk, &oracle, *tail, true, move |disk| {
                    seen.set(disk.ops());
                    disk.fail_at(disk.ops() + n, errno);
                });
                if disk.ops() < first.get() + n {
                    break;
                }
                points += 1;
                let process = disk.fork();
                process.crash_process();
                survives(&process, left.clone(), Crash::Process);
                disk.power_cut(Loss::Random);
                survives(&disk, left, Crash::Power);
                n += stride();
            }
        }
    }
    println!("{points} failures");
}
