use super::super::roles::{ResyncRecord, RoleState};
use super::super::state::{CheckpointRecord, SegmentRecord, TouchedRecord};
use super::*;
use crate::format::page_test::{compare, text};
use crate::types::{Geometry, SetId, SetStamp};
use std::collections::BTreeMap;

fn le32(number: u32) -> Vec<u8> {
    number.to_le_bytes().to_vec()
}

fn le64(number: u64) -> Vec<u8> {
    number.to_le_bytes().to_vec()
}

fn id(number: u128) -> Uuid {
    Uuid::from_u128(number)
}

fn snapshot() -> SnapshotRecord {
    SnapshotRecord {
        uuid: id(1),
        name: "monday".into(),
        created_us: 2,
        epoch: Epoch(3),
        size: 4096,
        in_use: 1,
        holds: vec!["tape".into(), String::new()],
        set: Some(stamp()),
    }
}

fn stamp() -> SetStamp {
    SetStamp { epoch: RoleEpoch { counter: 2, identity: id(6) }, number: 5, base: Some(id(8)) }
}

fn layer() -> LayerRecord {
    LayerRecord {
        first: Epoch(3),
        end: Epoch(5),
        entries: 7,
        live: vec![(1, 4), (2, 3)],
        version: 9,
        pages: 4,
    }
}

fn bookmark() -> BookmarkRecord {
    BookmarkRecord {
        uuid: id(4),
        name: "_set-5".into(),
        created_us: 6,
        epoch: Epoch(2),
        size: 1 << 30,
        set: stamp(),
    }
}

fn receive() -> ReceiveRecord {
    ReceiveRecord {
        target: id(4),
        name: "tuesday".into(),
        created_us: 5,
        size: 8192,
        base: Some(id(1)),
        before: None,
        durable: 4096,
        aborting: true,
        arrived: false,
        set: Some(stamp()),
        begun_us: 6,
    }
}

fn resync() -> ResyncRecord {
    let lineage = vec![stamp().epoch];
    ResyncRecord { session: id(11), peer: id(12), common: Some(id(13)), diverged: id(14), lineage }
}

fn turn() -> TurnRecord {
    TurnRecord {
        role: Role::Secondary,
        standing: Standing::Fenced,
        lineage: vec![stamp().epoch, stamp().epoch],
        restart: Some(SetId { stamp: stamp(), target: id(15) }),
        operation: Some(id(16)),
        rollback: Some(id(17)),
        resync: Some(resync()),
    }
}

fn state() -> VolumeState {
    let segment = SegmentRecord { generation: 2, mark: 4096, closed: Some(Epoch(4)) };
    VolumeState {
        seq: Seq(77),
        epoch: Epoch(6),
        unsealed: Epoch(5),
        checkpoint: CheckpointRecord { file: 2, seq: Seq(70), tail_pages: true },
        snapshots: vec![snapshot(), snapshot()],
        layers: vec![layer()],
        segments: BTreeMap::from([(1, segment.clone()), (2, segment)]),
        rollback: Some(id(1)),
        receive: Some(receive()),
        lineage: vec![stamp().epoch, stamp().epoch],
        last_cut: 31,
        bookmarks: vec![bookmark(), bookmark()],
        touched: vec![TouchedRecord { mark: Epoch(2), file: 70 }, TouchedRecord { mark: Epoch(4), file: 0 }],
        active: vec![(0, 1024), (4096, 1024)],
        roles: RoleState {
            standing: Standing::HandingOver,
            restart: Some(SetId { stamp: stamp(), target: id(15) }),
            operation: Some(id(16)),
            resync: Some(resync()),
            received_us: 32,
        },
        ..VolumeState::new(
            id(9),
            Geometry::new(1 << 30, 4096, 8).unwrap(),
            OnFull::DropOldest,
            Role::Secondary,
        )
    }
}

