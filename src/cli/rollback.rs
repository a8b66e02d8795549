//! `rollback`: production becomes a snapshot again.

use super::progress::Progress;
use crate::control::Access;
use crate::error::Result;
use crate::types::SnapName;

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

pub(super) fn run(access: &Access, args: &Args) -> Result<()> {
    let _progress = Progress::spinner("rolling back");
    access.rollback(&args.name, args.force)
}
