//! Full disks: the disk fills up before any operation, and space returns later. Nothing
//! acknowledged is lost, no flush fails, and a deletion works whenever it is asked for.

use super::lives::recovered;
use super::oracle::{Crash, Fate, Oracle};
use super::script::Script;
use super::*;
use crate::ErrorKind;
use crate::io::sim::{Loss, SimOptions};
use crate::snapshot::Who;
use bytes::Bytes;
use futures::future::join;
use std::time::Duration;

const BLOCK: usize = 4096;
const BLOCKS: usize = 24;
const SIZE: usize = BLOCKS * BLOCK;

/// How long the disk stays full where writers wait for space.
const FULL_TIME: Duration = Duration::from_secs(3);

/// Every how many operations one is tried; all of them when rounds are asked for.
fn stride() -> u64 {
    if std::env::var("SNAPVOL_ROUNDS").is_ok() { 1 } else { 11 }
}

/// What the reserve of these volumes has at least.
const RESERVE: usize = 1 << 20;

/// Opens; with its reserve a volume opens on a full disk, and without, when there is space.
async fn opened(io: &Io, disk: &SimDisk, oracle: Oracle) -> Rc<Script> {
    let committed = oracle.committed.clone();
    let reserve = disk.contents(format!("{DIR}/reserve")).map_or(0, |bytes| bytes.len());
    let volume = match Volume::open(io, Path::new(DIR), "vol", tuning(4096), &committed).await {
        Err(error) if error.kind() == ErrorKind::Full && reserve < RESERVE => {
            disk.fill(Some(2 << 20));
            open(io, Path::new(DIR), 4096, &committed).await
        }
        other => other.unwrap().0,
    };
    let oracle = Rc::new(RefCell::new(oracle));
    let script = Script::new(io, volume, oracle, Rc::new(Run::new(1)), 0);
    Rc::new(Script { disk: Some(disk.clone()), ..script })
}

/// A change that a full disk may refuse; whether it was taken.
async fn change(script: &Script, at: usize, len: usize, byte: u8) -> bool {
    let id = script.oracle.borrow_mut().begin(at, vec![byte; len]);
    let result = if byte == 0 {
        script.volume.trim(Who::Client, at as u64, len as u64, false).await
    } else {
        script.volume.write(Who::Client, at as u64, Bytes::from(vec![byte; len]), false).await
    };
    match result {
        Ok(()) => script.oracle.borrow_mut().ack(id),
        Err(ref error) => assert_eq!(error.kind(), ErrorKind::Full, "{error}"),
    }
    result.is_ok()
}

/// A flush, which nothing keeps from covering what was acknowledged.
async fn flush(script: &Script) {
    let covered = script.oracle.borrow().acked();
    script.volume.flush().await.unwrap();
    script.oracle.borrow_mut().flushed(&covered);
}

/// A take, which a full disk may refuse before its instant and not after it.
async fn take(script: &Script, number: u128) {
    let uuid = Uuid::from_u128(number);
    let name = format!("n{number}");
    let request =
        TakeRequest { uuid, name: name.clone(), created_us: 1, batch: None, received: false, set: None };
    let mut ticket = match script.volume.prepare_take(request).await {
        Ok(ticket) => ticket,
        Err(error) => return assert_eq!(error.kind(), ErrorKind::Full, "{error}"),
    };
    ticket.raise();
    script.oracle.borrow_mut().raise(uuid, name, false, false);
    ticket.finish().await.unwrap();
    ticket.publish();
    let mut oracle = script.oracle.borrow_mut();
    let snap = oracle.snap(uuid);
    (snap.fate, snap.busy) = (Fate::Must, false);
}

/// A deletion, which a full disk does not refuse; of a snapshot that is there.
async fn delete(script: &Script, number: u128) {
    let uuid = Uuid::from_u128(number);
    if script.volume.snapshots().iter().all(|r| r.uuid != uuid) {
        return;
    }
    script.oracle.borrow_mut().snap(uuid).fate = Fate::May;
    script.volume.delete(&[uuid]).await.unwrap();
    script.oracle.borrow_mut().forget(uuid);
}

/// Forgets what was deleted to make room: the oldest ones.
fn forget_dropped(script: &Script) {
    let there: BTreeSet<Uuid> = script.volume.snapshots().iter().map(|r| r.uuid).collect();
    let mut oracle = script.oracle.borrow_mut();
    let kept = oracle.snaps.iter().position(|s| there.contains(&s.uuid)).unwrap_or(oracle.snaps.len());
    assert!(oracle.snaps[kept..].iter().all(|s| there.contains(&s.uuid)), "others than the oldest are gone");
    oracle.snaps.drain(..kept);
}

/// Everything that may be dropped may be gone after a crash.
fn expect_drops(oracle: &mut Oracle) {
    for snap in &mut oracle.snaps {
        snap.fate = Fate::May;
    }
}

