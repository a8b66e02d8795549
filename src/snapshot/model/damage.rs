//! Damage, everywhere: bytes that turn over, files cut off, emptied, missing or exchanged.
//! Whatever it is: nothing panics, a check finds it where there is a checksum and writes
//! nothing, no read gives wrong data of a snapshot, and after a repair all is right that
//! stands in two places.
//!
//! `SNAPVOL_FLIP_STEP=1` turns over every byte in turn; without it every 41st.

#![allow(clippy::single_range_in_vec_init, reason = "a list of ranges, of one at times")]

use super::*;
use crate::format::journal::Record;
use crate::io::OpenHow;
use crate::io::sim::SimOptions;
use crate::snapshot::{Found, Incoming, ReceiveStart, Who, check_closed};
use crate::store::paths::VolumePaths;
use crate::store::replay;
use crate::store::save::SaveVolume;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;

const BLOCK: u64 = 4096;
const SIZE: u64 = 24 * BLOCK;
const SNAPSHOTS: [&str; 3] = ["a", "b", "c"];

/// What a volume holds, by snapshot; production is the empty name.
type Contents = BTreeMap<String, Vec<u8>>;

/// Blocks with bytes that tell block and value.
async fn put(volume: &Rc<Volume>, blocks: Range<u64>, value: u8) {
    for block in blocks {
        let byte = u8::try_from(block).unwrap() * 8 + value;
        let who = if volume.role() == Role::Primary { Who::Client } else { Who::Store };
        volume.write(who, block * BLOCK, Bytes::from(vec![byte; 4096]), false).await.unwrap();
    }
}

async fn take(volume: &Rc<Volume>, name: &str) {
    volume.take(request(name)).await.unwrap();
}

/// Three snapshots and one that is gone, trims, a checkpoint in between; closed.
async fn life(volume: &Rc<Volume>) {
    put(volume, 0..20, 1).await;
    take(volume, "a").await;
    put(volume, 0..8, 2).await;
    volume.trim(Who::Client, 18 * BLOCK, 2 * BLOCK, false).await.unwrap();
    take(volume, "gone").await;
    put(volume, 4..12, 3).await;
    take(volume, "b").await;
    put(volume, 10..16, 4).await;
    volume.trim(Who::Client, 0, BLOCK, false).await.unwrap();
    volume.checkpoint().await.unwrap();
    take(volume, "c").await;
    put(volume, 0..3, 5).await;
    put(volume, 22..23, 5).await;
    let (uuid, _) = volume.can_delete("gone").unwrap();
    volume.delete(&[uuid]).await.unwrap();
    volume.seal_closed().await.unwrap();
    volume.checkpoint().await.unwrap();
    volume.trim(Who::Client, 3 * BLOCK, BLOCK, false).await.unwrap();
    volume.flush().await.unwrap();
}

/// Two volumes alike, closed in good order; the second one is half received at its end.
fn built() -> (SimDisk, Contents) {
    let disk = SimDisk::new(SimOptions { seed: 2, inline: true, reorder: false });
    let contents = on_sim(&disk, |io| async move {
        let geometry = Geometry::new(SIZE, 4096, 1).unwrap();
        let mut contents = Contents::new();
        for (dir, uuid) in [("/v", 7), ("/w", 8)] {
            let (dir, uuid) = (Path::new(dir), Uuid::from_u128(uuid));
            Volume::create(&io, dir, uuid, geometry, OnFull::Freeze, Role::Primary).await.unwrap();
            io.sync_dir(Path::new("/")).await.unwrap();
            let volume = open(&io, dir, 4096, &BTreeSet::new()).await;
            life(&volume).await;
            for name in SNAPSHOTS {
                contents.insert(name.to_owned(), snapshot(&volume, name).await);
            }
            contents.insert(String::new(), production(&volume).await);
            if dir == Path::new("/w") {
                half_receive(&volume).await;
            }
            volume.close().await.unwrap();
        }
        contents
    });
    disk.crash_process();
    (disk, contents.unwrap())
}

