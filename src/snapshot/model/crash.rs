//! Random runs, cut short by the death of the process or of the machine.

use super::oracle::{Crash, Fate, Oracle};
use super::script::{Counts, Script, geometry};
use super::*;
use crate::io::sim::{Loss, SimOptions};
use std::cell::Cell;

/// A run over several lives of a process.
struct Lives {
    disk: SimDisk,
    oracle: Rc<RefCell<Oracle>>,
    rng: Rc<RefCell<fastrand::Rng>>,
    counts: Rc<Cell<Counts>>,
    block_size: u32,
}

impl Lives {
    fn new(seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let geometry = geometry(&mut rng);
        let inline = rng.bool();
        let disk = SimDisk::new(SimOptions { seed, inline, reorder: rng.u32(0..4) > 0 });
        on_sim(&disk, |io| async move { create(&io, Path::new(DIR), geometry, Role::Primary).await });
        disk.crash_process();
        Self {
            disk,
            oracle: Rc::new(RefCell::new(Oracle::new(usize::try_from(geometry.size).unwrap()))),
            rng: Rc::new(RefCell::new(rng)),
            counts: Rc::default(),
            block_size: geometry.block_size,
        }
    }

    /// Opens, checks against what the crash may have left, and runs `steps` steps; false
    /// if the process died.
    fn live(&self, crash: Option<Crash>, steps: u32, budget: Option<u64>) -> bool {
        let (oracle, rng, counts) = (self.oracle.clone(), self.rng.clone(), self.counts.clone());
        let (disk, block_size) = (self.disk.clone(), self.block_size);
        on_sim(&self.disk, move |io| async move {
            let committed = oracle.borrow().committed.clone();
            let volume = open(&io, Path::new(DIR), block_size, &committed).await;
            let script =
                Rc::new(Script { io, volume, oracle, rng, disk: Some(disk.clone()), counts, failing: false });
            if let Some(crash) = crash {
                recovered(&script, crash).await;
            }
            script.check().await;
            if let Some(budget) = budget {
                disk.crash_after(budget);
            }
            for _ in 0..steps {
                script.step().await;
                script.check().await;
            }
            script.volume.close().await.unwrap();
        })
        .is_some()
    }

    /// Opens, and dies meanwhile, if it takes that long.
    fn open_and_die(&self, budget: u64) {
        let (oracle, block_size) = (self.oracle.clone(), self.block_size);
        self.disk.crash_after(budget);
        on_sim(&self.disk, move |io| async move {
            let committed = oracle.borrow().committed.clone();
            open(&io, Path::new(DIR), block_size, &committed).await;
        });
    }

    fn crash(&self, power: bool) -> Crash {
        let mut counts = self.counts.get();
        counts.crashes += 1;
        self.counts.set(counts);
        if !power {
            self.disk.crash_process();
            return Crash::Process;
        }
        let unsynced = self.disk.unsynced().max(1);
        let mut rng = self.rng.borrow_mut();
        let loss = match rng.u32(0..6) {
            0 => Loss::All,
            1 => Loss::None,
            2 => Loss::Alone(rng.usize(0..unsynced)),
            3 => Loss::AllBut(rng.usize(0..unsynced)),
            _ => Loss::Random,
        };
        drop(rng);
        self.disk.power_cut(loss);
        Crash::Power
    }
}

