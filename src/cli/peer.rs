//! `peer`: the far end of sessions, on standard input and output. A sender starts it. With
//! `--only` it is what an ssh key can be restricted to, for the other far ends too.

use super::forced::{self, Asked};
use crate::control::access::FarDir;
use crate::control::only::Only;
use crate::error::{Error, Result};
use crate::replica::peer::{self, Patient};
use crate::replica::receiver::FarStore;
use crate::transport::pipe;
use crate::types::Name;
use std::fs::File;
use std::io::IsTerminal;
use std::os::fd::AsFd;
use std::path::Path;
use uuid::Uuid;

/// Where sshd says who is connected.
const CONNECTION_ENV: &str = "SSH_CONNECTION";

/// Be the far end of a session of replication
#[derive(clap::Args)]
pub(super) struct Args {
    /// Be what an ssh key is restricted to: the far end of replicate, copy, verify and update, for
    /// these volumes alone
    #[arg(long, value_name = "VOL", value_delimiter = ',')]
    only: Vec<Name>,
}

/// Serves sessions; else returns the command that was asked for instead and may be run.
///
/// # Errors
/// Those of the store and of the connection; `Conflict` for what a restricted key may not do.
pub(super) fn run(dir: &Path, args: &Args) -> Result<Option<Vec<String>>> {
    let store = FarDir::new(dir);
    if args.only.is_empty() {
        let identity = store.identity()?;
        return serve(&store, identity).map(|()| None);
    }
    match std::env::var_os(forced::ASKED_ENV) {
        Some(asked) => {
            let asked = asked.into_string().unwrap_or_default();
            if let Asked::Run(command) = forced::asked(&asked, dir, &args.only)? {
                return Ok(Some(command));
            }
        }
        None if std::io::stdin().is_terminal() || std::env::var_os(CONNECTION_ENV).is_some() => {
            return Err(Error::conflict("this key is restricted, and nobody can log in with it"));
        }
        None => {}
    }
    let identity = store.identity()?;
    serve(&Only::new(store, args.only.clone()), identity).map(|()| None)
}

fn serve(store: &(impl FarStore + Sync), identity: Uuid) -> Result<()> {
    pipe::widen(std::io::stdin());
    let owned = |fd: std::io::Result<std::os::fd::OwnedFd>| {
        fd.map(File::from).map_err(|error| Error::os("can't use standard input and output", error))
    };
    let input = owned(std::io::stdin().as_fd().try_clone_to_owned())?;
    let output = owned(std::io::stdout().as_fd().try_clone_to_owned())?;
    peer::serve(store, identity, Patient(input), output)
}
