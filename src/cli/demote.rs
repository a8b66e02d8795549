//! `demote`: a primary becomes a secondary.

use super::{leases, with_store};
use crate::error::Result;
use crate::types::Name;
use std::path::Path;

/// Make a volume read-only, to be changed by receive alone
#[derive(clap::Args)]
pub(super) struct Args {
    /// The volume
    volume: Name,

    /// Disconnect writers, instead of refusing
    #[arg(long)]
    force: bool,
}

pub(super) fn run(dir: &Path, args: &Args) -> Result<()> {
    leases::end(dir, args.force, |export| export.is_volume(&args.volume))?;
    with_store(dir, |access| access.demote(args.volume.as_str(), args.force))
}
