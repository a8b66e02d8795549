//! Any bytes, as a journal: an error or records that apply, never a panic. With the
//! first byte odd, the rest is cut into payloads (two bytes of length each) and put into
//! frames whose checksums hold, so that the fuzzer gets behind them.
//! `cargo fuzz run --fuzz-dir tests/fuzz journal fixtures/fuzz/journal`

#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use snapvol::format::journal::{FileHeader, Found, Frame, Record, decode_frame, encode_frame};
use snapvol::store::replay::parse;
use snapvol::types::Seq;
use uuid::Uuid;

const NUMBER: u64 = 1;

fuzz_target!(|data: &[u8]| {
    let Some((choice, data)) = data.split_first() else { return };
    let bytes = if choice & 1 == 1 { framed(data) } else { Bytes::copy_from_slice(data) };
    let Ok(replay) = parse(&bytes) else { return };
    assert!(replay.end <= bytes.len() as u64);
    let Some((_, Record::State(first))) = replay.records.first() else { unreachable!("no state") };
    let mut state = (**first).clone();
    for (seq, record) in &replay.records {
        // What was understood can be said again.
        let again = Bytes::from(encode_frame(NUMBER, Frame { seq: *seq, durable: 0 }, record).concat());
        let Ok(Found::Frame(_, same, _)) = decode_frame(NUMBER, &again) else { panic!("{record:?}") };
        assert_eq!(&same, record);
        state.apply(record);
    }
});

/// A journal whose frames have these payloads.
fn framed(mut data: &[u8]) -> Bytes {
    let mut out = FileHeader { volume: Uuid::from_u128(1), number: NUMBER }.encode();
    let mut seq = 1_u64;
    while let [low, high, rest @ ..] = data {
        let len = usize::from(u16::from_le_bytes([*low, *high])).min(rest.len());
        let (payload, after) = rest.split_at(len);
        data = after;
        let whole = encode_frame(NUMBER, Frame { seq: Seq(seq), durable: 0 }, &Record::Close).concat();
        let mut head = whole[..32].to_vec();
        head[4..8].copy_from_slice(&u32::try_from(len).expect("two bytes").to_le_bytes());
        let crc = crc32c::crc32c_append(crc32c::crc32c(&head), payload);
        out.extend(head);
        out.extend(crc.to_le_bytes());
        out.extend([0; 4]);
        out.extend(payload);
        seq += 1;
    }
    Bytes::from(out)
}
