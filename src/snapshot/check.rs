//! Checking a volume that nobody has open: recovery is replayed in memory only, nothing
//! is written.

use super::recover;
use super::verify::{Found, Verified};
use crate::error::Error;
use crate::format::journal::Record;
use crate::format::state::VolumeState;
use crate::io::{Io, OpenHow};
use crate::map::SealedLayer;
use crate::store::paths::VolumePaths;
use crate::store::save::SaveVolume;
use crate::store::{Tuning, replay};
use crate::types::Epoch;
use std::ops::Range;
use std::path::PathBuf;
use std::rc::Rc;
use uuid::Uuid;

/// Checks the structure and all metadata checksums; also says how many snapshots there are.
pub async fn check_closed(io: &Io, paths: &VolumePaths) -> (Verified, u64) {
    let mut out = Verified::default();
    let state = match replay::read(io, &paths.journal()).await {
        Ok(replay) => {
            out.files += 1;
            out.bytes += replay.end;
            state_of(&replay.records, io, paths, &mut out).await
        }
        Err(error) => {
            found(&mut out, paths.journal(), &error);
            None
        }
    };
    let Some(state) = state else { return (out, 0) };
    check_clone(io, paths, &state, &mut out).await;
    check_layers(io, paths, &state, &mut out).await;
    check_segments(io, paths, &state, &mut out).await;
    let snapshots = state.snapshots.iter().filter(|r| !r.is_internal()).count() as u64;
    (out, snapshots)
}

fn found(out: &mut Verified, file: PathBuf, error: &Error) {
    out.found.push(Found { snapshot: None, file, block: None, problem: error.to_string() });
}

async fn state_of(
    records: &[(crate::types::Seq, Record)],
    io: &Io,
    paths: &VolumePaths,
    out: &mut Verified,
) -> Option<VolumeState> {
    let Some((_, Record::State(first))) = records.first() else { return None };
    if first.checkpoint.file != 0 {
        out.files += 1;
        if let Err(error) = recover::load_checkpoint(io, paths, first).await {
            found(out, paths.checkpoint(first.checkpoint.file), &error);
        }
    }
    if let (true, Some(tail)) = (first.checkpoint.tail_pages, first.snapshots.last()) {
        let path = paths.tail_pages(first.checkpoint.seq.0);
        check_sealed(io, first.uuid, path, tail.epoch..tail.epoch.next(), Some(&tail.name), out).await;
    }
    let mut state = (**first).clone();
    for (_, record) in &records[1..] {
        state.apply(record);
    }
    Some(state)
}

async fn check_clone(io: &Io, paths: &VolumePaths, state: &VolumeState, out: &mut Verified) {
    let path = paths.clone_volume();
    out.files += 1;
    let result = async {
        let file = io.open(&path, OpenHow::Read).await?;
        let size = io.size(file).await;
        io.close(file);
        size
    }
    .await;
    match result {
        Ok(size) if size < state.geometry.size => {
            let text = format!("the file has {size} bytes, the volume {}", state.geometry.size);
            found(out, path, &Error::corrupt(text));
        }
        Ok(_) => {}
        Err(error) => found(out, path, &error),
    }
}

async fn check_layers(io: &Io, paths: &VolumePaths, state: &VolumeState, out: &mut Verified) {
    for layer in &state.layers {
        let path = paths.layer(layer.first, layer.version);
        let owner = state.snapshots.iter().rev().find(|r| r.epoch <= layer.first);
        let name = owner.map(|r| r.name.as_str());
        check_sealed(io, state.uuid, path, layer.first..layer.end, name, out).await;
    }
}

/// A file of the form of a sealed layer.
async fn check_sealed(
    io: &Io,
    volume: Uuid,
    path: PathBuf,
    epochs: Range<Epoch>,
    snapshot: Option<&str>,
    out: &mut Verified,
) {
    out.files += 1;
    let result = async {
        let mapped = io.map(&path).await?;
        let bytes = mapped.len() as u64;
        SealedLayer::open(mapped, volume, epochs)?.verify()?;
        Ok::<_, Error>(bytes)
    }
    .await;
    match result {
        Ok(bytes) => out.bytes += bytes,
        Err(error) => {
            let snapshot = snapshot.map(str::to_owned);
            out.found.push(Found { snapshot, file: path, block: None, problem: error.to_string() });
        }
    }
}

async fn check_segments(io: &Io, paths: &VolumePaths, state: &VolumeState, out: &mut Verified) {
    let size = state.geometry.block_size;
    let save = Rc::new(SaveVolume::new(io.clone(), paths.clone(), state.uuid, size, Tuning::default()));
    for (number, segment) in &state.segments {
        save.add(*number, segment);
        out.files += 1;
        match save.scan(*number, segment.mark).await {
            Ok(groups) => {
                out.bytes += groups.iter().map(|g| g.header.entries.len() as u64 * 16 + 64).sum::<u64>();
            }
            // An empty segment may have begun its next life without the record.
            Err(_)
                if !state.layers.iter().any(|l| l.live.iter().any(|(n, _)| n == number))
                    && segment.closed.is_some_and(|e| e < state.unsealed) => {}
            Err(error) => found(out, paths.segment(*number), &error),
        }
    }
}
