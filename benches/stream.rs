//! How fast chunks are encoded and a stream is decoded, in bytes of data a second.

use divan::counter::BytesCount;
use divan::{Bencher, black_box};
use snapvol::delta::{Decoder, Encoder, PlainChunk, SnapshotId, StreamHeader};
use snapvol::types::Geometry;
use uuid::Uuid;

const CHUNK: usize = 1 << 20;
const CHUNKS: u64 = 16;

fn main() {
    divan::main();
}

fn header(compressed: bool) -> StreamHeader {
    StreamHeader {
        stream: Uuid::from_u128(1),
        volume: Uuid::from_u128(2),
        volume_name: "db".to_owned(),
        base: None,
        base_size: 0,
        target: SnapshotId { uuid: Uuid::from_u128(3), name: "now".to_owned() },
        created: "2025-01-01T00:00:00Z".to_owned(),
        geometry: Geometry::new(2 * CHUNKS * CHUNK as u64, 4096, 1).expect("a good geometry"),
        resume_from: 0,
        data_bytes: None,
        discard_bytes: None,
        compressed,
    }
}

/// Half random, half the same byte; one extent, or single blocks with gaps.
fn chunk(number: u64, scattered: bool) -> PlainChunk {
    let mut chunk = PlainChunk::new();
    let mut block = [0; 4096];
    let mut rng = fastrand::Rng::with_seed(number);
    let (base, step) = (number * CHUNK as u64 * 2, if scattered { 8192 } else { 4096 });
    for at in 0..CHUNK as u64 / 4096 {
        rng.fill(&mut block[..2048]);
        chunk.data(base + at * step, &block);
    }
    chunk
}

fn stream(compressed: bool, scattered: bool) -> Vec<u8> {
    let (mut encoder, mut bytes) = Encoder::new(&header(compressed)).expect("a good header");
    for number in 0..CHUNKS {
        let frame = chunk(number, scattered).encode(number + 1, compressed).expect("a chunk");
        bytes.extend_from_slice(&encoder.push(frame));
    }
    bytes.extend(encoder.finish().0);
    bytes
}

#[divan::bench(args = [false, true])]
fn encode(bencher: Bencher<'_, '_>, compressed: bool) {
    let chunk = chunk(0, true);
    bencher.counter(BytesCount::new(CHUNK)).bench_local(|| {
        let (mut encoder, _) = Encoder::new(&header(compressed)).expect("a good header");
        black_box(encoder.push(chunk.encode(1, compressed).expect("a chunk")));
    });
}

#[divan::bench(args = [(false, false), (false, true), (true, true)])]
fn decode(bencher: Bencher<'_, '_>, (compressed, scattered): (bool, bool)) {
    let bytes = stream(compressed, scattered);
    bencher.counter(BytesCount::new(CHUNKS * CHUNK as u64)).bench_local(|| {
        let mut input = bytes.as_slice();
        let mut decoder = Decoder::new(&mut input).expect("a header");
        while let Some(chunk) = decoder.next_chunk().expect("a chunk") {
            black_box(chunk);
        }
    });
}
