//! A writer that stamps blocks in turn, each write after the one before was acknowledged.
//!
//! So a state is one that the volume had if and only if it is what the stamps up to some number
//! leave; that number is the state's.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use super::wait_for;
use snapvol::nbd::client::{Client, Options};

const BLOCK: u64 = 4096;
const MIB: u64 = 1 << 20;

/// Stamps a volume until it is dropped, through every restart of its server.
pub struct Stamper {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Stamper {
    /// Stamps the first `blocks` blocks of `v` in the store, from stamp 1 on.
    pub fn start(store: &Path, blocks: u64, pause: Duration) -> Self {
        let (stop, acknowledged) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let (flag, count, socket) = (stop.clone(), acknowledged.clone(), store.join("nbd.sock"));
        let thread = std::thread::spawn(move || {
            let mut stamp = 1u64;
            while !flag.load(Ordering::SeqCst) {
                let Ok(mut client) = Client::unix(&socket, "v", &Options::default()) else {
                    std::thread::sleep(Duration::from_millis(20));
                    continue;
                };
                while !flag.load(Ordering::SeqCst) {
                    let data = stamp.to_le_bytes().repeat(512);
                    if client.write(stamp % blocks * BLOCK, &data, false).is_err() {
                        // Whether it was done or not: it is done again.
                        break;
                    }
                    count.store(stamp, Ordering::SeqCst);
                    stamp += 1;
                    std::thread::sleep(pause);
                }
            }
        });
        Self { stop, acknowledged, thread: Some(thread) }
    }

    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::SeqCst)
    }

    /// Waits until it has written so many more.
    #[track_caller]
    pub fn more(&self, count: u64) {
        let before = self.acknowledged();
        wait_for("more stamps", Duration::from_secs(60), || self.acknowledged() >= before + count);
    }

    /// Ends it; returns the last stamp.
    pub fn end(mut self) -> u64 {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.take().unwrap().join().unwrap();
        self.acknowledged()
    }
}

impl Drop for Stamper {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}

/// The number of the state that an export shows; it must be one that the primary had.
#[track_caller]
pub fn state(store: &Path, export: &str, blocks: u64) -> u64 {
    let mut client = Client::unix(&store.join("nbd.sock"), export, &Options::default()).unwrap();
    let mut bytes = Vec::new();
    while (bytes.len() as u64) < blocks * BLOCK {
        let left = blocks * BLOCK - bytes.len() as u64;
        let at = bytes.len() as u64;
        bytes.extend(client.read(at, u32::try_from(left.min(MIB)).unwrap()).unwrap());
    }
    let stamps: Vec<u64> = bytes
        .chunks(usize::try_from(BLOCK).unwrap())
        .map(|block| {
            let stamp = u64::from_le_bytes(block[..8].try_into().unwrap());
            assert!(block == stamp.to_le_bytes().repeat(512), "a block of several stamps");
            stamp
        })
        .collect();
    let last = stamps.iter().copied().max().unwrap();
    for (block, stamp) in (0..).zip(stamps) {
        // The largest number up to the last that stamps this block; 0 where there is none.
        let expected = if block > last { 0 } else { last - (last - block) % blocks };
        assert_eq!(stamp, expected, "block {block} in a state of stamp {last}");
    }
    last
}
