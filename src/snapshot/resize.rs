//! Resizing. Growing makes the file longer before the record says so; shrinking trims
//! what is cut off and records the size. The file itself never gets shorter.

use super::volume::{Volume, Who};
use crate::error::{Error, Result};
use crate::format::journal::Record;
use crate::store::clone_volume::CloneVolume;
use crate::types::{Geometry, Role};
use std::rc::Rc;

impl Volume {
    /// Sets the size that clients see, in bytes.
    ///
    /// # Errors
    /// `Invalid`; `Unsupported` when the file system has no such files; `Conflict` on a
    /// secondary.
    pub async fn resize(self: &Rc<Self>, size: u64) -> Result<()> {
        let _exclusive = self.exclusive().await;
        self.writable(Who::Store)?;
        let old = self.geometry();
        Geometry::new(size, old.block_size, old.granularity)?;
        if self.role() == Role::Secondary {
            return Err(Error::conflict(format!(
                "volume {} is a secondary: only a receive changes it",
                self.name()
            )));
        }
        self.check_standing(self.roles().standing)?;
        if size < old.size {
            self.pause();
            let result = async {
                self.wait_for_writers().await?;
                self.trim(Who::Store, size, old.size - size, false).await?;
                self.flush().await?;
                self.set_size(size).await
            }
            .await;
            self.resume();
            return result;
        }
        self.set_size(size).await.map_err(|e| self.named(e))
    }

    /// Makes the file long enough and the size durable.
    pub(super) async fn set_size(self: &Rc<Self>, size: u64) -> Result<()> {
        let len = CloneVolume::file_len(self.geometry(), size);
        self.clone_volume.grow(len).await?;
        self.clone_synced().await?;
        self.record_durably(Record::Resize { size }).await?;
        Ok(())
    }
}
