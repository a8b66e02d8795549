//! What close flushes leave to a later sync of the clone volume.

use super::*;
use crate::types::Epoch;

/// Writes and flushes one block after the other until small writes go to the stage.
async fn flush_often(volume: &Rc<Volume>) {
    for block in 0..3 {
        put(volume, block * BLOCK, BLOCK, 1).await;
        volume.flush().await.unwrap();
    }
    volume.map_stage().await.unwrap();
    assert!(volume.pace.is_frequent());
}

#[test]
fn what_is_in_force_in_the_journal_needs_no_sync_of_the_clone_volume() {
    for seed in 0..40 {
        let disk = machine(seed, 1, Role::Primary);
        live(&disk, |volume| async move {
            flush_often(&volume).await;
            put(&volume, BLOCK, BLOCK, 2).await;
            volume.flush().await.unwrap();
            assert!(!volume.clone_volume.is_owed());
            volume.settled_before(Epoch(u64::MAX)).await.unwrap();
            assert!(volume.clone_volume.syncer.is_dirty() && !volume.clone_volume.is_owed());
            volume.flush().await.unwrap();
            assert!(volume.clone_volume.syncer.is_dirty(), "nothing asked for that sync");
        });
        disk.power_cut(Loss::All);
        live(&disk, |volume| async move { assert_eq!(now(&volume).await[..3], [1, 2, 1]) });
    }
}

#[test]
fn what_was_settled_out_of_the_stage_alone_is_synced_by_the_next_flush() {
    for seed in 0..40 {
        let disk = machine(seed, 1, Role::Primary);
        live(&disk, |volume| async move {
            flush_often(&volume).await;
            put(&volume, BLOCK, BLOCK, 2).await;
            volume.settled_before(Epoch(u64::MAX)).await.unwrap();
            assert!(volume.clone_volume.is_owed());
            volume.flush().await.unwrap();
        });
        disk.power_cut(Loss::All);
        live(&disk, |volume| async move { assert_eq!(now(&volume).await[..3], [1, 2, 1]) });
    }
}

#[test]
fn a_snapshot_needs_no_after_image() {
    for seed in 0..40 {
        let disk = machine(seed, 1, Role::Primary);
        live(&disk, |volume| async move {
            flush_often(&volume).await;
            put(&volume, BLOCK, BLOCK, 2).await;
            volume.flush().await.unwrap();
            take(&volume, "a").await;
        });
        disk.power_cut(Loss::All);
        live(&disk, |volume| async move {
            assert_eq!(then(&volume, "a").await[..3], [1, 2, 1]);
            put(&volume, BLOCK, BLOCK, 3).await;
            volume.settled_before(Epoch(u64::MAX)).await.unwrap();
            assert_eq!(now(&volume).await[..3], [1, 3, 1]);
            assert_eq!(then(&volume, "a").await[..3], [1, 2, 1]);
        });
    }
}

#[test]
fn what_is_staged_does_not_wait_for_a_flush_that_never_comes() {
    let disk = machine(3, 1, Role::Primary);
    live(&disk, |volume| async move {
        flush_often(&volume).await;
        put(&volume, BLOCK, BLOCK, 2).await;
        assert!(!volume.s.borrow().slots.is_empty());
        while volume.s.borrow().slots.unsettled() > 0 {
            volume.changed.wait().await;
        }
    });
}
