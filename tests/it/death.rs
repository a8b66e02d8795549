//! Real death: daemons and commands are killed without a warning while several writers
//! verify, snapshots come and go and copies run to a second store. What was acknowledged
//! is there afterwards, flushed or not; snapshots hold what they held; what was not
//! confirmed happened whole or not at all.
//!
//! `SNAPVOL_ROUNDS` sets how often all of them are killed (4), `SNAPVOL_SEED` where
//! chance starts; `tools/soak` runs many rounds.

use crate::support::ledger::{Ledger, Outcome};
use crate::support::oracle::{Death, SECTOR};
use crate::support::server::Server;
use crate::support::writers::{Connect, Habits, Life, RESERVED, Volume, swing, write};
use crate::support::{describe, json, number, ok, scratch, snapvol};
use rustix::process::{Pid, Signal, kill_process_group};
use snapvol::nbd::client::{Client, Options};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Name, sectors, and how it is made. The third one has an odd size, larger blocks and
/// coarser bits; it alone is rolled back, since the pendulum swings between the others.
const VOLUMES: [(&str, u64, &[&str]); 3] = [
    ("a", 8192, &[]),
    ("b", 8192, &["--block-size", "512"]),
    ("c", 8193, &["--block-size", "16K", "--granularity", "4"]),
];
const ROLLED: usize = 2;
const SNAPSHOTS_MAX: usize = 6;

fn connect_to(store: &Path) -> Connect {
    let socket = store.join("nbd.sock");
    Arc::new(move |export| {
        let options = Options { structured: true, ..Options::default() };
        Client::unix(&socket, export, &options)
    })
}

/// The command that runs at the moment, so that it can be killed, with its children.
#[derive(Clone, Default)]
struct Running(Arc<Mutex<Option<Pid>>>);

impl Running {
    fn spawn(&self, command: &mut Command) -> Child {
        command.process_group(0).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut place = self.0.lock().unwrap();
        let child = command.spawn().unwrap();
        *place = Some(Pid::from_child(&child));
        child
    }

    /// Waits for the end of the command. Its number is given up before the process is
    /// waited for, since afterwards another one may get it.
    fn outcome(&self, child: Child, life: &Life) -> Outcome {
        let pid = Pid::from_child(&child);
        let ended = rustix::process::WaitIdOptions::EXITED | rustix::process::WaitIdOptions::NOWAIT;
        // Both outputs are a few lines, so that nobody waits for a pipe that is full.
        while rustix::process::waitid(rustix::process::WaitId::Pid(pid), ended).is_err() {}
        *self.0.lock().unwrap() = None;
        let output = child.wait_with_output().unwrap();
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!message.contains("panicked"), "{message}");
        match output.status.code() {
            Some(0) => Outcome::Done,
            Some(3) if !life.ended() => Outcome::Refused(message),
            _ => {
                assert!(life.ended(), "{}", describe(&output));
                Outcome::Unknown
            }
        }
    }

    fn kill(&self) {
        if let Some(pid) = *self.0.lock().unwrap() {
            // It may have ended by itself.
            let _ = kill_process_group(pid, Signal::KILL);
        }
    }
}

/// Both stores, what they must hold, and chance.
struct World {
    near: PathBuf,
    far: PathBuf,
    ledger: Ledger,
    copies: Ledger,
    rng: fastrand::Rng,
    running: Running,
    /// Commands that were confirmed, refused, and cut off.
    counts: [u64; 3],
}

impl World {
    fn command(&mut self, store: &Path, life: &Life, args: &[String]) -> Outcome {
        let outcome = run(&self.running, store, life, args);
        self.count(&outcome);
        outcome
    }

    fn count(&mut self, outcome: &Outcome) {
        let at = match outcome {
            Outcome::Done => 0,
            Outcome::Refused(_) => 1,
            Outcome::Unknown => 2,
        };
        self.counts[at] += 1;
    }

    /// One command of some kind, on the store itself or on whoever serves it.
    fn operate(&mut self, life: &Life, served: bool) {
        let (running, near) = (self.running.clone(), self.near.clone());
        let run = |words: &[&str], names: &[String]| {
            let mut args: Vec<String> = words.iter().map(ToString::to_string).collect();
            args.extend(names.iter().cloned());
            run(&running, &near, life, &args)
        };
        let all: Vec<usize> = (0..VOLUMES.len()).collect();
        match self.rng.u8(0..16) {
            0..3 => {
                let volume = self.rng.usize(0..VOLUMES.len());
                self.take(&[volume], |names| run(&["snapshot"], names), served);
            }
            3..6 => self.take(&all, |names| run(&["snapshot"], names), served),
            6..9 => {
                let picks: Vec<(usize, usize)> = all
                    .into_iter()
                    .filter(|_| self.rng.bool())
                    .map(|volume| (volume, self.ledger.names(volume).len()))
                    .filter(|(_, count)| *count > 1)
                    .collect();
                let picks: Vec<(usize, usize)> =
                    picks.into_iter().map(|(volume, count)| (volume, self.rng.usize(0..count))).collect();
                if !picks.is_empty() {
                    let outcome = self.ledger.delete(&picks, |names| run(&["delete"], names));
                    assert!(!matches!(outcome, Outcome::Refused(_)), "{outcome:?}");
                    self.count(&outcome);
                }
            }
            9..11 => self.roll_back(life, run),
            11..13 => self.copy(life),
            13 => self.delete_copy(life),
            14 => {
                let outcome = run(&["check"], &[]);
                assert!(!matches!(outcome, Outcome::Refused(_)), "{outcome:?}");
            }
            _ => {
                let outcome = run(&["scrub"], &[]);
                assert!(!matches!(outcome, Outcome::Refused(_)), "{outcome:?}");
            }
        }
    }

