//! One test for each rule that closes a hole: an order of events in which the volume would
//! lose data or show old data without it. Each was seen to fail with its rule broken.

use super::*;
use crate::io::sim::{Loss, SimOptions};
use crate::snapshot::{Incoming, ReceiveStart, Who};
use crate::{Error, ErrorKind};
use bytes::Bytes;
use futures::future::join;

const BLOCK: u64 = 4096;
const SIZE: u64 = 24 * BLOCK;
/// Bytes in a block.
const BYTES: usize = 4096;

/// A machine with a new volume.
fn machine(seed: u64, granularity: u32, role: Role) -> SimDisk {
    let disk = SimDisk::new(SimOptions { seed, inline: seed.is_multiple_of(2), reorder: true });
    let geometry = Geometry::new(SIZE, 4096, granularity).unwrap();
    on_sim(&disk, move |io| async move { create(&io, Path::new(DIR), geometry, role).await });
    disk.crash_process();
    disk
}

/// One life of a process with the volume open; `None` if it was cut short.
fn live<T: 'static, F: Future<Output = T> + 'static>(
    disk: &SimDisk,
    task: impl FnOnce(Rc<Volume>) -> F + 'static,
) -> Option<T> {
    on_sim(disk, |io| async move {
        let volume = open(&io, Path::new(DIR), 4096, &BTreeSet::new()).await;
        task(volume).await
    })
}

async fn put(volume: &Rc<Volume>, at: u64, len: u64, byte: u8) {
    let data = Bytes::from(vec![byte; usize::try_from(len).unwrap()]);
    volume.write(Who::Client, at, data, false).await.unwrap();
}

async fn trim(volume: &Rc<Volume>, at: u64, len: u64) {
    volume.trim(Who::Client, at, len, false).await.unwrap();
}

async fn take(volume: &Rc<Volume>, name: &str) {
    volume.take(request(name)).await.unwrap();
}

async fn delete(volume: &Rc<Volume>, name: &str) {
    let (uuid, _) = volume.can_delete(name).unwrap();
    volume.delete(&[uuid]).await.unwrap();
}

/// The first byte of every block of production.
async fn now(volume: &Rc<Volume>) -> Vec<u8> {
    production(volume).await.into_iter().step_by(4096).collect()
}

/// The first byte of every block of a snapshot.
async fn then(volume: &Rc<Volume>, name: &str) -> Vec<u8> {
    snapshot(volume, name).await.into_iter().step_by(4096).collect()
}

#[test]
fn a_deletion_hands_on_what_any_older_snapshot_needs() {
    let disk = machine(2, 1, Role::Primary);
    let check = |volume: Rc<Volume>| async move {
        assert_eq!(then(&volume, "a").await[..5], [1, 1, 1, 1, 0]);
        assert_eq!(then(&volume, "b").await[..5], [1, 2, 0, 1, 0]);
    };
    live(&disk, move |volume| async move {
        put(&volume, 0, 4 * BLOCK, 1).await;
        take(&volume, "a").await;
        put(&volume, BLOCK, BLOCK, 2).await;
        trim(&volume, 2 * BLOCK, BLOCK).await;
        take(&volume, "b").await;
        put(&volume, 4 * BLOCK, BLOCK, 3).await;
        take(&volume, "c").await;
        // Needed by b and a; by b alone; by a alone, behind b which does not use it; by c.
        put(&volume, 0, 5 * BLOCK, 4).await;
        volume.flush().await.unwrap();
        delete(&volume, "c").await;
        check(Rc::clone(&volume)).await;
        // What c alone needed is gone.
        assert_eq!(volume.summary().await.unwrap().saved, 5 * BLOCK);
    });
    disk.crash_process();
    live(&disk, move |volume| async move {
        check(Rc::clone(&volume)).await;
        delete(&volume, "b").await;
        assert_eq!(then(&volume, "a").await[..5], [1, 1, 1, 1, 0]);
        assert_eq!(volume.summary().await.unwrap().saved, 4 * BLOCK);
    });
}

