//! The groups of a store: volumes that belong together, remembered in the file `groups`.
//!
//! Invariants: what is in memory is what the file says, and changes only once that is durable, in
//! the turn of commands over several volumes; a name is that of a volume or of a group, never of
//! both; a volume is in one group at most; while the file can't be read nothing is changed, and
//! members are not told from other volumes, so what a group forbids is refused for every volume.

use super::api::GroupInfo;
use super::core::{Admin, Core};
use super::store::Store;
use crate::error::{Error, Result};
use crate::format::group::{self, GroupMember, GroupRecord};
use crate::format::session::{Condition, Side};
use crate::io::Io;
use crate::store::small_file;
use crate::types::{Name, SnapName};
use futures::executor::block_on;
use futures::lock::MutexGuard;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};

/// Volumes of a group, at most: all of them pause for a snapshot.
pub const MEMBERS_MAX: usize = 64;

/// What is to be done with a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs, reason = "the methods of Core say what they mean")]
pub enum GroupRequest {
    Create { group: String, volumes: Vec<String> },
    Add { group: String, volumes: Vec<String> },
    Remove { group: String, volumes: Vec<String> },
    Delete { group: String },
    List { group: Option<String> },
}

/// What the file says.
#[derive(Default)]
pub(super) struct Groups {
    known: RwLock<BTreeMap<String, GroupRecord>>,
    /// Why it can't be read.
    pub damage: Option<Error>,
}

fn path_of(store: &Path) -> PathBuf {
    store.join("groups")
}

/// Reads the file. With `sync` what is read is durable, and what a crash left goes.
pub(super) async fn read(io: &Io, store: &Path, sync: bool) -> Result<Groups> {
    let path = path_of(store);
    let mut found = Groups::default();
    if sync {
        small_file::tidy(io, &path).await?;
    }
    let groups = match small_file::read(io, &path, sync).await {
        Ok(None) => return Ok(found),
        Ok(Some(bytes)) => group::decode(&bytes),
        Err(error) => Err(error),
    };
    match groups {
        Ok(groups) => {
            found.known = RwLock::new(groups.into_iter().map(|group| (group.name.clone(), group)).collect());
        }
        Err(error) => {
            found.damage = Some(error.context(path.display().to_string()).hint(
                "restore the file from a copy, or remove it: then the groups are forgotten, and their \
                 volumes stay",
            ));
        }
    }
    Ok(found)
}

fn no_group(group: &str) -> Error {
    Error::not_found(format!("there is no group '{}'", group.escape_debug()))
        .hint("'snapvol group list' shows those there are")
}

impl Core {
    /// All groups, by name.
    ///
    /// # Errors
    /// Why nobody knows.
    pub fn groups(&self) -> Result<Vec<GroupRecord>> {
        if let Some(damage) = &self.groups.damage {
            return Err(damage.duplicate());
        }
        let known = self.groups.known.read().unwrap_or_else(PoisonError::into_inner);
        Ok(known.values().cloned().collect())
    }

    /// The group of that name, if there is one.
    pub fn group(&self, name: &str) -> Option<GroupRecord> {
        let known = self.groups.known.read().unwrap_or_else(PoisonError::into_inner);
        known.get(name).cloned()
    }

    /// The group that a volume is in.
    ///
    /// # Errors
    /// Why nobody knows.
    pub fn group_of(&self, volume: &str) -> Result<Option<GroupRecord>> {
        Ok(self.groups()?.into_iter().find(|group| group.has(volume)))
    }

    /// The volumes that a name stands for: a group's, or the volume of that name.
    pub fn volumes_of(&self, unit: &str) -> Vec<String> {
        match self.group(unit) {
            Some(group) => group.volumes().map(str::to_owned).collect(),
            None => vec![unit.to_owned()],
        }
    }

