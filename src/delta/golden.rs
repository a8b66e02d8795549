//! The golden streams of `fixtures/stream-v1`: what was written once stays readable.
//!
//! With `SNAPVOL_WRITE_FIXTURES=1` this test writes them instead; that is for a new
//! version of the format, in a new directory, never for the files that are there.

use super::tests::{header, stream_of};
use super::{Decoder, Extent, ExtentKind, StreamHeader};
use crate::error::ErrorKind;
use std::path::PathBuf;

const BLOCK: usize = 4096;
const SIZE: usize = 20 * BLOCK - 512;

/// Byte `at` of the target, simple enough to be made anywhere.
fn content() -> Vec<u8> {
    (0..SIZE).map(|at| u8::try_from((at / BLOCK * 7 + at % 251) % 256).unwrap_or(0)).collect()
}

fn extent(first: usize, blocks: usize, kind: ExtentKind) -> Extent {
    let end = ((first + blocks) * BLOCK).min(SIZE);
    Extent { offset: (first * BLOCK) as u64, len: (end - first * BLOCK) as u64, kind }
}

/// The three streams: name, header, extents.
fn streams() -> Vec<(&'static str, StreamHeader, Vec<Extent>)> {
    use ExtentKind::{Data, Discard};
    let delta = header(SIZE as u64, 4096);
    let mut whole = delta.clone();
    (whole.base, whole.base_size, whole.geometry.granularity) = (None, 0, 8);
    (whole.data_bytes, whole.discard_bytes) = (Some(SIZE as u64), Some(0));
    let mut compressed = delta.clone();
    (compressed.compressed, compressed.resume_from) = (true, 2 * BLOCK as u64);
    vec![
        ("whole", whole, vec![extent(0, 20, Data)]),
        (
            "delta",
            delta,
            vec![extent(0, 1, Data), extent(1, 3, Discard), extent(4, 2, Data), extent(19, 1, Data)],
        ),
        ("compressed", compressed, vec![extent(2, 2, Discard), extent(5, 15, Data)]),
    ]
}

#[test]
fn golden_streams_stay_readable() {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures/stream-v1");
    for (name, header, extents) in streams() {
        let path = dir.join(format!("{name}.stream"));
        if std::env::var_os("SNAPVOL_WRITE_FIXTURES").is_some() {
            let bytes = stream_of(header.clone(), extents.clone(), content());
            let mut bent = bytes.clone();
            bent[300] ^= 0x10;
            std::fs::write(&path, &bytes).unwrap();
            std::fs::write(dir.join(format!("{name}.bent.stream")), bent).unwrap();
            std::fs::write(dir.join(format!("{name}.cut.stream")), &bytes[..bytes.len() - 40]).unwrap();
        }
        let bytes = std::fs::read(&path).unwrap();
        let mut input = bytes.as_slice();
        let mut decoder = Decoder::new(&mut input).unwrap();
        assert_eq!(*decoder.header(), header, "{name}");
        let mut found = Vec::new();
        while let Some(chunk) = decoder.next_chunk().unwrap() {
            for (extent, bytes) in chunk.pieces() {
                let at = usize::try_from(extent.offset).unwrap();
                let expected = &content()[at..at + bytes.len()];
                assert!(bytes == expected, "{name}: {extent:?}");
                found.push(extent);
            }
        }
        assert_eq!(found, extents, "{name}");
        if !header.compressed {
            // Without the compressor in between, the same input gives the same bytes.
            assert!(stream_of(header, extents, content()) == bytes, "{name}: written differently now");
        }
        for (damage, kind) in [("bent", ErrorKind::Corrupt), ("cut", ErrorKind::Interrupted)] {
            let bytes = std::fs::read(dir.join(format!("{name}.{damage}.stream"))).unwrap();
            let mut input = bytes.as_slice();
            let mut decode = || -> crate::Result<()> {
                let mut decoder = Decoder::new(&mut input)?;
                while decoder.next_chunk()?.is_some() {}
                Ok(())
            };
            assert_eq!(decode().unwrap_err().kind(), kind, "{name}.{damage}");
        }
    }
}
