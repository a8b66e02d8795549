//! Resync: a volume that was the primary follows another line, from a state that both have.
//!
//! Nothing is undone: what this side has of its own becomes a snapshot with a name and a hold, and
//! one ordinary receive brings the other side's state above it. It brings all blocks that
//! changed on either side since the common state, with the other side's content. Until its Take
//! commits, the volume shows what it had; that record also ends the resync and takes over the
//! other side's line.

use super::core::Core;
use super::roles::{Seen, check_of, same, writers};
use super::sets::{Diverged, OpenFeed, Relation, fresh_member, relation};
use crate::error::{Error, ErrorKind, Result};
use crate::format::roles::{ResyncRecord, TurnRecord};
use crate::format::session::{Condition, SessionPolicy, SessionRecord, Side};
use crate::snapshot::{Delta, Gate, TakeRequest, Volume};
use crate::types::{Role, RoleEpoch, Standing};
use serde::{Deserialize, Serialize};
use std::rc::Rc;
use uuid::Uuid;

/// The tag that holds what a side had of its own.
const HOLD: &str = "resync";
/// How the snapshot of that is called, before its number.
const DIVERGED: &str = "diverged-";
/// Ranges in one answer.
pub const RANGES_MAX: usize = 4096;

/// Whom a volume is to be fed by, and how that one reaches it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FeedBack {
    /// The volume that is the primary.
    pub volume: String,
    /// The session to come.
    pub session: Uuid,
    /// The volume that is to be fed, as a destination.
    pub destination: String,
    /// The program to run there; empty: `snapvol`.
    pub remote_command: String,
    /// The volume that is the primary, as a destination.
    pub way_back: String,
    /// The program to run there.
    pub way_back_command: String,
    /// How it is to be fed.
    pub policy: SessionPolicy,
}

/// What a resync is to be.
#[derive(Clone, Debug)]
pub struct ResyncPlan<'a> {
    /// The store of the volume that is the primary.
    pub peer: Uuid,
    /// The session to come.
    pub session: Uuid,
    /// How that volume stands.
    pub theirs: &'a Seen,
    /// A whole copy is agreed to.
    pub full: bool,
    /// Writers are disconnected.
    pub force: bool,
}

