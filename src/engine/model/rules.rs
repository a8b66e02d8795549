//! Rules of the store that close a hole, each by short scripts of which every operation
//! crashes or fails once.

mod drills;
mod schedules;

use super::clients::bytes_of;
use crate::ErrorKind;
use crate::delta::FrameMaker;
use crate::engine::api::{CreateOptions, SendRequest};
use crate::engine::core::Core;
use crate::engine::thread::Worker;
use crate::error::Result;
use crate::io::sim::{EIO, ENOSPC, Loss, SimDisk, SimOptions};
use crate::snapshot::model::tuning;
use crate::types::{OnFull, Role, SnapName};
use bytes::Bytes;
use futures::executor::LocalPool;
use futures::task::LocalSpawnExt;
use std::cell::{Cell, RefCell};
use std::path::Path;
use std::rc::Rc;

const STORE: &str = "/store";

/// Turns after which a life counts as stuck.
const TURNS_MAX: u32 = 100_000;

/// Opens the store with two engines and runs a task, unless the process dies before.
fn live<T: 'static, F: Future<Output = T> + 'static>(
    disk: &SimDisk,
    task: impl FnOnce(Rc<Core>) -> F + 'static,
) -> Option<T> {
    let (mut workers, handles): (Vec<_>, Vec<_>) =
        (0..2).map(|_| Worker::new(Box::new(disk.driver()))).unzip();
    let result = Rc::new(RefCell::new(None));
    let cell = Rc::clone(&result);
    let mut pool = LocalPool::new();
    let tuning = tuning(4096);
    let life = async move {
        let core = Core::open(Path::new(STORE), uuid::Uuid::nil(), handles, tuning).await.unwrap();
        let value = task(Rc::new(core)).await;
        *cell.borrow_mut() = Some(value);
    };
    pool.spawner().spawn_local(life).unwrap();
    for _ in 0..TURNS_MAX {
        pool.run_until_stalled();
        if disk.is_dead() {
            disk.crash_process();
            return None;
        }
        if let Some(value) = result.borrow_mut().take() {
            // The process ends without closing anything.
            disk.crash_process();
            return Some(value);
        }
        for worker in &mut workers {
            worker.turn(None);
        }
    }
    panic!("it goes round in circles");
}

/// A disk with an empty store.
fn store(seed: u64) -> SimDisk {
    let disk = SimDisk::new(SimOptions::seeded(seed));
    let (mut worker, _) = Worker::new(Box::new(disk.driver()));
    let (io, made) = (worker.engine.io.clone(), Rc::new(Cell::new(false)));
    let flag = Rc::clone(&made);
    io.clone().spawn(async move {
        for dir in [STORE, "/store/volumes"] {
            io.make_dir(Path::new(dir)).await.unwrap();
        }
        for dir in ["/", STORE] {
            io.sync_dir(Path::new(dir)).await.unwrap();
        }
        flag.set(true);
    });
    while !made.get() {
        worker.turn(None);
    }
    disk.crash_process();
    disk
}

fn name(text: &str) -> SnapName {
    text.parse().unwrap()
}

async fn make(core: &Core, volume: &str, role: Role) {
    let options = CreateOptions { size: 64 << 10, block_size: 4096, granularity: 1, on_full: OnFull::Freeze };
    core.create(volume, &options, role).await.unwrap();
}

/// Whether each of two volumes has a snapshot; none for one that did not open, and why.
fn which(disk: &SimDisk, snapshot: &'static str) -> [Result<bool>; 2] {
    let looked = live(disk, move |core| async move {
        let look = async |volume: &str| {
            let info = core.list(Some(volume)).await?.volumes.swap_remove(0);
            Ok(info.snapshots.iter().any(|found| found.name == snapshot))
        };
        [look("a").await, look("b").await]
    });
    looked.unwrap()
}

/// Two volumes on two engines, with something written.
fn two_volumes(seed: u64) -> SimDisk {
    let disk = store(seed);
    live(&disk, |core| async move {
        for volume in ["a", "b"] {
            make(&core, volume, Role::Primary).await;
            let written = core.with(volume, |volume| async move {
                let data = Bytes::from(vec![7; 8192]);
                volume.write(crate::snapshot::Who::Client, 4096, data, true).await
            });
            written.await.unwrap();
        }
        core.close().await.unwrap();
    });
    disk
}

/// The ways in which a machine may stop after a script, by number.
fn stop(disk: &SimDisk, how: u64) {
    match how % 4 {
        0 => disk.crash_process(),
        1 => disk.power_cut(Loss::All),
        2 => disk.power_cut(Loss::None),
        _ => disk.power_cut(Loss::Random),
    }
}

