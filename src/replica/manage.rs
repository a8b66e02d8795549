//! What an owner does with sessions: begin, change, rest, end.
//!
//! These change records alone; whoever runs the sessions looks at the records again.

use super::ask::ask as ask_far;
use super::receiver::{Changes, FarStore};
use super::wire::Message;
use crate::engine::Store;
use crate::engine::api::{Received, SessionStatus};
use crate::engine::core::Core;
use crate::engine::roles::{RoleAnswer, RoleRequest, TakeOver};
use crate::engine::sets::{Feed, FeedSet, OpenFeed, fresh_member};
use crate::engine::together::{CommitSets, GroupName};
use crate::error::{Error, Result};
use crate::format::session::{Condition, MemberRecord, OnBacklog, SessionPolicy, SessionRecord, Side, Start};
use crate::transport::Destination;
use crate::types::{Name, RoleEpoch};
use futures::executor::block_on;
use serde::{Deserialize, Serialize};
use std::io::Read;
use std::path::Path;
use std::time::Duration;
use uuid::Uuid;

/// How long the other end of a session that is given up may take to forget it.
const FAREWELL_WAIT: Duration = Duration::from_secs(10);

/// What is to be different in a session's policy; what is not said stays.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[allow(missing_docs, reason = "as in SessionPolicy")]
pub struct PolicyChange {
    pub timeout_ms: Option<u64>,
    pub high_water: Option<u64>,
    pub limit: Option<u64>,
    pub backlog_bytes: Option<u64>,
    pub backlog_ms: Option<u64>,
    pub on_backlog: Option<OnBacklog>,
    pub before_cut: Option<String>,
    pub after_cut: Option<String>,
    pub on_error: Option<String>,
    pub warn_lag_ms: Option<u64>,
    pub warn_backlog: Option<u64>,
    pub start: Option<Start>,
}

impl PolicyChange {
    fn apply(self, policy: &mut SessionPolicy) {
        fn set<T>(to: &mut T, value: Option<T>) {
            if let Some(value) = value {
                *to = value;
            }
        }
        set(&mut policy.timeout_ms, self.timeout_ms);
        set(&mut policy.high_water, self.high_water);
        set(&mut policy.limit, self.limit);
        set(&mut policy.backlog_bytes, self.backlog_bytes);
        set(&mut policy.backlog_ms, self.backlog_ms);
        set(&mut policy.before_cut, self.before_cut);
        set(&mut policy.after_cut, self.after_cut);
        set(&mut policy.on_error, self.on_error);
        set(&mut policy.warn_lag_ms, self.warn_lag_ms);
        set(&mut policy.warn_backlog, self.warn_backlog);
        set(&mut policy.on_backlog, self.on_backlog);
        set(&mut policy.start, self.start);
    }
}

/// What `replicate` asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replicate {
    /// The volume here, or the group.
    pub volume: String,
    /// Where to; for a group, a store.
    pub destination: String,
    /// The program to run there.
    pub remote_command: Option<String>,
    /// How the volume here is reached from there, and the program to run here then; without it,
    /// what is known, and between stores of one machine the store's path.
    #[serde(default)]
    pub way_back: Option<String>,
    #[serde(default)]
    #[allow(missing_docs, reason = "as above")]
    pub way_back_command: Option<String>,
    /// The policy, or what is to be different in it.
    pub change: PolicyChange,
}

fn sessions_to(core: &Core, unit: &str, destination: Option<&str>) -> Vec<SessionRecord> {
    let mut all = core.sessions_named(unit, Side::Sender);
    let there = destination.map(|there| {
        destination_of(core, unit, there).map_or_else(|_| there.to_owned(), |there| there.to_string())
    });
    all.retain(|record| there.as_ref().is_none_or(|there| record.destination == *there));
    all
}

/// Where a volume goes, or a group, of which a store is said.
pub(super) fn destination_of(core: &Core, unit: &str, text: &str) -> Result<Destination> {
    match core.group(unit) {
        Some(group) => format!("{}/{}", text.trim_end_matches('/'), group.name).parse(),
        None => text.parse(),
    }
}

/// Begins a session, or changes the policy of the one that there is.
///
/// # Errors
/// `NotFound`; `Conflict` for a secondary; `Invalid`; `Io`.
pub fn replicate(store: &Store, request: Replicate) -> Result<()> {
    block_on(replicate_on(store.core(), request))
}