#[test]
fn a_reader_asks_again_after_it_read_the_clone_volume() {
    for seed in 0..40 {
        let disk = machine(seed * 2 + 1, 1, Role::Primary);
        live(&disk, |volume| async move {
            put(&volume, 0, 8 * BLOCK, 1).await;
            take(&volume, "a").await;
            // So many that some are overtaken by a whole group.
            let read = futures::future::join_all((0..40).map(|i| {
                let volume = &volume;
                async move {
                    for _ in 0..i {
                        volume.io().list(Path::new("/")).await.unwrap();
                    }
                    assert_eq!(then(volume, "a").await[..8], [1; 8]);
                }
            }));
            let write = async {
                for block in 0..8 {
                    put(&volume, block * BLOCK, BLOCK, 2).await;
                }
                volume.flush().await.unwrap();
            };
            join(read, write).await;
        });
    }
}

#[test]
fn a_snapshot_holds_what_was_acknowledged_before_its_instant_and_nothing_later() {
    for seed in 0..20 {
        let disk = machine(seed, 1, Role::Primary);
        live(&disk, |volume| async move {
            put(&volume, 0, 6 * BLOCK, 1).await;
            take(&volume, "a").await;
            put(&volume, 0, 3 * BLOCK, 2).await;
            trim(&volume, 4 * BLOCK, BLOCK).await;
            let mut ticket = volume.prepare_take(request("b")).await.unwrap();
            ticket.raise();
            // The settler may not have begun with the first ones.
            put(&volume, 0, 2 * BLOCK, 3).await;
            trim(&volume, 2 * BLOCK, 2 * BLOCK).await;
            put(&volume, 4 * BLOCK, BLOCK, 3).await;
            ticket.finish().await.unwrap();
            ticket.publish();
        });
        // Nothing after the take was flushed; the snapshot is exact all the same.
        disk.power_cut(Loss::Random);
        live(&disk, |volume| async move {
            assert_eq!(then(&volume, "b").await[..6], [2, 2, 2, 1, 0, 1]);
            assert_eq!(then(&volume, "a").await[..6], [1; 6]);
        });
    }
}

#[test]
fn slots_and_trims_keep_their_order_over_a_crash() {
    for seed in 0..20 {
        for checkpoint in [false, true] {
            let disk = machine(seed, 1, Role::Primary);
            live(&disk, move |volume| async move {
                put(&volume, 0, 4 * BLOCK, 1).await;
                take(&volume, "a").await;
                put(&volume, 0, 4 * BLOCK, 2).await;
                if checkpoint {
                    // Journaled slots outlive their trim.
                    volume.flush().await.unwrap();
                }
                trim(&volume, 0, 2 * BLOCK).await;
                put(&volume, 0, BLOCK, 3).await;
                if checkpoint {
                    volume.checkpoint().await.unwrap();
                }
            });
            let cut = disk.fork();
            disk.crash_process();
            live(&disk, |volume| async move {
                assert_eq!(now(&volume).await[..4], [3, 0, 2, 2]);
                assert_eq!(then(&volume, "a").await[..4], [1; 4]);
            });
            if checkpoint {
                cut.power_cut(Loss::All);
                live(&cut, |volume| async move {
                    assert_eq!(now(&volume).await[..4], [3, 0, 2, 2]);
                    assert_eq!(then(&volume, "a").await[..4], [1; 4]);
                });
            }
        }
    }
}

#[test]
fn a_trimmed_slot_does_not_come_back_after_a_checkpoint() {
    let disk = machine(2, 1, Role::Primary);
    live(&disk, |volume| async move {
        put(&volume, 0, 4 * BLOCK, 1).await;
        take(&volume, "a").await;
        volume.close().await.unwrap();
    });
    disk.crash_process();
    on_sim(&disk, |io| async move {
        // Nothing is ever settled.
        let tuning = Tuning { groups_in_flight_max: 0, ..tuning(4096) };
        let opened = Volume::open(&io, Path::new(DIR), "vol", tuning, &BTreeSet::new()).await;
        let (volume, _) = opened.unwrap();
        put(&volume, 0, 3 * BLOCK, 2).await;
        volume.flush().await.unwrap();
        trim(&volume, 0, 2 * BLOCK).await;
        // The record of the trim is in no journal from here on.
        volume.checkpoint().await.unwrap();
    });
    disk.crash_process();
    live(&disk, |volume| async move {
        assert_eq!(now(&volume).await[..4], [0, 0, 2, 1]);
        assert_eq!(then(&volume, "a").await[..4], [1; 4]);
    });
}

