//! What snapshots, deletions and takes promise.

use super::*;

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
        disk.power_cut(if seed.is_multiple_of(3) {
            Loss::AllBut(disk.unsynced().saturating_sub(1))
        } else {
            Loss::Random
        });
        live(&disk, move |volume| async move {
            if volume.open_snapshot("a").is_ok() {
                assert_eq!(then(&volume, "a").await[..8], [1; 8], "seed {seed}");
            }
        });
    }
}

#[test]
fn a_trim_to_the_end_spares_what_a_larger_volume_has_behind_it() {
    let disk = machine(2, 4, Role::Primary);
    live(&disk, |volume| async move {
        // The volume ends in the middle of a granule.
        volume.resize(22 * BLOCK).await.unwrap();
        put(&volume, 0, 22 * BLOCK, 1).await;
        volume.pause();
        let grow = async {
            volume.resize(SIZE).await.unwrap();
            let data = Bytes::from(vec![2; 2 * BYTES]);
            volume.write(Who::Store, 22 * BLOCK, data, false).await.unwrap();
            volume.resume();
        };
        join(trim(&volume, 8 * BLOCK, 14 * BLOCK), grow).await;
        assert_eq!(now(&volume).await, [[1; 8].as_slice(), &[0; 14], &[2; 2]].concat());
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
                    take(&volume, &format!("r{round}")).await;
                }
                assert_ne!(policy, OnFull::Readonly, "nothing was refused");
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
