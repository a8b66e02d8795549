//! One file per subcommand: arguments in, text or JSON out.
//!
//! A command module has `Args`, parsed by clap, and `run`. A failure is a
//! [`crate::Error`]; this file alone turns it into text on stderr (one sentence, one
//! hint) and an exit code, see [`crate::ErrorKind::exit_code`].

mod args;
#[doc(hidden)]
pub mod attach;
mod check;
mod completions;
mod copy;
mod create;
mod cut;
mod delete;
mod demote;
mod detach;
mod diff;
mod digests;
mod drill;
mod failback;
mod failover;
mod forced;
mod group;
mod hold;
mod init;
mod leases;
mod list;
mod man;
pub mod output;
mod pause;
mod peer;
pub mod progress;
mod promote;
#[doc(hidden)]
pub mod receive;
mod release;
mod replicate;
mod resize;
mod resync;
mod rollback;
mod schedule;
mod scrub;
mod send;
mod serve;
mod set;
#[doc(hidden)]
pub mod shipping;
mod snapshot;
mod status;
mod unreplicate;
mod update;
mod verify;

use crate::control::Access;
use crate::error::{Error, Result};
use clap::{Parser, Subcommand};
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// A copy-on-write block store in user space: NBD volumes, instant snapshots, deltas
/// over ssh.
///
/// Sizes are bytes, or a number with K, M, G or T (powers of 1024). VOL is a volume's
/// name, VOL@SNAP a snapshot's; a name has 1 to 63 letters, digits, '.', '_' or '-' and
/// starts with a letter or digit. While `serve` runs, all other commands work through
/// it; otherwise they open the store themselves.
#[derive(Parser)]
#[command(
    name = "snapvol",
    version,
    disable_help_subcommand = true,
    propagate_version = true,
    after_help = "Exit codes: 0 done; 1 failed; 2 wrong usage; 3 conflict (in use, exists, wrong \
                  base or role); 4 damage found, or copies that differ; 5 no such store, volume or \
                  snapshot."
)]
struct Cli {
    /// The store's directory
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        env = "SNAPVOL_STORE",
        default_value = "/var/lib/snapvol"
    )]
    store: PathBuf,

    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Init(init::Args),
    Create(create::Args),
    Set(set::Args),
    Serve(serve::Args),
    Attach(attach::Args),
    Detach(detach::Args),
    List(list::Args),
    Resize(resize::Args),
    Snapshot(snapshot::Args),
    Delete(delete::Args),
    Group(group::Args),
    Hold(hold::Args),
    Release(release::Args),
    Rollback(rollback::Args),
    Diff(diff::Args),
    Send(send::Args),
    Receive(receive::Args),
    Copy(copy::Args),
    Promote(promote::Args),
    Demote(demote::Args),
    Replicate(replicate::Args),
    Unreplicate(unreplicate::Args),
    Pause(pause::Args),
    Resume(pause::ResumeArgs),
    Cut(cut::Args),
    Failover(failover::Args),
    Resync(resync::Args),
    Failback(failback::Args),
    #[command(hide = true)]
    Peer(peer::Args),
    Drill(drill::Args),
    Update(update::Args),
    Schedule(schedule::Args),
    Verify(verify::Args),
    #[command(hide = true)]
    Digests(digests::Args),
    Check(check::Args),
    Scrub(scrub::Args),
    Status(status::Args),
    Completions(completions::Args),
    Man(man::Args),
}

/// Parses the arguments, runs the command, says what went wrong.
#[must_use]
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are answers and go to stdout; a reader that left is no failure.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 2 } else { 0 });
        }
    };
    log_to_stderr(if matches!(cli.command, Command::Serve(_)) { "info" } else { "warn" });
    match run(&cli.store, cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output::print_error(&error);
            ExitCode::from(error.kind().exit_code())
        }
    }
}

