//! What a store tells of itself: lists, checks, status.

use super::api::{CheckReport, ClientInfo, Status, StoreInfo, VolumeFigures, VolumeInfo};
use super::core::Core;
use super::thread::{Engine, no_volume};
use super::{check, volumes};
use crate::error::{ErrorKind, Result};
use crate::snapshot::Volume;
use crate::types::{OnFull, Role};
use uuid::Uuid;

impl Core {
    /// Volumes and snapshots.
    pub async fn list(&self, volume: Option<&str>) -> Result<StoreInfo> {
        let names: Vec<String> = match volume {
            Some(name) => {
                if !self.has_volume(name) {
                    return Err(no_volume(name));
                }
                vec![name.to_owned()]
            }
            None => self.names(),
        };
        let mut infos = Vec::new();
        for name in names {
            match self.engine_of(&name) {
                Ok(engine) => {
                    let asked = name.clone();
                    match engine.call(move |engine| volumes::describe(engine, asked)).await {
                        Ok(mut info) => {
                            for snapshot in &mut info.snapshots {
                                snapshot.of = self.made(snapshot.uuid).and_then(|made| made.of);
                                snapshot.set = self.set_of(snapshot.uuid).map(|set| set.stamp.number);
                            }
                            infos.push(info);
                        }
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

    /// Verifies what has a checksum: maps and records, with `images` also before-images.
    pub async fn verify(&self, volume: Option<&str>, images: bool) -> Result<CheckReport> {
        let names = match volume {
            Some(name) => vec![name.to_owned()],
            None => self.names(),
        };
        let mut report = CheckReport::default();
        for name in names {
            report.volumes += 1;
            let result = self.with(&name, move |volume| async move {
                let snapshots = volume.snapshots().len() as u64;
                Ok((volume.verify(images).await?, snapshots))
            });
            match result.await {
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
                    advice: error.hint_text().unwrap_or_default().to_owned(),
                }),
            }
        }
        Ok(report)
    }

    /// Repairs every volume that could be opened.
    pub async fn repair(&self) -> Result<()> {
        for name in self.names() {
            if self.engine_of(&name).is_ok() {
                self.with(&name, |volume| async move { volume.repair().await }).await?;
            }
        }
        Ok(())
    }

    /// All open volumes in figures, sorted by name.
    pub async fn figures(&self) -> Result<Vec<VolumeFigures>> {
        let mut all = Vec::new();
        for handle in &self.handles {
            let told = handle.call(|engine| async move {
                let volumes = engine.volumes.borrow();
                Ok(volumes.iter().map(|(name, volume)| figures(&engine, name, volume)).collect::<Vec<_>>())
            });
            all.extend(told.await?);
        }
        all.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(all)
    }

    /// Clients and transfers; what the daemon knows of itself is its to fill in.
    pub async fn status(&self) -> Result<Status> {
        let mut status = Status { version: env!("CARGO_PKG_VERSION").to_owned(), ..Status::default() };
        for handle in &self.handles {
            let told = handle.call(|engine| async move {
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
                Ok((engine.io.driver_name(), clients, transfers, volumes::statuses(&engine)))
            });
            let (driver, clients, transfers, volumes) = told.await?;
            driver.clone_into(&mut status.io_engine);
            status.clients.extend(clients);
            status.transfers.extend(transfers);
            status.volumes.extend(volumes);
        }
        status.volumes.sort_by(|a, b| a.name.cmp(&b.name));
        for volume in &mut status.volumes {
            volume.schedule = self.schedule_status(&volume.name).await;
        }
        Ok(status)
    }
}

/// A volume in figures.
fn figures(engine: &Engine, name: &str, volume: &Volume) -> VolumeFigures {
    let (in_use, saved, journal) = volume.figures();
    let space = volume.space();
    let clients = engine.clients.of(name, true);
    let writers = clients.iter().filter(|client| client.writable).count() as u64;
    let traffic = engine.clients.traffic(name);
    VolumeFigures {
        name: name.to_owned(),
        role: volume.role(),
        state: volume.state_word().to_owned(),
        size: volume.geometry().size,
        in_use,
        saved,
        journal,
        reserved: space.reserved,
        snapshots: volume.snapshots().len() as u64,
        waiting_writes: space.waiting as u64,
        dropped_snapshots: space.dropped,
        clients: (clients.len() as u64 - writers, writers),
        requests: traffic.counts().map(|(kind, (count, bytes))| (kind.word(), count, bytes)).collect(),
    }
}

/// What `list` shows of a volume that can't be opened.
fn damaged(name: String) -> VolumeInfo {
    VolumeInfo {
        name,
        drill: None,
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
