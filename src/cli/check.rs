//! `check`: the store's structure and metadata.

use super::output;
use super::progress::Progress;
use crate::control::access;
use crate::error::Result;
use std::path::Path;

/// Verify the store's structure and all metadata checksums
///
/// Without --repair nothing is written. Damage that is found makes the exit code 4.
#[derive(clap::Args)]
pub(super) struct Args {
    /// Write again what is damaged and stands somewhere else too; not while the store is served
    #[arg(long)]
    repair: bool,

    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(dir: &Path, args: &Args) -> Result<()> {
    let progress = Progress::spinner("checking");
    let report = access::check(dir, args.repair)?;
    drop(progress);
    output::report("check", &report, args.json)
}
