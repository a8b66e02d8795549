//! Streams out of and into a store, and the roles of its volumes.

use super::api::{HalfReceived, Received, SendRequest};
use super::receive::EngineTarget;
use super::send;
use super::store::Store;
use crate::delta::receiver;
use crate::delta::sender::SendStream;
use crate::delta::token::ResumeToken;
use crate::error::{Error, Result};
use crate::types::{Name, Role};
use std::io::Read;
use std::sync::Arc;

impl Store {
    /// The stream, made while it is read.
    ///
    /// # Errors
    /// `NotFound`, `Invalid`.
    pub fn send(self: &Arc<Self>, request: &SendRequest) -> Result<Box<dyn Read + Send>> {
        let engine = self.engine_of(&request.volume)?;
        let source = send::open(&engine, request)?;
        Ok(Box::new(SendStream::read_ahead(Box::new(source))?))
    }

    /// Applies a stream; the answer comes when all of it is durable.
    ///
    /// # Errors
    /// `Conflict`, and what `delta::receiver` says of a stream.
    pub fn receive(self: &Arc<Self>, volume: &str, input: &mut (dyn Read + Send)) -> Result<Received> {
        volume.parse::<Name>()?;
        let mut target = EngineTarget::new(Arc::clone(self), volume);
        let outcome = receiver::receive(input, &mut target)?;
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
    ///
    /// # Errors
    /// `NotFound`.
    pub fn receive_status(&self, volume: &str) -> Result<Option<HalfReceived>> {
        let name = volume.to_owned();
        let half = self.with(volume, |volume| async move { Ok(volume.half_received()) })?;
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
    ///
    /// # Errors
    /// `NotFound`; `Conflict` while it runs.
    pub fn receive_abort(&self, volume: &str) -> Result<()> {
        self.with(volume, |volume| async move { volume.receive_abort().await })
    }

    /// Makes a secondary writable.
    ///
    /// # Errors
    /// `Conflict`.
    pub fn promote(&self, volume: &str) -> Result<()> {
        self.with(volume, |volume| async move { volume.set_role(Role::Primary).await })
    }

    /// Makes a primary a secondary.
    ///
    /// # Errors
    /// `Conflict` while a writer is connected, unless forced.
    pub fn demote(&self, volume: &str, force: bool) -> Result<()> {
        let name = volume.to_owned();
        self.engine_of(volume)?.call(move |engine| async move {
            let volume = engine.volume(&name)?;
            let writers = engine.clients.of(&name, false).iter().filter(|c| c.writable).count();
            if writers > 0 && !force {
                return Err(Error::conflict(format!("volume {name} has {writers} writers connected"))
                    .hint("disconnect them, or use --force"));
            }
            engine.clients.disconnect(&name, false).await;
            volume.set_role(Role::Secondary).await
        })
    }
}
