//! What a crash may leave, and what the next open makes of it.

use super::*;
use crate::io::OpenHow;
use crate::io::sim::EIO;
use crate::store::paths::VolumePaths;

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
fn a_close_makes_the_second_copy_that_a_crash_prevented() {
    let disk = machine(3, 1, Role::Primary);
    let fill = |volume: Rc<Volume>| async move {
        put(&volume, 0, 4 * BLOCK, 1).await;
        volume.checkpoint().await.unwrap();
        put(&volume, 0, BLOCK, 2).await;
        volume.checkpoint().await.unwrap();
        volume.close().await.unwrap();
    };
    live(&disk, fill);
    let paths = || VolumePaths(DIR.into());
    let copies = |io: Io| async move {
        let mut sound = 0;
        for file in 1..=2 {
            let handle = io.open(&paths().checkpoint(file), OpenHow::Read).await.unwrap();
            let bytes = io.read(handle, 0, 512).await.unwrap();
            sound += u32::from(crate::format::checkpoint::Header::decode(&bytes).is_ok());
            io.close(handle);
        }
        sound
    };
    // As if it had just been made empty to be written as a whole; the other one is in force.
    on_sim(&disk, |io| async move {
        let handle = io.open(&paths().checkpoint(1), OpenHow::CreateEmpty).await.unwrap();
        io.close(handle);
    });
    assert_eq!(on_sim(&disk, copies), Some(1));
    live(&disk, |volume| async move { volume.close().await.unwrap() });
    assert_eq!(on_sim(&disk, copies), Some(2));
    live(&disk, |volume| async move {
        assert_eq!(now(&volume).await[..4], [2, 1, 1, 1]);
    });
}

