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

    /// Also a primary that waits for a receiver's word, or that gave way to another one: it goes on
    /// alone, and what it writes is apart from what the other one writes
    #[arg(long)]
    force: bool,
}

pub(super) fn run(access: &Access, args: &Args) -> Result<()> {
    access.promote(args.volume.as_str(), args.force)
}
