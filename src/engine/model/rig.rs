//! A store on a simulated disk for simulations of what stands above the engine: its engines
//! are turned over one at a time, and what runs on them is reached through the store's
//! decisions alone.

use crate::engine::core::Core;
use crate::engine::thread::{Handle, Worker};
use crate::error::Result;
use crate::io::sim::SimDisk;
use crate::snapshot::model::tuning;
use std::cell::Cell;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;
use uuid::Uuid;

/// The store's directory.
const STORE: &str = "/store";

/// The engines of a process.
pub(crate) struct Rig {
    workers: Vec<Worker>,
    handles: Vec<Handle>,
}

/// A store that is about to be opened.
pub(crate) struct Opening {
    handles: Vec<Handle>,
}

impl Opening {
    /// Opens it.
    pub async fn open(self, identity: Uuid, block_size: u32) -> Result<Core> {
        Core::open(Path::new(STORE), identity, self.handles, tuning(block_size)).await
    }
}

impl Rig {
    /// Engines over a disk.
    pub fn new(disk: &SimDisk, engines: usize) -> Self {
        let (workers, handles) = (0..engines).map(|_| Worker::new(Box::new(disk.driver()))).unzip();
        Self { workers, handles }
    }

    /// The store that they are for.
    pub fn store(&self) -> Opening {
        Opening { handles: self.handles.clone() }
    }

    /// How many engines there are.
    pub fn engines(&self) -> usize {
        self.workers.len()
    }

    /// One turn of an engine; a patient one lets the time pass.
    pub fn turn(&mut self, engine: usize, patient: bool) {
        self.workers[engine].turn(if patient { None } else { Some(Duration::ZERO) });
    }

    /// Makes an empty store, as `init` does.
    pub fn init(disk: &SimDisk) {
        let (mut worker, _) = Worker::new(Box::new(disk.driver()));
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
        disk.crash_process();
    }
}
