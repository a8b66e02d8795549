//! Streams of random deltas: whole, cut, bent, reordered and resumed.

#![allow(clippy::cast_possible_truncation, reason = "the volumes here are small")]

use super::*;
use crate::error::{Error, ErrorKind, Result};
use crate::types::Geometry;
use bytes::Bytes;
use futures::FutureExt;
use futures::executor::block_on;
use futures::future::{LocalBoxFuture, ready};
use std::io::Read;
use uuid::Uuid;

/// A volume in memory and the way to it.
struct Sent {
    header: StreamHeader,
    extents: std::vec::IntoIter<Extent>,
    content: Vec<u8>,
    /// Reading beyond this fails.
    broken_from: u64,
}

impl Source for Sent {
    fn header(&self) -> &StreamHeader {
        &self.header
    }
    fn next_extents(&mut self) -> LocalBoxFuture<'_, Result<Vec<(Extent, Bytes)>>> {
        let next = self.extents.next().map(|extent| match extent.kind {
            ExtentKind::Discard => Ok((extent, Bytes::new())),
            ExtentKind::Data if extent.end() > self.broken_from => Err(Error::corrupt("block 7 is damaged")),
            ExtentKind::Data => {
                let range = extent.offset as usize..extent.end() as usize;
                Ok((extent, Bytes::copy_from_slice(&self.content[range])))
            }
        });
        ready(next.into_iter().collect()).boxed_local()
    }
}

/// A target in memory: `view` is what the volume shows, `work` what is half received.
#[derive(Default)]
struct Memory {
    view: Vec<u8>,
    work: Vec<u8>,
    durable: u64,
    committed: Option<Uuid>,
    progress: Vec<u64>,
}

impl Target for Memory {
    async fn begin(&mut self, header: &StreamHeader) -> Result<Begin> {
        if self.committed == Some(header.target.uuid) {
            return Ok(Begin::AlreadyHave);
        }
        if self.durable == 0 {
            self.work = self.view.clone();
        }
        self.work.resize(header.geometry.size as usize, 0);
        Ok(Begin::Resume { durable: self.durable })
    }
    async fn data(&mut self, offset: u64, bytes: Bytes) -> Result<()> {
        self.work[offset as usize..][..bytes.len()].copy_from_slice(&bytes);
        Ok(())
    }
    async fn discard(&mut self, offset: u64, len: u64) -> Result<()> {
        self.work[offset as usize..][..len as usize].fill(0);
        Ok(())
    }
    async fn progress(&mut self, below: u64) -> Result<()> {
        self.durable = below;
        self.progress.push(below);
        Ok(())
    }
    async fn commit(&mut self, _: &Trailer) -> Result<()> {
        self.view = std::mem::take(&mut self.work);
        self.committed = Some(Uuid::from_u128(2));
        self.durable = 0;
        Ok(())
    }
}

pub(crate) fn header(size: u64, block_size: u32) -> StreamHeader {
    StreamHeader {
        stream: Uuid::from_u128(4),
        volume: Uuid::from_u128(1),
        volume_name: "db".to_owned(),
        base: Some(SnapshotId { uuid: Uuid::from_u128(3), name: "monday".to_owned() }),
        base_size: size,
        target: SnapshotId { uuid: Uuid::from_u128(2), name: "tuesday".to_owned() },
        created: "2025-03-04T05:06:07Z".to_owned(),
        geometry: Geometry::new(size, block_size, 1).unwrap(),
        resume_from: 0,
        data_bytes: None,
        discard_bytes: None,
        compressed: false,
    }
}

/// The stream of `extents` with the bytes of `content`.
pub(crate) fn stream_of(header: StreamHeader, extents: Vec<Extent>, content: Vec<u8>) -> Vec<u8> {
    let source = Sent { header, extents: extents.into_iter(), content, broken_from: u64::MAX };
    let mut out = Vec::new();
    SendStream::new(Box::new(source)).unwrap().read_to_end(&mut out).unwrap();
    out
}

/// A random delta: the base's content, the extents and the target's content.
struct Delta {
    header: StreamHeader,
    base: Vec<u8>,
    extents: Vec<Extent>,
    content: Vec<u8>,
}

