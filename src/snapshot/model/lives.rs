//! Random runs over several lives of a process, each of which ends in its own way: in good
//! order, by the death of the process or of the machine; on a disk that is sound, fails by
//! chance, is full, or turns bits over.

use super::oracle::{Crash, Fate, Oracle, Snap};
use super::run::{Id, Run};
use super::script::{Allowed, Script, geometry};
use super::*;
use crate::io::sim::{Faults, Loss, SimOptions};

/// Lives of a process in a run.
const LIVES: u16 = 6;
/// Steps in a life.
const STEPS: u16 = 12;
/// States in the middle of a life from which a crash is tried beside it.
const FORKS_MAX: usize = 6;

/// Places in a life that draw from chances of their own.
const LIFE: u64 = 1 << 20;
const BUDGET: u64 = 2 << 20;
const FORK: u64 = 3 << 20;
const DISK: u64 = 4 << 20;

/// What the disk does besides losing what was not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// Nothing.
    None,
    /// Operations fail and stall by chance.
    Faults,
    /// It is full now and then.
    Full,
    /// Bits turn over in what was written, in everything that has a checksum.
    Flips,
}

/// What a run is like.
#[derive(Clone, Copy, Debug)]
pub(super) struct Profile {
    pub process_dies: bool,
    pub power_fails: bool,
    pub trouble: Trouble,
}

/// A run over several lives of a process.
struct Lives {
    run: Rc<Run>,
    profile: Profile,
    disk: SimDisk,
    oracle: Rc<RefCell<Oracle>>,
    block_size: u32,
    on_full: OnFull,
    /// Before-images may be damaged from now on.
    damage: Cell<bool>,
}

/// How a life ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// Closed in good order.
    Closed,
    /// In the middle of something.
    Cut,
    /// The volume was refused: it is damaged, and says so.
    Refused,
}

/// Runs a volume through its lives.
pub(super) fn lives(run: &Rc<Run>, profile: Profile) {
    let mut lives = Lives::new(Rc::clone(run), profile);
    let mut crash = None;
    for life in 0..LIVES {
        if run.is_left_out(Id::life(life)) {
            continue;
        }
        run.note(Id::life(life), || format!("opens after {crash:?}"));
        let budget = lives.budget(life);
        match lives.live(life, crash, STEPS, budget) {
            End::Refused => return,
            end => {
                crash = Some(lives.end(life, end));
                // Of what a crash left, the newest can't be told from what was torn.
                if end == End::Closed && lives.profile.trouble == Trouble::Flips {
                    lives.turn_bits_over(life);
                }
            }
        }
    }
    lives.live(LIVES, crash, 2, None);
}

impl Lives {
    fn new(run: Rc<Run>, profile: Profile) -> Self {
        let mut rng = run.rng(&[LIFE]);
        let mut geometry = geometry(&mut rng);
        let policies = [OnFull::Freeze, OnFull::Readonly, OnFull::DropOldest];
        let on_full = match profile.trouble {
            // No snapshot goes because of an error that chance gave.
            Trouble::Faults => policies[rng.usize(0..2)],
            _ => policies[rng.usize(0..3)],
        };
        if profile.trouble == Trouble::Flips {
            // What can't be read is read block by block.
            geometry.size = geometry.size.min(20 * u64::from(geometry.block_size));
        }
        let (inline, reorder) = (rng.bool(), rng.u32(0..4) > 0);
        let disk = SimDisk::new(SimOptions { seed: run.varied(&[DISK]).u64(..), inline, reorder });
        on_sim(&disk, move |io| async move {
            let uuid = Uuid::from_u128(7);
            Volume::create(&io, Path::new(DIR), uuid, geometry, on_full, Role::Primary).await.unwrap();
            io.sync_dir(Path::new("/")).await.unwrap();
        });
        disk.crash_process();
        run.note(Id::life(0), || {
            format!("a volume of {geometry:?}, {on_full:?}, inline {inline}, reorder {reorder}")
        });
        Self {
            run,
            profile,
            disk,
            oracle: Rc::new(RefCell::new(Oracle::new(usize::try_from(geometry.size).unwrap()))),
            block_size: geometry.block_size,
            on_full,
            damage: Cell::default(),
        }
    }

    /// After how many operations the process dies.
    fn budget(&self, life: u16) -> Option<u64> {
        if !self.profile.process_dies && !self.profile.power_fails {
            return None;
        }
        let mut rng = self.run.varied(&[BUDGET, u64::from(life)]);
        if self.profile.trouble == Trouble::Flips && rng.bool() {
            return None;
        }
        Some(if rng.bool() { rng.u64(0..300) } else { rng.u64(0..3000) })
    }

