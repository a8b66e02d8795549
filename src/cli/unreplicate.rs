//! `unreplicate`: ends a session.

use crate::control::Access;
use crate::error::Result;
use crate::types::Name;

/// End a session of replication
///
/// The volume there stays as it is, a secondary that shows the last set. At a secondary, without
/// a destination, it parts the volume from a sender that is gone for good.
#[derive(clap::Args)]
pub(super) struct Args {
    /// The volume, or a group
    #[arg(value_name = "VOL")]
    volume: Name,
    /// The session's destination, as it was given
    #[arg(value_name = "DEST")]
    destination: Option<String>,
}

pub(super) fn run(access: &Access, args: &Args) -> Result<()> {
    let there = args.destination.as_deref();
    if let Some(said) = access.unreplicate(args.volume.as_str(), there)? {
        eprintln!("{said}");
    }
    Ok(())
}