impl Delta {
    fn random(seed: u64, blocks_max: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let block_size = 512u32 << rng.u32(0..5);
        let block = u64::from(block_size);
        let blocks = rng.u64(1..blocks_max);
        let size = blocks * block - 512 * rng.u64(0..block / 512);
        let mut header = header(size, block_size);
        header.compressed = rng.bool();
        let mut base = vec![0; size as usize];
        rng.fill(&mut base);
        let mut content = base.clone();
        let mut extents = Vec::new();
        let (mut at, mut data_bytes, mut discard_bytes) = (0, 0, 0);
        while at < blocks {
            let run_max = 1 << rng.u32(0..9);
            let end = (at + 1 + rng.u64(0..run_max)).min(blocks);
            let (offset, end_byte) = (at * block, (end * block).min(size));
            let range = offset as usize..end_byte as usize;
            let len = end_byte - offset;
            match rng.u8(0..3) {
                0 => {
                    extents.push(Extent { offset, len, kind: ExtentKind::Data });
                    if rng.bool() {
                        content[range].fill(rng.u8(..));
                    } else {
                        rng.fill(&mut content[range]);
                    }
                    data_bytes += len;
                }
                1 => {
                    extents.push(Extent { offset, len, kind: ExtentKind::Discard });
                    content[range].fill(0);
                    discard_bytes += len;
                }
                _ => {}
            }
            at = end;
        }
        if rng.bool() {
            (header.data_bytes, header.discard_bytes) = (Some(data_bytes), Some(discard_bytes));
        }
        Self { header, base, extents, content }
    }

    /// The first random one whose stream has several chunks.
    fn large() -> Self {
        (0..).map(|seed| Self::random(seed, 4000)).find(|delta| frames(&delta.stream()).len() > 6).unwrap()
    }

    fn source(&self, resume_from: u64) -> Box<dyn Source> {
        let mut header = self.header.clone();
        if resume_from > 0 {
            (header.data_bytes, header.discard_bytes) = (None, None);
        }
        header.resume_from = resume_from;
        let content = self.content.clone();
        Box::new(Sent { header, extents: self.extents.clone().into_iter(), content, broken_from: u64::MAX })
    }

    fn stream(&self) -> Vec<u8> {
        let mut out = Vec::new();
        SendStream::new(self.source(0)).unwrap().read_to_end(&mut out).unwrap();
        out
    }

    fn target(&self) -> Memory {
        Memory { view: self.base.clone(), ..Memory::default() }
    }
}

fn apply(mut bytes: &[u8], target: &mut Memory) -> Result<Outcome> {
    block_on(receive(&mut bytes, target))
}

/// The places where frames begin, the end included.
fn frames(stream: &[u8]) -> Vec<usize> {
    use crate::format::stream::{PREAMBLE_SIZE, PREFIX_SIZE, Prefix};
    let mut places = vec![PREAMBLE_SIZE];
    let mut at = PREAMBLE_SIZE;
    while at < stream.len() {
        let prefix = Prefix::decode(stream[at..at + PREFIX_SIZE].try_into().unwrap()).unwrap();
        at += PREFIX_SIZE + prefix.body_size();
        places.push(at);
    }
    places
}

#[test]
fn random_deltas_come_through() {
    for seed in 0..80 {
        let delta = Delta::random(seed, if seed % 8 == 0 { 4000 } else { 200 });
        let stream = delta.stream();
        let mut ahead = Vec::new();
        SendStream::read_ahead(delta.source(0)).unwrap().read_to_end(&mut ahead).unwrap();
        assert!(stream == ahead, "seed {seed}: the read-ahead makes another stream");
        let mut target = delta.target();
        let outcome = apply(&stream, &mut target).unwrap();
        assert!(target.view == delta.content, "seed {seed}");
        assert_eq!(outcome.header, delta.header);
        assert!(!outcome.already);
        assert!(apply(&stream, &mut target).unwrap().already, "seed {seed}: a second time");
    }
}

#[test]
fn every_truncation_is_an_interruption() {
    let delta = Delta::random(3, 60);
    let stream = delta.stream();
    for end in 0..stream.len() {
        let mut target = delta.target();
        let error = apply(&stream[..end], &mut target).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Interrupted, "cut at {end}: {error}");
        assert!(target.committed.is_none() && target.view == delta.base);
    }
}

#[test]
fn every_flipped_bit_is_found() {
    let delta = Delta::random(5, 40);
    let stream = delta.stream();
    let mut rng = fastrand::Rng::with_seed(1);
    for at in 0..stream.len() {
        let mut bent = stream.clone();
        bent[at] ^= 1 << rng.u32(0..8);
        let mut target = delta.target();
        let error = apply(&bent, &mut target).unwrap_err();
        let expected = match at {
            0..8 => ErrorKind::Invalid,
            8..16 => ErrorKind::Unsupported,
            _ => ErrorKind::Corrupt,
        };
        assert_eq!(error.kind(), expected, "byte {at}: {error}");
        assert!(target.committed.is_none() && target.view == delta.base);
    }
}

