//! `promote`: a secondary becomes writable.

use crate::control::Access;
use crate::error::Result;
use crate::types::Name;

/// Make a received volume writable
///
/// Connections that are open stay read-only until they reconnect.
#[derive(clap::Args)]
pub(super) struct Args {
    /// The volume
    volume: Name,
}

pub(super) fn run(access: &Access, args: &Args) -> Result<()> {
    access.promote(args.volume.as_str())
}
