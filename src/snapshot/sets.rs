//! Cuts: the snapshots of replication, and the line of role epochs that they belong to.
//!
//! A cut is an ordinary snapshot with an internal name and a stamp in its record; it is
//! taken, kept, read and deleted as any other. Unlike other internal snapshots it survives an
//! open, and only whoever runs the sessions deletes it.

use super::take::TakeRequest;
use super::volume::{Volume, Who};
use crate::error::{Error, Result};
use crate::format::journal::Record;
use crate::format::state::SnapshotRecord;
use crate::types::{RoleEpoch, SetId, SetStamp};
use std::rc::Rc;
use uuid::Uuid;

/// The name of a cut. Two lines of descent may count alike, so its identity is a part of it.
#[must_use]
pub fn cut_name(number: u64, uuid: Uuid) -> String {
    let (start, ..) = uuid.as_fields();
    format!("_set-{number}-{start:08x}")
}

impl Volume {
    /// The role epochs that led to the present one, oldest first.
    #[must_use]
    pub fn lineage(&self) -> Vec<RoleEpoch> {
        self.s.borrow().durable.lineage.clone()
    }

    /// The number of the youngest cut that was taken or received.
    #[must_use]
    pub fn last_cut(&self) -> u64 {
        self.s.borrow().durable.last_cut
    }

    /// Sets them, durably.
    ///
    /// # Errors
    /// `Io`, `Full`.
    pub async fn set_lineage(self: &Rc<Self>, lineage: Vec<RoleEpoch>) -> Result<()> {
        let _exclusive = self.exclusive().await;
        self.writable(Who::Store)?;
        self.record_durably(Record::Lineage(lineage)).await?;
        Ok(())
    }

    /// The cuts, oldest first.
    #[must_use]
    pub fn cuts(&self) -> Vec<SnapshotRecord> {
        let s = self.s.borrow();
        let shown = |r: &&SnapshotRecord| r.set.is_some() && !s.hidden.contains(&r.uuid);
        s.durable.snapshots.iter().filter(shown).cloned().collect()
    }

    /// Takes a cut; a power cut can't take it back when this returns. Only one at a time may
    /// be taken, or two get the same number.
    ///
    /// # Errors
    /// `Conflict` when a receive or roll-back forbids it; `Io`, `Full`.
    pub async fn take_cut(self: &Rc<Self>) -> Result<SetId> {
        let (epoch, number, base) = {
            let s = self.s.borrow();
            if s.durable.receive.is_some() || s.durable.rollback.is_some() {
                return Err(Error::conflict(format!(
                    "volume {} is half received or rolled back",
                    self.name()
                )));
            }
            let epoch = s.durable.lineage.last().copied().unwrap_or_default();
            let base = s.durable.snapshots.iter().rev().find(|r| r.set.is_some()).map(|r| r.uuid);
            (epoch, s.durable.last_cut + 1, base)
        };
        let (uuid, stamp) = (self.io().identity(), SetStamp { epoch, number, base });
        self.take(TakeRequest {
            uuid,
            name: cut_name(number, uuid),
            created_us: self.io().now_us(),
            batch: None,
            received: false,
            set: Some(stamp),
        })
        .await?;
        Ok(SetId { stamp, target: uuid })
    }

    /// Whether a stream is being applied at this moment.
    #[must_use]
    pub fn is_receiving(&self) -> bool {
        self.receiving.get()
    }

    /// The youngest state that this volume shows as a secondary: what users see, or what a
    /// session brought.
    #[must_use]
    pub fn newest_state(&self) -> Option<SnapshotRecord> {
        let s = self.s.borrow();
        let shown =
            |r: &&SnapshotRecord| (r.set.is_some() || !r.is_internal()) && !s.hidden.contains(&r.uuid);
        s.durable.snapshots.iter().rev().find(shown).cloned()
    }
}
