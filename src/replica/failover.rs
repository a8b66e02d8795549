//! Failover: a receiver takes its sender's place.
//!
//! Invariants:
//! - it says what will be lost before anything is changed, and changes nothing where it refuses;
//! - a sender that answers is not passed over unless that is forced, and is fenced first then;
//! - the session is stopped before the volume turns, and one record turns it; whatever crash
//!   comes, the same command goes on.
//!
//! It awaits the store and its [`Port`], and nothing else.

use super::ask::ask_role;
use crate::engine::Store;
use crate::engine::core::Core;
use crate::engine::rfc3339;
use crate::engine::roles::{Place, RoleAnswer, RoleRequest, Seen, next_line};
use crate::engine::sessions::live_file;
use crate::error::{Error, Result};
use crate::format::session::{SessionRecord, Side};
use crate::types::{Role, SetId};
use futures::executor::block_on;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use uuid::Uuid;

/// How long the sender may take to answer.
const ANSWER_WAIT: Duration = Duration::from_secs(10);

/// How long a handover may take, beside the time in which writers wait: sets are shipped before.
const HANDOVER_WAIT: Duration = Duration::from_secs(3600);

/// What the owner wants.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// The volume here.
    pub volume: String,
    /// The older state to go on from; none: the newest.
    pub snapshot: Option<String>,
    /// The sender is not asked at all.
    pub now: bool,
    /// Nothing is changed.
    pub dry_run: bool,
    /// Also while the sender answers.
    pub force: bool,
}

/// How the sender stands, as far as the receiver can know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sender {
    /// It is the primary and can be reached.
    Answers,
    /// Its store can be reached, and nobody serves it.
    NotServed,
    /// It is fenced, or follows somebody itself.
    GivenWay,
    /// It was asked and did not answer.
    Silent,
    /// There is no way to ask it, and it has no connection.
    #[default]
    Unknown,
    /// There is no way to ask it, and it has a connection.
    Connected,
    /// It was not to be asked.
    NotAsked,
}

/// What a failover will do, or did.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The volume.
    pub volume: String,
    /// It is the primary now.
    pub done: bool,
    /// It was before; nothing was done.
    pub already: bool,
    /// The number of the newest whole state.
    pub number: Option<u64>,
    /// The name of the state that production goes on from, if it is not the newest one.
    pub snapshot: Option<String>,
    /// When that state began to arrive here, RFC 3339, by the clock here.
    pub received: Option<String>,
    /// Seconds since then.
    pub age_seconds: Option<f64>,
    /// The number of the set that is half received and goes.
    pub dropped: Option<u64>,
    /// How the sender stands.
    pub sender: Sender,
    /// How the sender is asked; empty: it can't be.
    pub way_back: String,
    /// What the sender said at last, if it did not answer.
    pub silence: Option<String>,
    /// The counter of the new role epoch.
    pub epoch: u64,
    /// It is about a group.
    #[serde(default)]
    pub group: bool,
}

/// What a failover is connected to.
pub trait Port {
    /// Asks the store at a destination; the program to run there may be another one.
    ///
    /// # Errors
    /// As for `ask_role`.
    fn ask(
        &mut self,
        there: &str,
        command: &str,
        request: RoleRequest,
    ) -> impl Future<Output = Result<RoleAnswer>>;

    /// Whether the session has a connection on which something was heard within seconds.
    fn is_connected(&self, session: Uuid) -> bool;

    /// Microseconds since 1970 by the clock here.
    fn now_us(&self) -> u64;
}

fn session_of(core: &Core, volume: &str) -> Option<SessionRecord> {
    let mut sessions = core.sessions_of(volume, Side::Receiver);
    let turned = core.turned(volume).map(|record| record.session);
    let fed = core.fed_by(volume).map(|record| record.session);
    sessions.retain(|record| Some(record.session) == fed || Some(record.session) == turned);
    // One that feeds it now comes before one whose place it took long ago.
    sessions.sort_by_key(|record| Some(record.session) != fed);
    sessions.into_iter().next()
}

/// Asks how the sender stands.
pub(super) async fn look<P: Port>(
    port: &mut P,
    session: &SessionRecord,
    now: bool,
) -> (Sender, Option<String>, Option<Seen>) {
    let connected = port.is_connected(session.session);
    if now {
        return (Sender::NotAsked, None, None);
    }
    if session.way_back.is_empty() {
        let sender = if connected { Sender::Connected } else { Sender::Unknown };
        return (sender, None, None);
    }
    let Some(member) = session.members.first() else { return (Sender::Unknown, None, None) };
    let look = RoleRequest::Look { volume: member.far_volume.clone() };
    match port.ask(&session.way_back, &session.way_back_command, look).await {
        Ok(RoleAnswer::Seen(seen)) => {
            let sender = match (seen.role, seen.standing.is_open(), seen.served) {
                (Role::Primary, true, true) => Sender::Answers,
                (Role::Primary, true, false) => Sender::NotServed,
                _ => Sender::GivenWay,
            };
            (sender, None, Some(*seen))
        }
        Ok(RoleAnswer::Done) => (Sender::Silent, Some("it says something else".to_owned()), None),
        Err(error) if connected => (Sender::Connected, Some(error.to_string()), None),
        Err(error) => (Sender::Silent, Some(error.to_string()), None),
    }
}

