//! `peer`: the far end of sessions, on standard input and output. A sender starts it.

use crate::control::access::FarDir;
use crate::error::{Error, Result};
use crate::replica::peer::{self, Patient};
use crate::transport::pipe;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;

/// Be the far end of a session of replication
#[derive(clap::Args)]
pub(super) struct Args {}

pub(super) fn run(dir: &Path) -> Result<()> {
    let store = FarDir::new(dir);
    pipe::widen(std::io::stdin());
    let owned = |fd: std::io::Result<std::os::fd::OwnedFd>| {
        fd.map(File::from).map_err(|error| Error::os("can't use standard input and output", error))
    };
    let input = owned(std::io::stdin().as_fd().try_clone_to_owned())?;
    let output = owned(std::io::stdout().as_fd().try_clone_to_owned())?;
    let identity = store.identity()?;
    peer::serve(&store, identity, Patient(input), output)
}