    fn allowed(&self) -> Allowed {
        match (self.profile.trouble, self.on_full) {
            (Trouble::None | Trouble::Flips, _) => Allowed::Nothing,
            (Trouble::Faults, _) => Allowed::Failures,
            (Trouble::Full, OnFull::DropOldest) => Allowed::Drops,
            (Trouble::Full, _) => Allowed::Full,
        }
    }

    /// Faults for a life, some of each kind or none of it.
    fn faults(&self, life: u16) -> Option<Faults> {
        if self.profile.trouble != Trouble::Faults {
            return None;
        }
        let mut rng = self.run.varied(&[LIFE, u64::from(life)]);
        let mut odds = || if rng.bool() { 0 } else { 1 << rng.u32(2..11) };
        let (reads, writes, syncs, names, full, stalls) = (odds(), odds(), odds(), odds(), odds(), odds());
        Some(Faults { reads, writes, syncs, names, full, stalls })
    }

    /// Opens, checks against what the crash may have left, and runs `steps` steps.
    fn live(&mut self, life: u16, crash: Option<Crash>, steps: u16, budget: Option<u64>) -> End {
        let (oracle, run, disk) = (Rc::clone(&self.oracle), Rc::clone(&self.run), self.disk.clone());
        let (block_size, allowed, faults) = (self.block_size, self.allowed(), self.faults(life));
        let flips = self.profile.trouble == Trouble::Flips;
        self.damage.set(self.damage.get() || flips || faults.is_some_and(|f| f.reads > 0));
        let damage = self.damage.get();
        let before = disk.injected();
        let mut forks = Vec::new();
        // What an earlier crash may have cost, until the oracle has seen it.
        let unseen = Rc::new(Cell::new(crash));
        let seen = Rc::clone(&unseen);
        let mut rng = self.run.varied(&[FORK, u64::from(life)]);
        let odds = 1 << rng.u32(4..9);
        let may_fork = budget.is_some() && faults.is_none();
        let ended = on_sim_watched(
            &self.disk,
            || {
                if may_fork && forks.len() < FORKS_MAX && rng.u32(0..odds) == 0 {
                    forks.push((self.disk.fork(), self.oracle.borrow().clone(), unseen.get()));
                }
            },
            move |io| async move {
                let committed = oracle.borrow().committed.clone();
                let opened = Volume::open(&io, Path::new(DIR), "vol", tuning(block_size), &committed).await;
                let volume = match opened {
                    Ok((volume, _)) => volume,
                    Err(error) if flips && names_a_file(&error) => {
                        run.note(Id::life(life), || format!("refused: {error}"));
                        return End::Refused;
                    }
                    Err(error) => panic!("it does not open: {error:?}"),
                };
                let script = Script {
                    disk: Some(disk.clone()),
                    damage,
                    ..Script::new(&io, volume, oracle, run, life)
                };
                if let Some(crash) = crash {
                    recovered(&script, crash).await;
                    seen.set(None);
                }
                script.check().await;
                if let Some(budget) = budget {
                    disk.crash_after(budget);
                }
                disk.set_faults(faults);
                let troubled = Script { allowed, ..script.clone() };
                for step in 1..=steps {
                    troubled.step(step).await;
                    disk.fill(None);
                    troubled.check().await;
                }
                disk.set_faults(None);
                if matches!(allowed, Allowed::Full | Allowed::Drops)
                    && !script.is_dead()
                    && !script.over.get()
                {
                    let writable = script.volume.writable(crate::snapshot::Who::Client);
                    assert!(writable.is_ok(), "space came back, and {:?}", writable.err());
                }
                script.check().await;
                let closed = script.volume.close().await;
                let closer = if allowed == Allowed::Failures { &troubled } else { &script };
                if closer.is_done(&closed) && !script.over.get() { End::Closed } else { End::Cut }
            },
        );
        self.disk.set_faults(None);
        self.disk.fill(None);
        self.run.count(|counts| counts.failures += self.disk.injected() - before);
        for (index, (disk, mut oracle, unseen)) in forks.into_iter().enumerate() {
            self.may_drop(&mut oracle);
            self.survive(life, index as u64, &disk, oracle, unseen);
        }
        self.may_drop(&mut self.oracle.borrow_mut());
        ended.unwrap_or(End::Cut)
    }

