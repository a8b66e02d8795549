//! The receiving end of a session: says what is there, applies sets, confirms them.
//!
//! It decides nothing about what comes next; the store lets in only what fits the session, its
//! role epoch and its base, and what this end says of a set is said after the store has
//! committed it. It awaits the store and its [`Port`], and nothing else.

use super::wire::{Body, Message};
use crate::engine::api::Received;
use crate::engine::roles::{RoleAnswer, RoleRequest, TakeOver};
use crate::engine::sets::{Feed, FeedSet, OpenFeed};
use crate::engine::together::{CommitSets, GroupName};
use crate::error::{Error, Result};
use crate::types::RoleEpoch;
use std::io::Read;
use uuid::Uuid;

/// Ranges that changed, and where the next ones begin.
pub type Changes = (Vec<(u64, u64)>, Option<u64>);

/// A store that takes part in sessions: open in this process, served by another, or simulated.
pub trait FarStore {
    /// As `Core::open_feeds`.
    ///
    /// # Errors
    /// As there.
    fn open_feeds(
        &self,
        group: Option<&GroupName>,
        opens: &[OpenFeed],
    ) -> impl Future<Output = Result<Vec<Feed>>>;
    /// As `Core::receive_set`.
    ///
    /// # Errors
    /// As there.
    fn receive_set(
        &self,
        feed: &FeedSet,
        input: &mut (dyn Read + Send),
    ) -> impl Future<Output = Result<Received>>;
    /// As `Core::commit_sets`.
    ///
    /// # Errors
    /// As there.
    fn commit_sets(&self, commit: &CommitSets) -> impl Future<Output = Result<()>>;
    /// As `Core::abort_feed`.
    ///
    /// # Errors
    /// As there.
    fn abort_feed(&self, session: Uuid, volume: &str) -> impl Future<Output = Result<()>>;
    /// As `Core::keep_states`.
    ///
    /// # Errors
    /// As there.
    fn keep_states(&self, session: Uuid, volume: &str, keep: u64) -> impl Future<Output = Result<()>>;
    /// As `Core::close_feed`.
    ///
    /// # Errors
    /// As there.
    fn close_feed(&self, session: Uuid) -> impl Future<Output = Result<()>>;
    /// As `Core::take_over`.
    ///
    /// # Errors
    /// As there.
    fn take_over(
        &self,
        session: Uuid,
        opening: Uuid,
        volume: &str,
        take: &TakeOver,
    ) -> impl Future<Output = Result<Vec<RoleEpoch>>>;
    /// As `Core::changes`.
    ///
    /// # Errors
    /// As there.
    fn changes(&self, session: Uuid, volume: &str, from: u64) -> impl Future<Output = Result<Changes>>;
    /// As `Core::role_request`.
    ///
    /// # Errors
    /// As there.
    fn role_request(&self, request: &RoleRequest) -> impl Future<Output = Result<RoleAnswer>>;
}

/// What a receiver is connected to: a channel.
pub trait Port {
    /// What the sender says next, and in which role epoch; none when it has left.
    fn next(&mut self) -> impl Future<Output = Option<(Uuid, Body)>>;

    /// Says something.
    ///
    /// # Errors
    /// `Interrupted` when the connection broke.
    fn say(&mut self, epoch: Uuid, message: Message) -> impl Future<Output = Result<()>>;

    /// The stream of the set that was announced, up to its end; what was not read of it when
    /// this is dropped is passed over. Says what was taken.
    fn stream(&mut self, epoch: Uuid) -> impl Future<Output = Box<dyn Read + Send + '_>>;
}

/// What a channel was opened for.
struct Opened {
    session: Uuid,
    opening: Uuid,
    /// Its volumes.
    volumes: Vec<String>,
    /// The name of the group that they are, if they are one.
    group: Option<String>,
    /// The last entry of the sender's line.
    epoch: Uuid,
}

impl Opened {
    fn has(&self, volume: &str) -> bool {
        self.volumes.iter().any(|known| known == volume)
    }

    /// Whether all of it goes by that name.
    fn is(&self, unit: &str) -> bool {
        match (&self.group, &self.volumes[..]) {
            (Some(group), _) => group == unit,
            (None, [volume]) => volume == unit,
            (None, _) => false,
        }
    }
}

