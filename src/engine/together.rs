//! What the volumes of a group do as one: cut, commit what they received, change roles.
//!
//! Invariants:
//! - the cuts of a group have one instant and one number, and one entry of the store commits them;
//! - what the volumes of a group receive is shown by all of them or by none, whatever crash comes:
//!   one entry of the store commits it too;
//! - a turn of all volumes is decided by one write, of the session's record, and carried out after
//!   it; an open carries out what a crash left, before anybody sees the volumes.

use super::core::Core;
use super::groups::MEMBERS_MAX;
use super::roles::{Place, TakeOver};
use super::sets::{FeedSet, OpenFeed};
use super::snapshots::Taken;
use super::turns::Turn;
use crate::error::{Error, Result};
use crate::format::group::{GroupMember, GroupRecord};
use crate::format::session::{Condition, SessionRecord, Side, TurnIntent};
use crate::format::state::LINEAGE_MAX;
use crate::snapshot::Gate;
use crate::types::{Name, Role, RoleEpoch, SetId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use uuid::Uuid;

/// A group, as one store names it to another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupName {
    /// Its name, the same on both sides.
    pub name: String,
    /// Its identity.
    pub uuid: Uuid,
}

/// The sets of a group's volumes, which have arrived and are to be shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommitSets {
    /// The session.
    pub session: Uuid,
    /// The opening of the session that brought them.
    pub opening: Uuid,
    /// By volume at the receiver.
    pub sets: Vec<(String, SetId)>,
}

/// A line with that entry at its end.
#[must_use]
pub fn line_to(line: &[RoleEpoch], epoch: RoleEpoch) -> Vec<RoleEpoch> {
    let mut next = line.to_vec();
    if next.last() != Some(&epoch) {
        next.push(epoch);
    }
    let excess = next.len().saturating_sub(LINEAGE_MAX);
    next.drain(..excess);
    next
}

/// The snapshot that holds what was before a receive, and goes with its end.
type Hidden = Option<Uuid>;

impl Core {
    /// Has volumes be in one role epoch, in a new one if they are in several, or in none yet.
    ///
    /// # Errors
    /// `NotFound`, `Io`, `Full`; what one has done is of no harm then.
    pub async fn share_epoch(&self, volumes: &[String]) -> Result<RoleEpoch> {
        let mut lines = Vec::new();
        for volume in volumes {
            lines.push(self.lineage_of(volume).await?);
        }
        let lasts: BTreeSet<Option<Uuid>> =
            lines.iter().map(|l| l.last().map(|last| last.identity)).collect();
        if let [Some(_)] = lasts.iter().copied().collect::<Vec<_>>()[..]
            && let Some(shared) = lines.first().and_then(|line| line.last())
        {
            return Ok(*shared);
        }
        let counter = lines.iter().filter_map(|line| line.last()).map(|last| last.counter).max().unwrap_or(0);
        let epoch = RoleEpoch { counter: counter + 1, identity: self.new_identity().await? };
        for (volume, line) in volumes.iter().zip(lines) {
            let line = line_to(&line, epoch);
            self.with(volume, |volume| async move { volume.set_lineage(line).await }).await?;
        }
        Ok(epoch)
    }

    /// Takes a cut of each volume, all at one instant and under one number: all or none. It is done
    /// in the turns of all of them.
    ///
    /// # Errors
    /// As for a cut.
    pub async fn cut_together(&self, _turns: &[Turn], volumes: &[String]) -> Result<Vec<SetId>> {
        let admin = self.admin().await;
        let mut last = 0;
        for volume in volumes {
            last = last.max(self.last_cut(volume).await?);
        }
        let takes: Vec<_> = volumes.iter().map(|volume| (volume.clone(), Taken::Cut(last + 1))).collect();
        let sets = self.take_together(&admin, &takes).await?;
        sets.into_iter().collect::<Option<_>>().ok_or_else(|| Error::invalid("a cut has a stamp"))
    }

