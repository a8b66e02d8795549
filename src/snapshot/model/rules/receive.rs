//! What a receive promises.

use super::*;
use crate::Error;
use crate::snapshot::{Incoming, ReceiveStart};

fn incoming(base: Option<(Uuid, &str)>) -> Incoming {
    Incoming {
        target: Uuid::from_u128(42),
        name: "target".into(),
        created_us: 1,
        size: SIZE,
        base: base.map(|(uuid, name)| (uuid, name.to_owned())),
        set: None,
    }
}

/// A secondary with the snapshot `base`, all ones.
async fn with_base(volume: &Rc<Volume>) -> Uuid {
    let first = Incoming { target: Uuid::from_u128(41), name: "base".into(), ..incoming(None) };
    let ReceiveStart::Go(receiving, 0) = volume.receive_begin(&first).await.unwrap() else { panic!() };
    receiving.data(&[(0, Bytes::from(vec![1; 8 * BYTES]))]).await.unwrap();
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
                for block in (2..6).step_by(2) {
                    receiving.data(&[(block * BLOCK, Bytes::from(vec![2; 2 * BYTES]))]).await.unwrap();
                }
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
            n += 1;
        }
        assert!(n > 15, "only {n} operations were tried as the last one");
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
            receiving.data(&[(SIZE, Bytes::from(vec![3; BYTES]))]).await.unwrap();
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
            receiving.data(&[(0, Bytes::from(vec![5; BYTES]))]).await.unwrap();
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

/// Two who drop the same receive at the same time: one does, the other finds nothing to drop, and
/// the volume opens again. Whoever wrote down once more that it is to be dropped would have an open
/// look for the state from before, which is gone.
#[test]
fn what_is_half_received_is_dropped_once() {
    let disk = machine(2, 1, Role::Secondary);
    live(&disk, |volume| async move {
        with_base(&volume).await;
        let ReceiveStart::Go(receiving, _) = volume.receive_begin(&incoming(None)).await.unwrap() else {
            panic!()
        };
        receiving.data(&[(0, Bytes::from(vec![5; BYTES]))]).await.unwrap();
        drop(receiving);
        let (one, other) = futures::future::join(volume.receive_abort(), volume.receive_abort()).await;
        one.unwrap();
        let kind = other.unwrap_err().kind();
        assert!(matches!(kind, ErrorKind::Conflict | ErrorKind::NotFound), "{kind:?}");
        assert_eq!(now(&volume).await[..8], [1; 8]);
    });
    disk.crash_process();
    let there = live(&disk, |volume| async move {
        assert_eq!(volume.half_received(), None);
        now(&volume).await[..8] == [1; 8]
    });
    assert_eq!(there, Some(true));
}

/// A snapshot that was let in before a receive began holds what was there before it, however late
/// its instant comes.
#[test]
fn no_snapshot_is_taken_in_the_middle_of_a_receive() {
    for seed in 0..40 {
        let disk = machine(seed, 1, Role::Secondary);
        let found = live(&disk, move |volume| async move {
            let base = with_base(&volume).await;
            let io = volume.io();
            let mut ticket = volume.prepare_take(request("second")).await.unwrap();
            let take = async {
                for _ in 0..seed {
                    io.sleep(std::time::Duration::from_millis(1)).await;
                }
                ticket.raise();
                ticket.finish().await.unwrap();
                ticket.publish();
            };
            let receive = async {
                let start = incoming(Some((base, "base")));
                let ReceiveStart::Go(receiving, _) = volume.receive_begin(&start).await.unwrap() else {
                    panic!()
                };
                for block in 0..4 {
                    receiving.data(&[(block * 2 * BLOCK, Bytes::from(vec![2; 2 * BYTES]))]).await.unwrap();
                }
                receiving.commit().await.unwrap();
            };
            join(receive, take).await;
            (then(&volume, "second").await[..8].to_vec(), then(&volume, "target").await[..8].to_vec())
        });
        assert_eq!(found.unwrap(), (vec![1; 8], vec![2; 8]), "seed {seed}");
    }
}
