//! Real power cuts: the daemon runs in a guest, its store on a file system of the
//! guest's disk, and the guest is switched off in the middle of it while writers on the
//! host verify. The disk loses and tears what was not flushed. What was flushed is there
//! afterwards, unflushed writes are old or new sector by sector, every confirmed
//! snapshot holds what it held, and the store is in order.
//!
//! `SNAPVOL_ROUNDS` sets how often the power goes for each file system (2 and 1),
//! `SNAPVOL_SEED` where chance starts; `tools/soak` runs many rounds.

use crate::support::ledger::{Ledger, Outcome};
use crate::support::lossy::{Loss, LossyDisk, Lost};
use crate::support::oracle::{Death, SECTOR};
use crate::support::vm::{Extras, System, Vm, have_vm};
use crate::support::writers::{Connect, Habits, Life, RESERVED, Volume, swing, write};
use crate::support::{SNAPVOL, number, scratch};
use rustix::net::sockopt;
use snapvol::Error;
use snapvol::nbd::client::{Client, Options};
use snapvol::nbd::{Limits, Listen, Server};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Name, sectors, and how it is made, as in the tests of killed processes.
const VOLUMES: [(&str, u64, &str); 3] =
    [("a", 4096, ""), ("b", 2048, "--block-size 512"), ("c", 4097, "--block-size 16K --granularity 4")];
const ROLLED: usize = 2;
const SNAPSHOTS_MAX: usize = 4;
/// A command in the guest may wait for the disk, and the processor is an emulated one.
const COMMAND_WITHIN: Duration = Duration::from_secs(120);
const NEAR: &str = "/mnt/n";
const FAR: &str = "/mnt/f";

struct World {
    file_system: &'static str,
    disk: LossyDisk,
    socket: PathBuf,
    system: System,
    /// Of the host, for the two daemons.
    ports: [u16; 2],
    ledger: Ledger,
    copies: Ledger,
    rng: fastrand::Rng,
    lost: Lost,
    answered: u64,
    /// Commands that were confirmed and cut off.
    counts: [u64; 2],
}

fn connect_to(port: u16) -> Connect {
    Arc::new(move |export| {
        let lost = |error| Error::os("connect to the guest", error);
        let socket = TcpStream::connect(("127.0.0.1", port)).map_err(lost)?;
        socket.set_nodelay(true).map_err(lost)?;
        // What an emulator that is killed says to its connections may get lost.
        sockopt::set_socket_keepalive(&socket, true).map_err(|errno| lost(errno.into()))?;
        sockopt::set_tcp_keepidle(&socket, Duration::from_secs(1)).map_err(|errno| lost(errno.into()))?;
        sockopt::set_tcp_keepintvl(&socket, Duration::from_secs(1)).map_err(|errno| lost(errno.into()))?;
        let options = Options { structured: true, ..Options::default() };
        Client::new(Box::new(socket), export, &options)
    })
}

/// Runs a command of the program in the guest.
fn run(vm: &mut Vm, life: &Life, store: &str, args: &str) -> Outcome {
    let outcome = match vm.try_run(COMMAND_WITHIN, &format!("snapvol --store {store} {args}")) {
        Ok((0, _)) => Outcome::Done,
        Ok((3, message)) => Outcome::Refused(message),
        Ok((code, message)) => panic!("{args}: exit code {code}\n{message}\n{}", vm.console()),
        Err(why) => {
            assert!(life.ended(), "{args} {why}");
            Outcome::Unknown
        }
    };
    eprintln!("  {args}: {outcome:?}");
    outcome
}

/// Serves a store in the guest, and waits until it does.
fn serve(vm: &mut Vm, store: &str, io: &str, port: u16) {
    let log = format!("/tmp/log.{port}");
    vm.ok(&format!(
        "SNAPVOL_LOG=warn snapvol --store {store} serve --io {io} --listen 0.0.0.0:{port} >{log} 2>&1 & \
         echo $! > /tmp/pid.{port}; \
         while ! grep -q 'ready nbd://' {log}; do kill -0 $(cat /tmp/pid.{port}) || {{ cat {log}; exit 1; }}; sleep 0.05; done"
    ));
}

fn stop(vm: &mut Vm, port: u16) {
    vm.ok(&format!(
        "pid=$(cat /tmp/pid.{port}); kill $pid; while kill -0 $pid 2>/dev/null; do sleep 0.05; done"
    ));
}

impl World {
    fn new(file_system: &'static str, seed: u64, dir: &Path) -> (Self, Server) {
        let disk = LossyDisk::new(1 << 30);
        let socket = dir.join("disk");
        let server = Server::start(disk.clone(), &[Listen::Unix(socket.clone())], Limits::default()).unwrap();
        let free = || std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let ports = [free(), free()].map(|listener| listener.local_addr().unwrap().port());
        let volumes = (1..)
            .zip(VOLUMES)
            .map(|(salt, (name, sectors, _))| Arc::new(Volume::new(name, salt, sectors, Death::Power)));
        let volumes: Vec<_> = volumes.collect();
        let world = Self {
            file_system,
            disk,
            socket,
            system: System::new(&[Path::new(SNAPVOL)]),
            ports,
            ledger: Ledger::new(volumes.clone(), false),
            copies: Ledger::new(volumes, true),
            rng: fastrand::Rng::with_seed(seed),
            lost: Lost::default(),
            answered: 0,
            counts: [0; 2],
        };
        (world, server)
    }