    fn take(&mut self, volumes: &[usize], run: impl FnOnce(&[String]) -> Outcome, served: bool) {
        let full = |volume: &usize| self.ledger.names(*volume).len() >= SNAPSHOTS_MAX;
        if volumes.iter().any(|volume| full(volume) || self.ledger.is_rolling(*volume)) {
            return;
        }
        let outcome = self.ledger.take(volumes, run);
        assert!(!matches!(outcome, Outcome::Refused(_)), "{outcome:?}");
        self.count(&outcome);
        if served && outcome == Outcome::Done {
            self.ledger.examine(volumes, &connect_to(&self.near));
        }
    }

    /// With the writers gone in good order, or cut off.
    fn roll_back(&mut self, life: &Life, run: impl Fn(&[&str], &[String]) -> Outcome) {
        let count = self.ledger.names(ROLLED).len();
        if count == 0 {
            return;
        }
        let (at, force) = (self.rng.usize(0..count), self.rng.bool());
        let volume = Arc::clone(&self.ledger.volumes[ROLLED]);
        volume.pause(!force);
        let words: &[&str] = if force { &["rollback", "--force"] } else { &["rollback"] };
        let outcome = loop {
            let outcome = self.ledger.roll_back(ROLLED, at, |name| run(words, &[name.to_owned()]));
            match &outcome {
                // The server notices a moment later that a client has gone.
                Outcome::Refused(why) if why.contains("open") && !life.ended() => {}
                _ => break outcome,
            }
        };
        self.count(&outcome);
        // Nothing may write before the model knows what is there.
        volume.unpause();
    }

    /// Copies the newest snapshot of a volume to the second store.
    fn copy(&mut self, life: &Life) {
        let volume = self.rng.usize(0..VOLUMES.len());
        let Some(name) = self.ledger.names(volume).pop() else { return };
        let Some(content) = self.ledger.content(&name) else { return };
        let there = self.far.join(VOLUMES[volume].0).display().to_string();
        let near = self.near.clone();
        let mut outcome = self.command(&near, life, &["copy".into(), name.clone(), there.clone()]);
        if let Outcome::Refused(why) = &outcome
            && why.contains("does not equal the base")
        {
            // The youngest one there may be gone here, and then no delta fits.
            let (here, there_too) = (self.ledger.names(volume), self.copies.newest(volume));
            assert!(there_too.iter().all(|name| !here.contains(name)), "{why}: {here:?}, {there_too:?}");
            outcome = self.command(&near, life, &["copy".into(), "--full".into(), name.clone(), there]);
        }
        match &outcome {
            // Of another snapshot something has arrived, and may go.
            Outcome::Refused(why) if why.contains("half received") => {
                let far = self.far.clone();
                let abort = ["receive".into(), VOLUMES[volume].0.into(), "--abort".into()];
                let outcome = self.command(&far, life, &abort);
                assert!(!matches!(outcome, Outcome::Refused(_)), "{outcome:?}");
            }
            Outcome::Refused(why) => panic!("{why}"),
            _ => self.copies.copied(volume, &name, content, &outcome),
        }
    }

    /// Deletes an older snapshot at the far end; the newest is what the next delta needs.
    fn delete_copy(&mut self, life: &Life) {
        let volume = self.rng.usize(0..VOLUMES.len());
        let count = self.copies.names(volume).len();
        if count > 2 {
            let (at, running, far) = (self.rng.usize(0..count - 1), self.running.clone(), self.far.clone());
            let outcome = self.copies.delete(&[(volume, at)], |names| {
                run(&running, &far, life, &["delete".to_owned(), names[0].clone()])
            });
            self.count(&outcome);
        }
    }

