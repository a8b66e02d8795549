//! A machine: its disk, the lives of the process on it, and how they end.

use super::commands;
use super::oracle::{Crash, Oracle};
use super::restart;
use super::simulation::{Options, Shared};
use crate::engine::core::Core;
use crate::engine::thread::{Engine, Worker};
use crate::io::sim::{Loss, SimDisk, SimOptions};
use crate::snapshot::Volume;
use crate::snapshot::model::tuning;
use futures::channel::oneshot;
use futures::executor::LocalPool;
use futures::future::join_all;
use futures::task::LocalSpawnExt;
use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::path::Path;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Duration;

/// Commands under way at the same time.
const COMMANDS_AT_ONCE: usize = 3;

/// The store's directory.
const STORE: &str = "/store";

/// A machine.
pub(super) struct Machine {
    shared: Rc<Shared>,
    index: usize,
    disk: SimDisk,
    oracle: Rc<RefCell<Oracle>>,
    lives_left: u32,
    crash: Option<Crash>,
    life: Option<Life>,
    done: bool,
}

/// A process on a machine.
struct Life {
    workers: Vec<Worker>,
    pool: LocalPool,
    process: Rc<Process>,
    ended: Rc<Cell<bool>>,
}

/// What the tasks of a process share.
pub(super) struct Process {
    pub shared: Rc<Shared>,
    /// Which machine it is on.
    pub index: usize,
    pub disk: SimDisk,
    pub oracle: Rc<RefCell<Oracle>>,
    pub engines: Vec<Rc<Engine>>,
    pub core: RefCell<Option<Rc<Core>>>,
    pub commands_left: Cell<u32>,
    /// It opened and looked at everything.
    pub up: Cell<bool>,
    /// It may die at any moment.
    mortal: bool,
    resting: RefCell<Vec<Waker>>,
    /// What it is at, for whoever asks why nothing moves.
    pub doing: RefCell<Vec<String>>,
}

impl Machine {
    pub fn new(shared: &Rc<Shared>, index: usize) -> Self {
        let options = {
            let mut rng = shared.rng.borrow_mut();
            SimOptions { seed: rng.u64(..), inline: rng.bool(), reorder: rng.u32(0..4) > 0 }
        };
        let machine = Self {
            shared: Rc::clone(shared),
            index,
            disk: SimDisk::new(options),
            oracle: Rc::default(),
            lives_left: shared.options.lives,
            crash: None,
            life: None,
            done: false,
        };
        machine.init();
        machine
    }

    /// Makes the store's directories, as `init` does.
    fn init(&self) {
        let (mut worker, _) = Worker::new(Box::new(self.disk.driver()));
        let (io, made) = (worker.engine.io.clone(), Rc::new(Cell::new(false)));
        let flag = Rc::clone(&made);
        io.clone().spawn(async move {
            for dir in [STORE, "/store/volumes"] {
                io.make_dir(Path::new(dir)).await.expect("an empty disk");
            }
            for dir in ["/", STORE] {
                io.sync_dir(Path::new(dir)).await.expect("an empty disk");
            }
            flag.set(true);
        });
        while !made.get() {
            worker.turn(None);
        }
        self.disk.crash_process();
    }

    pub fn is_done(&self) -> bool {
        self.done
    }

    pub fn operations(&self) -> u64 {
        self.disk.ops()
    }

    pub fn doing(&self) -> Vec<String> {
        self.life.as_ref().map(|life| life.process.doing.borrow().clone()).unwrap_or_default()
    }

    /// One turn of whatever chance says.
    pub fn turn(&mut self) {
        if self.done {
            return;
        }
        if self.life.is_none() {
            self.life = Some(self.begin());
        }
        if let Some(life) = &mut self.life {
            life.turn(&self.shared);
        }
        if self.disk.is_dead() {
            self.die();
        } else if self.life.as_ref().is_some_and(|life| life.ended.get()) {
            self.end();
        }
    }

    /// A process starts, and the moment of its death is set.
    fn begin(&mut self) -> Life {
        let mut rng = self.shared.rng.borrow_mut();
        let engines = rng.usize(1..=3);
        let options = self.shared.options;
        let mortal = self.lives_left > 0 && (options.deaths || options.power_cuts);
        if mortal {
            match rng.u32(0..8) {
                0 => {}
                1 | 2 => self.disk.crash_after(rng.u64(0..150)),
                3..=5 => self.disk.crash_after(rng.u64(0..1500)),
                _ => self.disk.crash_after(rng.u64(0..6000)),
            }
        }
        drop(rng);
        let (workers, handles): (Vec<_>, Vec<_>) =
            (0..engines).map(|_| Worker::new(Box::new(self.disk.driver()))).unzip();
        let process = Rc::new(Process {
            shared: Rc::clone(&self.shared),
            index: self.index,
            disk: self.disk.clone(),
            oracle: Rc::clone(&self.oracle),
            engines: workers.iter().map(|worker| Rc::clone(&worker.engine)).collect(),
            core: RefCell::default(),
            commands_left: Cell::new(if self.lives_left > 0 { options.commands } else { 0 }),
            up: Cell::new(false),
            mortal,
            resting: RefCell::default(),
            doing: RefCell::default(),
        });
        let (pool, ended) = (LocalPool::new(), Rc::new(Cell::new(false)));
        let (task, flag) = (Rc::clone(&process), Rc::clone(&ended));
        let identity = uuid::Uuid::from_u128(self.index as u128 + 1);
        let (tuning, orderly) = (tuning(self.shared.block_size), self.crash.is_none());
        let live = async move {
            let core =
                Core::open(Path::new(STORE), identity, handles, tuning).await.expect("a store that opens");
            *task.core.borrow_mut() = Some(Rc::new(core));
            task.alive().await;
            restart::check(&task, orderly).await;
            task.up.set(true);
            let loops = (0..COMMANDS_AT_ONCE).map(|_| commands::run(Rc::clone(&task)));
            join_all(loops).await;
            task.say_all_leave().await;
            restart::check(&task, true).await;
            if task.mortal && task.shared.chance(3) {
                // The process is killed as it stands.
                task.disk.crash_after(0);
                return;
            }
            task.core().close().await.expect("a store that closes");
            flag.set(true);
        };
        pool.spawner().spawn_local(live).expect("a pool that runs");
        Life { workers, pool, process, ended }
    }

