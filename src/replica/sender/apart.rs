//! What a sender knows of its lag while it ships nothing.

use super::{Port, Sender};
use crate::error::Result;
use std::time::Duration;
use uuid::Uuid;

/// How often it is looked at: it takes a walk over what has changed.
const LOOK_EVERY: Duration = Duration::from_secs(1);

impl<P: Port> Sender<'_, P> {
    /// Shows the owner what has piled up since the receiver's last state.
    pub(super) async fn apart(&mut self, volume: &str, applied: Uuid) -> Result<()> {
        let now = self.port.now();
        if self.looked.is_some_and(|at| now.saturating_sub(at) < LOOK_EVERY) {
            return Ok(());
        }
        self.looked = Some(now);
        let behind = self.core.changed_since(volume, applied).await?;
        let (_, _, geometry) = self.core.unit(volume).await?;
        if behind == 0 {
            self.mark_cut = now;
        }
        self.status.lag_bytes = behind;
        self.status.lag_blocks = behind.div_ceil(u64::from(geometry.block_size));
        self.status.lag_seconds = now.saturating_sub(self.mark_cut).as_secs_f64();
        self.port.show(&self.status);
        Ok(())
    }
}
