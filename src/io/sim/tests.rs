//! What the simulated disk loses, tears and keeps.

use super::*;
use crate::io::{Io, OpenHow, Reactor};
use bytes::Bytes;
use std::path::Path;

fn run<T: 'static, F: Future<Output = T> + 'static>(disk: &SimDisk, task: impl FnOnce(Io) -> F) -> T {
    let mut reactor = Reactor::new(Box::new(disk.driver()));
    let io = reactor.io();
    reactor.block_on(task(io))
}

/// Runs a script until the process dies or the script ends; whether it ended.
fn run_until_dead<F: Future<Output = ()> + 'static>(disk: &SimDisk, task: impl FnOnce(Io) -> F) -> bool {
    let mut reactor = Reactor::new(Box::new(disk.driver()));
    let io = reactor.io();
    let over = Rc::new(std::cell::Cell::new(false));
    let (task, flag) = (task(io.clone()), Rc::clone(&over));
    io.spawn(async move {
        task.await;
        flag.set(true);
    });
    loop {
        reactor.run_ready();
        if over.get() || disk.is_dead() {
            return over.get();
        }
        reactor.turn(None);
    }
}

fn filled(byte: u8, len: usize) -> Bytes {
    Bytes::from(vec![byte; len])
}

/// A file of `len` bytes of 1, durable with its name.
async fn durable_file(io: &Io, path: &str, len: usize) -> FileId {
    let file = io.open(Path::new(path), OpenHow::CreateNew).await.unwrap();
    io.write(file, 0, filled(1, len)).await.unwrap();
    io.sync(file).await.unwrap();
    io.sync_dir(Path::new("/")).await.unwrap();
    file
}

#[test]
fn synced_is_kept_and_unsynced_is_lost() {
    let disk = SimDisk::new(SimOptions::seeded(1));
    run(&disk, |io| async move {
        let file = durable_file(&io, "/f", 8192).await;
        io.write(file, 0, filled(2, 4096)).await.unwrap();
        io.write(file, 8192, filled(2, 4096)).await.unwrap();
        io.punch(file, 4096, 4096).await.unwrap();
        assert_eq!(io.read(file, 0, 1).await.unwrap()[..], [2]);
    });
    assert_eq!(disk.unsynced(), 3);
    let kept = disk.fork();
    kept.power_cut(Loss::None);
    assert_eq!(kept.contents("/f").unwrap(), [[2; 4096], [0; 4096], [2; 4096]].concat());
    for (alone, expected) in
        [[[2; 4096], [1; 4096]].concat(), [[1; 4096], [1; 4096], [2; 4096]].concat()].into_iter().enumerate()
    {
        // The second one leaves the file longer than its durable start.
        let disk = disk.fork();
        disk.power_cut(Loss::Alone(alone));
        assert_eq!(disk.contents("/f").unwrap(), expected);
    }
    let boot = disk.driver().boot_id();
    disk.power_cut(Loss::All);
    assert_eq!(disk.contents("/f").unwrap(), vec![1; 8192]);
    assert_ne!(disk.driver().boot_id(), boot);
    assert_eq!(disk.unsynced(), 0);
}

#[test]
fn names_need_a_sync_of_their_directory() {
    let disk = SimDisk::new(SimOptions::seeded(2));
    run(&disk, |io| async move {
        durable_file(&io, "/old", 10).await;
        let file = io.open(Path::new("/new"), OpenHow::CreateNew).await.unwrap();
        io.write(file, 0, filled(5, 10)).await.unwrap();
        io.sync(file).await.unwrap();
        io.make_dir(Path::new("/d")).await.unwrap();
        io.remove(Path::new("/old")).await.unwrap();
    });
    let lost = disk.fork();
    lost.power_cut(Loss::All);
    assert_eq!(lost.contents("/new"), None);
    assert_eq!(lost.contents("/old").unwrap(), [1; 10]);
    run(&disk, |io| async move {
        io.sync_dir(Path::new("/")).await.unwrap();
        io.open(Path::new("/d/f"), OpenHow::CreateNew).await.unwrap();
    });
    disk.power_cut(Loss::All);
    assert_eq!(disk.contents("/new").unwrap(), [5; 10]);
    assert_eq!(disk.contents("/old"), None);
    assert!(run(&disk, |io| async move { io.list(Path::new("/d")).await.unwrap() }).is_empty());
}

