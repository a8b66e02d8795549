//! Drills are made and ended whole, and what they hold is kept and let go of, whatever happens.

use super::*;
use crate::engine::model::clients::bytes_of;
use crate::snapshot::Who;

const SIZE: u64 = 64 << 10;

/// What a drill shows.
async fn shown(core: &Core, name: &str) -> Result<Vec<u8>> {
    core.with(name, |volume| async move { Ok(bytes_of(volume.read(0, SIZE).await?)) }).await
}

/// A volume with a snapshot, changed since.
fn with_a_snapshot(seed: u64) -> SimDisk {
    let disk = two_volumes(seed);
    live(&disk, |core| async move {
        core.snapshot(&[name("a@s")]).await.unwrap();
        let changed = core.with("a", |volume| async move {
            volume.write(Who::Client, 0, Bytes::from(vec![9; 16384]), true).await
        });
        changed.await.unwrap();
        core.close().await.unwrap();
    });
    disk
}

/// The content of the snapshot.
fn state() -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(SIZE).unwrap()];
    bytes[4096..12288].fill(7);
    bytes
}

/// Whether the drill is there after an open; what it holds agrees with that.
fn is_there(disk: &SimDisk, expected: impl Fn(&[u8]) + 'static) -> bool {
    let looked = live(disk, move |core| async move {
        let there = core.has_volume("a+d");
        if there {
            expected(&shown(&core, "a+d").await.unwrap());
            assert!(core.delete_snapshots(&[name("a@s")]).await.is_err(), "a state that is shown is gone");
            assert!(core.delete_volume("a", true).await.is_err());
            core.end_drill("a", Some("d"), false).await.unwrap();
        }
        core.delete_snapshots(&[name("a@s")]).await.unwrap();
        core.close().await.unwrap();
        there
    });
    looked.unwrap()
}

#[test]
fn a_drill_begins_whole_or_not_at_all() {
    let disk = with_a_snapshot(21);
    let counts = Rc::new(Cell::new((0, 0)));
    let counted = Rc::clone(&counts);
    let script = |core: Rc<Core>| async move {
        let begun = core.begin_drill("a", Some("s"), Some("d")).await.is_ok();
        // The read may be what fails.
        if begun && let Ok(found) = shown(&core, "a+d").await {
            assert_eq!(found, state());
        }
        begun
    };
    trouble_everywhere(&disk, script, move |disk, begun| {
        let there = is_there(disk, |found| assert_eq!(found, state()));
        assert!(begun != Some(true) || there, "a drill that was begun is gone");
        let (all, none) = counted.get();
        counted.set(if there { (all + 1, none) } else { (all, none + 1) });
    });
    let (all, none) = counts.get();
    assert!(all > 9 && none > 9, "{all} {none}");
}

#[test]
fn a_drill_ends_whole_or_not_at_all() {
    let disk = with_a_snapshot(22);
    live(&disk, |core| async move {
        core.begin_drill("a", None, Some("d")).await.unwrap();
        core.close().await.unwrap();
    });
    let script = |core: Rc<Core>| async move { core.end_drill("a", None, false).await.is_ok() };
    let counts = Rc::new(Cell::new((0, 0)));
    let counted = Rc::clone(&counts);
    trouble_everywhere(&disk, script, move |disk, ended| {
        let there = is_there(disk, |found| assert_eq!(found, state()));
        assert!(ended != Some(true) || !there, "a drill that was ended is there");
        let (all, none) = counted.get();
        counted.set(if there { (all + 1, none) } else { (all, none + 1) });
    });
    let (all, none) = counts.get();
    assert!(all > 4 && none > 2, "{all} {none}");
}

/// What was flushed in a drill is there after whatever crash, and what was trimmed there never
/// shows the origin's bytes again.
#[test]
fn what_was_flushed_in_a_drill_stays() {
    let disk = with_a_snapshot(23);
    live(&disk, |core| async move {
        core.begin_drill("a", None, Some("d")).await.unwrap();
        core.close().await.unwrap();
    });
    let script = |core: Rc<Core>| async move {
        let flushed = core.with("a+d", |volume| async move {
            // A part of a block, completed from the origin; then a trim of a written block, of one
            // that only the origin has, and of one that nobody has.
            volume.write(Who::Client, 5000, Bytes::from(vec![1; 100]), false).await?;
            volume.write(Who::Client, 16384, Bytes::from(vec![2; 8192]), false).await?;
            volume.flush().await?;
            volume.trim(Who::Client, 8192, 12288, false).await?;
            volume.flush().await
        });
        flushed.await.is_ok()
    };
    trouble_everywhere(&disk, script, move |disk, flushed| {
        let there = is_there(disk, move |found| {
            let mut expected = state();
            expected[5000..5100].fill(1);
            expected[16384..24576].fill(2);
            expected[8192..20480].fill(0);
            if flushed == Some(true) {
                assert!(found == expected, "what was flushed is not there");
                return;
            }
            // Each sector is as it was at some time.
            let before = state();
            let mut between = before.clone();
            between[5000..5100].fill(1);
            between[16384..24576].fill(2);
            for (at, found) in found.chunks(512).enumerate() {
                let of = |state: &[u8]| state[at * 512..][..512].to_vec();
                assert!(
                    [&before, &between, &expected].into_iter().any(|state| of(state) == found),
                    "sector {at} is what it never was"
                );
            }
        });
        assert!(there);
    });
}

/// Of several drills each is its own, also after an open.
#[test]
fn several_drills_each_show_their_own() {
    let disk = with_a_snapshot(24);
    let names = live(&disk, |core| async move {
        core.snapshot(&[name("a@t")]).await.unwrap();
        let mut names = Vec::new();
        for snapshot in [Some("s"), None, Some("s")] {
            names.push(core.begin_drill("a", snapshot, None).await.unwrap().export);
        }
        let written = core.with("a+drill", |volume| async move {
            volume.write(Who::Client, 0, Bytes::from(vec![5; 4096]), true).await
        });
        written.await.unwrap();
        let several = core.end_drill("a", None, false).await.unwrap_err();
        assert!(several.to_string().contains("drill, drill2, drill3"), "{several}");
        assert!(core.begin_drill("a", None, Some("drill")).await.is_err());
        assert!(core.begin_drill("b", None, None).await.is_err(), "a volume without a state");
        core.close().await.unwrap();
        names
    });
    assert_eq!(names.unwrap(), ["a+drill", "a+drill2", "a+drill3"]);
    live(&disk, |core| async move {
        let first = |bytes: Vec<u8>| bytes[0];
        assert_eq!(first(shown(&core, "a+drill").await.unwrap()), 5);
        assert_eq!(first(shown(&core, "a+drill2").await.unwrap()), 9);
        assert_eq!(shown(&core, "a+drill3").await.unwrap(), state());
        let list = core.list(None).await.unwrap().volumes;
        let of = |export: &str| list.iter().find(|v| v.name == export).unwrap().drill.clone().unwrap();
        assert_eq!(of("a+drill").snapshot.as_deref(), Some("s"));
        assert_eq!(of("a+drill2").snapshot.as_deref(), Some("t"));
        for drill in ["drill", "drill2"] {
            core.end_drill("a", Some(drill), false).await.unwrap();
        }
        assert!(core.delete_snapshots(&[name("a@s")]).await.is_err());
        core.delete_snapshots(&[name("a@t")]).await.unwrap();
        core.end_drill("a", None, false).await.unwrap();
        core.delete_volume("a", true).await.unwrap();
        core.close().await.unwrap();
    })
    .unwrap();
}
