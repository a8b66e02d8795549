use super::*;
use crate::io::region::Mapped;
use crate::map::layer::{LayerContents, encode};
use crate::types::SaveAddr;
use std::sync::Arc;
use uuid::Uuid;

/// One layer of the oracle: what it has, and whether it is open or loaded.
struct Plain {
    end: u64,
    blocks: BTreeMap<u64, SavedImage>,
    meta: BTreeMap<u64, Page>,
}

fn image(rng: &mut fastrand::Rng) -> SavedImage {
    SavedImage { addr: SaveAddr::from_word(rng.u64(..)), crc: rng.u32(..), damaged: rng.bool() }
}

fn contents(first: u64, plain: &Plain) -> LayerContents {
    LayerContents {
        volume: Uuid::nil(),
        epochs: Epoch(first)..Epoch(plain.end),
        bits: plain.blocks.keys().copied().collect(),
        entries: plain.blocks.iter().map(|(&block, &image)| (Block(block), image)).collect(),
        meta_pages: plain.meta.clone(),
    }
}

fn seal(first: u64, plain: &Plain) -> Rc<SealedLayer> {
    let contents = contents(first, plain);
    let file = Mapped::new(Arc::new(encode(&contents).concat()));
    Rc::new(SealedLayer::open(file, Uuid::nil(), contents.epochs).unwrap())
}

fn some_block(rng: &mut fastrand::Rng) -> u64 {
    rng.u64(0..5) * PAGE_BITS + rng.u64(0..60)
}

fn fill(plain: &mut Plain, rng: &mut fastrand::Rng) {
    for _ in 0..rng.usize(0..6) {
        let (block, image) = (some_block(rng), image(rng));
        plain.blocks.entry(block).or_insert(image);
    }
    if rng.u8(0..4) == 0 {
        let page = [Page::Empty, Page::Full, Page::List([rng.u16(0..9)].into())][rng.usize(0..3)].clone();
        plain.meta.insert(rng.u64(0..6), page);
    }
}

fn compare(chain: &LayerChain, oracle: &BTreeMap<u64, Plain>, rng: &mut fastrand::Rng) {
    assert_eq!(chain.len(), oracle.len());
    let top = oracle.keys().last().map_or(1, |last| last + 2);
    for _ in 0..12 {
        let (from, block, page) = (rng.u64(0..top), some_block(rng), rng.u64(0..6));
        let found = oracle.range(from..).find_map(|(first, p)| Some((Epoch(*first), *p.blocks.get(&block)?)));
        assert_eq!(chain.find(Block(block), Epoch(from)).unwrap(), found);
        assert_eq!(chain.has_bit(Block(block), Epoch(from)).unwrap(), found.is_some());
        let meta = oracle.range(from..).find_map(|(_, p)| p.meta.get(&page).cloned());
        assert_eq!(chain.meta_page(page, Epoch(from)).unwrap(), meta);
    }
    let from = rng.u64(0..top);
    let range = from..from + rng.u64(0..40);
    let epochs = Epoch(range.start)..Epoch(range.end);
    let union: BitMap = oracle.range(range.clone()).flat_map(|(_, p)| p.blocks.keys().copied()).collect();
    let metas: BitMap = oracle.range(range).flat_map(|(_, p)| p.meta.keys().copied()).collect();
    for page in 0..6 {
        let mut words = [0; PAGE_WORDS];
        chain.union_bits(page, epochs.clone(), &mut words).unwrap();
        assert_eq!(Page::from_words(&words), union.page(page));
    }
    assert!(chain.touched_pages(epochs.clone()).unwrap().into_iter().eq(union.pages().map(|(page, _)| page)));
    assert!(chain.touched_meta_pages(epochs).unwrap().into_iter().eq(metas.iter_set(0..99)));
    assert!(chain.layers_from(Epoch(0)).map(|(first, _)| first.0).eq(oracle.keys().copied()));
    let kept: usize =
        chain.groups.iter().map(|group| &group.union).chain(&chain.supers).map(Union::bytes).sum();
    assert_eq!(kept, chain.kept.get());
    assert_eq!(chain.supers.len(), chain.groups.len().div_ceil(GROUP));
}

