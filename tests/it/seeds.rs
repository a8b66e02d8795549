//! The fuzz targets' seeds in `fixtures/fuzz`: what the codecs write, kept as files.
//! `SNAPVOL_WRITE_FIXTURES=1 cargo test --test it seeds` writes them anew.

use bytes::Bytes;
use snapvol::delta::digest::{Answer, CHUNK, Digest, Span};
use snapvol::delta::{Encoder, PlainChunk, SnapshotId, StreamHeader};
use snapvol::engine::sets::OpenFeed;
use snapvol::format::checkpoint as stored;
use snapvol::format::group::{self, GroupMember, GroupRecord};
use snapvol::format::journal::{FileHeader, Frame, Record, encode_frame};
use snapvol::format::segment::{GroupEntry, GroupHeader, SegmentHeader};
use snapvol::format::session::{Condition, MemberRecord, SessionPolicy, SessionRecord, Side};
use snapvol::format::slot::{SlotHeader, StageHeader};
use snapvol::format::state::{SnapshotRecord, VolumeState};
use snapvol::format::store::StoreHeader;
use snapvol::format::upkeep::{self, Made, Schedule, VolumeUpkeep};
use snapvol::map::{BitMap, BlockMap, LayerContents, SavedImage, layer};
use snapvol::replica::wire::{Body, Frame as WireFrame, Greet, Message};
use snapvol::types::{Block, Epoch, Geometry, OnFull, Role, RoleEpoch, SaveAddr, Seq, SetId, SetStamp};
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
        set: None,
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
            remembered: true,
        },
        Record::Active { ranges: vec![(0, 1024)] },
        Record::Forget { bookmarks: vec![Uuid::from_u128(6)] },
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

/// What a store's own files hold besides volumes.
fn files() -> Seeds {
    let deletions = [("a", 2), ("b", 1)].map(|(name, count)| {
        (name.to_owned(), (0..count).map(|number| Uuid::from_u128(number + 1)).collect())
    });
    let bytes = snapvol::engine::encode_deletions(&deletions.into_iter().collect());
    vec![
        ("deleting-as-is".to_owned(), [&[0], &bytes[..]].concat()),
        ("deleting-mended".to_owned(), [&[1], &bytes[..bytes.len() - 4]].concat()),
    ]
}

/// Two chunks, as frames.
fn frames(compress: bool) -> Vec<u8> {
    let header = StreamHeader {
        stream: VOLUME,
        volume: VOLUME,
        volume_name: "v".to_owned(),
        base: None,
        base_size: 0,
        target: SnapshotId { uuid: Uuid::from_u128(9), name: "new".to_owned() },
        created: "2026-01-01T00:00:00Z".to_owned(),
        geometry: Geometry::new(256 << 10, 4096, 1).unwrap(),
        resume_from: 0,
        data_bytes: None,
        discard_bytes: None,
        compressed: compress,
    };
    let (mut encoder, mut bytes) = Encoder::new(&header).unwrap();
    let front = bytes.len();
    for (number, at) in [(1, 0), (2, 64 << 10)] {
        let mut chunk = PlainChunk::new();
        chunk.data(at, &[0x33; 4096]);
        chunk.discard(at + 8192, 16384);
        bytes.extend(encoder.push(chunk.encode(number, compress).unwrap()));
    }
    bytes.drain(..front);
    bytes
}

/// The first five bytes choose the header: here a whole stream, and a delta.
fn streams() -> Seeds {
    let seed = |choice: [u8; 5], compress| [&choice[..], &frames(compress)].concat();
    vec![
        ("whole".to_owned(), seed([2, 0, 0, 0, 0], false)),
        ("whole-compressed".to_owned(), seed([3, 0, 0, 0, 0], true)),
        ("delta".to_owned(), seed([2, 4, 0, 0, 0], false)),
        ("delta-cut".to_owned(), seed([0, 4, 0, 0, 0], false)),
        ("smaller".to_owned(), seed([2, 0x44, 47, 0, 0], false)),
        ("larger".to_owned(), seed([2, 0xc4, 20, 0, 0], false)),
        ("to-a-primary".to_owned(), seed([6, 0, 0, 0, 0], false)),
        ("held".to_owned(), seed([2, 2, 0, 0, 0], false)),
    ]
}

