//! A disk with a write cache that loses what was not flushed when the power goes.
//!
//! A killed emulator loses its guest's page cache, but what the guest had written to its
//! disk stays in the page cache of the host, flushed or not: no missing flush would show.
//! So the guest's disk is served over NBD by this process, which keeps what came since
//! the last flush apart; at the cut any part of it is lost, in any order. A write is torn
//! between pages of 4 KiB and not within one, as on disks of today: ext4 does not mount
//! with a commit block that is torn. Tearing at sectors is the simulated disk's business.

use bytes::Bytes;
use futures::FutureExt;
use futures::future::LocalBoxFuture;
use snapvol::engine::ExportInfo;
use snapvol::engine::device::{Device, Extent, Piece, ZeroHow};
use snapvol::io::{self, DriverKind, Io, Reactor};
use snapvol::nbd::{Exports, Found, Serve};
use snapvol::{Error, ErrorKind, Result};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

const SECTOR: usize = 512;
const BLOCK: usize = 4096;

/// How long a request after the cut is left without an answer.
const OFF: Duration = Duration::from_secs(30);

/// How long a flush takes.
const FLUSH: Duration = Duration::from_millis(4);

/// What becomes of the writes that were not flushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// All are lost.
    All,
    /// None is lost: the order of what happened is kept.
    None,
    /// Each is lost or not.
    Requests,
    /// Each of their pages is lost or not.
    Pages,
}

/// How much there was to lose, and what was lost, in sectors.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lost {
    pub unflushed: u64,
    pub lost: u64,
}

/// The disk; a clone is the same disk.
#[derive(Clone)]
pub struct LossyDisk {
    state: Arc<Mutex<State>>,
}

/// One connection to it.
#[derive(Clone)]
struct Connected {
    disk: LossyDisk,
    /// The cuts before it was made: what comes on it after another one goes nowhere.
    cuts: u64,
    io: Io,
}

struct State {
    size: u64,
    /// As the guest sees it.
    live: Blocks,
    /// As it is on the platter.
    durable: Blocks,
    /// What was written since the last flush, in its order.
    cached: Vec<(u64, Bytes)>,
    cuts: u64,
    flushes: u64,
}

#[derive(Default)]
struct Blocks(HashMap<u64, Box<[u8; BLOCK]>>);

impl Blocks {
    fn write(&mut self, mut offset: u64, mut data: &[u8]) {
        while !data.is_empty() {
            let (block, at) = (offset / BLOCK as u64, usize::try_from(offset % BLOCK as u64).unwrap());
            let len = data.len().min(BLOCK - at);
            let bytes = self.0.entry(block).or_insert_with(|| Box::new([0; BLOCK]));
            bytes[at..at + len].copy_from_slice(&data[..len]);
            (offset, data) = (offset + len as u64, &data[len..]);
        }
    }

    fn read(&self, mut offset: u64, mut len: usize) -> Vec<u8> {
        let mut all = Vec::with_capacity(len);
        while len > 0 {
            let (block, at) = (offset / BLOCK as u64, usize::try_from(offset % BLOCK as u64).unwrap());
            let count = len.min(BLOCK - at);
            match self.0.get(&block) {
                Some(bytes) => all.extend_from_slice(&bytes[at..at + count]),
                None => all.resize(all.len() + count, 0),
            }
            (offset, len) = (offset + count as u64, len - count);
        }
        all
    }
}

