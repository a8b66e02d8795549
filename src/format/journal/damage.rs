//! The journal's frames: every kind comes back, and nothing that was changed does.

use super::super::state::tests::{full, layer, receive, snapshot, stamp};
use super::*;

const NUMBER: u64 = 5;

/// At least one record of every kind, with and without what may be missing.
fn all() -> Vec<Record> {
    let uuid = Uuid::from_u128(0x1234);
    let image = |block, data: &'static [u8]| AfterImage {
        seq: Seq(block + 1),
        block: Block(block),
        epoch: Epoch(3),
        data: Bytes::from_static(data),
    };
    vec![
        Record::State(Box::new(full())),
        Record::Open { boot: [7; 16] },
        Record::Close,
        Record::MetaSet { epoch: Epoch(1), guarded: true, ranges: vec![(0, 1), (100, 1 << 20)] },
        Record::MetaSet { epoch: Epoch(1), guarded: false, ranges: Vec::new() },
        Record::MetaClear { epoch: Epoch(2), ranges: vec![(5, 6)] },
        Record::Barrier { up_to: Seq(77) },
        Record::AfterImages(vec![image(1, b"one"), image(1 << 30, b""), image(3, &[9; 600])]),
        Record::Settled { seqs: vec![Seq(1), Seq(2)] },
        Record::Take { snapshot: snapshot("s", &["t"]), batch: Some(uuid), received: false },
        Record::Take { snapshot: snapshot("_before", &[]), batch: None, received: true },
        Record::Confirmed { batch: uuid },
        Record::Delete {
            snapshots: vec![uuid, Uuid::nil()],
            removed: vec![Epoch(1), Epoch(2)],
            added: vec![layer(1, 3)],
            ends_receive: true,
            remembered: true,
        },
        Record::Hold { snapshot: uuid, tag: "backup".to_owned() },
        Record::Release { snapshot: uuid, tag: "backup".to_owned() },
        Record::Resize { size: 1 << 40 },
        Record::Seal { layers: vec![layer(1, 2), layer(2, 9)], unsealed: Epoch(9) },
        Record::Segment { segment: 3, generation: 4 },
        Record::Mark { segment: 3, offset: 8192, closed: None },
        Record::Mark { segment: 3, offset: 8192, closed: Some(Epoch(2)) },
        Record::Freed { segment: 3 },
        Record::RollbackBegin { snapshot: uuid },
        Record::RollbackEnd { size: 512 },
        Record::Receive(None),
        Record::Receive(Some(receive())),
        Record::Role(Role::Secondary),
        Record::Policy(OnFull::Readonly),
        Record::Lineage(vec![stamp().epoch, stamp().epoch]),
        Record::Forget { bookmarks: vec![uuid, Uuid::nil()] },
        Record::Active { ranges: vec![(0, 1024), (1 << 20, 2048)] },
    ]
}

/// A frame with a checksum that fits, whatever its payload.
fn frame_of(payload: &[u8]) -> Bytes {
    let mut head = Put::default();
    head.u32(FRAME_MAGIC);
    head.count(payload.len());
    head.u64(9);
    head.u64(0);
    head.u64(NUMBER);
    let crc = crc32c::crc32c_append(crc32c::crc32c(&head.0), payload);
    head.u32(crc);
    head.u32(0);
    head.0.extend_from_slice(payload);
    Bytes::from(head.0)
}

fn bytes_of(record: &Record) -> Vec<u8> {
    encode_frame(NUMBER, Frame { seq: Seq(9), durable: 64 }, record).concat()
}

fn decode(bytes: Vec<u8>) -> Option<(Frame, Record, usize)> {
    match decode_frame(NUMBER, &Bytes::from(bytes)) {
        Ok(Found::Frame(frame, record, len)) => Some((frame, record, len)),
        Ok(Found::Nothing) | Err(_) => None,
    }
}

#[test]
fn every_kind_comes_back() {
    for record in all() {
        let bytes = bytes_of(&record);
        let (frame, found, len) = decode([bytes.as_slice(), &[1; 100]].concat()).unwrap();
        assert_eq!((frame, len), (Frame { seq: Seq(9), durable: 64 }, bytes.len()), "{record:?}");
        assert_eq!(found, record);
        // A file's frames are no other file's.
        let other = decode_frame(NUMBER + 1, &Bytes::from(bytes)).unwrap();
        assert!(matches!(other, Found::Nothing), "{record:?}");
    }
}

#[test]
fn a_frame_that_was_cut_is_none() {
    for record in all() {
        let bytes = bytes_of(&record);
        for len in 0..bytes.len() {
            assert!(decode(bytes[..len].to_vec()).is_none(), "{len} bytes of {record:?}");
        }
    }
}

