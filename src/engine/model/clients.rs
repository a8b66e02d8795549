//! Clients: each has a device of its own on the volume's engine, as a connection has, and
//! sends a few requests at a time that do not touch each other's bytes.

use super::machine::Process;
use crate::engine::device::{Device, ReadNow, ZeroHow};
use crate::engine::export;
use crate::engine::thread::Engine;
use crate::snapshot::Piece;
use bytes::{Bytes, BytesMut};
use futures::FutureExt;
use futures::future::join_all;
use std::ops::Range;
use std::rc::Rc;

/// Rounds of requests that a client makes at most.
const ROUNDS_MAX: u32 = 12;

/// A connection to production.
struct Client {
    process: Rc<Process>,
    engine: Rc<Engine>,
    volume: String,
    device: Rc<dyn Device>,
}

/// All bytes of pieces.
pub(super) fn bytes_of(pieces: Vec<Piece>) -> Vec<u8> {
    let mut out = Vec::new();
    for piece in pieces {
        match piece {
            Piece::Data(data) => out.extend_from_slice(&data),
            Piece::Hole(len) => out.resize(out.len() + usize::try_from(len).expect("a small volume"), 0),
        }
    }
    out
}

/// A client connects to a primary; it leaves when it is told to, or has enough.
pub(super) fn connect(process: &Rc<Process>, volume: &str) {
    let (engine, _) = process.open_volume(volume);
    let device = export::device(&engine, volume, None, "client".to_owned()).expect("an export");
    let client =
        Client { process: Rc::clone(process), engine: Rc::clone(&engine), volume: volume.to_owned(), device };
    process.oracle.borrow_mut().vol(volume).clients += 1;
    engine.io.spawn(async move { client.live().await });
}

impl Client {
    async fn live(self) {
        let rounds = self.process.shared.rng.borrow_mut().u32(1..=ROUNDS_MAX);
        let mut closed = self.device.closed();
        for _ in 0..rounds {
            let shut = self.process.oracle.borrow_mut().vol(&self.volume).shut;
            if shut || (&mut closed).now_or_never().is_some() {
                break;
            }
            let count = self.process.shared.rng.borrow_mut().usize(1..6);
            join_all((0..count).map(|_| self.request())).await;
        }
        if !self.process.is_dead() {
            self.process.oracle.borrow_mut().vol(&self.volume).clients -= 1;
        }
    }

    async fn pause(&self) {
        let turns = self.process.shared.rng.borrow_mut().u32(0..4);
        for _ in 0..turns {
            self.engine.io.yield_now().await;
        }
    }

    /// A range that no other request works on, often of whole blocks.
    fn range(&self) -> Option<Range<usize>> {
        let mut oracle = self.process.oracle.borrow_mut();
        let vol = oracle.vol(&self.volume);
        // A volume that is just being resized has at least the smaller size.
        let size = vol.live.len().min(vol.resizing.unwrap_or(usize::MAX));
        let mut rng = self.process.shared.rng.borrow_mut();
        let block = self.process.shared.block_size as usize;
        let start = rng.usize(0..size);
        let len = match rng.u32(0..10) {
            0 => rng.usize(1..=size),
            1..4 => rng.usize(1..=block * 3),
            _ => rng.usize(1..=4) * block,
        };
        let start = if rng.u32(0..3) == 0 { start } else { start / block * block };
        let range = start..(start + len).min(size);
        if vol.flying.iter().any(|other| other.start < range.end && range.start < other.end) {
            return None;
        }
        vol.flying.push(range.clone());
        Some(range)
    }

    async fn request(&self) {
        self.pause().await;
        let (kind, fua) = {
            let mut rng = self.process.shared.rng.borrow_mut();
            (rng.u32(0..14), rng.u32(0..8) == 0)
        };
        if kind == 0 {
            return self.flush().await;
        }
        let Some(range) = self.range() else { return };
        if kind < 3 {
            self.read(range.clone()).await;
        } else {
            self.change(kind, range.clone(), fua).await;
        }
        if !self.process.is_dead() {
            let mut oracle = self.process.oracle.borrow_mut();
            oracle.vol(&self.volume).flying.retain(|other| *other != range);
            self.process.shared.count(|counts| counts.requests += 1);
        }
    }

    async fn flush(&self) {
        let covered = self.process.oracle.borrow_mut().vol(&self.volume).acked();
        let result = self.device.flush().await;
        if self.process.is_dead() {
            return;
        }
        result.expect("a flush");
        self.process.oracle.borrow_mut().vol(&self.volume).flushed(&covered);
    }

    async fn read(&self, range: Range<usize>) {
        let mut cached = BytesMut::new();
        let result = match self.device.read_now(range.start as u64, range.len(), &mut cached) {
            Ok(ReadNow::Appended) => Ok(vec![Piece::Data(cached.freeze())]),
            _ => self.device.read(range.start as u64, range.len() as u64).await,
        };
        if self.process.is_dead() {
            return;
        }
        let found = bytes_of(result.expect("a read"));
        let mut oracle = self.process.oracle.borrow_mut();
        let expected = &oracle.vol(&self.volume).live[range.clone()];
        assert!(found == expected, "a client of {} read something else at {range:?}", self.volume);
    }

    async fn change(&self, kind: u32, range: Range<usize>, fua: bool) {
        let mut data = vec![0; range.len()];
        if kind < 11 {
            self.process.shared.rng.borrow_mut().fill(&mut data);
        }
        let (id, covered) = {
            let mut oracle = self.process.oracle.borrow_mut();
            let covered = oracle.vol(&self.volume).acked();
            (oracle.begin(&self.volume, range.start, data.clone()), covered)
        };
        let (at, len) = (range.start as u64, range.len() as u64);
        let data = Bytes::from(data);
        let result = match kind {
            0..9 if !fua && self.device.write_now(at, &data) => Ok(()),
            0..11 => self.device.write(at, data, fua).await,
            11 | 12 => self.device.trim(at, len, fua).await,
            _ => self.device.zero(at, len, ZeroHow { no_hole: len % 2 == 0, fast: false, fua }).await,
        };
        if self.process.is_dead() {
            return;
        }
        result.expect("a change");
        let mut oracle = self.process.oracle.borrow_mut();
        oracle.ack(&self.volume, id);
        if fua {
            oracle.vol(&self.volume).flushed(&[&covered[..], &[id]].concat());
        }
    }
}
