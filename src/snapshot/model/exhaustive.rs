//! Short scripts, cut short after every single operation, and with every single operation
//! failing once.
//!
//! A cut is tried with everything unsynced lost, everything kept, everything torn, and each
//! unsynced change alone kept and alone lost; and as the death of the process alone.

use super::lives::recovered;
use super::oracle::{Crash, Oracle};
use super::script::{Allowed, Script};
use super::tails::{BLOCK, SIZE, Start, TAILS, leave, prepare, prepare_replica, put, trim};
use super::*;
use crate::io::sim::{Loss, SimOptions};
use std::collections::BTreeMap;

/// A script on a kind of volume and of disk.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    tail: usize,
    granularity: u32,
    inline: bool,
    /// Decides the order of completions, and what is torn.
    seed: u64,
}

impl Config {
    /// How the script is called.
    #[must_use]
    pub fn name(&self) -> &'static str {
        TAILS[self.tail].name
    }

    /// What even the death of the process may have cost.
    fn least(&self) -> Crash {
        if TAILS[self.tail].start == Start::Cut { Crash::Power } else { Crash::Process }
    }
}

/// Every script on every kind of volume and of disk, with that seed.
#[must_use]
pub fn configs(seed: u64) -> Vec<Config> {
    let kinds = [(1, true), (4, false), (1, false), (4, true)];
    let all =
        (0..TAILS.len()).flat_map(|tail| kinds.map(|(granularity, inline)| (tail, granularity, inline)));
    all.map(|(tail, granularity, inline)| Config { tail, granularity, inline, seed }).collect()
}

/// Runs the scripts; keeps the volumes that they start from.
#[derive(Default)]
pub struct Exhaustive {
    prepared: BTreeMap<(Start, u32, bool, u64), (SimDisk, Oracle)>,
}

/// How a run of a script was left.
struct Left {
    disk: SimDisk,
    oracle: Oracle,
    /// Operations from the first that counts to the last.
    operations: u64,
    has_ended: bool,
}

impl Exhaustive {
    /// How many operations a script takes.
    pub fn operations(&mut self, config: Config) -> u64 {
        self.run(config, Allowed::Nothing, |_| ()).operations
    }

    /// Runs a script until so many operations have completed, crashes in every way (or in one
    /// of them, by the number), and looks at what is left. Says what it did.
    pub fn crash_after(&mut self, config: Config, operations: u64, in_every_way: bool) -> Counts {
        let left = self.run(config, Allowed::Nothing, move |disk| disk.crash_after(operations));
        let unsynced = left.disk.unsynced();
        let mut losses = vec![Loss::All, Loss::None, Loss::Torn, Loss::Random];
        if in_every_way {
            losses.extend((0..unsynced).flat_map(|i| [Loss::Alone(i), Loss::AllBut(i)]));
        } else {
            let chosen = losses[usize::try_from(operations).unwrap_or(0) % losses.len()];
            losses = vec![chosen];
        }
        for loss in &losses {
            let disk = left.disk.fork();
            disk.power_cut(*loss);
            survives(&disk, left.oracle.clone(), Crash::Power);
        }
        left.disk.crash_process();
        survives(&left.disk, left.oracle, config.least());
        let states = losses.len() as u64 + 1;
        Counts { operations: u64::from(left.has_ended), crashes: states, failures: 0, checks: states }
    }

    /// Runs a script of which one operation fails, the first being 1, then lets the process
    /// die and the power fail. Says what it did.
    pub fn fail_at(&mut self, config: Config, operation: u64, errno: i32) -> Counts {
        let left = self.run(config, Allowed::Failures, move |disk| {
            disk.fail_at(disk.ops() + operation, errno);
        });
        let process = left.disk.fork();
        process.crash_process();
        survives(&process, left.oracle.clone(), config.least());
        left.disk.power_cut(Loss::Random);
        survives(&left.disk, left.oracle, Crash::Power);
        Counts { operations: 0, crashes: 2, failures: 1, checks: 2 }
    }