/// The same, for whoever awaits it.
pub(crate) async fn replicate_on(core: &Core, request: Replicate) -> Result<()> {
    let volume: Name = request.volume.parse()?;
    let there = destination_of(core, volume.as_str(), &request.destination)?;
    if there.host.is_none() && same_dir(Path::new(&there.store), core.dir()) {
        return Err(Error::conflict("a volume is not replicated into its own store"));
    }
    let Replicate { destination, remote_command, change, way_back, way_back_command, .. } = request;
    let way_back = way_back.map(|way| destination_of(core, volume.as_str(), &way)).transpose()?;
    let way_back = way_back.map(|way| way.to_string());
    if let Some(known) = sessions_to(core, volume.as_str(), Some(&destination)).pop() {
        let changed = core.change_session(known.session, |record| {
            let mut record = record.ok_or_else(|| Error::not_found("the session is gone"))?;
            change.apply(&mut record.policy);
            if let Some(command) = remote_command {
                record.remote_command = command;
            }
            if let Some(way) = way_back {
                record.way_back = way;
            }
            if let Some(command) = way_back_command {
                record.way_back_command = command;
            }
            Ok(record)
        });
        return changed.await.map(drop);
    }
    let group = core.group(volume.as_str());
    let members = members_of(core, volume.as_str(), &there).await?;
    let session = core.new_identity().await?;
    let mut policy = SessionPolicy::default();
    change.apply(&mut policy);
    let beside = || way_to(core, volume.as_str()).filter(|_| there.host.is_none());
    let record = SessionRecord {
        session,
        side: Side::Sender,
        unit: volume.to_string(),
        peer_store: None,
        destination: there.to_string(),
        remote_command: remote_command.unwrap_or_default(),
        way_back: way_back.or_else(beside).unwrap_or_default(),
        way_back_command: way_back_command.unwrap_or_default(),
        opening: None,
        condition: Condition::Running,
        policy,
        members,
        group: group.map(|group| group.uuid),
        turn: None,
    };
    core.change_session(session, |_| Ok(record)).await?;
    Ok(())
}

/// The volumes of a session to come, which may be sent, in one role epoch.
async fn members_of(core: &Core, unit: &str, there: &Destination) -> Result<Vec<MemberRecord>> {
    let Some(group) = core.group(unit) else {
        let uuid = core.check_sendable(unit).await?;
        if let Some(group) = core.group_of(unit)? {
            return Err(Error::conflict(format!("volume {unit} is in group {}", group.name))
                .hint(format!("a group is replicated as one: snapvol replicate {} STORE", group.name)));
        }
        core.begin_lineage(unit).await?;
        return Ok(vec![MemberRecord { far_volume: there.volume.to_string(), ..fresh_member(unit, uuid) }]);
    };
    let mut members = Vec::new();
    for member in &group.members {
        members.push(fresh_member(&member.volume, core.check_sendable(&member.volume).await?));
    }
    let volumes: Vec<String> = group.volumes().map(str::to_owned).collect();
    core.share_epoch(&volumes).await?;
    Ok(members)
}

/// The path by which a volume here is a destination on this machine; none where its store's path
/// can't be written as one.
pub(super) fn way_to(core: &Core, volume: &str) -> Option<String> {
    let dir = std::path::absolute(core.dir()).ok()?;
    let way = format!("{}/{volume}", dir.to_str()?);
    way.parse::<Destination>().ok().map(|way| way.to_string())
}

fn same_dir(a: &Path, b: &Path) -> bool {
    match (std::fs::canonicalize(a), std::fs::canonicalize(b)) {
        (Ok(a), Ok(b)) => a == b,
        _ => a == b,
    }
}

fn no_session(volume: &str, destination: Option<&str>) -> Error {
    let to = destination.map(|there| format!(" to {there}")).unwrap_or_default();
    Error::not_found(format!("volume {volume} has no session{to}"))
        .hint("'snapvol status' shows those there are")
}

/// Has sessions rest, or go on.
///
/// # Errors
/// `NotFound` when there is none; `Io`.
pub fn pause(store: &Store, volume: &str, destination: Option<&str>, paused: bool) -> Result<()> {
    let core = store.core();
    let sessions = sessions_to(core, volume, destination);
    if sessions.is_empty() {
        core.check_alone(volume, if paused { "pause" } else { "resume" })?;
        return Err(no_session(volume, destination));
    }
    for session in sessions {
        let changed = core.change_session(session.session, |record| {
            let mut record = record.ok_or_else(|| Error::not_found("the session is gone"))?;
            record.condition = if paused { Condition::Paused } else { Condition::Running };
            Ok(record)
        });
        block_on(changed)?;
    }
    Ok(())
}

