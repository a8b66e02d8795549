//! The fuzz targets' seeds in `fixtures/fuzz`: what the codecs write, kept as files.
//! `SNAPVOL_WRITE_FIXTURES=1 cargo test --test it seeds` writes them anew.

use bytes::Bytes;
use snapvol::format::checkpoint as stored;
use snapvol::format::journal::{FileHeader, Frame, Record, encode_frame};
use snapvol::format::segment::{GroupEntry, GroupHeader, SegmentHeader};
use snapvol::format::slot::{SlotHeader, StageHeader};
use snapvol::format::state::{SnapshotRecord, VolumeState};
use snapvol::format::store::StoreHeader;
use snapvol::map::{BitMap, BlockMap, LayerContents, SavedImage, layer};
use snapvol::types::{Block, Epoch, Geometry, OnFull, Role, SaveAddr, Seq};
use std::path::Path;
use uuid::Uuid;

/// Name and bytes of each.
type Seeds = Vec<(String, Vec<u8>)>;

const VOLUME: Uuid = Uuid::from_u128(1);

/// The first byte tells a target whether to put checksums right: once without, once with.
fn both(all: &mut Seeds, name: &str, bytes: &[u8]) {
    all.push((format!("{name}-as-is"), [&[0], bytes].concat()));
    all.push((format!("{name}-mended"), [&[1], bytes].concat()));
}

fn records() -> Vec<Record> {
    let geometry = Geometry::new(1 << 20, 4096, 1).unwrap();
    let mut state = VolumeState::new(VOLUME, geometry, OnFull::Freeze, Role::Primary);
    let snapshot = SnapshotRecord {
        uuid: Uuid::from_u128(2),
        name: "a".to_owned(),
        created_us: 3,
        epoch: Epoch(1),
        size: 1 << 20,
        in_use: 4,
        holds: vec!["tag".to_owned()],
    };
    state.snapshots.push(snapshot.clone());
    vec![
        Record::State(Box::new(state)),
        Record::Open { boot: [5; 16] },
        Record::MetaSet { epoch: Epoch(2), guarded: true, ranges: vec![(1, 2), (7, 1)] },
        Record::Segment { segment: 1, generation: 1 },
        Record::Mark { segment: 1, offset: 8192, closed: Some(Epoch(2)) },
        Record::Take {
            snapshot: SnapshotRecord { uuid: Uuid::from_u128(6), ..snapshot },
            batch: None,
            received: false,
        },
        Record::MetaClear { epoch: Epoch(3), ranges: vec![(1, 1)] },
        Record::Delete {
            snapshots: vec![Uuid::from_u128(2)],
            removed: vec![],
            added: vec![],
            ends_receive: false,
        },
        Record::Close,
    ]
}

fn journal() -> Seeds {
    let mut plain = FileHeader { volume: VOLUME, number: 1 }.encode();
    let mut payloads = Vec::new();
    for (seq, record) in (1..).zip(records()) {
        let frame = encode_frame(1, Frame { seq: Seq(seq), durable: 0 }, &record).concat();
        let payload = &frame[40..];
        payloads.extend(u16::try_from(payload.len()).unwrap().to_le_bytes());
        payloads.extend(payload);
        plain.extend(frame);
    }
    vec![
        ("records-as-is".to_owned(), [vec![0], plain].concat()),
        ("payloads-framed".to_owned(), [vec![1], payloads].concat()),
    ]
}

fn sealed_layer() -> Seeds {
    let image = SavedImage { addr: SaveAddr { segment: 1, sector: 9 }, crc: 7, damaged: false };
    let bits: BitMap = [3, 4, 40_000].into_iter().collect();
    let entries: BlockMap = [3, 4, 40_000].map(|block| (Block(block), image)).into_iter().collect();
    let before: BitMap = (0..600).map(|bit| bit * 2).collect();
    let contents = LayerContents {
        volume: VOLUME,
        epochs: Epoch(1)..Epoch(2),
        bits,
        entries,
        meta_pages: [(0, before.page(0))].into_iter().collect(),
    };
    let mut all = Vec::new();
    both(&mut all, "layer", &layer::encode(&contents).concat());
    all
}

fn checkpoint() -> Seeds {
    let mut states = [stored::PageState::Empty; stored::SECTOR_ENTRIES];
    let body = [0x11; stored::BODY_LEN];
    states[0] = stored::PageState::Bits(crc32c::crc32c(&body));
    let header = stored::Header {
        volume: VOLUME,
        seq: Seq(5),
        generation: 5,
        bits: [65_536, 65_536],
        set: [stored::BODY_LEN as u64 * 2, 32_768],
    };
    let mut bytes = header.encode().to_vec();
    bytes.extend(stored::encode_sector(0, 0, &states));
    states[0] = stored::PageState::Full;
    bytes.extend(stored::encode_sector(1, 0, &states));
    bytes.extend(body);
    let mut all = Vec::new();
    both(&mut all, "checkpoint", &bytes);
    all
}

