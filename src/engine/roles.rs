//! Who is the primary: how a volume stands, how it is fenced, how it takes its sender's place.
//!
//! Each is a step that leaves a state from which any other step may follow, and that may be taken
//! again; what comes after what is decided by `replica`.

use super::core::Core;
use super::resync::FeedBack;
use super::sets::{Relation, relation};
use super::thread::Engine;
use crate::error::{Error, ErrorKind, Result};
use crate::format::roles::{RoleState, TurnRecord};
use crate::format::session::{Condition, SessionRecord, Side, Start, TurnIntent};
use crate::format::state::LINEAGE_MAX;
use crate::snapshot::{Gate, TakeRequest, TurnCheck, Volume};
use crate::types::{Role, RoleEpoch, SetId, Standing};
use serde::{Deserialize, Serialize};
use std::rc::Rc;
use std::sync::PoisonError;
use std::time::Duration;
use uuid::Uuid;

/// How long a set that is being received may take to end, once its session was stopped.
const RECEIVE_WAIT: Duration = Duration::from_secs(20);
/// How often it is looked at.
const RECEIVE_POLL: Duration = Duration::from_millis(50);

/// What one store asks another about roles.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RoleRequest {
    /// How does a volume stand?
    Look {
        /// It.
        volume: String,
    },
    /// Another volume becomes the primary: this one takes no more writes.
    Fence {
        /// This one.
        volume: String,
        /// The session over which the other one followed it.
        session: Uuid,
        /// The line that the other one will be in.
        lineage: Vec<RoleEpoch>,
    },
    /// Feed a volume that was the primary before.
    FeedBack(Box<FeedBack>),
    /// Don't feed it any more.
    StopFeedBack {
        /// The session that did.
        session: Uuid,
    },
    /// Hand the role over to whoever asks.
    HandOver {
        /// The volume that is the primary.
        volume: String,
        /// The session over which the other one follows it.
        session: Uuid,
        /// Milliseconds that writers may wait.
        pause_max_ms: u64,
        /// Writers are disconnected.
        force: bool,
    },
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RoleAnswer {
    /// How it stands.
    Seen(Box<Seen>),
    /// It is done.
    Done,
}

/// How a volume stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// The identity of its store.
    pub store: Uuid,
    /// Its role.
    pub role: Role,
    /// Whether it may be written to.
    pub standing: Standing,
    /// Its role epochs, oldest first.
    pub lineage: Vec<RoleEpoch>,
    /// Its newest state.
    pub newest: Option<Uuid>,
    /// The identities of its states, youngest first.
    pub held: Vec<Uuid>,
    /// Connections that may write.
    pub writers: u64,
    /// A daemon serves it.
    pub served: bool,
}

/// How a volume takes its sender's place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// What it is part of.
    pub operation: Uuid,
    /// The line that it will be in.
    pub lineage: Vec<RoleEpoch>,
    /// The state that production goes on from, if that is not the newest one.
    pub snapshot: Option<String>,
}

/// How a receiver takes its sender's place because that one says so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TakeOver {
    /// What it is part of, at both ends.
    pub operation: Uuid,
    /// The line that the receiver's volume will be in.
    pub lineage: Vec<RoleEpoch>,
    /// The last set; none: the receiver has taken the place already.
    pub restart: Option<SetId>,
    /// How the receiver feeds the sender's volume from then on.
    pub feed: FeedBack,
}

/// A volume is taking its sender's place as long as this lives.
pub struct Turning<'a> {
    core: &'a Core,
    volume: String,
}

impl Drop for Turning<'_> {
    fn drop(&mut self) {
        self.core.turning.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.volume);
    }
}

fn is_turning(volume: &str) -> Error {
    Error::conflict(format!("volume {volume} is taking its sender's place at this moment"))
}

/// A line with one more entry.
#[must_use]
pub fn next_line(line: &[RoleEpoch], identity: Uuid) -> Vec<RoleEpoch> {
    let mut next = line.to_vec();
    let counter = line.last().map_or(1, |last| last.counter + 1);
    next.push(RoleEpoch { counter, identity });
    let excess = next.len().saturating_sub(LINEAGE_MAX);
    next.drain(..excess);
    next
}

pub(super) fn check_of(volume: &Volume) -> TurnCheck {
    TurnCheck { role: volume.role(), last: volume.lineage().last().copied(), newest: None }
}

