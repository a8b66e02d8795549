//! Handing over: a primary makes its receiver the primary, and loses nothing.
//!
//! The sender drives, between its sets. It ships until a set takes little time; then writers wait,
//! durably: after a crash none is let in before it is known how this ended. The last set goes, the
//! receiver takes the place in one record, this volume gives way in one record.
//!
//! Invariants:
//! - nothing is written here from the last cut on, until it is known that the receiver did not
//!   take the place;
//! - who asked the receiver knows that it did not only from a later opening, which the
//!   receiver records before it answers: what an earlier one still asks is refused there.

use super::sender::{Answer, Left, Port, Sender, out_of_turn, volumes_of};
use super::wire::{Body, Message};
use crate::engine::resync::FeedBack;
use crate::engine::roles::{TakeOver, next_line};
use crate::engine::sets::Feed;
use crate::engine::together::line_to;
use crate::error::{Error, Result};
use crate::format::session::{SessionRecord, Side};
use crate::types::{Role, RoleEpoch, Standing};
use futures::channel::oneshot;
use std::time::Duration;
use uuid::Uuid;

/// Sets that may be shipped before one of them takes little time.
const ROUNDS_MAX: u32 = 20;

/// What an owner wants.
#[derive(Debug)]
pub struct Wish {
    /// How long writers may wait.
    pub pause_max: Duration,
    /// Writers are disconnected in the end.
    pub force: bool,
    /// How it ended.
    pub answer: oneshot::Sender<Result<()>>,
}

/// A handover under way.
pub(super) struct HandOver {
    wish: Wish,
    stage: Stage,
}

enum Stage {
    /// Sets are shipped, writers write.
    Shipping { rounds: u32 },
    /// Writers wait since then; nobody was asked for anything.
    Held { since: Duration, operation: Uuid },
    /// The receiver was asked to take the place.
    Asked,
}

/// Where a session is between its sets.
pub(super) enum Between {
    /// All that is here was shipped.
    Rests,
    /// A set was shipped, in that time.
    Shipped(Duration),
}