/// Ends sessions: those to a destination, or, at a secondary, the one that feeds it. Returns
/// what there was, for [`farewell`].
///
/// # Errors
/// `NotFound` when there is none; `Invalid` when it is not said which; `Conflict` while a set is
/// being received; `Io`.
pub fn unreplicate(store: &Store, volume: &str, destination: Option<&str>) -> Result<Option<SessionRecord>> {
    let core = store.core();
    if destination.is_none()
        && let Some(fed) = core.fed_unit(volume)
    {
        block_on(core.part_feed(fed.session))?;
        return Ok(None);
    }
    let mut sessions = sessions_to(core, volume, destination);
    if sessions.is_empty()
        && destination.is_none()
        && let Some(turned) = core.turned_unit(volume)
    {
        // Nobody comes back for the state from which the volume took its sender's place.
        block_on(forget(core, &turned))?;
        return Ok(None);
    }
    let Some(record) = sessions.pop() else {
        core.check_alone(volume, "unreplicate")?;
        return Err(no_session(volume, destination));
    };
    if !sessions.is_empty() {
        return Err(Error::invalid(format!("volume {volume} has several sessions"))
            .hint("name the destination of the one to end"));
    }
    block_on(forget(core, &record))?;
    Ok(Some(record))
}

/// A session goes, and with it what was kept for it alone.
async fn forget(core: &Core, record: &SessionRecord) -> Result<()> {
    core.forget_session(record.session).await?;
    for member in &record.members {
        core.prune_sent(&member.volume).await?;
    }
    Ok(())
}

/// Deletes cuts that no session needs: what the end of a session, or a crash amid it, left.
pub fn tidy(store: &Store) {
    let core = store.core();
    for volume in core.volume_names() {
        let tidied = block_on(async {
            // A secondary shows its newest cut, also when nobody feeds it any more.
            if core.check_sendable(&volume).await.is_ok() { core.prune_sent(&volume).await } else { Ok(()) }
        });
        if let Err(error) = tidied {
            tracing::warn!("cuts of volume {volume} stay for now: {error}");
        }
    }
}

/// Tells the other end of a session that was given up to forget it.
///
/// # Errors
/// Why it could not be told; it stays as it is then.
pub fn farewell(store: Uuid, record: &SessionRecord) -> Result<()> {
    if record.peer_store.is_none() {
        // It was never reached.
        return Ok(());
    }
    let close = Message::Close { session: record.session };
    match ask_far(store, &record.destination, &record.remote_command, close, FAREWELL_WAIT)? {
        Message::Closed => Ok(()),
        other => Err(Error::invalid(format!("the other side says '{}' out of turn", other.word()))),
    }
}

/// The same; a failure as a sentence for the owner.
#[must_use]
pub fn say_farewell(store: &Store, record: &SessionRecord) -> Option<String> {
    let error = farewell(store.core().identity(), record).err()?;
    let volume = record.members.first().map_or("VOL", |member| member.far_volume.as_str());
    Some(format!("{} was not told ({error}); run 'snapvol unreplicate {volume}' there", record.destination))
}

/// How the sessions of a store stand that nobody runs; with `running` only those that have no
/// thread: receivers.
#[must_use]
pub fn idle_statuses(store: &Store, running: bool) -> Vec<SessionStatus> {
    let status = |record: &SessionRecord| {
        let member = record.members.first();
        let mark = member.and_then(|member| match record.side {
            Side::Sender => Some((member.durable, member.applied)),
            Side::Receiver => {
                let cuts = block_on(store.core().cuts(&member.volume)).ok()?;
                let mark = cuts.last().map(|cut| cut.set);
                Some((mark, mark))
            }
        });
        let number = |set: Option<crate::types::SetId>| set.map(|set| set.stamp.number);
        let (durable, applied) = mark.unwrap_or_default();
        let sender = record.side == Side::Sender;
        SessionStatus {
            session: record.session,
            unit: record.unit.clone(),
            role: if sender { "sender" } else { "receiver" }.to_owned(),
            peer: match (sender, record.peer_store) {
                (true, _) => record.destination.clone(),
                (false, Some(store)) => store.to_string(),
                (false, None) => String::new(),
            },
            state: match (sender, record.condition) {
                (_, Condition::Paused) => "paused",
                (_, Condition::Ended) => "ended",
                (_, Condition::Turned) => "turned",
                (true, Condition::Running) => "stopped",
                (false, Condition::Running) => "following",
            }
            .to_owned(),
            durable: number(durable),
            applied: number(applied),
            ..SessionStatus::default()
        }
    };
    let sessions = store.core().sessions();
    sessions.iter().filter(|record| !running || record.side == Side::Receiver).map(status).collect()
}

