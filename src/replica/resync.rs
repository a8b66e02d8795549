//! Resync: a volume that was the primary follows the one that took its place.
//!
//! The other side is asked before anything is changed here, and is asked to feed this volume after
//! everything here is recorded; so whatever crash comes, the same command goes on. What arrives is
//! the business of the session that the other side makes.

use super::failover::Port;
use super::manage::{destination_of, way_to};
use crate::engine::Store;
use crate::engine::core::Core;
use crate::engine::resync::{FeedBack, ResyncPlan};
use crate::engine::roles::{RoleAnswer, RoleRequest, Seen};
use crate::error::{Error, ErrorKind, Result};
use crate::format::roles::ResyncRecord;
use crate::format::session::{SessionPolicy, SessionRecord, Side};
use crate::transport::Destination;
use futures::executor::block_on;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// What the owner wants.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Request {
    /// The volume here.
    pub volume: String,
    /// The volume that is the primary, as a destination; none: where the volume was sent to.
    pub from: Option<String>,
    /// The program to run there.
    pub remote_command: Option<String>,
    /// How the volume here is reached from there, as a destination; none: what is known.
    pub way_back: Option<String>,
    /// The program to run here then.
    pub way_back_command: Option<String>,
    /// All is to be shipped.
    pub full: bool,
    /// Writers are disconnected.
    pub force: bool,
    /// A resync under way is given up.
    pub abort: bool,
}

/// What a resync has begun, or given up.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The volume.
    pub volume: String,
    /// The session that brings the other side's state.
    pub session: Uuid,
    /// The snapshot of what was here.
    pub kept: Option<String>,
    /// Only what changed on either side is shipped.
    pub delta: bool,
    /// Where that comes from.
    pub from: String,
    /// A daemon serves the other side, so it comes by itself.
    pub served: bool,
    /// What the owner should know besides.
    pub note: Option<String>,
}

/// How the other side is reached, and how it reaches this one.
struct Ways {
    from: Destination,
    command: String,
    way_back: String,
    way_back_command: String,
    policy: SessionPolicy,
}

fn ways(core: &Core, request: &Request) -> Result<Ways> {
    let volume = request.volume.as_str();
    let mut sessions: Vec<SessionRecord> = core.sessions_named(volume, Side::Sender);
    let said = request.from.as_ref().map(|from| destination_of(core, volume, from)).transpose()?;
    let said = said.map(|said| said.to_string());
    sessions.retain(|record| said.as_ref().is_none_or(|from| record.destination == *from));
    // An attempt that was given up may have left another one that leads to the same place.
    sessions.sort_by(|a, b| a.destination.cmp(&b.destination));
    sessions.dedup_by(|a, b| a.destination == b.destination);
    let known = match &sessions[..] {
        [] if request.from.is_none() => {
            return Err(Error::conflict(format!("volume {volume} was sent nowhere"))
                .hint("name the volume that is the primary: ssh://HOST/STORE/VOL, or /STORE/VOL"));
        }
        [] => None,
        [one] => Some(one.clone()),
        _ => {
            return Err(Error::invalid(format!("volume {volume} was sent to several places"))
                .hint("name the one that is the primary now"));
        }
    };
    let from = said.or_else(|| known.as_ref().map(|known| known.destination.clone()));
    let from: Destination = from.unwrap_or_default().parse()?;
    let text = |text: fn(&SessionRecord) -> &String| known.as_ref().map(text).cloned().unwrap_or_default();
    let way_back = match &request.way_back {
        Some(way) => destination_of(core, volume, way)?.to_string(),
        None if known.as_ref().is_some_and(|known| !known.way_back.is_empty()) => {
            text(|known| &known.way_back)
        }
        None if from.host.is_none() => way_to(core, volume).unwrap_or_default(),
        None => String::new(),
    };
    if way_back.is_empty() {
        return Err(Error::conflict(format!("{from} does not know how to reach volume {volume}"))
            .hint("say it with --way-back ssh://HOST/STORE/VOL, as seen from there"));
    }
    Ok(Ways {
        from,
        command: request.remote_command.clone().unwrap_or_else(|| text(|known| &known.remote_command)),
        way_back,
        way_back_command: request
            .way_back_command
            .clone()
            .unwrap_or_else(|| text(|known| &known.way_back_command)),
        policy: known.map(|known| known.policy).unwrap_or_default(),
    })
}

async fn look<P: Port>(port: &mut P, ways: &Ways, volume: &str) -> Result<Seen> {
    let look = RoleRequest::Look { volume: volume.to_owned() };
    match port.ask(&ways.from.to_string(), &ways.command, look).await {
        Ok(RoleAnswer::Seen(seen)) => Ok(*seen),
        Ok(RoleAnswer::Done) => Err(Error::invalid("the other side says something else than was asked")),
        Err(error) => {
            let hint = error.hint_text().unwrap_or("a resync needs the volume that is the primary now");
            Err(Error::new(error.kind(), error.to_string()).hint(hint.to_owned()))
        }
    }
}

