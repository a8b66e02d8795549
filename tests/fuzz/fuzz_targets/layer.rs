//! Any bytes, as a sealed layer: an error or a layer whose every part can be asked, never
//! a panic. With the first byte odd, the checksums of header, tables, bodies and buckets
//! are put right first.
//! `cargo fuzz run --fuzz-dir tests/fuzz layer fixtures/fuzz/layer`

#![no_main]

use libfuzzer_sys::fuzz_target;
use snapvol::format::layer::{
    BUCKET_LEN, HEADER_LEN, Header, PAGE_BITS, PAGE_ENTRY_LEN, PageEntry, close_bucket,
};
use snapvol::io::Mapped;
use snapvol::map::SealedLayer;
use snapvol::types::Block;
use std::sync::Arc;

fuzz_target!(|data: &[u8]| {
    let Some((choice, data)) = data.split_first() else { return };
    let mut bytes = data.to_vec();
    if choice & 1 == 1 {
        mend(&mut bytes);
    }
    let Ok(header) = Header::decode(&bytes) else { return };
    let mapped = Mapped::new(Arc::new(bytes));
    let Ok(layer) = SealedLayer::open(mapped, header.volume, header.epochs) else { return };
    let whole = layer.verify().is_ok();
    for page in layer.bit_pages().take(64) {
        let _ = layer.bits_page(page);
        for bit in [0, 1, 77, u64::from(PAGE_BITS) - 1] {
            let block = Block(page * u64::from(PAGE_BITS) + bit);
            let (bit, image) = (layer.bit(block), layer.image(block));
            assert!(!whole || bit.expect("it was verified") == image.expect("it was verified").is_some());
        }
    }
    for page in layer.meta_pages().take(64) {
        let _ = layer.meta_page(page);
    }
    let entries = layer.entries().take(1 << 16).filter(Result::is_ok).count() as u64;
    assert!(!whole || entries == layer.entry_count().min(1 << 16));
});

/// Writes the checksums of what the header says is there.
fn mend(bytes: &mut [u8]) {
    if bytes.len() < HEADER_LEN {
        return;
    }
    bytes[..8].copy_from_slice(b"SVLAYER1");
    bytes[8..16].copy_from_slice(&[1, 0, 0, 0, 0, 0, 0, 0]);
    let len = bytes.len() as u64;
    bytes[48..56].copy_from_slice(&len.to_le_bytes());
    bytes[88..124].fill(0);
    let close = |bytes: &mut [u8]| {
        let crc = crc32c::crc32c(&bytes[..124]);
        bytes[124..128].copy_from_slice(&crc.to_le_bytes());
    };
    close(bytes);
    let Ok(header) = Header::decode(bytes) else { return };
    let at = |offset: u64| usize::try_from(offset).unwrap_or(usize::MAX);
    let (start, end) = (at(header.bit_table().start), at(header.meta_table().end));
    if end > bytes.len() {
        return;
    }
    for entry in (start..end).step_by(PAGE_ENTRY_LEN) {
        let Ok(page) = PageEntry::decode(&bytes[entry..entry + PAGE_ENTRY_LEN], &header.bodies()) else { continue };
        let body = at(u64::from_le_bytes(bytes[entry + 16..entry + 24].try_into().expect("eight bytes")));
        if page.body_len() > 0
            && let Some(body) = bytes.get(body..body.saturating_add(page.body_len()))
        {
            let crc = crc32c::crc32c(body);
            bytes[entry + 12..entry + 16].copy_from_slice(&crc.to_le_bytes());
        }
    }
    let crc = crc32c::crc32c(&bytes[start..end]);
    bytes[84..88].copy_from_slice(&crc.to_le_bytes());
    close(bytes);
    let first = at(u64::from_le_bytes(bytes[72..80].try_into().expect("eight bytes")));
    if let Some(buckets) = bytes.get_mut(first..) {
        for (number, bucket) in (0..).zip(buckets.chunks_exact_mut(BUCKET_LEN)) {
            close_bucket(bucket, number);
        }
    }
}
