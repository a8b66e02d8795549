//! The sessions of a store: who follows whom, remembered in files, and what that forbids.
//!
//! Invariants: a session is in memory only once its file is durable, and gone from memory only
//! once its file is; while the file of some session can't be read, no cut is deleted, since
//! nobody knows which ones it needs.

use super::core::Core;
use crate::error::{Error, Result};
use crate::format::session::{Condition, SessionRecord, Side};
use crate::io::Io;
use crate::store::small_file;
use std::collections::BTreeMap;
use std::io::ErrorKind as OsKind;
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};
use uuid::Uuid;

/// The suffix of a file that whoever serves the session's connection has locked.
const LIVE: &str = ".live";

/// What the directory `sessions` says.
#[derive(Default)]
pub(super) struct Sessions {
    known: RwLock<BTreeMap<Uuid, SessionRecord>>,
    /// Files that can't be read, and why.
    pub damaged: Vec<(String, Error)>,
    /// Files are written one at a time.
    writing: futures::lock::Mutex<()>,
}

fn dir_of(store: &Path) -> PathBuf {
    store.join("sessions")
}

/// The file that is locked for as long as a session of a receiver has a connection.
pub(crate) fn live_file(store: &Path, session: Uuid) -> PathBuf {
    dir_of(store).join(format!("{session}{LIVE}"))
}

/// Reads all sessions. With `sync` what is read is durable, and what a crash left goes.
pub(super) async fn read(io: &Io, store: &Path, sync: bool) -> Result<Sessions> {
    let dir = dir_of(store);
    let names = match io.list(&dir).await {
        Err(error) if error.os_kind() == Some(OsKind::NotFound) => return Ok(Sessions::default()),
        names => names?,
    };
    if sync {
        io.sync_dir(store).await?;
        io.sync_dir(&dir).await?;
    }
    let mut sessions = Sessions::default();
    let mut known = BTreeMap::new();
    for name in names {
        let path = dir.join(&name);
        if name.ends_with(LIVE) {
            continue;
        }
        if name.ends_with(small_file::NEW) {
            if sync {
                io.remove(&path).await?;
            }
            continue;
        }
        match read_one(io, &path, sync).await {
            Ok(record) if record.session.to_string() == name => {
                known.insert(record.session, record);
            }
            Ok(_) => {
                let error = Error::corrupt("the file of a session has the name of another one");
                sessions.damaged.push((name, error));
            }
            Err(error) => sessions.damaged.push((name, error)),
        }
    }
    sessions.known = RwLock::new(known);
    Ok(sessions)
}

async fn read_one(io: &Io, path: &Path, sync: bool) -> Result<SessionRecord> {
    let bytes = small_file::read(io, path, sync).await?;
    SessionRecord::decode(&bytes.unwrap_or_default()).map_err(|error| {
        error.context(path.display().to_string()).hint(
            "restore the file from a copy, or remove it: then the session is forgotten, and its \
             volumes are shipped whole again",
        )
    })
}

async fn write(io: &Io, store: &Path, record: &SessionRecord) -> Result<()> {
    let dir = dir_of(store);
    match io.make_dir(&dir).await {
        Err(error) if error.os_kind() == Some(OsKind::AlreadyExists) => {}
        made => made?,
    }
    // A directory whose making was interrupted may not be durable yet.
    io.sync_dir(store).await?;
    small_file::write(io, &dir.join(record.session.to_string()), record.encode().into()).await
}

impl Core {
    /// All sessions, in the order of their identities.
    pub fn sessions(&self) -> Vec<SessionRecord> {
        let known = self.sessions.known.read().unwrap_or_else(PoisonError::into_inner);
        known.values().cloned().collect()
    }

