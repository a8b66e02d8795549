//! The store as its owner sees it: thread-safe, blocking, every command a method.
//!
//! `serve` keeps one open and answers the control socket with it; any other command
//! opens one for itself when nobody serves. Both do the same work the same way.

use super::api::{CheckReport, CreateOptions, Diff, HalfReceived, Received, SendRequest, Status, StoreInfo};
use super::device::Device;
use crate::error::Result;
use crate::io::{DriverKind, Io};
use crate::types::{OnFull, SnapName};
use std::io::Read;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

/// How a store is opened.
#[derive(Clone, Copy, Debug, Default)]
pub struct OpenOptions {
    /// Which driver its engines use.
    pub driver: DriverKind,
    /// How many engine threads; 0: one a core.
    pub threads: usize,
}

/// An open store: the lock on its directory and the engines of its volumes.
pub struct Store {}

/// An export found by name, and the engine that serves it.
pub struct Export {}

impl Export {
    /// `VOL` or `VOL@SNAP`.
    #[must_use]
    pub fn name(&self) -> &str {
        todo!()
    }

    /// Runs a connection on the engine's thread: `serve` is called there with the
    /// reactor's handle, the device, and must drive the connection to its end. The
    /// client is listed in [`Status`] until then.
    ///
    /// # Errors
    /// `Interrupted` when the store is closing; `NotFound` if the export vanished.
    pub fn run<F, Fut>(&self, peer: String, serve: F) -> Result<()>
    where
        F: FnOnce(Io, Rc<dyn Device>) -> Fut + Send + 'static,
        Fut: Future<Output = ()> + 'static,
    {
        let _ = (peer, serve);
        todo!()
    }

    /// Size, block size and flags for a client that only asks (`NBD_OPT_INFO`).
    ///
    /// # Errors
    /// As for [`Self::run`].
    pub fn describe(&self) -> Result<ExportInfo> {
        todo!()
    }
}

/// What a client is told of an export before it connects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportInfo {
    /// Bytes.
    pub size: u64,
    /// Bytes in a block.
    pub block_size: u32,
    /// Writes are refused.
    pub read_only: bool,
    /// Several connections see one state, and a flush on one covers all.
    pub multi_conn: bool,
    /// Snapshots that `snapvol:delta:` takes for this export.
    pub delta_bases: Vec<String>,
}

#[allow(missing_docs, clippy::missing_errors_doc, reason = "the border, still to be filled")]
impl Store {
    pub fn init(dir: &Path) -> Result<()> {
        let _ = dir;
        todo!()
    }
    /// Opens every volume. `Conflict` when another process holds the lock.
    pub fn open(dir: &Path, options: OpenOptions) -> Result<Arc<Self>> {
        let _ = (dir, options);
        todo!()
    }
    /// Disconnects clients, settles, marks everything clean, releases the lock.
    pub fn close(&self) -> Result<()> {
        todo!()
    }
    pub fn dir(&self) -> &Path {
        todo!()
    }
    pub fn create(&self, volume: &str, options: &CreateOptions) -> Result<()> {
        let _ = (volume, options);
        todo!()
    }
    pub fn set_on_full(&self, volume: &str, on_full: OnFull) -> Result<()> {
        let _ = (volume, on_full);
        todo!()
    }
    pub fn list(&self, volume: Option<&str>) -> Result<StoreInfo> {
        let _ = volume;
        todo!()
    }
    pub fn resize(&self, volume: &str, size: u64, force: bool) -> Result<()> {
        let _ = (volume, size, force);
        todo!()
    }
    pub fn snapshot(&self, names: &[SnapName]) -> Result<()> {
        let _ = names;
        todo!()
    }
    pub fn delete_snapshots(&self, names: &[SnapName]) -> Result<()> {
        let _ = names;
        todo!()
    }
    pub fn delete_volume(&self, volume: &str, recursive: bool) -> Result<()> {
        let _ = (volume, recursive);
        todo!()
    }
    pub fn hold(&self, name: &SnapName, tag: &str) -> Result<()> {
        let _ = (name, tag);
        todo!()
    }
    pub fn release(&self, name: &SnapName, tag: &str) -> Result<()> {
        let _ = (name, tag);
        todo!()
    }
    pub fn rollback(&self, name: &SnapName, force: bool) -> Result<()> {
        let _ = (name, force);
        todo!()
    }
    /// `to`: none means now.
    pub fn diff(&self, from: &SnapName, to: Option<&str>) -> Result<Diff> {
        let _ = (from, to);
        todo!()
    }
    /// The stream, made while it is read.
    pub fn send(self: &Arc<Self>, request: &SendRequest) -> Result<Box<dyn Read + Send>> {
        let _ = request;
        todo!()
    }
    /// Applies a stream; the answer comes when all of it is durable.
    pub fn receive(self: &Arc<Self>, volume: &str, input: &mut (dyn Read + Send)) -> Result<Received> {
        let _ = (volume, input);
        todo!()
    }
    pub fn receive_status(&self, volume: &str) -> Result<Option<HalfReceived>> {
        let _ = volume;
        todo!()
    }
    pub fn receive_abort(&self, volume: &str) -> Result<()> {
        let _ = volume;
        todo!()
    }
    pub fn promote(&self, volume: &str) -> Result<()> {
        let _ = volume;
        todo!()
    }
    pub fn demote(&self, volume: &str, force: bool) -> Result<()> {
        let _ = (volume, force);
        todo!()
    }
    pub fn check(dir: &Path, repair: bool) -> Result<CheckReport> {
        let _ = (dir, repair);
        todo!()
    }
    pub fn scrub(&self, volume: Option<&str>) -> Result<CheckReport> {
        let _ = volume;
        todo!()
    }
    /// Clients, transfers; `running`, `pid`, `listening` are the daemon's to fill in.
    pub fn status(&self) -> Result<Status> {
        todo!()
    }
    /// The names of all exports: volumes, then their snapshots.
    pub fn exports(&self) -> Result<Vec<String>> {
        todo!()
    }
    /// Finds `VOL` or `VOL@SNAP`; the empty name is the only volume, if there is one.
    pub fn export(self: &Arc<Self>, name: &str) -> Result<Export> {
        let _ = name;
        todo!()
    }
}
