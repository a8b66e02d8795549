//! `snapshot`: snapshots of one or more volumes, or of groups, at one instant.

use crate::control::Access;
use crate::error::Result;
use crate::types::SnapName;

/// Take snapshots, all at one instant: all or none
#[derive(clap::Args)]
pub(super) struct Args {
    /// The snapshots to take; of each volume at most one. A group stands for its volumes
    #[arg(required = true, value_name = "VOL@SNAP")]
    names: Vec<SnapName>,
}

pub(super) fn run(access: &Access, args: &Args) -> Result<()> {
    access.snapshot(&args.names)
}
