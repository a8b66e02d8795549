//! The maps alone: marks that come and go, regions, cuts.

use super::*;
use crate::types::Geometry;

const ONE: Epoch = Epoch(10);
const TWO: Epoch = Epoch(20);

fn touched() -> Touched {
    Touched { shift: 2, ..Touched::default() }
}

/// Activates and notes, as a write does.
fn write(touched: &mut Touched, blocks: Range<u64>, epoch: Epoch) {
    touched.announce(std::slice::from_ref(&blocks), epoch);
    touched.confirm(std::slice::from_ref(&blocks), touched.round);
    assert!(touched.note(std::slice::from_ref(&blocks), std::slice::from_ref(&blocks), epoch));
}

fn blocks(map: &BitMap) -> Vec<u64> {
    map.iter_set(0..1000).collect()
}

#[test]
fn a_change_belongs_to_the_mark_before_its_epoch() {
    let mut all = touched();
    write(&mut all, 0..1, Epoch(9));
    all.begin(ONE);
    write(&mut all, 1..2, Epoch(9));
    write(&mut all, 2..3, ONE);
    all.begin(TWO);
    write(&mut all, 3..4, Epoch(19));
    write(&mut all, 4..5, Epoch(25));
    assert_eq!(blocks(&all.between(ONE..TWO)), [2, 3]);
    assert_eq!(blocks(&all.between(TWO..Epoch(99))), [4]);
    assert_eq!(blocks(&all.between(ONE..Epoch(99))), [2, 3, 4]);
    all.keep(&[ONE]);
    assert_eq!(blocks(&all.between(ONE..TWO)), [2, 3, 4]);
    all.keep(&[]);
    assert!(all.maps.is_empty());
}

#[test]
fn nothing_is_noted_before_its_region_is_active() {
    let mut all = touched();
    all.begin(ONE);
    let (held, other) = ([0..1], [4..5]);
    assert!(!all.note(&held, &held, ONE));
    assert_eq!(all.announce(&held, ONE), [(0, 4)]);
    assert_eq!(all.announce(&held, ONE), [], "it is on its way");
    assert!(!all.note(&held, &held, ONE));
    // The state after the cut has it, but nothing says that this state is durable.
    let round = all.round;
    assert_eq!(all.cut(Seq(5), false).active, [(0, 4)]);
    assert!(!all.note(&held, &held, ONE));
    all.confirm(&held, round);
    assert!(!all.note(&held, &held, ONE), "it was announced before the cut");
    assert_eq!(all.announce(&held, ONE), []);
    all.confirm(&held, all.round);
    assert!(all.note(&held, &held, ONE));
    assert!(!all.note(&other, &other, ONE));
    assert!(all.note(&[], &[], ONE));
}

/// The first cut keeps what was touched before it, the second one forgets it.
#[test]
fn what_is_active_follows_what_is_written() {
    let mut all = touched();
    all.begin(ONE);
    write(&mut all, 0..1, ONE);
    write(&mut all, 9..10, ONE);
    assert_eq!(all.cut(Seq(5), false).active, [(0, 4), (8, 4)]);
    assert!(all.note(&[1..2], &[1..2], ONE));
    let cut = all.cut(Seq(9), false);
    assert_eq!(cut.active, [(0, 4)]);
    assert!(!all.note(&[9..10], &[9..10], ONE));
    assert_eq!(all.cut(Seq(11), true).active, []);
}

#[test]
fn a_map_that_did_not_change_keeps_its_file() {
    let mut all = touched();
    all.begin(ONE);
    write(&mut all, 0..1, ONE);
    all.begin(TWO);
    let cut = all.cut(Seq(5), false);
    assert_eq!(cut.fresh.len(), 2);
    all.stored(cut);
    write(&mut all, 5..6, TWO);
    let cut = all.cut(Seq(8), false);
    assert_eq!(cut.records.iter().map(|record| record.file).collect::<Vec<_>>(), [5, 8]);
    assert_eq!(cut.fresh.len(), 1);
}

#[test]
fn regions_grow_with_the_volume() {
    let shift = |size, block_size, granularity| {
        region_shift(Geometry::new(size, block_size, granularity).unwrap(), Tuning::default())
    };
    assert_eq!(shift(1 << 30, 4096, 1), 10);
    assert_eq!(shift(64 << 40, 4096, 1), 18);
    assert_eq!(shift(1 << 30, 1 << 16, 128), 7, "not less than a granule");
}