#[test]
fn a_sync_of_one_directory_covers_no_other() {
    let disk = SimDisk::new(SimOptions::seeded(3));
    run(&disk, |io| async move {
        io.make_dir(Path::new("/d")).await.unwrap();
        durable_file(&io, "/f", 10).await;
        io.open(Path::new("/d/inner"), OpenHow::CreateNew).await.unwrap();
        io.open(Path::new("/outer"), OpenHow::CreateNew).await.unwrap();
        io.sync_dir(Path::new("/d")).await.unwrap();
        let file = io.open(Path::new("/f"), OpenHow::Write).await.unwrap();
        let other = io.open(Path::new("/d/inner"), OpenHow::Write).await.unwrap();
        io.write(file, 0, filled(2, 10)).await.unwrap();
        io.sync(other).await.unwrap();
    });
    disk.power_cut(Loss::All);
    assert!(disk.contents("/d/inner").is_some());
    assert_eq!(disk.contents("/outer"), None);
    assert_eq!(disk.contents("/f").unwrap(), [1; 10]);
}

#[test]
fn writes_tear_at_sectors() {
    let mut mixed = 0;
    for seed in 0..50 {
        let disk = SimDisk::new(SimOptions::seeded(seed));
        run(&disk, |io| async move {
            let file = durable_file(&io, "/f", 4096).await;
            io.write(file, 100, filled(2, 3000)).await.unwrap();
        });
        disk.power_cut(Loss::Random);
        let bytes = disk.contents("/f").unwrap();
        let mut seen = [false; 2];
        for (i, sector) in bytes.chunks(512).enumerate() {
            let written: Vec<u8> = sector
                .iter()
                .enumerate()
                .filter(|(j, _)| (100..3100).contains(&(i * 512 + j)))
                .map(|(_, b)| *b)
                .collect();
            if let Some(first) = written.first() {
                assert!(written.iter().all(|byte| byte == first), "seed {seed}: sector {i} is torn");
                seen[usize::from(*first == 2)] = true;
            }
        }
        mixed += usize::from(seen == [true, true]);
    }
    assert!(mixed > 5, "only {mixed} of 50 cuts tore the write");
}

#[test]
fn a_rename_is_never_half_done() {
    let mut outcomes = [0; 2];
    for seed in 0..60_u32 {
        let disk = SimDisk::new(SimOptions::seeded(seed.into()));
        run(&disk, |io| async move {
            durable_file(&io, "/f", 10).await;
            for _ in 0..2 {
                let file = io.open(Path::new("/f.new"), OpenHow::CreateNew).await.unwrap();
                io.write(file, 0, filled(2, 10)).await.unwrap();
                io.sync(file).await.unwrap();
                io.rename(Path::new("/f.new"), Path::new("/f")).await.unwrap();
            }
        });
        let unsynced = disk.unsynced();
        disk.power_cut(if seed % 2 == 0 { Loss::Random } else { Loss::Alone(seed as usize % unsynced) });
        let bytes = disk.contents("/f").unwrap_or_else(|| panic!("seed {seed}: lost"));
        assert!(bytes == [1; 10] || bytes == [2; 10], "seed {seed}: {bytes:?}");
        outcomes[usize::from(bytes[0] == 2)] += 1;
    }
    assert!(outcomes.iter().all(|count| *count > 5), "{outcomes:?}");
}

#[test]
fn a_dead_process_leaves_what_completed() {
    for seed in 0..20 {
        let disk = SimDisk::new(SimOptions::seeded(seed));
        let file = run(&disk, |io| async move {
            let file = io.open(Path::new("/f"), OpenHow::CreateNew).await.unwrap();
            io.write(file, 0, filled(3, 5000)).await.unwrap();
            io.map_region(Path::new("/r"), 100).await.unwrap().write(7, b"mapped");
            drop(io.submit(Op::Write { file, offset: 5000, data: vec![filled(4, 5000)] }));
            file
        });
        let boot = disk.driver().boot_id();
        disk.crash_process();
        let bytes = disk.contents("/f").unwrap();
        assert_eq!(bytes[..5000], [3; 5000]);
        assert!(bytes[5000..].iter().all(|byte| *byte == 4));
        assert_eq!(disk.driver().boot_id(), boot);
        run(&disk, move |io| async move {
            assert!(io.read(file, 0, 1).await.is_err(), "a file of another life");
            let mut mapped = [0; 6];
            io.map_region(Path::new("/r"), 100).await.unwrap().read(7, &mut mapped);
            assert_eq!(&mapped, b"mapped");
        });
    }
}