/// A script on a fork of a disk, of which every operation fails once, and every operation
/// is the last one of its process once; then a stop. `check` is told what the script
/// answered, if it lived so long.
fn trouble_everywhere<T: 'static, F: Future<Output = T> + 'static>(
    disk: &SimDisk,
    script: impl Fn(Rc<Core>) -> F + Clone + 'static,
    check: impl Fn(&SimDisk, Option<T>),
) {
    for at in 1..1000 {
        let mut operations = 0;
        for trouble in [Some(EIO), Some(ENOSPC), None] {
            let fork = disk.fork();
            let (machine, script) = (fork.clone(), script.clone());
            let answer = live(&fork, move |core| {
                let start = machine.ops();
                match trouble {
                    Some(errno) => machine.fail_at(start + at, errno),
                    None => machine.crash_after(at),
                }
                async move { (script(core).await, machine.ops() - start) }
            });
            fork.fail_no_more();
            operations = answer.as_ref().map_or(operations, |(_, operations)| *operations);
            // Which way to stop follows which trouble differs from operation to operation.
            stop(&fork, at + u64::from(trouble == Some(EIO)));
            check(&fork, answer.map(|(answer, _)| answer));
        }
        if operations < at {
            return;
        }
    }
    panic!("it never ended");
}

#[test]
fn a_batch_is_whole_whatever_happens() {
    let disk = two_volumes(1);
    let (all, none) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
    let counts = (Rc::clone(&all), Rc::clone(&none));
    let script = |core: Rc<Core>| async move {
        let names = [name("a@s"), name("b@s")];
        if core.snapshot(&names).await.is_ok() {
            return (true, false);
        }
        let writable =
            |volume: Rc<crate::snapshot::Volume>| async move { volume.writable(crate::snapshot::Who::Store) };
        let latched = core.with("a", writable).await.is_err() || core.with("b", writable).await.is_err();
        // What was undone is in nobody's way.
        let taken = !latched && core.snapshot(&names).await.is_ok();
        (taken, !latched && !taken)
    };
    trouble_everywhere(&disk, script, move |disk, lived| {
        let [a, b] = which(disk, "s").map(Result::unwrap);
        assert_eq!(a, b, "half a batch");
        let (taken, blocked) = lived.unwrap_or_default();
        assert!(!taken || a, "a snapshot that was taken is gone");
        assert!(!blocked, "what an undone batch left is in the way");
        let count = if a { &counts.0 } else { &counts.1 };
        count.set(count.get() + 1);
    });
    assert!(all.get() > 9 && none.get() > 4, "{} {}", all.get(), none.get());
}

#[test]
fn a_deletion_of_several_is_whole_whatever_happens() {
    let disk = two_volumes(2);
    live(&disk, |core| async move {
        core.snapshot(&[name("a@s"), name("b@s")]).await.unwrap();
        core.close().await.unwrap();
    });
    let script =
        |core: Rc<Core>| async move { core.delete_snapshots(&[name("a@s"), name("b@s")]).await.is_ok() };
    trouble_everywhere(&disk, script, |disk, deleted| {
        let [a, b] = which(disk, "s").map(Result::unwrap);
        assert_eq!(a, b, "half a deletion");
        assert!(deleted != Some(true) || !a, "a snapshot that was deleted is there");
    });
}

/// A deletion that failed half-way is completed though another one came after it.
#[test]
fn a_later_deletion_does_not_forget_an_earlier_one() {
    let disk = two_volumes(3);
    live(&disk, |core| async move {
        for names in [[name("a@s"), name("b@s")], [name("a@t"), name("b@t")]] {
            core.snapshot(&names).await.unwrap();
        }
        core.close().await.unwrap();
    });
    let script = |core: Rc<Core>| async move {
        let _ = core.delete_snapshots(&[name("a@s"), name("b@s")]).await;
        let _ = core.delete_snapshots(&[name("a@t"), name("b@t")]).await;
    };
    trouble_everywhere(&disk, script, |disk, _| {
        for snapshot in ["s", "t"] {
            let [a, b] = which(disk, snapshot).map(Result::unwrap);
            assert_eq!(a, b, "half of the deletion of {snapshot}");
        }
    });
}