    fn boot(&mut self) -> Vm {
        let forwards = [(self.ports[0], 10809), (self.ports[1], 10810)];
        let mut vm = self.system.boot(&Extras { disk: Some(&self.socket), forwards: &forwards });
        // Else the guest never flushes, and nothing is shown.
        assert_eq!(vm.ok("cat /sys/block/vda/queue/write_cache").trim(), "write back");
        if self.rng.bool() {
            // The page cache goes to the disk at once and without a flush, so that a cut
            // finds much to lose there. Otherwise it stays in the guest and is lost there.
            vm.ok("cd /proc/sys/vm; echo 1 > dirty_writeback_centisecs; echo 1 > dirty_expire_centisecs");
        }
        vm
    }

    /// The disk's file system and the stores on it, the first one served.
    fn make(&mut self) -> Vm {
        let mut vm = self.boot();
        let make = match self.file_system {
            "ext4" => "mkfs.ext4 -q -E lazy_itable_init=1,nodiscard",
            _ => "mkfs.xfs -q -f -K",
        };
        let mut script = format!(
            "{make} /dev/vda; mount -t {} /dev/vda /mnt; snapvol --store {NEAR} init; \
             snapvol --store {FAR} init; snapvol --store {FAR} create other --size 1M",
            self.file_system
        );
        for (name, sectors, options) in VOLUMES {
            let size = sectors * SECTOR as u64;
            script += &format!("; snapvol --store {NEAR} create {name} --size {size} {options}");
        }
        vm.ok(&script);
        serve(&mut vm, NEAR, self.io(), 10809);
        vm
    }

    /// Boots from what is on the disk and compares all of it.
    fn come_back(&mut self) -> Vm {
        let mut vm = self.boot();
        vm.ok(&format!("mount -t {} /dev/vda /mnt", self.file_system));
        for (store, port) in [(NEAR, 10809), (FAR, 10810)] {
            // As the cut left it, recovery in memory only.
            vm.ok(&format!("snapvol --store {store} check"));
            serve(&mut vm, store, self.io(), port);
        }
        for (store, ledger, port) in
            [(NEAR, &mut self.ledger, self.ports[0]), (FAR, &mut self.copies, self.ports[1])]
        {
            let list = vm.ok(&format!("snapvol --store {store} list --json"));
            ledger.verify(&serde_json::from_str(&list).unwrap(), &connect_to(port));
            vm.ok(&format!("snapvol --store {store} check && snapvol --store {store} scrub"));
        }
        stop(&mut vm, 10810);
        vm
    }

