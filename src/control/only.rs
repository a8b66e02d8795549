//! A store as the far end of sessions, as far as some volumes of it go.
//!
//! Each thing that a far end may be asked is checked here by itself: a new one does not come
//! through before somebody has said which volume it is about.

use super::access::{Access, FarDir};
use crate::engine::api::Received;
use crate::engine::groups::GroupRequest;
use crate::engine::roles::{RoleAnswer, RoleRequest, TakeOver};
use crate::engine::sets::{Feed, FeedSet, OpenFeed};
use crate::engine::together::{CommitSets, GroupName};
use crate::error::{Error, Result};
use crate::replica::receiver::{Changes, FarStore};
use crate::transport::Destination;
use crate::types::{Name, RoleEpoch};
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

    /// Checks a volume, or all those of a group.
    fn check_unit(&self, unit: &str) -> Result<()> {
        let groups = self.store.with(|access| access.group(&GroupRequest::List { group: None }))?;
        match groups.iter().find(|group| group.name == unit) {
            Some(group) => group.volumes.iter().try_for_each(|volume| self.check(volume)),
            None => self.check(unit),
        }
    }

    /// Checks a session, if it is known here, by its volumes.
    fn check_session(&self, session: Uuid) -> Result<()> {
        let statuses = self.store.with(Access::status)?.sessions;
        match statuses.iter().find(|status| status.session == session) {
            Some(status) => self.check_unit(&status.unit),
            None => Ok(()),
        }
    }
}

/// What would have this host run a program, or write into its own files, is not for a restricted
/// key to say.
fn is_foreign(destination: &str, command: &str) -> bool {
    let there = destination.parse::<Destination>();
    command.is_empty() && there.is_ok_and(|there| there.host.is_some())
}

impl FarStore for Only {
    async fn open_feeds(&self, group: Option<&GroupName>, opens: &[OpenFeed]) -> Result<Vec<Feed>> {
        let mut allowed = Vec::new();
        for open in opens {
            self.check(&open.volume)?;
            self.check_session(open.session)?;
            let mut open = open.clone();
            if !open.way_back.is_empty() && !is_foreign(&open.way_back, &open.way_back_command) {
                (open.way_back, open.way_back_command) = (String::new(), String::new());
            }
            allowed.push(open);
        }
        self.store.open_feeds(group, &allowed).await
    }
    async fn commit_sets(&self, commit: &CommitSets) -> Result<()> {
        for (volume, _) in &commit.sets {
            self.check(volume)?;
        }
        self.store.commit_sets(commit).await
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
    async fn take_over(
        &self,
        session: Uuid,
        opening: Uuid,
        volume: &str,
        take: &TakeOver,
    ) -> Result<Vec<RoleEpoch>> {
        self.check_unit(volume)?;
        self.store.take_over(session, opening, volume, take).await
    }
    async fn changes(&self, session: Uuid, volume: &str, from: u64) -> Result<Changes> {
        self.check(volume)?;
        self.store.changes(session, volume, from).await
    }
    async fn role_request(&self, request: &RoleRequest) -> Result<RoleAnswer> {
        match request {
            RoleRequest::Look { volume }
            | RoleRequest::Fence { volume, .. }
            | RoleRequest::HandOver { volume, .. } => self.check_unit(volume)?,
            RoleRequest::StopFeedBack { session } => self.check_session(*session)?,
            RoleRequest::FeedBack(asked) => {
                self.check_unit(&asked.volume)?;
                if !is_foreign(&asked.destination, &asked.remote_command) {
                    return Err(Error::conflict(
                        "this key is restricted: it names no path and no program here",
                    )
                    .hint("give a way back over ssh, with 'snapvol' on the PATH there"));
                }
            }
        }
        self.store.role_request(request).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restricted_key_has_nothing_run_here() {
        assert!(is_foreign("ssh://backup@there/srv/store/v", ""));
        for (destination, command) in [
            ("/srv/store/v", ""),
            ("/srv/store/v", "touch /tmp/x;"),
            ("ssh://there/srv/store/v", "touch /tmp/x;"),
            ("ssh://-oProxyCommand=x/srv/store/v", ""),
            ("", ""),
        ] {
            assert!(!is_foreign(destination, command), "{destination} {command}");
        }
    }
}
