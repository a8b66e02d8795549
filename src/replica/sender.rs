//! The sending end of a session: cuts sets, ships them, remembers the receiver's marks.
//!
//! Invariants:
//! - what is shipped is durable here: a set is read only after its take has returned;
//! - the record names a set as target before its first byte leaves, and a mark before the cut
//!   that it replaces is deleted, so whatever crash comes, base and target are there: the target
//!   as a snapshot, the base as one or as a bookmark;
//! - a mark is recorded when the receiver has told it, and never from anything else.
//!
//! It awaits the store and its [`Port`], and nothing else.

mod apart;
mod ship;

use self::ship::Shipped;
use super::handover::{Between, HandOver, Wish};
use super::plan::{self, Facts, Joint, back_off, set_to};
use super::wire::{Body, Message, far_failure};
use crate::engine::api::{OutstandingSet, SessionStatus};

use crate::engine::core::Core;
use crate::engine::sets::{Cut, Diverged, Feed, HalfSet, Mark, OFFERS_MAX, OpenFeed, OwnChanges, Relation};
use crate::engine::together::{GroupName, line_to};
use crate::engine::turns::Turn;
use crate::error::{Error, ErrorKind, Result};
use crate::format::session::{Condition, MemberRecord, OnBacklog, SessionRecord, Side};
use crate::snapshot::Brake;
use crate::types::{Role, RoleEpoch, SetId, Standing};
use std::collections::BTreeSet;
use std::time::Duration;
use uuid::Uuid;

/// How often a session that rests looks at what has changed.
const POLL: Duration = Duration::from_millis(250);
/// How often a session that does nothing looks whether it should.
const IDLE: Duration = Duration::from_secs(5);
/// How long a receiver may take to say what it has, or to drop what it has half.
const ANSWER_WAIT: Duration = Duration::from_secs(60);
/// Failures in a row that make it an error.
pub const FAILURES_MAX: u64 = 5;
/// What a sender meets.
#[derive(Debug)]
pub enum Event {
    /// The receiver said something.
    Message(Message),
    /// The connection is gone.
    Down(Error),
    /// The owner changed the session.
    Changed,
    /// The owner wants a cut; the number of that wish.
    Cut(u64),
    /// The owner wants the receiver to become the primary.
    HandOver(Wish),
    /// The session is to end here.
    Stop,
    /// Nothing came in that time.
    Timeout,
}

/// What a sender is connected to: its receiver, its owner, and the time.
pub trait Port {
    /// Opens a channel to the receiver's store; returns its identity. What an earlier channel
    /// said is not heard any more.
    ///
    /// # Errors
    /// Why there is no connection.
    fn connect(&mut self, record: &SessionRecord) -> impl Future<Output = Result<Uuid>>;

    /// Leaves the channel, if there is one.
    fn hang_up(&mut self);

    /// Says something; it may wait for the connection.
    ///
    /// # Errors
    /// `Interrupted` when it broke.
    fn say(&mut self, epoch: Uuid, body: Body) -> impl Future<Output = Result<()>>;

    /// What comes next, or `Timeout` after that time.
    fn next(&mut self, wait: Duration) -> impl Future<Output = Event>;

    /// The time since some moment, never going back.
    fn now(&self) -> Duration;

    /// Runs a hook of the owner's.
    ///
    /// # Errors
    /// Why it failed.
    fn hook(&mut self, name: &str, command: &str, record: &SessionRecord)
    -> impl Future<Output = Result<()>>;

    /// Shows how the session stands.
    fn show(&mut self, status: &SessionStatus);
}

/// Why a conversation ended without a failure.
pub(super) enum Left {
    /// The session ends here.
    Stop,
    /// The owner changed it.
    Changed,
    /// Writers waited for too long.
    Late,
}

/// What a receiver that follows has of each volume.
struct Meeting {
    epoch: RoleEpoch,
    feeds: Vec<(MemberRecord, Feed)>,
}

/// A volume of the session, and where its receiver stands.
pub(super) struct Following {
    pub member: MemberRecord,
    /// What it shows.
    shown: Option<Uuid>,
    /// What it has half received.
    half: Option<HalfSet>,
    /// What it has of its own.
    own: Option<OwnChanges>,
}

impl Following {
    /// Of a receiver with something of its own, the state that both have.
    fn common(&self) -> Option<Uuid> {
        self.own.as_ref().and_then(|own| own.diverged.common)
    }
}