    /// Runs a script with what `before` prepares.
    fn run(&mut self, config: Config, allowed: Allowed, before: impl Fn(&SimDisk) + 'static) -> Left {
        let tail = &TAILS[config.tail];
        let (disk, start) = self.prepared(config);
        let disk = disk.fork();
        let shared = Rc::new(RefCell::new(None));
        let counted = Rc::new(Cell::new(0));
        let (machine, oracle, cell, count) =
            (disk.clone(), start.clone(), Rc::clone(&shared), Rc::clone(&counted));
        let unclean = matches!(tail.start, Start::Dead | Start::Cut);
        let ended = on_sim(&disk, move |io| async move {
            let go = || {
                count.set(machine.ops());
                before(&machine);
            };
            if unclean {
                // The recovery itself is what is tried.
                go();
                let committed = oracle.committed.clone();
                let opened = Volume::open(&io, Path::new(DIR), "vol", tuning(4096), &committed).await;
                if opened.is_err() && allowed == Allowed::Failures {
                    return;
                }
                drop(opened.unwrap());
                return;
            }
            let script = script(&io, &machine, oracle).await;
            let script = Rc::new(Script { allowed, ..script });
            *cell.borrow_mut() = Some(Rc::clone(&script.oracle));
            go();
            (tail.run)(script).await;
        });
        let oracle = shared.take().map_or(start, |oracle| oracle.borrow().clone());
        let operations = disk.ops() - counted.get();
        Left { disk, oracle, operations, has_ended: ended.is_some() }
    }

    /// A volume with some history, and its oracle.
    fn prepared(&mut self, config: Config) -> (SimDisk, Oracle) {
        let Config { tail, granularity, inline, seed } = config;
        let start = TAILS[tail].start;
        let make = || {
            let disk = SimDisk::new(SimOptions { seed, inline, reorder: !inline });
            let geometry = Geometry::new(SIZE as u64, 4096, granularity).unwrap();
            let machine = disk.clone();
            let role = if start == Start::Replica { Role::Secondary } else { Role::Primary };
            let oracle = on_sim(&disk, move |io| async move {
                create(&io, Path::new(DIR), geometry, role).await;
                let mut new = Oracle::new(SIZE);
                (new.role, new.is_replica) = (role, role == Role::Secondary);
                let script = script(&io, &machine, new).await;
                match start {
                    Start::Replica => prepare_replica(&script).await,
                    _ => prepare(&script).await,
                }
                if matches!(start, Start::Dead | Start::Cut) {
                    leave(&script).await;
                    return script.oracle.take();
                }
                script.volume.close().await.unwrap();
                let mut oracle = script.oracle.take();
                let live = oracle.live.clone();
                oracle.adopt(live);
                oracle
            });
            if start == Start::Cut {
                disk.power_cut(Loss::Random);
            } else {
                disk.crash_process();
            }
            (disk, oracle.unwrap())
        };
        self.prepared.entry((start, granularity, inline, seed)).or_insert_with(make).clone()
    }
}

async fn script(io: &Io, disk: &SimDisk, oracle: Oracle) -> Script {
    let volume = open(io, Path::new(DIR), 4096, &oracle.committed).await;
    let oracle = Rc::new(RefCell::new(oracle));
    let script = Script::new(io, volume, oracle, Rc::new(Run::new(1)), 0);
    Script { disk: Some(disk.clone()), ..script }
}

/// Opens after a crash, compares, and goes on a little.
fn survives(disk: &SimDisk, oracle: Oracle, crash: Crash) {
    let machine = disk.clone();
    on_sim(disk, move |io| async move {
        let script = script(&io, &machine, oracle).await;
        recovered(&script, crash).await;
        script.check().await;
        put(&script, BLOCK, 3 * BLOCK, 77).await;
        trim(&script, 4 * BLOCK, BLOCK).await;
        script.check().await;
        script.volume.close().await.unwrap();
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::sim::{EIO, ENOSPC};

    /// Every how many operations one is tried.
    fn stride() -> u64 {
        let text = std::env::var("SNAPVOL_STRIDE").ok();
        text.and_then(|text| text.parse().ok()).unwrap_or(11)
    }

    /// One kind of disk for each kind of volume.
    fn two_kinds() -> impl Iterator<Item = Config> {
        configs(5).into_iter().filter(|config| config.inline == (config.granularity == 1))
    }

    #[test]
    fn operations_can_be_the_last() {
        let mut all = Exhaustive::default();
        let mut total = Counts::default();
        for (index, config) in two_kinds().enumerate() {
            let count = all.operations(config);
            for n in (index as u64 % stride()..=count).step_by(usize::try_from(stride()).unwrap()) {
                let _seed = Seed(format!("{config:?} '{}', operation {n}", config.name()));
                total.add(all.crash_after(config, n, false));
            }
        }
        println!("{total:?}");
    }

    #[test]
    fn operations_can_fail_once() {
        let mut all = Exhaustive::default();
        let mut total = Counts::default();
        for (index, config) in two_kinds().enumerate() {
            let count = all.operations(config);
            for n in (1 + index as u64 % stride()..=count).step_by(usize::try_from(stride()).unwrap()) {
                let errno = if (n / stride()).is_multiple_of(2) { EIO } else { ENOSPC };
                let _seed = Seed(format!("{config:?} '{}', operation {n}, error {errno}", config.name()));
                total.add(all.fail_at(config, n, errno));
            }
        }
        println!("{total:?}");
    }
}
