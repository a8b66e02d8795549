//! Any bytes, as the file of a session: an error or what can be written again. With the first
//! byte odd, the checksum is put right first.
//! `cargo fuzz run --fuzz-dir tests/fuzz sessions fixtures/fuzz/sessions`

#![no_main]

use libfuzzer_sys::fuzz_target;
use snapvol::format::session::SessionRecord;

fuzz_target!(|data: &[u8]| {
    let Some((choice, data)) = data.split_first() else { return };
    let mut bytes = data.to_vec();
    if choice & 1 == 1 {
        let crc = crc32c::crc32c(&bytes);
        bytes.extend(crc.to_le_bytes());
    }
    if let Ok(record) = SessionRecord::decode(&bytes) {
        let again = record.encode();
        assert_eq!(SessionRecord::decode(&again).expect("it was just encoded"), record);
    }
});