    /// Does what is asked of groups, and returns those that it was about.
    ///
    /// # Errors
    /// `NotFound`, `Conflict`, `Invalid`; `Corrupt` while the file can't be read; `Io`, `Full`.
    pub async fn group_request(&self, request: &GroupRequest) -> Result<Vec<GroupInfo>> {
        let group = match request {
            GroupRequest::Create { group, volumes } => {
                self.create_group(group, volumes).await?;
                Some(group)
            }
            GroupRequest::Add { group, volumes } => {
                self.add_to_group(group, volumes).await?;
                Some(group)
            }
            GroupRequest::Remove { group, volumes } => {
                self.remove_from_group(group, volumes).await?;
                Some(group)
            }
            GroupRequest::Delete { group } => {
                self.delete_group(group).await?;
                return Ok(Vec::new());
            }
            GroupRequest::List { group } => group.as_ref(),
        };
        let mut all = self.groups()?;
        if let Some(group) = group {
            all.retain(|known| known.name == *group);
            if all.is_empty() {
                return Err(no_group(group));
            }
        }
        Ok(all.into_iter().map(GroupInfo::from).collect())
    }

    async fn create_group(&self, group: &str, volumes: &[String]) -> Result<()> {
        group.parse::<Name>()?;
        let admin = self.admin().await;
        self.check_name_free(group)?;
        if volumes.is_empty() {
            return Err(Error::invalid("a group has one volume at least"));
        }
        let members = self.free_members(volumes, 0).await?;
        let uuid = self.new_identity().await?;
        self.write_group(&admin, GroupRecord { name: group.to_owned(), uuid, members }).await
    }

    async fn add_to_group(&self, group: &str, volumes: &[String]) -> Result<()> {
        let admin = self.admin().await;
        let mut known = self.known_group(group)?;
        self.check_leads(&known)?;
        let added = self.free_members(volumes, known.members.len()).await?;
        known.members.extend(added);
        self.change_members(admin, known).await
    }

    async fn remove_from_group(&self, group: &str, volumes: &[String]) -> Result<()> {
        let admin = self.admin().await;
        let mut known = self.known_group(group)?;
        self.check_leads(&known)?;
        if let Some(other) = volumes.iter().find(|volume| !known.has(volume)) {
            return Err(Error::not_found(format!("volume {other} is not in group {group}")));
        }
        known.members.retain(|member| !volumes.contains(&member.volume));
        if known.members.is_empty() {
            return Err(Error::conflict(format!("group {group} would have no volume left"))
                .hint(format!("'snapvol group delete {group}' deletes it; its volumes stay")));
        }
        self.change_members(admin, known).await
    }

    /// Writes down which volumes a group has now; its sessions follow.
    async fn change_members(&self, admin: MutexGuard<'_, Admin>, mut group: GroupRecord) -> Result<()> {
        group.members.sort_by(|a, b| a.volume.cmp(&b.volume));
        self.write_group(&admin, group.clone()).await?;
        drop(admin);
        self.follow_membership(&group).await
    }

    /// Refuses another membership of a group that follows: its primary says who is in it.
    fn check_leads(&self, group: &GroupRecord) -> Result<()> {
        let fed = self.sessions().into_iter().find(|session| {
            session.side == Side::Receiver
                && session.group == Some(group.uuid)
                && session.condition != Condition::Ended
        });
        match fed.filter(|session| session.condition != Condition::Turned) {
            None => Ok(()),
            Some(_) => Err(Error::conflict(format!("group {} follows a primary", group.name))
                .hint("change it there; that travels with the next set")),
        }
    }

    async fn delete_group(&self, group: &str) -> Result<()> {
        let admin = self.admin().await;
        let known = self.known_group(group)?;
        if let Some(session) = self.sessions().into_iter().find(|session| session.group == Some(known.uuid)) {
            let to = if session.destination.is_empty() { "here" } else { &session.destination };
            return Err(Error::conflict(format!("group {group} is replicated, to {to}"))
                .hint(format!("'snapvol unreplicate {group}' ends that")));
        }
        self.write_groups(&admin, |all| drop(all.remove(&known.name))).await
    }

    fn known_group(&self, group: &str) -> Result<GroupRecord> {
        if let Some(damage) = &self.groups.damage {
            return Err(damage.duplicate());
        }
        self.group(group).ok_or_else(|| no_group(group))
    }