#[test]
fn agrees_with_a_plain_list() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    let (mut chain, mut oracle) = (LayerChain::new(), BTreeMap::<u64, Plain>::new());
    let mut epoch = 0;
    for step in 0..2600 {
        // Grows to some hundreds of layers, then deletes more than it adds.
        let grow = step < 1800;
        match rng.u8(0..10) {
            0..=5 if grow || rng.u8(0..3) == 0 => {
                if chain.open.len() == 2 {
                    let (first, _) = chain.open[0];
                    chain.replace(first..first.next(), [seal(first.0, &oracle[&first.0])]);
                }
                let first = epoch;
                epoch += rng.u64(1..3);
                let mut plain = Plain { end: epoch, blocks: BTreeMap::new(), meta: BTreeMap::new() };
                fill(&mut plain, &mut rng);
                let open = chain.push_open(Epoch(first));
                let mut open = open.borrow_mut();
                for (&block, &image) in &plain.blocks {
                    assert!(open.insert(Block(block), image));
                }
                open.meta_pages = plain.meta.clone();
                let sealed = open.contents(Uuid::nil(), Epoch(epoch));
                assert_eq!(encode(&sealed), encode(&contents(first, &plain)));
                oracle.insert(first, plain);
            }
            6..=7 if !oracle.is_empty() && (!grow || rng.u8(0..4) == 0) => {
                let first = *oracle.keys().nth(rng.usize(0..oracle.len())).unwrap();
                oracle.remove(&first);
                assert!(chain.remove(Epoch(first)) && !chain.remove(Epoch(first)));
            }
            8 if !oracle.is_empty() => {
                let first = *oracle.keys().nth(rng.usize(0..oracle.len())).unwrap();
                if !chain.open.iter().any(|(open, _)| open.0 == first) {
                    let plain = oracle.get_mut(&first).unwrap();
                    plain.blocks.retain(|_, _| rng.bool());
                    chain.replace(Epoch(first)..Epoch(first + 1), [seal(first, plain)]);
                }
            }
            _ => {}
        }
        if step % 3 == 0 {
            compare(&chain, &oracle, &mut rng);
        }
    }
}

#[test]
fn layers_are_loaded_from_the_end_in_any_order() {
    let mut rng = fastrand::Rng::with_seed(7);
    let (mut chain, mut oracle) = (LayerChain::new(), BTreeMap::new());
    let mut order: Vec<u64> = (0..1500).collect();
    rng.shuffle(&mut order);
    for &first in &order {
        let mut plain = Plain { end: first + 1, blocks: BTreeMap::new(), meta: BTreeMap::new() };
        fill(&mut plain, &mut rng);
        oracle.insert(first, plain);
        chain.insert_unloaded(Epoch(first)..Epoch(first + 1));
    }
    assert_eq!(chain.unloaded(Epoch(0)).len(), 1500);
    assert_eq!(chain.find(Block(0), Epoch(0)).unwrap_err().kind(), crate::ErrorKind::Conflict);
    for epochs in chain.unloaded(Epoch(700)) {
        chain.load(epochs.start, seal(epochs.start.0, &oracle[&epochs.start.0]));
    }
    for from in 700..1500 {
        let block = some_block(&mut rng);
        let found = oracle.range(from..).find_map(|(first, p)| Some((Epoch(*first), *p.blocks.get(&block)?)));
        assert_eq!(chain.find(Block(block), Epoch(from)).unwrap(), found);
    }
    for epochs in chain.unloaded(Epoch(0)) {
        chain.load(epochs.start, seal(epochs.start.0, &oracle[&epochs.start.0]));
    }
    for _ in 0..50 {
        compare(&chain, &oracle, &mut rng);
    }
}
