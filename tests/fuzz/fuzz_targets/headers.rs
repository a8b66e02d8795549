//! Any bytes, as the file `store`, the header of the stage and a slot. With the first
//! byte odd, the checksums are put right first.
//! `cargo fuzz run --fuzz-dir tests/fuzz headers fixtures/fuzz/headers`

#![no_main]

use libfuzzer_sys::fuzz_target;
use snapvol::format::slot::{SlotHeader, StageHeader};
use snapvol::format::store::StoreHeader;

fuzz_target!(|data: &[u8]| {
    let Some((choice, data)) = data.split_first() else { return };
    let mended = |magic: &[u8], at: usize| {
        let mut bytes = data.to_vec();
        if choice & 1 == 1 && bytes.len() >= at + 4 {
            bytes[..magic.len()].copy_from_slice(magic);
            let crc = crc32c::crc32c(&bytes[..at]);
            bytes[at..at + 4].copy_from_slice(&crc.to_le_bytes());
        }
        bytes
    };
    if let Ok(header) = StoreHeader::decode(&mended(b"SNAPVOL1", 28)) {
        assert_eq!(StoreHeader::decode(&header.encode()).expect("it was just encoded"), header);
    }
    if let Some(header) = StageHeader::decode(&mended(b"SVSTAGE1", 48)) {
        assert_eq!(StageHeader::decode(&header.encode()), Some(header));
    }
    if let Some(header) = SlotHeader::decode(&mended(b"", 28)) {
        assert_eq!(SlotHeader::decode(&header.encode()), Some(header));
    }
});