    /// A full disk may have cost any snapshot that nobody holds.
    fn may_drop(&self, oracle: &mut Oracle) {
        if self.allowed() == Allowed::Drops {
            for snap in oracle.snaps.iter_mut().filter(|s| s.fate == Fate::Must && s.holds.is_empty()) {
                (snap.fate, snap.shrinking) = (Fate::May, false);
            }
        }
    }

    /// Crashes from a state in the middle of a life, and looks at what is left.
    fn survive(&self, life: u16, index: u64, disk: &SimDisk, oracle: Oracle, unseen: Option<Crash>) {
        let mut rng = self.run.varied(&[FORK, u64::from(life), index + 1]);
        disk.fill(None);
        let crash = match (self.crash(disk, &mut rng), unseen) {
            (Crash::Process, Some(unseen)) => unseen,
            (crash, _) => crash,
        };
        self.run.note(Id::life(life), || format!("beside it: {crash:?}, {} snapshots", oracle.snaps.len()));
        let (run, machine) = (Rc::clone(&self.run), disk.clone());
        let (block_size, damage) = (self.block_size, self.damage.get());
        on_sim(disk, move |io| async move {
            let opened =
                Volume::open(&io, Path::new(DIR), "vol", tuning(block_size), &oracle.committed).await;
            let volume = match opened {
                Ok((volume, _)) => volume,
                // Both copies of something may have turned over.
                Err(error) if damage && names_a_file(&error) => return,
                Err(error) => panic!("{error:?}"),
            };
            let oracle = Rc::new(RefCell::new(oracle));
            let script =
                Script { disk: Some(machine), damage, ..Script::new(&io, volume, oracle, run, life) };
            recovered(&script, crash).await;
            script.check().await;
        });
    }

    /// Opens, and dies meanwhile, if it takes that long; or the open fails.
    fn open_and_die(&self, life: u16, budget: u64) {
        let (oracle, block_size) = (self.oracle.clone(), self.block_size);
        let before = self.disk.injected();
        self.disk.set_faults(self.faults(life));
        self.disk.crash_after(budget);
        on_sim(&self.disk, move |io| async move {
            let committed = oracle.borrow().committed.clone();
            Volume::open(&io, Path::new(DIR), "vol", tuning(block_size), &committed).await.is_ok()
        });
        self.disk.set_faults(None);
        self.run.count(|counts| counts.failures += self.disk.injected() - before);
    }

    /// Ends a life, and what follows it before the next one; says what may be lost.
    fn end(&self, life: u16, end: End) -> Crash {
        let mut rng = self.run.varied(&[LIFE, u64::from(life), 1]);
        if end == End::Closed {
            // All of it is durable.
            if rng.bool() {
                self.disk.power_cut(Loss::All);
            } else {
                self.disk.crash_process();
            }
            return Crash::Process;
        }
        let mut worst = self.crash(&self.disk, &mut rng);
        while rng.u32(0..3) == 0 && self.profile.trouble != Trouble::Flips {
            self.open_and_die(life, rng.u64(0..120));
            if self.crash(&self.disk, &mut rng) == Crash::Power {
                worst = Crash::Power;
            }
        }
        self.run.note(Id::life(life), || format!("ends by {worst:?}"));
        worst
    }

    fn crash(&self, disk: &SimDisk, rng: &mut fastrand::Rng) -> Crash {
        self.run.count(|counts| counts.crashes += 1);
        let power = match (self.profile.process_dies, self.profile.power_fails) {
            (true, true) => rng.bool(),
            (_, power) => power,
        };
        if !power {
            // A store can't know that a sync failed in an earlier process; what it gave up
            // is read back until the power fails, so here it gets to the disk in the end.
            disk.crash_process();
            disk.forgive();
            return Crash::Process;
        }
        let unsynced = disk.unsynced().max(1);
        let loss = match rng.u32(0..7) {
            0 => Loss::All,
            1 => Loss::None,
            2 => Loss::Alone(rng.usize(0..unsynced)),
            3 => Loss::AllBut(rng.usize(0..unsynced)),
            4 => Loss::Torn,
            _ => Loss::Random,
        };
        disk.power_cut(loss);
        Crash::Power
    }

