//! `completions`: for shells.

use super::{Cli, output};
use crate::error::Result;
use clap::CommandFactory;

/// Print the completions for a shell
#[derive(clap::Args)]
pub(super) struct Args {
    /// The shell
    shell: clap_complete::Shell,
}

pub(super) fn run(args: &Args) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "snapvol", &mut script);
    output::print(&String::from_utf8_lossy(&script))
}
