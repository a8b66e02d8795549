use super::*;
use crate::error::ErrorKind;
use std::collections::BTreeMap;

const VOLUME: Uuid = Uuid::from_u128(77);

/// A sparse file: 512-byte pieces that were written.
#[derive(Clone, Default)]
struct Sparse(BTreeMap<u64, [u8; 512]>);

impl Sparse {
    fn write(&mut self, writes: &[(u64, Bytes)]) {
        for (offset, bytes) in writes {
            assert!(offset % 512 == 0 && bytes.len() % 512 == 0 && bytes.len() <= PIECE);
            for (index, piece) in (0..).zip(bytes.chunks_exact(512)) {
                self.0.insert(offset / 512 + index, piece.try_into().unwrap());
            }
        }
    }

    /// Ends, as a file does, after its last written byte.
    fn read(&self, read: Read) -> Vec<u8> {
        let end = self.0.keys().last().map_or(0, |last| (last + 1) * 512);
        let mut bytes = Vec::new();
        for piece in read.offset / 512..(read.offset + read.len as u64).min(end).max(read.offset) / 512 {
            bytes.extend_from_slice(self.0.get(&piece).unwrap_or(&[0; 512]));
        }
        bytes
    }

    fn load(&self) -> Result<Checkpoint> {
        let mut loader = Loader::new(&self.read(Read { offset: 0, len: HEADER_LEN }), VOLUME)?;
        for read in loader.tables() {
            loader.table(&self.read(read))?;
        }
        for read in loader.bodies() {
            loader.body(read, &self.read(read))?;
        }
        loader.finish()
    }
}

fn change(map: &mut BitMap, bits: u64, rng: &mut fastrand::Rng) {
    for _ in 0..rng.usize(0..8) {
        let start = rng.u64(0..bits);
        let len = [1, 3, 1000, 3 * PAGE_BITS][rng.usize(0..4)];
        let range = start..(start + len).min(bits);
        if rng.bool() {
            map.set_range(range)
        } else {
            map.clear_range(range)
        };
    }
}

#[test]
fn both_files_follow_the_maps() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut files = [Sparse::default(), Sparse::default()];
    let mut written: [Option<(BitMap, BitMap)>; 2] = [None, None];
    let (mut meta, mut stale, mut bits) = (BitMap::new(), BitMap::new(), (3_000_000, 70_000));
    for step in 0..60u64 {
        let turn = usize::try_from(step % 2).unwrap();
        bits = match rng.u8(0..8) {
            0 => (bits.0 + rng.u64(0..3_000_000), bits.1 + 5),
            1 => (bits.0 / 2 + 1, bits.1),
            _ => bits,
        };
        meta.clear_range(bits.0..1 << 30);
        change(&mut meta, bits.0, &mut rng);
        change(&mut stale, bits.1, &mut rng);
        let previous = written[turn].as_ref().map(|(meta, stale)| (meta, stale));
        let writes = update(previous, (&meta, &stale), bits, Seq(step * 10), step, VOLUME);
        assert!(writes.last().unwrap().0 == 0 && writes[..writes.len() - 1].iter().all(|(at, _)| *at > 0));
        files[turn].write(&writes);
        written[turn] = Some((meta.clone(), stale.clone()));
        let loaded = files[turn].load().unwrap();
        assert_eq!((loaded.seq, loaded.generation, loaded.bits), (Seq(step * 10), step, bits));
        assert!(loaded.meta == meta && loaded.stale == stale);
    }
}

#[test]
fn an_update_writes_what_changed() {
    let mut meta = BitMap::new();
    meta.set_range(0..1 << 30);
    meta.clear_range((0..1 << 30).start..77);
    let (stale, bits) = (BitMap::new(), (1 << 30, 9));
    let before = meta.clone();
    let size = |writes: &[(u64, Bytes)]| writes.iter().map(|(_, bytes)| bytes.len()).sum::<usize>();
    let same = update(Some((&before, &stale)), (&meta, &stale), bits, Seq(1), 1, VOLUME);
    assert_eq!(size(&same), SECTOR_LEN);
    meta.clear(1 << 29);
    let one = update(Some((&before, &stale)), (&meta, &stale), bits, Seq(1), 1, VOLUME);
    assert_eq!(size(&one), BODY_LEN + 2 * SECTOR_LEN);
}

