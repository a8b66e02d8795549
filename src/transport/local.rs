//! The command that runs this program on another store of the same machine.

use crate::error::{Error, Result};
use std::process::Command;

/// This program with `args`; `program` is shell text that replaces it.
///
/// # Errors
/// `Io` when the system does not say which file this program is.
pub fn command(program: Option<&str>, args: &[&str]) -> Result<Command> {
    if let Some(program) = program {
        let mut command = Command::new("sh");
        command.arg("-c").arg(format!("exec {program} \"$@\"")).arg("sh").args(args);
        return Ok(command);
    }
    let program =
        std::env::current_exe().map_err(|error| Error::os("can't find this program's file", error))?;
    let mut command = Command::new(program);
    command.args(args);
    Ok(command)
}