#[test]
fn a_granule_that_comes_into_use_shows_no_old_data() {
    let disk = machine(2, 4, Role::Primary);
    live(&disk, |volume| async move {
        put(&volume, 0, SIZE, 1).await;
        take(&volume, "a").await;
        trim(&volume, 0, SIZE).await;
        put(&volume, BLOCK + 100, 10, 2).await;
        let found = production(&volume).await;
        assert!(found.iter().enumerate().all(|(at, byte)| {
            let written = (BYTES + 100..BYTES + 110).contains(&at);
            *byte == if written { 2 } else { 0 }
        }));
        // The same past the end: a larger volume must not show it either.
        trim(&volume, 0, SIZE).await;
        volume.resize(5 * BLOCK).await.unwrap();
        put(&volume, 4 * BLOCK, BLOCK, 3).await;
        volume.resize(SIZE).await.unwrap();
        assert_eq!(now(&volume).await[..8], [0, 0, 0, 0, 3, 0, 0, 0]);
        assert_eq!(then(&volume, "a").await, [1; 24]);
    });
}

#[test]
fn a_write_that_was_never_recorded_is_never_seen() {
    let mut cut = 0;
    for n in 0..40 {
        let disk = machine(n, 4, Role::Primary);
        let machine = disk.clone();
        let ended = live(&disk, move |volume| async move {
            machine.crash_after(n / 5);
            put(&volume, 0, BLOCK, 9).await;
        });
        cut += u32::from(ended.is_none());
        if n.is_multiple_of(2) {
            disk.crash_process();
        } else {
            disk.power_cut(Loss::Random);
        }
        live(&disk, |volume| async move {
            let before = now(&volume).await;
            put(&volume, BLOCK, BLOCK, 2).await;
            assert_eq!(now(&volume).await[..4], [before[0], 2, 0, 0]);
        });
    }
    assert!(cut > 1);
}

#[test]
fn a_segment_that_somebody_reads_is_not_used_again() {
    for seed in 0..30 {
        let disk = machine(seed, 1, Role::Primary);
        live(&disk, move |volume| async move {
            for round in 0..4 {
                put(&volume, 0, SIZE, round).await;
                take(&volume, &format!("s{round}")).await;
            }
            put(&volume, 0, SIZE, 9).await;
            let verify = volume.verify(true);
            let reuse = async {
                for round in 0..4_u8 {
                    delete(&volume, &format!("s{round}")).await;
                    take(&volume, &format!("t{round}")).await;
                    put(&volume, 0, SIZE, 20 + round).await;
                }
            };
            let (verified, ()) = join(verify, reuse).await;
            let found = verified.unwrap().found;
            assert!(found.is_empty(), "seed {seed}: {found:?}");
        });
    }
}

fn incoming(base: Option<(Uuid, &str)>) -> Incoming {
    Incoming {
        target: Uuid::from_u128(42),
        name: "target".into(),
        created_us: 1,
        size: SIZE,
        base: base.map(|(uuid, name)| (uuid, name.to_owned())),
    }
}

/// A secondary with the snapshot `base`, all ones.
async fn with_base(volume: &Rc<Volume>) -> Uuid {
    let first = Incoming { target: Uuid::from_u128(41), name: "base".into(), ..incoming(None) };
    let ReceiveStart::Go(receiving, 0) = volume.receive_begin(&first).await.unwrap() else { panic!() };
    receiving.data(0, Bytes::from(vec![1; 8 * BYTES])).await.unwrap();
    receiving.commit().await.unwrap();
    first.target
}

