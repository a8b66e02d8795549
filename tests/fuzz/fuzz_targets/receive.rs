//! A hostile, well-framed stream into a volume on a simulated disk. The first bytes choose
//! what the header says and to which volume it goes; the rest are the chunks, whose
//! checksums and trailer are put right. Whatever comes: other volumes stay as they are,
//! a primary takes nothing, the snapshots that the volume has do not change, and what is
//! not committed can be aborted.
//! `cargo fuzz run --fuzz-dir tests/fuzz receive fixtures/fuzz/receive`

#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use snapvol::delta::{Begin, Decoder, ExtentKind, Target, Trailer, receive};
use snapvol::format::stream::{
    FrameKind, PREFIX_SIZE, Prefix, SnapshotId, StreamHeader, TRAILER_SIZE, encode_preamble,
};
use snapvol::io::sim::{SimDisk, SimOptions};
use snapvol::io::{Io, Reactor};
use snapvol::snapshot::{Incoming, Piece, ReceiveStart, Receiving, Volume, Who};
use snapvol::store::Tuning;
use snapvol::types::{Geometry, Name, OnFull, Role};
use snapvol::{Error, Result};
use std::collections::BTreeSet;
use std::path::Path;
use std::rc::Rc;
use uuid::Uuid;

const SIZE: u64 = 256 << 10;
const BASE: Uuid = Uuid::from_u128(0xba5e);
/// Operations of a run, far above what these streams need.
const TURNS_MAX: u32 = 1 << 20;

fn drive<T: 'static, F: Future<Output = T> + 'static>(disk: &SimDisk, task: impl FnOnce(Io) -> F) -> T {
    let mut reactor = Reactor::new(Box::new(disk.driver()));
    let io = reactor.io();
    let (send, receive) = std::sync::mpsc::channel();
    let task = task(io.clone());
    io.spawn(async move {
        let _ = send.send(task.await);
    });
    for _ in 0..TURNS_MAX {
        reactor.run_ready();
        if let Ok(value) = receive.try_recv() {
            return value;
        }
        reactor.turn(None);
    }
    panic!("it goes round in circles");
}

async fn make(io: &Io, dir: &str, role: Role) -> Rc<Volume> {
    let geometry = Geometry::new(SIZE, 4096, 1).expect("a good geometry");
    let uuid = Uuid::from_u128(u128::from(dir.len() as u64));
    Volume::create(io, Path::new(dir), uuid, geometry, OnFull::Readonly, role).await.expect("a new volume");
    open(io, dir).await
}

async fn open(io: &Io, dir: &str) -> Rc<Volume> {
    let tuning = Tuning { stage_bytes: 16 * 4096, ..Tuning::default() };
    let opened = Volume::open(io, Path::new(dir), "v", tuning, &BTreeSet::new()).await;
    opened.expect("a volume that was closed").0
}

async fn all(volume: &Rc<Volume>) -> Vec<u8> {
    bytes_of(volume.read(0, volume.geometry().size.min(2 * SIZE)).await.expect("it is readable"))
}

fn bytes_of(pieces: Vec<Piece>) -> Vec<u8> {
    let mut out = Vec::new();
    for piece in pieces {
        match piece {
            Piece::Data(data) => out.extend_from_slice(&data),
            Piece::Hole(len) => out.resize(out.len() + len as usize, 0),
        }
    }
    out
}

async fn snapshot(volume: &Rc<Volume>, name: &str) -> Vec<u8> {
    let reader = volume.open_snapshot(name).expect("it is there");
    bytes_of(reader.read(0, reader.size().min(2 * SIZE)).await.expect("it is readable"))
}

fn incoming(uuid: Uuid, name: &str, size: u64, base: Option<Uuid>) -> Incoming {
    let base = base.map(|uuid| (uuid, "base".to_owned()));
    Incoming { target: uuid, name: name.to_owned(), created_us: 1, size, base }
}

