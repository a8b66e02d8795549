//! A copy by copy on write against an oracle: random changes of it beside changes of the volume
//! that its origin is a snapshot of, cut short by the death of the process or of the machine.

use super::oracle::{Crash, Oracle};
use super::*;
use crate::io::sim::{Loss, SimOptions};
use crate::snapshot::Who;
use bytes::Bytes;
use futures::future::{LocalBoxFuture, join_all};

const BLOCK: usize = 4096;
/// Not whole blocks.
const SIZE: usize = 120 * BLOCK - 1024;
const COPY: &str = "/copy";

async fn volumes(io: &Io) -> (Rc<Volume>, Rc<Volume>) {
    let none = BTreeSet::new();
    let origin = open(io, Path::new(DIR), 4096, &none).await;
    let copy = Volume::open(io, Path::new(COPY), "copy", tuning(4096), &none).await.unwrap().0;
    copy.set_origin(origin.open_snapshot("state").unwrap()).unwrap();
    (origin, copy)
}

/// A volume with a state, and an empty copy of it; returns the state's content.
fn made(disk: &SimDisk, seed: u64) -> Vec<u8> {
    let content = on_sim(disk, move |io| async move {
        let mut rng = fastrand::Rng::with_seed(seed);
        let granularity = [1, 4][rng.usize(0..2)];
        let geometry = Geometry::new(SIZE as u64, 4096, granularity).unwrap();
        create(&io, Path::new(DIR), geometry, Role::Primary).await;
        let origin = open(&io, Path::new(DIR), 4096, &BTreeSet::new()).await;
        for _ in 0..rng.usize(0..40) {
            let (at, data) = some(&mut rng);
            origin.write(Who::Client, at as u64, data, false).await.unwrap();
        }
        origin.take(request_of("state", rng.u128(..))).await.unwrap();
        let content = snapshot(&origin, "state").await;
        let geometry = Geometry::new(SIZE as u64, 4096, 1).unwrap();
        Volume::create(&io, Path::new(COPY), Uuid::from_u128(8), geometry, OnFull::Freeze, Role::Primary)
            .await
            .unwrap();
        io.sync_dir(Path::new("/")).await.unwrap();
        origin.close().await.unwrap();
        content
    });
    disk.crash_process();
    content.unwrap()
}

/// A range, and bytes for it.
fn some(rng: &mut fastrand::Rng) -> (usize, Bytes) {
    let start = rng.usize(0..SIZE);
    let start = if rng.bool() { start } else { start / BLOCK * BLOCK };
    // Rarely much, so that something is left that nobody has written to.
    let len = match rng.u32(0..40) {
        0 => rng.usize(1..=SIZE),
        1..20 => rng.usize(1..=BLOCK * 2),
        _ => rng.usize(1..=6) * BLOCK,
    };
    let mut data = vec![0; len.min(SIZE - start)];
    rng.fill(&mut data);
    (start, data.into())
}

/// One life: batches of changes that don't overlap, each compared when it is done.
async fn live(io: Io, oracle: Rc<RefCell<Oracle>>, disk: SimDisk, crash: Option<Crash>, seed: u64) -> u64 {
    let mut rng = fastrand::Rng::with_seed(seed);
    let (origin, copy) = volumes(&io).await;
    if let Some(crash) = crash {
        let found = production(&copy).await;
        let checked = oracle.borrow().check_crash(&found, crash);
        assert!(checked.is_ok(), "after {crash:?}: {checked:?}");
        oracle.borrow_mut().adopt(found);
    }
    if rng.u32(0..4) > 0 {
        disk.crash_after(if rng.bool() { rng.u64(0..60) } else { rng.u64(0..400) });
    }
    let mut done = 0;
    for _ in 0..rng.usize(1..9) {
        let mut tasks: Vec<LocalBoxFuture<'static, ()>> = Vec::new();
        let mut taken: Vec<(usize, usize)> = Vec::new();
        for _ in 0..rng.usize(1..7) {
            let (at, data) = some(&mut rng);
            let end = at + data.len();
            if taken.iter().any(|(from, upto)| *from < end && at < *upto) {
                continue;
            }
            taken.push((at, end));
            let (kind, fua) = (rng.u32(0..10), rng.u32(0..8) == 0);
            let data = if kind < 5 { data } else { Bytes::from(vec![0; data.len()]) };
            let (copy, oracle) = (Rc::clone(&copy), Rc::clone(&oracle));
            tasks.push(Box::pin(async move {
                let (offset, len) = (at as u64, data.len() as u64);
                let before = oracle.borrow().acked();
                let id = oracle.borrow_mut().begin(at, data.to_vec());
                match kind {
                    0..2 if !fua && copy.write_now(Who::Client, offset, &data) => {}
                    0..5 => copy.write(Who::Client, offset, data, fua).await.unwrap(),
                    5..9 => copy.trim(Who::Client, offset, len, fua).await.unwrap(),
                    _ => copy.write_zeros(Who::Client, offset, len, fua).await.unwrap(),
                }
                let mut oracle = oracle.borrow_mut();
                oracle.ack(id);
                if fua {
                    oracle.flushed(&[&before[..], &[id]].concat());
                }
            }));
        }
        if rng.u32(0..3) == 0 {
            let (copy, oracle) = (Rc::clone(&copy), Rc::clone(&oracle));
            tasks.push(Box::pin(async move {
                let covered = oracle.borrow().acked();
                copy.flush().await.unwrap();
                oracle.borrow_mut().flushed(&covered);
            }));
        }
        // The volume that it is a copy of goes on, and deletes what it may.
        let (at, data) = some(&mut rng);
        let origin = Rc::clone(&origin);
        let taking = (rng.u32(0..5) == 0).then(|| rng.u128(..));
        tasks.push(Box::pin(async move {
            origin.write(Who::Client, at as u64, data, false).await.unwrap();
            if let Some(uuid) = taking {
                origin.take(request_of(&format!("s{uuid}"), uuid)).await.unwrap();
            }
        }));
        rng.shuffle(&mut tasks);
        done += tasks.len() as u64;
        join_all(tasks).await;
        let found = production(&copy).await;
        let checked = oracle.borrow().check_live(&found);
        assert!(checked.is_ok(), "{checked:?}");
        allocation_is_right(&copy, &found).await;
    }
    copy.close().await.unwrap();
    origin.close().await.unwrap();
    done
}

