//! Random runs, cut short by the death of the process or of the machine.

use super::*;

/// Runs of a kind, and what they did.
fn runs(kind: &str, seeds: std::ops::Range<u64>) {
    let kind = KINDS.iter().find(|k| k.name == kind).unwrap();
    let mut total = Counts::default();
    for seed in seeds {
        let _seed = Seed(format!("SNAPVOL_SEED={seed} ({})", kind.name));
        let run = Rc::new(Run::new(seed));
        (kind.run)(&run);
        total.add(run.counts());
    }
    println!("{total:?}");
}

#[test]
fn nothing_goes_wrong() {
    runs("calm", rounds(1000, 12));
}

#[test]
fn a_dead_process_loses_nothing_acknowledged() {
    runs("process", rounds(2000, 25));
}

#[test]
fn a_power_cut_loses_nothing_flushed() {
    runs("power", rounds(3000, 25));
}

#[test]
fn crashes_of_both_kinds() {
    runs("both", rounds(4000, 25));
}

#[test]
fn operations_that_fail() {
    runs("faults", rounds(5000, 25));
}

#[test]
fn a_disk_that_is_full_now_and_then() {
    runs("full", rounds(6000, 25));
}

#[test]
fn bits_that_turn_over() {
    runs("flips", rounds(9000, 25));
}

/// Runs that failed once: writers on a full disk that woke each other without end; a
/// checkpoint and a roll-back that waited for each other there; a torn group that counted as
/// whole; an undone take that was forgotten before its end was durable; a deletion that made a
/// map from a lost one.
#[test]
fn runs_that_failed_once() {
    for (kind, seed) in [
        ("full", 1),
        ("full", 1013),
        ("full", 1029),
        ("both", 1063),
        ("flips", 200_101),
        ("flips", 795_291_073_000_470),
    ] {
        runs(kind, seed..seed + 1);
    }
}

/// Another order of the same operations, and a part of them, are runs like any other.
#[test]
fn a_run_can_be_varied_and_cut_down() {
    let whole = Rc::new(Run::new(1).noted());
    let kind = KINDS.iter().find(|k| k.name == "both").unwrap();
    (kind.run)(&whole);
    let again = Rc::new(Run::new(1).noted());
    (kind.run)(&again);
    assert_eq!(whole.did(), again.did());
    let half: BTreeSet<Id> = whole.did().into_iter().map(|(id, _)| id).step_by(2).collect();
    let part = Rc::new(Run::new(1).part(Some(half.clone()), 1).noted());
    (kind.run)(&part);
    assert!(part.did().iter().all(|(id, _)| id.step == 0 || half.contains(id)));
    assert!(part.did().len() < whole.did().len());
}