/// What is here of a volume when the next step is decided.
struct Here {
    cuts: Vec<Cut>,
    marks: Vec<Mark>,
    /// What deltas can start from, oldest first.
    queue: Vec<Uuid>,
    /// Bytes that changed since the youngest mark.
    changed: u64,
    /// That mark has nothing that could be shipped, and the receiver needs something.
    passed: bool,
    others: BTreeSet<Uuid>,
}

impl Here {
    fn newest(&self) -> Option<Uuid> {
        self.marks.last().map(|mark| mark.cut.set.target)
    }
}

/// How meeting the receiver ended.
enum Met {
    Follows(Box<Meeting>),
    Left(Left),
}

pub(super) struct Sender<'a, P> {
    pub(super) core: &'a Core,
    pub(super) port: &'a mut P,
    pub(super) session: Uuid,
    pub(super) status: SessionStatus,
    /// The owner wants the receiver to become the primary.
    pub(super) handover: Option<HandOver>,
    /// When the state was cut that the receiver shows, as far as this life knows.
    mark_cut: Duration,
    /// When a set was cut or chosen last.
    last: Option<Duration>,
    /// What is being shipped has all that was here when the last wish for a cut was heard.
    covers: bool,
    /// Bytes said that were not taken yet.
    under_way: u64,
    /// When the next bytes may go, by the limit.
    allowed_at: Duration,
    /// Bytes sent, and when, for the rate.
    sent: Vec<(Duration, u64)>,
    /// When what piles up was looked at last while nothing is shipped.
    looked: Option<Duration>,
    /// What becomes of writes for this session's sake, and of which volumes.
    brake: Option<(Brake, Vec<String>)>,
}

/// Runs a session until it is stopped or forgotten.
pub(crate) async fn run<P: Port>(core: &Core, port: &mut P, session: Uuid) {
    let now = port.now();
    let status = SessionStatus { session, role: "sender".to_owned(), ..SessionStatus::default() };
    let mut sender = Sender {
        core,
        port,
        session,
        status,
        handover: None,
        mark_cut: now,
        last: None,
        covers: false,
        under_way: 0,
        allowed_at: now,
        sent: Vec::new(),
        looked: None,
        brake: None,
    };
    sender.live().await;
    sender.release_brake().await;
}

/// The names of a session's volumes here.
pub(super) fn volumes_of(record: &SessionRecord) -> Vec<String> {
    record.members.iter().map(|member| member.volume.clone()).collect()
}

/// Why a session of no volume does nothing.
fn no_volumes() -> Error {
    Error::invalid("the session has no volume")
}

