//! Exports: what clients call the volumes and snapshots of a store.

use super::device::Device;
use super::production::ProductionDevice;
use super::served_snapshot::{EmptyDevice, SnapshotDevice};
use super::thread::{Engine, Handle};
use crate::error::Result;
use crate::io::Io;
use crate::types::{Role, Standing};
use futures::executor::block_on;
use std::rc::Rc;

/// An export found by name, and the engine that serves it.
pub struct Export {
    pub(super) name: String,
    pub(super) volume: String,
    pub(super) snapshot: Option<String>,
    pub(super) engine: Handle,
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

impl Export {
    /// `VOL` or `VOL@SNAP`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs a connection on the engine's thread: `serve` is called there with the
    /// reactor's handle and the device, and drives the connection to its end. The client
    /// is listed until then.
    ///
    /// # Errors
    /// `Interrupted` when the store is closing; `NotFound` if the export vanished.
    pub fn run<F, Fut>(&self, peer: String, serve: F) -> Result<()>
    where
        F: FnOnce(Io, Rc<dyn Device>) -> Fut + Send + 'static,
        Fut: Future<Output = ()> + 'static,
    {
        let (volume, snapshot) = (self.volume.clone(), self.snapshot.clone());
        let begun = self.engine.call(move |engine| async move {
            let device = device(&engine, &volume, snapshot.as_deref(), peer)?;
            engine.io.spawn(serve(engine.io.clone(), device));
            Ok(())
        });
        block_on(begun)
    }

    /// Size, block size and flags for a client that only asks.
    ///
    /// # Errors
    /// As for [`Self::run`].
    pub fn describe(&self) -> Result<ExportInfo> {
        let (volume, snapshot) = (self.volume.clone(), self.snapshot.clone());
        let described = self.engine.call(move |engine| async move {
            let device = device(&engine, &volume, snapshot.as_deref(), String::new())?;
            Ok(ExportInfo {
                size: device.size(),
                block_size: device.block_size(),
                read_only: device.read_only(),
                multi_conn: device.multi_conn(),
                delta_bases: device.delta_bases(),
            })
        });
        block_on(described)
    }
}

/// Opens the device of an export.
pub(super) fn device(
    engine: &Engine,
    volume: &str,
    snapshot: Option<&str>,
    peer: String,
) -> Result<Rc<dyn Device>> {
    let found = engine.volume(volume)?;
    let seat = |snapshot: Option<&str>, writable| engine.clients.seat(volume, snapshot, peer, writable);
    if let Some(name) = snapshot {
        let reader = found.open_snapshot(name)?;
        return Ok(Rc::new(SnapshotDevice::new(reader, seat(Some(name), false), true)));
    }
    if found.role() == Role::Primary {
        // While it is being handed over writers wait.
        let writable = found.roles().standing != Standing::Fenced;
        return Ok(Rc::new(ProductionDevice::new(Rc::clone(&found), seat(None, writable))));
    }
    match found.newest_state() {
        Some(state) => {
            let reader = found.open_snapshot_by_id(state.uuid)?;
            Ok(Rc::new(SnapshotDevice::new(reader, seat(None, false), false)))
        }
        None => {
            let geometry = found.geometry();
            let seat = seat(None, false);
            Ok(Rc::new(EmptyDevice { size: geometry.size, block_size: geometry.block_size, seat }))
        }
    }
}
