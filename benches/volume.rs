//! What the engine costs without sockets, over the real drivers, in a directory of its own.
//!
//! Small by default, so that the test suite can run it; `SNAPVOL_BENCH=full cargo bench
//! --bench volume` measures. Times are those of the counted items: blocks, snapshots.

use bytes::Bytes;
use divan::counter::{BytesCount, ItemsCount};
use divan::{Bencher, black_box};
use snapvol::engine::Store;
use snapvol::engine::api::{CreateOptions, SendRequest};
use snapvol::engine::store::OpenOptions;
use snapvol::io::{DriverKind, Reactor, driver};
use snapvol::snapshot::{SnapshotReader, TakeRequest, Volume, Who};
use snapvol::store::Tuning;
use snapvol::types::{Geometry, OnFull, Role};
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use uuid::Uuid;

fn main() {
    divan::main();
}

const BLOCK: u64 = 4096;

/// One size for the test suite, another to measure with.
fn size(tiny: u64, full: u64) -> u64 {
    if std::env::var_os("SNAPVOL_BENCH").is_some_and(|value| value == "full") { full } else { tiny }
}

/// Blocks of the volume that most benches use.
fn blocks() -> u64 {
    size(256, 1 << 16)
}

/// An open volume and what drives it.
struct Bench {
    reactor: RefCell<Reactor>,
    volume: Rc<Volume>,
    rng: RefCell<fastrand::Rng>,
    dir: PathBuf,
    /// Gone with the value.
    _root: tempfile::TempDir,
}

fn open(reactor: &mut Reactor, dir: &Path) -> Rc<Volume> {
    let (io, dir) = (reactor.io(), dir.to_owned());
    let opened = reactor
        .block_on(async move { Volume::open(&io, &dir, "v", Tuning::default(), &BTreeSet::new()).await });
    opened.expect("the volume opens").0
}

impl Bench {
    /// A volume of so many blocks, nothing in use.
    fn empty(blocks: u64) -> Self {
        let root = tempfile::Builder::new().prefix("snapvol-bench").tempdir().expect("a directory");
        let dir = root.path().join("v");
        let mut reactor = Reactor::new(driver(DriverKind::Auto).expect("a driver"));
        let (io, path) = (reactor.io(), dir.clone());
        let geometry = Geometry::new(blocks * BLOCK, 4096, 1).expect("a good geometry");
        reactor
            .block_on(async move {
                Volume::create(&io, &path, Uuid::from_u128(1), geometry, OnFull::Freeze, Role::Primary).await
            })
            .expect("a volume");
        let volume = open(&mut reactor, &dir);
        let rng = RefCell::new(fastrand::Rng::with_seed(1));
        Self { reactor: RefCell::new(reactor), volume, rng, dir, _root: root }
    }

    /// The same with every block in use, written in pieces of a block: large pieces make
    /// large folios, into which small writes are slow.
    fn filled(blocks: u64) -> Self {
        let this = Self::empty(blocks);
        this.write_all(0..blocks);
        this.run(|volume| async move { volume.flush().await });
        this
    }

    /// Runs a task on the volume to its end.
    fn run<T: 'static, F: Future<Output = snapvol::error::Result<T>> + 'static>(
        &self,
        task: impl FnOnce(Rc<Volume>) -> F,
    ) -> T {
        let task = task(Rc::clone(&self.volume));
        self.reactor.borrow_mut().block_on(task).expect("the task succeeds")
    }

    fn write(&self, offset: u64, data: &Bytes) {
        let data = data.clone();
        self.run(|volume| async move { volume.write(Who::Client, offset, data, false).await });
    }

    fn write_all(&self, blocks: impl Iterator<Item = u64> + 'static) {
        let data = block(7);
        self.run(|volume| async move {
            for block in blocks {
                volume.write(Who::Client, block * BLOCK, data.clone(), false).await?;
            }
            Ok(())
        });
    }

    fn take(&self, name: &str) {
        let request = TakeRequest {
            uuid: Uuid::new_v4(),
            name: name.to_owned(),
            created_us: 1,
            batch: None,
            received: false,
            set: None,
        };
        self.run(|volume| async move { volume.take(request).await });
    }

    fn delete(&self, name: &str) {
        let (uuid, _) = self.volume.can_delete(name).expect("it is there");
        self.run(|volume| async move { volume.delete(&[uuid]).await });
    }

    fn random_block(&self, blocks: u64) -> u64 {
        self.rng.borrow_mut().u64(0..blocks)
    }
}

fn block(value: u8) -> Bytes {
    Bytes::from(vec![value; 4096])
}