    /// Checks what a sender says of a group before anything is made for it.
    pub(super) fn check_group_opens(&self, group: &GroupName, opens: &[OpenFeed]) -> Result<()> {
        group.name.parse::<Name>()?;
        let names: BTreeSet<&str> = opens.iter().map(|open| open.volume.as_str()).collect();
        let one = |of: fn(&OpenFeed) -> Uuid| opens.iter().map(of).collect::<BTreeSet<_>>().len() == 1;
        let same = one(|open| open.session) && one(|open| open.opening) && one(|open| open.store);
        if !same || names.len() != opens.len() || opens.len() > MEMBERS_MAX {
            return Err(Error::invalid("the sender names the volumes of a group in no right way"));
        }
        if self.has_volume(&group.name) {
            return Err(Error::conflict(format!("there is a volume {} there", group.name))
                .hint("volumes and groups share one name space; rename one of them"));
        }
        let known = self.groups()?.into_iter().find(|known| known.name == group.name);
        if known.is_some_and(|known| known.uuid != group.uuid) {
            return Err(Error::conflict(format!("group {} there is another one", group.name))
                .hint("delete that one if it may go, or make this one under another name"));
        }
        for open in opens {
            if let Some(other) = self.group_of(&open.volume)?.filter(|other| other.uuid != group.uuid) {
                return Err(Error::conflict(format!(
                    "volume {} is in group {} there",
                    open.volume, other.name
                )));
            }
        }
        Ok(())
    }

    /// Makes the group of a session here, if there is none; which volumes it has changes with a
    /// commit.
    pub(super) async fn know_group(&self, group: &GroupName, opens: &[OpenFeed]) -> Result<()> {
        if self.group(&group.name).is_some() {
            return Ok(());
        }
        let names: Vec<&str> = opens.iter().map(|open| open.volume.as_str()).collect();
        self.set_group(&group.name, group.uuid, &names).await
    }

    async fn set_group(&self, name: &str, uuid: Uuid, volumes: &[&str]) -> Result<()> {
        let mut members = Vec::new();
        for volume in volumes {
            let (uuid, ..) = self.unit(volume).await?;
            members.push(GroupMember { volume: (*volume).to_owned(), uuid });
        }
        let admin = self.admin().await;
        self.write_group(&admin, GroupRecord { name: name.to_owned(), uuid, members }).await
    }

    /// Shows the sets of a group that have arrived: all of them or none. Said again, it does
    /// nothing.
    ///
    /// # Errors
    /// `Conflict` when one has not arrived, or for another opening; `Io`, `Full`, and nothing is
    /// shown then.
    pub async fn commit_sets(&self, commit: &CommitSets) -> Result<()> {
        let record = self.session(commit.session)?;
        let named: BTreeSet<&str> = commit.sets.iter().map(|(volume, _)| volume.as_str()).collect();
        let all: BTreeSet<&str> = record.members.iter().map(|member| member.volume.as_str()).collect();
        if named != all || named.len() != commit.sets.len() || record.group.is_none() {
            return Err(Error::conflict("the sets that are to be shown are not those of the group"));
        }
        {
            let admin = self.admin().await;
            for (volume, set) in &commit.sets {
                let (session, opening) = (commit.session, commit.opening);
                let (volume, set, keep, together) = (volume.clone(), *set, None, true);
                self.check_opening(&FeedSet { session, opening, volume, set, keep, together })?;
            }
            let (mut takes, mut hidden) = (Vec::new(), Vec::new());
            for (volume, set) in &commit.sets {
                if let Some(before) = self.waits(volume, *set).await? {
                    takes.push((volume.clone(), Taken::Arrived(set.target)));
                    hidden.push(before);
                }
            }
            if !takes.is_empty() && takes.len() < commit.sets.len() {
                return Err(Error::conflict("some volumes of the group show the set already"));
            }
            if !takes.is_empty() {
                self.take_together(&admin, &takes).await?;
                self.forget_hidden(&takes, hidden).await;
            }
        }
        self.after_commit(&record).await
    }

    /// Whether a set has arrived and waits; none: it is shown already.
    async fn waits(&self, volume: &str, set: SetId) -> Result<Option<Hidden>> {
        self.with(volume, move |volume| async move {
            if volume.cuts().iter().any(|cut| cut.uuid == set.target) {
                return Ok(None);
            }
            let half = volume.half_received().map(|(record, _)| record);
            let half = half.filter(|half| half.arrived && half.target == set.target);
            match half.filter(|half| half.set == Some(set.stamp)) {
                Some(half) => Ok(Some(half.before.filter(|_| half.base.is_none()))),
                None => Err(Error::conflict(format!(
                    "set {} of volume {} has not arrived",
                    set.stamp.number,
                    volume.name()
                ))),
            }
        })
        .await
    }

