//! The short scripts, every operation of them, dealt to threads.

use crate::attempt::attempt;
use crate::random::lock;
use crate::{Args, figures};
use snapvol::io::sim::{EIO, ENOSPC};
use snapvol::snapshot::model::{Config, Counts, Exhaustive, configs};
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

/// What is tried at an operation.
#[derive(Clone, Copy)]
enum Try {
    Crash,
    Fail(i32),
}

/// Prints the scripts.
pub fn list() {
    let mut names: Vec<&str> = configs(0).iter().map(Config::name).collect();
    names.dedup();
    for name in names {
        println!("script     {name}");
    }
}

/// Runs them; how many violations there were.
pub fn run(args: &Args) -> usize {
    let start = Instant::now();
    let seed = args.seed.unwrap_or(5);
    let chosen: Vec<Config> =
        configs(seed).into_iter().filter(|config| config.name().contains(&args.script)).collect();
    let mut jobs: Vec<(Config, Try, u64)> = Vec::new();
    let mut all = Exhaustive::default();
    for config in chosen {
        let count = match attempt(config.name(), || all.operations(config)) {
            Ok(count) => count,
            Err(message) => {
                println!("violation: '{}' itself: {message}", config.name());
                return 1;
            }
        };
        let step = usize::try_from(args.stride.max(1)).unwrap_or(1);
        let points = |from: u64| (from..=count).step_by(step).filter(|n| args.at.is_none_or(|at| at == *n));
        jobs.extend(points(0).map(|n| (config, Try::Crash, n)));
        jobs.extend(
            [EIO, ENOSPC].into_iter().flat_map(|e| points(1).map(move |n| (config, Try::Fail(e), n))),
        );
    }
    let next = AtomicUsize::new(0);
    let totals: Mutex<BTreeMap<&str, (u64, Counts)>> = Mutex::default();
    let violations = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..args.threads() {
            scope.spawn(|| {
                let mut all = Exhaustive::default();
                while let Some((config, how, n)) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if violations.load(Ordering::Relaxed) > 0 && !args.keep_going {
                        return;
                    }
                    let command = format!(
                        "tools/simulate --exhaustive --seed {seed} --script '{}' --at {n}",
                        config.name()
                    );
                    let done = attempt(&command, || match how {
                        Try::Crash => all.crash_after(*config, *n, true),
                        Try::Fail(errno) => all.fail_at(*config, *n, *errno),
                    });
                    match done {
                        Ok(counts) => {
                            let mut totals = lock(&totals);
                            let (points, total) = totals.entry(config.name()).or_default();
                            *points += 1;
                            total.add(counts);
                        }
                        Err(message) => {
                            violations.fetch_add(1, Ordering::Relaxed);
                            let what = match how {
                                Try::Crash => "crash".to_owned(),
                                Try::Fail(errno) => format!("error {errno}"),
                            };
                            println!(
                                "violation: {what} at {n} of {config:?}: {message}\n  replay: {command}"
                            );
                        }
                    }
                }
            });
        }
    });
    let mut total = Counts::default();
    let mut points = 0;
    for (name, (tried, counts)) in &*lock(&totals) {
        println!(
            "{name:40} {tried:6} points, {:7} crashes, {:6} injected failures",
            counts.crashes, counts.failures
        );
        total.add(*counts);
        points += tried;
    }
    let violations = usize::try_from(violations.into_inner()).unwrap_or(usize::MAX);
    println!("in all     {points} points, {}, {violations} violations", figures(total, start.elapsed()));
    violations
}