/// Whether a failover may go on where the sender stands like that.
///
/// # Errors
/// `Conflict`.
pub(super) fn decide(sender: Sender, request: &Request, way_back: &str) -> Result<()> {
    let volume = &request.volume;
    match sender {
        Sender::Answers if !request.force => Err(Error::conflict(format!(
            "the primary of volume {volume} answers, at {way_back}"
        ))
        .hint(
            "--force fences it first, and what it has not shipped stays behind there; --now does not ask it",
        )),
        Sender::Connected if !request.force => Err(Error::conflict(format!(
            "the primary of volume {volume} has a connection to this store and was heard within seconds"
        ))
        .hint("--force goes on; it can't be fenced from here, and is as soon as it opens its session again")),
        _ => Ok(()),
    }
}

/// Makes a volume the primary in its sender's place, or says what that would do.
///
/// # Errors
/// `Conflict` when the sender answers, when the volume is a primary otherwise, or has no whole
/// state; `NotFound`; `Io`, `Full`.
pub(crate) async fn run<P: Port>(core: &Core, port: &mut P, request: &Request) -> Result<Report> {
    let volume = request.volume.as_str();
    if core.group(volume).is_some() {
        return super::group_failover::run(core, port, request).await;
    }
    let (_, role, _) = core.unit(volume).await?;
    core.check_alone(volume, "failover")?;
    let session = session_of(core, volume);
    if role == Role::Primary {
        return already(core, request, session).await;
    }
    let Some(session) = session else {
        return Err(Error::conflict(format!("volume {volume} follows no primary by a session"))
            .hint(format!("'snapvol promote {volume}' makes it writable")));
    };
    let roles = core.roles(volume).await?;
    if roles.resync.is_some() {
        return Err(Error::conflict(format!("a resync of volume {volume} is under way"))
            .hint(format!("'snapvol resync {volume} --abort' ends it, with its own state as it was")));
    }
    let mut report = survey(core, port, request, roles.received_us).await?;
    let line = core.look(volume).await?;
    if line.newest.is_none() {
        return Err(Error::conflict(format!("volume {volume} has no whole state yet"))
            .hint("its first copy has not ended: there is nothing to go on from"));
    }
    let (sender, silence, _) = look(port, &session, request.now).await;
    (report.sender, report.silence) = (sender, silence);
    report.way_back.clone_from(&session.way_back);
    let lineage = next_line(&line.lineage, core.new_identity().await?);
    report.epoch = lineage.last().map_or(0, |last| last.counter);
    decide(sender, request, &session.way_back)?;
    if request.dry_run {
        return Ok(report);
    }
    if matches!(sender, Sender::Answers | Sender::NotServed)
        && let Some(member) = session.members.first()
    {
        let far = member.far_volume.clone();
        let fence = RoleRequest::Fence { volume: far, session: session.session, lineage: lineage.clone() };
        match port.ask(&session.way_back, &session.way_back_command, fence).await {
            Ok(_) => {}
            // Nobody writes there; it is fenced as soon as it opens its session.
            Err(error) if sender == Sender::NotServed => {
                tracing::warn!("the old primary is not fenced: {error}")
            }
            Err(error) => return Err(error.context("the primary can't be fenced")),
        }
    }
    let _turning = core.begin_turning(volume)?;
    core.stop_feed(session.session, None, None).await?;
    let operation = core.new_identity().await?;
    let place = Place { operation, lineage, snapshot: request.snapshot.clone() };
    core.take_place(volume, place).await?;
    let restart = core.end_turn(volume, session.session).await?;
    report.number = restart.map(|set| set.stamp.number);
    report.done = true;
    Ok(report)
}

/// What is to be said of a volume that is a primary.
async fn already(core: &Core, request: &Request, session: Option<SessionRecord>) -> Result<Report> {
    let volume = request.volume.as_str();
    let conflict = || Error::conflict(format!("volume {volume} is a primary already"));
    let Some(turned) =
        session.filter(|record| core.turned(volume).is_some_and(|t| t.session == record.session))
    else {
        return Err(conflict());
    };
    let roles = core.roles(volume).await?;
    let line = core.look(volume).await?;
    // A crash may have come between the turn and the word at the session.
    let restart: Option<SetId> = match request.dry_run {
        true => roles.restart,
        false => core.end_turn(volume, turned.session).await?,
    };
    Ok(Report {
        volume: volume.to_owned(),
        done: true,
        already: true,
        number: restart.map(|set| set.stamp.number),
        epoch: line.lineage.last().map_or(0, |last| last.counter),
        way_back: turned.way_back,
        sender: Sender::NotAsked,
        ..Report::default()
    })
}