fn log_to_stderr(default: &str) {
    let filter = tracing_subscriber::EnvFilter::try_from_env("SNAPVOL_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(default));
    // Fails only if somebody set a subscriber before; then that one is meant.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .try_init();
}

fn run(dir: &Path, command: Command) -> Result<()> {
    match command {
        Command::Init(args) => init::run(dir, &args),
        Command::Create(args) => create::run(dir, &args),
        Command::Set(args) => with_store(dir, |access| set::run(access, &args)),
        Command::Serve(args) => serve::run(dir, &args),
        Command::Attach(args) => attach::run(dir, &args),
        Command::Detach(args) => detach::run(&args),
        Command::List(args) => with_store(dir, |access| list::run(access, &args)),
        Command::Resize(args) => resize::run(dir, &args),
        Command::Snapshot(args) => with_store(dir, |access| snapshot::run(access, &args)),
        Command::Group(args) => with_store(dir, |access| group::run(access, &args)),
        Command::Delete(args) => delete::run(dir, &args),
        Command::Hold(args) => with_store(dir, |access| hold::run(access, &args)),
        Command::Release(args) => with_store(dir, |access| release::run(access, &args)),
        Command::Rollback(args) => rollback::run(dir, &args),
        Command::Diff(args) => diff::run(dir, &args),
        Command::Send(args) => with_store(dir, |access| send::run(access, args)),
        Command::Receive(args) => with_store(dir, |access| receive::run(access, args)),
        Command::Copy(args) => with_store(dir, |access| copy::run(access, args)),
        Command::Promote(args) => with_store(dir, |access| promote::run(access, &args)),
        Command::Demote(args) => demote::run(dir, &args),
        Command::Replicate(args) => with_store(dir, |access| replicate::run(access, args)),
        Command::Unreplicate(args) => with_store(dir, |access| unreplicate::run(access, &args)),
        Command::Pause(args) => with_store(dir, |access| pause::run(access, &args)),
        Command::Resume(args) => with_store(dir, |access| pause::resume(access, &args)),
        Command::Cut(args) => with_store(dir, |access| cut::run(access, &args)),
        Command::Peer(args) => match peer::run(dir, &args)? {
            Some(asked) => run_asked(dir, asked),
            None => Ok(()),
        },
        Command::Drill(args) => drill::run(dir, &args),
        Command::Update(args) => with_store(dir, |access| update::run(access, &args)),
        Command::Schedule(args) => with_store(dir, |access| schedule::run(access, &args)),
        Command::Failback(args) => failback::run(dir, &args),
        Command::Resync(args) => resync::run(dir, &args),
        Command::Failover(args) => with_store(dir, |access| failover::run(access, &args)),
        Command::Verify(args) => with_store(dir, |access| verify::run(access, &args)),
        Command::Digests(args) => with_store(dir, |access| digests::run(access, &args)),
        Command::Check(args) => check::run(dir, &args),
        Command::Scrub(args) => scrub::run(dir, &args),
        Command::Status(args) => with_store(dir, |access| status::run(access, &args)),
        Command::Completions(args) => completions::run(&args),
        Command::Man(args) => man::run(&args),
    }
}

/// Runs what the other side of an ssh connection asked for and may have.
fn run_asked(dir: &Path, asked: Vec<String>) -> Result<()> {
    let line = ["snapvol".to_owned()].into_iter().chain(asked);
    let cli = Cli::try_parse_from(line).map_err(|error| Error::invalid(error.kind().to_string()))?;
    run(dir, cli.command)
}

/// Runs a command on the store, whoever has it open, and closes it again.
fn with_store(dir: &Path, run: impl FnOnce(&Access) -> Result<()>) -> Result<()> {
    let access = Access::open(dir)?;
    let done = run(&access);
    let closed = access.close();
    done.and(closed)
}

/// The store's directory as an absolute path, whether it exists or not.
fn absolute(dir: &Path) -> Result<PathBuf> {
    std::path::absolute(dir).map_err(|error| Error::os(format!("resolve {}", dir.display()), error))
}