/// What `batches` does not tell keeps only those volumes closed that hang on it.
#[test]
fn damage_in_batches_stays_with_the_volumes_that_need_it() {
    let disk = two_volumes(4);
    live(&disk, |core| async move {
        make(&core, "c", Role::Primary).await;
        core.close().await.unwrap();
    });
    let start = disk.ops();
    let (mut refused, mut opened) = (0, 0);
    for at in start..start + 300 {
        let fork = disk.fork();
        fork.crash_after(at - start);
        let ended = live(&fork, |core| async move {
            core.snapshot(&[name("a@s"), name("b@s")]).await.unwrap();
            // What this makes durable says so, too.
            core.with("a", |volume| async move { volume.flush().await }).await.unwrap();
        });
        if fork.contents("/store/batches").is_none_or(|bytes| bytes.is_empty()) {
            continue;
        }
        fork.flip_bit("/store/batches", 5, 3);
        let both = which(&fork, "s");
        live(&fork, |core| async move {
            core.list(Some("c")).await.unwrap();
        });
        let known: Vec<bool> = both.iter().filter_map(|found| found.as_ref().ok().copied()).collect();
        for error in both.iter().filter_map(|found| found.as_ref().err()) {
            assert_eq!(error.kind(), ErrorKind::Corrupt);
            assert!(error.to_string().contains("batches"), "{error}");
            refused += 1;
        }
        assert!(known.iter().all(|there| *there), "an undecided snapshot was decided");
        opened += known.len();
        if ended.is_some() {
            break;
        }
    }
    assert!(refused > 0 && opened > 0, "{refused} {opened}");
}

/// What an open believed can't vanish: a new volume, its name synced by nobody yet.
#[test]
fn a_volume_that_an_open_found_stays() {
    for at in 0..200 {
        let disk = store(5);
        disk.crash_after(at);
        let ended = live(&disk, |core| async move { make(&core, "a", Role::Primary).await });
        let found = live(&disk, |core| async move { core.has_volume("a") }).unwrap();
        disk.power_cut(Loss::All);
        let later = live(&disk, |core| async move { core.has_volume("a") }).unwrap();
        assert_eq!(found, later, "after operation {at}");
        if ended.is_some() {
            return;
        }
    }
    panic!("it never ended");
}

/// A failed creation or removal leaves nothing that is in the way of the next.
#[test]
fn a_volume_is_made_and_removed_whatever_happens() {
    let disk = store(6);
    let script = |core: Rc<Core>| async move {
        let options =
            CreateOptions { size: 64 << 10, block_size: 4096, granularity: 1, on_full: OnFull::Freeze };
        let made = core.create("a", &options, Role::Primary).await;
        if made.is_err() && !core.has_volume("a") {
            // The same name once more: nothing of the first attempt is in the way.
            make(&core, "a", Role::Primary).await;
        }
        core.delete_volume("a", false).await.is_ok()
    };
    trouble_everywhere(&disk, script, |disk, removed| {
        let there = live(disk, |core| async move { core.list(None).await.unwrap().volumes }).unwrap();
        assert!(there.iter().all(|info| info.state == "ok"), "{there:?}");
        assert!(removed != Some(true) || there.is_empty(), "it came back");
        if there.is_empty() {
            live(disk, |core| async move { make(&core, "a", Role::Primary).await });
        }
    });
}

/// An aborted receive into an empty volume leaves the size that it had.
#[test]
fn an_aborted_receive_restores_the_size() {
    let disk = store(7);
    live(&disk, |core| async move {
        make(&core, "a", Role::Secondary).await;
        let incoming = crate::snapshot::Incoming {
            target: uuid::Uuid::from_u128(9),
            name: "s".to_owned(),
            created_us: 1,
            size: 128 << 10,
            base: None,
            set: None,
        };
        let (size, content) = core
            .with("a", |volume| async move {
                let begun = volume.receive_begin(&incoming).await?;
                let crate::snapshot::ReceiveStart::Go(receiving, _) = begun else { panic!("it is new") };
                receiving.data(&[(100 << 10, Bytes::from(vec![1; 4096]))]).await?;
                drop(receiving);
                volume.receive_abort().await?;
                let size = volume.geometry().size;
                Ok((size, bytes_of(volume.read(0, size).await?)))
            })
            .await
            .unwrap();
        assert_eq!(size, 64 << 10);
        assert!(content.iter().all(|byte| *byte == 0));
    });
}

/// A volume `a` with two snapshots on a disk of its own: the whole stream of the first and
/// the delta to the second.
fn streams() -> [Vec<u8>; 2] {
    let disk = two_volumes(8);
    let made = live(&disk, |core| async move {
        let mut streams = Vec::new();
        for (snapshot, from) in [("s", None), ("t", Some("s".to_owned()))] {
            let written = core.with("a", move |volume| async move {
                let data = Bytes::from(snapshot.repeat(9000));
                volume.write(crate::snapshot::Who::Client, 9000, data, false).await
            });
            written.await.unwrap();
            core.snapshot(&[name(&format!("a@{snapshot}"))]).await.unwrap();
            let (volume, snapshot) = ("a".to_owned(), snapshot.to_owned());
            let request = SendRequest { volume, snapshot, from, compress: true, resume: None };
            streams.push(stream(&core, &request).await);
        }
        streams
    });
    made.unwrap().try_into().unwrap()
}