impl<P: Port> Sender<'_, P> {
    /// An owner wants the roles changed.
    pub(super) fn wants_to_hand_over(&mut self, wish: Wish) {
        if self.handover.is_some() {
            // Whoever asked may have gone.
            let _ = wish.answer.send(Err(Error::conflict("a handover is under way already")));
            return;
        }
        self.handover = Some(HandOver { wish, stage: Stage::Shipping { rounds: 0 } });
    }

    /// The same of a session that ships nothing at the moment.
    pub(super) fn refuse_to_hand_over(&self, wish: Wish) {
        let state = &self.status.state;
        let error = Error::conflict(format!("the session of volume {} is {state}", self.status.unit))
            .hint("'snapvol status' says why; a handover needs one that follows");
        let _ = wish.answer.send(Err(error));
    }

    /// Writers wait for a handover, and have waited for as long as they may.
    pub(super) fn is_late(&self) -> bool {
        self.time_left() == Some(Duration::ZERO)
    }

    /// How long writers may wait still, where they do.
    pub(super) fn time_left(&self) -> Option<Duration> {
        match &self.handover {
            Some(HandOver { wish, stage: Stage::Held { since, .. } }) => {
                Some((*since + wish.pause_max).saturating_sub(self.port.now()))
            }
            _ => None,
        }
    }

    /// The next step of a handover, if one is wanted.
    pub(super) async fn turn_around(
        &mut self,
        record: &SessionRecord,
        epoch: RoleEpoch,
        between: Between,
    ) -> Result<Option<Left>> {
        let Some(HandOver { wish, stage }) = &mut self.handover else { return Ok(None) };
        match (stage, between) {
            (Stage::Shipping { rounds }, between) => {
                *rounds += 1;
                let short = match between {
                    Between::Rests => true,
                    Between::Shipped(took) => took < wish.pause_max / 2,
                };
                let (rounds, pause_max, force) = (*rounds, wish.pause_max, wish.force);
                if !short && rounds >= ROUNDS_MAX {
                    let error = too_long(&record.unit, pause_max);
                    self.answer_handover(Err(error));
                    return Ok(None);
                }
                if short && let Err(error) = self.hold_writers(record, force).await {
                    self.answer_handover(Err(error));
                }
                Ok(None)
            }
            (Stage::Held { operation, .. }, Between::Rests) => {
                let operation = *operation;
                self.ask_to_take_over(record, epoch, operation).await
            }
            _ => Ok(None),
        }
    }

    /// From here on no client's write is let in, also after a crash.
    async fn hold_writers(&mut self, record: &SessionRecord, force: bool) -> Result<()> {
        let unit = &record.unit;
        if record.way_back.is_empty() {
            return Err(Error::conflict(format!("{} does not know how to reach {unit}", record.destination))
                .hint(
                    "say it with 'replicate VOL DEST --way-back ssh://HOST/STORE/VOL', as seen from there",
                ));
        }
        let sessions = self.core.sessions();
        let others =
            sessions.iter().filter(|o| o.side == Side::Sender && o.unit == *unit).count().saturating_sub(1);
        if others > 0 && !force {
            return Err(Error::conflict(format!("{unit} is replicated to {others} more places"))
                .hint("--force goes on; they are to be replicated to from the new primary then"));
        }
        let operation = self.core.new_identity().await?;
        let volumes = volumes_of(record);
        for volume in &volumes {
            if let Err(error) = self.core.hold_writers(volume, operation, force).await {
                for volume in &volumes {
                    self.core.let_writers_go(volume).await?;
                }
                return Err(error);
            }
        }
        self.show("handing-over");
        let since = self.port.now();
        if let Some(handover) = &mut self.handover {
            handover.stage = Stage::Held { since, operation };
        }
        Ok(())
    }

    /// The last set is there: asks the receiver to take the place, and gives way.
    async fn ask_to_take_over(
        &mut self,
        record: &SessionRecord,
        epoch: RoleEpoch,
        operation: Uuid,
    ) -> Result<Option<Left>> {
        let marked = self.core.session(self.session)?;
        let applied: Option<Vec<_>> = marked.members.iter().map(|member| member.applied).collect();
        let (Some(restarts), Some(member)) = (applied, record.members.first()) else {
            let error = Error::conflict("the receiver has no set by this session");
            return self.let_go(&volumes_of(record), error).await.map(|()| None);
        };
        let lineage = self.core.look(&member.volume).await?.lineage;
        let identity = self.core.new_identity().await?;
        let take = TakeOver {
            operation,
            lineage: next_line(&lineage, identity),
            restart: restarts.first().copied(),
            feed: feed_back(record, operation)?,
        };
        if let Some(handover) = &mut self.handover {
            handover.stage = Stage::Asked;
        }
        self.take_over(record, epoch, take).await
    }

    async fn take_over(
        &mut self,
        record: &SessionRecord,
        epoch: RoleEpoch,
        take: TakeOver,
    ) -> Result<Option<Left>> {
        let volume = take.feed.volume.clone();
        let operation = take.operation;
        let ask = Message::TakeOver { volume, take: Box::new(take) };
        self.port.say(epoch.identity, Body::Message(ask)).await?;
        let lineage = match self.answer().await? {
            Answer::Message(Message::TookOver { lineage }) => lineage,
            Answer::Message(other) => return Err(out_of_turn(&other)),
            Answer::Left(left) => return Ok(Some(left)),
        };
        for volume in volumes_of(record) {
            let seen = self.core.look(&volume).await?;
            let line = match lineage.last() {
                Some(last) if record.group.is_some() => line_to(&seen.lineage, *last),
                _ => lineage.clone(),
            };
            // One of a group may have given way before a crash.
            if record.group.is_none() || seen.role == Role::Primary {
                self.core.give_way(&volume, operation, line).await?;
            }
        }
        self.answer_handover(Ok(()));
        Ok(Some(Left::Changed))
    }

    /// The receiver did not take the place, and will not: writers go on.
    pub(super) async fn let_go(&mut self, volumes: &[String], why: Error) -> Result<()> {
        for volume in volumes {
            self.core.let_writers_go(volume).await?;
        }
        self.answer_handover(Err(why));
        Ok(())
    }

    /// Writers waited for too long.
    pub(super) async fn give_up_late(&mut self, record: &SessionRecord) -> Result<()> {
        let pause_max = self.handover.as_ref().map_or(Duration::ZERO, |handover| handover.wish.pause_max);
        self.let_go(&volumes_of(record), too_long(&record.unit, pause_max)).await
    }

    /// The session failed. Before the receiver was asked, writers go on at once.
    pub(super) async fn handover_failed(&mut self, record: &SessionRecord, error: &Error) {
        let why = error.duplicate();
        match self.handover.as_ref().map(|handover| &handover.stage) {
            Some(Stage::Shipping { .. }) => self.answer_handover(Err(why)),
            Some(Stage::Held { .. }) => {
                if let Err(error) = self.let_go(&volumes_of(record), why).await {
                    tracing::error!("{} takes no writes: {error}", record.unit);
                }
            }
            // It is found out by the next opening.
            Some(Stage::Asked) | None => {}
        }
    }

    /// Writers wait since an earlier attempt, maybe before a crash; the receiver's answer to a new
    /// opening tells how that ended. Some: the session is over.
    pub(super) async fn after_handover(
        &mut self,
        record: &SessionRecord,
        epoch: RoleEpoch,
        feed: &Feed,
    ) -> Result<Option<Left>> {
        let mut ours = None;
        for member in &record.members {
            let roles = self.core.roles(&member.volume).await?;
            if roles.standing == Standing::HandingOver {
                ours = roles.operation;
            }
        }
        if let Some(operation) = ours.filter(|_| ours == feed.operation) {
            let (lineage, restart) = (feed.lineage.clone(), None);
            let take = TakeOver { operation, lineage, restart, feed: feed_back(record, operation)? };
            return self.take_over(record, epoch, take).await;
        }
        Ok(None)
    }

    fn answer_handover(&mut self, answer: Result<()>) {
        if let Some(handover) = self.handover.take() {
            // Whoever asked may have gone.
            let _ = handover.wish.answer.send(answer);
        }
    }
}

/// How the receiver is to feed what is here then.
fn feed_back(record: &SessionRecord, operation: Uuid) -> Result<FeedBack> {
    let volume = match (record.group, record.members.first()) {
        (Some(_), _) => record.unit.clone(),
        (None, Some(member)) => member.far_volume.clone(),
        (None, None) => return Err(Error::invalid("the session has no volume")),
    };
    Ok(FeedBack {
        volume,
        session: operation,
        destination: record.way_back.clone(),
        remote_command: record.way_back_command.clone(),
        way_back: record.destination.clone(),
        way_back_command: record.remote_command.clone(),
        policy: record.policy.clone(),
    })
}

fn too_long(unit: &str, pause_max: Duration) -> Error {
    Error::conflict(format!(
        "what is written to {unit} does not arrive within {:.1} s while writers wait; the roles are as before",
        pause_max.as_secs_f64()
    ))
    .hint("write less, or let writers wait longer with --pause-max")
}