impl LossyDisk {
    pub fn new(size: u64) -> Self {
        let state = State {
            size,
            live: Blocks::default(),
            durable: Blocks::default(),
            cached: Vec::new(),
            cuts: 0,
            flushes: 0,
        };
        Self { state: Arc::new(Mutex::new(state)) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// The power goes, and comes back: who is connected is never answered any more; who
    /// connects next finds what is durable.
    pub fn cut(&self, loss: Loss, rng: &mut fastrand::Rng) -> Lost {
        let mut state = self.state();
        state.cuts += 1;
        let mut told = Lost::default();
        let mut keep = Vec::new();
        for (offset, data) in std::mem::take(&mut state.cached) {
            let mut at = 0;
            while at < data.len() {
                let within = usize::try_from((offset + at as u64) % BLOCK as u64).unwrap();
                let page = if loss == Loss::Pages { BLOCK - within } else { data.len() };
                let len = page.min(data.len() - at);
                let kept = match loss {
                    Loss::All => false,
                    Loss::None => true,
                    Loss::Requests | Loss::Pages => rng.bool(),
                };
                let sectors = (len / SECTOR) as u64;
                told.unflushed += sectors;
                if kept {
                    keep.push((offset + at as u64, data.slice(at..at + len)));
                } else {
                    told.lost += sectors;
                }
                at += len;
            }
        }
        for (offset, data) in keep {
            state.durable.write(offset, &data);
        }
        state.live = Blocks(state.durable.0.clone());
        told
    }

    /// What a cut could take at this moment, in sectors.
    pub fn unflushed(&self) -> u64 {
        self.state().cached.iter().map(|(_, data)| (data.len() / SECTOR) as u64).sum()
    }

    /// Flushes that the disk was asked for.
    pub fn flushes(&self) -> u64 {
        self.state().flushes
    }
}

impl Connected {
    fn act<T: 'static>(&self, act: impl FnOnce(&mut State) -> T) -> LocalBoxFuture<'static, Result<T>> {
        let mut state = self.disk.state();
        if state.cuts == self.cuts {
            return std::future::ready(Ok(act(&mut state))).boxed_local();
        }
        // Whoever asked is dead, or will be in a moment.
        let io = self.io.clone();
        async move {
            io.sleep(OFF).await;
            Err(Error::new(ErrorKind::Interrupted, "the power went"))
        }
        .boxed_local()
    }
}

impl State {
    fn write(&mut self, offset: u64, data: Bytes, fua: bool) {
        self.live.write(offset, &data);
        if fua {
            // Older writes of the same sectors must not come after it.
            self.cached.push((offset, data.clone()));
            self.flush_range(offset, data.len());
        } else {
            self.cached.push((offset, data));
        }
    }

    /// Makes a range durable, and forgets what was cached of it.
    fn flush_range(&mut self, offset: u64, len: usize) {
        let end = offset + len as u64;
        let data = self.live.read(offset, len);
        self.durable.write(offset, &data);
        let cached = std::mem::take(&mut self.cached);
        for (start, data) in cached {
            let stop = start + data.len() as u64;
            let cut = |at: u64| usize::try_from(at.clamp(start, stop) - start).unwrap();
            let (before, after) = (data.slice(..cut(offset)), data.slice(cut(end)..));
            if !before.is_empty() {
                self.cached.push((start, before));
            }
            if !after.is_empty() {
                self.cached.push((stop - after.len() as u64, after));
            }
        }
    }

    fn flush(&mut self) {
        for (offset, data) in std::mem::take(&mut self.cached) {
            self.durable.write(offset, &data);
        }
        self.flushes += 1;
    }
}

impl Device for Connected {
    fn size(&self) -> u64 {
        self.disk.state().size
    }

    fn block_size(&self) -> u32 {
        512
    }

    fn read_only(&self) -> bool {
        false
    }

    fn multi_conn(&self) -> bool {
        true
    }

    fn read(&self, offset: u64, len: u64) -> LocalBoxFuture<'static, Result<Vec<Piece>>> {
        self.act(move |state| {
            vec![Piece::Data(state.live.read(offset, usize::try_from(len).unwrap()).into())]
        })
    }

    fn write(&self, offset: u64, data: Bytes, fua: bool) -> LocalBoxFuture<'static, Result<()>> {
        self.act(move |state| state.write(offset, data, fua))
    }

