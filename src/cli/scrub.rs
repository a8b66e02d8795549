//! `scrub`: every stored byte that has a checksum.

use super::output;
use super::progress::Progress;
use crate::control::access;
use crate::error::Result;
use crate::types::Name;
use std::path::Path;

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

pub(super) fn run(dir: &Path, args: &Args) -> Result<()> {
    let progress = Progress::spinner("scrubbing");
    let report = access::scrub(dir, args.volume.as_ref().map(Name::as_str))?;
    drop(progress);
    output::report("scrub", &report, args.json)
}