/// Begins a resync, or goes on with one.
///
/// # Errors
/// `Conflict` when the other side is not ahead, when writers are connected, or when there is no
/// state in common; `Interrupted` when the other side can't be reached; `Io`, `Full`.
pub(crate) async fn run<P: Port>(core: &Core, port: &mut P, request: &Request) -> Result<Report> {
    let unit = request.volume.as_str();
    let group = core.group(unit);
    if group.is_none() {
        core.check_alone(unit, "resync")?;
    }
    let volumes = core.volumes_of(unit);
    let mut known = Vec::new();
    for volume in &volumes {
        known.push(core.resync_of(volume).await?);
    }
    let ways = ways(core, request)?;
    let mut seen = Vec::new();
    for volume in &volumes {
        // Those of a group have the same names on both sides.
        let there = if group.is_some() { volume.as_str() } else { ways.from.volume.as_str() };
        seen.push(look(port, &ways, there).await?);
    }
    let peer = seen.first().map(|seen| seen.store).unwrap_or_default();
    if known.iter().flatten().any(|known| known.peer != peer) {
        return Err(Error::conflict(format!("{unit} is in a resync from another store"))
            .hint(format!("'snapvol resync {unit} --abort' ends that one")));
    }
    // What an interrupted attempt has begun goes on, under its session.
    let session = match known.iter().flatten().next() {
        Some(known) => known.session,
        None => core.new_identity().await?,
    };
    if group.is_some() {
        stop_all(core, &volumes, &known, &seen, request).await?;
    }
    let mut begun = Vec::new();
    for ((volume, known), theirs) in volumes.iter().zip(known).zip(&seen) {
        let plan = ResyncPlan { peer, session, theirs, full: request.full, force: request.force };
        begun.push(match known {
            Some(known) => known,
            None => core.begin_resync(volume, &plan).await?,
        });
    }
    let (Some(resync), Some(volume)) = (begun.first(), volumes.first()) else {
        return Err(Error::invalid("a group has one volume at least"));
    };
    let asked = FeedBack {
        volume: ways.from.volume.to_string(),
        session,
        destination: ways.way_back,
        remote_command: ways.way_back_command,
        way_back: ways.from.to_string(),
        way_back_command: ways.command.clone(),
        policy: ways.policy,
    };
    let from = ways.from.to_string();
    port.ask(&from, &ways.command, RoleRequest::FeedBack(Box::new(asked))).await?;
    let listed = core.list(Some(volume)).await?.volumes.into_iter().next();
    let kept = listed.and_then(|info| info.snapshots.into_iter().find(|snap| snap.uuid == resync.diverged));
    Ok(Report {
        volume: unit.to_owned(),
        session,
        kept: kept.map(|snapshot| snapshot.name),
        delta: begun.iter().all(|resync| resync.common.is_some()),
        from,
        served: seen.iter().all(|seen| seen.served),
        note: None,
    })
}

/// Before the first of a group's volumes is kept as it is, no client writes to any of them. What
/// forbids the resync of one of them is found before that.
async fn stop_all(
    core: &Core,
    volumes: &[String],
    known: &[Option<ResyncRecord>],
    seen: &[Seen],
    request: &Request,
) -> Result<()> {
    for ((volume, known), theirs) in volumes.iter().zip(known).zip(seen) {
        if known.is_none() {
            core.check_resync(volume, theirs, request.full, request.force).await?;
        }
    }
    for (volume, known) in volumes.iter().zip(known) {
        if known.is_none() {
            core.stop_writers(volume, request.force).await?;
        }
    }
    Ok(())
}

/// Gives a resync up.
///
/// # Errors
/// `NotFound` when none is under way; `Conflict`; `Io`.
pub(crate) async fn abort<P: Port>(core: &Core, port: &mut P, request: &Request) -> Result<Report> {
    let unit = request.volume.as_str();
    if core.group(unit).is_none() {
        core.check_alone(unit, "resync")?;
    }
    let ways = ways(core, request);
    let (mut session, mut nothing) = (None, None);
    for volume in core.volumes_of(unit) {
        match core.abort_resync(&volume).await {
            Ok(ended) => session = Some(ended),
            // Of a group, an earlier attempt may have come that far.
            Err(error) if error.kind() == ErrorKind::NotFound => nothing = Some(error),
            Err(error) => return Err(error),
        }
    }
    let Some(session) = session else {
        return Err(nothing.unwrap_or_else(|| Error::not_found(format!("no resync of {unit} is under way"))));
    };
    let mut report = Report { volume: unit.to_owned(), session, ..Report::default() };
    let told = match ways {
        Ok(ways) => {
            let stop = RoleRequest::StopFeedBack { session };
            port.ask(&ways.from.to_string(), &ways.command, stop).await.map(drop)
        }
        Err(error) => Err(error),
    };
    if let Err(error) = told {
        report.note =
            Some(format!("the other side was not told ({error}); 'unreplicate' there ends its session"));
    }
    Ok(report)
}

/// Runs a resync, for a caller that waits until it has begun.
///
/// # Errors
/// What the two say.
pub fn resync(store: &Store, request: &Request) -> Result<Report> {
    let (core, mut port) = (store.core(), super::failover::ProcessPort::new(store));
    block_on(async {
        match request.abort {
            true => abort(core, &mut port, request).await,
            false => run(core, &mut port, request).await,
        }
    })
}