impl Core {
    /// The resync that a volume is in.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn resync_of(&self, volume: &str) -> Result<Option<ResyncRecord>> {
        Ok(self.roles(volume).await?.resync)
    }

    /// Begins a resync: no more writes, what is here is kept under a name, and the volume is a
    /// secondary that shows it.
    ///
    /// # Errors
    /// `Conflict` when writers are connected, when the other line is not one to follow, or when
    /// there is no state in common; `Io`, `Full`.
    pub async fn begin_resync(&self, volume: &str, plan: &ResyncPlan<'_>) -> Result<ResyncRecord> {
        let common = self.check_resync(volume, plan.theirs, plan.full, plan.force).await?;
        let common = common.filter(|_| !plan.full);
        let (session, peer, lineage) = (plan.session, plan.peer, plan.theirs.lineage.clone());
        self.on_engine(volume, move |engine, name| async move {
            let volume = engine.volume(&name)?;
            if volume.role() != Role::Primary {
                return Err(Error::conflict(format!("volume {name} is no primary")));
            }
            if volume.roles().standing != Standing::Fenced {
                let fenced = TurnRecord { standing: Standing::Fenced, ..same(&volume) };
                volume.turn(&check_of(&volume), fenced).await?;
            }
            volume.set_gate(Gate::Open);
            engine.clients.disconnect(&name, false).await;
            volume.writers_done().await?;
            debug_assert_eq!(writers(&engine, &name), 0, "a fenced volume has no writers");
            let diverged = keep_own(&volume).await?;
            let resync = ResyncRecord { session, peer, common, diverged, lineage };
            let turn = TurnRecord {
                role: Role::Secondary,
                standing: Standing::Open,
                restart: None,
                operation: Some(session),
                resync: Some(resync.clone()),
                ..same(&volume)
            };
            volume.turn(&check_of(&volume), turn).await?;
            volume.set_split(false);
            Ok(resync)
        })
        .await
    }

    /// Whether a volume may be resynced; the youngest state that both sides have.
    ///
    /// # Errors
    /// As for [`Self::begin_resync`].
    pub async fn check_resync(
        &self,
        volume: &str,
        theirs: &Seen,
        full: bool,
        force: bool,
    ) -> Result<Option<Uuid>> {
        let ours = self.look(volume).await?;
        check_theirs(volume, &ours.lineage, theirs)?;
        if ours.writers > 0 && !force {
            return Err(Error::conflict(format!("volume {volume} has {} writers connected", ours.writers))
                .hint("disconnect them, or use --force"));
        }
        let common = ours.held.iter().copied().find(|held| theirs.held.contains(held));
        if common.is_none() && !full {
            return Err(Error::conflict(format!(
                "volume {volume} has no state in common with the other side"
            ))
            .hint("--full ships the other side's state whole; what is here is kept as a snapshot"));
        }
        Ok(common)
    }

    /// At the primary: makes the session that feeds a volume back, if there is none yet.
    ///
    /// # Errors
    /// `Conflict` when the volume is no primary; `Invalid`; `Io`.
    pub async fn feed_back(&self, asked: &FeedBack) -> Result<()> {
        for volume in self.volumes_of(&asked.volume) {
            let seen = self.look(&volume).await?;
            if seen.role != Role::Primary || !seen.standing.is_open() {
                return Err(Error::conflict(format!("volume {volume} is no primary there")));
            }
        }
        if self.session(asked.session).is_ok() {
            return Ok(());
        }
        let record = self.sender_record(asked, None).await?;
        self.change_session(asked.session, |known| Ok(known.unwrap_or(record))).await.map(drop)
    }

    /// The record of a session that goes the other way than the one before it.
    pub(super) async fn sender_record(
        &self,
        asked: &FeedBack,
        mark: Option<crate::types::SetId>,
    ) -> Result<SessionRecord> {
        let group = self.group(&asked.volume);
        let mut members = Vec::new();
        for volume in self.volumes_of(&asked.volume) {
            let (uuid, _, _) = self.unit(&volume).await?;
            let mut member = fresh_member(&volume, uuid);
            let marked = match (&group, mark) {
                (Some(_), Some(_)) => self.roles(&volume).await?.restart,
                _ => mark,
            };
            (member.durable, member.applied) = (marked, marked);
            if group.is_none() {
                // What is not yet told by the destination, the first connection tells.
                let far = asked.destination.rsplit('/').next().unwrap_or_default();
                member.far_volume = far.parse::<crate::types::Name>()?.to_string();
            }
            members.push(member);
        }
        // Hooks are commands of the host that they were written for.
        let hook = String::new;
        let policy =
            SessionPolicy { before_cut: hook(), after_cut: hook(), on_error: hook(), ..asked.policy.clone() };
        Ok(SessionRecord {
            session: asked.session,
            side: Side::Sender,
            unit: asked.volume.clone(),
            peer_store: None,
            destination: asked.destination.clone(),
            remote_command: asked.remote_command.clone(),
            way_back: asked.way_back.clone(),
            way_back_command: asked.way_back_command.clone(),
            opening: None,
            condition: Condition::Running,
            policy,
            members,
            group: group.map(|group| group.uuid),
            turn: None,
        })
    }

    /// At the primary: forgets a session by which it was to feed a volume back.
    ///
    /// # Errors
    /// `Conflict` when it is no such session; `Io`.
    pub async fn stop_feed_back(&self, session: Uuid) -> Result<()> {
        match self.session(session) {
            Err(_) => Ok(()),
            Ok(record) if record.side == Side::Sender => {
                self.forget_session(session).await?;
                for member in &record.members {
                    self.prune_sent(&member.volume).await?;
                }
                Ok(())
            }
            Ok(_) => Err(Error::conflict("the session is not sent from there")),
        }
    }

    /// Gives a resync up: the volume is fenced again, with what it had of its own. Returns the
    /// session by which it was to be fed.
    ///
    /// # Errors
    /// `NotFound` when there is none; `Conflict` while a set is being received; `Io`.
    pub async fn abort_resync(&self, volume: &str) -> Result<Uuid> {
        let Some(resync) = self.resync_of(volume).await? else {
            return Err(Error::not_found(format!("no resync of volume {volume} is under way"))
                .hint("one whose state has arrived is over: the volume follows"));
        };
        if self.session(resync.session).is_ok_and(|record| record.side == Side::Receiver) {
            // What it still brings is refused, so what is half received can be dropped.
            self.forget_session(resync.session).await?;
        }
        self.wait_received(volume).await?;
        self.with(volume, |volume| async move {
            match volume.receive_abort().await {
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                aborted => aborted?,
            }
            if volume.roles().resync.is_none() {
                return Err(Error::conflict(format!(
                    "the resync of volume {} has just ended",
                    volume.name()
                )));
            }
            let turn = TurnRecord {
                role: Role::Primary,
                standing: Standing::Fenced,
                operation: None,
                resync: None,
                ..same(&volume)
            };
            volume.turn(&check_of(&volume), turn).await?;
            release_own(&volume).await
        })
        .await?;
        // The session may have been opened again meanwhile.
        if let Some(left) = self.fed_by(volume) {
            self.forget_session(left.session).await?;
        }
        Ok(resync.session)
    }

    /// After the state of the other side has arrived: what was held for the resync is released,
    /// and sessions by which this volume was sent go.
    ///
    /// # Errors
    /// `Io`.
    pub(super) async fn finish_resync(&self, volume: &str) -> Result<()> {
        let over = self.with(volume, |volume| async move {
            let over = volume.role() == Role::Secondary && volume.roles().resync.is_none();
            if over {
                release_own(&volume).await?;
            }
            Ok(over)
        });
        if over.await? {
            for old in self.sessions_of(volume, Side::Sender) {
                // It tells the others of a group, after a crash, what became of a handover.
                if !self.has_primary(&old).await? {
                    self.forget_session(old.session).await?;
                }
            }
        }
        Ok(())
    }

    async fn has_primary(&self, session: &SessionRecord) -> Result<bool> {
        for member in &session.members {
            if self.unit(&member.volume).await?.1 == Role::Primary {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// No client writes to a volume any more, durably, and those that were let in are done: what a
    /// group's resync begins with, so that what its volumes keep is of one instant.
    ///
    /// # Errors
    /// `Conflict` when writers are connected, unless forced; `Io`, `Full`.
    pub async fn stop_writers(&self, volume: &str, force: bool) -> Result<()> {
        self.on_engine(volume, move |engine, name| async move {
            let volume = engine.volume(&name)?;
            let count = writers(&engine, &name);
            if count > 0 && !force {
                return Err(Error::conflict(format!("volume {name} has {count} writers connected"))
                    .hint("disconnect them, or use --force"));
            }
            if volume.role() == Role::Primary && volume.roles().standing != Standing::Fenced {
                let fenced = TurnRecord { standing: Standing::Fenced, ..same(&volume) };
                volume.turn(&check_of(&volume), fenced).await?;
            }
            volume.set_gate(Gate::Open);
            engine.clients.disconnect(&name, false).await;
            volume.writers_done().await
        })
        .await
    }

    /// Whether an opening is the one that a resync waits for; then what the receiver answers.
    ///
    /// # Errors
    /// `Conflict` when a resync waits for another one; `Io`.
    pub(super) async fn open_resync(&self, open: &OpenFeed) -> Result<Option<Diverged>> {
        let Some(resync) = self.resync_of(&open.volume).await? else { return Ok(None) };
        if resync.session != open.session || resync.peer != open.store {
            return Err(Error::conflict(format!(
                "volume {} waits for the state of another store, to be resynced with that",
                open.volume
            )));
        }
        let (lineage, ours) = (open.lineage.clone(), self.lineage_of(&open.volume).await?);
        check_line(&open.volume, &ours, &lineage)?;
        let diverged = self.with(&open.volume, move |volume| async move {
            if resync.lineage != lineage {
                // It may have changed roles since; what comes now belongs to that line, and what is
                // half received is of no use.
                match volume.receive_abort().await {
                    Err(error) if error.kind() == ErrorKind::NotFound => {}
                    aborted => aborted?,
                }
                let resync = Some(ResyncRecord { lineage, ..resync.clone() });
                volume.turn(&check_of(&volume), TurnRecord { resync, ..same(&volume) }).await?;
            }
            let reader = volume.open_snapshot_by_id(resync.diverged)?;
            Ok(Diverged { shown: resync.diverged, size: reader.size(), common: resync.common })
        });
        diverged.await.map(Some)
    }

    /// A volume's role epochs.
    pub(super) async fn lineage_of(&self, volume: &str) -> Result<Vec<RoleEpoch>> {
        self.with(volume, |volume| async move { Ok(volume.lineage()) }).await
    }

    /// What changed at this side since the state in common, from a byte on: ranges, and where the
    /// next question begins.
    ///
    /// # Errors
    /// `Conflict` when no resync is under way for that session; `Corrupt`, `Io`.
    pub async fn changes(
        &self,
        session: Uuid,
        volume: &str,
        from: u64,
    ) -> Result<(Vec<(u64, u64)>, Option<u64>)> {
        let resync = self.resync_of(volume).await?.filter(|resync| resync.session == session);
        let Some(resync) = resync else {
            return Err(Error::conflict(format!("volume {volume} is in no resync by this session")));
        };
        let Some(common) = resync.common else { return Ok((Vec::new(), None)) };
        self.changed_extents(volume, common, resync.diverged, from).await
    }

    /// What changed from one state to another, at most [`RANGES_MAX`] ranges from a byte on.
    async fn changed_extents(
        &self,
        volume: &str,
        base: Uuid,
        target: Uuid,
        from: u64,
    ) -> Result<(Vec<(u64, u64)>, Option<u64>)> {
        self.with(volume, move |volume| async move {
            if base == target {
                return Ok((Vec::new(), None));
            }
            // Of the state in common there may be a bookmark only.
            let _base = match volume.bookmark(base) {
                Some(_) => None,
                None => Some(volume.open_snapshot_by_id(base)?),
            };
            let _target = volume.open_snapshot_by_id(target)?;
            let delta = volume.delta_within(Some(base), Some(target), from..u64::MAX).await?;
            let mut runs = delta.runs(from..delta.size).map(|run| run.bytes);
            let ranges: Vec<_> = runs.by_ref().take(RANGES_MAX).collect();
            let next = runs.next().map(|run| run.start);
            Ok((ranges.into_iter().map(|run| (run.start, run.end - run.start)).collect(), next))
        })
        .await
    }

    /// At the primary: a volume of that store follows by `session` now. So the state from which
    /// this volume once took its place need not be kept any more, and no other session leads there.
    ///
    /// # Errors
    /// `Io`.
    pub async fn forget_earlier(&self, session: Uuid, volume: &str, peer: Uuid) -> Result<()> {
        let Ok(record) = self.session(session) else { return Ok(()) };
        let far = record.member(volume).map(|member| member.far_volume.clone());
        for old in self.sessions_of(volume, Side::Receiver) {
            if old.condition == Condition::Turned && old.peer_store == Some(peer) {
                self.forget_session(old.session).await?;
            }
        }
        for old in self.sessions_of(volume, Side::Sender) {
            let there = old.member(volume).map(|member| member.far_volume.clone());
            if old.session != session && old.peer_store == Some(peer) && there == far {
                self.forget_session(old.session).await?;
            }
        }
        Ok(())
    }
}

/// Refuses to follow what is no primary, or a line that is not ahead of the own one.
fn check_theirs(volume: &str, ours: &[RoleEpoch], theirs: &Seen) -> Result<()> {
    if theirs.role != Role::Primary || !theirs.standing.is_open() {
        return Err(Error::conflict(format!("the other side of volume {volume} is no primary"))
            .hint("make it the primary there first, with 'failover' or 'promote'"));
    }
    check_line(volume, ours, &theirs.lineage)
}

fn check_line(volume: &str, ours: &[RoleEpoch], theirs: &[RoleEpoch]) -> Result<()> {
    if theirs.is_empty() || ours.last() == theirs.last() || relation(ours, theirs) == Relation::Fenced {
        return Err(Error::conflict(format!("the other side of volume {volume} is not ahead of it"))
            .hint("a resync is for the side that lost its role, not for the one that has it"));
    }
    Ok(())
}

/// Keeps what is here as a snapshot with a name and a hold; one that an interrupted attempt made
/// will do if nothing changed since.
async fn keep_own(volume: &Rc<Volume>) -> Result<Uuid> {
    let known = volume.snapshots().into_iter().rev().find(|record| record.name.starts_with(DIVERGED));
    let mut own = None;
    if let Some(record) = known {
        let same_size = record.size == volume.geometry().size;
        if same_size && volume.delta_between(Some(record.uuid), None).await?.is_empty() {
            own = Some((record.uuid, record.name, record.holds));
        }
    }
    let (uuid, name, holds) = match own {
        Some(own) => own,
        None => {
            let taken: Vec<String> = volume.snapshots().into_iter().map(|record| record.name).collect();
            let mut number = 1u64;
            while taken.contains(&format!("{DIVERGED}{number}")) {
                number += 1;
            }
            let (uuid, name) = (volume.io().identity(), format!("{DIVERGED}{number}"));
            let created_us = volume.io().now_us();
            let request =
                TakeRequest { uuid, name: name.clone(), created_us, batch: None, received: false, set: None };
            volume.take(request).await?;
            (uuid, name, Vec::new())
        }
    };
    if !holds.iter().any(|tag| tag == HOLD) {
        volume.hold(&name, HOLD).await?;
    }
    Ok(uuid)
}

/// Lets go of what was held for a resync.
async fn release_own(volume: &Rc<Volume>) -> Result<()> {
    for record in volume.snapshots() {
        if record.name.starts_with(DIVERGED) && record.holds.iter().any(|tag| tag == HOLD) {
            volume.release(&record.name, HOLD).await?;
        }
    }
    Ok(())
}

/// Adds ranges to a delta: what `target` uses there is written, the rest discarded.
pub(super) async fn unite(
    volume: &Rc<Volume>,
    delta: &mut Delta,
    target: Uuid,
    ranges: &[(u64, u64)],
) -> Result<()> {
    /// Ranges closer than this are looked at together.
    const NEAR: u64 = 128 << 20;
    let size = u64::from(delta.block_size);
    let end = delta.size.div_ceil(size);
    let mut rest = ranges;
    while let Some((start, _)) = rest.first().copied() {
        let mut stop = start;
        let count = rest
            .iter()
            .take_while(|(at, len)| {
                let near = *at <= stop.saturating_add(NEAR);
                stop = stop.max(at.saturating_add(*len));
                near
            })
            .count();
        let (near, after) = rest.split_at(count.max(1));
        rest = after;
        let used = volume.delta_within(None, Some(target), start..stop.min(delta.size).max(start)).await?;
        for (at, len) in near {
            let blocks = (at / size).min(end)..at.saturating_add(*len).div_ceil(size).min(end);
            for (run, in_use) in used.write.runs(blocks) {
                let (to, from) = match in_use {
                    true => (&mut delta.write, &mut delta.discard),
                    false => (&mut delta.discard, &mut delta.write),
                };
                to.set_range(run.clone());
                from.clear_range(run);
            }
        }
    }
    Ok(())
}