fn segment() -> Seeds {
    let header = SegmentHeader { volume: VOLUME, segment: 1, generation: 1 }.encode();
    let entry = |block| GroupEntry { block: Block(block), crc: 5, damaged: block == 2 };
    let entries = vec![entry(1), entry(2)];
    let group =
        GroupHeader { volume: VOLUME, segment: 1, generation: 1, epoch: Epoch(2), block_size: 4096, entries };
    let tail = group.encode_tail();
    let group = group.encode();
    vec![
        ("header-as-is".to_owned(), [&[0], &header[..64]].concat()),
        ("header-mended".to_owned(), [&[1], &header[..64]].concat()),
        ("group-as-is".to_owned(), [&[0], group.as_slice()].concat()),
        ("group-mended".to_owned(), [&[3], group.as_slice()].concat()),
        ("tail-as-is".to_owned(), [&[0], tail.as_slice()].concat()),
    ]
}

fn headers() -> Seeds {
    let mut all = Vec::new();
    both(&mut all, "store", &StoreHeader { uuid: VOLUME }.encode());
    let stage = StageHeader { volume: VOLUME, boot: [2; 16], slots: 8, block_size: 4096 };
    both(&mut all, "stage", &stage.encode()[..64]);
    let slot = SlotHeader { seq: Seq(1), block: Block(2), epoch: Epoch(3), data_crc: 4 };
    both(&mut all, "slot", &slot.encode());
    all
}

fn texts(list: &[(&str, &str)]) -> Seeds {
    list.iter().map(|(name, text)| ((*name).to_owned(), text.as_bytes().to_vec())).collect()
}

fn all() -> Vec<(&'static str, Seeds)> {
    let control = texts(&[
        ("list", "POST /v1/list HTTP/1.1\r\nContent-Length: 15\r\n\r\n{\"volume\":null}"),
        (
            "resize",
            "POST /v1/resize HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n28\r\n{\"volume\":\"v\",\"size\":4096,\"force\":false}\r\n0\r\n\r\n",
        ),
        (
            "error",
            "HTTP/1.1 409 Conflict\r\nContent-Length: 34\r\n\r\n{\"kind\":\"conflict\",\"message\":\"no\"} ",
        ),
        (
            "failure",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n!{\"kind\":\"io\",\"message\":\"x\"}\r\n",
        ),
    ]);
    let names = texts(&[
        ("name", "db-1.x_y"),
        ("snapshot", "db@before"),
        ("size", "64T"),
        ("ssh", "ssh://me@[::1]:22/var/lib/store/db"),
        ("path", "/store/db"),
        ("policy", "drop-oldest"),
    ]);
    vec![
        ("journal", journal()),
        ("layer", sealed_layer()),
        ("checkpoint", checkpoint()),
        ("segment", segment()),
        ("headers", headers()),
        ("control", control),
        ("names", names),
    ]
}

#[test]
fn seeds_are_what_the_codecs_write() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/fuzz");
    for (target, seeds) in all() {
        for (name, bytes) in seeds {
            let path = dir.join(target).join(&name);
            if std::env::var_os("SNAPVOL_WRITE_FIXTURES").is_some() {
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(&path, &bytes).unwrap();
            }
            assert!(bytes.len() <= 16 << 10, "{target}/{name} is a large seed");
            let there = std::fs::read(&path).unwrap_or_default();
            assert!(there == bytes, "{target}/{name} is not what the codecs write");
        }
    }
}

/// The seeds get past the front door: the fuzzers begin behind it.
#[test]
fn seeds_are_understood() {
    let bytes = Bytes::from(journal()[0].1[1..].to_vec());
    assert_eq!(snapvol::store::replay::parse(&bytes).unwrap().records.len(), records().len());
    let layer = sealed_layer()[0].1[1..].to_vec();
    let mapped = snapvol::io::Mapped::new(std::sync::Arc::new(layer));
    snapvol::map::SealedLayer::open(mapped, VOLUME, Epoch(1)..Epoch(2)).unwrap().verify().unwrap();
    let bytes = checkpoint()[0].1[1..].to_vec();
    let mut loader = snapvol::map::checkpoint::Loader::new(&bytes, VOLUME).unwrap();
    loader.table(&bytes[512..1024]).unwrap();
    loader.table(&bytes[1024..1536]).unwrap();
    for read in loader.bodies() {
        loader.body(read, &bytes[1536..]).unwrap();
    }
    loader.finish().unwrap();
}
