//! `resync`: a volume that was the primary follows the one that took its place.

use super::progress::Progress;
use super::{leases, output, with_store};
use crate::control::Access;
use crate::engine::groups::GroupRequest;
use crate::error::{Error, ErrorKind, Result};
use crate::replica::resync::{Report, Request};
use crate::types::{Name, Role};
use std::path::Path;
use std::time::Duration;

/// How often is looked whether the state has arrived.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Have an old primary follow the volume that took its place
///
/// What was written here and not there is kept first, as a snapshot 'diverged-N'; it stays
/// readable throughout. Then what changed on either side since the youngest state that both have
/// is shipped from there. It waits until that has arrived; interrupted or not, it goes on by
/// itself, and the command may be given again.
#[derive(clap::Args)]
pub(super) struct Args {
    /// The volume, or a group
    #[arg(value_name = "VOL")]
    volume: Name,
    /// The volume that is the primary: ssh://[user@]host[:port]/STORE/VOL, or /STORE/VOL; where
    /// this one was replicated to unless said. For a group without /VOL
    #[arg(value_name = "FROM")]
    from: Option<String>,
    /// Ship the other side's state whole
    #[arg(long)]
    full: bool,
    /// Give a resync up: the volume takes no writes and shows what it had
    #[arg(long, conflicts_with_all = ["full", "force"])]
    abort: bool,
    /// Disconnect writers, instead of refusing
    #[arg(long)]
    force: bool,
    /// How this volume is reached from there: ssh://[user@]host[:port]/STORE/VOL; for a group
    /// without /VOL
    #[arg(long, value_name = "DEST")]
    way_back: Option<String>,
    /// The program to run here then, as its shell takes it
    #[arg(long, value_name = "COMMAND")]
    way_back_command: Option<String>,
    /// The program to run there, as its shell takes it
    #[arg(long, value_name = "COMMAND")]
    remote_command: Option<String>,
}

pub(super) fn run(dir: &Path, args: &Args) -> Result<()> {
    if !args.abort {
        leases::end(dir, args.force, |export| export.is_volume(&args.volume))?;
    }
    let request = Request {
        volume: args.volume.to_string(),
        from: args.from.clone(),
        remote_command: args.remote_command.clone(),
        way_back: args.way_back.clone(),
        way_back_command: args.way_back_command.clone(),
        full: args.full,
        force: args.force,
        abort: args.abort,
    };
    with_store(dir, |access| {
        let report = access.resync(&request)?;
        if let Some(note) = &report.note {
            eprintln!("{note}");
        }
        if args.abort {
            return Ok(());
        }
        eprint!("{}", told(&report));
        if !access.is_served() || !report.served {
            eprintln!("noted; it goes on while both stores are served");
            return Ok(());
        }
        wait(access, &report)
    })
}

fn told(report: &Report) -> String {
    let what = if report.delta { "what changed on either side comes" } else { "all comes" };
    let kept = report.kept.as_deref().unwrap_or("a snapshot");
    format!("what was here is kept as {}@{kept}; {what} from {}\n", report.volume, report.from)
}

/// Waits until the state of the other side is here.
fn wait(access: &Access, report: &Report) -> Result<()> {
    let progress = Progress::spinner(&format!("resync of {}", report.volume));
    let groups = access.group(&GroupRequest::List { group: None })?;
    let group = groups.into_iter().find(|group| group.name == report.volume);
    let what = if group.is_some() { "group" } else { "volume" };
    let volumes = group.map_or_else(|| vec![report.volume.clone()], |group| group.volumes);
    loop {
        let mut all = access.list(None)?.volumes;
        all.retain(|info| volumes.contains(&info.name));
        if all.len() < volumes.len() {
            return Err(Error::not_found("the volume is gone"));
        }
        if all.iter().any(|info| info.role == Role::Primary) {
            return Err(Error::new(ErrorKind::Interrupted, "the resync was given up meanwhile"));
        }
        if all.iter().all(|info| info.state != "resyncing") {
            drop(progress);
            return output::print(&format!("{what} {} follows {}\n", report.volume, report.from));
        }
        std::thread::sleep(LOOK_EVERY);
    }
}
