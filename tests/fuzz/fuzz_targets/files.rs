//! Any bytes, as the file `deleting`: an error or what can be said again. With the first
//! byte odd, the checksum is put right first.
//! `cargo fuzz run --fuzz-dir tests/fuzz files fixtures/fuzz/files`

#![no_main]

use libfuzzer_sys::fuzz_target;
use snapvol::engine::{decode_deletions, encode_deletions};

fuzz_target!(|data: &[u8]| {
    let Some((choice, data)) = data.split_first() else { return };
    let mut bytes = data.to_vec();
    if choice & 1 == 1 {
        let crc = crc32c::crc32c(&bytes);
        bytes.extend(crc.to_le_bytes());
    }
    if let Ok(deletions) = decode_deletions(&bytes) {
        let again = encode_deletions(&deletions);
        assert_eq!(decode_deletions(&again).expect("it was just encoded"), deletions);
    }
});
