//! `release`: the end of a hold.

use super::args::parse_tag;
use crate::control::Access;
use crate::error::Result;
use crate::types::SnapName;

/// Take away a hold
#[derive(clap::Args)]
pub(super) struct Args {
    /// The snapshot
    #[arg(value_name = "VOL@SNAP")]
    name: SnapName,

    /// The hold's tag
    #[arg(value_parser = parse_tag)]
    tag: String,
}

pub(super) fn run(access: &Access, args: &Args) -> Result<()> {
    access.release(&args.name, &args.tag)
}