#[test]
fn a_receive_is_there_whole_or_not_at_all() {
    for whole in [true, false] {
        let mut n = 0;
        loop {
            let disk = machine(2, 1, Role::Secondary);
            let machine = disk.clone();
            let ended = live(&disk, move |volume| async move {
                let base = with_base(&volume).await;
                machine.crash_after(n);
                let start = incoming((!whole).then_some((base, "base")));
                let ReceiveStart::Go(receiving, _) = volume.receive_begin(&start).await.unwrap() else {
                    panic!()
                };
                receiving.data(2 * BLOCK, Bytes::from(vec![2; 4 * BYTES])).await.unwrap();
                receiving.discard(7 * BLOCK, BLOCK).await.unwrap();
                receiving.commit().await.unwrap();
            });
            disk.power_cut(if n.is_multiple_of(2) { Loss::All } else { Loss::Random });
            let there = live(&disk, move |volume| async move {
                assert_eq!(then(&volume, "base").await[..8], [1; 8]);
                if volume.half_received().is_some() {
                    volume.receive_abort().await.unwrap();
                }
                if volume.open_snapshot("target").is_err() {
                    assert_eq!(now(&volume).await[..8], [1; 8]);
                    return false;
                }
                let expected = if whole { [0, 0, 2, 2, 2, 2, 0, 0] } else { [1, 1, 2, 2, 2, 2, 1, 0] };
                assert_eq!(then(&volume, "target").await[..8], expected);
                true
            });
            if ended.is_some() {
                assert_eq!(there, Some(true));
                break;
            }
            n += 3;
        }
        assert!(n > 20);
    }
}

#[test]
fn a_resumed_receive_starts_from_nothing() {
    let mut n = 0;
    loop {
        let disk = machine(2, 1, Role::Secondary);
        let machine = disk.clone();
        let larger = Incoming { size: SIZE + 4 * BLOCK, ..incoming(None) };
        let again = larger.clone();
        let ended = live(&disk, move |volume| async move {
            with_base(&volume).await;
            machine.crash_after(n);
            volume.receive_begin(&larger).await.unwrap();
        });
        disk.crash_process();
        live(&disk, move |volume| async move {
            let ReceiveStart::Go(receiving, 0) = volume.receive_begin(&again).await.unwrap() else {
                panic!()
            };
            receiving.data(SIZE, Bytes::from(vec![3; BYTES])).await.unwrap();
            receiving.commit().await.unwrap();
            let mut expected = [0; 28];
            expected[24] = 3;
            assert_eq!(then(&volume, "target").await, expected, "{n}");
        });
        if ended.is_some() {
            break;
        }
        n += 1;
    }
    assert!(n > 5);
}

#[test]
fn a_receive_needs_its_base_and_leaves_it_usable() {
    let disk = machine(2, 1, Role::Secondary);
    live(&disk, |volume| async move {
        let base = with_base(&volume).await;
        for _ in 0..2 {
            let start = incoming(Some((base, "base")));
            let Ok(ReceiveStart::Go(receiving, _)) = volume.receive_begin(&start).await else { panic!() };
            receiving.data(0, Bytes::from(vec![5; BYTES])).await.unwrap();
            drop(receiving);
            let busy: Result<(), Error> = volume.set_role(Role::Primary).await;
            assert_eq!(busy.unwrap_err().kind(), ErrorKind::Conflict);
            volume.receive_abort().await.unwrap();
        }
        volume.set_role(Role::Primary).await.unwrap();
        put(&volume, 0, 1, 7).await;
        volume.set_role(Role::Secondary).await.unwrap();
        let refused = volume.receive_begin(&incoming(Some((base, "base")))).await;
        assert_eq!(refused.err().map(|e| e.kind()), Some(ErrorKind::Conflict));
    });
}

#[test]
fn a_roll_back_is_done_or_done_again() {
    let mut n = 0;
    loop {
        let disk = machine(2, 1, Role::Primary);
        let machine = disk.clone();
        let ended = live(&disk, move |volume| async move {
            put(&volume, 0, 8 * BLOCK, 1).await;
            take(&volume, "a").await;
            put(&volume, 2 * BLOCK, 4 * BLOCK, 2).await;
            put(&volume, 10 * BLOCK, BLOCK, 2).await;
            take(&volume, "b").await;
            trim(&volume, 0, BLOCK).await;
            volume.flush().await.unwrap();
            machine.crash_after(n);
            volume.roll_back("a").await.unwrap();
        });
        disk.power_cut(if n.is_multiple_of(2) { Loss::All } else { Loss::Random });
        live(&disk, move |volume| async move {
            let now = now(&volume).await;
            let before = [0, 1, 2, 2, 2, 2, 1, 1, 0, 0, 2];
            let after = [1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0];
            assert!(now[..11] == before || now[..11] == after, "{n}: {now:?}");
            assert_eq!(then(&volume, "a").await[..11], after);
            assert_eq!(then(&volume, "b").await[..11], [1, 1, 2, 2, 2, 2, 1, 1, 0, 0, 2]);
        });
        if ended.is_some() {
            break;
        }
        n += 1;
    }
    assert!(n > 10);
}

