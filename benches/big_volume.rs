//! A volume as large as one likes, all of it in use, that takes no space: its maps are
//! made, its data is the hole that the clone volume is. With as many snapshots and changed
//! blocks between them as one asks for.
//!
//! It is for measuring what depends on maps alone. What a program could not have written
//! are only the before-images: they are mapped as damaged, so that no save volume has to
//! hold them. Whoever reads such a block of a snapshot gets an error, and whoever reads
//! anything else gets zeros.

use clap::{Parser, Subcommand};
use serde_json::json;
use snapvol::format::journal::Record;
use snapvol::format::state::{CheckpointRecord, LayerRecord, SnapshotRecord, VolumeState};
use snapvol::io::{DriverKind, Io, OpenHow, Reactor, driver};
use snapvol::map::{BitMap, BlockMap, LayerContents, SavedImage, checkpoint, layer};
use snapvol::snapshot::Volume;
use snapvol::store::paths::VolumePaths;
use snapvol::store::{Tuning, journal, replay};
use snapvol::types::{Block, Epoch, SaveAddr, Seq};
use snapvol::{Error, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Instant;
use uuid::Uuid;

/// Makes large volumes that take no space, and measures deltas in them.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Fills the maps of a new volume that nobody serves.
    Make {
        /// The volume's directory, STORE/volumes/VOL.
        dir: PathBuf,
        /// Snapshots, named s0, s1 and so on.
        #[arg(long, default_value_t = 0)]
        snapshots: u64,
        /// Blocks changed in all, at random, in equal parts after each snapshot but the last.
        #[arg(long, default_value_t = 0)]
        changed: u64,
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// Opens the volume, computes the delta from its oldest to its youngest snapshot from the
    /// maps, and prints what that took.
    Scan {
        /// The volume's directory.
        dir: PathBuf,
    },
}

fn main() {
    let done = match Arguments::parse().command {
        Command::Make { dir, snapshots, changed, seed } => on_reactor(async move |io| {
            make(&io, &VolumePaths(dir), snapshots, changed, &mut fastrand::Rng::with_seed(seed)).await
        }),
        Command::Scan { dir } => on_reactor(async move |io| scan(&io, &dir).await),
    };
    if let Err(error) = done {
        eprintln!("big_volume: {error}");
        std::process::exit(1);
    }
}

fn on_reactor(task: impl AsyncFnOnce(Io) -> Result<()> + 'static) -> Result<()> {
    let mut reactor =
        Reactor::new(driver(DriverKind::Auto).map_err(|error| Error::os("start a driver", error))?);
    let io = reactor.io();
    reactor.block_on(task(io))
}

async fn make(
    io: &Io,
    paths: &VolumePaths,
    snapshots: u64,
    changed: u64,
    rng: &mut fastrand::Rng,
) -> Result<()> {
    let replayed = replay::read(io, &paths.journal()).await?;
    let Some((_, Record::State(state))) = replayed.records.into_iter().next() else {
        return Err(Error::corrupt("the journal does not begin with a state"));
    };
    if !state.snapshots.is_empty() || state.checkpoint.file != 0 {
        return Err(Error::conflict("the volume is not new").hint("make one with 'snapvol create'"));
    }
    let mut state = VolumeState { seq: Seq(2), ..*state };
    let blocks = state.geometry.size.div_ceil(u64::from(state.geometry.block_size));
    let granules = blocks.div_ceil(u64::from(state.geometry.granularity));
    state.checkpoint = write_checkpoint(io, paths, state.uuid, granules).await?;
    for number in 0..snapshots {
        let first = state.epoch.next();
        state.snapshots.push(SnapshotRecord {
            uuid: Uuid::new_v4(),
            name: format!("s{number}"),
            created_us: number + 1,
            epoch: first,
            size: state.geometry.size,
            in_use: granules,
            holds: Vec::new(),
            set: None,
        });
        state.epoch = first;
        if number + 1 < snapshots {
            let share = changed * (number + 1) / (snapshots - 1) - changed * number / (snapshots - 1);
            let bits: BitMap = (0..share).map(|_| rng.u64(0..blocks)).collect();
            let layer = write_layer(io, paths, state.uuid, first, bits).await?;
            state.layers.push(layer);
            state.unsealed = first.next();
        }
    }
    io.sync_dir(&paths.snapshots()).await?;
    io.remove(&paths.journal()).await?;
    io.remove(&paths.journal_copy()).await?;
    journal::create(io, paths, state.uuid, &Record::State(Box::new(state.clone()))).await?;
    io.sync_dir(&paths.0).await
}

/// Every granule is in use, and none is stale.
async fn write_checkpoint(
    io: &Io,
    paths: &VolumePaths,
    volume: Uuid,
    granules: u64,
) -> Result<CheckpointRecord> {
    let (mut all, seq) = (BitMap::new(), Seq(1));
    all.set_range(0..granules);
    let maps = (&all, &BitMap::new());
    // Both files, as a volume has them that was closed in good order.
    for number in [1, 2] {
        let file = io.open(&paths.checkpoint(number), OpenHow::CreateNew).await?;
        for (offset, piece) in checkpoint::update(None, maps, (granules, granules), seq, seq.0, volume) {
            io.write_all(file, offset, vec![piece]).await?;
        }
        io.sync(file).await?;
        io.close(file);
    }
    Ok(CheckpointRecord { file: 1, seq, tail_pages: false })
}

async fn write_layer(
    io: &Io,
    paths: &VolumePaths,
    volume: Uuid,
    first: Epoch,
    bits: BitMap,
) -> Result<LayerRecord> {
    let image = SavedImage { addr: SaveAddr::from_word(0), crc: 0, damaged: true };
    let entries: BlockMap = bits.iter_set(0..u64::MAX).map(|block| (Block(block), image)).collect();
    let count = bits.count();
    let (epochs, version) = (first..first.next(), first.0);
    let contents =
        LayerContents { volume, epochs: epochs.clone(), bits, entries, meta_pages: BTreeMap::new() };
    let file = io.open(&paths.layer(first, version), OpenHow::CreateNew).await?;
    let mut at = 0;
    for piece in layer::encode(&contents) {
        let len = piece.len() as u64;
        io.write_all(file, at, vec![piece]).await?;
        at += len;
    }
    io.sync(file).await?;
    io.close(file);
    let live = Vec::new();
    Ok(LayerRecord { first, end: epochs.end, entries: count, live, version, pages: 0 })
}

async fn scan(io: &Io, dir: &Path) -> Result<()> {
    let start = Instant::now();
    let (volume, _) = Volume::open(io, dir, "v", Tuning::default(), &BTreeSet::new()).await?;
    let opened = start.elapsed();
    let snapshots = volume.snapshots();
    let (Some(from), Some(to)) = (snapshots.first(), snapshots.last()) else {
        return Err(Error::not_found("the volume has no snapshots"));
    };
    let before = resident();
    let start = Instant::now();
    let delta = volume.delta(&from.name, Some(&to.name)).await?;
    let seconds = start.elapsed().as_secs_f64();
    let (write, discard) = delta.totals();
    println!(
        "{}",
        json!({
            "open_seconds": opened.as_secs_f64(),
            "seconds": seconds,
            "changed_bytes": write,
            "discarded_bytes": discard,
            "anonymous_before": before.0,
            "anonymous_after": resident().0,
            "resident_after": resident().1,
        })
    );
    volume.close().await
}

/// Anonymous and all resident memory of this process in bytes; mapped files are only in
/// the second.
fn resident() -> (u64, u64) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let kib = line.and_then(|rest| rest.split_whitespace().next()).and_then(|n| n.parse::<u64>().ok());
        kib.unwrap_or(0) * 1024
    };
    (field("RssAnon:"), field("VmRSS:"))
}