/// The snapshots of `a` with their contents, and whether a receive is half done.
fn received(disk: &SimDisk) -> (Vec<(String, Vec<u8>)>, bool) {
    let looked = live(disk, |core| async move {
        if !core.has_volume("a") {
            return (Vec::new(), false);
        }
        let half = core.receive_status("a").await.unwrap().is_some();
        let there = core.with("a", |volume| async move {
            let mut all = Vec::new();
            for record in volume.snapshots() {
                let reader = volume.open_snapshot(&record.name)?;
                all.push((record.name, bytes_of(reader.read(0, reader.size()).await?)));
            }
            Ok(all)
        });
        (there.await.unwrap(), half)
    });
    looked.unwrap()
}

#[test]
fn a_receive_is_whole_or_absent_whatever_happens() {
    let streams = Rc::new(streams());
    let all = {
        let (disk, streams) = (store(9), Rc::clone(&streams));
        let done = live(&disk, |core| async move {
            for stream in streams.iter() {
                core.receive("a", &mut &stream[..]).await.unwrap();
            }
        });
        done.unwrap();
        received(&disk).0
    };
    assert_eq!(all.len(), 2);
    for before in 0..2 {
        let disk = store(10);
        let first = Rc::clone(&streams);
        live(&disk, move |core| async move {
            for stream in &first[..before] {
                core.receive("a", &mut &stream[..]).await.unwrap();
            }
        });
        let stream = Rc::clone(&streams);
        let script = move |core: Rc<Core>| {
            let stream = Rc::clone(&stream);
            async move { core.receive("a", &mut &stream[before][..]).await.is_ok() }
        };
        let (streams, all) = (Rc::clone(&streams), &all);
        let completed = Cell::new(0);
        trouble_everywhere(&disk, script, |disk, answer| {
            let (there, half) = received(disk);
            assert!(there == all[..before] || there == all[..=before], "{} snapshots", there.len());
            let is_there = there.len() > before;
            assert!(is_there || answer != Some(true), "what was received is gone");
            assert!(!(is_there && half), "half of what is there");
            if half {
                // The same stream once more completes it.
                let stream = Rc::clone(&streams);
                live(disk, move |core| async move {
                    core.receive("a", &mut &stream[before][..]).await.unwrap();
                });
                assert!(received(disk) == (all[..=before].to_vec(), false));
                completed.set(completed.get() + 1);
            }
        });
        assert!(completed.get() > 5, "{completed:?}");
    }
}

/// The bytes of a stream.
async fn stream(core: &Core, request: &SendRequest) -> Vec<u8> {
    let mut frames = FrameMaker::new(Box::new(core.source(request).await.unwrap())).unwrap();
    let mut bytes = Vec::new();
    while let Some(frame) = frames.next_frame().await.unwrap() {
        bytes.extend(frame);
    }
    bytes
}

/// Wherever a stream was cut, one that goes on from the token brings the same snapshot.
#[test]
fn a_stream_that_was_cut_goes_on() {
    let disk = two_volumes(11);
    live(&disk, |core| async move {
        core.snapshot(&[name("a@s")]).await.unwrap();
        core.close().await.unwrap();
    });
    let mut left_out = 0;
    for cut in [100, 90, 75, 60, 40, 20, 1] {
        let done = live(&disk.fork(), move |core| async move {
            let (volume, snapshot) = ("a".to_owned(), "s".to_owned());
            let mut request = SendRequest { volume, snapshot, from: None, compress: false, resume: None };
            let whole = stream(&core, &request).await;
            let part = &whole[..whole.len() - whole.len() * cut / 1000 - 1];
            core.receive("r", &mut &*part).await.unwrap_err();
            let half = core.receive_status("r").await.unwrap().unwrap();
            request.resume = Some(half.token);
            let rest = stream(&core, &request).await;
            core.receive("r", &mut &rest[..]).await.unwrap();
            let content = async |volume: &str| {
                let read = core.with(volume, |volume| async move {
                    let reader = volume.open_snapshot("s")?;
                    Ok(bytes_of(reader.read(0, reader.size()).await?))
                });
                read.await.unwrap()
            };
            assert!(content("a").await == content("r").await, "cut {cut}");
            rest.len() < whole.len()
        });
        left_out += u32::from(done.unwrap());
    }
    assert!(left_out > 0, "no stream left out what had arrived");
}