#[test]
fn a_frame_with_one_other_bit_is_none() {
    for record in all() {
        let bytes = bytes_of(&record);
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            // Followed by enough bytes for a length that grew.
            bad.resize(bytes.len() + 4096, 0);
            assert!(decode(bad).is_none(), "bit {bit} of {record:?}");
        }
    }
}

/// The checksum holds and the fields make no sense, or stop, or go on: an error, and no
/// more memory than the payload can account for.
#[test]
fn payloads_that_are_no_records_are_damage() {
    let refused = |payload: &[u8]| {
        let error = decode_frame(NUMBER, &frame_of(payload)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{payload:?}");
    };
    refused(&[]);
    for kind in [0, 11, 25, 255] {
        refused(&[kind]);
    }
    for record in all() {
        let payload = bytes_of(&record).split_off(FRAME_SIZE);
        refused(&[payload.as_slice(), &[0]].concat());
        for len in 0..payload.len() {
            refused(&payload[..len]);
        }
    }
    // Counts that no payload can hold.
    for (kind, before) in [(4, 9), (5, 8), (7, 0), (8, 0), (12, 0), (16, 0), (13, 16)] {
        let mut payload = vec![kind];
        payload.resize(1 + before, 0);
        payload.extend([255; 4]);
        payload.extend([0; 64]);
        refused(&payload);
    }
    // Ranges: empty, beyond every volume, wrapping.
    for (start, count) in [(0, 0), (1 << 40, 1), (u64::MAX, 2), (0, u64::MAX)] {
        let mut payload = Put::default();
        payload.u8(5);
        payload.u64(1);
        put_ranges(&mut payload, &[(start, count)]);
        refused(&payload.0);
    }
    // A layer that covers no epoch.
    for (first, end) in [(3, 3), (4, 3)] {
        let mut payload = Put::default();
        put_record(&mut payload, &Record::Seal { layers: vec![layer(first, end)], unsealed: Epoch(5) });
        refused(&payload.0);
    }
}

#[test]
fn random_payloads_never_panic() {
    let mut rng = fastrand::Rng::with_seed(1);
    let good: Vec<Vec<u8>> = all().iter().map(|r| bytes_of(r).split_off(FRAME_SIZE)).collect();
    for _ in 0..20_000 {
        let payload = if rng.bool() {
            // Something that begins like a record.
            let mut payload = good[rng.usize(0..good.len())].clone();
            for _ in 0..rng.usize(1..4) {
                let at = rng.usize(0..payload.len());
                payload[at] = if rng.bool() { 255 } else { rng.u8(..) };
            }
            payload
        } else {
            let mut payload = vec![0; rng.usize(0..200)];
            rng.fill(&mut payload);
            payload
        };
        if let Ok(Found::Frame(_, record, len)) = decode_frame(NUMBER, &frame_of(&payload)) {
            assert_eq!(len, FRAME_SIZE + payload.len());
            // What was understood can be said again, and applied.
            assert_eq!(decode(bytes_of(&record)).unwrap().1, record);
            let mut state = full();
            state.apply(&record);
        }
    }
}

#[test]
fn a_length_beyond_the_limit_is_none() {
    let mut bytes = frame_of(&[3]).to_vec();
    let len = u32::try_from(PAYLOAD_SIZE_MAX + 1).unwrap();
    bytes[4..8].copy_from_slice(&len.to_le_bytes());
    assert!(decode(bytes).is_none());
}

#[test]
fn the_header_of_the_file() {
    let header = FileHeader { volume: Uuid::from_u128(1), number: 7 };
    let bytes = header.encode();
    assert_eq!(bytes.len(), HEADER_SIZE);
    assert_eq!(FileHeader::decode(&bytes).unwrap(), header);
    for len in 0..HEADER_SIZE {
        assert_eq!(FileHeader::decode(&bytes[..len]).unwrap_err().kind(), ErrorKind::Corrupt);
    }
    for bit in 0..HEADER_SIZE * 8 {
        let mut bad = bytes.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(FileHeader::decode(&bad).unwrap_err().kind(), ErrorKind::Corrupt, "bit {bit}");
    }
    let mut newer = bytes;
    newer[8] = 2;
    let crc = crc32c::crc32c(&newer[..HEADER_SIZE - 4]).to_le_bytes();
    newer[HEADER_SIZE - 4..].copy_from_slice(&crc);
    assert_eq!(FileHeader::decode(&newer).unwrap_err().kind(), ErrorKind::Unsupported);
}