    /// One life: writers and commands until everything is killed.
    fn live(mut self, answered: &mut u64) -> Self {
        let life = Life::default();
        let (near_io, far_io) = (self.io(), self.io());
        let near = Server::start(&self.near, &["--io", near_io]);
        let far = self.rng.bool().then(|| Server::start(&self.far, &["--io", far_io]));
        let connect = connect_to(&self.near);
        let swinging = {
            let volumes = self.ledger.volumes[..2].to_vec();
            swing(volumes, Arc::clone(&self.ledger.swings), &connect, &life)
        };
        let mut writers = Vec::new();
        for volume in &self.ledger.volumes {
            let sectors = volume.model().sector_count();
            // Within a block, so that both writers meet in it.
            let border = sectors / 2 + 3;
            for own in [RESERVED..border, border..sectors] {
                let habits = Habits {
                    depth: self.rng.usize(1..24),
                    flushes: self.rng.bool(),
                    longest: self.rng.u64(8..200),
                };
                let (volume, connect) = (Arc::clone(volume), Arc::clone(&connect));
                let (life, rng) = (life.clone(), self.rng.fork());
                writers.push(std::thread::spawn(move || write(&volume, &connect, own, habits, &life, rng)));
            }
        }
        let time = if self.rng.u8(0..3) == 0 { self.rng.u64(10..300) } else { self.rng.u64(300..3000) };
        let time = Duration::from_millis(time);
        let (running, kill_command, kill_near_first) =
            (self.running.clone(), self.rng.bool(), self.rng.bool());
        let operating = {
            let life = life.clone();
            std::thread::spawn(move || {
                while !life.ended() {
                    self.operate(&life, true);
                }
                self
            })
        };
        std::thread::sleep(time);
        life.end();
        if kill_near_first {
            near.kill();
            far.into_iter().for_each(Server::kill);
        } else {
            far.into_iter().for_each(Server::kill);
            near.kill();
        }
        if kill_command {
            running.kill();
        }
        for writer in writers {
            *answered += writer.join().unwrap();
        }
        swinging.join().unwrap();
        operating.join().unwrap()
    }

    /// A daemon that is killed while it starts, and commands that open the store
    /// themselves and are killed.
    fn die_early(&mut self) {
        for _ in 0..self.rng.u8(0..3) {
            let (io, store) = (self.io(), if self.rng.bool() { &self.near } else { &self.far });
            let mut command = snapvol(store);
            command.args(["serve", "--io", io]).stdout(Stdio::null()).stderr(Stdio::null());
            let mut child = command.spawn().unwrap();
            std::thread::sleep(Duration::from_millis(self.rng.u64(0..120)));
            child.kill().unwrap();
            child.wait().unwrap();
        }
        for _ in 0..self.rng.u8(0..3) {
            let (life, running) = (Life::default(), self.running.clone());
            let time = Duration::from_millis(self.rng.u64(0..80));
            let killer = {
                let life = life.clone();
                std::thread::spawn(move || {
                    std::thread::sleep(time);
                    life.end();
                    running.kill();
                })
            };
            self.operate(&life, false);
            killer.join().unwrap();
        }
    }

    fn io(&mut self) -> &'static str {
        if self.rng.bool() { "auto" } else { "plain" }
    }

    fn verify(&mut self) {
        // As the death left it, recovery in memory only.
        for store in [&self.near, &self.far] {
            ok(store, &["check"]);
        }
        let (near_io, far_io) = (self.io(), self.io());
        let near = Server::start(&self.near, &["--io", near_io]);
        let far = Server::start(&self.far, &["--io", far_io]);
        self.ledger.verify(&json(&self.near, &["list", "--json"]), &connect_to(&self.near));
        self.copies.verify(&json(&self.far, &["list", "--json"]), &connect_to(&self.far));
        for store in [&self.near, &self.far] {
            ok(store, &["check"]);
            ok(store, &["scrub"]);
        }
        // Every second time the next life begins after another death.
        if self.rng.bool() {
            near.kill();
            far.kill();
        } else {
            near.stop();
            far.stop();
        }
    }
}

fn run(running: &Running, store: &Path, life: &Life, args: &[String]) -> Outcome {
    let child = running.spawn(snapvol(store).args(args));
    let outcome = running.outcome(child, life);
    eprintln!("  {}: {outcome:?}", args.join(" "));
    outcome
}

#[test]
fn what_was_acknowledged_survives_a_kill() {
    let (rounds, seed) = (number("SNAPVOL_ROUNDS", 4), number("SNAPVOL_SEED", 1));
    let dir = scratch();
    let (near, far) = (dir.path().join("n"), dir.path().join("f"));
    ok(&near, &["init"]);
    ok(&far, &["init"]);
    // So that its server has something to say before the first copy.
    ok(&far, &["create", "other", "--size", "1M"]);
    let mut volumes = Vec::new();
    for (salt, (name, sectors, options)) in (1..).zip(VOLUMES) {
        let size = (sectors * SECTOR as u64).to_string();
        ok(&near, &[&["create", name, "--size", &size], options].concat());
        volumes.push(Arc::new(Volume::new(name, salt, sectors, Death::Process)));
    }
    let mut world = World {
        near,
        far,
        ledger: Ledger::new(volumes.clone(), false),
        copies: Ledger::new(volumes, true),
        rng: fastrand::Rng::with_seed(seed),
        running: Running::default(),
        counts: [0; 3],
    };
    let mut answered = 0;
    for round in 0..rounds {
        eprintln!("round {round} of {rounds}, seed {seed}");
        world = world.live(&mut answered);
        world.die_early();
        world.verify();
    }
    let [done, refused, cut_off] = world.counts;
    println!(
        "rounds {rounds}, requests answered {answered}, commands confirmed {done}, refused {refused}, \
         cut off {cut_off}, snapshots compared {}, copies compared {}",
        world.ledger.compared, world.copies.compared
    );
}