/// A disk with a primary, and a secondary that holds the snapshot `base`.
fn world() -> SimDisk {
    let disk = SimDisk::new(SimOptions { seed: 1, inline: true, reorder: false });
    drive(&disk, |io| async move {
        io.make_dir(Path::new("/s")).await.expect("a directory");
        let primary = make(&io, "/s/primary", Role::Primary).await;
        primary.write(Who::Client, 0, Bytes::from(vec![7; 8192]), false).await.expect("a write");
        primary.close().await.expect("a close");
        let volume = make(&io, "/s/v", Role::Secondary).await;
        let begun = volume.receive_begin(&incoming(BASE, "base", SIZE, None)).await;
        let Ok(ReceiveStart::Go(receiving, _)) = begun else { panic!("a receive begins") };
        receiving.data(4096, Bytes::from(vec![5; 40 << 10])).await.expect("data");
        receiving.commit().await.expect("a commit");
        drop(receiving);
        volume.close().await.expect("a close");
    });
    disk
}

/// A volume, as the store's own receive sees it.
struct Applied {
    volume: Rc<Volume>,
    receiving: Option<Receiving>,
}

impl Applied {
    fn receiving(&self) -> Result<&Receiving> {
        self.receiving.as_ref().ok_or_else(|| Error::invalid("it has not begun"))
    }
}

impl Target for Applied {
    async fn begin(&mut self, header: &StreamHeader) -> Result<Begin> {
        let name: Name = header.target.name.parse()?;
        if header.geometry.block_size != self.volume.geometry().block_size {
            return Err(Error::conflict("other blocks"));
        }
        let base = header.base.as_ref().map(|base| base.uuid);
        let incoming = incoming(header.target.uuid, name.as_str(), header.geometry.size, base);
        match self.volume.receive_begin(&incoming).await? {
            ReceiveStart::Already => Ok(Begin::AlreadyHave),
            ReceiveStart::Go(receiving, durable) => {
                self.receiving = Some(receiving);
                Ok(Begin::Resume { durable })
            }
        }
    }
    async fn data(&mut self, offset: u64, bytes: Bytes) -> Result<()> {
        self.receiving()?.data(offset, bytes).await
    }
    async fn discard(&mut self, offset: u64, len: u64) -> Result<()> {
        self.receiving()?.discard(offset, len).await
    }
    async fn progress(&mut self, below: u64) -> Result<()> {
        self.receiving()?.progress(below).await
    }
    async fn commit(&mut self, _: &Trailer) -> Result<()> {
        self.receiving()?.commit().await
    }
}

thread_local! {
    static WORLD: SimDisk = world();
}

fuzz_target!(|data: &[u8]| {
    let Some((&[how, kind, size_low, size_high, resume], rest)) = data.split_first_chunk() else { return };
    let size = match kind >> 6 {
        0 => SIZE,
        1 => (u64::from(size_low) + 1) * 4096,
        2 => (u64::from(size_low) | u64::from(size_high) << 8) * 512,
        _ => 1 << (9 + size_low % 40),
    };
    let target = match kind & 3 {
        0 | 1 => Uuid::from_u128(9),
        2 => BASE,
        _ => Uuid::nil(),
    };
    let base = match kind >> 2 & 3 {
        0 => None,
        1 | 2 => Some(BASE),
        _ => Some(Uuid::from_u128(77)),
    };
    let name = ["new", "base", "../x", "_hidden"][usize::from(kind >> 4 & 3)];
    let Ok(geometry) = Geometry::new(size, 4096, 1) else { return };
    let id = |uuid, name: &str| SnapshotId { uuid, name: name.to_owned() };
    let header = StreamHeader {
        stream: Uuid::from_u128(1),
        volume: Uuid::from_u128(2),
        volume_name: "v".to_owned(),
        base: base.map(|uuid| id(uuid, "base")),
        base_size: if base.is_some() { SIZE } else { 0 },
        target: id(target, name),
        created: "2026-01-01T00:00:00Z".to_owned(),
        geometry,
        resume_from: u64::from(resume) * 4096,
        data_bytes: None,
        discard_bytes: None,
        compressed: how & 1 != 0,
    };
    let Ok(bytes) = stream(&header, rest, how & 2 != 0) else { return };
    let to_primary = how & 4 != 0;
    let dir = if to_primary { "/s/primary" } else { "/s/v" };
    let other = if to_primary { "/s/v" } else { "/s/primary" };
    let disk = WORLD.with(SimDisk::fork);
    let others = |disk: &SimDisk| -> Vec<_> {
        let files = disk.files().into_iter().filter(|path| path.starts_with(other));
        files.map(|path| (disk.contents(&path), path)).collect()
    };
    let before = others(&disk);
    drive(&disk, move |io| async move {
        let volume = open(&io, dir).await;
        let production = all(&volume).await;
        let held = if to_primary { Vec::new() } else { snapshot(&volume, "base").await };
        let mut applied = Applied { volume: Rc::clone(&volume), receiving: None };
        let done = receive(&mut bytes.as_slice(), &mut applied).await;
        let begun = applied.receiving.take().is_some();
        assert!(!to_primary || !begun, "a primary takes nothing");
        if !to_primary {
            assert!(snapshot(&volume, "base").await == held, "a snapshot has changed");
        }
        match done {
            Ok(outcome) if !outcome.already => {
                let record = volume.snapshots().into_iter().find(|record| record.uuid == target);
                assert_eq!(record.expect("it was committed").size, size);
            }
            _ if begun => {
                volume.receive_abort().await.expect("an abort");
                assert!(all(&volume).await == production, "an abort restores");
            }
            _ => assert!(all(&volume).await == production, "what was refused changed something"),
        }
        volume.close().await.expect("a close");
        // What it left can be opened again.
        let volume = open(&io, dir).await;
        if !to_primary {
            assert!(snapshot(&volume, "base").await == held, "a snapshot has changed on the disk");
        }
        volume.close().await.expect("a close");
    });
    assert!(others(&disk) == before, "another volume has changed");
});

