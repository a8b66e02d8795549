use super::*;
use std::collections::BTreeSet;

const SPAN: u64 = 3 * NODE_BITS / 2;

/// A bit near a border, or in the first two pages, or anywhere.
fn some_bit(rng: &mut fastrand::Rng) -> u64 {
    match rng.u8(0..4) {
        0 => rng.u64(0..2 * PAGE_BITS),
        1 => NODE_BITS - 100 + rng.u64(0..200),
        2 => rng.u64(0..8) * PAGE_BITS + rng.u64(0..300),
        _ => rng.u64(0..SPAN),
    }
}

fn check(map: &BitMap, set: &BTreeSet<u64>, rng: &mut fastrand::Rng) {
    assert_eq!(map.count(), set.len() as u64);
    assert_eq!(map.is_empty(), set.is_empty());
    for _ in 0..20 {
        let bit = some_bit(rng);
        assert_eq!(map.get(bit), set.contains(&bit));
        assert_eq!(map.next_set(bit), set.range(bit..).next().copied());
    }
    let start = some_bit(rng);
    let range = start..start + rng.u64(0..100_000);
    let want: Vec<u64> = set.range(range.clone()).copied().collect();
    assert_eq!(map.iter_set(range.clone()).collect::<Vec<_>>(), want);
    let mut at = range.start;
    let mut last = None;
    for (run, value) in map.runs(range.clone()) {
        assert!(run.start == at && run.end > at && last != Some(value));
        (at, last) = (run.end, Some(value));
    }
    assert_eq!(at, range.end);
}

#[test]
fn agrees_with_a_set() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    let (mut map, mut set) = (BitMap::new(), BTreeSet::new());
    let mut frozen: Vec<(BitMap, BTreeSet<u64>)> = Vec::new();
    for step in 0..2000 {
        let bit = some_bit(&mut rng);
        match rng.u8(0..10) {
            0..=3 => assert_eq!(map.set(bit), set.insert(bit)),
            4..=5 => assert_eq!(map.clear(bit), set.remove(&bit)),
            6..=7 => {
                let range = bit..bit + rng.u64(0..400);
                let before = set.len() as u64;
                set.extend(range.clone());
                assert_eq!(map.set_range(range), set.len() as u64 - before);
            }
            8 => {
                let range = bit..bit + rng.u64(0..3 * PAGE_BITS);
                let before = set.len() as u64;
                set.retain(|bit| !range.contains(bit));
                assert_eq!(map.clear_range(range), before - set.len() as u64);
            }
            _ if step % 5 == 0 => {
                let range = bit..bit + rng.u64(0..2 * PAGE_BITS);
                set.extend(range.clone());
                map.set_range(range);
            }
            _ => {}
        }
        if step % 50 == 0 {
            check(&map, &set, &mut rng);
            frozen.push((map.clone(), set.clone()));
        }
    }
    for (old, set) in frozen.iter().rev().take(5) {
        check(old, set, &mut rng);
        let changed: BTreeSet<u64> = map.changed_pages(old).collect();
        for page in 0..SPAN / PAGE_BITS + 1 {
            assert!(changed.contains(&page) || map.page(page) == old.page(page), "page {page}");
        }
        let rebuilt: BitMap = set.iter().copied().collect();
        assert_eq!(&rebuilt, old);
    }
    for (number, page) in map.pages() {
        assert!(!page.is_empty());
        assert_eq!(
            u64::from(page.count()),
            map.iter_set(number * PAGE_BITS..(number + 1) * PAGE_BITS).count() as u64
        );
    }
}

#[test]
fn a_clone_shares_what_did_not_change() {
    let mut map: BitMap = (0..5000).map(|bit| bit * 9973).collect();
    let frozen = map.clone();
    assert_eq!(map.changed_pages(&frozen).count(), 0);
    map.set(7);
    map.set(7 + 2 * NODE_BITS);
    map.clear(9973);
    assert_eq!(map.changed_pages(&frozen).collect::<Vec<_>>(), [0, 2 * NODE_PAGES as u64]);
    assert!(frozen.get(9973) && !frozen.get(7));
    // What has its value already unshares nothing.
    let again = map.clone();
    assert!(!map.set(7) && !map.clear(8));
    assert_eq!(map.set_range(7..8) + map.clear_range(8..20), 0);
    assert_eq!(map.changed_pages(&again).count(), 0);
}

#[test]
fn whole_nodes_and_the_far_end() {
    let mut map = BitMap::new();
    assert_eq!(map.set_range(5..BITS_MAX), BITS_MAX - 5);
    assert_eq!(map.runs(0..BITS_MAX).collect::<Vec<_>>(), [(0..5, false), (5..BITS_MAX, true)]);
    assert!(!map.get(BITS_MAX) && !map.get(u64::MAX));
    assert_eq!(map.next_set(BITS_MAX), None);
    assert_eq!(map.page(u64::MAX), Page::Empty);
    assert_eq!(map.clear_range(0..BITS_MAX - 1), BITS_MAX - 6);
    assert_eq!(map.next_set(0), Some(BITS_MAX - 1));
    assert!(map.clear(BITS_MAX - 1));
    assert!(map.is_empty() && map.root.is_empty() && map.next_set(0).is_none());
}

#[test]
fn pages_are_replaced_whole() {
    let mut map = BitMap::new();
    map.set_page(3, Page::Full);
    map.set_page(4, Page::Bits(Arc::new([u64::MAX; PAGE_WORDS])));
    map.set_page(5, Page::Bits(Arc::new([0; PAGE_WORDS])));
    assert_eq!(map.count(), 2 * PAGE_BITS);
    assert!(matches!(map.page(4), Page::Full) && matches!(map.page(5), Page::Empty));
    assert_eq!(map.pages_from(4).map(|(page, _)| page).collect::<Vec<_>>(), [4]);
    map.set_page(3, Page::Empty);
    assert_eq!(map.runs(0..7 * PAGE_BITS).count(), 3);
}