#[test]
fn a_power_cut_spoils_regions() {
    let mut seen = std::collections::BTreeSet::new();
    for seed in 0..20 {
        let disk = SimDisk::new(SimOptions::seeded(seed));
        run(&disk, |io| async move {
            let region = io.map_region(Path::new("/r"), 4096).await.unwrap();
            region.write(0, &[7; 4096]);
        });
        assert_eq!(disk.contents("/r").unwrap(), [7; 4096]);
        disk.power_cut(Loss::None);
        run(&disk, |io| async move { io.map_region(Path::new("/r"), 4096).await.unwrap() });
        let bytes = disk.contents("/r").unwrap();
        seen.insert(match bytes[..] {
            [0, .., 0] => "old",
            [7, .., 7] => "new",
            _ => "garbage",
        });
    }
    assert_eq!(seen.len(), 3, "{seen:?}");
}

/// One run of many concurrent operations, cut in the middle.
fn trace(seed: u64) -> Vec<String> {
    let disk = SimDisk::new(SimOptions::seeded(seed));
    let trace = Rc::new(RefCell::new(Vec::new()));
    disk.crash_after(60);
    let tasks = Rc::clone(&trace);
    run_until_dead(&disk, |io| async move {
        let file = io.open(Path::new("/f"), OpenHow::CreateNew).await.unwrap();
        let all = (0..40_u8).map(|i| {
            let (io, trace) = (io.clone(), Rc::clone(&tasks));
            async move {
                io.write(file, u64::from(i % 8) * 700, filled(i, 1000)).await.unwrap();
                trace.borrow_mut().push(format!("written {i}"));
                io.sync(file).await.unwrap();
                trace.borrow_mut().push(format!("synced {i}"));
            }
        });
        futures::future::join_all(all).await;
    });
    assert!(disk.is_dead());
    disk.power_cut(Loss::Random);
    let mut trace = trace.take();
    trace.push(format!("{:?}", disk.contents("/f")));
    trace
}

#[test]
fn a_seed_decides_everything() {
    assert_eq!(trace(5), trace(5));
    assert_ne!(trace(5), trace(6));
}

#[test]
fn every_operation_can_be_the_last() {
    let script = |io: Io| async move {
        let file = durable_file(&io, "/f", 4096).await;
        let region = io.map_region(Path::new("/r"), 64).await.unwrap();
        for byte in 2..5 {
            region.write(0, &[byte; 8]);
            io.write(file, 0, filled(byte, 4096)).await.unwrap();
            region.write(8, &[byte; 8]);
            io.sync(file).await.unwrap();
        }
    };
    let start = SimDisk::new(SimOptions::seeded(9));
    let mut n = 0;
    loop {
        let disk = start.fork();
        disk.crash_after(n);
        let over = run_until_dead(&disk, script);
        let cut = disk.fork();
        cut.power_cut(Loss::Random);
        disk.crash_process();
        let seen = run(&disk, |io| async move {
            let mut seen = [0; 16];
            if let Ok(region) = io.map_region(Path::new("/r"), 64).await {
                region.read(0, &mut seen);
            }
            seen
        });
        // Each store is whole, torn, or missing; the second never precedes the first.
        assert!(seen[0] == 0 || seen[0] >= seen[8], "{n}: {seen:?}");
        assert!(seen[0] <= seen[8].max(1) + 1, "{n}: {seen:?}");
        if over {
            break;
        }
        n += 1;
    }
    assert!(n >= 17, "{n}");
}