/// Preamble, header, and the fuzzer's frames with right numbers and checksums; with `end` a
/// right trailer too.
fn stream(header: &StreamHeader, mut rest: &[u8], end: bool) -> Result<Vec<u8>> {
    let mut bytes = encode_preamble().to_vec();
    let put = |bytes: &mut Vec<u8>, prefix: &[u8; PREFIX_SIZE], number: u64, body: &[u8]| {
        let mut prefix = *prefix;
        prefix[8..16].copy_from_slice(&number.to_le_bytes());
        prefix[24..28].copy_from_slice(&crc32c::crc32c(body).to_le_bytes());
        let crc = crc32c::crc32c(&prefix[..28]);
        prefix[28..].copy_from_slice(&crc.to_le_bytes());
        bytes.extend(prefix);
        bytes.extend(body);
    };
    let plain = |kind: FrameKind, stored: usize| {
        let stored = u32::try_from(stored).unwrap_or(u32::MAX);
        Prefix { kind, encoding: snapvol::format::stream::Encoding::Raw, number: 0, extents: 0, stored, body_crc: 0 }
            .encode()
    };
    let body = header.encode()?;
    put(&mut bytes, &plain(FrameKind::Header, body.len()), 0, &body);
    let mut number = 1;
    while let Some((prefix, after)) = rest.split_first_chunk::<PREFIX_SIZE>() {
        let word = |at: usize| u32::from_le_bytes([prefix[at], prefix[at + 1], prefix[at + 2], prefix[at + 3]]);
        let len = (word(16) as usize).saturating_mul(12).saturating_add(word(20) as usize);
        if len > after.len() {
            break;
        }
        let (body, after) = after.split_at(len);
        put(&mut bytes, prefix, number, body);
        number += 1;
        rest = after;
    }
    if end {
        let digest: [u8; 32] = blake3::hash(&bytes).into();
        let mut totals = Trailer { chunks: number - 1, data_bytes: 0, discard_bytes: 0, digest };
        let mut input = bytes.as_slice();
        let mut decoder = Decoder::new(&mut input)?;
        while let Ok(Some(chunk)) = decoder.next_chunk() {
            for (extent, _) in chunk.pieces() {
                match extent.kind {
                    ExtentKind::Data => totals.data_bytes += extent.len,
                    ExtentKind::Discard => totals.discard_bytes += extent.len,
                }
            }
        }
        put(&mut bytes, &plain(FrameKind::Trailer, TRAILER_SIZE), number, &totals.encode());
    }
    Ok(bytes)
}
