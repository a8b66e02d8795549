use super::*;
use crate::error::ErrorKind;

pub(crate) const VOLUME: Uuid = Uuid::from_u128(0x1234_5678_9abc_def0_1234_5678_9abc_def0);

pub(crate) fn contents(blocks: impl IntoIterator<Item = u64>, epochs: Range<u64>) -> LayerContents {
    let bits: BitMap = blocks.into_iter().collect();
    let entries = bits.iter_set(0..1 << 37).map(|block| (Block(block), image(block))).collect();
    let epochs = Epoch(epochs.start)..Epoch(epochs.end);
    LayerContents { volume: VOLUME, epochs, bits, entries, meta_pages: BTreeMap::new() }
}

fn image(block: u64) -> SavedImage {
    #[allow(clippy::cast_possible_truncation, reason = "any bits will do")]
    let low = block as u32;
    SavedImage { addr: SaveAddr::from_word(block << 20 | 8), crc: !low, damaged: block % 7 == 3 }
}

fn file(contents: &LayerContents) -> Vec<u8> {
    encode(contents).concat()
}

fn open(bytes: Vec<u8>, epochs: Range<u64>) -> Result<SealedLayer> {
    SealedLayer::open(Mapped::new(Arc::new(bytes)), VOLUME, Epoch(epochs.start)..Epoch(epochs.end))
}

/// A small layer that has every kind of page in both tables.
fn sample() -> LayerContents {
    sample_of(false)
}

fn sample_of(dense: bool) -> LayerContents {
    let page = PAGE_BITS;
    let few = [1, 5, 32_767, 40_000, 3 * page + 9, (1 << 34) + 1];
    let many = (9 * page..10 * page).step_by(64).take(if dense { 512 } else { 0 });
    let mut contents = contents(few.into_iter().chain(many), 7..9);
    let mut bits = BitMap::new();
    bits.set_range(100..900);
    contents.meta_pages = BTreeMap::from([
        (0, Page::Empty),
        (3, Page::Full),
        (4, Page::List([0, 17, 32_767].into())),
        (1 << 19, bits.page(0)),
    ]);
    contents
}

fn check(layer: &SealedLayer, contents: &LayerContents) {
    layer.verify().unwrap();
    assert_eq!(layer.entry_count(), contents.bits.count());
    assert!(layer.bit_pages().eq(contents.bits.pages().map(|(number, _)| number)));
    assert!(layer.meta_pages().eq(contents.meta_pages.keys().copied()));
    for (number, page) in contents.bits.pages() {
        assert_eq!(layer.bits_page(number).unwrap(), page);
        let mut words = [0; PAGE_WORDS];
        words[7] = 5;
        layer.add_bits(number, &mut words).unwrap();
        let mut both = page.to_words();
        both[7] |= 5;
        assert_eq!(words, both);
        // The page after it may be there or not.
        let next = contents.bits.page(number + 1);
        assert_eq!(layer.bits_page(number + 1).unwrap(), next);
    }
    for (number, page) in &contents.meta_pages {
        assert_eq!(layer.meta_page(*number).unwrap().as_ref(), Some(page));
    }
    let entries: BlockMap = layer.entries().map(Result::unwrap).collect();
    assert_eq!(entries, contents.entries);
    for (block, image) in contents.entries.iter() {
        assert!(layer.bit(block).unwrap());
        assert_eq!(layer.image(block).unwrap(), Some(image));
    }
}

#[test]
fn reads_what_was_sealed() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    for count in [0, 1, 126, 127, 128, 254, 5000, 60_000] {
        let span = [70_000, 1 << 24, 1 << 36][rng.usize(0..3)];
        let mut contents = contents((0..count).map(|_| rng.u64(0..span)), 3..4);
        if count == 5000 {
            let full = BitMap::from_iter(0..0).page(0);
            contents.meta_pages = BTreeMap::from([(9, full), (12, Page::Full)]);
        }
        let layer = open(file(&contents), 3..4).unwrap();
        check(&layer, &contents);
        for _ in 0..1000 {
            let block = Block(rng.u64(0..span + 10));
            assert_eq!(layer.image(block).unwrap(), contents.entries.get(block));
            assert_eq!(layer.bit(block).unwrap(), contents.bits.get(block.0));
        }
        assert!(layer.bits_page(u64::MAX).unwrap().is_empty() && layer.meta_page(77).unwrap().is_none());
    }
}

#[test]
fn bits_kind_and_full_pages() {
    let mut blocks: Vec<u64> = (0..PAGE_BITS).collect();
    blocks.extend((2 * PAGE_BITS..3 * PAGE_BITS).step_by(3));
    let contents = contents(blocks, 1..5);
    check(&open(file(&contents), 1..5).unwrap(), &contents);
}

