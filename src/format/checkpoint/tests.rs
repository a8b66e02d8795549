use super::*;
use crate::format::page_test::{compare, text};

#[test]
fn the_page_tells_the_header() {
    let header = Header {
        volume: Uuid::from_u128(0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10),
        seq: Seq(0x31),
        generation: 0x32,
        bits: [0x3333, 0x4444],
        set: [0x35, 0x36],
    };
    compare("### Header of a checkpoint", &header.encode(), |field| match field {
        "version" => VERSION.to_le_bytes().to_vec(),
        "volume identity" => header.volume.as_bytes().to_vec(),
        "sequence number" => 0x31u64.to_le_bytes().to_vec(),
        "generation" => 0x32u64.to_le_bytes().to_vec(),
        "bits in section 0" => 0x3333u64.to_le_bytes().to_vec(),
        "bits in section 1" => 0x4444u64.to_le_bytes().to_vec(),
        "set bits in section 0" => 0x35u64.to_le_bytes().to_vec(),
        "set bits in section 1" => 0x36u64.to_le_bytes().to_vec(),
        other => panic!("{other}"),
    });
    assert_eq!(Header::decode(&header.encode()).unwrap(), header);
}

#[test]
fn the_page_tells_table_sectors() {
    let mut states = [PageState::Empty; SECTOR_ENTRIES];
    states[0] = PageState::Bits(0x0102_0304);
    states[1] = PageState::Full;
    let bytes = encode_sector(1, 5, &states);
    compare("### Table sector", &bytes, |field| match field {
        "entries" => bytes[..SECTOR_ENTRIES * ENTRY_LEN].to_vec(),
        "(section + 1) * 2^24 + sector" => (2u32 * (1 << 24) + 5).to_le_bytes().to_vec(),
        other => panic!("{other}"),
    });
    compare("### Entry of a table sector", &bytes[..ENTRY_LEN], |field| match field {
        "checksum of the body" => 0x0102_0304u32.to_le_bytes().to_vec(),
        "kind" => vec![2],
        other => panic!("{other}"),
    });
    assert_eq!(decode_sector(1, 5, &bytes).unwrap(), states);
    assert!(decode_sector(0, 5, &bytes).is_err() && decode_sector(1, 6, &bytes).is_err());
    assert_eq!(decode_sector(1, 9, &[]).unwrap(), [PageState::Empty; SECTOR_ENTRIES]);
}

#[test]
fn the_page_tells_offsets() {
    let text = text();
    assert!(text.contains("2^26 * (section + 1) + 512 * sector"));
    assert!(text.contains("3 * 2^26 + 2^20 * (2 * (page / 256) + section) + 4096 * (page mod 256)"));
    assert_eq!(sector_offset(1, 3), (1 << 26) * 2 + 512 * 3);
    assert_eq!(body_offset(1, 3), 3 * (1 << 26) + (1 << 20) + 4096 * 3);
}
