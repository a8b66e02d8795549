//! Streams out of and into a store, and the roles of its volumes.

use super::api::{HalfReceived, Received, SendRequest};
use super::core::Core;
use super::receive::EngineTarget;
use super::send::{self, EngineSource};
use crate::delta::receiver;
use crate::delta::token::ResumeToken;
use crate::error::{Error, Result};
use crate::types::{Name, Role};
use std::io::Read;

impl Core {
    /// What a stream is made of.
    pub async fn source(&self, request: &SendRequest) -> Result<EngineSource> {
        send::open(self.engine_of(&request.volume)?, request).await
    }

    /// Applies a stream; the answer comes when all of it is durable.
    pub async fn receive(&self, volume: &str, input: &mut dyn Read) -> Result<Received> {
        volume.parse::<Name>()?;
        self.check_not_fed(volume, "another stream")?;
        let mut target = EngineTarget::new(self, volume);
        let outcome = receiver::receive(input, &mut target).await;
        target.end().await;
        let outcome = outcome?;
        Ok(Received {
            volume: volume.to_owned(),
            snapshot: outcome.header.target.name,
            uuid: outcome.header.target.uuid,
            already: outcome.already,
            data_bytes: outcome.data_bytes,
            discard_bytes: outcome.discard_bytes,
        })
    }

    /// The receive that was begun and not ended.
    pub async fn receive_status(&self, volume: &str) -> Result<Option<HalfReceived>> {
        let name = volume.to_owned();
        let half = self.with(volume, |volume| async move { Ok(volume.half_received()) }).await?;
        Ok(half.map(|(record, running)| HalfReceived {
            volume: name,
            snapshot: record.name,
            uuid: record.target,
            base: record.base,
            durable: record.durable,
            token: ResumeToken { target: record.target, base: record.base, durable: record.durable }
                .to_string(),
            running,
        }))
    }

    /// Drops what is half received; the volume is as before.
    pub async fn receive_abort(&self, volume: &str) -> Result<()> {
        self.check_not_fed(volume, "an abort")?;
        self.with(volume, |volume| async move { volume.receive_abort().await }).await
    }

    /// Makes a secondary writable; with `force` also a primary that waits, or that gave way.
    pub async fn promote(&self, volume: &str, force: bool) -> Result<()> {
        let (_, role, _) = self.unit(volume).await?;
        let standing = self.roles(volume).await?.standing;
        if role == Role::Primary && (!standing.is_open() || self.is_unconfirmed(volume).await?) {
            if force {
                return self.start_alone(volume).await;
            }
            return Err(Error::conflict(format!(
                "volume {volume} is a primary, and takes no writes because another one may be it, too"
            ))
            .hint(format!(
                "'snapvol resync {volume}' has it follow the other one; --force makes it go on alone, apart \
                 from the other"
            )));
        }
        if let Some(fed) = self.fed_by(volume) {
            return Err(Error::conflict(format!(
                "volume {volume} follows a primary: to promote it is a failover"
            ))
            .hint(format!("'snapvol failover {}' does that", fed.unit)));
        }
        self.check_not_fed(volume, "to promote it")?;
        if self.roles(volume).await?.resync.is_some() {
            return Err(Error::conflict(format!("a resync of volume {volume} is under way"))
                .hint(format!("'snapvol resync {volume} --abort' ends it")));
        }
        self.with(volume, |volume| async move { volume.set_role(Role::Primary).await }).await
    }

    /// Makes a primary a secondary.
    pub async fn demote(&self, volume: &str, force: bool) -> Result<()> {
        self.check_not_followed(volume)?;
        self.on_engine(volume, move |engine, name| async move {
            let volume = engine.volume(&name)?;
            let writers = engine.clients.of(&name, false).iter().filter(|c| c.writable).count();
            if writers > 0 && !force {
                return Err(Error::conflict(format!("volume {name} has {writers} writers connected"))
                    .hint("disconnect them, or use --force"));
            }
            engine.clients.disconnect(&name, false).await;
            volume.set_role(Role::Secondary).await
        })
        .await
    }
}
