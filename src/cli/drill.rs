//! `drill`: a writable copy of a state of a volume, or the end of one.

use super::args::{ExportName, Target};
use super::{leases, output, with_store};
use crate::control::Access;
use crate::error::{Error, Result};
use crate::types::{DrillName, Name};
use std::path::Path;

/// Export a writable copy of a state of a volume, to try something out on; prints its name
///
/// The copy is exported as VOL+N. It takes space only for what is written to it, and whatever
/// is done there leaves VOL alone: that goes on, also as a secondary that follows a primary.
/// The state it shows can't be deleted until the drill is ended.
#[derive(clap::Args)]
pub(super) struct Args {
    /// The volume, whose youngest state it is, or one of its snapshots
    #[arg(value_name = "VOL[@SNAP]")]
    target: Target,

    /// What to call it; drill, or drill2 and so on, unless named
    #[arg(long, value_name = "N", conflicts_with = "end")]
    name: Option<Name>,

    /// End it: what was written to it is gone; without N the only one
    #[arg(long, value_name = "N", num_args = 0..=1)]
    #[allow(clippy::option_option, reason = "the option may be given without its value")]
    end: Option<Option<Name>>,

    /// With --end: disconnect its clients
    #[arg(long, requires = "end")]
    force: bool,

    /// Print JSON
    #[arg(long, conflicts_with = "end")]
    json: bool,
}

pub(super) fn run(dir: &Path, args: &Args) -> Result<()> {
    match &args.end {
        None => with_store(dir, |access| begin(access, args)),
        Some(name) => end(dir, args, name.as_ref()),
    }
}

fn begin(access: &Access, args: &Args) -> Result<()> {
    let Target { volume, snapshot } = &args.target;
    let snapshot = snapshot.as_ref().map(Name::as_str);
    let drill = access.begin_drill(volume.as_str(), snapshot, args.name.as_ref().map(Name::as_str))?;
    if args.json { output::print_json(&drill) } else { output::print(&format!("{}\n", drill.export)) }
}

fn end(dir: &Path, args: &Args, name: Option<&Name>) -> Result<()> {
    let Target { volume, snapshot: None } = &args.target else {
        return Err(Error::invalid("a drill is ended by its own name, whatever it shows")
            .hint(format!("write: snapvol drill {} --end N", args.target.volume)));
    };
    // Without a name it is the only one, if there is just one.
    let is_it = |drill: &DrillName| drill.volume == *volume && name.is_none_or(|name| drill.drill == *name);
    leases::end_exports(
        dir,
        args.force,
        |export| matches!(export, ExportName::Drill(drill) if is_it(drill)),
    )?;
    with_store(dir, |access| access.end_drill(volume.as_str(), name.map(Name::as_str), args.force).map(drop))
}