    /// Volumes as members; none of them is in a group.
    async fn free_members(&self, volumes: &[String], there: usize) -> Result<Vec<GroupMember>> {
        let mut members: Vec<GroupMember> = Vec::new();
        for volume in volumes {
            volume.parse::<Name>()?;
            if members.iter().any(|member| member.volume == *volume) {
                return Err(Error::invalid(format!("volume {volume} is named twice")));
            }
            if let Some(other) = self.group_of(volume)? {
                return Err(Error::conflict(format!("volume {volume} is in group {}", other.name)).hint(
                    format!("a volume is in one group; 'snapvol group remove {} {volume}'", other.name),
                ));
            }
            let (uuid, ..) = self.unit(volume).await?;
            let session = self.sessions().into_iter().find(|session| session.member(volume).is_some());
            if let Some(session) = session {
                let to = if session.destination.is_empty() { "here" } else { &session.destination };
                return Err(Error::conflict(format!("volume {volume} is replicated by itself, to {to}"))
                    .hint(format!(
                        "'snapvol unreplicate {volume}' ends that; a group is replicated as one"
                    )));
            }
            members.push(GroupMember { volume: volume.clone(), uuid });
        }
        if there + members.len() > MEMBERS_MAX {
            return Err(Error::invalid(format!("a group has {MEMBERS_MAX} volumes at most")));
        }
        Ok(members)
    }

    pub(super) async fn write_group(&self, admin: &Admin, mut group: GroupRecord) -> Result<()> {
        group.members.sort_by(|a, b| a.volume.cmp(&b.volume));
        self.write_groups(admin, |all| drop(all.insert(group.name.clone(), group))).await
    }

    /// Changes the file, in the turn that `_admin` proves, and then what is known.
    async fn write_groups(
        &self,
        _admin: &Admin,
        change: impl FnOnce(&mut BTreeMap<String, GroupRecord>),
    ) -> Result<()> {
        if let Some(damage) = &self.groups.damage {
            return Err(damage.duplicate());
        }
        let mut all = self.groups.known.read().unwrap_or_else(PoisonError::into_inner).clone();
        change(&mut all);
        let records: Vec<GroupRecord> = all.values().cloned().collect();
        self.on_store(move |engine, dir| async move {
            small_file::write(&engine.io, &path_of(&dir), group::encode(&records).into()).await
        })
        .await?;
        *self.groups.known.write().unwrap_or_else(PoisonError::into_inner) = all;
        Ok(())
    }

    /// Refuses a name that a volume or a group has.
    ///
    /// # Errors
    /// `Conflict`; why nobody knows.
    pub(super) fn check_name_free(&self, name: &str) -> Result<()> {
        if self.has_volume(name) {
            return Err(Error::conflict(format!("volume {name} exists already")));
        }
        if self.groups()?.iter().any(|group| group.name == name) {
            return Err(Error::conflict(format!("group {name} exists already"))
                .hint("volumes and groups share one name space"));
        }
        Ok(())
    }

    /// Refuses what would take a volume out of its group's hands.
    ///
    /// # Errors
    /// `Conflict`; why nobody knows.
    pub(super) fn check_not_member(&self, volume: &str) -> Result<()> {
        match self.group_of(volume)? {
            None => Ok(()),
            Some(group) => Err(Error::conflict(format!("volume {volume} is in group {}", group.name))
                .hint(format!("'snapvol group remove {} {volume}' takes it out", group.name))),
        }
    }

    /// The snapshots that names mean, where a group stands for its volumes.
    pub(super) fn of_volumes(&self, names: &[SnapName]) -> Result<Vec<SnapName>> {
        let mut all = Vec::new();
        for name in names {
            for volume in self.volumes_of(name.volume.as_str()) {
                all.push(SnapName { volume: volume.parse()?, snapshot: name.snapshot.clone() });
            }
        }
        Ok(all)
    }
}

impl From<GroupRecord> for GroupInfo {
    fn from(group: GroupRecord) -> Self {
        let volumes = group.volumes().map(str::to_owned).collect();
        Self { name: group.name, uuid: group.uuid, volumes }
    }
}

impl Store {
    /// Does what is asked of groups, and returns those that it was about.
    ///
    /// # Errors
    /// `NotFound`, `Conflict`, `Invalid`; `Corrupt` while the file can't be read; `Io`, `Full`.
    pub fn group_request(&self, request: &GroupRequest) -> Result<Vec<GroupInfo>> {
        block_on(self.core.group_request(request))
    }
}