/// One record of each kind, with something in every list.
fn records() -> Vec<(&'static str, Record)> {
    let ranges = vec![(1, 2), (8, 1)];
    let image = |seq| AfterImage {
        seq: Seq(seq),
        block: Block(3),
        epoch: Epoch(2),
        data: Bytes::from(seq.to_le_bytes().repeat(64)),
    };
    vec![
        ("State", Record::State(Box::new(state()))),
        ("Open", Record::Open { boot: [7; 16] }),
        ("Close", Record::Close),
        ("MetaSet", Record::MetaSet { epoch: Epoch(1), guarded: true, ranges: ranges.clone() }),
        ("MetaClear", Record::MetaClear { epoch: Epoch(1), ranges }),
        ("Barrier", Record::Barrier { up_to: Seq(5) }),
        ("AfterImages", Record::AfterImages(vec![image(1), image(2)])),
        ("Settled", Record::Settled { seqs: vec![Seq(1), Seq(2)] }),
        ("Take", Record::Take { snapshot: snapshot(), batch: Some(id(3)), received: false }),
        ("Confirmed", Record::Confirmed { batch: id(3) }),
        (
            "Delete",
            Record::Delete {
                snapshots: vec![id(1), id(2)],
                removed: vec![Epoch(1)],
                added: vec![layer()],
                ends_receive: false,
                remembered: true,
            },
        ),
        ("Hold", Record::Hold { snapshot: id(1), tag: "tape".into() }),
        ("Release", Record::Release { snapshot: id(1), tag: "tape".into() }),
        ("Resize", Record::Resize { size: 512 }),
        ("Seal", Record::Seal { layers: vec![layer(), layer()], unsealed: Epoch(9) }),
        ("Segment", Record::Segment { segment: 1, generation: 2 }),
        ("Mark", Record::Mark { segment: 1, offset: 4096, closed: Some(Epoch(2)) }),
        ("Freed", Record::Freed { segment: 1 }),
        ("RollbackBegin", Record::RollbackBegin { snapshot: id(1) }),
        ("RollbackEnd", Record::RollbackEnd { size: 512 }),
        ("Receive", Record::Receive(Some(receive()))),
        ("Receive", Record::Receive(None)),
        ("Role", Record::Role(Role::Secondary)),
        ("Policy", Record::Policy(OnFull::Readonly)),
        ("Lineage", Record::Lineage(vec![stamp().epoch, stamp().epoch])),
        ("Forget", Record::Forget { bookmarks: vec![id(1), id(2)] }),
        ("Active", Record::Active { ranges: vec![(0, 1024), (4096, 1024)] }),
        ("Turn", Record::Turn(Box::new(turn()))),
    ]
}

fn encoded(frame: Frame, record: &Record) -> Bytes {
    Bytes::from(encode_frame(5, frame, record).concat())
}

#[test]
fn the_page_tells_the_header() {
    let header = FileHeader { volume: id(0x0102_0304), number: 0x77 };
    let bytes = header.encode();
    compare("### Header of a journal", &bytes, |field| match field {
        "version" => le32(VERSION),
        "volume identity" => header.volume.as_bytes().to_vec(),
        "file number" => le64(0x77),
        other => panic!("{other}"),
    });
    assert_eq!(FileHeader::decode(&bytes).unwrap(), header);
    for at in 0..HEADER_SIZE {
        let mut bad = bytes.clone();
        bad[at] ^= 1;
        assert!(FileHeader::decode(&bad).is_err(), "byte {at}");
    }
}

#[test]
fn the_page_tells_the_frame() {
    let frame = Frame { seq: Seq(0x1111), durable: 0x2222 };
    let bytes = encoded(frame, &Record::Freed { segment: 3 });
    let sum = crc32c::crc32c_append(crc32c::crc32c(&bytes[..32]), &bytes[FRAME_SIZE..]);
    compare("### Head of a frame", &bytes[..FRAME_SIZE], |field| match field {
        "length of the payload in bytes" => le32(5),
        "sequence number" => le64(0x1111),
        "durable" => le64(0x2222),
        "file number" => le64(5),
        "frame checksum" => le32(sum),
        other => panic!("{other}"),
    });
    assert!(text().contains(&format!("at most {} MiB", PAYLOAD_SIZE_MAX >> 20)));
}

#[test]
fn every_record_comes_back() {
    for (name, record) in records() {
        let frame = Frame { seq: Seq(8), durable: 64 };
        let bytes = encoded(frame, &record);
        match decode_frame(5, &bytes).unwrap() {
            Found::Frame(found, back, len) => {
                assert_eq!((found, &back, len), (frame, &record, bytes.len()), "{name}");
            }
            Found::Nothing => panic!("{name}"),
        }
        assert!(matches!(decode_frame(6, &bytes).unwrap(), Found::Nothing), "{name}: another file's frame");
        for cut in [0, FRAME_SIZE - 1, FRAME_SIZE, bytes.len() - 1] {
            let torn = bytes.slice(..cut);
            assert!(matches!(decode_frame(5, &torn).unwrap(), Found::Nothing), "{name} cut at {cut}");
        }
    }
}