    /// Takes its time, so that a cut finds flushes under way.
    fn flush(&self) -> LocalBoxFuture<'static, Result<()>> {
        let (begun, end) = (self.act(|_| ()), self.clone());
        async move {
            begun.await?;
            end.io.sleep(FLUSH).await;
            end.act(State::flush).await
        }
        .boxed_local()
    }

    fn trim(&self, offset: u64, len: u64, fua: bool) -> LocalBoxFuture<'static, Result<()>> {
        self.zero(offset, len, ZeroHow { fua, ..ZeroHow::default() })
    }

    fn zero(&self, offset: u64, len: u64, how: ZeroHow) -> LocalBoxFuture<'static, Result<()>> {
        let zeros = Bytes::from(vec![0; usize::try_from(len).unwrap()]);
        self.act(move |state| state.write(offset, zeros, how.fua))
    }

    fn cache(&self, _: u64, _: u64) -> LocalBoxFuture<'static, Result<()>> {
        self.act(|_| ())
    }

    fn allocation(&self, _: u64, len: u64) -> LocalBoxFuture<'static, Result<Vec<Extent>>> {
        self.act(move |_| vec![Extent { len, flags: 0 }])
    }

    fn pin_delta(&self, _: &str) -> Result<()> {
        Err(Error::not_found("a disk has no snapshots"))
    }

    fn delta_bases(&self) -> Vec<String> {
        Vec::new()
    }

    fn delta(&self, _: &str, _: u64, _: u64) -> LocalBoxFuture<'static, Result<Vec<Extent>>> {
        std::future::ready(Err(Error::not_found("a disk has no snapshots"))).boxed_local()
    }

    fn closed(&self) -> LocalBoxFuture<'static, ()> {
        std::future::pending().boxed_local()
    }
}

impl Exports for LossyDisk {
    fn names(&self) -> Result<Vec<String>> {
        Ok(vec!["disk".to_owned()])
    }

    fn find(&self, _: &str) -> Result<Box<dyn Found>> {
        Ok(Box::new(self.clone()))
    }
}

impl Found for LossyDisk {
    fn name(&self) -> &str {
        "disk"
    }

    fn describe(&self) -> Result<ExportInfo> {
        Ok(ExportInfo {
            size: self.state().size,
            block_size: 512,
            read_only: false,
            multi_conn: true,
            delta_bases: Vec::new(),
        })
    }

    fn run(&self, _: String, serve: Serve) -> Result<()> {
        let (disk, cuts) = (self.clone(), self.state().cuts);
        let run = move || {
            let mut reactor = Reactor::new(io::driver(DriverKind::Plain).unwrap());
            let io = reactor.io();
            let connection = serve(io.clone(), Rc::new(Connected { disk, cuts, io }));
            reactor.block_on(connection);
        };
        std::thread::spawn(run);
        Ok(())
    }
}

#[test]
fn what_was_flushed_stays_and_the_rest_may_go() {
    let disk = LossyDisk::new(1 << 20);
    let mut rng = fastrand::Rng::with_seed(1);
    let bytes = |byte: u8, len: usize| Bytes::from(vec![byte; len]);
    let at = 1 << 16;
    {
        let mut state = disk.state();
        state.write(at, bytes(1, 8192), false);
        state.flush();
        state.write(at, bytes(2, 4096), false);
        state.write(at + 512, bytes(3, 512), true);
        state.write(at + 4096, bytes(4, 4096), false);
    }
    let lost = disk.cut(Loss::All, &mut rng);
    assert_eq!((lost.unflushed, lost.lost), (15, 15));
    let read = |offset: u64| disk.state().live.read(offset, 1)[0];
    assert_eq!([read(at), read(at + 512), read(at + 1024), read(at + 4096)], [1, 3, 1, 1]);
    disk.state().write(at + 512, bytes(5, 1 << 16), false);
    let lost = disk.cut(Loss::Pages, &mut rng);
    assert!(lost.unflushed == 128 && lost.lost > 0 && lost.lost < 128, "{lost:?}");
    for page in (at..at + (1 << 16)).step_by(BLOCK) {
        let read = disk.state().live.read(page + 512, BLOCK - 512);
        assert!(read.iter().all(|byte| *byte == read[0]) || page == at, "{page}");
    }
    disk.state().write(at, bytes(6, 8192), false);
    assert_eq!(disk.cut(Loss::None, &mut rng).lost, 0);
    assert_eq!([read(at), read(at + 8191)], [6, 6]);
}
