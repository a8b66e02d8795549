//! What the control server does with a request: [`Service`], and the one that asks
//! the open store of the daemon.

use super::wire::{Call, from_texts};
use crate::engine::Store;
use crate::engine::api::{Received, SendRequest, Status};
use crate::engine::roles::{RoleAnswer, RoleRequest};
use crate::engine::sets::FeedSet;
use crate::error::{Error, Result};
use crate::replica::manage::{FarAnswer, FarRequest};
use crate::replica::{Hub, failover, manage, resync};
use crate::types::Name;
use serde_json::Value;
use std::io::Read;
use std::sync::Arc;
use std::time::Duration;
use uuid::Uuid;

/// Answers requests; called from many threads at once.
pub trait Service: Send + Sync + 'static {
    /// An operation without a stream.
    ///
    /// # Errors
    /// The operation's.
    fn call(&self, call: Call) -> Result<Value>;

    /// A stream, made while it is read.
    ///
    /// # Errors
    /// What is known before the first byte; later failures come from the reader.
    fn send(&self, request: &SendRequest) -> Result<Box<dyn Read + Send>>;

    /// Applies a stream.
    ///
    /// # Errors
    /// The operation's, or the stream's.
    fn receive(&self, volume: &str, input: &mut (dyn Read + Send)) -> Result<Received>;

    /// Applies the set of a session.
    ///
    /// # Errors
    /// The operation's, or the stream's.
    fn receive_set(&self, feed: &FeedSet, input: &mut (dyn Read + Send)) -> Result<Received>;
}

/// The daemon's service: its open store, and where it listens.
pub struct StoreService {
    store: Arc<Store>,
    listening: Vec<String>,
    hub: Arc<Hub>,
}

impl StoreService {
    /// Serves that store, whose sessions `hub` runs; `listening` are the URIs, without an export, for `status`.
    #[must_use]
    pub fn new(store: Arc<Store>, listening: Vec<String>, hub: Arc<Hub>) -> Self {
        Self { store, listening, hub }
    }

    /// A primary hands its role over; a volume that follows asks its primary to.
    fn hand_over(&self, volume: &str, session: Option<Uuid>, pause_max_ms: u64, force: bool) -> Result<()> {
        let follows = session.is_none() && self.store.follows(volume);
        let done = match follows {
            true => failover::ask_for_role(&self.store, volume, pause_max_ms, force),
            false => self.hub.hand_over(volume, session, Duration::from_millis(pause_max_ms), force),
        };
        self.hub.refresh();
        done
    }

    fn status(&self) -> Result<Status> {
        let mut status = self.store.status()?;
        status.running = true;
        status.pid = Some(std::process::id());
        env!("CARGO_PKG_VERSION").clone_into(&mut status.version);
        status.listening.clone_from(&self.listening);
        status.sessions = self.hub.statuses();
        Ok(status)
    }
}

fn json<T: serde::Serialize>(answer: Result<T>) -> Result<Value> {
    serde_json::to_value(answer?).map_err(|error| Error::os("write an answer as JSON", error.into()))
}

/// A volume's name from outside; nothing else may reach a path.
fn name(text: &str) -> Result<&str> {
    text.parse::<Name>().map(|_| text)
}

fn some_name(text: Option<&String>) -> Result<Option<&str>> {
    text.map(|text| name(text)).transpose()
}