async fn half_receive(volume: &Rc<Volume>) {
    volume.set_role(Role::Secondary).await.unwrap();
    let incoming = Incoming {
        target: Uuid::from_u128(42),
        name: "target".into(),
        created_us: 1,
        size: SIZE,
        base: None,
        set: None,
    };
    let ReceiveStart::Go(receiving, _) = volume.receive_begin(&incoming).await.unwrap() else { panic!() };
    receiving.data(&[(2 * BLOCK, Bytes::from(vec![99; 4 * 4096]))]).await.unwrap();
}

/// What a check of a closed volume finds; it writes nothing.
fn found(disk: &SimDisk, dir: &'static str) -> Vec<Found> {
    let before = disk.unsynced();
    let found = on_sim(disk, move |io| async move {
        check_closed(&io, &VolumePaths(PathBuf::from(dir)), true).await.unwrap().0.found
    });
    assert_eq!(disk.unsynced(), before, "a check writes nothing");
    disk.crash_process();
    found.unwrap()
}

/// Opens the volume and reads everything: each block is right or an error. Returns why it
/// could not be opened, or how many blocks were errors.
fn read_all(
    disk: &SimDisk,
    dir: &'static str,
    contents: &Contents,
    repair: bool,
) -> std::result::Result<usize, String> {
    let contents = contents.clone();
    let result = on_sim(disk, move |io| async move {
        let opened = Volume::open(&io, Path::new(dir), "vol", tuning(4096), &BTreeSet::new()).await;
        let volume = match opened {
            Ok((volume, _)) => volume,
            Err(error) => return Err(error.to_string()),
        };
        if repair {
            volume.repair().await.unwrap();
        }
        let mut errors = 0;
        for (name, content) in &contents {
            let reader = (!name.is_empty()).then(|| volume.open_snapshot(name).unwrap());
            for (block, want) in (0..).zip(content.chunks(4096)) {
                let found = match &reader {
                    Some(reader) => reader.read(block * BLOCK, BLOCK).await,
                    None => volume.read(block * BLOCK, BLOCK).await,
                };
                match found {
                    Ok(pieces) => {
                        assert!(bytes_of(pieces) == want, "block {block} of '{name}' is wrong");
                    }
                    Err(error) => {
                        assert!(!name.is_empty(), "production: {error}");
                        errors += 1;
                    }
                }
            }
        }
        volume.close().await.unwrap();
        Ok(errors)
    });
    disk.crash_process();
    result.unwrap()
}

/// The places of every file that have a checksum, and those whose damage no other copy
/// makes good.
struct Places {
    covered: BTreeMap<PathBuf, Vec<Range<u64>>>,
    images: BTreeMap<PathBuf, Vec<Range<u64>>>,
}