impl FarStore for Core {
    async fn open_feeds(&self, group: Option<&GroupName>, opens: &[OpenFeed]) -> Result<Vec<Feed>> {
        Self::open_feeds(self, group, opens).await
    }
    async fn commit_sets(&self, commit: &CommitSets) -> Result<()> {
        Self::commit_sets(self, commit).await
    }
    async fn receive_set(&self, feed: &FeedSet, input: &mut (dyn Read + Send)) -> Result<Received> {
        Self::receive_set(self, feed, input).await
    }
    async fn abort_feed(&self, session: Uuid, volume: &str) -> Result<()> {
        Self::abort_feed(self, session, volume).await
    }
    async fn keep_states(&self, session: Uuid, volume: &str, keep: u64) -> Result<()> {
        Self::keep_states(self, session, volume, keep).await
    }
    async fn close_feed(&self, session: Uuid) -> Result<()> {
        Self::close_feed(self, session).await
    }
    async fn take_over(
        &self,
        session: Uuid,
        opening: Uuid,
        volume: &str,
        take: &TakeOver,
    ) -> Result<Vec<RoleEpoch>> {
        Self::take_over(self, session, opening, volume, take).await
    }
    async fn changes(&self, session: Uuid, volume: &str, from: u64) -> Result<Changes> {
        Self::changes(self, session, volume, from).await
    }
    async fn role_request(&self, request: &RoleRequest) -> Result<RoleAnswer> {
        Self::role_request(self, request).await
    }
}

/// What the far end of a session asks of an open store, for a caller that waits.
///
/// # Errors
/// As for the methods of [`FarStore`].
pub fn ask(store: &Store, request: &FarRequest) -> Result<FarAnswer> {
    let core = store.core();
    block_on(async {
        match request {
            FarRequest::Identity => Ok(FarAnswer::Identity(core.identity())),
            FarRequest::Open { group, members } => {
                core.open_feeds(group.as_ref(), members).await.map(FarAnswer::Feeds)
            }
            FarRequest::Commit(commit) => core.commit_sets(commit).await.map(|()| FarAnswer::Done),
            FarRequest::Abort { session, volume } => {
                core.abort_feed(*session, volume).await.map(|()| FarAnswer::Done)
            }
            FarRequest::Keep { session, volume, keep } => {
                core.keep_states(*session, volume, *keep).await.map(|()| FarAnswer::Done)
            }
            FarRequest::Close { session } => core.close_feed(*session).await.map(|()| FarAnswer::Done),
            FarRequest::TakeOver { session, opening, volume, take } => {
                core.take_over(*session, *opening, volume, take).await.map(FarAnswer::Lineage)
            }
            FarRequest::Changes { session, volume, from } => {
                let changes = core.changes(*session, volume, *from).await;
                changes.map(|(ranges, next)| FarAnswer::Changes { ranges, next })
            }
            FarRequest::Role(request) => core.role_request(request).await.map(FarAnswer::Role),
        }
    })
}

/// Applies a set, for a caller that waits.
///
/// # Errors
/// As for [`FarStore::receive_set`].
pub fn receive_set(store: &Store, feed: &FeedSet, input: &mut (dyn Read + Send)) -> Result<Received> {
    block_on(store.core().receive_set(feed, input))
}

/// What the far end of a session asks of its store, as data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs, reason = "as the methods of FarStore")]
pub enum FarRequest {
    Identity,
    Open { group: Option<GroupName>, members: Vec<OpenFeed> },
    Commit(CommitSets),
    Abort { session: Uuid, volume: String },
    Keep { session: Uuid, volume: String, keep: u64 },
    Close { session: Uuid },
    TakeOver { session: Uuid, opening: Uuid, volume: String, take: Box<TakeOver> },
    Changes { session: Uuid, volume: String, from: u64 },
    Role(RoleRequest),
}

/// What it answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs, reason = "as the methods of FarStore")]
pub enum FarAnswer {
    Identity(Uuid),
    Feeds(Vec<Feed>),
    Lineage(Vec<RoleEpoch>),
    Changes { ranges: Vec<(u64, u64)>, next: Option<u64> },
    Role(RoleAnswer),
    Done,
}
