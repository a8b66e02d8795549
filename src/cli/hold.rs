//! `hold`: a snapshot that must not be deleted.

use super::args::parse_tag;
use crate::control::Access;
use crate::error::Result;
use crate::types::SnapName;

/// Keep a snapshot from being deleted until it is released
#[derive(clap::Args)]
pub(super) struct Args {
    /// The snapshot
    #[arg(value_name = "VOL@SNAP")]
    name: SnapName,

    /// Who holds it; a snapshot can have several holds
    #[arg(value_parser = parse_tag)]
    tag: String,
}

pub(super) fn run(access: &Access, args: &Args) -> Result<()> {
    access.hold(&args.name, &args.tag)
}