fn places(disk: &SimDisk, dir: &'static str) -> Places {
    let files = disk.files();
    let lens: BTreeMap<PathBuf, u64> = files
        .iter()
        .filter(|path| path.starts_with(dir) && !path.to_string_lossy().contains("/meta-"))
        .map(|path| (path.clone(), disk.contents(path).unwrap().len() as u64))
        .collect();
    let places = on_sim(disk, move |io| async move {
        let paths = VolumePaths(PathBuf::from(dir));
        let replay = replay::read(&io, &paths.journal()).await.unwrap();
        let Some((_, Record::State(first))) = replay.records.first() else { panic!() };
        let mut state = (**first).clone();
        replay.records[1..].iter().for_each(|(_, record)| state.apply(record));
        let copy = paths.journal_copy();
        let whole = |len: u64| Vec::from_iter(std::iter::once(0..len));
        let mut covered =
            BTreeMap::from([(paths.journal(), whole(replay.end)), (copy.clone(), whole(lens[&copy]))]);
        let mut images: BTreeMap<PathBuf, Vec<Range<u64>>> = BTreeMap::new();
        for file in 1..=2 {
            let mut ranges: Vec<Range<u64>> = Vec::new();
            let handle = io.open(&paths.checkpoint(file), OpenHow::Read).await.unwrap();
            for (at, len) in
                [(0, 512), (1 << 26, 512), (2 << 26, 512), (3 << 26, 4096), ((3 << 26) + (1 << 20), 4096)]
            {
                // A body is there for a page of kind bits alone.
                if io
                    .read(handle, at, usize::try_from(len).unwrap())
                    .await
                    .unwrap()
                    .iter()
                    .any(|byte| *byte != 0)
                {
                    ranges.push(at..at + len);
                }
            }
            io.close(handle);
            assert!(ranges.len() >= 2);
            covered.insert(paths.checkpoint(file), ranges);
        }
        for name in io.list(&paths.snapshots()).await.unwrap() {
            let path = paths.snapshots().join(name);
            covered.insert(path.clone(), whole(lens[&path]));
        }
        let save = SaveVolume::new(io.clone(), paths.clone(), state.uuid, 4096, tuning(4096));
        for (number, segment) in &state.segments {
            save.add(*number, segment);
            let walk = save.walk(*number, segment.mark, true).await.unwrap();
            let mut ranges = whole(44);
            let data = images.entry(paths.segment(*number)).or_default();
            for group in &walk.groups {
                let count = group.header.entries.len();
                let list = (crate::format::segment::ENTRY_SIZE * count) as u64;
                let end = group.at + crate::format::segment::group_size(count, 4096);
                ranges.push(group.at..group.at + 64 + list);
                ranges.push(end - 64 - list..end);
                data.push(group.images.offset()..group.images.offset() + count as u64 * BLOCK);
            }
            covered.insert(paths.segment(*number), ranges);
        }
        Places { covered, images }
    });
    disk.crash_process();
    places.unwrap()
}

fn is_journal(path: &Path) -> bool {
    path.ends_with("journal")
}

#[test]
fn every_byte_with_a_checksum_counts() {
    let step = std::env::var("SNAPVOL_FLIP_STEP").ok().and_then(|text| text.parse().ok()).unwrap_or(41);
    let (disk, contents) = built();
    for dir in ["/v", "/w"] {
        assert!(found(&disk, dir).is_empty(), "{:?}", found(&disk, dir));
    }
    assert_eq!(read_all(&disk.fork(), "/v", &contents, false), Ok(0));
    let places = places(&disk, "/v");
    let (mut flips, mut refused) = (0_u64, 0_u64);
    for (path, ranges) in &places.covered {
        for at in ranges.iter().flat_map(|range| range.clone().step_by(step).chain([range.end - 1])) {
            let bit = u8::try_from(at % 8).unwrap();
            let _seed = Seed(format!("bit {bit} of byte {at} of {}", path.display()));
            let image = disk.fork();
            image.flip_bit(path, at, bit);
            let seen = found(&image, "/v");
            assert!(seen.iter().any(|found| found.file == *path), "not found: {seen:?}");
            match read_all(&image.fork(), "/v", &contents, false) {
                Ok(errors) => assert_eq!(errors, 0, "what stands twice is all there"),
                Err(error) => {
                    // Nothing has the records after the state twice.
                    assert!(is_journal(path) && at >= 64, "{error}");
                    assert!(error.contains("journal"), "{error}");
                    refused += 1;
                    continue;
                }
            }
            assert_eq!(read_all(&image, "/v", &contents, true), Ok(0));
            assert!(found(&image, "/v").is_empty(), "after a repair: {:?}", found(&image, "/v"));
            flips += 1;
        }
    }
    println!("{} bytes turned over and mended, {refused} refused", flips);
    let (mut dead, mut hurt) = (0_u64, 0_u64);
    for (path, ranges) in &places.images {
        for at in ranges.iter().flat_map(|range| range.clone().step_by(step * 25 - 24)) {
            let _seed = Seed(format!("byte {at} of {}", path.display()));
            let image = disk.fork();
            image.flip_bit(path, at, 3);
            let seen = found(&image, "/v");
            let errors = read_all(&image, "/v", &contents, false).unwrap();
            // An image that nobody needs any more is not looked at.
            assert_eq!(seen.is_empty(), errors == 0, "{seen:?}");
            assert!(seen.iter().all(|f| f.file == *path && f.block.is_some() && f.snapshot.is_some()));
            assert!(errors <= 2, "{errors} blocks for one image");
            if errors == 0 { dead += 1 } else { hurt += 1 }
        }
    }
    println!("{hurt} bytes of before-images gave an error for their block alone, {dead} were nobody's");
    assert!(flips > 300 && refused > 3 && hurt > 20, "{flips} {refused} {hurt}");
}

