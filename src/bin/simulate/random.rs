//! Random runs: seed after seed of every kind, dealt to threads.

use crate::attempt::{attempt_run, replay_command};
use crate::shrink::shrink;
use crate::{Args, figures};
use snapvol::snapshot::model::{Counts, Kind, Run};
use std::collections::BTreeMap;
use std::process::exit;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

/// How long one run may take before it counts as one that never ends.
const RUN_MAX: Duration = Duration::from_secs(300);
/// How long a failing run is made smaller.
const SHRINK_MAX: Duration = Duration::from_secs(60);
/// How often the figures are told meanwhile.
const TOLD_EVERY: Duration = Duration::from_secs(60);

/// What all threads share.
struct Campaign<'a> {
    kinds: &'a [&'static Kind],
    first: u64,
    next: AtomicU64,
    end: Option<u64>,
    deadline: Option<Instant>,
    stop: AtomicBool,
    keep_going: bool,
    totals: Mutex<BTreeMap<&'static str, (u64, Counts)>>,
    violations: Mutex<Vec<(&'static Kind, u64)>>,
    /// What each thread does, and since when.
    doing: Mutex<BTreeMap<usize, (String, Instant)>>,
}

/// Runs until the time is over; how many violations there were.
pub fn run(args: &Args, kinds: &[&'static Kind]) -> usize {
    let start = Instant::now();
    let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let first = args.seed.unwrap_or(since_epoch.as_secs() % 1_000_000_000 * 1_000_000);
    let rounds = args.rounds.or(args.minutes.is_none().then_some(100));
    let campaign = Campaign {
        kinds,
        first,
        next: AtomicU64::new(0),
        end: rounds.map(|rounds| rounds * kinds.len() as u64),
        deadline: args.deadline(start),
        stop: AtomicBool::new(false),
        keep_going: args.keep_going,
        totals: Mutex::default(),
        violations: Mutex::default(),
        doing: Mutex::default(),
    };
    println!("from seed {first}, {} threads", args.threads());
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..args.threads())
            .map(|number| {
                let campaign = &campaign;
                scope.spawn(move || campaign.work(number))
            })
            .collect();
        let mut told = Instant::now();
        while !workers.iter().all(|worker| worker.is_finished()) {
            std::thread::sleep(Duration::from_millis(50));
            campaign.watch();
            if told.elapsed() > TOLD_EVERY {
                told = Instant::now();
                eprintln!("{}", figures(campaign.total().1, start.elapsed()));
            }
        }
    });
    let violations = lock(&campaign.violations).clone();
    if let (Some((kind, seed)), false) = (violations.first(), args.no_shrink) {
        let run = shrink(kind, *seed, Instant::now() + SHRINK_MAX);
        tell(kind, run);
    }
    campaign.summarize(start.elapsed(), violations.len());
    violations.len()
}

/// Does one run again, with all that it does; 1 if it goes wrong.
pub fn replay(args: &Args, kind: &'static Kind) -> usize {
    let only = (!args.only.is_empty()).then(|| args.only.iter().copied().collect());
    let run = Run::new(args.seed.unwrap_or(0)).part(only, args.vary);
    tell(kind, run)
}

/// Does a run and prints its operations; 1 if it goes wrong.
fn tell(kind: &Kind, run: Run) -> usize {
    let command = replay_command(kind, &run);
    let start = Instant::now();
    let (run, counts, result) = attempt_run(kind, run.noted());
    for (id, what) in run.did().into_iter().filter(|(_, what)| !what.is_empty()) {
        println!("  {:>9}  {what}", id.to_string());
    }
    match &result {
        Ok(()) => println!("nothing went wrong: {}", figures(counts, start.elapsed())),
        Err(message) => println!("violation: {message}\n  replay: {command}"),
    }
    usize::from(result.is_err())
}

impl Campaign<'_> {
    fn work(&self, thread: usize) {
        loop {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let is_over = self.end.is_some_and(|end| number >= end)
                || self.deadline.is_some_and(|deadline| Instant::now() >= deadline)
                || self.stop.load(Ordering::Relaxed);
            if is_over {
                lock(&self.doing).remove(&thread);
                return;
            }
            let kinds = self.kinds.len() as u64;
            let kind = self.kinds[usize::try_from(number % kinds).unwrap_or(0)];
            let seed = self.first + number / kinds;
            let run = Run::new(seed);
            let command = replay_command(kind, &run);
            lock(&self.doing).insert(thread, (command.clone(), Instant::now()));
            let (_, counts, result) = attempt_run(kind, run);
            {
                let mut totals = lock(&self.totals);
                let (seeds, total) = totals.entry(kind.name).or_default();
                *seeds += 1;
                total.add(counts);
            }
            if let Err(message) = result {
                println!("violation: {message}\n  replay: {command}");
                lock(&self.violations).push((kind, seed));
                if !self.keep_going {
                    self.stop.store(true, Ordering::Relaxed);
                }
            }
        }
    }

    /// Ends the program when a run never ends.
    fn watch(&self) {
        for (command, since) in lock(&self.doing).values() {
            if since.elapsed() > RUN_MAX {
                println!("violation: it does not end\n  replay: {command}");
                exit(1);
            }
        }
    }

    fn total(&self) -> (u64, Counts) {
        let mut all = (0, Counts::default());
        for (seeds, counts) in lock(&self.totals).values() {
            all.0 += seeds;
            all.1.add(*counts);
        }
        all
    }

    fn summarize(&self, elapsed: Duration, violations: usize) {
        for (name, (seeds, counts)) in &*lock(&self.totals) {
            println!("{name:10} {seeds} seeds, {}", figures(*counts, elapsed));
        }
        let (seeds, counts) = self.total();
        println!("in all     {seeds} seeds, {}, {violations} violations", figures(counts, elapsed));
    }
}

/// What a thread that panicked had locked is still whole: counts and messages.
pub fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
