//! What a store must show after a death: the snapshots that were confirmed, with what
//! they hold; those that were asked for and not confirmed whole or not at all; and of
//! production what its model allows.

use super::oracle::Allowed;
use super::writers::{Connect, Volume};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

/// How a command ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was confirmed.
    Done,
    /// It was refused, and nothing was done.
    Refused(String),
    /// Somebody died meanwhile: it was done or it was not.
    Unknown,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    There,
    MaybeThere,
    MaybeGone,
}

/// A snapshot that was asked for.
#[derive(Clone, Debug)]
struct Snapshot {
    name: String,
    state: State,
    allowed: Allowed,
    /// What it holds, once it was read.
    content: Option<Vec<u64>>,
    /// Those of the same command share a number: all of them are there, or none.
    command: u64,
}

/// A store's volumes and snapshots.
pub struct Ledger {
    pub volumes: Vec<Arc<Volume>>,
    /// Of each volume, oldest first.
    snapshots: Vec<Vec<Snapshot>>,
    /// Volumes that may have been rolled back, and to what.
    rolling: BTreeMap<usize, Vec<Vec<u64>>>,
    /// Whether production is the newest snapshot, as at the far end of a copy.
    secondary: bool,
    commands: u64,
    /// The stamps of the pendulum in their order; it swings from volume 0 to volume 1.
    pub swings: Arc<Mutex<Vec<u64>>>,
    /// Snapshots that were compared with what they held before.
    pub compared: u64,
}

impl Ledger {
    pub fn new(volumes: Vec<Arc<Volume>>, secondary: bool) -> Self {
        Self {
            snapshots: vec![Vec::new(); volumes.len()],
            volumes,
            rolling: BTreeMap::new(),
            secondary,
            commands: 0,
            swings: Arc::default(),
            compared: 0,
        }
    }

    /// `VOL@SNAP` of every snapshot that is there for sure, oldest first.
    pub fn names(&self, volume: usize) -> Vec<String> {
        let there = self.snapshots[volume].iter().filter(|snapshot| snapshot.state == State::There);
        there.map(|snapshot| format!("{}@{}", self.volumes[volume].name, snapshot.name)).collect()
    }

    /// The youngest snapshot of a volume: the last one that is there for sure, or others
    /// after it.
    pub fn newest(&self, volume: usize) -> Vec<String> {
        let snapshots = &self.snapshots[volume];
        let sure = snapshots.iter().rposition(|snapshot| snapshot.state == State::There).unwrap_or(0);
        let names = snapshots[sure..].iter().map(|snapshot| &snapshot.name);
        names.map(|name| format!("{}@{name}", self.volumes[volume].name)).collect()
    }

    fn next_command(&mut self) -> u64 {
        self.commands += 1;
        self.commands
    }

    /// Takes a snapshot of each of these volumes at one instant.
    pub fn take(&mut self, volumes: &[usize], run: impl FnOnce(&[String]) -> Outcome) -> Outcome {
        let command = self.next_command();
        let name = format!("s{command}");
        let asked = volumes.iter().map(|volume| format!("{}@{name}", self.volumes[*volume].name));
        let asked: Vec<String> = asked.collect();
        let mut allowed: Vec<Allowed> =
            volumes.iter().map(|volume| self.volumes[*volume].model().take()).collect();
        let outcome = run(&asked);
        for (volume, mut allowed) in volumes.iter().zip(allowed.drain(..)) {
            self.volumes[*volume].model().taken(&mut allowed);
            let state = match &outcome {
                Outcome::Done => State::There,
                Outcome::Unknown => State::MaybeThere,
                Outcome::Refused(_) => continue,
            };
            let name = name.clone();
            self.snapshots[*volume].push(Snapshot { name, state, allowed, content: None, command });
        }
        outcome
    }