/// What is said to be unused is zeros.
async fn allocation_is_right(copy: &Rc<Volume>, content: &[u8]) {
    let mut at = 0;
    for (len, used) in copy.shown_allocation(0, SIZE as u64).await.unwrap() {
        let len = usize::try_from(len).unwrap();
        assert!(used || content[at..at + len].iter().all(|byte| *byte == 0), "data where nothing is used");
        at += len;
    }
    assert_eq!(at, SIZE);
}

fn request_of(name: &str, uuid: u128) -> TakeRequest {
    let uuid = Uuid::from_u128(uuid);
    TakeRequest { uuid, name: name.to_owned(), created_us: 1, batch: None, received: false, set: None }
}

/// What a power cut takes: most often all but one thing, or one thing alone.
fn loss(rng: &mut fastrand::Rng, disk: &SimDisk) -> Loss {
    let unsynced = disk.unsynced().max(1);
    match rng.u32(0..8) {
        0 => Loss::All,
        1 => Loss::None,
        2 => Loss::Torn,
        3 => Loss::Random,
        4 | 5 => Loss::Alone(rng.usize(0..unsynced)),
        _ => Loss::AllBut(rng.usize(0..unsynced)),
    }
}

/// Several lives of a process, ended by crashes of both kinds.
pub(super) fn copies(run: &Rc<Run>) {
    let seed = run.seed;
    let mut rng = run.varied(&[seed]);
    let disk = SimDisk::new(SimOptions { seed, inline: rng.bool(), reorder: rng.u32(0..4) > 0 });
    let content = made(&disk, seed);
    let mut oracle = Oracle::new(SIZE);
    oracle.adopt(content);
    let oracle = Rc::new(RefCell::new(oracle));
    let mut crash = None;
    for life in 0..5 {
        let (shared, machine) = (Rc::clone(&oracle), disk.clone());
        let lived = on_sim(&disk, move |io| live(io, shared, machine, crash, seed ^ (life << 32)));
        run.count(|counts| {
            counts.operations += lived.unwrap_or(0);
            counts.crashes += 1;
            counts.checks += 1;
        });
        crash = Some(if rng.bool() {
            disk.crash_process();
            Crash::Process
        } else {
            disk.power_cut(loss(&mut rng, &disk));
            Crash::Power
        });
    }
}

#[test]
fn copies_by_copy_on_write() {
    for seed in rounds(7700, 30) {
        let _seed = Seed(format!("SNAPVOL_SEED={seed} (copies)"));
        copies(&Rc::new(Run::new(seed)));
    }
}

/// Two writes of parts of a block that the origin has, at the same time: neither is lost.
#[test]
fn parts_of_a_block_at_the_same_time() {
    for seed in rounds(7800, 20) {
        let disk = SimDisk::new(SimOptions { seed, inline: false, reorder: true });
        let content = made(&disk, 3);
        on_sim(&disk, move |io| async move {
            let (_origin, copy) = volumes(&io).await;
            let put = |at: u64, len: usize, byte: u8| {
                let copy = Rc::clone(&copy);
                async move { copy.write(Who::Client, at, Bytes::from(vec![byte; len]), false).await.unwrap() }
            };
            futures::join!(put(8192, 512, 1), put(8192 + 1024, 512, 2), put(8192 + 3584, 512, 3));
            let mut expected = content;
            expected[8192..8704].fill(1);
            expected[9216..9728].fill(2);
            expected[11776..12288].fill(3);
            assert!(production(&copy).await == expected);
        });
    }
}
