//! Many layers of one snapshot, and of many snapshots: what they cost, and that they are one
//! map all the same.

use super::*;
use crate::format::state::LayerRecord;
use crate::types::Epoch;

fn layers(volume: &Volume) -> Vec<LayerRecord> {
    volume.s.borrow().durable.layers.clone()
}

/// Settles and seals what there is.
async fn seal(volume: &Rc<Volume>) {
    volume.settled_before(Epoch(u64::MAX)).await.unwrap();
    volume.seal_closed().await.unwrap();
}

#[test]
fn a_layer_ends_when_it_holds_enough() {
    for (seed, power) in [(1, false), (2, true), (3, false), (4, true)] {
        let disk = machine(seed, 1, Role::Primary);
        live(&disk, |volume| async move {
            put(&volume, 0, SIZE, 1).await;
            take(&volume, "a").await;
            for block in 0..24 {
                put(&volume, block * BLOCK, BLOCK, 2).await;
                if block % 3 == 2 {
                    // What is staged already goes to the layer of its own epoch.
                    volume.settled_before(Epoch(u64::MAX)).await.unwrap();
                }
            }
            seal(&volume).await;
            let (max, group) = (volume.tuning.layer_entries_max as u64, 3);
            let sealed = layers(&volume);
            assert!(sealed.len() >= 2, "{sealed:?}");
            assert!(sealed.iter().all(|layer| layer.entries <= max + group), "{sealed:?}");
            let open = volume.s.borrow().chain.open_entries();
            assert!(open <= max + group, "{open} images in memory");
            assert_eq!(sealed.iter().map(|layer| layer.entries).sum::<u64>() + open, 24);
            volume.flush().await.unwrap();
            assert_eq!(then(&volume, "a").await, [1; 24]);
        });
        if power {
            disk.power_cut(Loss::All)
        } else {
            disk.crash_process()
        }
        live(&disk, |volume| async move {
            assert_eq!(then(&volume, "a").await, [1; 24]);
            assert_eq!(now(&volume).await, [2; 24]);
        });
    }
}

#[test]
fn layers_that_are_passed_on_whole_stay_as_they_are() {
    let disk = machine(1, 1, Role::Primary);
    live(&disk, |volume| async move {
        put(&volume, 0, SIZE, 1).await;
        take(&volume, "a").await;
        take(&volume, "b").await;
        put(&volume, 0, 9 * BLOCK, 2).await;
        put(&volume, 9 * BLOCK, 9 * BLOCK, 2).await;
        take(&volume, "c").await;
        put(&volume, 12 * BLOCK, 12 * BLOCK, 3).await;
        seal(&volume).await;
        let before = layers(&volume);
        let of_b: Vec<&LayerRecord> = before.iter().filter(|layer| layer.entries >= 5).collect();
        assert!(of_b.len() >= 2, "{before:?}");
        delete(&volume, "b").await;
        let after = layers(&volume);
        let large = |layer: &&&LayerRecord| layer.entries > volume.tuning.layer_entries_max as u64 / 2;
        for layer in of_b.iter().filter(large) {
            assert!(after.contains(layer), "{layer:?} was written again: {after:?}");
        }
        assert_eq!(then(&volume, "a").await, [1; 24]);
    });
}

#[test]
fn what_a_deletion_passes_on_of_many_layers_is_one_map() {
    for seed in 0..30 {
        let disk = machine(seed, 1, Role::Primary);
        live(&disk, move |volume| async move {
            let mut rng = fastrand::Rng::with_seed(seed);
            let mut snapshots: Vec<(String, Vec<u8>)> = Vec::new();
            for round in 1..8 {
                for _ in 0..rng.u64(2..30) {
                    put(&volume, rng.u64(0..24) * BLOCK, BLOCK, round).await;
                }
                trim(&volume, rng.u64(0..24) * BLOCK, BLOCK).await;
                let name = format!("s{round}");
                take(&volume, &name).await;
                snapshots.push((name, now(&volume).await));
            }
            while !snapshots.is_empty() {
                let (gone, _) = snapshots.remove(rng.usize(0..snapshots.len()));
                delete(&volume, &gone).await;
                for _ in 0..rng.u64(0..12) {
                    put(&volume, rng.u64(0..24) * BLOCK, BLOCK, 100).await;
                }
                for (name, content) in &snapshots {
                    assert_eq!(&then(&volume, name).await, content, "{name} after {gone}, seed {seed}");
                }
            }
        });
    }
}