/// Serves a channel until its sender leaves. What fails is told to the sender.
///
/// # Errors
/// `Interrupted` when the connection broke, `Invalid` for what no sender says.
pub async fn run<S: FarStore, P: Port>(store: &S, port: &mut P) -> Result<()> {
    let mut opened: Option<Opened> = None;
    while let Some((epoch, body)) = port.next().await {
        let message = match body {
            Body::Message(message) => message,
            // What is left of a stream that failed.
            Body::Data(_) | Body::Heartbeat => continue,
        };
        if opened.as_ref().is_some_and(|opened| opened.epoch != epoch) {
            let error = Error::conflict("a message of another role epoch than the session was opened in");
            port.say(epoch, Message::failure(&error)).await?;
            return Err(error);
        }
        let answered = match (&message, &opened) {
            (Message::Leave, _) => return Ok(()),
            // Of a stream that failed before its end.
            (Message::End { .. }, Some(_)) => continue,
            (Message::Open { members, group }, None) => {
                open(store, epoch, group.as_ref(), members).await.map(|(of, members)| {
                    opened = Some(of);
                    Some(Message::Opened { members })
                })
            }
            (Message::Set { volume, set, keep }, Some(of)) if of.has(volume) => {
                let feed = FeedSet {
                    session: of.session,
                    opening: of.opening,
                    volume: volume.clone(),
                    set: *set,
                    keep: *keep,
                    together: of.group.is_some(),
                };
                let received = {
                    let mut stream = port.stream(epoch).await;
                    store.receive_set(&feed, &mut *stream).await
                };
                let (mark, volume) = (Some(*set), volume.clone());
                received.map(|_| match feed.together {
                    true => Some(Message::Arrived { volume }),
                    false => Some(Message::Marks { volume, durable: mark, applied: mark }),
                })
            }
            (Message::Commit { sets }, Some(of)) if of.group.is_some() => {
                let (session, opening, sets) = (of.session, of.opening, sets.clone());
                let committed = store.commit_sets(&CommitSets { session, opening, sets }).await;
                committed.map(|()| Some(Message::Committed))
            }
            (Message::Abort { volume }, Some(of)) if of.has(volume) => {
                let aborted = store.abort_feed(of.session, volume).await;
                aborted.map(|()| Some(Message::Aborted { volume: volume.clone() }))
            }
            (Message::TakeOver { volume, take }, Some(of)) if of.is(volume) => {
                let taken = store.take_over(of.session, of.opening, volume, take).await;
                taken.map(|lineage| Some(Message::TookOver { lineage }))
            }
            (Message::Changes { volume, from }, Some(of)) if of.has(volume) => {
                let changes = store.changes(of.session, volume, *from).await;
                changes.map(|(ranges, next)| Some(Message::Changed { ranges, next }))
            }
            (Message::Keep { volume, number }, Some(of)) if of.has(volume) => {
                // What can't go now goes with a later one; nobody waits for it.
                if let Err(error) = store.keep_states(of.session, volume, *number).await {
                    tracing::warn!("older states of volume {volume} stay for now: {error}");
                }
                Ok(None)
            }
            (Message::Ask { request }, None) => {
                store.role_request(request).await.map(|answer| Some(Message::Told { answer }))
            }
            (Message::Close { session }, _) => {
                let closed = store.close_feed(*session).await;
                closed.map(|()| Some(Message::Closed))
            }
            (other, _) => Err(Error::invalid(format!("the sender says '{}' out of turn", other.word()))),
        };
        match answered {
            Ok(Some(answer)) => port.say(epoch, answer).await?,
            Ok(None) => {}
            Err(error) => port.say(epoch, Message::failure(&error)).await?,
        }
    }
    Ok(())
}

async fn open<S: FarStore>(
    store: &S,
    epoch: Uuid,
    group: Option<&GroupName>,
    members: &[OpenFeed],
) -> Result<(Opened, Vec<Feed>)> {
    let first = match (members, group) {
        ([one], None) => one,
        ([first, ..], Some(_)) => first,
        _ => {
            return Err(Error::invalid(
                "the sender opens a session of no volume, or of several without a group",
            ));
        }
    };
    if members.iter().any(|member| member.lineage.last().map(|last| last.identity) != Some(epoch)) {
        return Err(Error::invalid("the sender speaks in another role epoch than its line ends with"));
    }
    let feeds = store.open_feeds(group, members).await?;
    let opened = Opened {
        session: first.session,
        opening: first.opening,
        volumes: members.iter().map(|member| member.volume.clone()).collect(),
        group: group.map(|group| group.name.clone()),
        epoch,
    };
    Ok((opened, feeds))
}