#[test]
fn another_layers_file_is_told() {
    let bytes = file(&sample());
    assert!(open(bytes.clone(), 7..9).is_ok());
    for epochs in [7..8, 8..9, 0..9] {
        assert_eq!(open(bytes.clone(), epochs).unwrap_err().kind(), ErrorKind::Corrupt);
    }
    let other = SealedLayer::open(Mapped::new(Arc::new(bytes)), Uuid::nil(), Epoch(7)..Epoch(9));
    assert_eq!(other.unwrap_err().kind(), ErrorKind::Corrupt);
}

#[test]
fn a_newer_version_is_refused() {
    let mut bytes = file(&sample());
    bytes[8] = 2;
    let crc = crc32c::crc32c(&bytes[..124]).to_le_bytes();
    bytes[124..128].copy_from_slice(&crc);
    let error = open(bytes, 7..9).unwrap_err();
    assert!(error.kind() == ErrorKind::Unsupported && error.hint_text().is_some());
}

/// Either the damage is told, or the content is what it was (padding).
fn told_or_harmless(bytes: Vec<u8>, contents: &LayerContents) -> bool {
    let told = |error: Error| {
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
        true
    };
    match open(bytes, 7..9) {
        Err(error) => told(error),
        Ok(layer) => match layer.verify() {
            Err(error) => {
                // Queries may fail but must not panic or lie.
                for (block, image) in contents.entries.iter() {
                    assert!(layer.bit(block).unwrap_or(true));
                    assert_eq!(layer.image(block).unwrap_or(Some(image)), Some(image));
                }
                told(error)
            }
            Ok(()) => {
                check(&layer, contents);
                false
            }
        },
    }
}

#[test]
fn every_truncation_is_told() {
    let contents = sample();
    let bytes = file(&contents);
    for len in (0..700).chain((700..bytes.len()).step_by(37)) {
        assert!(told_or_harmless(bytes[..len].to_vec(), &contents), "cut to {len}");
    }
    let mut longer = bytes.clone();
    longer.push(0);
    assert!(told_or_harmless(longer, &contents));
}

#[test]
fn every_flipped_bit_is_told_or_harmless() {
    let contents = sample();
    let bytes = file(&contents);
    let header = Header::decode(&bytes).unwrap();
    let entries_end = header.meta_table().end;
    for at in (0..600).chain((600..bytes.len()).step_by(5)) {
        let mut bad = bytes.clone();
        bad[at] ^= 1 << (at % 8);
        let told = told_or_harmless(bad, &contents);
        assert!(told || (entries_end..header.hash_offset).contains(&(at as u64)), "byte {at}");
    }
}

/// Checksums that fit do not make senseless numbers dangerous.
#[test]
fn senseless_numbers_behind_fitting_checksums() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    let good = file(&sample());
    let tables_end = usize::try_from(Header::decode(&good).unwrap().meta_table().end).unwrap();
    for _ in 0..3000 {
        let mut bytes = good.clone();
        for _ in 0..rng.usize(1..4) {
            let at = rng.usize(32..tables_end);
            bytes[at] = if rng.bool() { rng.u8(..) } else { [0, 1, 255][rng.usize(0..3)] };
        }
        let tables = crc32c::crc32c(&bytes[128..tables_end]).to_le_bytes();
        bytes[84..88].copy_from_slice(&tables);
        let crc = crc32c::crc32c(&bytes[..124]).to_le_bytes();
        bytes[124..128].copy_from_slice(&crc);
        if let Ok(layer) = open(bytes, 7..9) {
            let _ = layer.verify();
            for page in 0..5 {
                let _ = (layer.bits_page(page), layer.meta_page(page), layer.image(Block(page)));
            }
        }
    }
}

#[test]
fn is_send_and_sync() {
    fn check<T: Send + Sync>() {}
    check::<SealedLayer>();
}

const FIXTURE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/layer-v1/small.layer");

#[test]
fn the_fixture_stays_readable_and_is_what_we_write() {
    let bytes = std::fs::read(FIXTURE).unwrap();
    let contents = sample_of(true);
    check(&open(bytes.clone(), 7..9).unwrap(), &contents);
    assert!(file(&contents) == bytes, "the same contents give the same file");
}

/// Writes the fixture; see `fixtures/layer-v1/README.md`.
#[test]
#[ignore = "a generator"]
fn write_fixture() {
    assert!(!std::path::Path::new(FIXTURE).exists(), "a fixture is never overwritten");
    std::fs::write(FIXTURE, file(&sample_of(true))).unwrap();
}