/// What is done to a file.
#[derive(Clone, Copy, Debug)]
enum Harm {
    Missing,
    Short(u64),
    ZeroPage(u64),
    Foreign,
}

/// Does it, durably.
fn harm(disk: &SimDisk, path: &Path, harm: Harm) {
    let (path, foreign) = (path.to_owned(), path.to_string_lossy().replacen("/v/", "/w/", 1));
    let foreign = disk.contents(&foreign);
    on_sim(disk, move |io| async move {
        if let Harm::Missing = harm {
            io.remove(&path).await.unwrap();
        } else {
            let file = io.open(&path, OpenHow::Write).await.unwrap();
            match harm {
                Harm::Short(len) => io.truncate(file, len).await.unwrap(),
                Harm::ZeroPage(at) => io.write(file, at, Bytes::from(vec![0; 4096])).await.unwrap(),
                _ => {
                    let bytes = foreign.unwrap_or_default();
                    io.truncate(file, 0).await.unwrap();
                    io.write(file, 0, Bytes::from(bytes)).await.unwrap();
                }
            }
            io.sync(file).await.unwrap();
            io.close(file);
        }
        io.sync_dir(path.parent().unwrap()).await.unwrap();
    });
    disk.crash_process();
}

#[test]
fn files_cut_off_emptied_missing_and_exchanged() {
    let (disk, contents) = built();
    let places = places(&disk, "/v");
    let (mut count, mut refused, mut partly) = (0, 0, 0);
    for path in places.covered.keys() {
        let meta = path.to_string_lossy().contains("meta-");
        let len = if meta { 1024 } else { disk.contents(path).unwrap().len() as u64 };
        let mut harms = vec![Harm::Missing, Harm::Short(0), Harm::ZeroPage(0)];
        harms.extend((1..len).step_by(usize::try_from(len / 9 + 1).unwrap()).map(Harm::Short));
        harms.extend((4096..len).step_by(4096).map(Harm::ZeroPage));
        if !meta {
            harms.push(Harm::Foreign);
        }
        for how in harms {
            let _seed = Seed(format!("{how:?}: {}", path.display()));
            let image = disk.fork();
            harm(&image, path, how);
            let same = !meta && image.contents(path) == disk.contents(path);
            count += 1;
            let seen = found(&image, "/v");
            let outcome = read_all(&image, "/v", &contents, true);
            match &outcome {
                Ok(0) => {}
                Ok(_) => partly += 1,
                Err(_) => refused += 1,
            }
            // Space behind the last group, and images that nobody needs, may go unseen.
            assert!(same || !seen.is_empty() || outcome == Ok(0), "{outcome:?}");
            if !path.starts_with("/v/save") {
                // A journal's space behind its end means nothing.
                let spare = is_journal(path) && outcome == Ok(0);
                assert!(same || spare || !seen.is_empty(), "not found");
                if is_journal(path) || path.ends_with("journal.copy") && matches!(how, Harm::Foreign) {
                    continue;
                }
                assert_eq!(outcome, Ok(0), "{seen:?}");
                assert!(found(&image, "/v").is_empty(), "after a repair: {:?}", found(&image, "/v"));
            }
        }
    }
    println!("{count} harms: {refused} volumes refused, {partly} with blocks that can't be read");
    assert!(count > 60 && partly > 3, "{count} {partly}");
}