#[test]
fn what_a_deletion_would_free_is_the_same_whether_it_is_known_or_computed() {
    for seed in 0..12 {
        let disk = machine(seed, 1, Role::Primary);
        live(&disk, move |volume| async move {
            let mut rng = fastrand::Rng::with_seed(seed);
            let freed = async |volume: &Rc<Volume>| -> Vec<u64> {
                let summary = volume.summary().await.unwrap();
                summary.snapshots.iter().map(|s| s.freed_by_delete).collect()
            };
            for round in 0..12 {
                for _ in 0..rng.u64(1..20) {
                    put(&volume, rng.u64(0..24) * BLOCK, BLOCK, round).await;
                }
                trim(&volume, rng.u64(0..23) * BLOCK, 2 * BLOCK).await;
                take(&volume, &format!("s{round}")).await;
                if round % 3 == 2 {
                    let names: Vec<String> = volume.snapshots().into_iter().map(|r| r.name).collect();
                    delete(&volume, &names[rng.usize(0..names.len())]).await;
                }
                seal(&volume).await;
                let known = freed(&volume).await;
                assert_eq!(freed(&volume).await, known);
                volume.s.borrow_mut().freed = crate::snapshot::delete::Freed::default();
                assert_eq!(freed(&volume).await, known, "seed {seed}, round {round}");
                // What is freed is what the save volume has less afterwards.
                let (names, saved) = (volume.snapshots(), volume.summary().await.unwrap().saved);
                let at = rng.usize(0..names.len());
                if round % 4 == 3 {
                    delete(&volume, &names[at].name).await;
                    let left = volume.summary().await.unwrap().saved;
                    assert_eq!(saved - left, known[at], "seed {seed}, round {round}");
                }
            }
        });
    }
}

#[test]
fn opening_does_nothing_for_a_single_snapshot() {
    let operations_of_an_open = |count: u64| {
        let disk = machine(1, 1, Role::Primary);
        live(&disk, move |volume| async move {
            put(&volume, 0, SIZE, 1).await;
            for n in 0..count {
                take(&volume, &format!("s{n}")).await;
                put(&volume, n % 24 * BLOCK, BLOCK, 2).await;
            }
            volume.checkpoint().await.unwrap();
            volume.close().await.unwrap();
        });
        disk.crash_process();
        let before = disk.ops();
        live(&disk, |volume| async move { assert!(volume.s.borrow().chain.unloaded(Epoch(0)).len() > 1) });
        disk.ops() - before
    };
    let (few, many) = (operations_of_an_open(10), operations_of_an_open(300));
    // The journal's state grows by a hundred bytes for each; nothing else does.
    assert!(many < few + 290 / 10, "{few} operations with 10 snapshots, {many} with 300");
}

#[test]
fn what_is_retained_is_right_whatever_changes_while_it_is_computed() {
    for seed in 0..40 {
        let disk = machine(seed, 1, Role::Primary);
        live(&disk, move |volume| async move {
            let mut rng = fastrand::Rng::with_seed(seed);
            put(&volume, 0, SIZE, 1).await;
            let mut snapshots: Vec<(String, Vec<u8>)> = Vec::new();
            for round in 0..14 {
                // Needed by the older ones, and not in use in the younger ones.
                trim(&volume, rng.u64(0..24) * BLOCK, BLOCK).await;
                let name = format!("s{round}");
                take(&volume, &name).await;
                snapshots.push((name, now(&volume).await));
            }
            for round in 0..6 {
                let (gone, _) = snapshots.remove(rng.usize(0..snapshots.len()));
                delete(&volume, &gone).await;
                // Every page is unknown now, and each of these wants to know it.
                let blocks: Vec<u64> = (0..4).map(|_| rng.u64(0..24)).collect();
                let writes = futures::future::join_all(blocks.iter().map(|block| {
                    let volume = Rc::clone(&volume);
                    async move { put(&volume, block * BLOCK, BLOCK, 100 + round).await }
                }));
                let other = async {
                    match rng.u8(0..3) {
                        0 => take(&volume, &format!("more{round}")).await,
                        1 => trim(&volume, rng.u64(0..24) * BLOCK, BLOCK).await,
                        _ => volume.flush().await.unwrap(),
                    }
                };
                join(writes, other).await;
                for (name, content) in &snapshots {
                    assert_eq!(&then(&volume, name).await, content, "{name}, seed {seed}, round {round}");
                }
            }
        });
    }
}
