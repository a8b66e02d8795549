//! Journals as crashes, bad disks and mix-ups leave them.

use super::*;
use crate::ErrorKind;
use crate::format::journal::{Frame, encode_frame};
use crate::format::state::VolumeState;
use crate::types::{Epoch, Geometry, OnFull, Role};
use uuid::Uuid;

const NUMBER: u64 = 3;

fn header() -> Vec<u8> {
    FileHeader { volume: Uuid::from_u128(1), number: NUMBER }.encode()
}

fn state() -> Record {
    let geometry = Geometry::new(1 << 20, 4096, 1).unwrap();
    Record::State(Box::new(VolumeState::new(Uuid::from_u128(1), geometry, OnFull::Freeze, Role::Primary)))
}

fn set(block: u64) -> Record {
    Record::MetaSet { epoch: Epoch(1), guarded: false, ranges: vec![(block, 1)] }
}

fn frame(seq: u64, durable: u64, record: &Record) -> Vec<u8> {
    encode_frame(NUMBER, Frame { seq: Seq(seq), durable }, record).concat()
}

/// A journal of a state and three changes; the last vouches for `durable`. Also where
/// each frame begins, and the end.
fn journal(durable: u64) -> (Vec<u8>, Vec<usize>) {
    let mut bytes = header();
    let mut starts = Vec::new();
    for (seq, durable, record) in [(1, 0, state()), (2, 0, set(1)), (3, 0, set(2)), (4, durable, set(3))] {
        starts.push(bytes.len());
        bytes.extend(frame(seq, durable, &record));
    }
    starts.push(bytes.len());
    (bytes, starts)
}

fn read(bytes: &[u8]) -> Result<Replay> {
    parse(&Bytes::copy_from_slice(bytes))
}

fn seqs(bytes: &[u8]) -> Vec<u64> {
    read(bytes).unwrap().records.iter().map(|(seq, _)| seq.0).collect()
}

#[track_caller]
fn damaged(bytes: &[u8]) -> String {
    let error = read(bytes).err().expect("this is damage");
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    error.to_string()
}

#[test]
fn a_whole_journal() {
    let (mut bytes, starts) = journal(0);
    let replay = read(&bytes).unwrap();
    assert_eq!((replay.end, replay.clean), (starts[4] as u64, false));
    assert_eq!(seqs(&bytes), [1, 2, 3, 4]);
    bytes.extend(frame(5, 0, &Record::Close));
    assert!(read(&bytes).unwrap().clean);
    bytes.extend(frame(6, 0, &Record::Open { boot: [1; 16] }));
    assert!(!read(&bytes).unwrap().clean);
}

/// Cut anywhere: what is whole counts, the rest was promised to nobody.
#[test]
fn a_torn_tail_ends_the_journal() {
    let (bytes, starts) = journal(0);
    for len in starts[1]..bytes.len() {
        let whole = starts[1..].iter().filter(|end| **end <= len).count();
        let replay = read(&bytes[..len]).unwrap();
        assert_eq!((replay.records.len(), replay.end), (whole, starts[whole] as u64), "{len} bytes");
        // The space behind it may have been allocated, or hold anything.
        for filler in [0, 0xff, b'S'] {
            let mut longer = bytes[..len].to_vec();
            longer.resize(len + 10_000, filler);
            // The bytes that were cut may be those that the filler is made of.
            let completed = starts.get(whole + 1).is_some_and(|end| longer[..*end] == bytes[..*end]);
            let want = starts[whole + usize::from(completed)] as u64;
            assert_eq!(read(&longer).unwrap().end, want, "{len} bytes, then {filler}");
        }
    }
    for len in 0..starts[1] {
        damaged(&bytes[..len]);
    }
}

#[test]
fn a_bad_frame_that_nobody_vouches_for_is_a_torn_tail() {
    let (bytes, starts) = journal(0);
    for at in starts[2]..starts[3] {
        let mut bad = bytes.clone();
        bad[at] ^= 0x10;
        assert_eq!(seqs(&bad), [1, 2], "byte {at}");
    }
}