/// The page's notation of a record's fields, run over what the codec wrote.
struct Notation {
    structures: BTreeMap<String, String>,
}

impl Notation {
    fn of_the_page() -> (Self, BTreeMap<String, (u8, String)>) {
        let text = text();
        let section = text.split_once("\n### Records\n").unwrap().1.split_once("\n## ").unwrap().0;
        let (mut records, mut structures) = (BTreeMap::new(), BTreeMap::new());
        for line in section.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| ---")) {
            let cells: Vec<&str> = line.split('|').map(str::trim).collect();
            match cells[..] {
                ["", kind, name, fields, _, ""] if kind != "kind" => {
                    records.insert(name.to_owned(), (kind.parse().unwrap(), fields.replace('`', "")));
                }
                ["", name, fields, ""] if name != "structure" => {
                    structures.insert(name.to_owned(), fields.replace('`', ""));
                }
                _ => {}
            }
        }
        (Self { structures }, records)
    }

    /// Takes the fields off the front.
    fn eat(&self, fields: &str, from: &mut Fields<'_>) {
        for field in split(fields) {
            if let Some(inner) = between(field, '[', "]") {
                for _ in 0..from.u32().unwrap() {
                    self.eat(inner, from);
                }
            } else if let Some(inner) = between(field, '(', ")?") {
                if from.flag().unwrap() {
                    self.eat(inner, from);
                }
            } else {
                match field.rsplit(' ').next().unwrap() {
                    "u8" => drop(from.u8().unwrap()),
                    "u32" => drop(from.u32().unwrap()),
                    "u64" => drop(from.u64().unwrap()),
                    "id" => drop(from.uuid().unwrap()),
                    "id?" => drop(from.maybe_uuid().unwrap()),
                    "text" => drop(from.text().unwrap()),
                    "data" => drop(from.bytes(from.0.len()).unwrap()),
                    name => self.eat(&self.structures[name], from),
                }
            }
        }
    }
}

/// Fields apart at the commas that no bracket encloses.
fn split(fields: &str) -> Vec<&str> {
    let (mut depth, mut start, mut out) = (0, 0, Vec::new());
    for (at, c) in fields.char_indices() {
        match c {
            '[' | '(' => depth += 1,
            ']' | ')' => depth -= 1,
            ',' if depth == 0 => {
                out.push(fields[start..at].trim());
                start = at + 1;
            }
            _ => {}
        }
    }
    out.push(fields[start..].trim());
    out.retain(|field| !field.is_empty());
    out
}

fn between<'a>(field: &'a str, open: char, close: &str) -> Option<&'a str> {
    field.strip_suffix(close)?.split_once(open).map(|(_, inner)| inner)
}

#[test]
fn the_page_tells_every_record() {
    let (notation, page) = Notation::of_the_page();
    let mut seen = Vec::new();
    for (name, record) in records() {
        let mut payload = Put::default();
        let images = put_record(&mut payload, &record);
        let mut bytes = payload.0;
        bytes.extend(images.concat());
        let (kind, fields) = &page[name];
        let mut from = Fields(&bytes);
        assert_eq!(from.u8().unwrap(), *kind, "{name}");
        notation.eat(fields, &mut from);
        assert!(from.end().is_ok(), "{name}: the page leaves {} bytes", from.0.len());
        seen.push(name);
    }
    assert!(page.keys().all(|name| seen.contains(&name.as_str())), "{:?}", page.keys());
}

/// Whatever the bytes are, a decoder answers.
#[test]
fn bent_payloads_are_refused_or_read() {
    let mut rng = fastrand::Rng::with_seed(1);
    for (_, record) in records() {
        let mut payload = Put::default();
        let images = put_record(&mut payload, &record);
        let mut bytes = payload.0;
        bytes.extend(images.concat());
        for _ in 0..500 {
            let mut bent = bytes.clone();
            let at = rng.usize(..bent.len());
            bent[at] = rng.u8(..);
            bent.truncate(rng.usize(1..=bent.len()));
            // Either is fine; a panic is not.
            let _ = take_record(&Bytes::from(bent));
        }
    }
}
