//! A simulated disk: deterministic, seeded, and as unkind as a real one may be.
//!
//! A [`SimDisk`] is a machine with one file system; a [`Sim`] is the driver of one life
//! of a process on it. Two images stand behind every file and directory: *live*, what a
//! read sees, and *durable*, what a power cut leaves at least. Between them lies a list
//! of changes that completed and were not synced.
//!
//! What it promises is what the code above may rely on, and not more:
//! - Operations under way complete in any order (by the seed), on one file too.
//! - A write, hole, allocation or size is durable once a sync of its file completed
//!   that was submitted after it completed. Of changes that complete while a sync is
//!   under way any prefix is made durable with it.
//! - A name (made, renamed, removed) is durable once its directory was synced; a sync of
//!   the file does not help. A rename is never seen half-way. Of the unsynced changes of
//!   one name a power cut leaves a prefix; changes of different names are independent.
//! - A power cut keeps, drops or tears at sectors every unsynced write by itself; a
//!   mapped region comes back as a mixture of old, new, zeros and garbage.
//! - The death of a process loses nothing completed. What was under way has happened in
//!   full, in part or not at all. Mapped regions stay as they were.
//! - After a failed sync what it should have made durable may never become so, though
//!   it is read back and later syncs succeed (as on Linux).
//! - Nothing depends on a clock, an address or the order of a hash map: one seed, one run.

mod content;
mod crash;
mod disk;
mod faults;
#[cfg(test)]
mod tests;
mod world;

pub use crash::Loss;
pub use disk::{EIO, ENOSPC, SimDisk};
pub use faults::Faults;

use super::{Driver, FileId, Op, OpId, Outcome, Output, Wake};
use bytes::{Bytes, BytesMut};
use std::cell::RefCell;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use uuid::Uuid;
use world::World;

/// How a simulated disk behaves.
#[derive(Clone, Copy, Debug)]
pub struct SimOptions {
    /// What all chance comes from.
    pub seed: u64,
    /// Small reads and writes, opens and questions complete when they are submitted, as
    /// they do on the real drivers; otherwise everything completes later.
    pub inline: bool,
    /// Operations under way complete in any order; otherwise in that of submission.
    pub reorder: bool,
}

impl SimOptions {
    /// Everything completes later and in any order.
    #[must_use]
    pub fn seeded(seed: u64) -> Self {
        Self { seed, inline: false, reorder: true }
    }
}

/// The driver of one life of a process on a [`SimDisk`].
///
/// After the process died (or once [`SimDisk::is_dead`]) it completes nothing any more,
/// so a loop over its reactor has to look at that.
pub struct Sim {
    world: Rc<RefCell<World>>,
    life: u64,
    /// Which of the drivers of this life it is: each sees the completions of its own
    /// operations.
    port: usize,
}

struct Quiet;

impl Wake for Quiet {
    fn wake(&self) {}
}

impl Sim {
    /// Does an operation at once, if this machine does such ones inline.
    fn now(&mut self, op: Op) -> Option<Outcome> {
        let world = &mut *self.world.borrow_mut();
        if world.life == self.life { world.now(op, &self.world) } else { None }
    }
}

impl Driver for Sim {
    fn submit(&mut self, id: OpId, op: Op) -> Option<Outcome> {
        let world = &mut *self.world.borrow_mut();
        if world.life == self.life { world.submit((self.port, id), op, &self.world) } else { None }
    }

    fn read_now(&mut self, file: FileId, offset: u64, len: usize, buffer: &mut BytesMut) -> io::Result<bool> {
        match self.now(Op::Read { file, offset, len }) {
            Some(Ok(Output::Bytes(bytes))) => {
                buffer.extend_from_slice(&bytes);
                Ok(true)
            }
            Some(Err(error)) => Err(error),
            _ => Ok(false),
        }
    }

    fn write_now(&mut self, file: FileId, offset: u64, data: &Bytes) -> Option<io::Result<()>> {
        let outcome = self.now(Op::Write { file, offset, data: vec![data.clone()] })?;
        Some(outcome.map(drop))
    }

    fn adopt(&mut self, _: OwnedFd) -> io::Result<FileId> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn wait(&mut self, timeout: Option<Duration>, done: &mut Vec<(OpId, Outcome)>) {
        let world = &mut *self.world.borrow_mut();
        if world.life == self.life {
            world.wait(self.port, timeout, &self.world, done);
        }
    }

    /// Nobody waits on a simulated disk for long: it does nothing.
    fn waker(&self) -> Arc<dyn Wake> {
        Arc::new(Quiet)
    }

    fn name(&self) -> &'static str {
        "simulated"
    }

    fn boot_id(&self) -> [u8; 16] {
        self.world.borrow().boot_id()
    }

    fn identity(&self) -> Uuid {
        self.world.borrow_mut().identity()
    }

    fn now_us(&self) -> u64 {
        self.world.borrow().now_us()
    }
}
