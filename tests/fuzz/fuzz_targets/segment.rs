//! Any bytes, as a segment's header and as a group: an error or what was written. With
//! the first byte odd, the checksums are put right first.
//! `cargo fuzz run --fuzz-dir tests/fuzz segment fixtures/fuzz/segment`

#![no_main]

use libfuzzer_sys::fuzz_target;
use snapvol::format::segment::{
    ENTRY_SIZE, GROUP_COUNT_MAX, GROUP_FIXED_SIZE, GroupHeader, GroupOf, SegmentHeader, group_size, images_at,
};

fuzz_target!(|data: &[u8]| {
    let Some((choice, data)) = data.split_first() else { return };
    let mut bytes = data.to_vec();
    if choice & 1 == 1 {
        mend(&mut bytes, choice & 2 == 2);
    }
    if let Ok(header) = SegmentHeader::decode(&bytes) {
        assert_eq!(SegmentHeader::decode(&header.encode()).expect("it was just encoded"), header);
    }
    if let Ok(header) = GroupHeader::decode(&bytes) {
        assert!(header.entries.len() <= GROUP_COUNT_MAX);
        assert_eq!(GroupHeader::decode(&header.encode()).expect("it was just encoded"), header);
        assert_eq!(GroupHeader::decode_tail(&header.encode_tail()).expect("it was just encoded"), header);
        let of = GroupOf {
            volume: header.volume,
            segment: header.segment,
            generation: header.generation,
            block_size: header.block_size,
        };
        let peeked = GroupHeader::peek(&bytes, &of);
        assert!(header.entries.is_empty() || peeked == Some(header.entries.len()));
    }
    let of = GroupOf { volume: Default::default(), segment: 1, generation: 1, block_size: 4096 };
    for count in [GroupHeader::peek(&bytes, &of), GroupHeader::peek_tail(&bytes, &of)].into_iter().flatten() {
        assert!(group_size(count, 4096) >= images_at(count) as u64);
    }
    if let Ok(header) = GroupHeader::decode_tail(&bytes) {
        assert!(header.entries.len() <= GROUP_COUNT_MAX);
    }
});

fn mend(bytes: &mut [u8], group: bool) {
    if bytes.len() < GROUP_FIXED_SIZE {
        return;
    }
    if group {
        bytes[..8].copy_from_slice(b"SVGROUP1");
        let count = usize::from(u16::from_le_bytes([bytes[32], bytes[33]])) % (GROUP_COUNT_MAX + 1);
        bytes[34..36].fill(0);
        let end = (GROUP_FIXED_SIZE + count * ENTRY_SIZE).min(bytes.len());
        let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes[..60]), &bytes[GROUP_FIXED_SIZE..end]);
        bytes[60..64].copy_from_slice(&crc.to_le_bytes());
    } else {
        bytes[..12].copy_from_slice(b"SVSEGM01\x01\0\0\0");
        let crc = crc32c::crc32c(&bytes[..40]);
        bytes[40..44].copy_from_slice(&crc.to_le_bytes());
    }
}
