//! Any bytes, as a checkpoint: an error or two bit maps, never a panic. After the header,
//! each read takes the next bytes of the input. With the first byte odd, checksums of the
//! header and of table sectors are put right first.
//! `cargo fuzz run --fuzz-dir tests/fuzz checkpoint fixtures/fuzz/checkpoint`

#![no_main]

use libfuzzer_sys::fuzz_target;
use snapvol::format::checkpoint::{Header, SECTOR_LEN, sector_offset};
use snapvol::map::checkpoint::Loader;

/// What the fuzzer's bytes are for: every read gets no more than this.
const READ_MAX: usize = 4096;

fuzz_target!(|data: &[u8]| {
    let Some((choice, data)) = data.split_first() else { return };
    let mend = choice & 1 == 1;
    if data.len() < SECTOR_LEN {
        return;
    }
    let (head, mut rest) = data.split_at(SECTOR_LEN);
    let mut head = head.to_vec();
    if mend {
        head[..16].copy_from_slice(b"SVCHECK1\x01\0\0\0\0\0\0\0");
        head[80..].fill(0);
        close(&mut head);
    }
    let Ok(header) = Header::decode(&head) else { return };
    let Ok(mut loader) = Loader::new(&head, header.volume) else { return };
    for read in loader.tables() {
        let mut bytes = take(&mut rest, read.len);
        if mend {
            let section = usize::from(read.offset >= sector_offset(1, 0));
            let first = (read.offset - sector_offset(section, 0)) / SECTOR_LEN as u64;
            for (number, sector) in (first..).zip(bytes.chunks_exact_mut(SECTOR_LEN)) {
                let mark = ((section as u64 + 1) << 24) | number;
                sector[504..508].copy_from_slice(&mark.to_le_bytes()[..4]);
                close(sector);
            }
        }
        if loader.table(&bytes).is_err() {
            return;
        }
    }
    for read in loader.bodies() {
        let bytes = take(&mut rest, read.len);
        if loader.body(read, &bytes).is_err() {
            return;
        }
    }
    if let Ok(checkpoint) = loader.finish() {
        assert_eq!([checkpoint.meta.count(), checkpoint.stale.count()], header.set);
    }
});

fn take(rest: &mut &[u8], len: usize) -> Vec<u8> {
    let (bytes, after) = rest.split_at(len.min(READ_MAX).min(rest.len()));
    *rest = after;
    bytes.to_vec()
}

fn close(sector: &mut [u8]) {
    let crc = crc32c::crc32c(&sector[..508]);
    sector[508..512].copy_from_slice(&crc.to_le_bytes());
}