    /// What held the state from before whole sets goes; what is left of it goes at the next open.
    async fn forget_hidden(&self, takes: &[(String, Taken)], hidden: Vec<Hidden>) {
        for ((volume, _), hidden) in takes.iter().zip(hidden) {
            let Some(hidden) = hidden else { continue };
            let gone = self.with(volume, move |volume| async move { volume.delete(&[hidden]).await });
            if let Err(error) = gone.await {
                tracing::warn!("volume {volume}: the state from before stays for now: {error}");
            }
        }
    }

    /// What follows from sets that are shown now; done again after a crash.
    async fn after_commit(&self, record: &SessionRecord) -> Result<()> {
        for member in &record.members {
            self.finish_resync(&member.volume).await?;
            self.take_what_is_due(&member.volume).await;
        }
        let names: Vec<&str> = record.members.iter().map(|member| member.volume.as_str()).collect();
        let known = self.group(&record.unit);
        let is_same = known.is_some_and(|known| known.volumes().eq(sorted(&names)));
        match record.group {
            Some(uuid) if !is_same => self.set_group(&record.unit, uuid, &names).await,
            _ => Ok(()),
        }
    }

    /// Of a group that is to turn: sets that have all arrived, and wait, are taken in.
    async fn take_in_arrived(&self, record: &SessionRecord) -> Result<()> {
        let admin = self.admin().await;
        let (mut takes, mut hidden, mut numbers) = (Vec::new(), Vec::new(), BTreeSet::new());
        for member in &record.members {
            let half = self.with(&member.volume, |volume| async move { Ok(volume.half_received()) }).await?;
            let half = half.map(|(half, _)| half).filter(|half| half.arrived);
            let Some((half, set)) = half.and_then(|half| half.set.map(|set| (half, set))) else {
                return Ok(());
            };
            numbers.insert((set.epoch.identity, set.number));
            takes.push((member.volume.clone(), Taken::Arrived(half.target)));
            hidden.push(half.before.filter(|_| half.base.is_none()));
        }
        if numbers.len() == 1 {
            self.take_together(&admin, &takes).await?;
            self.forget_hidden(&takes, hidden).await;
        }
        Ok(())
    }

    /// All volumes of a group take their sender's place: one write decides it, and what is left of
    /// carrying it out after a crash is done by the next open. With an opening, only if no later one
    /// was recorded.
    ///
    /// # Errors
    /// `Conflict` when something changed meanwhile, or the volumes have not one state; `Io`, `Full`.
    pub async fn turn_group(
        &self,
        session: Uuid,
        opening: Option<Uuid>,
        turn: TurnIntent,
    ) -> Result<Option<SetId>> {
        let record = self.stop_feed(session, opening, Some(turn)).await?;
        self.carry_out_turn(&record).await
    }

    /// A group takes its sender's place because that one says so. Said again, it does what is left.
    /// Returns the line that its volumes are in.
    ///
    /// # Errors
    /// `Conflict` for an earlier opening, or when the newest state is another one; `Io`, `Full`.
    pub(super) async fn take_over_group(
        &self,
        record: &SessionRecord,
        opening: Uuid,
        take: &TakeOver,
    ) -> Result<Vec<RoleEpoch>> {
        let turnings = record.members.iter().map(|member| self.begin_turning(&member.volume));
        let _turnings = turnings.collect::<Result<Vec<_>>>()?;
        let begun = record.turn.as_ref().is_some_and(|turn| turn.operation == take.operation);
        let (mut done, mut restarts) = (true, Vec::new());
        for member in &record.members {
            let roles = self.roles(&member.volume).await?;
            done &= roles.operation == Some(take.operation);
            restarts.push(roles.restart);
        }
        let restart = if begun {
            self.carry_out_turn(record).await?
        } else if done {
            restarts.first().copied().flatten()
        } else {
            let wanted = take.restart.map(|set| (set.stamp.epoch, set.stamp.number));
            for member in &record.members {
                let newest = self.cuts(&member.volume).await?.pop().map(|cut| cut.set.stamp);
                if wanted.is_none() || newest.map(|stamp| (stamp.epoch, stamp.number)) != wanted {
                    return Err(Error::conflict(format!(
                        "volume {} does not show the last set",
                        member.volume
                    )));
                }
            }
            let epoch = take.lineage.last().copied().unwrap_or_default();
            let turn = TurnIntent { operation: take.operation, epoch, snapshot: String::new() };
            self.turn_group(record.session, Some(opening), turn).await?
        };
        if self.session(take.feed.session).is_err() {
            let feed = self.sender_record(&take.feed, restart).await?;
            self.change_session(take.feed.session, |known| Ok(known.unwrap_or(feed))).await?;
        }
        let first = record.members.first().map(|member| member.volume.clone()).unwrap_or_default();
        self.lineage_of(&first).await
    }

