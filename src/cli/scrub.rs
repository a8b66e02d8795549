//! `scrub`: every stored byte that has a checksum.

use super::output;
use super::progress::Progress;
use crate::control::Access;
use crate::error::Result;
use crate::types::Name;

/// Verify every stored byte that has a checksum
///
/// Damage that is found makes the exit code 4.
#[derive(clap::Args)]
pub(super) struct Args {
    /// Only this volume; all of them unless named
    volume: Option<Name>,

    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(access: &Access, args: &Args) -> Result<()> {
    let progress = Progress::spinner("scrubbing");
    let report = access.scrub(args.volume.as_ref().map(Name::as_str))?;
    drop(progress);
    output::report("scrub", &report, args.json)
}
