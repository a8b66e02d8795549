//! Any bytes, as a stream: an error or a verified stream, never a panic, and never
//! more memory than one chunk. With the first byte odd, the checksums of the frames
//! are put right first, so that the fuzzer gets behind them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use snapvol::delta::{Decoder, ExtentKind};
use snapvol::format::stream::{PREAMBLE_SIZE, PREFIX_SIZE, encode_preamble};

fuzz_target!(|data: &[u8]| {
    let Some((choice, data)) = data.split_first() else { return };
    let mut bytes = data.to_vec();
    if choice & 1 == 1 {
        mend(&mut bytes);
    }
    let mut input = bytes.as_slice();
    let Ok(mut decoder) = Decoder::new(&mut input) else { return };
    let (size, mut floor) = (decoder.header().geometry.size, decoder.header().resume_from);
    while let Ok(Some(chunk)) = decoder.next_chunk() {
        let mut data_bytes = 0;
        for (extent, bytes) in chunk.pieces() {
            assert!(extent.offset >= floor && extent.end() <= size);
            floor = extent.end();
            assert!(extent.kind == ExtentKind::Discard || bytes.len() as u64 == extent.len);
            data_bytes += bytes.len();
        }
        assert_eq!(data_bytes, chunk.data.len());
    }
});

/// Writes the preamble and the checksums of what looks like frames.
fn mend(bytes: &mut [u8]) {
    if bytes.len() < PREAMBLE_SIZE {
        return;
    }
    bytes[..PREAMBLE_SIZE].copy_from_slice(&encode_preamble());
    let mut rest = &mut bytes[PREAMBLE_SIZE..];
    let mut number = 0_u64;
    while rest.len() >= PREFIX_SIZE {
        let (prefix, after) = rest.split_at_mut(PREFIX_SIZE);
        let word = |at: usize| u32::from_le_bytes([prefix[at], prefix[at + 1], prefix[at + 2], prefix[at + 3]]);
        let body = (word(16) as usize).saturating_mul(12).saturating_add(word(20) as usize);
        if body > after.len() {
            return;
        }
        let (body, after) = after.split_at_mut(body);
        prefix[8..16].copy_from_slice(&number.to_le_bytes());
        prefix[24..28].copy_from_slice(&crc32c::crc32c(body).to_le_bytes());
        let crc = crc32c::crc32c(&prefix[..28]);
        prefix[28..].copy_from_slice(&crc.to_le_bytes());
        number += 1;
        rest = after;
    }
}