impl Service for StoreService {
    fn call(&self, call: Call) -> Result<Value> {
        let store = &self.store;
        match call {
            Call::Create { volume, options } => json(store.create(name(&volume)?, &options)),
            Call::SetOnFull { volume, on_full } => json(store.set_on_full(name(&volume)?, on_full)),
            Call::List { volume } => json(store.list(some_name(volume.as_ref())?)),
            Call::Resize { volume, size, force } => json(store.resize(name(&volume)?, size, force)),
            Call::Group { request } => {
                let done = store.group_request(&request);
                // Sessions of a group look at its volumes again.
                self.hub.refresh();
                json(done)
            }
            Call::Snapshot { names } => json(store.snapshot(&from_texts(&names)?)),
            Call::DeleteSnapshots { names } => json(store.delete_snapshots(&from_texts(&names)?)),
            Call::DeleteVolume { volume, recursive } => json(store.delete_volume(name(&volume)?, recursive)),
            Call::Hold { name, tag } => json(store.hold(&name.parse()?, &tag)),
            Call::Release { name, tag } => json(store.release(&name.parse()?, &tag)),
            Call::Rollback { name, force } => json(store.rollback(&name.parse()?, force)),
            Call::Diff { from, to } => json(store.diff(&from.parse()?, some_name(to.as_ref())?)),
            Call::ReceiveStatus { volume } => json(store.receive_status(name(&volume)?)),
            Call::ReceiveAbort { volume } => json(store.receive_abort(name(&volume)?)),
            Call::Promote { volume, force } => {
                let done = store.promote(name(&volume)?, force);
                // A session that rests because the volume was fenced tries at once.
                self.hub.refresh();
                json(done)
            }
            Call::Demote { volume, force } => json(store.demote(name(&volume)?, force)),
            Call::Check { repair: true } => {
                Err(Error::conflict("a store can't be repaired while it is served")
                    .hint("stop the daemon, then run check --repair"))
            }
            Call::Check { repair: false } => json(store.check_open()),
            Call::Scrub { volume } => json(store.scrub(some_name(volume.as_ref())?)),
            Call::Digests { question } => {
                name(&question.volume)?;
                json(store.digests(&question))
            }
            Call::Content { of } => {
                name(&of.volume)?;
                json(store.content(&of))
            }
            Call::RestoreContent { of, content } => {
                name(&of.volume)?;
                json(store.restore_content(&of, &content))
            }
            Call::EndDigests { volume, comparison } => json(store.end_digests(name(&volume)?, comparison)),
            Call::KeepReadable { volume, comparison } => {
                json(store.keep_readable(name(&volume)?, comparison))
            }
            Call::Offers { volume, bookmarks } => json(store.offers(name(&volume)?, bookmarks)),
            Call::Status {} => json(self.status()),
            Call::Replicate { request } => {
                let done = manage::replicate(store, request);
                self.hub.refresh();
                json(done)
            }
            Call::Unreplicate { volume, destination } => {
                let ended = manage::unreplicate(store, name(&volume)?, destination.as_deref())?;
                self.hub.refresh();
                manage::tidy(store);
                json(Ok(ended.and_then(|record| manage::say_farewell(store, &record))))
            }
            Call::Pause { volume, destination, paused } => {
                let done = manage::pause(store, name(&volume)?, destination.as_deref(), paused);
                self.hub.refresh();
                json(done)
            }
            Call::Failover { request } => {
                name(&request.volume)?;
                let done = failover::failover(store, &request);
                self.hub.refresh();
                json(done)
            }
            Call::Resync { request } => {
                name(&request.volume)?;
                let begun = resync::resync(store, &request);
                self.hub.refresh();
                json(begun)
            }
            Call::Cut { volume } => json(self.hub.cut(name(&volume)?)),
            Call::BeginDrill { volume, snapshot, name: drill } => {
                let (snapshot, drill) = (some_name(snapshot.as_ref())?, some_name(drill.as_ref())?);
                json(store.begin_drill(name(&volume)?, snapshot, drill))
            }
            Call::SetSchedule { volume, schedule } => json(store.set_schedule(&volume, schedule)),
            Call::UpdateSource { volume } => json(store.update_source(name(&volume)?)),
            Call::RememberSource { volume, source } => json(store.remember_source(name(&volume)?, source)),
            Call::Schedule { volume } => json(store.schedule(name(&volume)?)),
            Call::EndDrill { volume, name: drill, force } => {
                json(store.end_drill(name(&volume)?, some_name(drill.as_ref())?, force))
            }
            Call::HandOver { volume, pause_max_ms, force } => {
                json(self.hand_over(name(&volume)?, None, pause_max_ms, force))
            }
            Call::Far {
                request: FarRequest::Role(RoleRequest::HandOver { volume, session, pause_max_ms, force }),
            } => {
                let done = self.hand_over(name(&volume)?, Some(session), pause_max_ms, force);
                json(done.map(|()| FarAnswer::Role(RoleAnswer::Done)))
            }
            Call::Far { request } => {
                let answer = manage::ask(store, &request);
                if matches!(request, FarRequest::Role(_) | FarRequest::TakeOver { .. }) {
                    self.hub.refresh();
                }
                json(answer)
            }
        }
    }

    fn send(&self, request: &SendRequest) -> Result<Box<dyn Read + Send>> {
        name(&request.volume)?;
        self.store.send(request)
    }

    fn receive(&self, volume: &str, input: &mut (dyn Read + Send)) -> Result<Received> {
        self.store.receive(name(volume)?, input)
    }

    fn receive_set(&self, feed: &FeedSet, input: &mut (dyn Read + Send)) -> Result<Received> {
        name(&feed.volume)?;
        manage::receive_set(&self.store, feed, input)
    }
}
