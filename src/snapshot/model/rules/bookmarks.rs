//! What leads on from a bookmark, whatever happened since.

use super::super::script::{apply_delta, stamp};
use super::*;
use crate::snapshot::Delta;
use crate::store::paths::VolumePaths;

/// Takes a cut that becomes a bookmark; returns its identity and what it held.
async fn mark(volume: &Rc<Volume>, name: &str) -> (Uuid, Vec<u8>) {
    let request = TakeRequest { set: Some(stamp()), ..request(name) };
    let uuid = request.uuid;
    volume.take(request).await.unwrap();
    let image = snapshot(volume, name).await;
    volume.shrink(uuid).await.unwrap();
    assert!(volume.open_snapshot(name).is_err() && volume.bookmark(uuid).is_some());
    (uuid, image)
}

/// The blocks of a delta.
fn blocks(delta: &Delta) -> Vec<u64> {
    delta.runs(0..delta.size).flat_map(|run| run.bytes.start / BLOCK..run.bytes.end.div_ceil(BLOCK)).collect()
}

/// The delta from a bookmark to now, which must make of what that held what is there.
async fn since(volume: &Rc<Volume>, (uuid, image): &(Uuid, Vec<u8>)) -> Delta {
    let delta = volume.delta_between(Some(*uuid), None).await.unwrap();
    let now = production(volume).await;
    assert!(apply_delta(image, &now, delta.runs(0..delta.size)) == now, "the delta lacks something");
    delta
}

/// A disk on which a volume has a bookmark, and what that held.
fn marked(seed: u64) -> (SimDisk, (Uuid, Vec<u8>)) {
    let disk = machine(seed, 1, Role::Primary);
    let marked = live(&disk, |volume| async move {
        put(&volume, 0, 12 * BLOCK, 1).await;
        let marked = mark(&volume, "a").await;
        volume.close().await.unwrap();
        marked
    });
    disk.crash_process();
    (disk, marked.unwrap())
}

#[test]
fn a_bookmark_keeps_no_before_images_and_knows_what_changed() {
    let (disk, marked) = marked(1);
    live(&disk, |volume| async move {
        assert!(since(&volume, &marked).await.is_empty());
        put(&volume, 0, 12 * BLOCK, 2).await;
        volume.flush().await.unwrap();
        assert_eq!(volume.summary().await.unwrap().saved, 0);
        trim(&volume, 3 * BLOCK, BLOCK).await;
        put(&volume, 20 * BLOCK + 7, 1, 3).await;
        let expected: Vec<u64> = (0..12).chain([20]).collect();
        assert_eq!(blocks(&since(&volume, &marked).await), expected);
        volume.forget_bookmarks(&[marked.0]).await.unwrap();
        assert!(volume.delta_between(Some(marked.0), None).await.is_err());
        volume.close().await.unwrap();
    });
}

/// What a close in good order leaves is exact; what a crash leaves is whole regions, and as much
/// of them as was written, not the volume.
#[test]
fn a_crash_makes_of_blocks_their_regions() {
    for close in [true, false] {
        let (disk, marked) = marked(2);
        live(&disk, move |volume| async move {
            put(&volume, BLOCK, BLOCK, 2).await;
            trim(&volume, 9 * BLOCK, BLOCK).await;
            volume.flush().await.unwrap();
            if close {
                volume.close().await.unwrap();
            }
        });
        for power in [false, true] {
            let disk = disk.fork();
            if power {
                disk.power_cut(Loss::All);
            } else {
                disk.crash_process();
            }
            let marked = marked.clone();
            live(&disk, move |volume| async move {
                let expected: Vec<u64> = if close { vec![1, 9] } else { (0..4).chain(8..12).collect() };
                assert_eq!(blocks(&since(&volume, &marked).await), expected);
                put(&volume, 4 * BLOCK, BLOCK, 3).await;
                since(&volume, &marked).await;
                volume.close().await.unwrap();
            });
        }
    }
}

/// A hole of a trim that a power cut took back is a change.
#[test]
fn a_hole_outlives_its_trim() {
    for seed in 0..10 {
        let (disk, marked) = marked(seed);
        live(&disk, |volume| async move {
            trim(&volume, 8 * BLOCK, BLOCK).await;
            volume.io().sleep(std::time::Duration::from_secs(1)).await;
        });
        let unsynced = disk.unsynced();
        for loss in (0..unsynced).flat_map(|i| [Loss::Alone(i), Loss::AllBut(i)]) {
            let (disk, marked) = (disk.fork(), marked.clone());
            disk.power_cut(loss);
            live(&disk, move |volume| async move {
                since(&volume, &marked).await;
            });
        }
    }
}