/// Snapshots 1 to 4 with something in each, and a volume closed.
fn prepared(policy: OnFull, granularity: u32, inline: bool) -> (SimDisk, Oracle) {
    let disk = SimDisk::new(SimOptions { seed: 9, inline, reorder: !inline });
    let geometry = Geometry::new(SIZE as u64, 4096, granularity).unwrap();
    let machine = disk.clone();
    let oracle = on_sim(&disk, move |io| async move {
        create(&io, Path::new(DIR), geometry, Role::Primary).await;
        let script = opened(&io, &machine, Oracle::new(SIZE)).await;
        script.volume.set_on_full(policy).await.unwrap();
        for number in 1..5_u8 {
            let at = usize::from(number) * 2 * BLOCK;
            assert!(change(&script, 0, 4 * BLOCK, number).await);
            assert!(change(&script, at, 3 * BLOCK + 100, number).await);
            assert!(change(&script, at + BLOCK, BLOCK, 0).await);
            take(&script, u128::from(number)).await;
        }
        flush(&script).await;
        script.volume.close().await.unwrap();
        script.oracle.take()
    });
    disk.crash_process();
    let mut oracle = oracle.unwrap();
    let live = oracle.live.clone();
    oracle.adopt(live);
    (disk, oracle)
}

/// What runs while the disk fills up: every kind of change, and deletions at the head, in
/// the middle and at the tail. Writers that wait do so beside all the rest.
async fn life(script: &Rc<Script>) {
    let writer = Rc::clone(script);
    let writes = async move {
        for round in 0..3_u8 {
            change(&writer, 0, 6 * BLOCK, 20 + round).await;
            change(&writer, 14 * BLOCK + 7, 2 * BLOCK, 30 + round).await;
            change(&writer, 2 * BLOCK, 2 * BLOCK, 0).await;
            change(&writer, 2 * BLOCK, 700, 40 + round).await;
        }
    };
    let commands = async {
        flush(script).await;
        delete(script, 2).await;
        flush(script).await;
        take(script, 5).await;
        delete(script, 1).await;
        let _ = script.volume.checkpoint().await;
        delete(script, 4).await;
        delete(script, 5).await;
        flush(script).await;
    };
    join(writes, commands).await;
}

/// Opens after a crash, on a disk as full as it was, compares, deletes, and goes on.
fn survives(disk: &SimDisk, mut oracle: Oracle, crash: Crash, policy: OnFull) {
    if policy == OnFull::DropOldest {
        expect_drops(&mut oracle);
    }
    let machine = disk.clone();
    on_sim(disk, move |io| async move {
        let script = opened(&io, &machine, oracle).await;
        recovered(&script, crash).await;
        script.check().await;
        delete(&script, 3).await;
        flush(&script).await;
        script.check().await;
        machine.fill(None);
        for at in 0..BLOCKS {
            assert!(change(&script, at * BLOCK, BLOCK, 99).await);
        }
        script.check().await;
        script.volume.close().await.unwrap();
    });
    disk.crash_process();
}

fn fills_up_at_any_operation(policy: OnFull) {
    let mut points = 0;
    for (granularity, inline) in [(1, true), (1, false), (4, false)] {
        let (start, oracle) = prepared(policy, granularity, inline);
        let mut n = 1;
        loop {
            let _seed =
                Seed(format!("{policy:?}, granularity {granularity}, inline {inline}, operation {n}"));
            let disk = start.fork();
            let (machine, before) = (disk.clone(), oracle.clone());
            let cell: Rc<RefCell<Option<Rc<RefCell<Oracle>>>>> = Rc::default();
            let seen = Rc::clone(&cell);
            let full_at = Rc::new(Cell::new(0));
            let at = Rc::clone(&full_at);
            let ended = on_sim(&disk, move |io| async move {
                let script = opened(&io, &machine, before).await;
                *seen.borrow_mut() = Some(Rc::clone(&script.oracle));
                at.set(machine.ops() + n);
                machine.fill_at(at.get(), 0);
                let relief = async {
                    if policy == OnFull::Freeze {
                        io.sleep(FULL_TIME).await;
                        machine.fill(None);
                    }
                };
                join(life(&script), relief).await;
                if policy == OnFull::DropOldest {
                    forget_dropped(&script);
                }
                if policy != OnFull::Readonly {
                    // A write that was refused may have been done in part.
                    script.check().await;
                }
            });
            assert!(ended.is_some());
            let left = cell.take().unwrap().borrow().clone();
            points += 1;
            let process = disk.fork();
            process.crash_process();
            survives(&process, left.clone(), Crash::Process, policy);
            let ops = disk.ops();
            disk.power_cut([Loss::All, Loss::Random, Loss::None][usize::try_from(n % 3).unwrap()]);
            survives(&disk, left, Crash::Power, policy);
            if ops < full_at.get() {
                break;
            }
            n += stride();
        }
    }
    println!("{points} operations before which the disk filled up");
}

#[test]
fn writers_wait_while_the_disk_is_full() {
    fills_up_at_any_operation(OnFull::Freeze);
}

#[test]
fn writers_are_refused_while_the_disk_is_full() {
    fills_up_at_any_operation(OnFull::Readonly);
}

#[test]
fn the_oldest_snapshots_make_room() {
    fills_up_at_any_operation(OnFull::DropOldest);
}