#[test]
fn moved_repeated_dropped_and_foreign_frames_are_found() {
    let delta = Delta::large();
    let stream = delta.stream();
    let at = frames(&stream);
    assert!(at.len() > 5, "{} frames", at.len());
    let mut other = Delta::large();
    other.content.iter_mut().for_each(|byte| *byte = byte.wrapping_add(1));
    let other = other.stream();
    let other_at = frames(&other);
    let part = |index: usize| &stream[at[index]..at[index + 1]];
    let all: Vec<&[u8]> = (0..at.len() - 1).map(part).collect();
    let mut rng = fastrand::Rng::with_seed(9);
    for _ in 0..60 {
        let mut parts = all.clone();
        let (one, two) = (rng.usize(0..parts.len()), rng.usize(0..parts.len()));
        match rng.u8(0..5) {
            0 if one != two => parts.swap(one, two),
            1 => parts.insert(one, all[one]),
            // Without the last frame it is a truncation.
            2 if one + 1 < parts.len() => drop(parts.remove(one)),
            3 if one > 0 && one + 1 < parts.len() => parts[one] = &other[other_at[one]..other_at[one + 1]],
            4 => parts.push(b"!"),
            _ => continue,
        }
        let mut bent = stream[..at[0]].to_vec();
        bent.extend(parts.concat());
        let mut target = delta.target();
        let error = apply(&bent, &mut target).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
        assert!(target.committed.is_none() && target.view == delta.base);
    }
}

/// A chunk of another stream passes every check but the digest: then nothing of this
/// stream may count as received, or a resumption would build upon it.
#[test]
fn a_wrong_digest_takes_progress_back() {
    let delta = Delta::large();
    let mut other = Delta::large();
    other.content.iter_mut().for_each(|byte| *byte = byte.wrapping_add(1));
    let (mut stream, other) = (delta.stream(), other.stream());
    let (at, other_at) = (frames(&stream), frames(&other));
    stream.splice(at[2]..at[3], other[other_at[2]..other_at[3]].iter().copied());
    let mut target = delta.target();
    assert_eq!(apply(&stream, &mut target).unwrap_err().kind(), ErrorKind::Corrupt);
    assert_eq!(target.durable, 0);
}

#[test]
fn random_bytes_are_refused() {
    let mut rng = fastrand::Rng::with_seed(11);
    for _ in 0..2000 {
        let mut bytes = vec![0; rng.usize(0..600)];
        rng.fill(&mut bytes);
        if bytes.len() > 16 && rng.bool() {
            bytes[..16].copy_from_slice(&crate::format::stream::encode_preamble());
        }
        assert!(apply(&bytes, &mut Memory::default()).is_err());
    }
}

/// Valid checksums around hostile numbers.
#[test]
fn hostile_numbers_are_refused_before_anything_is_allocated() {
    use crate::format::stream::{Encoding, FrameKind, Prefix};
    let mut rng = fastrand::Rng::with_seed(12);
    for _ in 0..5000 {
        let number = |rng: &mut fastrand::Rng| rng.u32(..) >> rng.u32(0..32);
        let prefix = Prefix {
            kind: [FrameKind::Header, FrameKind::Chunk, FrameKind::Trailer][rng.usize(0..3)],
            encoding: Encoding::Raw,
            number: 1,
            extents: number(&mut rng),
            stored: number(&mut rng),
            body_crc: 0,
        };
        if let Ok(good) = Prefix::decode(&prefix.encode()) {
            assert!(good.body_size() <= (1 << 20) + 8192 * 12);
        }
    }
    for (field, value) in
        [(72, u64::MAX), (72, 513), (88, 100), (88, u64::MAX), (80, 7), (0, 2), (112, 0), (112, 3)]
    {
        let mut body = header(1 << 20, 4096).encode().unwrap();
        body[field..field + 8].copy_from_slice(&value.to_le_bytes());
        assert!(StreamHeader::decode(&body).is_err(), "{field} = {value}");
    }
    let mut rude = header(1 << 20, 4096);
    rude.target.name = "../../etc".to_owned();
    assert_eq!(rude.encode().unwrap_err().kind(), ErrorKind::Invalid);
}

