//! `pause` and `resume`: a session rests, or goes on.

use crate::control::Access;
use crate::error::Result;
use crate::types::Name;

/// Have the sessions of a volume rest, or one of them
///
/// What changes meanwhile is kept and travels after 'resume', each block once.
#[derive(clap::Args)]
pub(super) struct Args {
    /// The volume, or a group
    #[arg(value_name = "VOL")]
    volume: Name,
    /// Only the session to this destination
    #[arg(value_name = "DEST")]
    destination: Option<String>,
}

/// Have the sessions of a volume go on, or one of them; one that rests after a failure tries at once
#[derive(clap::Args)]
pub(super) struct ResumeArgs {
    #[command(flatten)]
    args: Args,
}

pub(super) fn run(access: &Access, args: &Args) -> Result<()> {
    set(access, args, true)
}

pub(super) fn resume(access: &Access, args: &ResumeArgs) -> Result<()> {
    set(access, &args.args, false)
}

fn set(access: &Access, args: &Args, paused: bool) -> Result<()> {
    let there = args.destination.as_deref();
    access.pause(args.volume.as_str(), there, paused)
}