/// Nothing needs the old data.
#[divan::bench]
fn write_straight(bencher: Bencher<'_, '_>) {
    let bench = Bench::filled(blocks());
    let data = block(1);
    bencher
        .counter(ItemsCount::new(1_u64))
        .bench_local(|| bench.write(bench.random_block(blocks()) * BLOCK, &data));
}

/// Half a KiB of a block in use.
#[divan::bench]
fn write_a_part(bencher: Bencher<'_, '_>) {
    let bench = Bench::filled(blocks());
    let data = block(1).slice(..512);
    bencher
        .counter(ItemsCount::new(1_u64))
        .bench_local(|| bench.write(bench.random_block(blocks()) * BLOCK + 1024, &data));
}

/// Blocks that the tail has a before-image of.
#[divan::bench]
fn rewrite_after_a_snapshot(bencher: Bencher<'_, '_>) {
    let bench = Bench::filled(blocks());
    bench.take("s");
    let some = blocks() / 16;
    bench.write_all(0..some);
    // A take settles, a deletion brings the tail back.
    bench.take("t");
    bench.delete("t");
    let data = block(1);
    bencher
        .counter(ItemsCount::new(1_u64))
        .bench_local(|| bench.write(bench.random_block(some) * BLOCK, &data));
}

/// As long as the stage has room: what a client waits for.
#[divan::bench(sample_count = 10, sample_size = 1)]
fn first_writes_staged(bencher: Bencher<'_, '_>) {
    let count = size(16, 1024);
    let bench = Bench::filled(blocks());
    let number = RefCell::new(0);
    bencher
        .with_inputs(|| {
            *number.borrow_mut() += 1;
            bench.take(&format!("s{}", number.borrow()));
            *number.borrow() * count % (blocks() - count)
        })
        .counter(ItemsCount::new(count))
        .bench_local_values(|first| bench.write_all(first..first + count));
}

/// With all that follows: before-images saved and synced, data in the clone volume. The
/// snapshot that ends it is part of the time.
#[divan::bench(sample_count = 5, sample_size = 1)]
fn first_writes_settled(bencher: Bencher<'_, '_>) {
    let count = size(64, 16_384);
    let bench = Bench::filled(blocks());
    bench.take("s0");
    let number = RefCell::new(0);
    bencher.counter(ItemsCount::new(count)).bench_local(|| {
        *number.borrow_mut() += 1;
        let first = *number.borrow() * count % (blocks() - count);
        bench.write_all(first..first + count);
        bench.take(&format!("s{}", number.borrow()));
    });
}

#[divan::bench(args = [false, true], sample_count = 20)]
fn writes_with_a_flush_every_32(bencher: Bencher<'_, '_>, after_a_snapshot: bool) {
    let bench = Bench::filled(blocks());
    if after_a_snapshot {
        bench.take("s");
    }
    let data = block(1);
    bencher.counter(ItemsCount::new(32_u64)).bench_local(|| {
        for _ in 0..32 {
            bench.write(bench.random_block(blocks()) * BLOCK, &data);
        }
        bench.run(|volume| async move { volume.flush().await });
    });
}

/// So many snapshots, each with before-images of its own; the last one is `s0`'s youngest.
fn with_snapshots(count: u64, changed: u64) -> Bench {
    let bench = Bench::filled(blocks());
    let mut rng = fastrand::Rng::with_seed(2);
    for number in 0..count {
        bench.take(&format!("s{number}"));
        let some: Vec<u64> = (0..changed).map(|_| rng.u64(0..blocks())).collect();
        bench.write_all(some.into_iter());
    }
    bench.run(|volume| async move { volume.flush().await });
    bench
}

#[divan::bench(args = ["oldest", "youngest"])]
fn read_of_a_snapshot(bencher: Bencher<'_, '_>, which: &str) {
    let count = size(5, 100);
    let bench = with_snapshots(count, size(8, 256));
    let name = if which == "oldest" { "s0".to_owned() } else { format!("s{}", count - 1) };
    let reader: Rc<SnapshotReader> = Rc::new(bench.volume.open_snapshot(&name).expect("it is there"));
    bencher.counter(ItemsCount::new(1_u64)).bench_local(|| {
        let (reader, at) = (Rc::clone(&reader), bench.random_block(blocks()) * BLOCK);
        black_box(bench.run(|_| async move { reader.read(at, BLOCK).await }))
    });
}

/// Nothing was written since the one before.
#[divan::bench(sample_size = 1)]
fn take(bencher: Bencher<'_, '_>) {
    let bench = Bench::filled(blocks());
    let number = RefCell::new(0_u64);
    bencher.counter(ItemsCount::new(1_u64)).bench_local(|| {
        *number.borrow_mut() += 1;
        bench.take(&format!("s{}", number.borrow()));
    });
}