#[test]
fn resumes_where_it_stopped() {
    for seed in 100..130 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let delta = Delta::random(seed, 2000);
        let stream = delta.stream();
        let mut target = delta.target();
        let mut bytes = stream.clone();
        // Twice interrupted, then to the end; now and then the whole stream again.
        for round in 0..3 {
            let cut = if round < 2 { rng.usize(0..bytes.len()) } else { bytes.len() };
            let result = apply(&bytes[..cut], &mut target);
            assert_eq!(result.is_ok(), round == 2, "seed {seed} round {round}: {result:?}");
            assert!(round == 2 || target.view == delta.base);
            bytes.clear();
            let from = if rng.u8(0..4) == 0 { 0 } else { target.durable };
            SendStream::new(delta.source(from)).unwrap().read_to_end(&mut bytes).unwrap();
        }
        assert!(target.view == delta.content, "seed {seed}");
    }
}

#[test]
fn a_gap_before_the_place_to_resume_is_a_conflict() {
    let delta = Delta::large();
    let mut bytes = Vec::new();
    let block = u64::from(delta.header.geometry.block_size);
    SendStream::new(delta.source(block * 3)).unwrap().read_to_end(&mut bytes).unwrap();
    let mut target = delta.target();
    assert_eq!(apply(&bytes, &mut target).unwrap_err().kind(), ErrorKind::Conflict);
}

#[test]
fn progress_is_told_now_and_then() {
    let size = 200 << 20;
    let extents = vec![Extent { offset: 0, len: size, kind: ExtentKind::Data }].into_iter();
    let source =
        Sent { header: header(size, 4096), extents, content: vec![7; size as usize], broken_from: u64::MAX };
    let mut target = Memory::default();
    block_on(receive(&mut SendStream::read_ahead(Box::new(source)).unwrap(), &mut target)).unwrap();
    assert_eq!(target.progress.len(), 3, "{:?}", target.progress);
}

#[test]
fn threads_that_compress_change_nothing() {
    let mut delta = Delta::large();
    delta.header.compressed = true;
    let mut ahead = Vec::new();
    SendStream::read_ahead(delta.source(0)).unwrap().read_to_end(&mut ahead).unwrap();
    assert!(ahead == delta.stream());
    let broken = || {
        let (header, extents) = (delta.header.clone(), delta.extents.clone().into_iter());
        Box::new(Sent {
            header,
            extents,
            content: delta.content.clone(),
            broken_from: delta.header.geometry.size / 2,
        })
    };
    let read = |mut stream: SendStream| {
        let mut bytes = Vec::new();
        let error = stream.read_to_end(&mut bytes).unwrap_err();
        assert_eq!(error.to_string(), "block 7 is damaged");
        bytes
    };
    let (ahead, here) =
        (read(SendStream::read_ahead(broken()).unwrap()), read(SendStream::new(broken()).unwrap()));
    assert!(ahead == here, "what came before the error went out");
    assert!(frames(&ahead).len() > 2);
}

#[test]
fn an_error_of_the_source_comes_through() {
    let delta = Delta::large();
    let make = || {
        let extents = delta.extents.clone().into_iter();
        Box::new(Sent {
            header: delta.header.clone(),
            extents,
            content: delta.content.clone(),
            broken_from: 300_000,
        })
    };
    let mut ahead = SendStream::read_ahead(make()).unwrap();
    let error = block_on(receive(&mut ahead, &mut delta.target())).unwrap_err();
    assert_eq!(error.to_string(), "block 7 is damaged");
    let mut here = SendStream::new(make()).unwrap();
    let error = here.read_to_end(&mut Vec::new()).unwrap_err();
    assert_eq!(error.to_string(), "block 7 is damaged");
    for mut stream in [ahead, here] {
        assert_eq!(stream.read(&mut [0; 9]).unwrap(), 0);
    }
}

#[test]
fn scattered_blocks_cost_little() {
    for alternating in [false, true] {
        let (size, block) = (64 << 20, 4096);
        let mut extents = Vec::new();
        for at in (0..size / block).step_by(2) {
            extents.push(Extent { offset: at * block, len: block, kind: ExtentKind::Data });
            if alternating {
                extents.push(Extent { offset: (at + 1) * block, len: block, kind: ExtentKind::Discard });
            }
        }
        let extents = extents.into_iter();
        let source = Sent {
            header: header(size, 4096),
            extents,
            content: vec![7; size as usize],
            broken_from: u64::MAX,
        };
        let count =
            std::io::copy(&mut SendStream::new(Box::new(source)).unwrap(), &mut std::io::sink()).unwrap();
        let ratio = count as f64 / (size / 2) as f64;
        assert!(ratio <= 1.02, "{ratio}");
    }
}