    /// Turns bits over in files that carry checksums: segments, layers, checkpoints.
    fn turn_bits_over(&self, life: u16) {
        let mut rng = self.run.varied(&[LIFE, u64::from(life), 2]);
        let summed = |path: &Path| {
            let text = path.to_string_lossy();
            text.contains("/save/") || text.contains("/snapshots/") || text.contains("/meta-")
        };
        let files: Vec<_> = self.disk.files().into_iter().filter(|path| summed(path)).collect();
        for _ in 0..rng.u32(0..3) {
            let Some(path) = files.get(rng.usize(0..files.len().max(1))) else { return };
            let len = self.disk.contents(path).map_or(0, |bytes| bytes.len() as u64);
            if len == 0 {
                continue;
            }
            // Most of a file is space that was only allocated; its start is full of meaning.
            let at = if rng.bool() { rng.u64(0..len) } else { rng.u64(0..len.min(24 << 10)) };
            let bit = rng.u8(0..8);
            self.disk.flip_bit(path, at, bit);
            self.run
                .note(Id::life(life), || format!("bit {bit} of byte {at} of {} turns over", path.display()));
            self.run.count(|counts| counts.failures += 1);
        }
    }
}

/// Whether an error says which file is damaged.
fn names_a_file(error: &crate::error::Error) -> bool {
    let text = error.to_string();
    error.kind() == crate::ErrorKind::Corrupt
        && ["meta-", "segment ", "snapshots/", "journal"].iter().any(|name| text.contains(name))
}

/// Compares what a crash left with what it may leave, and goes on from there.
pub(super) async fn recovered(script: &Script, crash: Crash) {
    let volume = &script.volume;
    let found = production(volume).await;
    let there: BTreeSet<Uuid> = volume.snapshots().iter().map(|r| r.uuid).collect();
    let role = volume.role();
    {
        let mut oracle = script.oracle.borrow_mut();
        assert!(
            role == oracle.role || Some(role) == oracle.changing_role,
            "its role is {role:?}, not {:?} or {:?} ({crash:?})",
            oracle.role,
            oracle.changing_role
        );
        (oracle.role, oracle.changing_role) = (role, None);
    }
    let receiving = script.oracle.borrow_mut().receiving.take();
    let found = match receiving {
        None => {
            let oracle = script.oracle.borrow();
            if let Err(error) = oracle.check_crash(&found, crash) {
                panic!("production after a crash ({crash:?}): {error}");
            }
            found
        }
        Some(receiving) if there.contains(&receiving.target) => {
            assert!(found == receiving.image, "production is not what was received");
            let snap = Snap::there(receiving.target, receiving.name, receiving.image);
            script.oracle.borrow_mut().snaps.push(snap);
            found
        }
        Some(receiving) => {
            let found = if volume.half_received().is_some() {
                volume.receive_abort().await.unwrap();
                production(volume).await
            } else {
                found
            };
            assert!(found == receiving.before, "half a receive left its traces");
            found
        }
    };
    script.oracle.borrow_mut().adopt(found);
    // Where random operations go on, clients write.
    if role == Role::Secondary && !script.oracle.borrow().is_replica {
        volume.set_role(Role::Primary).await.unwrap();
        script.oracle.borrow_mut().role = Role::Primary;
    }
    let bookmarks: BTreeSet<Uuid> = volume.bookmarks().iter().map(|b| b.uuid).collect();
    let mut oracle = script.oracle.borrow_mut();
    for mark in &mut oracle.marks {
        assert!(bookmarks.contains(&mark.uuid) || !mark.must, "bookmark {} is gone", mark.uuid);
        (mark.must, mark.busy) = (true, false);
    }
    oracle.marks.retain(|mark| bookmarks.contains(&mark.uuid));
    for snap in &mut oracle.snaps {
        snap.busy = false;
        if std::mem::take(&mut snap.shrinking) {
            let one = there.contains(&snap.uuid) != bookmarks.contains(&snap.uuid);
            assert!(one, "cut {} is neither a snapshot nor a bookmark, or both", snap.name);
        }
        let is_there = there.contains(&snap.uuid);
        match snap.fate {
            Fate::Must => assert!(is_there, "snapshot {} is gone", snap.name),
            Fate::MustNot => assert!(!is_there, "snapshot {} was never committed", snap.name),
            Fate::May => {}
        }
        if is_there {
            snap.fate = Fate::Must;
        }
        if let Some(record) = volume.snapshots().iter().find(|r| r.uuid == snap.uuid) {
            assert!(snap.holding || record.holds == snap.holds, "holds of {}", snap.name);
            snap.holds.clone_from(&record.holds);
            snap.holding = false;
        }
    }
    oracle.snaps.retain(|snap| there.contains(&snap.uuid));
}