/// A turn that changes nothing.
pub(super) fn same(volume: &Volume) -> TurnRecord {
    let RoleState { standing, restart, operation, resync, .. } = volume.roles();
    TurnRecord {
        role: volume.role(),
        standing,
        lineage: volume.lineage(),
        restart,
        operation,
        rollback: None,
        resync,
    }
}

pub(super) fn writers(engine: &Engine, name: &str) -> usize {
    engine.clients.of(name, false).iter().filter(|client| client.writable).count()
}

impl Core {
    /// Answers another store.
    ///
    /// # Errors
    /// As for what is asked.
    pub async fn role_request(&self, request: &RoleRequest) -> Result<RoleAnswer> {
        match request {
            RoleRequest::Look { volume } => {
                self.look(volume).await.map(|seen| RoleAnswer::Seen(Box::new(seen)))
            }
            RoleRequest::Fence { volume, session, lineage } => {
                let known = self
                    .session(*session)
                    .is_ok_and(|known| known.side == Side::Sender && known.member(volume).is_some());
                if !known {
                    return Err(Error::conflict(format!(
                        "volume {volume} has no session with whoever wants to take its place"
                    )));
                }
                self.fence(volume, lineage).await.map(|()| RoleAnswer::Done)
            }
            RoleRequest::FeedBack(asked) => self.feed_back(asked).await.map(|()| RoleAnswer::Done),
            RoleRequest::HandOver { volume, .. } => Err(Error::conflict(format!(
                "the store of volume {volume} is not served, so nobody can hand it over"
            ))
            .hint("start it with: snapvol serve; or use 'failover --force'")),
            RoleRequest::StopFeedBack { session } => {
                self.stop_feed_back(*session).await.map(|()| RoleAnswer::Done)
            }
        }
    }

