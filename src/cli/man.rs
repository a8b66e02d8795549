//! `man`: the manual pages.

use super::{Cli, output};
use crate::error::{Error, Result};
use clap::CommandFactory;
use std::path::PathBuf;

/// Print the manual pages as roff, of the program and of every command
#[derive(clap::Args)]
pub(super) struct Args {
    /// Write one file a page, snapvol.1 and snapvol-COMMAND.1, into this directory instead
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
}

pub(super) fn run(args: &Args) -> Result<()> {
    let mut root = Cli::command();
    root.build();
    let mut pages = vec![("snapvol.1".to_owned(), page(root.clone())?)];
    for command in root.get_subcommands() {
        pages.push((format!("snapvol-{}.1", command.get_name()), page(command.clone())?));
    }
    let Some(dir) = &args.output else {
        return output::print(&pages.into_iter().map(|(_, text)| text).collect::<String>());
    };
    for (name, text) in pages {
        let path = dir.join(name);
        std::fs::write(&path, text).map_err(|error| Error::os(format!("write {}", path.display()), error))?;
    }
    Ok(())
}

fn page(command: clap::Command) -> Result<String> {
    let mut text = Vec::new();
    clap_mangen::Man::new(command)
        .render(&mut text)
        .map_err(|error| Error::os("write a manual page", error))?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}
