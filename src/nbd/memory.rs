//! Exports in memory: for tests, and to measure what the protocol alone costs.
//!
//! Blocks of 4096 bytes in a map; what was never written is a hole. Every connection
//! runs on a thread and a reactor of its own. Nothing outlives the process.

use super::exports::{Exports, Found, Serve};
use crate::engine::ExportInfo;
use crate::engine::device::{
    ALLOCATION_HOLE, ALLOCATION_ZERO, DELTA_DATA, DELTA_DISCARD, Device, Extent, Piece, ZeroHow,
};
use crate::error::{Error, ErrorKind, Result};
use crate::io::{self, DriverKind, Io, Reactor};
use bytes::{Bytes, BytesMut};
use futures::FutureExt;
use futures::future::LocalBoxFuture;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Bytes in a block.
pub const BLOCK_SIZE: u32 = 4096;
const BLOCK: u64 = BLOCK_SIZE as u64;

type Blocks = BTreeMap<u64, Bytes>;

/// A volume in memory.
#[derive(Debug, Default)]
pub struct Memory {
    size: u64,
    read_only: bool,
    /// Requests whose offset is a multiple of 8 KiB wait so long, so that replies overtake.
    delay: Option<Duration>,
    /// For volumes that can be taken away: whether that has happened.
    closed: Option<AtomicBool>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    blocks: Blocks,
    snapshots: BTreeMap<String, Blocks>,
    /// Flushes, and writes that asked to be durable.
    syncs: u64,
}

impl Memory {
    /// A volume of zeros.
    #[must_use]
    pub fn new(size: u64) -> Self {
        Self { size, ..Self::default() }
    }

    /// The same, which refuses writes.
    #[must_use]
    pub fn read_only(mut self) -> Self {
        self.read_only = true;
        self
    }

    /// The same, of which some requests take that long.
    #[must_use]
    pub fn slow(mut self, delay: Duration) -> Self {
        self.delay = Some(delay);
        self
    }

    /// The same, which can be taken away from its clients.
    #[must_use]
    pub fn closable(mut self) -> Self {
        self.closed = Some(AtomicBool::new(false));
        self
    }

