//! One file per subcommand: arguments in, text or JSON out.

/// Parses the arguments, runs the command, says what went wrong.
#[must_use]
pub fn main() -> std::process::ExitCode {
    std::process::ExitCode::SUCCESS
}

mod copy;
pub mod progress;
mod receive;
mod send;
mod shipping;
