//! Roll-back: production becomes a snapshot again, by the ordinary write procedure.
//!
//! The intent is durable before anything is written and the end after everything is; a
//! crash in between does it again from the start, which the snapshot makes possible at any
//! point, since the writes save what it holds. Younger snapshots stay readable for the
//! same reason.

use super::read::Piece;
use super::reader::SnapshotReader;
use super::volume::{Volume, Who};
use crate::error::{Error, Result};
use crate::format::journal::Record;
use crate::types::Role;
use std::ops::Range;
use std::rc::Rc;
use uuid::Uuid;

/// Bytes restored at a time.
const STEP: u64 = 1 << 20;

impl Volume {
    /// Rolls production back. Clients are gone, or wait: the caller saw to that.
    ///
    /// # Errors
    /// `NotFound`, `Conflict`, `Io`, `Full`.
    pub async fn roll_back(self: &Rc<Self>, name: &str) -> Result<()> {
        let _exclusive = self.exclusive().await;
        self.writable(Who::Store)?;
        {
            let s = self.s.borrow();
            if s.durable.role == Role::Secondary {
                return Err(Error::conflict(format!(
                    "volume {} is a secondary: only a receive changes it",
                    self.name()
                ))
                .hint(format!("'snapvol promote {}' makes it writable", self.name())));
            }
            if s.durable.receive.is_some() {
                return Err(Error::conflict(format!("volume {} is in the middle of a receive", self.name()))
                    .hint("let it finish, or drop it with 'snapvol receive VOL --abort'"));
            }
        }
        self.check_standing(self.roles().standing)?;
        let uuid = self.open_snapshot(name)?.uuid();
        self.map_stage().await?;
        self.pause();
        let result = async {
            self.wait_for_writers().await?;
            self.record_durably(Record::RollbackBegin { snapshot: uuid }).await?;
            self.roll_back_to(uuid).await
        }
        .await;
        self.resume();
        result.map_err(|e| self.named(e))
    }

    /// Waits until no client's write is under way.
    pub(super) async fn wait_for_writers(&self) -> Result<()> {
        while !self.s.borrow().admitted.is_empty() {
            self.writable(Who::Store)?;
            self.changed.wait().await;
        }
        Ok(())
    }

    /// Carries out a roll-back whose intent is durable, from wherever it was.
    pub(super) async fn roll_back_to(self: &Rc<Self>, uuid: Uuid) -> Result<()> {
        let size = self.restore(uuid).await?;
        self.flush().await?;
        self.record_durably(Record::RollbackEnd { size }).await?;
        Ok(())
    }

    /// Makes production equal a snapshot, but for the record of its size, which it returns.
    pub(super) async fn restore(self: &Rc<Self>, uuid: Uuid) -> Result<u64> {
        let reader = self.open_snapshot_by_id(uuid)?;
        let size = reader.size();
        if size > self.geometry().size {
            self.set_size(size).await?;
        }
        let delta = self.delta_between(Some(uuid), None).await?;
        let end = delta.size;
        for run in delta.runs(0..end) {
            self.restore_range(&reader, run.bytes).await?;
        }
        let now = self.geometry().size;
        if size < now {
            self.trim(Who::Store, size, now - size, false).await?;
        }
        Ok(size)
    }

    /// Gives a range the content that a snapshot has there: data, or nothing.
    async fn restore_range(self: &Rc<Self>, reader: &SnapshotReader, range: Range<u64>) -> Result<()> {
        let mut at = range.start;
        while at < range.end {
            let step = STEP.min(range.end - at);
            if at >= reader.size() {
                self.trim(Who::Store, at, range.end - at, false).await?;
                return Ok(());
            }
            let step = step.min(reader.size() - at);
            let mut offset = at;
            for piece in reader.read(at, step).await? {
                let len = piece.len();
                match piece {
                    Piece::Data(data) => self.write(Who::Store, offset, data, false).await?,
                    Piece::Hole(len) => self.trim(Who::Store, offset, len, false).await?,
                }
                offset += len;
            }
            at += step;
        }
        Ok(())
    }
}
