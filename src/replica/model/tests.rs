//! Runs of sessions, and what they must have done to be worth something.

use super::*;
use crate::ErrorKind;
use crate::delta::{Encoder, PlainChunk, SnapshotId, StreamHeader};
use crate::engine::model::rig::Rig;
use crate::engine::sets::{FeedSet, OpenFeed, Relation};
use crate::io::sim::{SimDisk, SimOptions};
use crate::snapshot::cut_name;
use crate::types::{Geometry, RoleEpoch, SetId, SetStamp};
use bytes::Bytes;
use futures::executor::LocalPool;
use futures::task::LocalSpawnExt;
use uuid::Uuid;

/// The first seed and the number of runs.
fn seeds(first: u64, count: u64) -> std::ops::Range<u64> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let first = number("SNAPVOL_SEED").unwrap_or(first);
    first..first + number("SNAPVOL_ROUNDS").unwrap_or(count)
}

fn runs(first: u64, count: u64, options: Options) -> Counts {
    let mut total = Counts::default();
    for seed in seeds(first, count) {
        total.add(&run(seed, options));
    }
    println!("{total:?}");
    total
}

#[test]
fn model_sessions_where_nothing_goes_wrong() {
    let total = runs(1, 4, Options { deaths: false, power_cuts: false, cuts: false, ..Options::default() });
    // A set may be broken off by a pause.
    assert!(total.confirmed <= total.sets && total.confirmed > 20, "{total:?}");
}

#[test]
fn model_sessions_survive_broken_links() {
    let total = runs(100, 4, Options { deaths: false, power_cuts: false, ..Options::default() });
    assert!(total.cuts > 20, "{total:?}");
}

#[test]
fn model_sessions_survive_crashes_of_either_side() {
    let total = runs(200, 8, Options::default());
    assert!(total.deaths > 10 && total.power_cuts > 10 && total.confirmed > 40, "{total:?}");
}

#[test]
fn model_groups_are_shown_as_one_whatever_breaks() {
    let calm = Options { deaths: false, power_cuts: false, cuts: false, group: true, ..Options::default() };
    let total = runs(500, 3, calm);
    assert!(total.confirmed > 8 && total.confirmed * 3 <= total.sets, "{total:?}");
    let total = runs(510, 10, Options { group: true, lives: 8, writes: 1200, ..Options::default() });
    assert!(total.deaths > 10 && total.power_cuts > 10 && total.confirmed > 15, "{total:?}");
    assert!(total.resumed > 10, "{total:?}");
}

#[test]
fn model_roles_change_and_nothing_is_lost() {
    let total = runs(300, 12, Options { roles: true, writes: 800, lives: 8, ..Options::default() });
    assert!(total.failovers > 4 && total.resyncs > 4 && total.refused > 10, "{total:?}");
}

#[test]
fn model_roles_change_where_nothing_breaks() {
    let calm = Options { deaths: false, power_cuts: false, cuts: false, roles: true, ..Options::default() };
    let total = runs(400, 4, calm);
    assert!(total.failovers > 1 && total.resyncs > 1, "{total:?}");
}

/// A volume in the middle of a resync was fenced as a primary, and its owner had it go on alone: the
/// resync went on after that with the snapshot from before, and what was written was lost.
#[test]
fn model_a_resync_ends_when_its_volume_is_a_primary_again() {
    runs(21185, 1, Options { roles: true, writes: 800, lives: 8, ..Options::default() });
}

/// What was half received was dropped by two at once: the second one wrote down again that it is to
/// be dropped, and the volume did not open any more.
#[test]
fn model_what_is_half_received_is_dropped_once() {
    runs(1143, 2, Options { roles: true, writes: 800, lives: 8, ..Options::default() });
}

/// A receiver heard of a line that its sender's owner had begun, took the place in it, and was not
/// heard: the owner's word must not let that sender's writers in at its next start.
#[test]
fn model_an_owners_word_ends_before_a_receiver_hears_of_it() {
    runs(5229, 1, Options { roles: true, writes: 800, lives: 8, ..Options::default() });
}

/// One seed, one run.
#[test]
fn model_a_seed_decides_everything() {
    assert_eq!(run(7, Options::default()), run(7, Options::default()));
}

/// A first set had arrived, and its sender had not heard of it: the others keep that state.
#[test]
fn model_a_set_that_arrived_unheard_is_a_mark() {
    runs(6004, 1, Options::default());
}

