//! Failover of a group: all its volumes take their senders' place, or none.
//!
//! Invariants, beside those of a failover:
//! - the volumes go on from one state of the group;
//! - one write decides it for all of them, and what is left of carrying it out after a crash is done
//!   by the same command or by the next open of the store.

use super::failover::{Port, Report, Request, Sender, decide, look};
use super::sender::volumes_of;
use crate::engine::core::Core;
use crate::engine::rfc3339;
use crate::engine::roles::RoleRequest;
use crate::engine::together::line_to;
use crate::error::{Error, Result};
use crate::format::session::{SessionRecord, TurnIntent};
use crate::types::{Role, RoleEpoch, SetStamp};
use std::collections::BTreeSet;

/// What is known of a group's volumes here.
struct State {
    volumes: Vec<String>,
    all_primary: bool,
    /// The stamp of the set that all of them show.
    newest: Option<SetStamp>,
    last: RoleEpoch,
    received_us: u64,
    /// The number of a set that is half received.
    half: Option<u64>,
}

/// Makes a group the primary in its sender's place, or says what that would do.
///
/// # Errors
/// As for a failover of a volume.
pub(super) async fn run<P: Port>(core: &Core, port: &mut P, request: &Request) -> Result<Report> {
    let name = request.volume.as_str();
    let turned = core.turned_unit(name);
    let Some(session) = core.fed_unit(name).or_else(|| turned.clone()) else {
        return Err(Error::conflict(format!("group {name} follows no primary by a session")));
    };
    let state = state_of(core, &session, request).await?;
    let newest = state.newest.map(|stamp| stamp.number);
    let age = port.now_us().saturating_sub(state.received_us);
    #[allow(clippy::cast_precision_loss, reason = "an age for people")]
    let age_seconds = (state.received_us > 0).then_some(age as f64 / 1e6);
    let mut report = Report {
        volume: name.to_owned(),
        number: newest,
        snapshot: request.snapshot.clone(),
        received: (state.received_us > 0).then(|| rfc3339(state.received_us)),
        age_seconds,
        dropped: state.half,
        way_back: session.way_back.clone(),
        group: true,
        ..Report::default()
    };
    if state.all_primary && turned.is_some() && session.turn.is_none() {
        (report.done, report.already, report.epoch) = (true, true, state.last.counter);
        (report.dropped, report.sender) = (None, Sender::NotAsked);
        return Ok(report);
    }
    let turn = match &session.turn {
        Some(turn) => turn.clone(),
        None => {
            check_whole(name, &state)?;
            let (operation, identity) = (core.new_identity().await?, core.new_identity().await?);
            let epoch = RoleEpoch { counter: state.last.counter + 1, identity };
            TurnIntent { operation, epoch, snapshot: request.snapshot.clone().unwrap_or_default() }
        }
    };
    report.epoch = turn.epoch.counter;
    let (sender, silence, _) = look(port, &session, request.now).await;
    (report.sender, report.silence) = (sender, silence);
    decide(sender, request, &session.way_back)?;
    if request.dry_run {
        return Ok(report);
    }
    fence(core, port, &session, sender, turn.epoch).await?;
    let turnings = state.volumes.iter().map(|volume| core.begin_turning(volume));
    let _turnings = turnings.collect::<Result<Vec<_>>>()?;
    let restart = core.turn_group(session.session, None, turn).await?;
    report.number = restart.map(|set| set.stamp.number);
    report.done = true;
    Ok(report)
}

async fn state_of(core: &Core, session: &SessionRecord, request: &Request) -> Result<State> {
    let mut state = State {
        volumes: volumes_of(session),
        all_primary: true,
        newest: None,
        last: RoleEpoch::default(),
        received_us: 0,
        half: None,
    };
    let mut stamps = BTreeSet::new();
    for volume in &state.volumes {
        let (_, role, _) = core.unit(volume).await?;
        state.all_primary &= role == Role::Primary;
        let roles = core.roles(volume).await?;
        if roles.resync.is_some() {
            return Err(Error::conflict(format!("a resync of volume {volume} is under way"))
                .hint(format!("'snapvol resync {} --abort' ends it", request.volume)));
        }
        if let Some(snapshot) = &request.snapshot {
            let found = core.list(Some(volume)).await?.volumes.into_iter().next();
            if !found.is_some_and(|info| info.snapshots.iter().any(|known| known.name == *snapshot)) {
                return Err(Error::not_found(format!("volume {volume} has no snapshot {snapshot}"))
                    .hint(format!("'snapvol list {volume}' shows those there are")));
            }
        }
        let stamp = core.cuts(volume).await?.pop().map(|cut| cut.set.stamp);
        stamps.insert(stamp.map(|stamp| (stamp.epoch.identity, stamp.number)));
        state.newest = stamp;
        state.received_us = state.received_us.max(roles.received_us);
        state.half = state.half.max(core.half_number(volume).await?);
        let last = core.look(volume).await?.lineage.last().copied().unwrap_or_default();
        if last.counter >= state.last.counter {
            state.last = last;
        }
    }
    if stamps.len() != 1 {
        state.newest = None;
    }
    Ok(state)
}

/// No failover before every volume is whole, at one state of the group.
fn check_whole(name: &str, state: &State) -> Result<()> {
    if state.newest.is_some() {
        return Ok(());
    }
    Err(Error::conflict(format!("the volumes of group {name} have no whole state in common yet"))
        .hint("the first copy of one of them has not ended: there is nothing to go on from"))
}

/// The old primary takes no writes any more, where it can be told.
async fn fence<P: Port>(
    core: &Core,
    port: &mut P,
    session: &SessionRecord,
    sender: Sender,
    epoch: RoleEpoch,
) -> Result<()> {
    if !matches!(sender, Sender::Answers | Sender::NotServed) {
        return Ok(());
    }
    for member in &session.members {
        let lineage = line_to(&core.look(&member.volume).await?.lineage, epoch);
        let (volume, session_id) = (member.far_volume.clone(), session.session);
        let request = RoleRequest::Fence { volume, session: session_id, lineage };
        match port.ask(&session.way_back, &session.way_back_command, request).await {
            Ok(_) => {}
            // Nobody writes there; it is fenced as soon as it opens its session.
            Err(error) if sender == Sender::NotServed => {
                tracing::warn!("the old primary is not fenced: {error}");
            }
            Err(error) => return Err(error.context("the primary can't be fenced")),
        }
    }
    Ok(())
}
