//! What the server needs to know of exports: their names, a description, and a way to
//! run a connection beside the device.
//!
//! [`Store`] is the one that counts; [`super::memory`] serves blocks from memory.

use crate::engine::Store;
use crate::engine::device::Device;
use crate::engine::{Export, ExportInfo};
use crate::error::Result;
use crate::io::Io;
use futures::future::LocalBoxFuture;
use std::rc::Rc;
use std::sync::Arc;

/// A connection, to be driven to its end on the thread of the device.
pub type Serve = Box<dyn FnOnce(Io, Rc<dyn Device>) -> LocalBoxFuture<'static, ()> + Send>;

/// A set of exports, asked afresh for every client.
pub trait Exports: Send + Sync {
    /// The names of all exports, sorted as clients shall see them.
    ///
    /// # Errors
    /// `Interrupted` when it is closing.
    fn names(&self) -> Result<Vec<String>>;

    /// Finds an export; the empty name is the default one, if there is one.
    ///
    /// # Errors
    /// `NotFound`.
    fn find(&self, name: &str) -> Result<Box<dyn Found>>;
}

/// An export that was found.
pub trait Found {
    /// Its canonical name.
    fn name(&self) -> &str;

    /// What a client is told before it connects.
    ///
    /// # Errors
    /// `Interrupted`, `NotFound`.
    fn describe(&self) -> Result<ExportInfo>;

    /// Calls `serve` on the device's thread and runs what it returns to its end there.
    /// If it is never called, it is dropped.
    ///
    /// # Errors
    /// `Interrupted`, `NotFound`.
    fn run(&self, peer: String, serve: Serve) -> Result<()>;
}

impl Exports for Arc<Store> {
    fn names(&self) -> Result<Vec<String>> {
        self.exports()
    }

    fn find(&self, name: &str) -> Result<Box<dyn Found>> {
        Ok(Box::new(self.export(name)?))
    }
}

impl Found for Export {
    fn name(&self) -> &str {
        Self::name(self)
    }

    fn describe(&self) -> Result<ExportInfo> {
        Self::describe(self)
    }

    fn run(&self, peer: String, serve: Serve) -> Result<()> {
        Self::run(self, peer, serve)
    }
}

/// What a device says of itself, in the words of [`Found::describe`].
#[must_use]
pub fn describe_device(device: &dyn Device) -> ExportInfo {
    ExportInfo {
        size: device.size(),
        block_size: device.block_size(),
        read_only: device.read_only(),
        multi_conn: device.multi_conn(),
        delta_bases: Vec::new(),
    }
}
