//! `rollback`: production becomes a snapshot again.

use super::progress::Progress;
use super::{leases, with_store};
use crate::error::Result;
use crate::types::SnapName;
use std::path::Path;

/// Make a volume equal one of its snapshots again; younger snapshots stay
///
/// What was written since is lost unless a snapshot has it.
#[derive(clap::Args)]
pub(super) struct Args {
    /// The snapshot
    #[arg(value_name = "VOL@SNAP")]
    name: SnapName,

    /// Disconnect clients that have the volume open, instead of refusing
    #[arg(long)]
    force: bool,
}

pub(super) fn run(dir: &Path, args: &Args) -> Result<()> {
    leases::end(dir, args.force, |export| export.is_volume(&args.name.volume))?;
    let _progress = Progress::spinner("rolling back");
    with_store(dir, |access| access.rollback(&args.name, args.force))
}