/// What is here.
async fn survey<P: Port>(core: &Core, port: &P, request: &Request, received_us: u64) -> Result<Report> {
    let volume = request.volume.as_str();
    let newest = core.cuts(volume).await?.pop();
    if let Some(name) = &request.snapshot {
        let found = core.list(Some(volume)).await?.volumes.into_iter().next();
        let known = found.is_some_and(|info| info.snapshots.iter().any(|snapshot| snapshot.name == *name));
        if !known {
            return Err(Error::not_found(format!("volume {volume} has no snapshot {name}"))
                .hint(format!("'snapvol list {volume}' shows those there are")));
        }
    }
    #[allow(clippy::cast_precision_loss, reason = "an age for people")]
    let age = |us: u64| port.now_us().saturating_sub(us) as f64 / 1e6;
    Ok(Report {
        volume: volume.to_owned(),
        number: newest.map(|cut| cut.set.stamp.number),
        snapshot: request.snapshot.clone(),
        received: (received_us > 0).then(|| rfc3339(received_us)),
        age_seconds: (received_us > 0).then(|| age(received_us)),
        dropped: core.half_number(volume).await?,
        ..Report::default()
    })
}

/// The port of a process: another one is started to ask.
pub(super) struct ProcessPort {
    store: Uuid,
    dir: PathBuf,
}

impl ProcessPort {
    /// For a store that is open here.
    pub fn new(store: &Store) -> Self {
        Self { store: store.core().identity(), dir: store.dir().to_owned() }
    }
}

impl Port for ProcessPort {
    async fn ask(&mut self, there: &str, command: &str, request: RoleRequest) -> Result<RoleAnswer> {
        ask_role(self.store, there, command, request, ANSWER_WAIT)
    }

    fn is_connected(&self, session: Uuid) -> bool {
        let Ok(file) = File::open(live_file(&self.dir, session)) else { return false };
        let locked = rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive);
        locked == Err(rustix::io::Errno::WOULDBLOCK)
    }

    fn now_us(&self) -> u64 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(now.as_micros()).unwrap_or(u64::MAX)
    }
}

/// Asks the sender of a volume to hand its role over to this one, and waits for the end of that.
///
/// # Errors
/// `Conflict` when the volume follows nobody, and what the sender says; `Interrupted` when it can't
/// be reached, or it is not known how it ended.
pub fn ask_for_role(store: &Store, volume: &str, pause_max_ms: u64, force: bool) -> Result<()> {
    let core = store.core();
    let Some(session) = core.fed_unit(volume) else {
        return Err(Error::conflict(format!("volume {volume} follows no primary by a session")));
    };
    if session.way_back.is_empty() {
        return Err(Error::conflict(format!("there is no way to ask the primary of volume {volume}"))
            .hint("run 'snapvol failback' there, or say --way-back when it is replicated"));
    }
    let far = match session.group {
        Some(_) => session.unit.clone(),
        None => session.members.first().map(|member| member.far_volume.clone()).unwrap_or_default(),
    };
    let request = RoleRequest::HandOver { volume: far, session: session.session, pause_max_ms, force };
    let wait = HANDOVER_WAIT + Duration::from_millis(pause_max_ms);
    ask_role(core.identity(), &session.way_back, &session.way_back_command, request, wait).map(drop)
}

/// Runs a failover, for a caller that waits.
///
/// # Errors
/// `Conflict` when the sender answers, when the volume is a primary otherwise, or has no whole
/// state; `NotFound`; `Io`, `Full`.
pub fn failover(store: &Store, request: &Request) -> Result<Report> {
    let mut port = ProcessPort::new(store);
    block_on(run(store.core(), &mut port, request))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn a_sender_that_answers_is_passed_over_only_by_force() {
        let plain = Request { volume: "v".to_owned(), ..Request::default() };
        let forced = Request { force: true, ..plain.clone() };
        for (sender, refused) in [
            (Sender::Answers, true),
            (Sender::Connected, true),
            (Sender::NotServed, false),
            (Sender::GivenWay, false),
            (Sender::Silent, false),
            (Sender::Unknown, false),
            (Sender::NotAsked, false),
        ] {
            let decided = decide(sender, &plain, "/srv/a/v");
            assert_eq!(decided.is_err(), refused, "{sender:?}");
            if let Err(error) = decided {
                assert_eq!(error.kind(), ErrorKind::Conflict);
            }
            assert!(decide(sender, &forced, "/srv/a/v").is_ok(), "{sender:?}");
        }
    }
}
