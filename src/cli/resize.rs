//! `resize`: a volume's size.

use super::{leases, with_store};
use crate::error::{Error, Result};
use crate::types::{Name, SECTOR, parse_size};
use std::path::Path;

/// Grow a volume, also while it is served; or shrink it
#[derive(clap::Args)]
pub(super) struct Args {
    /// The volume
    volume: Name,

    /// The new size in bytes; a multiple of 512
    #[arg(value_parser = parse_size)]
    size: u64,

    /// Allow to shrink: cuts data off the end and disconnects clients; snapshots keep theirs
    #[arg(long)]
    force: bool,
}

pub(super) fn run(dir: &Path, args: &Args) -> Result<()> {
    if args.size == 0 || !args.size.is_multiple_of(SECTOR) {
        return Err(Error::invalid(format!("size {} is not a positive multiple of 512 bytes", args.size)));
    }
    if args.force {
        // A device that is attached stays larger than the volume is then.
        leases::end(dir, true, |export| export.is_volume(&args.volume))?;
    }
    with_store(dir, |access| access.resize(args.volume.as_str(), args.size, args.force))
}
