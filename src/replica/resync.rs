//! Resync: a volume that was the primary follows the one that took its place.
//!
//! The other side is asked before anything is changed here, and is asked to feed this volume after
//! everything here is recorded; so whatever crash comes, the same command goes on. What arrives is
//! the business of the session that the other side makes.

use super::failover::Port;
use super::manage::way_to;
use crate::engine::Store;
use crate::engine::core::Core;
use crate::engine::resync::{FeedBack, ResyncPlan};
use crate::engine::roles::{RoleAnswer, RoleRequest, Seen};
use crate::error::{Error, Result};
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
    let mut sessions: Vec<SessionRecord> = core.sessions_of(volume, Side::Sender);
    sessions.retain(|record| request.from.as_ref().is_none_or(|from| record.destination == *from));
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
    let from = request.from.clone().or_else(|| known.as_ref().map(|known| known.destination.clone()));
    let from: Destination = from.unwrap_or_default().parse()?;
    let text = |text: fn(&SessionRecord) -> &String| known.as_ref().map(text).cloned().unwrap_or_default();
    let way_back = match &request.way_back {
        Some(way) => way.parse::<Destination>()?.to_string(),
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

async fn look<P: Port>(port: &mut P, ways: &Ways) -> Result<Seen> {
    let look = RoleRequest::Look { volume: ways.from.volume.to_string() };
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
    let volume = request.volume.as_str();
    if let Some(way) = &request.from {
        way.parse::<Destination>()?;
    }
    let known = core.resync_of(volume).await?;
    let ways = ways(core, request)?;
    let theirs = look(port, &ways).await?;
    let resync = match known {
        Some(known) if known.peer == theirs.store => known,
        Some(_) => {
            return Err(Error::conflict(format!("volume {volume} is in a resync from another store"))
                .hint(format!("'snapvol resync {volume} --abort' ends that one")));
        }
        None => {
            let session = core.new_identity().await?;
            let plan = ResyncPlan {
                peer: theirs.store,
                session,
                theirs: &theirs,
                full: request.full,
                force: request.force,
            };
            core.begin_resync(volume, &plan).await?
        }
    };
    let asked = FeedBack {
        volume: ways.from.volume.to_string(),
        session: resync.session,
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
        volume: volume.to_owned(),
        session: resync.session,
        kept: kept.map(|snapshot| snapshot.name),
        delta: resync.common.is_some(),
        from,
        served: theirs.served,
        note: None,
    })
}

/// Gives a resync up.
///
/// # Errors
/// `NotFound` when none is under way; `Conflict`; `Io`.
pub(crate) async fn abort<P: Port>(core: &Core, port: &mut P, request: &Request) -> Result<Report> {
    let volume = request.volume.as_str();
    let ways = ways(core, request);
    let session = core.abort_resync(volume).await?;
    let mut report = Report { volume: volume.to_owned(), session, ..Report::default() };
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
