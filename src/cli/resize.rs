//! `resize`: a volume's size.

use crate::control::Access;
use crate::error::{Error, Result};
use crate::types::{Name, SECTOR, parse_size};

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

pub(super) fn run(access: &Access, args: &Args) -> Result<()> {
    if args.size == 0 || !args.size.is_multiple_of(SECTOR) {
        return Err(Error::invalid(format!("size {} is not a positive multiple of 512 bytes", args.size)));
    }
    access.resize(args.volume.as_str(), args.size, args.force)
}