#[test]
fn the_first_image_wins_after_an_undone_take() {
    for undo in [false, true] {
        let disk = machine(2, 1, Role::Primary);
        live(&disk, move |volume| async move {
            put(&volume, 0, 4 * BLOCK, 1).await;
            take(&volume, "a").await;
            put(&volume, 0, 2 * BLOCK, 2).await;
            let mut ticket = volume.prepare_take(request("b")).await.unwrap();
            ticket.raise();
            if undo {
                ticket.finish().await.unwrap();
            }
            // These save what b needs: the second images of the first block.
            put(&volume, 0, BLOCK, 3).await;
            put(&volume, 2 * BLOCK, BLOCK, 3).await;
            volume.flush().await.unwrap();
            volume.settled_before(crate::types::Epoch(u64::MAX)).await.unwrap();
            if undo {
                ticket.undo().await.unwrap();
            } else {
                drop(ticket);
            }
            assert_eq!(then(&volume, "a").await[..4], [1; 4]);
            put(&volume, 3 * BLOCK, BLOCK, 3).await;
            assert_eq!(then(&volume, "a").await[..4], [1; 4]);
        });
        disk.crash_process();
        live(&disk, |volume| async move {
            assert_eq!(then(&volume, "a").await[..4], [1; 4]);
            assert_eq!(now(&volume).await[..4], [3, 2, 3, 3]);
        });
    }
}

#[test]
fn an_undone_take_leaves_the_tail_as_it_was() {
    let disk = machine(2, 1, Role::Primary);
    live(&disk, |volume| async move {
        put(&volume, 0, 4 * BLOCK, 1).await;
        take(&volume, "a").await;
        let mut ticket = volume.prepare_take(request("b")).await.unwrap();
        ticket.raise();
        ticket.finish().await.unwrap();
        // The map of a ends with b, and is sealed.
        volume.seal_closed().await.unwrap();
        trim(&volume, BLOCK, BLOCK).await;
        ticket.undo().await.unwrap();
        trim(&volume, 2 * BLOCK, BLOCK).await;
        put(&volume, BLOCK, BLOCK, 2).await;
        assert_eq!(then(&volume, "a").await[..4], [1; 4]);
    });
    disk.crash_process();
    live(&disk, |volume| async move { assert_eq!(then(&volume, "a").await[..4], [1; 4]) });
}

#[test]
fn an_after_image_is_never_put_over_newer_data() {
    for seed in 0..120 {
        let disk = machine(seed, 1, Role::Primary);
        live(&disk, move |volume| async move {
            put(&volume, 0, 4 * BLOCK, 1).await;
            take(&volume, "a").await;
            put(&volume, 0, 4 * BLOCK, 2).await;
            volume.flush().await.unwrap();
            volume.settled_before(crate::types::Epoch(u64::MAX)).await.unwrap();
            let checkpoint = async {
                for _ in 0..seed % 6 {
                    volume.io().list(Path::new("/")).await.unwrap();
                }
                if !seed.is_multiple_of(5) {
                    volume.checkpoint().await.unwrap();
                }
            };
            let (flushed, ()) = join(volume.clone_synced(), checkpoint).await;
            flushed.unwrap();
            put(&volume, 0, 2 * BLOCK, 3).await;
            volume.flush().await.unwrap();
        });
        disk.power_cut(Loss::All);
        live(&disk, |volume| async move {
            assert_eq!(now(&volume).await[..4], [3, 3, 2, 2]);
            assert_eq!(then(&volume, "a").await[..4], [1; 4]);
        });
    }
}

