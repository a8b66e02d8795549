//! A store as the far end of sessions, as far as some volumes of it go.
//!
//! Each thing that a far end may be asked is checked here by itself: a new one does not come
//! through before somebody has said which volume it is about.

use super::access::{Access, FarDir};
use crate::engine::api::Received;
use crate::engine::sets::{Feed, FeedSet, OpenFeed};
use crate::error::{Error, Result};
use crate::replica::receiver::FarStore;
use crate::types::Name;
use std::io::Read;
use uuid::Uuid;

/// The store in a directory, for whoever may use these volumes alone.
pub struct Only {
    store: FarDir,
    volumes: Vec<Name>,
}

impl Only {
    /// Those volumes of a store.
    #[must_use]
    pub fn new(store: FarDir, volumes: Vec<Name>) -> Self {
        Self { store, volumes }
    }

    fn check(&self, volume: &str) -> Result<()> {
        if self.volumes.iter().any(|allowed| allowed.as_str() == volume) {
            return Ok(());
        }
        Err(Error::conflict(format!(
            "this key is restricted, and volume '{}' is not one of its volumes",
            volume.escape_debug()
        )))
    }

    /// Checks a session, if it is known here, by its volume.
    fn check_session(&self, session: Uuid) -> Result<()> {
        let statuses = self.store.with(Access::status)?.sessions;
        match statuses.iter().find(|status| status.session == session) {
            Some(status) => self.check(&status.unit),
            None => Ok(()),
        }
    }
}

impl FarStore for Only {
    async fn open_feed(&self, open: &OpenFeed) -> Result<Feed> {
        self.check(&open.volume)?;
        self.check_session(open.session)?;
        self.store.open_feed(open).await
    }
    async fn receive_set(&self, feed: &FeedSet, input: &mut (dyn Read + Send)) -> Result<Received> {
        self.check(&feed.volume)?;
        self.store.receive_set(feed, input).await
    }
    async fn abort_feed(&self, session: Uuid, volume: &str) -> Result<()> {
        self.check(volume)?;
        self.store.abort_feed(session, volume).await
    }
    async fn keep_states(&self, session: Uuid, volume: &str, keep: u64) -> Result<()> {
        self.check(volume)?;
        self.store.keep_states(session, volume, keep).await
    }
    async fn close_feed(&self, session: Uuid) -> Result<()> {
        self.check_session(session)?;
        self.store.close_feed(session).await
    }
}