/// A block that is staged may be a hole in the clone volume, where its granule is larger
/// than what was written of it: its space is allocated before, or the write is refused.
#[test]
fn what_was_staged_over_a_hole_has_its_space() {
    let disk = SimDisk::new(SimOptions { seed: 3, inline: true, reorder: false });
    let geometry = Geometry::new(16 * SIZE as u64, 4096, 64).unwrap();
    let machine = disk.clone();
    let closed = on_sim(&disk, move |io| async move {
        create(&io, Path::new(DIR), geometry, Role::Primary).await;
        let script = opened(&io, &machine, Oracle::new(16 * SIZE)).await;
        script.volume.set_on_full(OnFull::Readonly).await.unwrap();
        assert!(change(&script, 0, 8 * BLOCK, 1).await);
        take(&script, 1).await;
        // Segment and journal have space for more than that from now on.
        assert!(change(&script, 0, 8 * BLOCK, 2).await);
        flush(&script).await;
        machine.fill(Some(0));
        let mut taken = 0;
        for at in 10..14 {
            taken += usize::from(change(&script, at * BLOCK, BLOCK, 3).await);
        }
        flush(&script).await;
        script.check().await;
        script.volume.close().await.unwrap();
        taken
    });
    assert_eq!(closed, Some(0), "writes into holes of a full disk were taken");
}

/// What one life of a random run does, on a disk of any size at any time.
async fn random_life(script: &Rc<Script>, disk: &SimDisk, rng: &mut fastrand::Rng, next: &mut u128) {
    for _ in 0..rng.u32(4..25) {
        match rng.u32(0..6) {
            0 => disk.fill(Some(0)),
            1 => disk.fill(Some(rng.u64(0..400_000))),
            2 => disk.fill(None),
            _ => {}
        }
        // Where a writer waits, space comes back.
        let relief = async {
            script.io.sleep(FULL_TIME).await;
            disk.fill(None);
        };
        let at = rng.usize(0..SIZE);
        let len = rng.usize(1..=SIZE - at).min(BLOCK * rng.usize(1..9));
        let byte = rng.u8(1..=255);
        let number = rng.u128(1..=*next);
        match rng.u32(0..12) {
            0..5 => _ = join(change(script, at, len, byte), relief).await,
            5 => _ = join(change(script, at, len, 0), relief).await,
            6 => {
                *next += 1;
                let (number, other) = (*next, Rc::clone(script));
                let beside = async move { change(&other, at, len, byte).await };
                join(join(take(script, number), beside), relief).await;
            }
            7 | 8 => delete(script, number).await,
            9 => _ = join(join(delete(script, number), change(script, at, len, byte)), relief).await,
            10 => _ = script.volume.checkpoint().await,
            _ => flush(script).await,
        }
        if script.volume.on_full_policy() == OnFull::DropOldest {
            forget_dropped(script);
        }
        if rng.u32(0..8) == 0 {
            let policy = [OnFull::Freeze, OnFull::Readonly, OnFull::DropOldest][rng.usize(0..3)];
            // The record is small, and there is always space for one.
            script.volume.set_on_full(policy).await.unwrap();
        }
    }
}

fn random_full_disks(seed: u64) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let granularity = [1, 1, 4][rng.usize(0..3)];
    let (disk, mut oracle) = prepared(OnFull::Freeze, granularity, rng.bool());
    disk.reseed(seed);
    let mut next = 4;
    let mut crash = None;
    for _ in 0..4 {
        let cell: Rc<RefCell<Option<Rc<RefCell<Oracle>>>>> = Rc::default();
        let (seen, machine, before) = (Rc::clone(&cell), disk.clone(), oracle.clone());
        let (mut chance, mut number) = (rng.fork(), next);
        let done = on_sim(&disk, move |io| async move {
            let script = opened(&io, &machine, before).await;
            *seen.borrow_mut() = Some(Rc::clone(&script.oracle));
            if let Some(crash) = crash {
                recovered(&script, crash).await;
            }
            script.check().await;
            random_life(&script, &machine, &mut chance, &mut number).await;
            number
        });
        next = done.unwrap();
        oracle = cell.take().unwrap().borrow().clone();
        // Lives follow each other on a disk that is as full as it was, or has space.
        if rng.bool() {
            disk.crash_process();
            crash = Some(Crash::Process);
        } else {
            disk.power_cut([Loss::All, Loss::Random, Loss::None][rng.usize(0..3)]);
            // A file system never holds more than it has: what a cut brought back was there.
            disk.fill(Some(rng.u64(4 << 20..8 << 20)));
            crash = Some(Crash::Power);
        }
        expect_drops(&mut oracle);
    }
    disk.fill(None);
    survives(&disk, oracle, crash.unwrap_or(Crash::Process), OnFull::DropOldest);
}

#[test]
fn disks_of_any_size_at_any_time() {
    for seed in rounds(7000, 25) {
        let _seed = Seed(format!("SNAPVOL_SEED={seed} (random full disks)"));
        random_full_disks(seed);
    }
}