/// What the two ends of a copy say.
fn talk() -> Seeds {
    let stream = include_bytes!("../../fixtures/stream-v1/compressed.stream");
    let mut pipe = snapvol::transport::PipeWriter::new(Vec::new());
    pipe.piece(&stream[..stream.len().min(8 << 10)]).unwrap();
    let hello =
        "{\"hello\":{\"version\":1,\"target\":\"00000000-0000-0000-0000-000000000009\"}}\n\"start\"\n";
    vec![
        ("far".to_owned(), [&[0], hello.as_bytes(), &pipe.finish().unwrap()].concat()),
        (
            "near".to_owned(),
            b"\x01{\"held\":{\"version\":1,\"role\":\"secondary\",\"snapshots\":[],\"half\":null}}\n\
              {\"progress\":{\"durable\":4096}}\n{\"error\":{\"kind\":\"io\",\"message\":\"x\",\"hint\":null}}\n"
                .to_vec(),
        ),
    ]
}

/// Answers to the requests that the target makes: two reads, block status, a flush.
fn answers() -> Seeds {
    let simple = |cookie: u64| [&0x6744_6698_u32.to_be_bytes()[..], &[0; 4], &cookie.to_be_bytes()].concat();
    let chunk = |flags: u16, kind: u16, cookie: u64, payload: &[u8]| {
        let len = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let head = [&flags.to_be_bytes()[..], &kind.to_be_bytes(), &cookie.to_be_bytes(), &len].concat();
        [&0x668e_33ef_u32.to_be_bytes()[..], &head, payload].concat()
    };
    let at = 8192u64.to_be_bytes();
    let plain = [simple(1), vec![1; 4096], simple(2), vec![1; 512], simple(3), simple(4)].concat();
    let structured = [
        chunk(0, 1, 1, &[&at[..], &[1; 512]].concat()),
        chunk(1, 2, 1, &[&8704u64.to_be_bytes()[..], &3584u32.to_be_bytes()].concat()),
        chunk(1, 1 << 15 | 1, 2, b"\0\0\0\x05\0\x02no"),
        chunk(1, 5, 3, &[&7u32.to_be_bytes()[..], &(1u32 << 20).to_be_bytes(), &[0; 4]].concat()),
        chunk(1, 0, 4, &[]),
    ];
    vec![
        ("simple".to_owned(), [vec![4], plain].concat()),
        ("structured".to_owned(), [vec![6], structured.concat()].concat()),
    ]
}

/// The frames of a connection, and the bodies of some.
fn connection() -> Seeds {
    let epoch = RoleEpoch { counter: 1, identity: Uuid::from_u128(5) };
    let set = SetId { stamp: SetStamp { epoch, number: 3, base: Some(VOLUME) }, target: Uuid::from_u128(6) };
    let open = OpenFeed {
        session: Uuid::from_u128(2),
        store: Uuid::from_u128(3),
        opening: Uuid::from_u128(4),
        volume: "v".to_owned(),
        origin: "w".to_owned(),
        size: 1 << 20,
        block_size: 4096,
        granularity: 1,
        lineage: vec![epoch],
        offers: vec![VOLUME],
        way_back: "/srv/store/w".to_owned(),
        way_back_command: String::new(),
    };
    let greet = Greet { program: "1".to_owned(), ..Greet::of(VOLUME) };
    let messages = [
        Message::Greet(greet),
        Message::Open { members: vec![open], group: None },
        Message::Set { volume: "v".to_owned(), set, keep: Some(2) },
        Message::Marks { volume: "v".to_owned(), durable: Some(set), applied: Some(set) },
    ];
    let frames = messages.map(|message| {
        let frame =
            WireFrame { channel: Uuid::from_u128(7), epoch: epoch.identity, body: Body::Message(message) };
        frame.encode().unwrap()
    });
    let whole: Vec<u8> = frames.iter().flat_map(|(head, body)| [&head[..], body].concat()).collect();
    let mut all = vec![("as-is".to_owned(), [&[0], &whole[..]].concat())];
    for (name, (_, body)) in ["greet", "open", "set", "marks"].into_iter().zip(&frames) {
        all.push((format!("{name}-framed"), [&[1], &body[..]].concat()));
    }
    all
}