    /// Deletes some of the volumes' snapshots, at most one of each.
    pub fn delete(&mut self, picks: &[(usize, usize)], run: impl FnOnce(&[String]) -> Outcome) -> Outcome {
        let command = self.next_command();
        let names: Vec<String> = picks.iter().map(|(volume, at)| self.names(*volume)[*at].clone()).collect();
        let outcome = run(&names);
        for ((volume, _), full) in picks.iter().zip(&names) {
            let snapshots = &mut self.snapshots[*volume];
            let (_, name) = full.split_once('@').unwrap();
            let at = snapshots.iter().position(|snapshot| snapshot.name == name).unwrap();
            match outcome {
                Outcome::Done => drop(snapshots.remove(at)),
                Outcome::Unknown => {
                    snapshots[at].state = State::MaybeGone;
                    snapshots[at].command = command;
                }
                Outcome::Refused(_) => {}
            }
        }
        outcome
    }

    /// Rolls a volume back to one of its snapshots that were read, while nobody writes.
    pub fn roll_back(&mut self, volume: usize, at: usize, run: impl FnOnce(&str) -> Outcome) -> Outcome {
        let name = self.names(volume)[at].clone();
        let Some(content) = self.content(&name) else { return Outcome::Refused("not read yet".into()) };
        let outcome = run(&name);
        match outcome {
            Outcome::Done => {
                self.rolling.remove(&volume);
                self.volumes[volume].model().become_exactly(&content);
            }
            Outcome::Unknown => self.rolling.entry(volume).or_default().push(content),
            Outcome::Refused(_) => {}
        }
        outcome
    }

    /// Whether nobody knows if a volume was rolled back.
    pub fn is_rolling(&self, volume: usize) -> bool {
        self.rolling.contains_key(&volume)
    }

    /// What a snapshot holds, if it was read.
    pub fn content(&self, name: &str) -> Option<Vec<u64>> {
        let (volume, snapshot) = name.split_once('@').unwrap();
        let at = self.volumes.iter().position(|known| known.name == volume).unwrap();
        let found = self.snapshots[at].iter().find(|known| known.name == snapshot)?;
        found.content.clone()
    }

    /// A copy of a snapshot that holds `content` came from elsewhere, or may have.
    pub fn copied(&mut self, volume: usize, full: &str, content: Vec<u64>, outcome: &Outcome) {
        let command = self.next_command();
        let name = full.split_once('@').unwrap().1.to_owned();
        let state = match outcome {
            Outcome::Done => State::There,
            Outcome::Unknown => State::MaybeThere,
            Outcome::Refused(_) => return,
        };
        if let Some(known) = self.snapshots[volume].iter_mut().find(|known| known.name == name) {
            if *outcome == Outcome::Done {
                known.state = State::There;
            }
            return;
        }
        let allowed = Allowed::exactly(content.clone());
        self.snapshots[volume].push(Snapshot { name, state, allowed, content: Some(content), command });
    }

    /// Reads the newest snapshots of these volumes, if they are there: from now on they
    /// must hold just that.
    pub fn examine(&mut self, volumes: &[usize], connect: &Connect) {
        for &volume in volumes {
            let Some(snapshot) = self.snapshots[volume].last_mut() else { continue };
            if snapshot.content.is_some() || snapshot.state != State::There {
                continue;
            }
            let export = format!("{}@{}", self.volumes[volume].name, snapshot.name);
            // The server may be gone by now; then it is read in the next life.
            snapshot.content = self.volumes[volume].read_all(connect, &export).ok();
        }
        self.check_contents(volumes);
    }

    fn check_contents(&self, volumes: &[usize]) {
        for &volume in volumes {
            for snapshot in &self.snapshots[volume] {
                let Some(content) = &snapshot.content else { continue };
                let fits = snapshot.allowed.admits(content);
                assert_eq!(fits, Ok(()), "{}@{}", self.volumes[volume].name, snapshot.name);
            }
        }
        self.check_swings();
    }