#[test]
fn a_flush_during_a_checkpoint_keeps_what_is_staged() {
    for delay in 0..30 {
        let disk = machine(delay, 1, Role::Primary);
        live(&disk, |volume| async move {
            put(&volume, 0, 4 * BLOCK, 1).await;
            take(&volume, "a").await;
            volume.close().await.unwrap();
        });
        disk.crash_process();
        let machine = disk.clone();
        on_sim(&disk, move |io| async move {
            let tuning = Tuning { groups_in_flight_max: 0, ..tuning(4096) };
            let opened = Volume::open(&io, Path::new(DIR), "vol", tuning, &BTreeSet::new()).await;
            let (volume, _) = opened.unwrap();
            put(&volume, 0, 3 * BLOCK, 2).await;
            let flush = async {
                for _ in 0..delay / 2 {
                    io.list(Path::new("/")).await.unwrap();
                }
                volume.flush().await.unwrap();
                machine.crash_after(0);
            };
            let (checkpoint, ()) = join(volume.checkpoint(), flush).await;
            checkpoint.unwrap();
        });
        disk.power_cut(Loss::All);
        live(&disk, |volume| async move { assert_eq!(now(&volume).await[..4], [2, 2, 2, 1]) });
    }
}

#[test]
fn a_staged_block_is_saved_though_the_queue_changed_meanwhile() {
    let disk = machine(3, 1, Role::Primary);
    on_sim(&disk, |io| async move {
        let tuning = Tuning { groups_in_flight_max: 1, ..tuning(4096) };
        let opened = Volume::open(&io, Path::new(DIR), "vol", tuning, &BTreeSet::new()).await;
        let (volume, _) = opened.unwrap();
        put(&volume, 0, SIZE, 1).await;
        take(&volume, "a").await;
        // Only a needs it; the next snapshot does not use it.
        trim(&volume, 20 * BLOCK, BLOCK).await;
        take(&volume, "b").await;
        put(&volume, 0, 8 * BLOCK, 2).await;
        put(&volume, 20 * BLOCK, BLOCK, 2).await;
        let mut ticket = volume.prepare_take(request("c")).await.unwrap();
        ticket.raise();
        drop(ticket);
        volume.settled_before(crate::types::Epoch(u64::MAX)).await.unwrap();
        assert_eq!(then(&volume, "a").await, [1; 24]);
    });
}

#[test]
fn a_segment_is_scanned_for_its_youngest_group() {
    let disk = machine(2, 1, Role::Primary);
    live(&disk, |volume| async move {
        put(&volume, 0, SIZE, 1).await;
        take(&volume, "a").await;
        let epoch = volume.s.borrow().epoch;
        volume.raise_epoch();
        // Two groups in flight, of which the older one is placed last.
        for (epoch, block) in [(epoch.next(), 7), (epoch, 3)] {
            let data = Bytes::from(vec![1; BYTES]);
            let image = crate::store::save::Image { block: crate::types::Block(block), data, damaged: false };
            volume.save.append(&volume.journal, epoch, &[image]).await.unwrap();
        }
        volume.seal_closed().await.unwrap();
        volume.flush().await.unwrap();
        let newer = vec![Bytes::from(vec![2; BYTES])];
        volume.clone_volume.write(crate::types::Block(7), newer).await.unwrap();
        volume.close().await.unwrap();
    });
    // An open after a close in good order closes the segment and seals nothing.
    for _ in 0..2 {
        disk.crash_process();
        live(&disk, |volume| async move { assert_eq!(then(&volume, "a").await, [1; 24]) });
    }
}

#[test]
fn old_data_never_shows_under_a_lost_write() {
    for punched in [false, true] {
        let disk = machine(2, 1, Role::Primary);
        live(&disk, move |volume| async move {
            put(&volume, 0, 4 * BLOCK, 1).await;
            take(&volume, "a").await;
            // The snapshot keeps the old data in its place.
            trim(&volume, 0, 4 * BLOCK).await;
            volume.flush().await.unwrap();
            delete(&volume, "a").await;
            if punched {
                // Holes, but not durable ones.
                volume.io().sleep(std::time::Duration::from_secs(1)).await;
            }
            put(&volume, 0, 2 * BLOCK, 2).await;
        });
        never_ones(&disk);
    }
}