#[test]
fn bodies_that_touch_are_read_at_once() {
    let meta: BitMap = (0..600).map(|page| page * PAGE_BITS + page).collect();
    let (stale, mut file) = (BitMap::new(), Sparse::default());
    file.write(&update(None, (&meta, &stale), (1 << 30, 0), Seq(1), 1, VOLUME));
    let mut loader = Loader::new(&file.read(Read { offset: 0, len: HEADER_LEN }), VOLUME).unwrap();
    for read in loader.tables() {
        loader.table(&file.read(read)).unwrap();
    }
    assert_eq!(loader.bodies().len(), 3);
    assert_eq!(file.load().unwrap().meta, meta);
}

fn sample() -> (Sparse, BitMap, BitMap) {
    let mut meta: BitMap = (0..300).map(|bit| bit * 700).collect();
    meta.set_range(2 * PAGE_BITS..3 * PAGE_BITS);
    let stale: BitMap = [4, 9000].into_iter().collect();
    let mut file = Sparse::default();
    file.write(&update(None, (&meta, &stale), (400_000, 10_000), Seq(5), 2, VOLUME));
    (file, meta, stale)
}

#[test]
fn every_damage_is_told_or_harmless() {
    let (good, meta, stale) = sample();
    let pieces: Vec<u64> = good.0.keys().copied().collect();
    for &piece in &pieces {
        for at in (0..512).step_by(if piece < 1 << 25 { 1 } else { 7 }) {
            let mut file = good.clone();
            file.0.get_mut(&piece).unwrap()[at] ^= 1 << (at % 8);
            let error = file.load().expect_err("a flipped bit").kind();
            assert_eq!(error, ErrorKind::Corrupt, "piece {piece}, byte {at}");
        }
        // Lost pieces read as zeros; pieces that were cut off are not read at all.
        let mut lost = good.clone();
        lost.0.remove(&piece);
        let mut cut = good.clone();
        cut.0.split_off(&piece);
        for file in [lost, cut] {
            match file.load() {
                Err(error) => assert_eq!(error.kind(), ErrorKind::Corrupt),
                Ok(loaded) => assert!(loaded.meta == meta && loaded.stale == stale, "piece {piece}"),
            }
        }
    }
}

#[test]
fn pieces_of_another_place_are_told() {
    let (good, ..) = sample();
    let table = |section| sector_offset(section, 0) / 512;
    let mut file = good.clone();
    let other = good.0[&table(1)];
    file.0.insert(table(0), other);
    assert_eq!(file.load().unwrap_err().kind(), ErrorKind::Corrupt);
}

#[test]
fn identity_and_version() {
    let (good, ..) = sample();
    let header = good.read(Read { offset: 0, len: HEADER_LEN });
    assert_eq!(Loader::new(&header, Uuid::nil()).unwrap_err().kind(), ErrorKind::Corrupt);
    let mut newer = header.clone();
    newer[8] = 2;
    let crc = crc32c::crc32c(&newer[..508]).to_le_bytes();
    newer[508..].copy_from_slice(&crc);
    assert_eq!(Loader::new(&newer, VOLUME).unwrap_err().kind(), ErrorKind::Unsupported);
    for len in 0..HEADER_LEN {
        assert!(Loader::new(&header[..len], VOLUME).is_err());
    }
}

#[test]
fn senseless_numbers_behind_fitting_checksums() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    let (good, ..) = sample();
    for _ in 0..2000 {
        let mut file = good.clone();
        for piece in [0, sector_offset(0, 0) / 512] {
            let bytes = file.0.get_mut(&piece).unwrap();
            let at = rng.usize(48..if piece == 0 { 80 } else { 504 });
            bytes[at] = [0, 1, 2, 3, 255][rng.usize(0..5)];
            let crc = crc32c::crc32c(&bytes[..508]).to_le_bytes();
            bytes[508..].copy_from_slice(&crc);
        }
        let Ok(loader) = Loader::new(&file.read(Read { offset: 0, len: 512 }), VOLUME) else { continue };
        if loader.tables().len() < 4 {
            let _ = file.load();
        }
    }
}