/// What an earlier opening of a session brings is refused once it was opened again, and
/// nothing of it is left; a session that its owner has ended is not opened again at all.
#[test]
fn model_an_earlier_opening_is_heard_no_more() {
    let disk = SimDisk::new(SimOptions::seeded(5));
    Rig::init(&disk);
    let mut rig = Rig::new(&disk, 1);
    let (store, done) = (rig.store(), Rc::new(Cell::new(false)));
    let flag = Rc::clone(&done);
    let mut pool = LocalPool::new();
    let story = async move {
        let core = store.open(Uuid::from_u128(1), 4096).await.unwrap();
        let epoch = RoleEpoch { counter: 1, identity: Uuid::from_u128(2) };
        let open = |opening: u128| OpenFeed {
            session: Uuid::from_u128(3),
            store: Uuid::from_u128(4),
            opening: Uuid::from_u128(opening),
            volume: "v".to_owned(),
            origin: "v".to_owned(),
            size: 64 << 10,
            block_size: 4096,
            granularity: 1,
            lineage: vec![epoch],
            offers: Vec::new(),
            way_back: String::new(),
            way_back_command: String::new(),
        };
        let stamp = SetStamp { epoch, number: 1, base: None };
        let set = SetId { stamp, target: Uuid::from_u128(5) };
        let of = |opening: u128| {
            let (session, opening) = (Uuid::from_u128(3), Uuid::from_u128(opening));
            FeedSet { session, opening, volume: "v".to_owned(), set, keep: None, together: false }
        };
        let mut stream = a_stream(&set);
        core.open_feed(&open(10)).await.unwrap();
        core.open_feed(&open(11)).await.unwrap();
        let late = core.receive_set(&of(10), &mut &stream[..]).await.unwrap_err();
        assert_eq!(late.kind(), ErrorKind::Conflict);
        let feed = core.open_feed(&open(12)).await.unwrap();
        assert_eq!((feed.half, feed.applied), (None, None));
        // One that is cut off is half there, and goes away when it is of no use.
        let cut = stream.split_off(stream.len() / 2);
        core.receive_set(&of(12), &mut &stream[..]).await.unwrap_err();
        let half = core.open_feed(&open(13)).await.unwrap().half.unwrap();
        assert_eq!(half.set, Some(set));
        core.abort_feed(Uuid::from_u128(3), "v").await.unwrap();
        assert_eq!(core.open_feed(&open(14)).await.unwrap().half, None);
        stream.extend(cut);
        core.receive_set(&of(14), &mut &stream[..]).await.unwrap();
        assert_eq!(core.open_feed(&open(15)).await.unwrap().applied, Some(set));
        // Another line of role epochs, and one that is older than what is here.
        let mut other = open(16);
        other.lineage = vec![RoleEpoch { counter: 1, identity: Uuid::from_u128(99) }];
        assert_eq!(core.open_feed(&other).await.unwrap().relation, Relation::Split);
        assert_eq!(
            core.receive_set(&of(14), &mut &stream[..]).await.unwrap_err().kind(),
            ErrorKind::Conflict
        );
        core.part_feed(Uuid::from_u128(3)).await.unwrap();
        let ended = core.open_feed(&open(17)).await.unwrap_err();
        assert!(ended.to_string().contains("parted"), "{ended}");
        flag.set(true);
    };
    pool.spawner().spawn_local(story).unwrap();
    for _ in 0..100_000 {
        pool.run_until_stalled();
        if done.get() {
            return;
        }
        rig.turn(0, true);
    }
    panic!("it does not end");
}

/// The stream of a whole set: two blocks of a volume of 64 KiB.
fn a_stream(set: &SetId) -> Vec<u8> {
    let header = StreamHeader {
        stream: Uuid::from_u128(7),
        volume: Uuid::from_u128(8),
        volume_name: "v".to_owned(),
        base: None,
        base_size: 0,
        target: SnapshotId { uuid: set.target, name: cut_name(1, set.target) },
        created: "2026-11-21T12:00:00Z".to_owned(),
        geometry: Geometry::new(64 << 10, 4096, 1).unwrap(),
        resume_from: 0,
        data_bytes: None,
        discard_bytes: None,
        compressed: false,
    };
    let (mut encoder, mut bytes) = Encoder::new(&header).unwrap();
    let mut chunk = PlainChunk::new();
    chunk.piece(0, Bytes::from(vec![1; 8192]));
    bytes.extend(encoder.push(chunk.encode(1, false).unwrap()));
    bytes.extend(encoder.finish().0);
    bytes
}
