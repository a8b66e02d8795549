//! Runs of sessions, and what they must have done to be worth something.

use super::*;

/// The first seed and the number of runs.
fn seeds(first: u64, count: u64) -> std::ops::Range<u64> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let first = number("SNAPVOL_SEED").unwrap_or(first);
    first..first + number("SNAPVOL_ROUNDS").unwrap_or(count)
}

fn runs(first: u64, count: u64, options: Options) -> Counts {
    let mut total = Counts::default();
    for seed in seeds(first, count) {
        total.add(&run(seed, options));
    }
    println!("{total:?}");
    total
}

#[test]
fn model_sessions_where_nothing_goes_wrong() {
    let total = runs(1, 4, Options { deaths: false, power_cuts: false, cuts: false, ..Options::default() });
    // A set may be broken off by a pause.
    assert!(total.confirmed <= total.sets && total.confirmed > 20, "{total:?}");
}

#[test]
fn model_sessions_survive_broken_links() {
    let total = runs(100, 4, Options { deaths: false, power_cuts: false, ..Options::default() });
    assert!(total.cuts > 20, "{total:?}");
}

#[test]
fn model_sessions_survive_crashes_of_either_side() {
    let total = runs(200, 8, Options::default());
    assert!(total.deaths > 10 && total.power_cuts > 10 && total.confirmed > 40, "{total:?}");
}

/// One seed, one run.
#[test]
fn model_a_seed_decides_everything() {
    assert_eq!(run(7, Options::default()), run(7, Options::default()));
}