#[divan::bench(args = [false, true], sample_count = 10, sample_size = 1)]
fn delete(bencher: Bencher<'_, '_>, many: bool) {
    let saved = if many { size(64, 16_384) } else { size(8, 256) };
    let bench = Bench::filled(blocks());
    let number = RefCell::new(0_u64);
    bencher
        .with_inputs(|| {
            let last = *number.borrow();
            *number.borrow_mut() += 1;
            bench.take(&format!("x{}", last + 1));
            bench.write_all(0..saved);
            bench.take(&format!("y{}", last + 1));
            if last > 0 {
                bench.delete(&format!("y{last}"));
            }
            format!("x{}", last + 1)
        })
        .counter(ItemsCount::new(saved))
        .bench_local_values(|name| bench.delete(&name));
}

/// One block in a hundred of 64 GiB, changed over ten snapshots.
#[divan::bench(sample_count = 10)]
fn delta_over_ten_snapshots(bencher: Bencher<'_, '_>) {
    let (blocks, changed) = (size(1 << 14, 1 << 24), size(160, (1 << 24) / 100));
    let bench = Bench::empty(blocks);
    let mut rng = fastrand::Rng::with_seed(3);
    let places: Vec<u64> = (0..changed).map(|_| rng.u64(0..blocks)).collect();
    bench.write_all(places.clone().into_iter());
    for (number, part) in places.chunks(places.len().div_ceil(10)).enumerate() {
        bench.take(&format!("s{number}"));
        let part = part.to_vec();
        bench.write_all(part.into_iter());
    }
    bench.take("end");
    bencher.counter(ItemsCount::new(changed)).bench_local(|| {
        let delta = bench.run(|volume| async move { volume.delta("s0", Some("end")).await });
        assert!(delta.totals().0 > 0);
        black_box(delta)
    });
}

/// Opening and closing, with so many snapshots.
#[divan::bench(args = [1, 1000], sample_count = 10, sample_size = 1)]
fn open_and_close(bencher: Bencher<'_, '_>, snapshots: u64) {
    let bench = with_snapshots(snapshots.min(size(10, 1000)), size(4, 16));
    bench.run(|volume| async move { volume.close().await });
    let Bench { reactor, dir, _root, .. } = bench;
    bencher.counter(ItemsCount::new(1_u64)).bench_local(|| {
        let mut reactor = reactor.borrow_mut();
        let volume = open(&mut reactor, &dir);
        reactor.block_on(async move { volume.close().await }).expect("it closes");
    });
}

/// A delta of scattered blocks as a stream, from the store to the reader.
#[divan::bench(args = [false, true], sample_count = 5, sample_size = 1)]
fn send_of_a_delta(bencher: Bencher<'_, '_>, compress: bool) {
    let root = tempfile::Builder::new().prefix("snapvol-bench").tempdir().expect("a directory");
    let dir = root.path().join("store");
    let blocks = blocks();
    Store::init(&dir).expect("a store");
    let store = Store::open(&dir, OpenOptions::default()).expect("it opens");
    let options =
        CreateOptions { size: blocks * BLOCK, block_size: 4096, granularity: 1, on_full: OnFull::Freeze };
    store.create("v", &options).expect("a volume");
    store.close().expect("it closes");
    let bench = {
        let mut reactor = Reactor::new(driver(DriverKind::Auto).expect("a driver"));
        let path = dir.join("volumes/v");
        let volume = open(&mut reactor, &path);
        let rng = RefCell::new(fastrand::Rng::with_seed(1));
        Bench { reactor: RefCell::new(reactor), volume, rng, dir: path, _root: root }
    };
    bench.write_all(0..blocks);
    bench.take("a");
    bench.write_all((0..blocks).step_by(4));
    bench.take("b");
    bench.run(|volume| async move { volume.close().await });
    let Bench { _root, .. } = bench;
    let store = Store::open(&dir, OpenOptions::default()).expect("it opens");
    let request = SendRequest {
        volume: "v".to_owned(),
        snapshot: "b".to_owned(),
        from: Some("a".to_owned()),
        compress,
        resume: None,
    };
    bencher.counter(BytesCount::new(blocks / 4 * BLOCK)).bench_local(|| {
        let mut stream = store.send(&request).expect("a stream");
        let mut buffer = vec![0; 256 << 10];
        let mut total = 0;
        loop {
            let read = stream.read(&mut buffer).expect("it is read");
            if read == 0 {
                break;
            }
            total += read;
        }
        assert!(total > 0);
    });
    store.close().expect("it closes");
}