/// A write that was let in before a cut is in the cut, also if it is noted after it.
#[test]
fn a_cut_has_the_writes_it_waits_for() {
    for seed in 0..10 {
        let (disk, (uuid, image)) = marked(seed);
        live(&disk, move |volume| async move {
            let request = TakeRequest { set: Some(stamp()), ..request("b") };
            let target = request.uuid;
            let mut ticket = volume.prepare_take(request).await.unwrap();
            // Its region is not active yet, so it waits for a record.
            join(put(&volume, 5 * BLOCK, BLOCK, 2), async {
                ticket.raise();
                ticket.finish().await.unwrap();
                ticket.publish();
            })
            .await;
            assert_eq!(then(&volume, "b").await[5], 2);
            let delta = volume.delta_between(Some(uuid), Some(target)).await.unwrap();
            let there = snapshot(&volume, "b").await;
            assert!(apply_delta(&image, &there, delta.runs(0..delta.size)) == there);
        });
    }
}

/// What was touched for a cut that never came to be belongs to the bookmark before it.
#[test]
fn an_undone_cut_leaves_its_map_to_the_one_before() {
    let (disk, marked) = marked(3);
    live(&disk, |volume| async move {
        let mut ticket =
            volume.prepare_take(TakeRequest { set: Some(stamp()), ..request("b") }).await.unwrap();
        ticket.raise();
        put(&volume, 5 * BLOCK, BLOCK, 2).await;
        ticket.finish().await.unwrap();
        put(&volume, 6 * BLOCK, BLOCK, 2).await;
        ticket.undo().await.unwrap();
        put(&volume, 7 * BLOCK, BLOCK, 2).await;
        assert_eq!(blocks(&since(&volume, &marked).await), [5, 6, 7]);
        let b = mark(&volume, "b").await;
        put(&volume, 2 * BLOCK, BLOCK, 3).await;
        assert_eq!(blocks(&since(&volume, &b).await), [2]);
        assert_eq!(blocks(&since(&volume, &marked).await), [2, 5, 6, 7]);
        volume.forget_bookmarks(&[b.0]).await.unwrap();
        assert_eq!(blocks(&since(&volume, &marked).await), [2, 5, 6, 7]);
        volume.close().await.unwrap();
    });
}

/// A receiver that becomes the primary knows what it changes from its first write on.
#[test]
fn what_was_received_can_become_a_bookmark() {
    let disk = machine(4, 1, Role::Secondary);
    live(&disk, |volume| async move {
        let incoming = |target: u128, base: Option<u128>| crate::snapshot::Incoming {
            target: Uuid::from_u128(target),
            name: format!("r{target}"),
            created_us: 1,
            size: SIZE,
            base: base.map(|base| (Uuid::from_u128(base), format!("r{base}"))),
            set: Some(stamp()),
        };
        for (target, base, at) in [(1, None, 0), (2, Some(1), 4 * BLOCK)] {
            let begun = volume.receive_begin(&incoming(target, base)).await.unwrap();
            let crate::snapshot::ReceiveStart::Go(receiving, _) = begun else { panic!("it is new") };
            receiving.data(&[(at, Bytes::from(vec![7; 2 * BYTES]))]).await.unwrap();
            receiving.commit().await.unwrap();
        }
        let first = snapshot(&volume, "r1").await;
        volume.set_role(Role::Primary).await.unwrap();
        put(&volume, 9 * BLOCK, BLOCK, 8).await;
        for target in [1, 2] {
            volume.shrink(Uuid::from_u128(target)).await.unwrap();
        }
        assert_eq!(blocks(&since(&volume, &(Uuid::from_u128(1), first)).await), [4, 5, 9]);
        volume.close().await.unwrap();
    });
}

/// Nobody knows what changed then, so everything counts as changed; the volume goes on.
#[test]
fn a_damaged_map_counts_as_all() {
    let (disk, marked) = marked(5);
    live(&disk, |volume| async move {
        put(&volume, 2 * BLOCK, BLOCK, 2).await;
        volume.close().await.unwrap();
    });
    disk.crash_process();
    let files = disk.files();
    let path = files.iter().find(|path| path.to_string_lossy().contains("touched-")).unwrap().clone();
    let (all, good) = (marked.clone(), disk.fork());
    disk.flip_bit(&path, 300, 3);
    let damaged = path.clone();
    live(&disk, |volume| async move {
        let delta = since(&volume, &all).await;
        assert_eq!(delta.totals().0, 12 * BLOCK);
        assert_eq!(volume.verify(false).await.unwrap().found[0].file, damaged);
        volume.close().await.unwrap();
    });
    disk.crash_process();
    let checked = on_sim(&disk, |io| async move {
        crate::snapshot::check_closed(&io, &VolumePaths(Path::new(DIR).to_owned()), true).await
    });
    assert!(checked.unwrap().unwrap().0.found.is_empty(), "a new file was written");
    // One that rots while it is open is written again from memory.
    live(&good.clone(), move |volume| async move {
        good.flip_bit(&path, 300, 3);
        assert_eq!(volume.verify(false).await.unwrap().found.len(), 1);
        volume.checkpoint().await.unwrap();
        assert!(volume.verify(false).await.unwrap().found.is_empty());
        assert_eq!(blocks(&since(&volume, &marked).await), [2]);
    });
}