/// What a failed sync gave up may be lost, and may turn up at a crash after all, but never over
/// what was written to the same place later and made durable.
#[test]
fn what_was_given_up_does_not_replace_what_came_later() {
    for (seed, loss) in
        (0..40).flat_map(|seed| [Loss::None, Loss::All, Loss::Random].map(|loss| (seed, loss)))
    {
        let disk = SimDisk::new(SimOptions::seeded(seed));
        let machine = disk.clone();
        run(&disk, |io| async move {
            let file = durable_file(&io, "/f", 4096).await;
            io.write(file, 4096, filled(2, 4096)).await.unwrap();
            machine.fail_syncs(true);
            assert!(io.sync(file).await.is_err());
            machine.fail_syncs(false);
            if seed % 2 == 0 {
                io.truncate(file, 4096).await.unwrap();
            }
            io.write(file, 4096, filled(3, 4096)).await.unwrap();
            io.sync(file).await.unwrap();
        });
        disk.power_cut(loss);
        assert_eq!(disk.contents("/f").unwrap(), [[1; 4096], [3; 4096]].concat(), "{seed} {loss:?}");
    }
}

#[test]
fn every_operation_can_fail_once() {
    let mut n = 1;
    loop {
        let disk = SimDisk::new(SimOptions::seeded(n));
        disk.fail_at(n, EIO);
        let failed = run(&disk, |io| async move {
            let path = Path::new("/f");
            let file = io.open(path, OpenHow::CreateNew).await?;
            io.write(file, 0, filled(1, 4096)).await?;
            io.sync(file).await?;
            io.sync_dir(Path::new("/")).await?;
            io.rename(path, Path::new("/g")).await?;
            io.read(file, 0, 10).await
        });
        match failed {
            Ok(_) => break,
            Err(error) => assert!(error.to_string().contains("os error 5"), "{error}"),
        }
        n += 1;
    }
    assert_eq!(n, 7);
}

#[test]
fn a_failed_sync_is_not_made_good_by_the_next_one() {
    let mut lost = 0;
    for seed in 0..20 {
        let disk = SimDisk::new(SimOptions::seeded(seed));
        let machine = disk.clone();
        run(&disk, |io| async move {
            let file = durable_file(&io, "/f", 512).await;
            io.write(file, 0, filled(2, 512)).await.unwrap();
            machine.fail_syncs(true);
            assert!(io.sync(file).await.is_err());
            machine.fail_syncs(false);
            io.sync(file).await.unwrap();
            assert_eq!(io.read(file, 0, 1).await.unwrap()[..], [2]);
        });
        disk.power_cut(Loss::All);
        lost += usize::from(disk.contents("/f").unwrap()[0] == 1);
    }
    assert!((1..20).contains(&lost), "{lost}");
}

#[test]
fn bits_flip_and_sectors_become_unreadable() {
    let disk = SimDisk::new(SimOptions::seeded(1));
    run(&disk, |io| async move { durable_file(&io, "/f", 2048).await });
    disk.flip_bit("/f", 700, 3);
    let state = disk.fork();
    disk.spoil("/f", 1024, 1);
    run(&disk, |io| async move {
        let file = io.open(Path::new("/f"), OpenHow::Write).await.unwrap();
        assert_eq!(io.read(file, 699, 3).await.unwrap()[..], [1, 9, 1]);
        assert!(io.read(file, 0, 2048).await.is_err());
        io.write(file, 1024, filled(1, 512)).await.unwrap();
        io.read(file, 0, 2048).await.unwrap();
        io.truncate(file, 0).await.unwrap();
    });
    disk.restore(&state);
    assert_eq!(disk.contents("/f").unwrap().len(), 2048);
}

#[test]
fn concurrent_operations_end_in_any_order() {
    let orders: std::collections::BTreeSet<u8> = (0..20)
        .map(|seed| {
            let disk = SimDisk::new(SimOptions::seeded(seed));
            run(&disk, |io| async move {
                let file = io.open(Path::new("/f"), OpenHow::CreateNew).await.unwrap();
                let writes = [1, 2].map(|byte| io.write(file, 0, filled(byte, 10)));
                futures::future::join_all(writes).await;
                io.read(file, 0, 1).await.unwrap()[0]
            })
        })
        .collect();
    assert_eq!(orders.len(), 2);
}
