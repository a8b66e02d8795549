//! Runs of the whole store, and what a run must have done to be worth something.

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
fn nothing_goes_wrong_without_crashes() {
    runs(1, 3, Options { deaths: false, power_cuts: false, ..Options::default() });
}

#[test]
fn a_store_survives_the_death_of_its_process() {
    runs(1000, 6, Options { power_cuts: false, ..Options::default() });
}

#[test]
fn a_store_survives_power_cuts() {
    runs(2000, 6, Options { deaths: false, ..Options::default() });
}

#[test]
fn a_store_survives_crashes_of_both_kinds() {
    runs(3000, 6, Options::default());
}

/// One seed, one run.
#[test]
fn a_seed_decides_everything() {
    assert_eq!(run(7, Options::default()), run(7, Options::default()));
}
