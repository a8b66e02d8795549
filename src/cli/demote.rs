//! `demote`: a primary becomes a secondary.

use crate::control::Access;
use crate::error::Result;
use crate::types::Name;

/// Make a volume read-only, to be changed by receive alone
#[derive(clap::Args)]
pub(super) struct Args {
    /// The volume
    volume: Name,

    /// Disconnect writers, instead of refusing
    #[arg(long)]
    force: bool,
}

pub(super) fn run(access: &Access, args: &Args) -> Result<()> {
    access.demote(args.volume.as_str(), args.force)
}
