//! Shipping a set, or those of a group's volumes one after the other: its stream goes out as fast as the receiver takes it and the owner allows, and
//! it is shipped when the receiver says that it is applied.

use super::super::wire::{Body, Message, WINDOW, far_failure};
use super::{Event, Following, IDLE, Left, Port, Sender, no_volumes, out_of_turn};
use crate::delta::{FrameMaker, Source};
use crate::engine::api::{SetHistory, SetProgress};
use crate::error::{Error, Result};
use crate::format::session::{Condition, SessionRecord};
use crate::types::SetId;
use std::time::Duration;

/// Sets that the history has.
const HISTORY_MAX: usize = 32;
/// The time over which the present rate is measured.
const RATE_TIME: Duration = Duration::from_secs(5);

/// How shipping a set ended.
pub(super) enum Shipped {
    Done,
    Left(Left),
}

/// How shipping the set of a volume ended.
enum Sent {
    Marks((Option<SetId>, Option<SetId>)),
    Left(Left),
}

/// What was heard while a set is on its way.
enum Heard {
    Nothing,
    Marks(Option<SetId>, Option<SetId>),
    Arrived(String),
    Committed,
    Left(Left),
}

impl<P: Port> Sender<'_, P> {
    /// Ships the sets of all volumes and waits until they are applied.
    pub(super) async fn ship(
        &mut self,
        record: &SessionRecord,
        all: &[Following],
        sets: &[(SetId, Option<String>)],
    ) -> Result<Shipped> {
        let begun = self.port.now();
        let Some((first, _)) = sets.first() else { return Err(no_volumes()) };
        let (epoch, number) = (first.stamp.epoch.identity, first.stamp.number);
        let whole = sets.iter().any(|(set, _)| set.stamp.base.is_none());
        self.status.set = Some(SetProgress { number, whole, sent_bytes: 0, total_bytes: 0 });
        let mut marks = Vec::new();
        for (of, (set, resume)) in all.iter().zip(sets) {
            let (durable, applied) = match &of.half {
                // It waits for the others there.
                Some(half) if half.arrived && resume.is_some() => (Some(*set), Some(*set)),
                _ => match self.ship_one(of, *set, resume.clone()).await? {
                    Sent::Marks(marks) => marks,
                    Sent::Left(left) => return Ok(Shipped::Left(left)),
                },
            };
            marks.push((of.member.volume.clone(), durable, applied));
        }
        if record.group.is_some() {
            let far = all.iter().map(|of| of.member.far_volume.clone());
            let sets: Vec<_> = far.zip(sets.iter().map(|(set, _)| *set)).collect();
            self.port.say(epoch, Body::Message(Message::Commit { sets })).await?;
            loop {
                if self.is_late() {
                    return Ok(Shipped::Left(Left::Late));
                }
                match self.hear(IDLE).await? {
                    Heard::Committed => break,
                    Heard::Left(left) => return Ok(Shipped::Left(left)),
                    Heard::Nothing => {}
                    Heard::Marks(..) | Heard::Arrived(_) => {
                        return Err(Error::invalid("a set is confirmed that is not on its way"));
                    }
                }
            }
        }
        let sent = self.status.set.as_ref().map_or(0, |progress| progress.sent_bytes);
        self.remember(number, whole, sent, self.port.now().saturating_sub(begun));
        self.mark(&marks).await?;
        for of in all {
            if let Some(number) = self.keep(&of.member.volume) {
                let volume = of.member.far_volume.clone();
                self.port.say(epoch, Body::Message(Message::Keep { volume, number })).await?;
            }
        }
        Ok(Shipped::Done)
    }

    /// Ships the set of a volume and waits until it is there: applied, or, of a group, waiting for
    /// the others.
    async fn ship_one(&mut self, of: &Following, set: SetId, resume: Option<String>) -> Result<Sent> {
        let epoch = set.stamp.epoch.identity;
        let own = of.own.clone().filter(|own| set.stamp.base == Some(own.diverged.shown));
        let base = own.as_ref().map_or(set.stamp.base, |own| own.diverged.common);
        let member = &of.member;
        let source = self.core.set_source(&member.volume, base, set.target, resume, own).await?;
        let total = source.header().data_bytes.unwrap_or(0) + source.header().discard_bytes.unwrap_or(0);
        if let Some(progress) = &mut self.status.set {
            progress.total_bytes += total;
        }
        let mut frames = FrameMaker::new(Box::new(source))?;
        let volume = member.far_volume.clone();
        let head = Message::Set { volume, set, keep: self.keep(&member.volume) };
        self.port.say(epoch, Body::Message(head)).await?;
        loop {
            let frame = match frames.next_frame().await {
                Ok(Some(frame)) => frame,
                Ok(None) => break,
                Err(error) => {
                    self.port.say(epoch, Body::Message(Message::End { broken: true })).await?;
                    return Err(error);
                }
            };
            let len = frame.len() as u64;
            loop {
                if self.is_late() {
                    self.port.say(epoch, Body::Message(Message::End { broken: true })).await?;
                    return Ok(Sent::Left(Left::Late));
                }
                let now = self.port.now();
                let paced = self.allowed_at.saturating_sub(now);
                let full = self.under_way > 0 && self.under_way + len > WINDOW;
                let wait = if full { IDLE } else { paced };
                match self.hear(wait).await? {
                    Heard::Marks(..) | Heard::Arrived(_) | Heard::Committed => {
                        return Err(Error::invalid("a set is confirmed before its end"));
                    }
                    Heard::Left(left) => {
                        self.port.say(epoch, Body::Message(Message::End { broken: true })).await?;
                        return Ok(Sent::Left(left));
                    }
                    Heard::Nothing if !full && self.port.now() >= self.allowed_at => break,
                    Heard::Nothing => {}
                }
            }
            self.port.say(epoch, Body::Data(frame)).await?;
            self.under_way += len;
            self.count(len);
        }
        // Lets go of base and target, so that what is not needed any more can go.
        drop(frames);
        self.port.say(epoch, Body::Message(Message::End { broken: false })).await?;
        loop {
            if self.is_late() {
                return Ok(Sent::Left(Left::Late));
            }
            match self.hear(IDLE).await? {
                Heard::Marks(durable, applied) => {
                    if applied.map(|mark| mark.target) != Some(set.target) {
                        return Err(Error::invalid("the other side confirms another set"));
                    }
                    return Ok(Sent::Marks((durable, applied)));
                }
                Heard::Arrived(volume) if volume == member.far_volume => {
                    return Ok(Sent::Marks((Some(set), Some(set))));
                }
                Heard::Arrived(_) | Heard::Committed => {
                    return Err(Error::invalid("the other side confirms another set"));
                }
                Heard::Left(left) => return Ok(Sent::Left(left)),
                Heard::Nothing => {}
            }
        }
    }

    /// What comes while a set is on its way.
    async fn hear(&mut self, wait: Duration) -> Result<Heard> {
        let wait = self.time_left().map_or(wait, |left| wait.min(left));
        match self.port.next(wait).await {
            Event::Message(Message::Taken { bytes }) => {
                self.under_way = self.under_way.saturating_sub(bytes);
                Ok(Heard::Nothing)
            }
            Event::Message(Message::Marks { durable, applied, .. }) => Ok(Heard::Marks(durable, applied)),
            Event::Message(Message::Arrived { volume }) => Ok(Heard::Arrived(volume)),
            Event::Message(Message::Committed) => Ok(Heard::Committed),
            Event::Message(Message::Failed { kind, message, hint }) => {
                Err(far_failure(&kind, &message, hint.as_deref()))
            }
            Event::Message(other) => Err(out_of_turn(&other)),
            Event::Down(error) => Err(error),
            Event::Stop => Ok(Heard::Left(Left::Stop)),
            Event::Changed => {
                let record = self.core.session(self.session)?;
                match record.condition {
                    Condition::Running => Ok(Heard::Nothing),
                    _ => Ok(Heard::Left(Left::Changed)),
                }
            }
            Event::Cut(wish) => {
                self.asked_to_cut(wish);
                Ok(Heard::Nothing)
            }
            Event::HandOver(wish) => {
                self.wants_to_hand_over(wish);
                Ok(Heard::Nothing)
            }
            Event::Timeout => {
                self.guard().await;
                Ok(Heard::Nothing)
            }
        }
    }

    /// Counts bytes that went out, and sets when the next ones may.
    fn count(&mut self, bytes: u64) {
        let now = self.port.now();
        let limit = self.core.session(self.session).map_or(0, |record| record.policy.limit);
        if limit > 0 {
            #[allow(clippy::cast_precision_loss, reason = "a time to wait")]
            let time = Duration::from_secs_f64(bytes as f64 / limit as f64);
            self.allowed_at = self.allowed_at.max(now) + time;
        } else {
            self.allowed_at = now;
        }
        self.sent.push((now, bytes));
        self.sent.retain(|(at, _)| now.saturating_sub(*at) < RATE_TIME);
        let recent: u64 = self.sent.iter().map(|(_, bytes)| bytes).sum();
        self.status.rate = recent / RATE_TIME.as_secs();
        self.status.shipped_bytes += bytes;
        if let Some(progress) = &mut self.status.set {
            progress.sent_bytes += bytes;
        }
        self.port.show(&self.status);
    }

    /// A set was applied.
    fn remember(&mut self, number: u64, whole: bool, bytes: u64, time: Duration) {
        let seconds = time.as_secs_f64();
        self.status.history.insert(0, SetHistory { number, whole, bytes, seconds });
        self.status.history.truncate(HISTORY_MAX);
        self.status.shipped_sets += 1;
        let all: u64 = self.status.history.iter().map(|set| set.bytes).sum();
        let time: f64 = self.status.history.iter().map(|set| set.seconds).sum();
        #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        #[allow(clippy::allow_attributes_without_reason, reason = "a rate for people")]
        let rate = (all as f64 / time.max(0.001)) as u64;
        self.status.average_rate = rate;
    }
}