#[test]
fn a_bad_frame_below_a_durable_mark_is_damage() {
    let (_, starts) = journal(0);
    let (bytes, _) = journal(starts[3] as u64);
    assert_eq!(seqs(&bytes), [1, 2, 3, 4]);
    for at in starts[1]..starts[3] {
        for bit in 0..8 {
            let mut bad = bytes.clone();
            bad[at] ^= 1 << bit;
            let text = damaged(&bad);
            assert!(text.contains("was whole once"), "byte {at}: {text}");
        }
    }
    // The frame that vouches is the youngest: nobody vouches for it.
    let mut bad = bytes.clone();
    *bad.last_mut().unwrap() ^= 1;
    assert_eq!(seqs(&bad), [1, 2, 3]);
    // Exactly up to the bad frame is not beyond it.
    let (mut bytes, _) = journal(starts[2] as u64);
    bytes[starts[2] + 3] ^= 1;
    assert_eq!(seqs(&bytes), [1, 2]);
}

/// Zeros where frames were, and a later frame that vouches for them.
#[test]
fn lost_pages_are_damage() {
    let (_, starts) = journal(0);
    let (mut bytes, _) = journal(starts[3] as u64);
    bytes[starts[1]..starts[3]].fill(0);
    damaged(&bytes);
}

#[test]
fn a_repeated_or_reordered_frame_is_damage() {
    let (bytes, starts) = journal(0);
    let part = |n: usize| &bytes[starts[n]..starts[n + 1]];
    let start = &bytes[..starts[1]];
    for order in [&[1, 1][..], &[2, 1], &[1, 2, 3, 1], &[0]] {
        let mixed = order.iter().fold(start.to_vec(), |all, n| [&all, part(*n)].concat());
        assert!(damaged(&mixed).contains("out of order"), "{order:?}");
    }
    // Numbers that were taken for the stage leave gaps; that is no damage.
    assert_eq!(seqs(&[start, part(2)].concat()), [1, 3]);
}

#[test]
fn frames_of_another_journal_are_not_looked_at() {
    let (_, starts) = journal(0);
    let (bytes, _) = journal(0);
    let stale = encode_frame(NUMBER - 1, Frame { seq: Seq(99), durable: u64::MAX }, &set(9)).concat();
    for cut in &starts[1..] {
        let mixed = [&bytes[..*cut], &stale, &stale].concat();
        assert_eq!(read(&mixed).unwrap().end, *cut as u64);
    }
}

#[test]
fn the_first_record_is_a_state() {
    assert!(damaged(&header()).contains("whole state"));
    assert!(damaged(&[header(), frame(1, 0, &set(1))].concat()).contains("whole state"));
    assert!(damaged(&[header(), vec![0; 8192]].concat()).contains("whole state"));
}

#[test]
fn damage_in_header_or_state_is_never_a_torn_tail() {
    let (bytes, starts) = journal(0);
    for at in 0..starts[1] {
        let mut bad = bytes.clone();
        bad[at] ^= 1;
        damaged(&bad);
    }
}

/// A tail of nothing but the frames' magic is looked through in reasonable time.
#[test]
fn a_tail_full_of_magic() {
    let (mut bytes, starts) = journal(0);
    bytes.extend(b"SVJF".repeat(1 << 18));
    let begun = std::time::Instant::now();
    assert_eq!(read(&bytes).unwrap().end, starts[4] as u64);
    assert!(begun.elapsed().as_secs() < 20);
}

#[test]
fn random_bytes_are_no_journal() {
    let mut rng = fastrand::Rng::with_seed(4);
    let (bytes, starts) = journal(200);
    for _ in 0..5_000 {
        let mut bad = bytes.clone();
        for _ in 0..rng.usize(1..6) {
            let at = rng.usize(0..bad.len());
            bad[at] = rng.u8(..);
        }
        bad.truncate(rng.usize(0..=bad.len()));
        if let Ok(replay) = read(&bad) {
            assert!(replay.end <= starts[4] as u64);
        }
    }
}