/// Compares what a crash left with what it may leave, and goes on from there.
pub(super) async fn recovered(script: &Script, crash: Crash) {
    let found = production(&script.volume).await;
    // A change of role may have been under way.
    if script.volume.role() == Role::Secondary {
        script.volume.set_role(Role::Primary).await.unwrap();
    }
    let mut oracle = script.oracle.borrow_mut();
    if let Err(error) = oracle.check_crash(&found, crash) {
        panic!("production after a crash ({crash:?}): {error}");
    }
    oracle.adopt(found);
    let there: BTreeSet<Uuid> = script.volume.snapshots().iter().map(|r| r.uuid).collect();
    for snap in &mut oracle.snaps {
        snap.busy = false;
        let is_there = there.contains(&snap.uuid);
        match snap.fate {
            Fate::Must => assert!(is_there, "snapshot {} is gone", snap.name),
            Fate::MustNot => assert!(!is_there, "snapshot {} was never committed", snap.name),
            Fate::May => {}
        }
        if is_there {
            snap.fate = Fate::Must;
        }
        // A hold or release may have been under way.
        if let Some(record) = script.volume.snapshots().iter().find(|r| r.uuid == snap.uuid) {
            snap.holds.clone_from(&record.holds);
        }
    }
    oracle.snaps.retain(|snap| there.contains(&snap.uuid));
}

fn add(total: &mut Counts, counts: Counts) {
    total.operations += counts.operations;
    total.crashes += counts.crashes;
    total.checks += counts.checks;
}

#[test]
fn nothing_goes_wrong() {
    let mut total = Counts::default();
    for seed in rounds(1000, 25) {
        let _seed = Seed(format!("SNAPVOL_SEED={seed} (no crash)"));
        let lives = Lives::new(seed);
        for _ in 0..3 {
            assert!(lives.live(None, 12, None));
            let power = lives.rng.borrow_mut().bool();
            if power {
                lives.disk.power_cut(Loss::All);
            } else {
                lives.disk.crash_process();
            }
        }
        lives.live(None, 0, None);
        add(&mut total, lives.counts.get());
    }
    println!("{total:?}");
}

fn crashes(seed: u64, power: impl Fn(&mut fastrand::Rng) -> bool) -> Counts {
    let lives = Lives::new(seed);
    let mut crash = None;
    for _ in 0..6 {
        let budget = {
            let mut rng = lives.rng.borrow_mut();
            if rng.bool() { rng.u64(0..300) } else { rng.u64(0..3000) }
        };
        if lives.live(crash, 12, Some(budget)) {
            // It closed in good order; the budget no longer matters.
            lives.disk.crash_process();
            crash = None;
            continue;
        }
        let choose = || power(&mut lives.rng.borrow_mut());
        let mut worst = lives.crash(choose());
        let again = || lives.rng.borrow_mut().u32(0..3) == 0;
        while again() {
            let budget = lives.rng.borrow_mut().u64(0..120);
            lives.open_and_die(budget);
            if lives.crash(choose()) == Crash::Power {
                worst = Crash::Power;
            }
        }
        crash = Some(worst);
    }
    lives.live(crash, 2, None);
    lives.counts.get()
}

#[test]
fn a_dead_process_loses_nothing_acknowledged() {
    let mut total = Counts::default();
    for seed in rounds(2000, 25) {
        let _seed = Seed(format!("SNAPVOL_SEED={seed} (process crashes)"));
        add(&mut total, crashes(seed, |_| false));
    }
    println!("{total:?}");
}

#[test]
fn a_power_cut_loses_nothing_flushed() {
    let mut total = Counts::default();
    for seed in rounds(3000, 25) {
        let _seed = Seed(format!("SNAPVOL_SEED={seed} (power cuts)"));
        add(&mut total, crashes(seed, |_| true));
    }
    println!("{total:?}");
}

#[test]
fn crashes_of_both_kinds() {
    let mut total = Counts::default();
    for seed in rounds(4000, 25) {
        let _seed = Seed(format!("SNAPVOL_SEED={seed} (both kinds of crashes)"));
        add(&mut total, crashes(seed, fastrand::Rng::bool));
    }
    println!("{total:?}");
}

/// Runs that once failed.
#[test]
fn runs_that_failed_once() {
    // A deletion made the retained map unknown while a write waited, and the rest of its
    // granule was punched though a snapshot needed it.
    crashes(100_620, |_| false);
    // The layer before a take that was undone was sealed meanwhile, and the tail had no
    // map any more.
    crashes(301_822, fastrand::Rng::bool);
}
