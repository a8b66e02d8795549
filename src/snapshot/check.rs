//! Checking a volume that nobody has open: recovery is replayed in memory only, nothing
//! is written.

use super::inspect::{Inspector, REWRITES, Verified};
use super::mend::{Sources, is_damage};
use super::recover;
use crate::error::{Error, Result};
use crate::format::journal::Record;
use crate::format::state::VolumeState;
use crate::io::{Io, OpenHow};
use crate::store::paths::VolumePaths;
use crate::store::replay::Replay;
use crate::store::save::SaveVolume;
use crate::store::{Tuning, journal_copy, replay};
use std::rc::Rc;

/// Checks the structure and all metadata checksums, with `images` also every before-image;
/// also says how many snapshots there are.
///
/// # Errors
/// Only what keeps it from looking; damage is reported in the result.
pub async fn check_closed(io: &Io, paths: &VolumePaths, images: bool) -> Result<(Verified, u64)> {
    let mut out = Verified::default();
    let (records, clean) = match replay::read(io, &paths.journal()).await {
        Ok(replay) => {
            out.files += 1;
            out.bytes += replay.end;
            if let Some(what) = &replay.mended {
                let error = Error::corrupt(format!("{what}; its second copy is whole"));
                out.file(paths.journal(), &error, "the volume begins a new journal when it is opened");
            }
            check_copy(io, paths, &replay, &mut out).await?;
            if let Some(error) = recover::stage_lost(io, paths, &replay).await? {
                let advice = "put the file back, or 'check --repair' goes on with what was flushed";
                out.file(paths.stage(), &error, advice);
            }
            (replay.records, replay.clean)
        }
        Err(error) => {
            out.file(paths.journal(), &error, "restore the volume's directory from a copy");
            return Ok((out, 0));
        }
    };
    let Some((_, Record::State(first))) = records.first() else { return Ok((out, 0)) };
    let mut state = (**first).clone();
    for (_, record) in &records[1..] {
        state.apply(record);
    }
    check_clone(io, paths, &state, &mut out).await?;
    for dir in [paths.save(), paths.snapshots()] {
        if let Err(error) = io.list(&dir).await {
            out.file(dir, &error, "the volume was copied in part: restore its directory from a whole copy");
        }
    }
    let size = state.geometry.block_size;
    let save = Rc::new(SaveVolume::new(io.clone(), paths.clone(), state.uuid, size, Tuning::default()));
    for (number, segment) in &state.segments {
        save.add(*number, segment);
    }
    let sources = Sources { io, paths, save: &save, volume: state.uuid, block_size: size };
    let mut look = Inspector { sources, state: &state, images, clean, out };
    look.checkpoint(first).await?;
    look.layers_and_segments().await?;
    let snapshots = state.snapshots.iter().filter(|r| !r.is_internal()).count() as u64;
    Ok((look.out, snapshots))
}

/// The second copy of what the journal begins with. After a crash it may be of the file
/// before.
async fn check_copy(io: &Io, paths: &VolumePaths, replay: &Replay, out: &mut Verified) -> Result<()> {
    out.files += 1;
    let number = replay.header.number;
    let problem = match journal_copy::read(io, &paths.journal_copy()).await {
        Ok(_) if !replay.clean => return Ok(()),
        Ok(copy) if copy.torn => Error::corrupt("its last record is damaged"),
        Ok(copy) if copy.header.number == number => return Ok(()),
        Ok(copy) => Error::corrupt(format!("it is of file number {}, not {number}", copy.header.number)),
        Err(error) if is_damage(&error) => error,
        Err(error) => return Err(error),
    };
    out.file(paths.journal_copy(), &problem, REWRITES);
    Ok(())
}

async fn check_clone(io: &Io, paths: &VolumePaths, state: &VolumeState, out: &mut Verified) -> Result<()> {
    let path = paths.clone_volume();
    out.files += 1;
    let largest = state.snapshots.iter().map(|s| s.size).fold(state.geometry.size, u64::max);
    let result = async {
        let file = io.open(&path, OpenHow::Read).await?;
        let size = io.size(file).await;
        io.close(file);
        size
    }
    .await;
    let advice = "nothing else has the production data: restore the volume's directory from a copy";
    match result {
        Ok(size) if size < largest => {
            let text = format!("the file has {size} bytes, the volume or a snapshot {largest}");
            out.file(path, &Error::corrupt(text), advice);
        }
        Ok(_) => {}
        Err(error) if is_damage(&error) => out.file(path, &error, advice),
        Err(error) => return Err(error),
    }
    Ok(())
}
