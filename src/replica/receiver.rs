//! The receiving end of a session: says what is there, applies sets, confirms them.
//!
//! It decides nothing about what comes next; the store lets in only what fits the session, its
//! role epoch and its base, and what this end says of a set is said after the store has
//! committed it. It awaits the store and its [`Port`], and nothing else.

use super::wire::{Body, Message};
use crate::engine::api::Received;
use crate::engine::roles::{RoleAnswer, RoleRequest, TakeOver};
use crate::engine::sets::{Feed, FeedSet, OpenFeed};
use crate::error::{Error, Result};
use crate::types::RoleEpoch;
use std::io::Read;
use uuid::Uuid;

/// Ranges that changed, and where the next ones begin.
pub type Changes = (Vec<(u64, u64)>, Option<u64>);

/// A store that takes part in sessions: open in this process, served by another, or simulated.
pub trait FarStore {
    /// As `Core::open_feed`.
    ///
    /// # Errors
    /// As there.
    fn open_feed(&self, open: &OpenFeed) -> impl Future<Output = Result<Feed>>;
    /// As `Core::receive_set`.
    ///
    /// # Errors
    /// As there.
    fn receive_set(
        &self,
        feed: &FeedSet,
        input: &mut (dyn Read + Send),
    ) -> impl Future<Output = Result<Received>>;
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
    volume: String,
    /// The last entry of the sender's line.
    epoch: Uuid,
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
            (Message::Open { members }, None) => open(store, epoch, members).await.map(|(of, feed)| {
                opened = Some(of);
                Some(Message::Opened { members: vec![feed] })
            }),
            (Message::Set { volume, set, keep }, Some(of)) if *volume == of.volume => {
                let feed = FeedSet {
                    session: of.session,
                    opening: of.opening,
                    volume: volume.clone(),
                    set: *set,
                    keep: *keep,
                };
                let received = {
                    let mut stream = port.stream(epoch).await;
                    store.receive_set(&feed, &mut *stream).await
                };
                let mark = Some(*set);
                received
                    .map(|_| Some(Message::Marks { volume: volume.clone(), durable: mark, applied: mark }))
            }
            (Message::Abort { volume }, Some(of)) if *volume == of.volume => {
                let aborted = store.abort_feed(of.session, volume).await;
                aborted.map(|()| Some(Message::Aborted { volume: volume.clone() }))
            }
            (Message::TakeOver { volume, take }, Some(of)) if *volume == of.volume => {
                let taken = store.take_over(of.session, of.opening, volume, take).await;
                taken.map(|lineage| Some(Message::TookOver { lineage }))
            }
            (Message::Changes { volume, from }, Some(of)) if *volume == of.volume => {
                let changes = store.changes(of.session, volume, *from).await;
                changes.map(|(ranges, next)| Some(Message::Changed { ranges, next }))
            }
            (Message::Keep { volume, number }, Some(of)) if *volume == of.volume => {
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

async fn open<S: FarStore>(store: &S, epoch: Uuid, members: &[OpenFeed]) -> Result<(Opened, Feed)> {
    let [member] = members else {
        return Err(Error::new(
            crate::ErrorKind::Unsupported,
            "a session of several volumes is not known here",
        ));
    };
    if member.lineage.last().map(|last| last.identity) != Some(epoch) {
        return Err(Error::invalid("the sender speaks in another role epoch than its line ends with"));
    }
    let feed = store.open_feed(member).await?;
    Ok((
        Opened { session: member.session, opening: member.opening, volume: member.volume.clone(), epoch },
        feed,
    ))
}
