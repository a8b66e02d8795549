//! What a volume says of itself, and its small settings.

use super::brake::Brake;
use super::roles::Gate;
use super::volume::{Volume, Who};
use crate::error::{Error, Result};
use crate::format::journal::Record;
use crate::format::state::SnapshotRecord;
use crate::types::{Epoch, Geometry, OnFull, Role, Standing};
use std::rc::Rc;
use uuid::Uuid;

/// A volume's figures, in bytes.
#[derive(Clone, Debug)]
pub struct VolumeSummary {
    /// Its identity.
    pub uuid: Uuid,
    /// Its role.
    pub role: Role,
    /// What it is doing, in a word.
    pub state: &'static str,
    /// What happens when space runs out.
    pub on_full: OnFull,
    /// Its size and how it is cut.
    pub geometry: Geometry,
    /// In use by production.
    pub in_use: u64,
    /// Before-images in all.
    pub saved: u64,
    /// Oldest first, those that users see.
    pub snapshots: Vec<SnapshotSummary>,
}

/// A snapshot's figures, in bytes.
#[derive(Clone, Debug)]
pub struct SnapshotSummary {
    /// Its record.
    pub record: SnapshotRecord,
    /// In use then.
    pub in_use: u64,
    /// In its own map.
    pub saved: u64,
    /// What its deletion would free.
    pub freed_by_delete: u64,
}

impl Volume {
    /// Everything that `list` shows.
    ///
    /// # Errors
    /// `Corrupt`, `Io` when a layer can't be read.
    pub async fn summary(self: &Rc<Self>) -> Result<VolumeSummary> {
        self.load_from(Epoch(0)).await?;
        let (durable, hidden) = {
            let s = self.s.borrow();
            (s.durable.clone(), s.hidden.clone())
        };
        let block = u64::from(durable.geometry.block_size);
        let granule = block * u64::from(durable.geometry.granularity);
        let mut snapshots = Vec::new();
        for record in durable.snapshots.iter().filter(|r| !r.is_internal() && !hidden.contains(&r.uuid)) {
            let saved = self.saved_in(record.epoch)? * block;
            let freed_by_delete = Box::pin(self.freed_by_delete(record.epoch)).await?;
            let in_use = (record.in_use * granule).min(record.size);
            snapshots.push(SnapshotSummary { record: record.clone(), in_use, saved, freed_by_delete });
        }
        let s = self.s.borrow();
        Ok(VolumeSummary {
            uuid: durable.uuid,
            role: durable.role,
            state: self.state_word(),
            on_full: durable.on_full,
            geometry: durable.geometry,
            in_use: (s.production.count() * granule).min(durable.geometry.size),
            saved: self.save.live_bytes(),
            snapshots,
        })
    }

