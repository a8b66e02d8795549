//! What a sender knows of its lag while it ships nothing, and what it does to writers when too much
//! piles up.

use super::{Port, Sender, volumes_of};
use crate::error::Result;
use crate::format::session::{MemberRecord, OnBacklog, SessionRecord};
use crate::snapshot::Brake;
use std::time::Duration;

/// How often it is looked at: it takes a walk over what has changed.
const LOOK_EVERY: Duration = Duration::from_secs(1);

impl<P: Port> Sender<'_, P> {
    /// Shows the owner what has piled up since the receiver's last states, and returns it in bytes;
    /// none if it was looked at a moment ago.
    pub(super) async fn apart(&mut self, members: &[MemberRecord]) -> Result<Option<u64>> {
        let now = self.port.now();
        if self.looked.is_some_and(|at| now.saturating_sub(at) < LOOK_EVERY) {
            return Ok(None);
        }
        self.looked = Some(now);
        let (mut behind, mut blocks) = (0u64, 0);
        for member in members {
            let Some(applied) = member.applied else { continue };
            let apart = self.core.changed_since(&member.volume, applied.target).await?;
            let (_, _, geometry) = self.core.unit(&member.volume).await?;
            behind = behind.saturating_add(apart);
            blocks += apart.div_ceil(u64::from(geometry.block_size));
        }
        if behind == 0 {
            self.mark_cut = now;
        }
        self.status.lag_bytes = behind;
        self.status.lag_blocks = blocks;
        self.status.lag_seconds = now.saturating_sub(self.mark_cut).as_secs_f64();
        self.port.show(&self.status);
        Ok(Some(behind))
    }

    /// Looks whether writers are to be kept back, wherever the session stands.
    pub(super) async fn guard(&mut self) {
        let Ok(record) = self.core.session(self.session) else { return };
        if record.policy.on_backlog == OnBacklog::Terminate && self.brake.is_none() {
            return;
        }
        if let Err(error) = self.bound_backlog(&record).await {
            tracing::warn!("replication of {}: {error}", record.unit);
        }
    }

    /// Keeps the volumes' writers back while their backlog is past the bound.
    pub(super) async fn brake_writers(&mut self, record: &SessionRecord, passed: bool) -> Result<()> {
        let brake = match record.policy.on_backlog {
            OnBacklog::Freeze if passed => Some(Brake::Wait),
            OnBacklog::Readonly if passed => Some(Brake::Refuse),
            _ => None,
        };
        if brake == self.brake.as_ref().map(|(brake, _)| *brake) {
            return Ok(());
        }
        let volumes = volumes_of(record);
        for volume in &volumes {
            self.core.set_brake(volume, self.session, brake).await?;
        }
        self.brake = brake.map(|brake| (brake, volumes));
        let (unit, there) = (&record.unit, &record.destination);
        match brake {
            Some(Brake::Wait) => {
                tracing::error!(
                    "replication of {unit} to {there}: its backlog is past the bound, writers wait"
                );
            }
            Some(Brake::Refuse) => {
                tracing::error!(
                    "replication of {unit} to {there}: its backlog is past the bound, writes are refused"
                );
            }
            None => tracing::info!("replication of {unit} to {there}: writers go on"),
        }
        Ok(())
    }

    /// The session is not run any more. Where it is forgotten, nobody waits for it; where the daemon
    /// stops, its writers are kept back to the end.
    pub(super) async fn release_brake(&mut self) {
        if let (Some((_, volumes)), Err(_)) = (self.brake.take(), self.core.session(self.session)) {
            for volume in volumes {
                // It may be gone, too.
                let _ = self.core.set_brake(&volume, self.session, None).await;
            }
        }
    }
}