    /// Takes it away from its clients.
    pub fn close(&self) {
        if let Some(closed) = &self.closed {
            closed.store(true, Ordering::Release);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a snapshot; a delta from it can be asked for.
    pub fn snapshot(&self, name: &str) {
        let mut state = self.state();
        let blocks = state.blocks.clone();
        state.snapshots.insert(name.to_owned(), blocks);
    }

    /// Writes, as if a client did.
    ///
    /// # Panics
    /// If that is past the end, or the volume read-only.
    pub fn put(&self, offset: u64, data: &Bytes) {
        self.write(offset, data, false).expect("the range is within a writable volume");
    }

    /// Flushes and durable writes so far.
    pub fn syncs(&self) -> u64 {
        self.state().syncs
    }

    fn check(&self, offset: u64, len: u64) -> Result<()> {
        if offset.checked_add(len).is_some_and(|end| end <= self.size) {
            return Ok(());
        }
        Err(Error::new(ErrorKind::OutOfRange, "past the end"))
    }

    fn check_writable(&self) -> Result<()> {
        if self.read_only { Err(Error::new(ErrorKind::ReadOnly, "read-only")) } else { Ok(()) }
    }

    fn read(&self, offset: u64, len: u64) -> Result<Vec<Piece>> {
        self.check(offset, len)?;
        let state = self.state();
        Ok(parts(offset, len)
            .map(|(block, start, len)| match state.blocks.get(&block) {
                Some(data) => Piece::Data(data.slice(start..start + len)),
                None => Piece::Hole(len as u64),
            })
            .collect())
    }

    fn write(&self, offset: u64, data: &Bytes, fua: bool) -> Result<()> {
        self.check(offset, data.len() as u64)?;
        self.check_writable()?;
        let mut state = self.state();
        let mut at = 0;
        for (block, start, len) in parts(offset, data.len() as u64) {
            let part = &data[at..at + len];
            at += len;
            let mut whole = state
                .blocks
                .get(&block)
                .map_or_else(|| BytesMut::zeroed(BLOCK_SIZE as usize), |old| BytesMut::from(&old[..]));
            whole[start..start + len].copy_from_slice(part);
            state.blocks.insert(block, whole.freeze());
        }
        state.syncs += u64::from(fua);
        Ok(())
    }

    fn zero(&self, offset: u64, len: u64, fua: bool) -> Result<()> {
        self.check(offset, len)?;
        self.check_writable()?;
        let mut state = self.state();
        let (first, last) = (offset / BLOCK, (offset + len).div_ceil(BLOCK));
        let touched: Vec<u64> = state.blocks.range(first..last).map(|(block, _)| *block).collect();
        for block in touched {
            let start = offset.max(block * BLOCK) - block * BLOCK;
            let end = (offset + len).min((block + 1) * BLOCK) - block * BLOCK;
            let old = state.blocks.remove(&block);
            if let Some(old) = old
                && end - start < BLOCK
            {
                let mut whole = BytesMut::from(&old[..]);
                #[allow(clippy::cast_possible_truncation, reason = "offsets within a block")]
                whole[start as usize..end as usize].fill(0);
                state.blocks.insert(block, whole.freeze());
            }
        }
        state.syncs += u64::from(fua);
        Ok(())
    }

    fn extents(&self, offset: u64, len: u64, flags: impl Fn(&State, u64) -> u32) -> Result<Vec<Extent>> {
        self.check(offset, len)?;
        let state = self.state();
        let mut extents: Vec<Extent> = Vec::new();
        for (block, _, len) in parts(offset, len) {
            let (len, flags) = (len as u64, flags(&state, block));
            match extents.last_mut() {
                Some(last) if last.flags == flags => last.len += len,
                _ => extents.push(Extent { len, flags }),
            }
        }
        Ok(extents)
    }
}

/// The parts of a range: block, first byte within it, and length.
#[allow(clippy::cast_possible_truncation, reason = "offsets within a block")]
fn parts(offset: u64, len: u64) -> impl Iterator<Item = (u64, usize, usize)> {
    let end = offset + len;
    let last = if len == 0 { offset / BLOCK } else { end.div_ceil(BLOCK) };
    (offset / BLOCK..last).map(move |block| {
        let from = offset.max(block * BLOCK);
        let to = end.min((block + 1) * BLOCK);
        (block, (from - block * BLOCK) as usize, (to - from) as usize)
    })
}

/// A volume in memory, on the thread of one connection.
pub struct MemoryDevice {
    memory: Arc<Memory>,
    io: Io,
}

impl MemoryDevice {
    /// The device of that volume.
    #[must_use]
    pub fn new(memory: Arc<Memory>, io: Io) -> Self {
        Self { memory, io }
    }

    /// What `work` gives, late if that is wanted.
    fn answer<T: 'static>(
        &self,
        offset: u64,
        work: impl FnOnce(&Memory) -> Result<T> + 'static,
    ) -> LocalBoxFuture<'static, Result<T>> {
        let (memory, io) = (Arc::clone(&self.memory), self.io.clone());
        async move {
            if let Some(delay) = memory.delay
                && offset.is_multiple_of(2 * BLOCK)
            {
                io.sleep(delay).await;
            }
            work(&memory)
        }
        .boxed_local()
    }
}

impl Device for MemoryDevice {
    fn size(&self) -> u64 {
        self.memory.size
    }

    fn block_size(&self) -> u32 {
        BLOCK_SIZE
    }

    fn read_only(&self) -> bool {
        self.memory.read_only
    }

    fn multi_conn(&self) -> bool {
        true
    }