    /// Of volumes 0 and 1 in one command's snapshots, neither is ahead of its instant.
    fn check_swings(&self) {
        let swings = self.swings.lock().unwrap();
        let place = |stamp: u64| swings.iter().position(|swing| *swing == stamp).map_or(0, |at| at + 1);
        let [first, second, ..] = &self.snapshots[..] else { return };
        for one in first.iter().filter(|_| !self.secondary) {
            let Some(other) = second.iter().find(|other| other.name == one.name) else { continue };
            let (Some(one_holds), Some(other_holds)) = (&one.content, &other.content) else { continue };
            let (ahead, behind) = (place(one_holds[0]), place(other_holds[0]));
            assert!(
                ahead >= behind && ahead - behind <= 1,
                "{}: swing {ahead} in one volume, {behind} in the other",
                one.name
            );
        }
    }

    /// Compares all of it with a store that was opened again; `list` is its `list --json`.
    pub fn verify(&mut self, list: &serde_json::Value, connect: &Connect) {
        let mut found: Vec<Vec<String>> = Vec::new();
        for volume in &self.volumes {
            let entry = list["volumes"].as_array().unwrap().iter().find(|entry| entry["name"] == volume.name);
            assert!(entry.is_some() || self.secondary, "{} is gone: {list}", volume.name);
            let names = entry.and_then(|entry| entry["snapshots"].as_array()).into_iter().flatten();
            found.push(names.map(|entry| entry["name"].as_str().unwrap().to_owned()).collect());
        }
        self.resolve(&found);
        for at in 0..self.volumes.len() {
            let volume = Arc::clone(&self.volumes[at]);
            for snapshot in &mut self.snapshots[at] {
                let export = format!("{}@{}", volume.name, snapshot.name);
                let stamps = volume.read_all(connect, &export).unwrap();
                let allowed = snapshot.content.take().map(Allowed::exactly);
                let fits = allowed.as_ref().unwrap_or(&snapshot.allowed).admits(&stamps);
                assert_eq!(fits, Ok(()), "{export} has changed");
                self.compared += 1;
                snapshot.content = Some(stamps);
            }
            self.check_contents(&[at]);
            self.verify_production(at, connect);
        }
    }

    fn verify_production(&mut self, at: usize, connect: &Connect) {
        let volume = Arc::clone(&self.volumes[at]);
        if self.secondary {
            if let Some(newest) = self.snapshots[at].last() {
                let stamps = volume.read_all(connect, &volume.name).unwrap();
                let allowed = Allowed::exactly(newest.content.clone().unwrap());
                assert_eq!(allowed.admits(&stamps), Ok(()), "{} at the far end", volume.name);
            }
            return;
        }
        let stamps = volume.read_all(connect, &volume.name).unwrap();
        let rolled = self.rolling.remove(&at).is_some_and(|contents| contents.contains(&stamps));
        let mut model = volume.model();
        if !rolled {
            assert_eq!(model.after_death().admits(&stamps), Ok(()), "production of {}", volume.name);
        }
        model.become_exactly(&stamps);
    }

    /// Decides what became of unconfirmed commands: each was done whole or not at all.
    fn resolve(&mut self, found: &[Vec<String>]) {
        let mut fates: BTreeMap<u64, BTreeSet<bool>> = BTreeMap::new();
        for ((volume, snapshots), found) in self.volumes.iter().zip(&mut self.snapshots).zip(found) {
            for name in found {
                let known = snapshots.iter().any(|snapshot| snapshot.name == *name);
                assert!(known, "{}@{name} was never taken, or deleted", volume.name);
            }
            snapshots.retain_mut(|snapshot| {
                let there = found.contains(&snapshot.name);
                match snapshot.state {
                    State::There => assert!(there, "{}@{} is gone", volume.name, snapshot.name),
                    _ => drop(fates.entry(snapshot.command).or_default().insert(there)),
                }
                snapshot.state = State::There;
                there
            });
            let order: Vec<&String> = snapshots.iter().map(|snapshot| &snapshot.name).collect();
            assert_eq!(order, found.iter().collect::<Vec<_>>(), "the snapshots of {}", volume.name);
        }
        for (command, fate) in fates {
            assert_eq!(fate.len(), 1, "command {command} was done by half");
        }
    }
}
