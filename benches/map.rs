//! What the maps cost: single bits, runs, searches through a thousand layers.

use snapvol::io::region::Mapped;
use snapvol::map::{
    BitMap, BlockMap, LayerChain, LayerContents, PAGE_BITS, PAGE_WORDS, SavedImage, SealedLayer, layer,
};
use snapvol::types::{Block, Epoch, SaveAddr};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use uuid::Uuid;

fn main() {
    divan::main();
}

/// Bits in the maps: 1 TiB in blocks of 4 KiB.
const BITS: u64 = 1 << 28;

fn scattered(bits: u64, seed: u64) -> BitMap {
    let mut rng = fastrand::Rng::with_seed(seed);
    (0..bits).map(|_| rng.u64(0..BITS)).collect()
}

#[divan::bench]
fn set_then_clear_in_a_page_of_bits(bencher: divan::Bencher) {
    let mut map = BitMap::new();
    map.set_range(0..PAGE_BITS / 2);
    bencher.bench_local(|| map.set(20_001) & map.clear(20_001));
}

#[divan::bench]
fn set_then_clear_in_a_list(bencher: divan::Bencher) {
    let mut map: BitMap = (0..100).map(|bit| bit * 7).collect();
    bencher.bench_local(|| map.set(20_001) & map.clear(20_001));
}

#[divan::bench]
fn get(bencher: divan::Bencher) {
    let map = scattered(1 << 20, 1);
    let mut rng = fastrand::Rng::with_seed(2);
    bencher.bench_local(|| map.get(rng.u64(0..BITS)));
}

#[divan::bench]
fn clone_and_change_one_bit(bencher: divan::Bencher) {
    let map = scattered(1 << 20, 1);
    let mut rng = fastrand::Rng::with_seed(2);
    bencher.bench_local(|| {
        let mut copy = map.clone();
        copy.set(rng.u64(0..BITS));
        copy.changed_pages(&map).count()
    });
}

#[divan::bench]
fn runs_of_a_million_scattered_bits(bencher: divan::Bencher) {
    let map = scattered(1 << 20, 1);
    bencher.bench_local(|| map.runs(0..BITS).count());
}

fn chain(layers: u64, blocks: u64) -> LayerChain {
    let mut chain = LayerChain::new();
    for first in 0..layers {
        let bits = scattered(blocks, first);
        let image = SavedImage { addr: SaveAddr::from_word(first), crc: 1, damaged: false };
        let entries: BlockMap = bits.iter_set(0..BITS).map(|block| (Block(block), image)).collect();
        let epochs = Epoch(first)..Epoch(first + 1);
        let contents = LayerContents {
            volume: Uuid::nil(),
            epochs: epochs.clone(),
            bits,
            entries,
            meta_pages: BTreeMap::new(),
        };
        let mapped = Mapped::new(Arc::new(layer::encode(&contents).concat()));
        let sealed = SealedLayer::open(mapped, Uuid::nil(), epochs).expect("it was just encoded");
        chain.insert_loaded(Rc::new(sealed));
    }
    chain
}

/// Blocks within 256 pages, from the oldest snapshot: the unions are warm.
#[divan::bench(sample_size = 1000)]
fn find_over_1000_layers_warm(bencher: divan::Bencher) {
    let chain = chain(1000, 1000);
    let mut rng = fastrand::Rng::with_seed(2);
    for page in 0..256 {
        chain.has_bit(Block(page * PAGE_BITS), Epoch(0)).expect("sound layers");
    }
    bencher.bench_local(|| chain.find(Block(rng.u64(0..256 * PAGE_BITS)), Epoch(0)).expect("sound layers"));
}

/// Blocks that the youngest layer has: every search passes all the others.
#[divan::bench(sample_size = 1000)]
fn find_over_1000_layers_in_the_last(bencher: divan::Bencher) {
    let chain = chain(1000, 1000);
    let blocks: Vec<u64> = scattered(1000, 999).iter_set(0..256 * PAGE_BITS).collect();
    let mut rng = fastrand::Rng::with_seed(2);
    bencher.bench_local(|| {
        chain.find(Block(blocks[rng.usize(0..blocks.len())]), Epoch(0)).expect("sound layers")
    });
}

/// As the first, from snapshots in the middle of a group.
#[divan::bench(sample_size = 1000)]
fn find_over_985_layers_from_within_a_group(bencher: divan::Bencher) {
    let chain = chain(1000, 1000);
    let mut rng = fastrand::Rng::with_seed(2);
    for page in 0..256 {
        chain.has_bit(Block(page * PAGE_BITS), Epoch(0)).expect("sound layers");
    }
    bencher.bench_local(|| chain.find(Block(rng.u64(0..256 * PAGE_BITS)), Epoch(15)).expect("sound layers"));
}

/// Each search in another page: makes its unions over all layers.
#[divan::bench]
fn find_over_1000_layers_in_a_new_page(bencher: divan::Bencher) {
    let chain = chain(1000, 1000);
    let mut page = 0;
    bencher.bench_local(|| {
        page = (page + 1) % (BITS / PAGE_BITS);
        chain.find(Block(page * PAGE_BITS + 5), Epoch(0)).expect("sound layers")
    });
}

#[divan::bench]
fn union_of_a_page_over_1000_layers(bencher: divan::Bencher) {
    let chain = chain(1000, 1000);
    let mut page = 0;
    bencher.bench_local(|| {
        let mut words = [0; PAGE_WORDS];
        page = (page + 1) % (BITS / PAGE_BITS);
        chain.union_bits(page, Epoch(0)..Epoch(1000), &mut words).expect("sound layers");
        words
    });
}