    /// Carries out what a session's record says of a turn; done again, it goes on.
    async fn carry_out_turn(&self, record: &SessionRecord) -> Result<Option<SetId>> {
        let Some(turn) = &record.turn else { return Err(Error::invalid("no turn was decided")) };
        for member in &record.members {
            self.wait_received(&member.volume).await?;
        }
        let mut begun = false;
        for member in &record.members {
            begun |= self.roles(&member.volume).await?.operation == Some(turn.operation);
        }
        if !begun && turn.snapshot.is_empty() {
            self.take_in_arrived(record).await?;
        }
        for member in &record.members {
            // None of them is written to before all of them are primaries.
            self.with(&member.volume, |volume| async move {
                volume.set_gate(Gate::HandingOver);
                Ok(())
            })
            .await?;
        }
        for member in &record.members {
            let roles = self.roles(&member.volume).await?;
            let (_, role, _) = self.unit(&member.volume).await?;
            if role == Role::Primary && roles.operation == Some(turn.operation) {
                continue;
            }
            let lineage = line_to(&self.lineage_of(&member.volume).await?, turn.epoch);
            let snapshot = Some(turn.snapshot.clone()).filter(|name| !name.is_empty());
            self.take_place(&member.volume, Place { operation: turn.operation, lineage, snapshot }).await?;
        }
        let restart = self.end_group_turn(record).await?;
        for member in &record.members {
            self.with(&member.volume, |volume| async move {
                volume.set_gate(Gate::Open);
                Ok(())
            })
            .await?;
        }
        Ok(restart)
    }

    /// Writes down at the session from which states its volumes went on.
    async fn end_group_turn(&self, record: &SessionRecord) -> Result<Option<SetId>> {
        let mut restarts = Vec::new();
        for member in &record.members {
            restarts.push(self.roles(&member.volume).await?.restart);
        }
        let first = restarts.first().copied().flatten();
        let ended = self.change_session(record.session, |known| {
            let mut record = known.ok_or_else(|| Error::not_found("the session is gone"))?;
            (record.condition, record.turn) = (Condition::Turned, None);
            for (member, restart) in record.members.iter_mut().zip(restarts) {
                (member.durable, member.applied) = (restart, restart);
            }
            Ok(record)
        });
        ended.await?;
        Ok(first)
    }

    /// At an open: carries out turns of groups that a crash interrupted, and has the sessions of a
    /// group be about its volumes.
    pub(super) async fn finish_groups(&self) {
        for record in self.sessions() {
            if record.side == Side::Receiver && record.turn.is_some() {
                match self.carry_out_turn(&record).await {
                    Ok(_) => tracing::warn!("group {}: a change of roles was carried out", record.unit),
                    Err(error) => tracing::error!(
                        "group {0}: a change of roles is not complete: {error}; 'snapvol failover {0}' goes on",
                        record.unit
                    ),
                }
            }
        }
        for group in self.groups().unwrap_or_default() {
            if let Err(error) = self.follow_membership(&group).await {
                tracing::error!("group {}: its sessions are not about its volumes: {error}", group.name);
            }
        }
    }

    /// Has the sessions that send a group be about the volumes that it has now.
    pub(super) async fn follow_membership(&self, group: &GroupRecord) -> Result<()> {
        let sessions = self.sessions().into_iter();
        for session in sessions.filter(|s| s.side == Side::Sender && s.group == Some(group.uuid)) {
            let before: Vec<String> = session.members.iter().map(|m| m.volume.clone()).collect();
            if group.volumes().eq(before.iter().map(String::as_str)) {
                continue;
            }
            self.change_session(session.session, |known| {
                let mut record = known.ok_or_else(|| Error::not_found("the session is gone"))?;
                let members = group.members.iter().map(|member| match record.member(&member.volume) {
                    Some(known) => known.clone(),
                    None => super::sets::fresh_member(&member.volume, member.uuid),
                });
                record.members = members.collect();
                Ok(record)
            })
            .await?;
            for volume in before.iter().filter(|volume| !group.has(volume) && self.has_volume(volume)) {
                self.prune_sent(volume).await?;
            }
        }
        Ok(())
    }
}

fn sorted<'a>(names: &[&'a str]) -> impl Iterator<Item = &'a str> {
    let mut names = names.to_vec();
    names.sort_unstable();
    names.into_iter()
}