    /// What it is doing, in a word or two.
    #[must_use]
    pub fn state_word(&self) -> &'static str {
        let latched = self.writable(Who::Store).is_err();
        let s = self.s.borrow();
        if latched {
            "read-only"
        } else if s.durable.role == Role::Primary && s.durable.roles.standing == Standing::Fenced {
            "fenced"
        } else if s.durable.role == Role::Primary && s.durable.roles.standing == Standing::HandingOver {
            "handing-over"
        } else if s.durable.roles.resync.is_some() {
            "resyncing"
        } else if self.gate.get() == Gate::Unconfirmed {
            "unconfirmed"
        } else if self.split.get() {
            "split"
        } else if let Some(brake) = self.brakes.closed() {
            if brake == Brake::Wait { "frozen (backlog)" } else { "read-only (backlog)" }
        } else if self.space().waiting > 0 {
            "frozen"
        } else if self.space().refused {
            "read-only (disk full)"
        } else if s.durable.rollback.is_some() {
            "rolling-back"
        } else if s.durable.receive.is_some() {
            "receiving"
        } else if s.chain.youngest_lost().is_some() {
            "damaged"
        } else {
            "ok"
        }
    }

    /// Before-images in a snapshot's own map.
    fn saved_in(&self, epoch: Epoch) -> Result<u64> {
        let s = self.s.borrow();
        let end = s.end_of(epoch);
        let mut saved = 0;
        for (first, layer) in s.chain.layers_from(epoch) {
            if first >= end {
                break;
            }
            saved += match layer {
                crate::map::LayerRef::Open(open) => open.borrow().blocks.len() as u64,
                crate::map::LayerRef::Loaded(sealed) => sealed.entry_count(),
                crate::map::LayerRef::Unloaded(_) | crate::map::LayerRef::Lost(_) => 0,
            };
        }
        Ok(saved)
    }

    /// The snapshots that users see: record, oldest first.
    #[must_use]
    pub fn snapshots(&self) -> Vec<SnapshotRecord> {
        let s = self.s.borrow();
        s.durable
            .snapshots
            .iter()
            .filter(|r| !r.is_internal() && !s.hidden.contains(&r.uuid))
            .cloned()
            .collect()
    }

    /// Bytes in use by production, of before-images, and of the journal; nothing is read for it.
    #[must_use]
    pub fn figures(&self) -> (u64, u64, u64) {
        let s = self.s.borrow();
        let geometry = s.durable.geometry;
        let granule = u64::from(geometry.block_size) * u64::from(geometry.granularity);
        let in_use = (s.production.count() * granule).min(geometry.size);
        (in_use, self.save.live_bytes(), self.journal.len())
    }

    /// What happens when space runs out.
    #[must_use]
    pub fn on_full_policy(&self) -> OnFull {
        self.s.borrow().durable.on_full
    }

    /// Changes what happens when space runs out.
    ///
    /// # Errors
    /// `Io`.
    pub async fn set_on_full(self: &Rc<Self>, policy: OnFull) -> Result<()> {
        self.writable(Who::Store)?;
        self.record_durably(Record::Policy(policy)).await?;
        self.space.freed.notify();
        Ok(())
    }

    /// Changes the role.
    ///
    /// # Errors
    /// `Conflict` when it has that role already, or a receive or roll-back is under way.
    pub async fn set_role(self: &Rc<Self>, role: Role) -> Result<()> {
        let _exclusive = self.exclusive().await;
        self.writable(Who::Store)?;
        {
            let s = self.s.borrow();
            let name = self.name();
            if s.durable.role == role {
                let word = if role == Role::Primary { "primary" } else { "secondary" };
                return Err(Error::conflict(format!("volume {name} is a {word} already")));
            }
            if s.durable.receive.is_some() {
                return Err(Error::conflict(format!("volume {name} is in the middle of a receive"))
                    .hint(format!("let it finish, or drop it with 'snapvol receive {name} --abort'")));
            }
        }
        if role == Role::Secondary {
            self.pause();
            let result = async {
                self.wait_for_writers().await?;
                self.flush().await
            }
            .await;
            self.resume();
            result?;
        }
        self.record_durably(Record::Role(role)).await?;
        Ok(())
    }

    /// Holds a snapshot.
    ///
    /// # Errors
    /// `NotFound`; `Conflict` when it is held under that tag already.
    pub async fn hold(self: &Rc<Self>, name: &str, tag: &str) -> Result<()> {
        let _exclusive = self.exclusive().await;
        self.writable(Who::Store)?;
        let record = self.s.borrow().visible(name).cloned().ok_or_else(|| self.no_snapshot(name))?;
        if record.holds.iter().any(|t| t == tag) {
            return Err(Error::conflict(format!(
                "snapshot {}@{name} is held under {tag} already",
                self.name()
            )));
        }
        self.record_durably(Record::Hold { snapshot: record.uuid, tag: tag.to_owned() }).await?;
        Ok(())
    }

    /// Lets go of a snapshot.
    ///
    /// # Errors
    /// `NotFound`, also when it is not held under that tag.
    pub async fn release(self: &Rc<Self>, name: &str, tag: &str) -> Result<()> {
        let _exclusive = self.exclusive().await;
        self.writable(Who::Store)?;
        let record = self.s.borrow().visible(name).cloned().ok_or_else(|| self.no_snapshot(name))?;
        if !record.holds.iter().any(|t| t == tag) {
            return Err(Error::not_found(format!("snapshot {}@{name} is not held under {tag}", self.name())));
        }
        self.record_durably(Record::Release { snapshot: record.uuid, tag: tag.to_owned() }).await?;
        Ok(())
    }
}