/// The files of a session, on both sides.
fn session_files() -> Seeds {
    let mut record = SessionRecord {
        session: Uuid::from_u128(2),
        side: Side::Sender,
        unit: "v".to_owned(),
        peer_store: Some(Uuid::from_u128(3)),
        destination: "ssh://there/store/v".to_owned(),
        remote_command: String::new(),
        way_back: "/srv/store/v".to_owned(),
        way_back_command: String::new(),
        opening: None,
        condition: Condition::Running,
        policy: SessionPolicy::default(),
        members: vec![MemberRecord {
            volume: "v".to_owned(),
            uuid: VOLUME,
            far_volume: "v".to_owned(),
            durable: None,
            applied: None,
            target: None,
        }],
        group: None,
        turn: None,
    };
    let mut all = Vec::new();
    for side in [Side::Sender, Side::Receiver] {
        record.side = side;
        let bytes = record.encode();
        all.push((format!("{side:?}-as-is").to_lowercase(), [&[0], &bytes[..]].concat()));
        all.push((format!("{side:?}-mended").to_lowercase(), [&[1], &bytes[..bytes.len() - 4]].concat()));
    }
    all
}

/// The file of schedules and sources.
fn upkeep_file() -> Seeds {
    let epoch = RoleEpoch { counter: 1, identity: Uuid::from_u128(9) };
    let set = Some(SetStamp { epoch, number: 4, base: Some(Uuid::from_u128(8)) });
    let made = |number, of, set| Made { snapshot: Uuid::from_u128(number), of, set };
    let bytes = upkeep::encode(&[VolumeUpkeep {
        volume: VOLUME,
        schedule: Some(Schedule::default()),
        made: vec![made(11, None, None), made(12, Some(Uuid::from_u128(3)), set)],
        source: "/store/v".to_owned(),
        remote_command: String::new(),
        checked_us: 5,
    }]);
    vec![
        ("as-is".to_owned(), [&[0], &bytes[..]].concat()),
        ("mended".to_owned(), [&[1], &bytes[..bytes.len() - 4]].concat()),
    ]
}

/// The file of groups.
fn groups_file() -> Seeds {
    let member = |name: &str, uuid| GroupMember { volume: name.to_owned(), uuid: Uuid::from_u128(uuid) };
    let members = vec![member("data", 2), member("log", 3)];
    let bytes = group::encode(&[GroupRecord { name: "db".to_owned(), uuid: VOLUME, members }]);
    vec![
        ("as-is".to_owned(), [&[0], &bytes[..]].concat()),
        ("mended".to_owned(), [&[1], &bytes[..bytes.len() - 4]].concat()),
    ]
}

/// What another store answers when it is compared with this one.
fn digests() -> Seeds {
    let answer = |reached: u64, spans: &[u64]| {
        let span = |at: &u64| Span { at: *at, in_use: 4096, digest: Some(Digest::of_zeros()) };
        let spans = spans.iter().map(span).collect();
        let answer = Answer { name: "s".to_owned(), size: 3 * CHUNK, block_size: 4096, reached, spans };
        serde_json::to_string(&answer).unwrap()
    };
    let equal = [answer(0, &[]), answer(3 * CHUNK, &[CHUNK])];
    let differs = answer(CHUNK * 3, &[0, CHUNK]).replacen(char::is_numeric, "1", 1);
    let other = [answer(0, &[]), answer(CHUNK, &[0]), differs, answer(CHUNK, &[4096])];
    vec![
        ("equal".to_owned(), equal.join("\n").into_bytes()),
        ("in-parts".to_owned(), other.join("\n").into_bytes()),
    ]
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
        ("files", files()),
        ("receive", streams()),
        ("talk", talk()),
        ("server", answers()),
        ("frames", connection()),
        ("sessions", session_files()),
        ("upkeep", upkeep_file()),
        ("groups", groups_file()),
        ("compare", digests()),
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
