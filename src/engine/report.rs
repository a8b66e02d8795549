//! What a store tells of itself: lists, checks, status.

use super::api::{CheckReport, ClientInfo, Status, StoreInfo, VolumeInfo};
use super::store::{OpenOptions, Store, lock};
use super::thread::no_volume;
use super::{check, volumes};
use crate::error::{ErrorKind, Result};
use crate::types::{OnFull, Role};
use std::path::Path;
use uuid::Uuid;

impl Store {
    /// Volumes and snapshots.
    ///
    /// # Errors
    /// `NotFound`, `Corrupt`, `Io`.
    pub fn list(&self, volume: Option<&str>) -> Result<StoreInfo> {
        let names: Vec<String> = match volume {
            Some(name) => {
                if !self.has_volume(name) {
                    return Err(no_volume(name));
                }
                vec![name.to_owned()]
            }
            None => self.places().keys().cloned().collect(),
        };
        let mut infos = Vec::new();
        for name in names {
            match self.engine_of(&name) {
                Ok(engine) => {
                    let asked = name.clone();
                    match engine.call(move |engine| volumes::describe(engine, asked)) {
                        Ok(info) => infos.push(info),
                        Err(error) if volume.is_none() && error.kind() == ErrorKind::Corrupt => {
                            tracing::error!("{error}");
                            infos.push(damaged(name));
                        }
                        Err(error) => return Err(error),
                    }
                }
                Err(error) if error.kind() == ErrorKind::NotFound && volume.is_none() => {}
                Err(error) if volume.is_some() => return Err(error),
                Err(_) => infos.push(damaged(name)),
            }
        }
        Ok(StoreInfo { store: self.dir.display().to_string(), volumes: infos })
    }

    /// Verifies a store that nobody has open: structure and metadata checksums. With
    /// `repair`, volumes are opened first, which recovers what a crash left.
    ///
    /// # Errors
    /// `Conflict` while somebody has it open.
    pub fn check(dir: &Path, repair: bool) -> Result<CheckReport> {
        if repair {
            let store = Self::open(dir, OpenOptions::default())?;
            store.close()?;
        }
        let _lock = lock(dir)?;
        check::check(dir, &volumes::listed(dir)?)
    }

    /// The same for this open store: layers and their checksums.
    ///
    /// # Errors
    /// What keeps it from looking.
    pub fn check_open(&self) -> Result<CheckReport> {
        self.verify(None, false)
    }

    /// Verifies every stored byte that has a checksum.
    ///
    /// # Errors
    /// `NotFound`, or what keeps it from looking.
    pub fn scrub(&self, volume: Option<&str>) -> Result<CheckReport> {
        self.verify(volume, true)
    }

    fn verify(&self, volume: Option<&str>, images: bool) -> Result<CheckReport> {
        let names = match volume {
            Some(name) => vec![name.to_owned()],
            None => self.places().keys().cloned().collect(),
        };
        let mut report = CheckReport::default();
        for name in names {
            report.volumes += 1;
            let result = self.with(&name, move |volume| async move {
                let snapshots = volume.snapshots().len() as u64;
                Ok((volume.verify(images).await?, snapshots))
            });
            match result {
                Ok((verified, snapshots)) => {
                    report.snapshots += snapshots;
                    check::add(&mut report, &self.dir, &name, verified);
                }
                Err(error) if volume.is_some() || error.kind() != ErrorKind::Corrupt => return Err(error),
                Err(error) => report.findings.push(super::api::Finding {
                    volume: Some(name.clone()),
                    snapshot: None,
                    file: format!("volumes/{name}"),
                    block: None,
                    problem: error.to_string(),
                    repaired: None,
                }),
            }
        }
        Ok(report)
    }

    /// Clients and transfers; what the daemon knows of itself is its to fill in.
    ///
    /// # Errors
    /// `Interrupted` when the store is closing.
    pub fn status(&self) -> Result<Status> {
        let mut status = Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            io_engine: self.io_engine.to_owned(),
            ..Status::default()
        };
        for handle in &self.handles {
            let (clients, transfers, volumes) = handle.call(|engine| async move {
                let clients: Vec<ClientInfo> = engine
                    .clients
                    .all()
                    .iter()
                    .filter(|c| !c.peer.is_empty())
                    .map(|c| ClientInfo {
                        export: match &c.snapshot {
                            Some(snapshot) => format!("{}@{snapshot}", c.volume),
                            None => c.volume.clone(),
                        },
                        peer: c.peer.clone(),
                        writable: c.writable,
                    })
                    .collect();
                let mut transfers = engine.sends.transfers();
                transfers.extend(engine.receives.transfers());
                Ok((clients, transfers, volumes::statuses(&engine)))
            })?;
            status.volumes.extend(volumes);
            status.clients.extend(clients);
            status.transfers.extend(transfers);
        }
        status.volumes.sort_by(|a, b| a.name.cmp(&b.name));
        status.space = self.space(status.volumes.iter().map(|v| v.reserved).sum());
        Ok(status)
    }
}

/// What `list` shows of a volume that can't be opened.
fn damaged(name: String) -> VolumeInfo {
    VolumeInfo {
        name,
        uuid: Uuid::nil(),
        role: Role::Primary,
        state: "damaged".to_owned(),
        on_full: OnFull::Freeze,
        size: 0,
        block_size: 0,
        granularity: 0,
        in_use: 0,
        saved: 0,
        snapshots: Vec::new(),
    }
}