    /// A session.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn session(&self, session: Uuid) -> Result<SessionRecord> {
        let known = self.sessions.known.read().unwrap_or_else(PoisonError::into_inner);
        let found = known.get(&session).cloned();
        found.ok_or_else(|| Error::not_found(format!("there is no session {session}")))
    }

    /// Makes a session, or changes what is remembered of it, durably. `change` sees what is
    /// remembered at that moment.
    ///
    /// # Errors
    /// `Io`, `Full`; what `change` says.
    pub async fn change_session(
        &self,
        session: Uuid,
        change: impl FnOnce(Option<SessionRecord>) -> Result<SessionRecord>,
    ) -> Result<SessionRecord> {
        let _writing = self.sessions.writing.lock().await;
        let record = change(self.session(session).ok())?;
        let written = record.clone();
        self.on_store(move |engine, dir| async move { write(&engine.io, &dir, &written).await }).await?;
        let mut known = self.sessions.known.write().unwrap_or_else(PoisonError::into_inner);
        known.insert(session, record.clone());
        Ok(record)
    }

    /// Forgets a session, durably.
    ///
    /// # Errors
    /// `Io`.
    pub async fn forget_session(&self, session: Uuid) -> Result<()> {
        let _writing = self.sessions.writing.lock().await;
        self.on_store(move |engine, dir| async move {
            let live = live_file(&dir, session);
            let dir = dir_of(&dir);
            for file in [dir.join(session.to_string()), live] {
                match engine.io.remove(&file).await {
                    Err(error) if error.os_kind() != Some(OsKind::NotFound) => return Err(error),
                    _ => {}
                }
            }
            engine.io.sync_dir(&dir).await
        })
        .await?;
        let mut known = self.sessions.known.write().unwrap_or_else(PoisonError::into_inner);
        known.remove(&session);
        Ok(())
    }

    /// The sessions of that side that a volume is in.
    pub fn sessions_of(&self, volume: &str, side: Side) -> Vec<SessionRecord> {
        let mut all = self.sessions();
        all.retain(|record| record.side == side && record.member(volume).is_some());
        all
    }

    /// The sessions of that side that go by that name: of a volume by itself, or of a group.
    pub fn sessions_named(&self, unit: &str, side: Side) -> Vec<SessionRecord> {
        let mut all = self.sessions();
        all.retain(|record| record.side == side && record.unit == unit);
        all
    }

    /// The session that feeds a volume by itself, or a group.
    pub fn fed_unit(&self, unit: &str) -> Option<SessionRecord> {
        let mut all = self.sessions_named(unit, Side::Receiver);
        all.retain(|record| !matches!(record.condition, Condition::Ended | Condition::Turned));
        all.pop()
    }

    /// The session that fed a volume by itself, or a group, which takes its sender's place or has
    /// taken it.
    pub fn turned_unit(&self, unit: &str) -> Option<SessionRecord> {
        let mut all = self.sessions_named(unit, Side::Receiver);
        all.retain(|record| record.condition == Condition::Turned);
        all.pop()
    }

    /// Refuses to do with one volume of a replicated group what is done with all of them.
    ///
    /// # Errors
    /// `Conflict`.
    pub fn check_alone(&self, volume: &str, what: &str) -> Result<()> {
        let others = |record: &SessionRecord| record.group.is_some() && record.member(volume).is_some();
        match self.sessions().into_iter().find(others) {
            None => Ok(()),
            Some(record) => Err(Error::conflict(format!(
                "volume {volume} is replicated as a part of group {}",
                record.unit
            ))
            .hint(format!("name the group: snapvol {what} {}", record.unit))),
        }
    }

    /// The session that feeds a volume.
    pub fn fed_by(&self, volume: &str) -> Option<SessionRecord> {
        let mut all = self.sessions_of(volume, Side::Receiver);
        all.retain(|record| !matches!(record.condition, Condition::Ended | Condition::Turned));
        all.pop()
    }

    /// The session that fed a volume which takes its sender's place, or has taken it.
    pub fn turned(&self, volume: &str) -> Option<SessionRecord> {
        let mut all = self.sessions_of(volume, Side::Receiver);
        all.retain(|record| record.condition == Condition::Turned);
        all.pop()
    }

    /// Refuses what would change a volume behind the back of the session that feeds it.
    ///
    /// # Errors
    /// `Conflict`.
    pub(super) fn check_not_fed(&self, volume: &str, what: &str) -> Result<()> {
        if let Some(turned) = self.turned(volume)
            && turned.member(volume).is_some_and(|member| member.applied.is_none())
        {
            return Err(Error::conflict(format!(
                "a failover to volume {volume} was begun and has not ended"
            ))
            .hint(format!("'snapvol failover {}' goes on with it", turned.unit)));
        }
        match self.fed_by(volume) {
            None => Ok(()),
            Some(fed) => {
                Err(Error::conflict(format!("volume {volume} follows a primary; {what} would part the two"))
                    .hint(format!("'snapvol unreplicate {}' ends that here, for good", fed.unit)))
            }
        }
    }

    /// Refuses what would take a volume from the sessions that ship it.
    ///
    /// # Errors
    /// `Conflict`.
    pub(super) fn check_not_followed(&self, volume: &str) -> Result<()> {
        match self.sessions_of(volume, Side::Sender).first() {
            None => Ok(()),
            Some(record) => {
                Err(Error::conflict(format!("volume {volume} is replicated to {}", record.destination))
                    .hint(format!("'snapvol unreplicate {} {}' ends that", record.unit, record.destination)))
            }
        }
    }
}
