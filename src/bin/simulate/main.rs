//! `simulate`: runs the model for as long as one likes, on all cores, and says what it did.
//!
//! A run that goes wrong is made smaller, printed with the command that replays it, and
//! makes the exit code 1. See `docs/simulation.md`.

mod attempt;
mod exhaustive;
mod random;
mod shrink;

use clap::Parser;
use snapvol::engine::model as store;
use snapvol::replica::model as sessions;
use snapvol::snapshot::model::{self as volume, Counts, Id, Kind};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Crashes, faults, full disks and damage in simulation, against an oracle.
#[derive(Debug, Parser)]
#[command(name = "simulate")]
struct Args {
    /// Run for so many minutes.
    #[arg(long, conflicts_with = "rounds")]
    minutes: Option<f64>,
    /// Run so many seeds of each kind.
    #[arg(long)]
    rounds: Option<u64>,
    /// The first seed; random when it is left out. The short scripts take it for the order of
    /// completions and for what is torn.
    #[arg(long)]
    seed: Option<u64>,
    /// Only runs of these kinds.
    #[arg(long = "kind", value_delimiter = ',')]
    kinds: Vec<String>,
    /// Threads; as many as there are cores when it is left out.
    #[arg(long)]
    threads: Option<usize>,
    /// Go on after a violation.
    #[arg(long)]
    keep_going: bool,
    /// Do not make a failing run smaller.
    #[arg(long)]
    no_shrink: bool,
    /// Replay: another order of the same operations.
    #[arg(long, default_value_t = 0)]
    vary: u64,
    /// Replay: only these operations.
    #[arg(long, value_delimiter = ',')]
    only: Vec<Id>,
    /// Crash after, and fail, every operation of every short script.
    #[arg(long)]
    exhaustive: bool,
    /// Only short scripts with this in their name.
    #[arg(long, default_value = "")]
    script: String,
    /// Every how many operations of a short script one is tried.
    #[arg(long, default_value_t = 1)]
    stride: u64,
    /// Replay: only this operation of a short script.
    #[arg(long)]
    at: Option<u64>,
    /// Print the kinds of runs and the short scripts.
    #[arg(long)]
    list: bool,
}

impl Args {
    fn threads(&self) -> usize {
        self.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from)).max(1)
    }

    fn deadline(&self, start: Instant) -> Option<Instant> {
        self.minutes.map(|minutes| start + Duration::from_secs_f64(minutes * 60.0))
    }

    fn kinds(&self) -> Result<Vec<&'static Kind>, String> {
        if self.kinds.is_empty() {
            return Ok(all_kinds().collect());
        }
        let find = |name: &String| {
            all_kinds()
                .find(|kind| kind.name == name)
                .ok_or(format!("there is no kind of runs called {name}"))
        };
        self.kinds.iter().map(find).collect()
    }
}

/// The kinds of runs of one volume, and of whole stores.
fn all_kinds() -> impl Iterator<Item = &'static Kind> {
    volume::KINDS.iter().chain(store::KINDS).chain(sessions::KINDS)
}

fn main() -> ExitCode {
    let args = Args::parse();
    if args.list {
        for kind in all_kinds() {
            println!("{:10} {}", kind.name, kind.what);
        }
        exhaustive::list();
        return ExitCode::SUCCESS;
    }
    let kinds = match args.kinds() {
        Ok(kinds) => kinds,
        Err(error) => {
            eprintln!("simulate: {error}; --list prints them");
            return ExitCode::from(2);
        }
    };
    attempt::quieten_panics();
    let is_replay =
        args.seed.is_some() && args.minutes.is_none() && args.rounds.is_none() && kinds.len() == 1;
    let violations = if args.exhaustive {
        exhaustive::run(&args)
    } else if is_replay {
        random::replay(&args, kinds[0])
    } else {
        random::run(&args, &kinds)
    };
    if violations == 0 { ExitCode::SUCCESS } else { ExitCode::from(1) }
}

/// One line of figures.
fn figures(counts: Counts, elapsed: Duration) -> String {
    let Counts { operations, crashes, failures, checks } = counts;
    let rate = (crashes + failures) as f64 / elapsed.as_secs_f64().max(0.001);
    format!(
        "{operations} operations, {crashes} crashes, {failures} injected failures, {checks} checks \
         in {:.0} s ({rate:.0} crash points a second)",
        elapsed.as_secs_f64()
    )
}
