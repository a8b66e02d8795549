//! The handle by which a test holds the simulated machine.

use super::crash::{self, Loss};
use super::world::{Flying, Node, World};
use super::{Faults, Sim, SimOptions};
use rustix::io::Errno;
use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// A simulated machine. It outlives the processes on it; clones are the same machine,
/// [`SimDisk::fork`] makes another one.
#[derive(Clone)]
pub struct SimDisk(Rc<RefCell<World>>);

impl SimDisk {
    /// A machine with an empty file system.
    #[must_use]
    pub fn new(options: SimOptions) -> Self {
        Self(Rc::new(RefCell::new(World::new(options))))
    }

    /// A driver of the process that lives now, for one reactor; a process of several
    /// engines has one for each.
    #[must_use]
    pub fn driver(&self) -> Sim {
        let world = &mut *self.0.borrow_mut();
        world.ports += 1;
        Sim { world: Rc::clone(&self.0), life: world.life, port: world.ports }
    }

    /// The process dies: what completed stays, what was under way has happened in full,
    /// in part or not at all, files are closed. The next driver is another process.
    pub fn crash_process(&self) {
        crash::crash_process(&mut self.0.borrow_mut());
    }

    /// The process dies and the machine restarts: unsynced changes fare as `loss` says,
    /// regions are spoiled, the boot has a new identity.
    pub fn power_cut(&self, loss: Loss) {
        crash::power_cut(&mut self.0.borrow_mut(), loss);
    }

    /// How many completed changes are not durable.
    #[must_use]
    pub fn unsynced(&self) -> usize {
        crash::unsynced(&self.0.borrow())
    }

    /// Operations completed since the machine was made: all but sleeps and closes (which take effect when they are submitted), and
    /// every store into a region.
    #[must_use]
    pub fn ops(&self) -> u64 {
        self.0.borrow().ops
    }

    /// Lets `n` more operations complete; then the process is dead.
    pub fn crash_after(&self, n: u64) {
        self.0.borrow_mut().budget = Some(n);
    }

    /// Whether nothing completes any more, and [`SimDisk::crash_process`] or
    /// [`SimDisk::power_cut`] has to follow.
    #[must_use]
    pub fn is_dead(&self) -> bool {
        self.0.borrow().is_dead()
    }

    /// Operation number `n`, as [`SimDisk::ops`] counts, fails with that error number. A
    /// part of it may have happened. (A store into a region can't fail.)
    pub fn fail_at(&self, n: u64, errno: i32) {
        self.0.borrow_mut().failures.insert(n, errno);
    }

    /// From now on operations fail and stall by chance, or no longer. What stalls already
    /// goes on stalling.
    pub fn set_faults(&self, faults: Option<Faults>) {
        self.0.borrow_mut().faults = faults;
    }

    /// How many operations are under way.
    #[must_use]
    pub fn under_way(&self) -> usize {
        self.0.borrow().flying.len()
    }

    /// How many operations failed by chance.
    #[must_use]
    pub fn injected(&self) -> u64 {
        self.0.borrow().injected
    }

    /// Whether a failed sync has given up something that is still read back.
    #[must_use]
    pub fn has_doomed(&self) -> bool {
        crash::has_doomed(&self.0.borrow())
    }

    /// What failed syncs gave up can become durable after all.
    pub fn forgive(&self) {
        crash::forgive(&mut self.0.borrow_mut());
    }

    /// The paths of all files, sorted.
    #[must_use]
    pub fn files(&self) -> Vec<PathBuf> {
        self.0.borrow().files()
    }

    /// Operations that were to fail and have not come yet succeed.
    pub fn fail_no_more(&self) {
        self.0.borrow_mut().failures.clear();
    }

    /// From now on syncs fail, or no longer.
    pub fn fail_syncs(&self, fail: bool) {
        self.0.borrow_mut().syncs_fail = fail;
    }

    /// Leaves so many bytes free; `None` for as many as you like.
    pub fn fill(&self, bytes_free: Option<u64>) {
        let world = &mut *self.0.borrow_mut();
        world.capacity = bytes_free.map(|free| world.used() + free);
    }

    /// The same, before operation number `n` completes, as [`SimDisk::ops`] counts.
    pub fn fill_at(&self, n: u64, bytes_free: u64) {
        self.0.borrow_mut().fills.insert(n, bytes_free);
    }

    /// Turns over one bit of a file, live and durable.
    ///
    /// # Panics
    /// If there is no such file.
    pub fn flip_bit(&self, path: impl AsRef<Path>, offset: u64, bit: u8) {
        self.with_file(path.as_ref(), |file| {
            file.live.flip_bit(offset, bit);
            file.durable.flip_bit(offset, bit);
        });
    }

    /// Makes the sectors of a range unreadable until they are written again.
    ///
    /// # Panics
    /// If there is no such file.
    pub fn spoil(&self, path: impl AsRef<Path>, offset: u64, len: u64) {
        let world = &mut *self.0.borrow_mut();
        let ino = world.find(path.as_ref()).expect("a file to spoil");
        for sector in offset / 512..(offset + len).div_ceil(512) {
            world.unreadable.insert((ino, sector));
        }
    }

    /// The live bytes of a file, those of its region if it is mapped as one; `None` if
    /// there is no such file.
    #[must_use]
    pub fn contents(&self, path: impl AsRef<Path>) -> Option<Vec<u8>> {
        let world = self.0.borrow();
        let ino = world.find(path.as_ref()).ok()?;
        let file = world.file_at(ino).ok()?;
        if let Some(memory) = &file.region {
            return Some(memory.bytes.borrow().clone());
        }
        let content = &file.live;
        let mut bytes = vec![0; usize::try_from(content.len).ok()?];
        content.read(0, &mut bytes);
        Some(bytes)
    }

    /// Another machine in exactly this state, the process on it included.
    #[must_use]
    pub fn fork(&self) -> Self {
        Self(Rc::new(RefCell::new(self.0.borrow().duplicate())))
    }

    /// Puts this machine into the state of another one.
    pub fn restore(&self, from: &Self) {
        let state = from.0.borrow().duplicate();
        *self.0.borrow_mut() = state;
    }

    /// Chance starts anew from that seed.
    pub fn reseed(&self, seed: u64) {
        self.0.borrow_mut().rng = fastrand::Rng::with_seed(seed);
    }

    fn with_file(&self, path: &Path, change: impl FnOnce(&mut super::world::FileNode)) {
        let world = &mut *self.0.borrow_mut();
        let ino = world.find(path).unwrap_or_else(|_| panic!("there is no {}", path.display()));
        match world.nodes.get_mut(&ino) {
            Some(Node::File(file)) => change(file),
            _ => panic!("{} is a directory", path.display()),
        }
    }
}

/// The number of an I/O error, for [`SimDisk::fail_at`].
pub const EIO: i32 = Errno::IO.raw_os_error();

/// The number of a full disk's error, for [`SimDisk::fail_at`].
pub const ENOSPC: i32 = Errno::NOSPC.raw_os_error();

impl std::fmt::Debug for SimDisk {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let world = self.0.borrow();
        let flying: Vec<&Flying> = world.flying.iter().collect();
        write!(out, "SimDisk(seed {}, {} operations, under way: {flying:?})", world.options.seed, world.ops)
    }
}
