//! What a schedule took is known as that, whatever happens, and nothing else ever is.

use super::*;
use crate::format::upkeep::Schedule;

const FEW: Schedule = Schedule { every_ms: 60_000, keep_last: 2, keep_hourly: 0, keep_daily: 0 };

/// The snapshots of `a`: name, and whether a schedule is known to have taken it.
async fn snapshots(core: &Core) -> Vec<(String, bool)> {
    let info = core.list(Some("a")).await.unwrap().volumes.swap_remove(0);
    info.snapshots.iter().map(|one| (one.name.clone(), core.made(one.uuid).is_some())).collect()
}

#[test]
fn no_snapshot_of_a_schedule_is_left_to_nobody() {
    let disk = two_volumes(31);
    live(&disk, |core| async move {
        core.snapshot(&[name("a@mine")]).await.unwrap();
        core.set_schedule("a", Some(FEW)).await.unwrap();
        for _ in 0..2 {
            core.take_scheduled("a").await.unwrap().unwrap();
        }
        core.close().await.unwrap();
    });
    let script = |core: Rc<Core>| async move {
        let taken = core.take_scheduled("a").await.is_ok();
        (taken, taken && core.sweep_scheduled("a").await.is_ok())
    };
    let counts = Rc::new(Cell::new((0, 0)));
    let counted = Rc::clone(&counts);
    trouble_everywhere(&disk, script, move |disk, done| {
        let (taken, swept) = done.unwrap_or_default();
        let there = live(disk, |core| async move {
            let there = snapshots(&core).await;
            assert_eq!(core.schedule("a").await.unwrap().schedule, Some(FEW));
            // It goes on from there.
            core.take_scheduled("a").await.unwrap().unwrap();
            core.sweep_scheduled("a").await.unwrap();
            let later = snapshots(&core).await;
            assert_eq!(later.len(), 3, "{later:?}");
            core.close().await.unwrap();
            there
        })
        .unwrap();
        for (name, made) in &there {
            assert_eq!(*made, name.starts_with("auto-"), "{name}");
        }
        assert_eq!(there[0].0, "mine");
        let range = match (taken, swept) {
            (_, true) => 3..=3,
            // What fails after the record may have happened.
            _ => 3..=4,
        };
        assert!(range.contains(&there.len()), "{there:?}");
        let (all, none) = counted.get();
        counted.set(if swept { (all + 1, none) } else { (all, none + 1) });
    });
    let (all, none) = counts.get();
    assert!(all > 0 && none > 9, "{all} {none}");
}

/// On a secondary it is a second name of what that shows: taken once for each state, and known
/// as that state to whoever asks what the volume shows.
#[test]
fn on_a_secondary_it_is_a_second_name() {
    let disk = two_volumes(32);
    live(&disk, |core| async move {
        core.snapshot(&[name("a@state")]).await.unwrap();
        core.demote("a", false).await.unwrap();
        core.set_schedule("a", Some(FEW)).await.unwrap();
        let taken = core.take_scheduled("a").await.unwrap().unwrap();
        assert_eq!(core.take_scheduled("a").await.unwrap(), None, "a second name twice");
        let of = |name: String| {
            core.with("a", move |volume| async move {
                Ok(volume.snapshots().into_iter().find(|one| one.name == name).unwrap().uuid)
            })
        };
        let (state, second) = (of("state".to_owned()).await.unwrap(), of(taken).await.unwrap());
        assert_eq!((core.original(second), core.original(state)), (state, state));
        assert_eq!(core.set_of(second), None);
        let feed = core.feed("a").await.unwrap();
        assert_eq!(feed.newest, Some(state));
        core.promote("a", false).await.unwrap();
        core.take_scheduled("a").await.unwrap().unwrap();
        core.close().await.unwrap();
    })
    .unwrap();
}