    /// The process died, or the machine with it.
    fn die(&mut self) {
        let Options { deaths, power_cuts, .. } = self.shared.options;
        let life = self.life.take();
        let in_recovery = life.as_ref().is_some_and(|life| !life.process.up.get());
        let power = power_cuts && (!deaths || self.shared.rng.borrow_mut().bool());
        let crash = if power { self.cut_power() } else { self.kill() };
        // The disk hears nothing of what the tasks of the dead still do.
        drop(life);
        self.crash = self.crash.max(Some(crash));
        self.lives_left = self.lives_left.saturating_sub(1);
        for vol in self.oracle.borrow_mut().volumes.values_mut() {
            vol.crashed(crash);
        }
        self.shared.count(|counts| {
            counts.deaths += u64::from(!power);
            counts.power_cuts += u64::from(power);
            counts.in_recovery += u64::from(in_recovery);
        });
    }

    fn kill(&self) -> Crash {
        self.disk.crash_process();
        Crash::Process
    }

    fn cut_power(&self) -> Crash {
        let unsynced = self.disk.unsynced().max(1);
        let loss = {
            let mut rng = self.shared.rng.borrow_mut();
            match rng.u32(0..6) {
                0 => Loss::All,
                1 => Loss::None,
                2 => Loss::Alone(rng.usize(0..unsynced)),
                3 => Loss::AllBut(rng.usize(0..unsynced)),
                _ => Loss::Random,
            }
        };
        self.disk.power_cut(loss);
        Crash::Power
    }

    /// The process closed the store and ended.
    fn end(&mut self) {
        self.life = None;
        self.disk.crash_process();
        self.crash = None;
        self.done = self.lives_left == 0;
        self.lives_left = self.lives_left.saturating_sub(1);
    }
}

impl Life {
    fn turn(&mut self, shared: &Shared) {
        let (chosen, patient) = {
            let mut rng = shared.rng.borrow_mut();
            (rng.usize(0..=self.workers.len()), rng.u32(0..16) == 0)
        };
        match self.workers.get_mut(chosen) {
            // Only whoever waits for long lets the time pass.
            Some(worker) => worker.turn(if patient { None } else { Some(Duration::ZERO) }),
            None => {
                for waker in self.process.resting.take() {
                    waker.wake();
                }
                self.pool.run_until_stalled();
            }
        }
    }
}

impl Process {
    pub fn core(&self) -> Rc<Core> {
        Rc::clone(self.core.borrow().as_ref().expect("an open store"))
    }

    pub fn is_dead(&self) -> bool {
        self.disk.is_dead()
    }

    /// Goes no further in a process that is dead: nobody hears what it says any more.
    pub async fn alive(&self) {
        if self.is_dead() {
            std::future::pending().await
        }
    }

    /// Lets everything else have a few turns.
    pub async fn pause(&self) {
        let turns = self.shared.rng.borrow_mut().u32(0..8);
        for _ in 0..turns {
            self.rest().await;
        }
    }

    /// Goes on in the next turn of the commands.
    pub async fn rest(&self) {
        let mut rested = false;
        poll_fn(move |context| {
            if rested {
                return Poll::Ready(());
            }
            rested = true;
            self.resting.borrow_mut().push(context.waker().clone());
            Poll::Pending
        })
        .await;
        self.alive().await;
    }

    /// The volume of that name, and the engine that it is on.
    pub fn open_volume(&self, volume: &str) -> (Rc<Engine>, Rc<Volume>) {
        let mut engines = self.engines.iter();
        let found = engines.find_map(|e| e.volume(volume).ok().map(|v| (Rc::clone(e), v)));
        found.unwrap_or_else(|| {
            panic!("volume {volume} is not open: {:?}", self.core().engine_of(volume).err())
        })
    }

    /// Runs a task on an engine.
    pub async fn on<T: 'static>(&self, engine: &Engine, task: impl Future<Output = T> + 'static) -> T {
        let (answer, pending) = oneshot::channel();
        engine.io.spawn(async move {
            let _ = answer.send(task.await);
        });
        let value = pending.await;
        self.alive().await;
        value.expect("an engine that lives as long as its process")
    }

    /// Tells all clients to leave, and waits until they have.
    async fn say_all_leave(&self) {
        let names: Vec<String> = self.oracle.borrow().volumes.keys().cloned().collect();
        for name in names {
            self.shut(&name).await;
            self.oracle.borrow_mut().vol(&name).shut = false;
        }
    }

    /// Keeps clients away from a volume, until `shut` is set to false.
    pub async fn shut(&self, volume: &str) {
        self.oracle.borrow_mut().vol(volume).shut = true;
        while self.oracle.borrow_mut().vol(volume).clients > 0 {
            self.rest().await;
        }
    }
}
