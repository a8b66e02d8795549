use super::*;
use crate::ErrorKind;
use crate::io::Reactor;
use crate::io::sim::{EIO, Loss, SimDisk, SimOptions};

const STORE: &str = "/";

/// Runs a task on a simulated disk to its end.
fn run<T: 'static, F: Future<Output = T> + 'static>(disk: &SimDisk, task: impl FnOnce(Io) -> F) -> T {
    let mut reactor = Reactor::new(Box::new(disk.driver()));
    let task = task(reactor.io());
    reactor.block_on(task)
}

fn read_committed(disk: &SimDisk) -> Batches {
    run(disk, |io| async move {
        loop {
            // A failure that was planned for an operation that never came hits here.
            if let Ok(found) = committed(&io, Path::new(STORE), true).await {
                return found;
            }
        }
    })
}

fn commit_one(disk: &SimDisk, batch: Uuid) -> Commit {
    run(disk, move |io| async move { commit(&io, Path::new(STORE), batch).await })
}

/// Puts bytes at the end of the file `batches`, durably.
fn append(disk: &SimDisk, bytes: &'static [u8]) {
    run(disk, move |io| async move {
        let file = io.open(&paths::batches(Path::new(STORE)), OpenHow::Write).await.unwrap();
        let end = io.size(file).await.unwrap();
        io.write(file, end, Bytes::from_static(bytes)).await.unwrap();
        io.sync(file).await.unwrap();
    });
}

#[test]
fn a_torn_entry_is_nobody_s() {
    let disk = SimDisk::new(SimOptions::seeded(1));
    let (a, b, c) = (Uuid::from_u128(1), Uuid::from_u128(2), Uuid::from_u128(3));
    assert!(matches!(commit_one(&disk, a), Commit::Done));
    append(&disk, &[1; 7]);
    assert_eq!(read_committed(&disk).committed, BTreeSet::from([a]));
    assert!(matches!(commit_one(&disk, b), Commit::Done));
    // A power cut may leave an entry's length without its bytes.
    append(&disk, &[0; ENTRY_SIZE]);
    let found = read_committed(&disk);
    assert!(found.committed == BTreeSet::from([a, b]) && found.damage.is_none());
    assert!(matches!(commit_one(&disk, c), Commit::Done));
    disk.power_cut(Loss::All);
    assert_eq!(read_committed(&disk).committed, BTreeSet::from([a, b, c]));
    run(&disk, |io| async move { forget(&io, Path::new(STORE)).await.unwrap() });
    assert!(read_committed(&disk).committed.is_empty());
}

#[test]
fn damage_is_told_from_a_torn_entry_and_keeps_the_others() {
    for (index, at) in [(0, 3), (1, 35), (1, 49), (1, 63)] {
        let disk = SimDisk::new(SimOptions::seeded(2));
        let both = [Uuid::from_u128(1), Uuid::from_u128(2)];
        for batch in both {
            assert!(matches!(commit_one(&disk, batch), Commit::Done));
        }
        disk.flip_bit("/batches", at, 0);
        let found = read_committed(&disk);
        assert_eq!(found.committed, BTreeSet::from([both[1 - index]]), "byte {at}");
        assert_eq!(found.damage.unwrap().kind(), ErrorKind::Corrupt);
    }
}

/// Whatever operation of a commit fails, an open after a power cut finds what it said.
#[test]
fn a_failed_commit_is_taken_back_or_unknown() {
    let (before, batch) = (Uuid::from_u128(1), Uuid::from_u128(2));
    let mut seen = [0; 3];
    for seed in 0..200 {
        let disk = SimDisk::new(SimOptions::seeded(seed));
        if seed % 2 == 0 {
            assert!(matches!(commit_one(&disk, before), Commit::Done));
        }
        let start = disk.ops();
        disk.fail_at(start + 1 + seed / 2 % 8, EIO);
        if seed % 5 == 0 {
            // The one that takes it back fails too.
            disk.fail_at(start + 6, EIO);
            disk.fail_at(start + 7, EIO);
        }
        let outcome = commit_one(&disk, batch);
        disk.power_cut(Loss::Random);
        let there = read_committed(&disk).committed.contains(&batch);
        match outcome {
            Commit::Done => {
                assert!(there, "seed {seed}");
                seen[0] += 1;
            }
            Commit::Undone(_) => {
                assert!(!there, "seed {seed}");
                seen[1] += 1;
            }
            Commit::Unknown(_) => seen[2] += 1,
        }
    }
    assert!(seen.iter().all(|count| *count > 5), "{seen:?}");
}

/// What an open read stays so: it was made durable first.
#[test]
fn what_an_open_believes_is_durable() {
    let batch = Uuid::from_u128(2);
    let (mut there, mut gone) = (0, 0);
    for seed in 0..40 {
        let disk = SimDisk::new(SimOptions::seeded(seed));
        disk.crash_after(seed % 8);
        let mut reactor = Reactor::new(Box::new(disk.driver()));
        let io = reactor.io();
        io.clone().spawn(async move {
            commit(&io, Path::new(STORE), batch).await;
        });
        reactor.run_ready();
        while !disk.is_dead() && reactor.is_busy() {
            reactor.turn(None);
        }
        disk.crash_process();
        let first = read_committed(&disk).committed;
        disk.power_cut(Loss::All);
        assert_eq!(read_committed(&disk).committed, first, "seed {seed}");
        if first.is_empty() { gone += 1 } else { there += 1 }
    }
    assert!(there > 0 && gone > 0);
}

#[test]
fn intentions_survive() {
    let disk = SimDisk::new(SimOptions::seeded(4));
    let all = Deletions::from([("a".to_owned(), vec![Uuid::from_u128(7)]), ("b".to_owned(), vec![])]);
    let store = || Path::new(STORE);
    let expected = all.clone();
    run(&disk, move |io| async move {
        assert!(intended(&io, store(), true).await.unwrap().is_empty());
        intend(&io, store(), &all).await.unwrap();
    });
    disk.power_cut(Loss::All);
    run(&disk, move |io| async move {
        assert_eq!(intended(&io, store(), true).await.unwrap(), expected);
        done(&io, store()).await.unwrap();
        done(&io, store()).await.unwrap();
        assert!(intended(&io, store(), true).await.unwrap().is_empty());
    });
}