    fn read(&self, offset: u64, len: u64) -> LocalBoxFuture<'static, Result<Vec<Piece>>> {
        self.answer(offset, move |memory| memory.read(offset, len))
    }

    fn write(&self, offset: u64, data: Bytes, fua: bool) -> LocalBoxFuture<'static, Result<()>> {
        self.answer(offset, move |memory| memory.write(offset, &data, fua))
    }

    fn flush(&self) -> LocalBoxFuture<'static, Result<()>> {
        self.answer(0, |memory| {
            memory.state().syncs += 1;
            Ok(())
        })
    }

    fn trim(&self, offset: u64, len: u64, fua: bool) -> LocalBoxFuture<'static, Result<()>> {
        self.answer(offset, move |memory| memory.zero(offset, len, fua))
    }

    fn zero(&self, offset: u64, len: u64, how: ZeroHow) -> LocalBoxFuture<'static, Result<()>> {
        self.answer(offset, move |memory| {
            if how.no_hole && how.fast {
                return Err(Error::new(ErrorKind::Unsupported, "filling with zeros is not fast"));
            }
            memory.zero(offset, len, how.fua)
        })
    }

    fn cache(&self, offset: u64, len: u64) -> LocalBoxFuture<'static, Result<()>> {
        self.answer(offset, move |memory| memory.check(offset, len))
    }

    fn allocation(&self, offset: u64, len: u64) -> LocalBoxFuture<'static, Result<Vec<Extent>>> {
        let hole = ALLOCATION_HOLE | ALLOCATION_ZERO;
        self.answer(offset, move |memory| {
            memory.extents(
                offset,
                len,
                |state, block| if state.blocks.contains_key(&block) { 0 } else { hole },
            )
        })
    }

    fn pin_delta(&self, snapshot: &str) -> Result<()> {
        if self.memory.state().snapshots.contains_key(snapshot) {
            return Ok(());
        }
        Err(Error::not_found(format!("there is no snapshot {snapshot}")))
    }

    fn delta_bases(&self) -> Vec<String> {
        self.memory.state().snapshots.keys().cloned().collect()
    }

    fn delta(&self, snapshot: &str, offset: u64, len: u64) -> LocalBoxFuture<'static, Result<Vec<Extent>>> {
        let snapshot = snapshot.to_owned();
        self.answer(offset, move |memory| {
            memory.extents(offset, len, |state, block| {
                let old = state.snapshots.get(&snapshot).and_then(|blocks| blocks.get(&block));
                match (old, state.blocks.get(&block)) {
                    (old, new) if old == new => 0,
                    (_, Some(_)) => DELTA_DATA,
                    (_, None) => DELTA_DATA | DELTA_DISCARD,
                }
            })
        })
    }

    fn closed(&self) -> LocalBoxFuture<'static, ()> {
        let (memory, io) = (Arc::clone(&self.memory), self.io.clone());
        async move {
            let Some(closed) = &memory.closed else { return std::future::pending().await };
            while !closed.load(Ordering::Acquire) {
                io.sleep(Duration::from_millis(5)).await;
            }
        }
        .boxed_local()
    }
}

/// A set of volumes in memory.
#[derive(Clone, Debug, Default)]
pub struct MemoryExports {
    volumes: Arc<Mutex<BTreeMap<String, Arc<Memory>>>>,
    driver: DriverKind,
}

impl MemoryExports {
    /// No volumes yet; connections will use that driver.
    #[must_use]
    pub fn new(driver: DriverKind) -> Self {
        Self { driver, ..Self::default() }
    }

    /// Adds a volume.
    pub fn add(&self, name: &str, memory: Memory) -> Arc<Memory> {
        let memory = Arc::new(memory);
        self.volumes().insert(name.to_owned(), Arc::clone(&memory));
        memory
    }

    /// Removes a volume; its clients keep it.
    pub fn remove(&self, name: &str) {
        self.volumes().remove(name);
    }

    fn volumes(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Memory>>> {
        self.volumes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Exports for MemoryExports {
    fn names(&self) -> Result<Vec<String>> {
        Ok(self.volumes().keys().cloned().collect())
    }

    fn find(&self, name: &str) -> Result<Box<dyn Found>> {
        let volumes = self.volumes();
        let found = match volumes.iter().next() {
            Some(only) if name.is_empty() && volumes.len() == 1 => Some(only),
            _ => volumes.get_key_value(name),
        };
        let (name, memory) =
            found.ok_or_else(|| Error::not_found(format!("there is no export '{}'", name.escape_debug())))?;
        Ok(Box::new(MemoryExport { name: name.clone(), memory: Arc::clone(memory), driver: self.driver }))
    }
}

struct MemoryExport {
    name: String,
    memory: Arc<Memory>,
    driver: DriverKind,
}

impl Found for MemoryExport {
    fn name(&self) -> &str {
        &self.name
    }

    fn describe(&self) -> Result<ExportInfo> {
        Ok(ExportInfo {
            size: self.memory.size,
            block_size: BLOCK_SIZE,
            read_only: self.memory.read_only,
            multi_conn: true,
            delta_bases: self.memory.state().snapshots.keys().cloned().collect(),
        })
    }

    fn run(&self, _peer: String, serve: Serve) -> Result<()> {
        let (memory, driver) = (Arc::clone(&self.memory), self.driver);
        let run = move || match io::driver(driver) {
            Ok(driver) => {
                let mut reactor = Reactor::new(driver);
                let io = reactor.io();
                let device: Rc<dyn Device> = Rc::new(MemoryDevice::new(memory, io.clone()));
                let connection = serve(io, device);
                reactor.block_on(connection);
            }
            Err(error) => tracing::error!("no driver: {error}"),
        };
        std::thread::Builder::new()
            .name("nbd-memory".to_owned())
            .spawn(run)
            .map_err(|error| Error::os("cannot start a thread", error))?;
        Ok(())
    }
}