fn never_ones(disk: &SimDisk) {
    for lost in 0..disk.unsynced() {
        for loss in [Loss::AllBut(lost), Loss::Alone(lost), Loss::Random] {
            let disk = disk.fork();
            disk.power_cut(loss);
            live(&disk, move |volume| async move {
                let now = now(&volume).await;
                assert!(!now.contains(&1), "{loss:?}: {now:?}");
            });
        }
    }
}

#[test]
fn a_torn_tail_is_cut_off_and_damage_is_refused() {
    let disk = machine(2, 1, Role::Primary);
    live(&disk, |volume| async move {
        for block in 0..6 {
            put(&volume, block * BLOCK, BLOCK, 1).await;
            volume.flush().await.unwrap();
        }
        put(&volume, 8 * BLOCK, BLOCK, 2).await;
    });
    let torn = disk.fork();
    torn.power_cut(Loss::All);
    live(&torn, |volume| async move { assert_eq!(now(&volume).await[..6], [1; 6]) });
    disk.crash_process();
    let bytes = disk.contents("/v/journal").unwrap();
    let frames: Vec<usize> = (0..bytes.len() - 4).filter(|at| bytes[*at..].starts_with(b"SVJF")).collect();
    // A frame that was durable when a later one was written.
    disk.flip_bit("/v/journal", frames[frames.len() - 5] as u64 + 45, 1);
    let refused = on_sim(&disk, |io| async move {
        let opened = Volume::open(&io, Path::new(DIR), "vol", tuning(4096), &BTreeSet::new()).await;
        opened.err().map(|e| e.kind())
    });
    assert_eq!(refused, Some(Some(ErrorKind::Corrupt)));
}

#[test]
fn damage_in_a_segment_is_an_error_and_a_torn_group_is_not() {
    let disk = machine(2, 1, Role::Primary);
    live(&disk, |volume| async move {
        put(&volume, 0, 8 * BLOCK, 1).await;
        take(&volume, "a").await;
        put(&volume, 0, BLOCK, 2).await;
        volume.settled_before(crate::types::Epoch(u64::MAX)).await.unwrap();
        put(&volume, 4 * BLOCK, BLOCK, 2).await;
        volume.settled_before(crate::types::Epoch(u64::MAX)).await.unwrap();
        volume.flush().await.unwrap();
    });
    disk.crash_process();
    let path = "/v/save/00000001";
    // The image of the first group: read, it is an error; the rest is as it was.
    let image = disk.fork();
    image.flip_bit(path, 4096 + 512 + 100, 3);
    live(&image, |volume| async move {
        let reader = volume.open_snapshot("a").unwrap();
        assert_eq!(reader.read(0, BLOCK).await.unwrap_err().kind(), ErrorKind::Corrupt);
        assert_eq!(bytes_of(reader.read(BLOCK, 7 * BLOCK).await.unwrap()), vec![1; 7 * BYTES]);
        assert_eq!(volume.verify(true).await.unwrap().found.len(), 1);
    });
    // Its header, below the durable mark: nothing behind it can be found.
    disk.flip_bit(path, 4096 + 70, 3);
    let refused = on_sim(&disk, |io| async move {
        let opened = Volume::open(&io, Path::new(DIR), "vol", tuning(4096), &BTreeSet::new()).await;
        opened.err().map(|e| e.kind())
    });
    assert_eq!(refused, Some(Some(ErrorKind::Corrupt)));
}

#[test]
fn a_snapshot_comes_back_whole_when_its_deletion_was_lost() {
    for seed in 0..80 {
        let disk = machine(seed, 1, Role::Primary);
        let machine = disk.clone();
        live(&disk, move |volume| async move {
            put(&volume, 0, 8 * BLOCK, 1).await;
            take(&volume, "a").await;
            volume.flush().await.unwrap();
            machine.crash_after(2 + seed / 4);
            join(delete(&volume, "a"), async {
                for block in 0..8 {
                    put(&volume, block * BLOCK, BLOCK, 2).await;
                }
            })
            .await;
        });
        disk.power_cut(if seed.is_multiple_of(3) { Loss::AllBut(disk.unsynced() - 1) } else { Loss::Random });
        live(&disk, move |volume| async move {
            if volume.open_snapshot("a").is_ok() {
                assert_eq!(then(&volume, "a").await[..8], [1; 8], "seed {seed}");
            }
        });
    }
}

