//! `failback`: a healthy pair is turned around.

use super::args::parse_time;
use super::progress::Progress;
use super::{leases, output, with_store};
use crate::control::Access;
use crate::engine::groups::GroupRequest;
use crate::error::Result;
use crate::types::Name;
use std::path::Path;

/// Milliseconds that writers may wait, unless it is said.
pub(super) const PAUSE_MAX_MS: u64 = 10_000;

/// Have a volume and the one that follows it change roles, with nothing lost
///
/// On either side. What has changed is shipped while the volume is in use; then writers wait for the
/// last of it, are cut off, and find the volume at the other side. If that does not arrive in time,
/// they go on and the roles stay. Run again after an interruption, it goes on.
#[derive(clap::Args)]
pub(super) struct Args {
    /// The volume, or a group
    #[arg(value_name = "VOL")]
    volume: Name,
    /// How long writers may wait [default: 10s]
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pause_max: Option<u64>,
    /// Cut writers off, instead of refusing while there are any
    #[arg(long)]
    force: bool,
}

pub(super) fn run(dir: &Path, args: &Args) -> Result<()> {
    leases::end(dir, args.force, |export| export.is_volume(&args.volume))?;
    with_store(dir, |access| {
        hand_over(access, &args.volume, args.pause_max.unwrap_or(PAUSE_MAX_MS), args.force)
    })
}

/// Hands over, in the direction that the roles have.
pub(super) fn hand_over(access: &Access, volume: &Name, pause_max_ms: u64, force: bool) -> Result<()> {
    let progress = Progress::spinner(&format!("turning {volume} around"));
    access.hand_over(volume.as_str(), pause_max_ms, force)?;
    drop(progress);
    let groups = access.group(&GroupRequest::List { group: None })?;
    let group = groups.into_iter().find(|group| group.name == volume.as_str());
    let first = group.as_ref().and_then(|group| group.volumes.first());
    let info = access.list(Some(first.map_or(volume.as_str(), String::as_str)))?;
    let role = info.volumes.first().map(|info| info.role);
    let role = if role == Some(crate::types::Role::Primary) { "the primary" } else { "a secondary" };
    let what = if group.is_some() { "group" } else { "volume" };
    output::print(&format!("{what} {volume} is {role} now\n"))
}
