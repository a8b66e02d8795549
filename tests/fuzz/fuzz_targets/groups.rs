//! Any bytes, as the file `groups`: an error or what can be written again. With the first byte
//! odd, the checksum is put right first.
//! `cargo fuzz run --fuzz-dir tests/fuzz groups fixtures/fuzz/groups`

#![no_main]

use libfuzzer_sys::fuzz_target;
use snapvol::format::group::{decode, encode};

fuzz_target!(|data: &[u8]| {
    let Some((choice, data)) = data.split_first() else { return };
    let mut bytes = data.to_vec();
    if choice & 1 == 1 {
        let crc = crc32c::crc32c(&bytes);
        bytes.extend(crc.to_le_bytes());
    }
    if let Ok(groups) = decode(&bytes) {
        assert_eq!(decode(&encode(&groups)).expect("it was just encoded"), groups);
    }
});