#[test]
fn files_that_no_record_names_are_removed() {
    let disk = machine(2, 1, Role::Primary);
    live(&disk, |volume| async move {
        put(&volume, 0, 4 * BLOCK, 1).await;
        take(&volume, "a").await;
        put(&volume, 0, 2 * BLOCK, 2).await;
        take(&volume, "b").await;
        volume.seal_closed().await.unwrap();
        for path in ["/v/save/00000099", "/v/snapshots/000000000077-1", "/v/snapshots/tail-1"] {
            let how = crate::io::OpenHow::CreateNew;
            let file = volume.io().open(Path::new(path), how).await.unwrap();
            volume.io().close(file);
        }
    });
    disk.crash_process();
    live(&disk, |volume| async move {
        let io = volume.io();
        let save = io.list(Path::new("/v/save")).await.unwrap();
        assert!(save.contains(&"00000001".to_owned()) && !save.contains(&"00000099".to_owned()));
        let layers = io.list(Path::new("/v/snapshots")).await.unwrap();
        assert!(!layers.iter().any(|name| name.contains("77-1") || name == "tail-1"), "{layers:?}");
        assert_eq!(then(&volume, "a").await[..4], [1; 4]);
        assert_eq!(then(&volume, "b").await[..4], [2, 2, 1, 1]);
    });
}

/// Two snapshots, and a disk with less space than the writes that follow need.
async fn nearly_full(volume: &Rc<Volume>, disk: &SimDisk, policy: OnFull) {
    volume.set_on_full(policy).await.unwrap();
    put(volume, 0, SIZE, 1).await;
    take(volume, "a").await;
    put(volume, 0, SIZE, 2).await;
    take(volume, "b").await;
    volume.flush().await.unwrap();
    volume.settled_before(crate::types::Epoch(u64::MAX)).await.unwrap();
    // A deletion needs a little itself.
    disk.fill(Some(if policy == OnFull::DropOldest { 80 } else { 16 } * BLOCK));
}

#[test]
fn a_full_disk_is_met_as_the_policy_says() {
    for policy in [OnFull::Readonly, OnFull::Freeze, OnFull::DropOldest] {
        for seed in 0..10 {
            let disk = machine(seed, 1, Role::Primary);
            let machine = disk.clone();
            let written = live(&disk, move |volume| async move {
                nearly_full(&volume, &machine, policy).await;
                if policy == OnFull::Freeze {
                    let (io, machine) = (volume.io(), machine.clone());
                    volume.io().spawn(async move {
                        io.sleep(std::time::Duration::from_secs(5)).await;
                        machine.fill(None);
                    });
                }
                let mut written = 0;
                for round in 0..4 {
                    for block in 0..24 {
                        let data = Bytes::from(vec![3 + round; BYTES]);
                        match volume.write(Who::Client, block * BLOCK, data, false).await {
                            Ok(()) => written += 1,
                            Err(error) => {
                                assert_eq!((error.kind(), policy), (ErrorKind::Full, OnFull::Readonly));
                                assert_eq!(then(&volume, "a").await, [1; 24]);
                                assert_eq!(then(&volume, "b").await, [2; 24]);
                                return written;
                            }
                        }
                    }
                    if policy != OnFull::Readonly {
                        take(&volume, &format!("r{round}")).await;
                    }
                }
                if policy == OnFull::Freeze {
                    assert_eq!(then(&volume, "a").await, [1; 24]);
                } else {
                    assert!(volume.open_snapshot("a").is_err(), "the oldest made room");
                }
                assert_eq!(then(&volume, "r3").await, [6; 24]);
                written
            });
            disk.fill(None);
            disk.crash_process();
            live(&disk, move |volume| async move {
                let now = now(&volume).await;
                match policy {
                    OnFull::Readonly => {
                        let written = written.unwrap();
                        assert!(now[..written.min(24)].iter().all(|byte| *byte > 2), "{written}: {now:?}");
                    }
                    _ => assert_eq!(now, [6; 24]),
                }
            });
        }
    }
}
