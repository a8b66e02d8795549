use super::*;
use crate::format::page_test::{compare, text};

fn le32(number: u32) -> Vec<u8> {
    number.to_le_bytes().to_vec()
}

fn le64(number: u64) -> Vec<u8> {
    number.to_le_bytes().to_vec()
}

#[test]
fn the_page_tells_the_header() {
    let header = Header {
        volume: Uuid::from_u128(0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10),
        epochs: Epoch(0x11)..Epoch(0x2222),
        entries: 300,
        bit_pages: 0x41,
        meta_pages: 0x42,
        buckets: 3,
        hash_offset: 1 << 20,
        tables_crc: 0xdead_beef,
    };
    let mut file = header.encode().to_vec();
    compare("### Header of a sealed layer", &file, |field| match field {
        "version" => le32(VERSION),
        "volume identity" => header.volume.as_bytes().to_vec(),
        "first epoch" => le64(0x11),
        "end epoch" => le64(0x2222),
        "file length" => le64((1 << 20) + 3 * 4096),
        "entries" => le64(300),
        "bit pages in the table" => le32(0x41),
        "before-pages in the table" => le32(0x42),
        "offset of the first bucket" => le64(1 << 20),
        "buckets" => le32(3),
        "checksum of both tables" => le32(0xdead_beef),
        other => panic!("{other}"),
    });
    file.resize((1 << 20) + 3 * 4096, 0);
    assert_eq!(Header::decode(&file).unwrap(), header);
}

#[test]
fn the_page_tells_table_entries() {
    let entry = PageEntry { page: 77, kind: PageKind::List, count: 5, crc: 0x0a0b_0c0d, offset: 9000 };
    compare("### Entry of a page table", &entry.encode(), |field| match field {
        "page number" => le64(77),
        "kind" => vec![2],
        "set bits" => vec![5, 0],
        "checksum of the body" => le32(0x0a0b_0c0d),
        "offset of the body in the file" => le64(9000),
        other => panic!("{other}"),
    });
    assert_eq!(PageEntry::decode(&entry.encode(), &(9000..9010)).unwrap(), entry);
    assert!(PageEntry::decode(&entry.encode(), &(9000..9009)).is_err());
}

#[test]
fn the_page_tells_buckets_and_slots() {
    let slot = Slot { block: 1 << 33, addr: 0x0102_0304_0506_0708, crc: 9, damaged: true };
    compare("### Slot of the block map", &slot.encode(), |field| match field {
        "block" => le64(1 << 33),
        "save address" => le64(0x0102_0304_0506_0708),
        "checksum of the before-image" => le32(9),
        "flags" => le32(3),
        other => panic!("{other}"),
    });
    assert_eq!(Slot::decode(&slot.encode()), Some(slot));
    assert_eq!(Slot::decode(&[0; SLOT_LEN]), None);
    let mut bucket = vec![7; BUCKET_LEN];
    bucket[BUCKET_TAIL..].fill(0);
    close_bucket(&mut bucket, 6);
    compare("### Bucket of the block map", &bucket, |field| match field {
        "slots" => vec![7; BUCKET_SLOTS * SLOT_LEN],
        "number of the bucket" => le32(6),
        other => panic!("{other}"),
    });
    assert!(check_bucket(&bucket, 6).is_ok() && check_bucket(&bucket, 7).is_err());
}

#[test]
fn the_page_tells_limits_and_hash() {
    let text = text();
    for fact in [
        format!("1 to {LIST_MAX} set bits"),
        format!("mod\n{BUCKET_SLOTS}."),
        format!("At {BUCKET_LOAD} entries per bucket"),
        format!("{PAGE_BITS_LEN} bytes; bit n"),
        "at a multiple of 4096".to_owned(),
        "2^22".to_owned(),
    ] {
        assert!(text.contains(&fact), "{fact}");
    }
    assert_eq!(PAGES_MAX, 1 << 22);
    // The first output of splitmix64 from state 0, as published with it.
    assert_eq!(hash(0), 0xe220_a839_7b1d_cdaf);
}