    fn io(&mut self) -> &'static str {
        if self.rng.bool() { "auto" } else { "plain" }
    }

    /// Writers and commands until the power goes.
    fn live(mut self, mut vm: Vm) -> Self {
        let life = Life::default();
        let connect = connect_to(self.ports[0]);
        let swings = Arc::clone(&self.ledger.swings);
        let swinging = swing(self.ledger.volumes[..2].to_vec(), swings, &connect, &life);
        let mut writers = Vec::new();
        for volume in &self.ledger.volumes {
            let sectors = volume.model().sector_count();
            let border = sectors / 2 + 3;
            for own in [RESERVED..border, border..sectors] {
                let habits =
                    Habits { depth: self.rng.usize(1..12), flushes: true, longest: self.rng.u64(8..100) };
                let (volume, connect) = (Arc::clone(volume), Arc::clone(&connect));
                let (life, rng) = (life.clone(), self.rng.fork());
                writers.push(std::thread::spawn(move || write(&volume, &connect, own, habits, &life, rng)));
            }
        }
        let time = Duration::from_millis(self.rng.u64(200..6000));
        let loss = [Loss::All, Loss::None, Loss::Requests, Loss::Pages][self.rng.usize(0..4)];
        let (switch, disk, mut chance) = (vm.switch(), self.disk.clone(), self.rng.fork());
        let operating = {
            let life = life.clone();
            std::thread::spawn(move || {
                while !life.ended() {
                    self.operate(&mut vm, &life);
                }
                (self, vm)
            })
        };
        std::thread::sleep(time);
        // Where there is nothing to lose a cut shows little.
        let (wanted, start) = (chance.u64(0..400), Instant::now());
        while disk.unflushed() < wanted && start.elapsed() < Duration::from_secs(2) {
            std::thread::yield_now();
        }
        life.end();
        // The disk first: an instant after which nothing reaches it.
        let lost = disk.cut(loss, &mut chance);
        switch.off();
        let answered: u64 = writers.into_iter().map(|writer| writer.join().unwrap()).sum();
        swinging.join().unwrap();
        let (mut world, vm) = operating.join().unwrap();
        drop(vm);
        eprintln!("  cut after {time:?}, {loss:?}: {lost:?}");
        world.answered += answered;
        world.lost.unflushed += lost.unflushed;
        world.lost.lost += lost.lost;
        world
    }

    fn count(&mut self, outcome: &Outcome) {
        match outcome {
            Outcome::Done => self.counts[0] += 1,
            Outcome::Unknown => self.counts[1] += 1,
            Outcome::Refused(_) => {}
        }
    }

    fn operate(&mut self, vm: &mut Vm, life: &Life) {
        let kind = self.rng.u8(0..10);
        match kind {
            0..5 => {
                let all = [0, 1, 2];
                let one = [self.rng.usize(0..VOLUMES.len())];
                let volumes: &[usize] = if kind < 2 { &one } else { &all };
                let full = |volume: &usize| self.ledger.names(*volume).len() >= SNAPSHOTS_MAX;
                if volumes.iter().any(full) {
                    return;
                }
                let take = |names: &[String]| run(vm, life, NEAR, &format!("snapshot {}", names.join(" ")));
                let outcome = self.ledger.take(volumes, take);
                assert!(!matches!(outcome, Outcome::Refused(_)), "{outcome:?}");
                self.count(&outcome);
                self.ledger.examine(volumes, &connect_to(self.ports[0]));
            }
            5..7 => {
                let mut picks = Vec::new();
                for volume in 0..VOLUMES.len() {
                    let count = self.ledger.names(volume).len();
                    if count > 1 && self.rng.bool() {
                        picks.push((volume, self.rng.usize(0..count)));
                    }
                }
                if picks.is_empty() {
                    return;
                }
                let delete = |names: &[String]| run(vm, life, NEAR, &format!("delete {}", names.join(" ")));
                let outcome = self.ledger.delete(&picks, delete);
                assert!(!matches!(outcome, Outcome::Refused(_)), "{outcome:?}");
                self.count(&outcome);
            }
            7 => self.roll_back(vm, life),
            _ => self.copy(vm, life),
        }
    }

    fn roll_back(&mut self, vm: &mut Vm, life: &Life) {
        let count = self.ledger.names(ROLLED).len();
        if count == 0 {
            return;
        }
        let at = self.rng.usize(0..count);
        let volume = Arc::clone(&self.ledger.volumes[ROLLED]);
        volume.pause(false);
        let roll = |name: &str| run(vm, life, NEAR, &format!("rollback --force {name}"));
        let outcome = self.ledger.roll_back(ROLLED, at, roll);
        self.count(&outcome);
        volume.unpause();
    }

    fn copy(&mut self, vm: &mut Vm, life: &Life) {
        let volume = self.rng.usize(0..VOLUMES.len());
        let Some(name) = self.ledger.names(volume).pop() else { return };
        let Some(content) = self.ledger.content(&name) else { return };
        let there = VOLUMES[volume].0;
        let mut outcome = run(vm, life, NEAR, &format!("copy {name} {FAR}/{there}"));
        if let Outcome::Refused(why) = &outcome {
            // Something of another snapshot has arrived, or the youngest one there is
            // gone here.
            let again = if why.contains("half received") {
                run(vm, life, FAR, &format!("receive {there} --abort"))
            } else {
                Outcome::Done
            };
            outcome = match again {
                Outcome::Done => run(vm, life, NEAR, &format!("copy --full {name} {FAR}/{there}")),
                // Cut off, like the copy that it was for.
                other => other,
            };
        }
        assert!(!matches!(outcome, Outcome::Refused(_)), "{outcome:?}");
        self.count(&outcome);
        self.copies.copied(volume, &name, content, &outcome);
    }
}

fn cut_again_and_again(file_system: &'static str, rounds: u64) {
    if !have_vm() {
        return;
    }
    let (rounds, seed) = (number("SNAPVOL_ROUNDS", rounds), number("SNAPVOL_SEED", 1));
    let dir = scratch();
    let (mut world, _server) = World::new(file_system, seed, dir.path());
    let mut vm = world.make();
    for round in 0..rounds {
        eprintln!("{file_system}, round {round} of {rounds}, seed {seed}");
        world = world.live(vm);
        vm = world.come_back();
    }
    stop(&mut vm, 10809);
    assert!(world.disk.flushes() > 0);
    let ([done, cut_off], lost) = (world.counts, world.lost);
    println!(
        "{file_system}: power cuts {rounds}, requests answered {}, commands confirmed {done}, cut off {cut_off}, \
         snapshots compared {}, copies compared {}, sectors unflushed {} and of them lost {}",
        world.answered, world.ledger.compared, world.copies.compared, lost.unflushed, lost.lost
    );
}

#[test]
fn what_was_flushed_survives_a_power_cut_on_ext4() {
    cut_again_and_again("ext4", 2);
}

#[test]
fn what_was_flushed_survives_a_power_cut_on_xfs() {
    cut_again_and_again("xfs", 1);
}