impl<P: Port> Sender<'_, P> {
    async fn live(&mut self) {
        while let Ok(record) = self.core.session(self.session) {
            self.status.unit.clone_from(&record.unit);
            self.status.peer.clone_from(&record.destination);
            if record.condition != Condition::Running {
                if record.condition == Condition::Paused
                    && let Err(error) = self.bound_backlog(&record).await
                {
                    tracing::warn!("replication of {}: {error}", record.unit);
                }
                if record.condition == Condition::Ended {
                    let _ = self.brake_writers(&record, false).await;
                }
                self.show(if record.condition == Condition::Paused { "paused" } else { "ended" });
                if record.condition == Condition::Paused && self.wants_word(&record).await {
                    // The session rests, but its volume's writers wait for the receiver's word.
                    let met = self.meet(&record).await;
                    if let Ok(Met::Left(Left::Stop)) = met {
                        return;
                    }
                    if let Err(error) = met {
                        self.status.last_error = Some(error.to_string());
                        tracing::warn!("replication of {} to {}: {error}", record.unit, record.destination);
                    }
                    self.port.hang_up();
                    self.show("paused");
                }
                match self.port.next(IDLE).await {
                    Event::Stop => return,
                    Event::Cut(wish) => self.asked_to_cut(wish),
                    Event::HandOver(wish) => self.refuse_to_hand_over(wish),
                    _ => {}
                }
                continue;
            }
            self.guard().await;
            let outcome = self.converse(&record).await;
            self.port.hang_up();
            self.status.set = None;
            match outcome {
                Ok(Left::Stop) => return,
                Ok(Left::Changed | Left::Late) => {}
                Err(error) => {
                    self.handover_failed(&record, &error).await;
                    if self.rest_after(&record, &error).await {
                        return;
                    }
                }
            }
        }
    }

    /// Whether the volume's writers wait until a receiver has confirmed it.
    async fn wants_word(&self, record: &SessionRecord) -> bool {
        for member in &record.members {
            if self.core.is_unconfirmed(&member.volume).await.unwrap_or(false) {
                return true;
            }
        }
        false
    }

    pub(super) fn show(&mut self, state: &str) {
        state.clone_into(&mut self.status.state);
        self.port.show(&self.status);
    }

    /// Rests after a failure; true: the session is to end.
    async fn rest_after(&mut self, record: &SessionRecord, error: &Error) -> bool {
        self.status.failures += 1;
        self.status.failed_attempts += 1;
        self.status.last_error = Some(error.to_string());
        let failures = self.status.failures;
        tracing::warn!("replication of {} to {}: {error}", record.unit, record.destination);
        let lasting = ["split", "fenced", "given-way"].contains(&self.status.state.as_str());
        if failures == FAILURES_MAX && !record.policy.on_error.is_empty() {
            let command = record.policy.on_error.clone();
            if let Err(error) = self.port.hook("on-error", &command, record).await {
                tracing::warn!("replication of {}: {error}", record.unit);
            }
        }
        if !lasting {
            self.show(if failures >= FAILURES_MAX { "error" } else { "waiting" });
        }
        let until = self.port.now() + back_off(if lasting { u64::MAX } else { failures });
        loop {
            if let Err(error) = self.bound_backlog(record).await {
                tracing::warn!("replication of {}: {error}", record.unit);
            }
            let left = until.saturating_sub(self.port.now());
            if left.is_zero() {
                return false;
            }
            match self.port.next(left.min(IDLE)).await {
                Event::Stop => return true,
                Event::Changed => return false,
                Event::Cut(wish) => self.asked_to_cut(wish),
                Event::HandOver(wish) => self.refuse_to_hand_over(wish),
                _ => {}
            }
        }
    }

    /// Ends a session for which too much piled up.
    async fn bound_backlog(&mut self, record: &SessionRecord) -> Result<()> {
        let policy = &record.policy;
        if record.members.iter().all(|member| member.applied.is_none()) {
            return self.brake_writers(record, false).await;
        }
        let Some(behind) = self.apart(&record.members).await? else { return Ok(()) };
        let age = self.port.now().saturating_sub(self.mark_cut).as_millis();
        let passed = (policy.backlog_ms > 0 && age > u128::from(policy.backlog_ms))
            || (policy.backlog_bytes > 0 && behind > policy.backlog_bytes);
        if policy.on_backlog != OnBacklog::Terminate || self.brake.is_some() {
            return self.brake_writers(record, passed).await;
        }
        if !passed {
            return Ok(());
        }
        tracing::error!(
            "replication of {} to {} ends: its backlog passed the bound; 'resume' ships it whole again",
            record.unit,
            record.destination
        );
        let ended = self.core.change_session(self.session, |known| {
            let mut record = known.ok_or_else(|| Error::not_found("the session is gone"))?;
            record.condition = Condition::Ended;
            for member in &mut record.members {
                (member.durable, member.applied, member.target) = (None, None, None);
            }
            Ok(record)
        });
        ended.await?;
        for member in &record.members {
            self.core.prune_sent(&member.volume).await?;
        }
        Ok(())
    }

    /// Connects, hears what the receiver has, and follows until something changes.
    async fn converse(&mut self, record: &SessionRecord) -> Result<Left> {
        match self.meet(record).await? {
            Met::Left(left) => Ok(left),
            Met::Follows(meeting) => self.follow(record, *meeting).await,
        }
    }

    /// Checks that the volumes are those of the session, and may be sent; tells how they stand.
    async fn check_here(&mut self, record: &SessionRecord) -> Result<Standing> {
        let mut standings = Vec::new();
        for member in &record.members {
            let (uuid, role, _) = self.core.unit(&member.volume).await?;
            if uuid != member.uuid {
                return Err(Error::conflict(format!(
                    "volume {} is another one than the session was made for",
                    member.volume
                )));
            }
            let roles = self.core.roles(&member.volume).await?;
            let standing = roles.standing;
            if role != Role::Primary {
                // A crash may have come amid a group's giving way.
                standings.push((None, roles.operation));
                continue;
            }
            if standing == Standing::Fenced {
                self.show("fenced");
                return Err(Error::conflict(format!("volume {} is fenced", member.volume)).hint(format!(
                    "'snapvol resync {}' has it follow the volume that is the primary",
                    record.unit
                )));
            }
            standings.push((Some(standing), roles.operation));
        }
        let handing = standings.iter().find(|(standing, _)| *standing == Some(Standing::HandingOver));
        let operation = handing.and_then(|(_, operation)| *operation);
        let gave = |(standing, of): &(Option<Standing>, Option<Uuid>)| standing.is_none() && *of != operation;
        if standings.iter().any(|of| gave(of) || (of.0.is_none() && operation.is_none())) {
            self.show("given-way");
            return Err(Error::conflict(format!("{} is no primary", record.unit)));
        }
        if operation.is_some() {
            return Ok(Standing::HandingOver);
        }
        standings.first().and_then(|(standing, _)| *standing).ok_or_else(no_volumes)
    }

    /// What the receiver is told of each volume.
    async fn opening(&self, record: &SessionRecord) -> Result<Vec<OpenFeed>> {
        let (opening, mut opens) = (self.core.new_identity().await?, Vec::new());
        for member in &record.members {
            let (_, _, geometry) = self.core.unit(&member.volume).await?;
            let mut offers = self.core.offers(&member.volume).await?;
            // All of a group has to fit into one message.
            offers.truncate(OFFERS_MAX / record.members.len());
            opens.push(OpenFeed {
                session: self.session,
                store: self.core.identity(),
                opening,
                volume: member.far_volume.clone(),
                origin: member.volume.clone(),
                size: geometry.size,
                block_size: geometry.block_size,
                granularity: geometry.granularity,
                lineage: self.core.begin_lineage(&member.volume).await?,
                offers,
                way_back: record.way_back.clone(),
                way_back_command: record.way_back_command.clone(),
            });
        }
        Ok(opens)
    }

    /// Connects and hears what the receiver has, and whether this side is still the primary.
    async fn meet(&mut self, record: &SessionRecord) -> Result<Met> {
        let standing = self.check_here(record).await?;
        let volumes = volumes_of(record);
        if !["error", "split", "fenced", "given-way"].contains(&self.status.state.as_str()) {
            self.show("connecting");
        }
        let peer = self.port.connect(record).await?;
        self.under_way = 0;
        match record.peer_store {
            None => {
                self.change(|record| record.peer_store = Some(peer)).await?;
            }
            Some(known) if known != peer => {
                return Err(Error::conflict(format!("another store is at {} now", record.destination))
                    .hint("end the session with 'unreplicate' and begin a new one"));
            }
            Some(_) => {}
        }
        let handing_over = standing == Standing::HandingOver;
        for volume in &volumes {
            // Whoever hears this volume's line may go on from it without being heard again.
            self.core.end_alone(volume).await?;
        }
        if record.group.is_some() && !handing_over {
            self.core.share_epoch(&volumes).await?;
        }
        let members = self.opening(record).await?;
        let last = |open: &OpenFeed| open.lineage.last().copied().unwrap_or_default();
        // One that gave way amid a handover is in the younger line already.
        let epoch = members.iter().map(last).min_by_key(|epoch| epoch.counter).ok_or_else(no_volumes)?;
        let members: Vec<OpenFeed> = members
            .into_iter()
            .map(|mut open| {
                while open.lineage.last().is_some_and(|last| *last != epoch) {
                    open.lineage.pop();
                }
                open
            })
            .collect();
        let count = members.len();
        let group = record.group.map(|uuid| GroupName { name: record.unit.clone(), uuid });
        self.port.say(epoch.identity, Body::Message(Message::Open { members, group })).await?;
        let feeds = match self.answer().await? {
            Answer::Message(Message::Opened { members }) if members.len() == count => members,
            Answer::Message(other) => return Err(out_of_turn(&other)),
            Answer::Left(left) => return Ok(Met::Left(left)),
        };
        if feeds.iter().any(|feed| feed.relation == Relation::Split) {
            self.show("split");
            for volume in &volumes {
                self.core.met_split(volume).await?;
            }
            return Err(Error::conflict(format!(
                "{} here and {} were changed apart from each other",
                record.unit, record.destination
            ))
            .hint("nothing is shipped in either direction until one of them is given up"));
        }
        if let Some(fenced) = feeds.iter().find(|feed| feed.relation == Relation::Fenced) {
            if handing_over && let Some(left) = self.after_handover(record, epoch, fenced).await? {
                return Ok(Met::Left(left));
            }
            self.show("fenced");
            for volume in &volumes {
                let theirs = match fenced.lineage.last() {
                    Some(last) if record.group.is_some() => {
                        line_to(&self.core.look(volume).await?.lineage, *last)
                    }
                    _ => fenced.lineage.clone(),
                };
                self.core.fence(volume, &theirs).await?;
            }
            return Err(Error::conflict(format!("{} has become the primary", record.destination))
                .hint(format!("'snapvol resync {}' keeps its own changes aside", record.unit)));
        }
        if handing_over {
            // What the receiver was asked by an earlier opening, it refuses from here on.
            let why =
                Error::new(ErrorKind::Interrupted, "the handover was interrupted; the roles are as before");
            self.let_go(&volumes, why.hint("run the command again")).await?;
        } else {
            for volume in &volumes {
                self.core.confirm(volume).await?;
            }
        }
        let feeds = record.members.iter().cloned().zip(feeds).collect();
        Ok(Met::Follows(Box::new(Meeting { epoch, feeds })))
    }

    /// The next message; owners' wishes are remembered.
    pub(super) async fn answer(&mut self) -> Result<Answer> {
        let until = self.port.now() + ANSWER_WAIT;
        loop {
            let left = until.saturating_sub(self.port.now());
            match self.port.next(left).await {
                Event::Message(Message::Failed { kind, message, hint }) => {
                    return Err(far_failure(&kind, &message, hint.as_deref()));
                }
                Event::Message(message) => return Ok(Answer::Message(message)),
                Event::Down(error) => return Err(error),
                Event::Stop => return Ok(Answer::Left(Left::Stop)),
                Event::Changed => return Ok(Answer::Left(Left::Changed)),
                Event::Cut(wish) => self.asked_to_cut(wish),
                Event::HandOver(wish) => self.wants_to_hand_over(wish),
                Event::Timeout if self.port.now() >= until => {
                    return Err(Error::new(ErrorKind::Interrupted, "the other side does not answer"));
                }
                Event::Timeout => {}
            }
        }
    }

    /// Follows: one step after the other.
    async fn follow(&mut self, opened: &SessionRecord, meeting: Meeting) -> Result<Left> {
        let Meeting { epoch, feeds } = meeting;
        let (mut all, mut marks) = (Vec::new(), Vec::new());
        for (member, feed) in feeds {
            let mut own = None;
            if let Some(diverged) = feed.diverged {
                match self.own_changes(&member, epoch, diverged).await? {
                    Answer::Message(changes) => own = Some(changes),
                    Answer::Left(left) => return Ok(left),
                }
            }
            if let Some(applied) = feed.applied {
                self.check_ahead(&member, &applied).await?;
                marks.push((member.volume.clone(), feed.durable, Some(applied)));
            }
            // What a receiver applied last is what it shows; a snapshot taken there is a second
            // name for it.
            let shown = feed.applied.map(|set| set.target).or(feed.newest);
            all.push(Following { member, shown, half: feed.half, own });
        }
        if !marks.is_empty() {
            self.mark(&marks).await?;
        }
        loop {
            let record = self.core.session(self.session)?;
            if record.condition != Condition::Running || volumes_of(&record) != volumes_of(opened) {
                return Ok(Left::Changed);
            }
            for of in &all {
                if !self.core.is_primary_in(&of.member.volume, epoch).await? {
                    // Its role changed beside the session: what that means, an opening tells.
                    return Ok(Left::Changed);
                }
            }
            let asked = self.status.cuts_asked;
            match self.step(&record, &all, epoch).await? {
                Joint::Rest => {
                    // A wish does not rest while anything has changed.
                    self.status.cuts_done = asked;
                    self.status.failures = 0;
                    self.status.last_error = None;
                    if let Some(left) = self.turn_around(&record, epoch, Between::Rests).await? {
                        return Ok(left);
                    }
                    if self.handover.is_some() {
                        if self.is_late() {
                            self.give_up_late(&record).await?;
                        }
                        continue;
                    }
                    self.show("following");
                    let poll = Duration::from_millis(record.policy.timeout_ms / 2).min(POLL);
                    match self.port.next(poll.max(Duration::from_millis(20))).await {
                        Event::Message(Message::Failed { kind, message, hint }) => {
                            return Err(far_failure(&kind, &message, hint.as_deref()));
                        }
                        Event::Message(Message::Taken { bytes }) => {
                            self.under_way = self.under_way.saturating_sub(bytes);
                        }
                        Event::Message(other) => return Err(out_of_turn(&other)),
                        Event::Down(error) => return Err(error),
                        Event::Stop => return Ok(Left::Stop),
                        Event::Cut(wish) => self.asked_to_cut(wish),
                        Event::HandOver(wish) => self.wants_to_hand_over(wish),
                        Event::Changed | Event::Timeout => {}
                    }
                }
                Joint::Abort => {
                    for of in all.iter_mut().filter(|of| of.half.is_some()) {
                        let volume = of.member.far_volume.clone();
                        self.port.say(epoch.identity, Body::Message(Message::Abort { volume })).await?;
                        match self.answer().await? {
                            Answer::Message(Message::Aborted { .. }) => of.half = None,
                            Answer::Message(other) => return Err(out_of_turn(&other)),
                            Answer::Left(left) => return Ok(left),
                        }
                    }
                }
                Joint::Ship(sets) => {
                    let cut_at = self.last.unwrap_or(self.mark_cut);
                    let covers = self.covers;
                    let whole = sets.iter().any(|(set, _)| set.stamp.base.is_none());
                    self.show(if whole { "copying" } else { "following" });
                    let begun = self.port.now();
                    let shipped = self.ship(&record, &all, &sets).await;
                    self.status.set = None;
                    if let Shipped::Left(left) = shipped? {
                        if matches!(left, Left::Late) {
                            self.give_up_late(&record).await?;
                        }
                        return Ok(left);
                    }
                    let took = self.port.now().saturating_sub(begun);
                    if let Some(left) = self.turn_around(&record, epoch, Between::Shipped(took)).await? {
                        return Ok(left);
                    }
                    self.mark_cut = cut_at;
                    for (of, (set, _)) in all.iter_mut().zip(&sets) {
                        (of.shown, of.half, of.own) = (Some(set.target), None, None);
                    }
                    if covers {
                        self.status.cuts_done = asked;
                    }
                    self.status.failures = 0;
                    self.status.last_error = None;
                }
                Joint::Cut { .. } => unreachable!("a cut becomes sets to ship"),
            }
        }
    }

    /// Asks a receiver with something of its own what changed there since the state in common.
    async fn own_changes(
        &mut self,
        member: &MemberRecord,
        epoch: RoleEpoch,
        diverged: Diverged,
    ) -> Result<Answer<OwnChanges>> {
        let mut own = OwnChanges { diverged, ranges: Vec::new() };
        if let Some(common) = diverged.common
            && !self.core.offers(&member.volume).await?.contains(&common)
        {
            return Err(Error::conflict("the state that both sides had is not here any more").hint(format!(
                "'snapvol resync {0} --abort' there, then 'snapvol resync {0} --full', ships all",
                member.far_volume
            )));
        }
        let mut from = diverged.common.map(|_| 0);
        while let Some(at) = from {
            let ask = Message::Changes { volume: member.far_volume.clone(), from: at };
            self.port.say(epoch.identity, Body::Message(ask)).await?;
            match self.answer().await? {
                Answer::Message(Message::Changed { ranges, next }) => {
                    plan::join_ranges(&mut own.ranges, &ranges)?;
                    if next.is_some_and(|next| next <= at) {
                        return Err(Error::invalid("the other side says again what it said"));
                    }
                    from = next;
                }
                Answer::Message(other) => return Err(out_of_turn(&other)),
                Answer::Left(left) => return Ok(Answer::Left(left)),
            }
        }
        Ok(Answer::Message(own))
    }

    fn asked_to_cut(&mut self, wish: u64) {
        self.status.cuts_asked = self.status.cuts_asked.max(wish);
    }

    /// A receiver that has more than was ever cut here is not followed by an older copy of
    /// what it once followed.
    async fn check_ahead(&self, member: &MemberRecord, applied: &SetId) -> Result<()> {
        let last = self.core.last_cut(&member.volume).await?;
        if applied.stamp.number <= last {
            return Ok(());
        }
        Err(Error::conflict(format!(
            "the receiver has set {}, and the last one cut here is {last}",
            applied.stamp.number
        ))
        .hint("this store was restored from an older copy: the newer state is at the receiver"))
    }

    /// What is here of a volume.
    async fn here(&self, of: &Following) -> Result<Here> {
        let volume = &of.member.volume;
        let (cuts, marks) = (self.core.cuts(volume).await?, self.core.marks(volume).await?);
        let mut queue = self.core.offers(volume).await?;
        queue.reverse();
        let newest = marks.last().map(|mark| (mark.cut.set.target, mark.is_bookmark));
        let changed = match newest {
            Some((newest, _)) => self.core.changed_since(volume, newest).await?,
            None => u64::MAX,
        };
        // A bookmark can't be shipped: who is behind it needs a cut of what is here now. So does who
        // compares what is here with what is there.
        let bookmark = newest.filter(|(_, is_bookmark)| *is_bookmark).map(|(newest, _)| newest);
        let passed =
            bookmark.is_some() && (bookmark != of.shown || self.core.is_kept_readable(volume).await?);
        Ok(Here { cuts, marks, queue, changed, passed, others: self.others(volume) })
    }

    /// Decides what is next. What is to be shipped is recorded before anybody could delete it.
    async fn step(&mut self, record: &SessionRecord, all: &[Following], epoch: RoleEpoch) -> Result<Joint> {
        self.guard().await;
        let (mut turns, mut here) = (Vec::new(), Vec::new());
        // In the order of their names, so that nobody waits for a turn in a circle.
        for of in all {
            turns.push(self.core.sets_turn(&of.member.volume).await);
        }
        for of in all {
            here.push(self.here(of).await?);
        }
        let changed = here.iter().fold(0u64, |sum, here| sum.saturating_add(here.changed));
        let now = self.port.now();
        let timeout = Duration::from_millis(record.policy.timeout_ms);
        let waited = self.last.is_none_or(|last| now.saturating_sub(last) >= timeout);
        let due = self.status.cuts_asked > self.status.cuts_done
            || waited
            || self.handover.is_some()
            || changed >= record.policy.high_water;
        let is_changed = changed > 0 || here.iter().any(|here| here.passed);
        let facts: Vec<Facts<'_>> = all
            .iter()
            .zip(&here)
            .map(|(of, here)| Facts {
                epoch,
                shown: of.shown,
                common: of.common(),
                half: of.half.as_ref(),
                queue: &here.queue,
                cuts: &here.cuts,
                others: &here.others,
                due,
                changed: is_changed,
            })
            .collect();
        let mut step = plan::joint(&facts);
        self.outline(all, &here, now).await?;
        self.covers = matches!(step, Joint::Cut { .. });
        if let Joint::Cut { bases } = step {
            let cuts = self.cut(record, &turns).await?;
            let sets = cuts.iter().zip(bases).map(|(cut, base)| (set_to(cut, base), None));
            step = Joint::Ship(sets.collect());
        }
        if let Joint::Ship(sets) = &step {
            let is_newest = |(here, (set, _)): (&Here, &(SetId, _))| here.newest() == Some(set.target);
            self.covers |= here.iter().zip(sets).all(is_newest) && changed == 0;
            if sets.iter().all(|(_, resume)| resume.is_none()) {
                self.last = Some(now);
            }
            let targets: Vec<_> = sets.iter().map(|(set, _)| Some(*set)).collect();
            if !record.members.iter().map(|member| member.target).eq(targets.iter().copied()) {
                self.change(move |record| {
                    for (member, target) in record.members.iter_mut().zip(targets) {
                        member.target = target;
                    }
                })
                .await?;
            }
        }
        drop(turns);
        Ok(step)
    }

    /// Takes a cut of each volume between the owner's hooks.
    async fn cut(&mut self, record: &SessionRecord, turns: &[Turn]) -> Result<Vec<SetId>> {
        let policy = &record.policy;
        if !policy.before_cut.is_empty() {
            self.port.hook("before-cut", &policy.before_cut, record).await?;
        }
        let cut = match (turns, &record.members[..], record.group) {
            ([turn], [member], None) => self.core.cut(turn, &member.volume).await.map(|cut| vec![cut]),
            _ => self.core.cut_together(turns, &volumes_of(record)).await,
        };
        if !policy.after_cut.is_empty()
            && let Err(error) = self.port.hook("after-cut", &policy.after_cut, record).await
        {
            // The cut is good; what the owner wanted to wake up again may not be.
            tracing::error!("replication of {}: {error}", record.unit);
        }
        cut
    }

    /// The cuts that other sessions' receivers have or are getting.
    fn others(&self, volume: &str) -> BTreeSet<Uuid> {
        let mut sessions = self.core.sessions_of(volume, Side::Sender);
        sessions.retain(|record| record.session != self.session);
        let members = sessions.iter().filter_map(|record| record.member(volume));
        members.flat_map(|m| [m.durable, m.applied, m.target]).flatten().map(|set| set.target).collect()
    }

    /// No receiver of the volume's sessions has an older state than this; none if nobody has any.
    fn keep(&self, volume: &str) -> Option<u64> {
        let sessions = self.core.sessions_of(volume, Side::Sender);
        // A first set may have arrived, though nobody here has heard of it yet.
        let marks = sessions.iter().filter_map(|record| {
            let member = record.member(volume)?;
            member.applied.or(member.target)
        });
        marks.map(|set| set.stamp.number).min()
    }

    async fn change(&self, change: impl FnOnce(&mut SessionRecord)) -> Result<()> {
        let changed = self.core.change_session(self.session, |known| {
            let mut record = known.ok_or_else(|| Error::not_found("the session is gone"))?;
            change(&mut record);
            Ok(record)
        });
        changed.await.map(drop)
    }

    /// Records what the receiver told of volumes; then cuts that nobody needs go, on both sides, and
    /// what every receiver has shrinks to a bookmark here.
    async fn mark(&mut self, marks: &[Told]) -> Result<()> {
        let known = self.core.session(self.session)?;
        let is_new = |(volume, durable, applied): &Told| {
            known.member(volume).is_some_and(|known| (known.durable, known.applied) != (*durable, *applied))
        };
        if marks.iter().any(is_new) {
            let marks = marks.to_vec();
            self.change(move |record| {
                for (volume, durable, applied) in marks {
                    let Some(member) = record.members.iter_mut().find(|m| m.volume == volume) else {
                        continue;
                    };
                    (member.durable, member.applied) = (durable, applied);
                    if member.target.map(|set| set.target) == applied.map(|set| set.target) {
                        member.target = None;
                    }
                }
            })
            .await?;
        }
        let peer = self.core.session(self.session)?.peer_store;
        for (volume, durable, applied) in marks {
            if let Some(peer) = peer.filter(|_| applied.is_some()) {
                self.core.forget_earlier(self.session, volume, peer).await?;
            }
            self.status.durable = durable.map(|set| set.stamp.number);
            self.status.applied = applied.map(|set| set.stamp.number);
            if let Err(error) = self.core.prune_sent(volume).await {
                tracing::warn!("cuts of volume {volume} stay for now: {error}");
            }
        }
        Ok(())
    }

    /// What the owner is told: sets that are not applied, and how far behind that is.
    async fn outline(&mut self, all: &[Following], here: &[Here], now: Duration) -> Result<()> {
        (self.status.lag_bytes, self.status.lag_blocks) = (0, 0);
        for (of, here) in all.iter().zip(here) {
            let (marks, shown) = (&here.marks, of.common().or(of.shown));
            let after = shown.and_then(|shown| marks.iter().position(|mark| mark.cut.set.target == shown));
            let ahead = &marks[after.map_or(0, |at| at + 1)..];
            let shippable = ahead.iter().filter(|mark| !mark.is_bookmark);
            // Those of a group are the same for all of its volumes.
            self.status.outstanding = shippable
                .map(|Mark { cut, .. }| OutstandingSet {
                    number: cut.set.stamp.number,
                    created: crate::engine::rfc3339(cut.created_us),
                })
                .collect();
            let volume = &of.member.volume;
            let (_, _, geometry) = self.core.unit(volume).await?;
            let behind = match (after, ahead.is_empty()) {
                (Some(_), true) => here.changed,
                (Some(at), false) => self.core.changed_since(volume, marks[at].cut.set.target).await?,
                (None, _) => geometry.size,
            };
            self.status.lag_bytes = self.status.lag_bytes.saturating_add(behind);
            self.status.lag_blocks += behind.div_ceil(u64::from(geometry.block_size));
        }
        let behind = self.status.lag_bytes;
        let lag = if behind == 0 { Duration::ZERO } else { now.saturating_sub(self.mark_cut) };
        if behind == 0 {
            // What is shown there is what is here, as of now.
            self.mark_cut = now;
        }
        self.status.lag_seconds = lag.as_secs_f64();
        Ok(())
    }
}

/// The marks of a volume: the last set that is durable there, and the last that is shown.
type Told = (String, Option<SetId>, Option<SetId>);

/// An answer, or why there is none to wait for.
pub(super) enum Answer<M = Message> {
    Message(M),
    Left(Left),
}

pub(super) fn out_of_turn(message: &Message) -> Error {
    Error::invalid(format!("the other side says '{}' out of turn", message.word()))
}