#[test]
fn a_close_makes_the_second_copy_of_the_state_that_a_full_disk_prevented() {
    let disk = machine(3, 1, Role::Primary);
    live(&disk, |volume| async move {
        put(&volume, 0, 4 * BLOCK, 1).await;
        volume.close().await.unwrap();
    });
    let copy = || VolumePaths(DIR.into()).journal_copy();
    let number = |io: Io| async move {
        crate::store::journal_copy::header(&io, &copy()).await.ok().map(|header| header.number)
    };
    let before = on_sim(&disk, number).unwrap().unwrap();
    // As if the file that is in force had been begun, and there had been no space for the copy.
    on_sim(&disk, |io| async move { io.remove(&copy()).await.unwrap() });
    live(&disk, |volume| async move { volume.close().await.unwrap() });
    assert!(on_sim(&disk, number).unwrap().unwrap() > before);
    live(&disk, |volume| async move {
        assert_eq!(now(&volume).await[..5], [1, 1, 1, 1, 0]);
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
    // Its head, below the durable mark: the tail has the same.
    disk.flip_bit(path, 4096 + 70, 3);
    let image = disk.fork();
    live(&image, |volume| async move {
        assert_eq!(then(&volume, "a").await[..8], [1; 8]);
        assert_eq!(now(&volume).await[..5], [2, 1, 1, 1, 2]);
    });
    // Both: what the group held can't be known.
    disk.flip_bit(path, 4096 + 8192 - 70, 3);
    let refused = on_sim(&disk, |io| async move {
        let opened = Volume::open(&io, Path::new(DIR), "vol", tuning(4096), &BTreeSet::new()).await;
        opened.err().map(|e| e.kind())
    });
    assert_eq!(refused, Some(Some(ErrorKind::Corrupt)));
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

/// A volume whose process died with writes staged: `now` has 2 in four blocks.
fn with_staged_writes() -> SimDisk {
    let disk = machine(2, 1, Role::Primary);
    live(&disk, |volume| async move {
        put(&volume, 0, 8 * BLOCK, 1).await;
        take(&volume, "a").await;
        put(&volume, 0, 4 * BLOCK, 2).await;
    });
    disk.crash_process();
    disk
}

#[test]
fn a_stage_of_another_size_keeps_what_is_staged() {
    let disk = with_staged_writes();
    on_sim(&disk, |io| async move {
        let larger = Tuning { stage_bytes: tuning(4096).stage_bytes * 2, ..tuning(4096) };
        let opened = Volume::open(&io, Path::new(DIR), "vol", larger, &BTreeSet::new()).await.unwrap();
        assert!(opened.1.staged > 1, "some are not settled yet");
        assert_eq!(now(&opened.0).await[..8], [2, 2, 2, 2, 1, 1, 1, 1]);
    });
}

#[test]
fn acknowledged_writes_are_not_forgotten_with_their_slot() {
    use crate::format::slot::{data_at, slot_at};
    let slots = usize::try_from(tuning(4096).stage_bytes / BLOCK).unwrap();
    // The number, the block and the checksum of a slot's header, its data, the stage's header.
    let places: [fn(usize, usize) -> usize; 5] = [
        |used, _| slot_at(used),
        |used, _| slot_at(used) + 9,
        |used, _| slot_at(used) + 25,
        |used, slots| data_at(slots, 4096, used) + 7,
        |_, _| 20,
    ];
    for place in places {
        let disk = with_staged_writes();
        let at = on_sim(&disk, move |io| async move {
            let len = crate::format::slot::region_size(slots, 4096) as u64;
            let region = io.map_region(Path::new("/v/stage"), len).await.unwrap();
            let is_used = |index: &usize| {
                let mut number = [0; 8];
                region.read(slot_at(*index), &mut number);
                number != [0; 8]
            };
            let at = place((0..slots).find(is_used).expect("some are not settled yet"), slots);
            let mut byte = [0];
            region.read(at, &mut byte);
            region.write(at, &[byte[0] ^ 0x40]);
            at
        })
        .unwrap();
        disk.crash_process();
        let refused = on_sim(&disk, |io| async move {
            let opened = Volume::open(&io, Path::new(DIR), "vol", tuning(4096), &BTreeSet::new()).await;
            opened.err().map(|e| (e.kind(), e.to_string()))
        });
        let (kind, text) = refused.flatten().unwrap_or_else(|| panic!("byte {at} goes unseen"));
        assert!(kind == ErrorKind::Corrupt && text.contains("stage"), "byte {at}: {text}");
        disk.crash_process();
        on_sim(&disk, |io| async move {
            let paths = crate::store::paths::VolumePaths(Path::new(DIR).to_owned());
            let found = crate::snapshot::check_closed(&io, &paths, false).await.unwrap().0.found;
            assert!(found.iter().any(|f| f.file == paths.stage()), "{found:?}");
            crate::snapshot::give_up_stage(&io, &paths).await.unwrap();
        });
        disk.crash_process();
        live(&disk, |volume| async move {
            // Nothing was flushed after the snapshot.
            assert_eq!(then(&volume, "a").await[..8], [1; 8]);
            assert!(now(&volume).await[..8].iter().all(|byte| [1, 2].contains(byte)));
        });
    }
}

#[test]
fn a_checkpoint_after_a_rotation_that_failed_leaves_the_files_alone() {
    for n in 1.. {
        let disk = machine(2, 1, Role::Primary);
        let machine = disk.clone();
        let reached = live(&disk, move |volume| async move {
            put(&volume, 0, 4 * BLOCK, 1).await;
            take(&volume, "a").await;
            put(&volume, 0, BLOCK, 2).await;
            volume.flush().await.unwrap();
            let last = machine.ops() + n;
            machine.fail_at(last, EIO);
            // The journal may have its new name, and the second one write over what it names.
            for _ in 0..2 {
                let _ = volume.checkpoint().await;
            }
            machine.ops() >= last
        });
        if reached != Some(true) {
            assert!(n > 20, "two checkpoints take more than {n} operations");
            return;
        }
        disk.crash_process();
        live(&disk, |volume| async move {
            assert_eq!(now(&volume).await[..4], [2, 1, 1, 1]);
            assert_eq!(then(&volume, "a").await[..4], [1; 4]);
        });
    }
}