    /// How a volume stands.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn look(&self, volume: &str) -> Result<Seen> {
        let (held, store) = (self.offers(volume).await?, self.identity());
        self.on_engine(volume, move |engine, name| async move {
            let volume = engine.volume(&name)?;
            Ok(Seen {
                store,
                role: volume.role(),
                standing: volume.roles().standing,
                lineage: volume.lineage(),
                newest: volume.newest_state().map(|record| record.uuid),
                held,
                writers: writers(&engine, &name) as u64,
                served: false,
            })
        })
        .await
    }

    /// What turns have left at a volume.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn roles(&self, volume: &str) -> Result<RoleState> {
        self.with(volume, |volume| async move { Ok(volume.roles()) }).await
    }

    /// Whether a volume is a primary that nobody has fenced, in that role epoch.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn is_primary_in(&self, volume: &str, epoch: RoleEpoch) -> Result<bool> {
        self.with(volume, move |volume| async move {
            let primary = volume.role() == Role::Primary && volume.roles().standing != Standing::Fenced;
            Ok(primary && volume.lineage().last() == Some(&epoch))
        })
        .await
    }

    /// The number of the set that is half received.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn half_number(&self, volume: &str) -> Result<Option<u64>> {
        let half = self.with(volume, |volume| async move { Ok(volume.half_received()) }).await?;
        Ok(half.and_then(|(record, _)| record.set).map(|set| set.number))
    }

    /// A younger role epoch of the volume's own line is another one's: no client writes any more,
    /// durably, and those that are connected go.
    ///
    /// # Errors
    /// `Conflict` when `theirs` is not younger in the volume's own line; `Io`.
    pub async fn fence(&self, volume: &str, theirs: &[RoleEpoch]) -> Result<()> {
        let theirs = theirs.to_vec();
        self.on_engine(volume, move |engine, name| async move {
            let volume = engine.volume(&name)?;
            let ours = volume.lineage();
            if ours.last() == theirs.last() || relation(&ours, &theirs) != Relation::Follows {
                return Err(Error::conflict(format!(
                    "the other line is not younger than that of volume {name}"
                )));
            }
            if volume.role() == Role::Primary && volume.roles().standing != Standing::Fenced {
                let turn = TurnRecord { standing: Standing::Fenced, ..same(&volume) };
                volume.turn(&check_of(&volume), turn).await?;
                tracing::warn!("volume {name} is fenced: another one has become the primary");
            }
            // Who waits at the gate hears that it is shut for good.
            volume.set_gate(Gate::Open);
            engine.clients.disconnect(&name, false).await;
            Ok(())
        })
        .await
    }

    /// A receiver has confirmed that the volume is the primary.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn confirm(&self, volume: &str) -> Result<()> {
        self.with(volume, |volume| async move {
            if volume.gate() == Gate::Unconfirmed {
                volume.set_gate(Gate::Open);
            }
            volume.set_split(false);
            Ok(())
        })
        .await
    }

    /// A receiver is about to hear the volume's line: what its owner said, that it is the primary
    /// whatever others are, holds for no later start. The receiver may take that line over, and the
    /// volume's place in it, without being heard.
    ///
    /// # Errors
    /// `Conflict` when the role changes at this moment; `Io`, `Full`.
    pub async fn end_alone(&self, volume: &str) -> Result<()> {
        self.with(volume, |volume| async move {
            if volume.role() == Role::Primary && volume.roles().standing == Standing::Alone {
                let turn = TurnRecord { standing: Standing::Open, ..same(&volume) };
                volume.turn(&check_of(&volume), turn).await?;
            }
            Ok(())
        })
        .await
    }

    /// A session met another line than the volume's. Both sides stay as they are; who is at the
    /// gate is let in, for an owner has made this volume a primary of its own.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn met_split(&self, volume: &str) -> Result<()> {
        self.with(volume, |volume| async move {
            if volume.gate() == Gate::Unconfirmed {
                volume.set_gate(Gate::Open);
            }
            volume.set_split(true);
            Ok(())
        })
        .await
    }

    /// Whether the volume's writers wait for a receiver's word.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn is_unconfirmed(&self, volume: &str) -> Result<bool> {
        self.with(volume, |volume| async move { Ok(volume.gate() == Gate::Unconfirmed) }).await
    }

    /// At an open: the writers of a primary with receivers wait until one of these has confirmed
    /// it, unless the policies say otherwise. A session by which no set was sent yet says nothing;
    /// one that was sent may have arrived unheard, and its receiver may have taken the place.
    pub(super) async fn hold_unconfirmed(&self) {
        for volume in self.names() {
            let sessions = self.sessions_of(&volume, Side::Sender);
            let mut sessions = sessions.iter().filter(|record| {
                record.member(&volume).is_some_and(|member| {
                    member.applied.is_some() || member.durable.is_some() || member.target.is_some()
                })
            });
            if !sessions.any(|record| record.policy.start == Start::Confirmed) {
                continue;
            }
            let held = self.with(&volume, |volume| async move {
                if volume.role() == Role::Primary && volume.roles().standing == Standing::Open {
                    tracing::info!(
                        "volume {0}: writers wait until a receiver has confirmed that this is the primary; \
                         'snapvol promote {0} --force' lets them in without",
                        volume.name()
                    );
                    volume.set_gate(Gate::Unconfirmed);
                }
                Ok(())
            });
            // One that can't be opened has no writers.
            let _ = held.await;
        }
    }

    /// The owner decides that this volume is the primary, whatever others are: it goes on under
    /// a role epoch of its own.
    ///
    /// # Errors
    /// `Conflict` for a primary that nothing keeps from being one; `Io`.
    pub(super) async fn start_alone(&self, volume: &str) -> Result<()> {
        self.with(volume, |volume| async move {
            let name = volume.name();
            let standing = volume.roles().standing;
            if standing.is_open() && volume.gate() != Gate::Unconfirmed {
                return Err(Error::conflict(format!("volume {name} is a primary already")));
            }
            let lineage = next_line(&volume.lineage(), volume.io().identity());
            let turn = TurnRecord { standing: Standing::Alone, lineage, operation: None, ..same(&volume) };
            volume.turn(&check_of(&volume), turn).await?;
            volume.set_gate(Gate::Open);
            tracing::warn!("volume {name} is the primary because its owner says so");
            Ok(())
        })
        .await
    }

    /// From here on, until what is returned goes, no opening takes a turn of the volume for one
    /// that was left half done.
    ///
    /// # Errors
    /// `Conflict` when it is turning already.
    pub fn begin_turning(&self, volume: &str) -> Result<Turning<'_>> {
        let mut turning = self.turning.lock().unwrap_or_else(PoisonError::into_inner);
        if !turning.insert(volume.to_owned()) {
            return Err(is_turning(volume));
        }
        Ok(Turning { core: self, volume: volume.to_owned() })
    }

    /// # Errors
    /// `Conflict` when the volume takes its sender's place at this moment.
    pub(super) fn check_not_turning(&self, volume: &str) -> Result<()> {
        let turning = self.turning.lock().unwrap_or_else(PoisonError::into_inner);
        if turning.contains(volume) { Err(is_turning(volume)) } else { Ok(()) }
    }

    /// A session brings nothing more: the volume that it fed takes its sender's place, or all of a
    /// group do by that turn. With an opening, only if no later one was recorded.
    ///
    /// # Errors
    /// `NotFound`; `Conflict`; `Io`.
    pub async fn stop_feed(
        &self,
        session: Uuid,
        opening: Option<Uuid>,
        turn: Option<TurnIntent>,
    ) -> Result<SessionRecord> {
        let turned = self.change_session(session, |known| {
            let mut record = known.ok_or_else(|| Error::not_found("the session is gone"))?;
            let later = opening.is_some() && record.opening != opening;
            if later || (opening.is_some() && record.condition != Condition::Running) {
                return Err(Error::conflict("the session was opened again, or ended, meanwhile"));
            }
            (record.condition, record.turn) = (Condition::Turned, turn);
            for member in &mut record.members {
                (member.durable, member.applied, member.target) = (None, None, None);
            }
            Ok(record)
        });
        turned.await
    }

    /// A volume takes its sender's place: what is half received goes, what has arrived whole is
    /// taken in, and one record makes it the primary. The session was stopped before.
    ///
    /// # Errors
    /// `Conflict` when something changed meanwhile, or a set does not end; `NotFound` for the
    /// snapshot; `Io`, `Full`.
    pub async fn take_place(&self, volume: &str, place: Place) -> Result<()> {
        self.wait_received(volume).await?;
        self.with(volume, move |volume| async move {
            match volume.receive_abort().await {
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                aborted => aborted?,
            }
            let mut check = check_of(&volume);
            if check.role != Role::Secondary {
                return Err(Error::conflict(format!("volume {} is a primary already", volume.name())));
            }
            let restart = newest_set(&volume);
            let rollback = match &place.snapshot {
                None => None,
                Some(name) => {
                    let target = volume.open_snapshot(name)?.uuid();
                    keep_newest(&volume, restart).await?;
                    Some(target)
                }
            };
            check.newest = volume.newest_state().map(|record| record.uuid);
            let turn = TurnRecord {
                role: Role::Primary,
                standing: Standing::Open,
                lineage: place.lineage,
                restart,
                operation: Some(place.operation),
                rollback,
                resync: None,
            };
            volume.turn(&check, turn).await
        })
        .await
    }

    /// Writes down at the session which state its volume went on from; until then the session
    /// counts as one that is still to be turned.
    ///
    /// # Errors
    /// `Io`.
    pub async fn end_turn(&self, volume: &str, session: Uuid) -> Result<Option<SetId>> {
        let restart = self.roles(volume).await?.restart;
        let ended = self.change_session(session, |known| {
            let mut record = known.ok_or_else(|| Error::not_found("the session is gone"))?;
            record.condition = Condition::Turned;
            for member in &mut record.members {
                (member.durable, member.applied) = (restart, restart);
            }
            Ok(record)
        });
        ended.await?;
        Ok(restart)
    }

    /// A receiver takes its sender's place because that one says so: the session turns, one record
    /// makes the volume the primary, and the session that feeds the old one begins. Said again, it
    /// does what is left. Returns the line that the volume is in.
    ///
    /// # Errors
    /// `Conflict` for an earlier opening, or when the newest state is another one; `Io`, `Full`.
    pub async fn take_over(
        &self,
        session: Uuid,
        opening: Uuid,
        volume: &str,
        take: &TakeOver,
    ) -> Result<Vec<RoleEpoch>> {
        if let Some(record) = self.session(session).ok().filter(|record| record.group.is_some()) {
            return self.take_over_group(&record, opening, take).await;
        }
        let _turning = self.begin_turning(volume)?;
        let done = self.roles(volume).await?.operation == Some(take.operation);
        if !done {
            let newest = self.cuts(volume).await?.pop().map(|cut| cut.set.target);
            if newest.is_none() || newest != take.restart.map(|restart| restart.target) {
                return Err(Error::conflict(format!("volume {volume} does not show the last set")));
            }
            self.stop_feed(session, Some(opening), None).await?;
            let place = Place { operation: take.operation, lineage: take.lineage.clone(), snapshot: None };
            self.take_place(volume, place).await?;
        }
        let restart = match self.turned(volume).filter(|turned| turned.session == session) {
            Some(_) => self.end_turn(volume, session).await?,
            None => self.roles(volume).await?.restart,
        };
        if self.session(take.feed.session).is_err() {
            let record = self.sender_record(&take.feed, restart).await?;
            self.change_session(take.feed.session, |known| Ok(known.unwrap_or(record))).await?;
        }
        Ok(self.look(volume).await?.lineage)
    }

    /// No client's write is let in any more, durably, and those that were are done.
    ///
    /// # Errors
    /// `Conflict` when writers are connected, unless forced; `Io`, `Full`.
    pub async fn hold_writers(&self, volume: &str, operation: Uuid, force: bool) -> Result<()> {
        self.on_engine(volume, move |engine, name| async move {
            let volume = engine.volume(&name)?;
            let count = writers(&engine, &name);
            if count > 0 && !force {
                return Err(Error::conflict(format!("volume {name} has {count} writers connected"))
                    .hint("disconnect them, or use --force: they are cut off once the last set is there"));
            }
            volume.set_gate(Gate::HandingOver);
            let held = async {
                volume.writers_done().await?;
                let standing = Standing::HandingOver;
                let turn = TurnRecord { standing, operation: Some(operation), ..same(&volume) };
                volume.turn(&check_of(&volume), turn).await
            };
            let held = held.await;
            if held.is_err() {
                volume.set_gate(Gate::Open);
            }
            held
        })
        .await
    }

    /// The other side did not become the primary: writers are let in.
    ///
    /// # Errors
    /// `Io`, `Full`; they wait then.
    pub async fn let_writers_go(&self, volume: &str) -> Result<()> {
        self.with(volume, |volume| async move {
            if volume.role() == Role::Primary && volume.roles().standing == Standing::HandingOver {
                let turn = TurnRecord { standing: Standing::Open, operation: None, ..same(&volume) };
                volume.turn(&check_of(&volume), turn).await?;
            }
            volume.set_gate(Gate::Open);
            Ok(())
        })
        .await
    }

    /// The other side became the primary, with all that is here: this volume follows it. Writers
    /// that waited hear that they are shut out.
    ///
    /// # Errors
    /// `Conflict` when the volume was handed over by another operation, or not at all; `Io`.
    pub async fn give_way(&self, volume: &str, operation: Uuid, lineage: Vec<RoleEpoch>) -> Result<()> {
        self.on_engine(volume, move |engine, name| async move {
            let volume = engine.volume(&name)?;
            let roles = volume.roles();
            if roles.standing != Standing::HandingOver || roles.operation != Some(operation) {
                return Err(Error::conflict(format!("volume {name} is in no handover of that kind")));
            }
            let turn = TurnRecord {
                role: Role::Secondary,
                standing: Standing::Open,
                lineage,
                restart: None,
                operation: Some(operation),
                rollback: None,
                resync: None,
            };
            volume.turn(&check_of(&volume), turn).await?;
            volume.set_gate(Gate::Open);
            engine.clients.disconnect(&name, false).await;
            Ok(())
        })
        .await?;
        self.finish_resync(volume).await
    }

    /// Waits until no set is being received.
    pub(super) async fn wait_received(&self, volume: &str) -> Result<()> {
        self.with(volume, |volume| async move {
            let mut waited = Duration::ZERO;
            while volume.is_receiving() {
                if waited >= RECEIVE_WAIT {
                    return Err(Error::conflict(format!(
                        "a receive into volume {} does not end",
                        volume.name()
                    ))
                    .hint("end the programs that bring it, then run the command again"));
                }
                volume.io().sleep(RECEIVE_POLL).await;
                waited += RECEIVE_POLL;
            }
            Ok(())
        })
        .await
    }
}

/// The set that ends in the newest state that a session brought.
pub(super) fn newest_set(volume: &Volume) -> Option<SetId> {
    let newest = volume.cuts().pop()?;
    Some(SetId { stamp: newest.set?, target: newest.uuid })
}

/// Gives the newest state a name that users see, since production will be an older one.
async fn keep_newest(volume: &Rc<Volume>, newest: Option<SetId>) -> Result<()> {
    let number = newest.map_or(0, |set| set.stamp.number);
    let name = format!("newest-{number}");
    if volume.snapshots().iter().any(|record| record.name == name) {
        return Ok(());
    }
    let (uuid, created_us) = (volume.io().identity(), volume.io().now_us());
    volume.take(TakeRequest { uuid, name, created_us, batch: None, received: false, set: None }).await
}
