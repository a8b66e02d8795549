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
    announce(touched, blocks.clone(), epoch);
    confirm(touched, blocks.clone(), touched.round);
    assert!(may(touched, blocks, epoch));
}

/// Whether a write of these blocks may go on.
fn may(touched: &mut Touched, blocks: Range<u64>, epoch: Epoch) -> bool {
    let blocks = std::slice::from_ref(&blocks);
    touched.note(blocks, blocks, epoch)
}

fn announce(touched: &mut Touched, blocks: Range<u64>, epoch: Epoch) -> Vec<(u64, u64)> {
    touched.announce(std::slice::from_ref(&blocks), epoch)
}

fn confirm(touched: &mut Touched, blocks: Range<u64>, round: u64) {
    touched.confirm(std::slice::from_ref(&blocks), round);
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
    assert!(!may(&mut all, 0..1, ONE));
    assert_eq!(announce(&mut all, 0..1, ONE), [(0, 4)]);
    assert_eq!(announce(&mut all, 0..1, ONE), [], "it is on its way");
    assert!(!may(&mut all, 0..1, ONE));
    // The state after the cut has it, but nothing says that this state is durable.
    let round = all.round;
    assert_eq!(all.cut(Seq(5), false).active, [(0, 4)]);
    assert!(!may(&mut all, 0..1, ONE));
    confirm(&mut all, 0..1, round);
    assert!(!may(&mut all, 0..1, ONE), "it was announced before the cut");
    assert_eq!(announce(&mut all, 0..1, ONE), []);
    let round = all.round;
    confirm(&mut all, 0..1, round);
    assert!(may(&mut all, 0..1, ONE));
    assert!(!may(&mut all, 4..5, ONE));
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
    assert!(may(&mut all, 1..2, ONE));
    let cut = all.cut(Seq(9), false);
    assert_eq!(cut.active, [(0, 4)]);
    assert!(!may(&mut all, 9..10, ONE));
    assert_eq!(all.cut(Seq(11), true).active, []);
}

/// A checkpoint is wanted when much more is active than the last one left, or after many marks.
#[test]
fn what_is_active_is_bounded() {
    let mut all = touched();
    all.begin(ONE);
    write(&mut all, 0..12, ONE);
    assert!(!all.wants_checkpoint(3));
    write(&mut all, 12..16, ONE);
    assert!(all.wants_checkpoint(3));
    all.cut(Seq(5), false);
    write(&mut all, 16..32, ONE);
    assert!(!all.wants_checkpoint(3), "twice as many are active");
    for mark in 0..MARKS_MAX {
        assert!(!all.wants_checkpoint(3));
        all.begin(Epoch(20 + mark));
    }
    assert!(all.wants_checkpoint(3));
    all.cut(Seq(9), false);
    write(&mut all, 32..52, ONE);
    assert!(all.wants_checkpoint(3), "nine, and four were left");
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
