//! One question to another store, over a connection of its own.
//!
//! For what is not part of a session that runs: to give one up, and to ask about roles. The far
//! program is started, greeted, asked one thing, and ended.

use super::wire::{Body, Frame, Greet, Message, broke, far_failure};
use crate::engine::roles::{RoleAnswer, RoleRequest};
use crate::error::{Error, Result};
use crate::transport::{Destination, Peer};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;
use uuid::Uuid;

/// Says something to the store at a destination and waits for the answer, at most so long.
///
/// # Errors
/// What the other side says; `Interrupted` when it can't be reached, or is too slow.
pub fn ask(store: Uuid, there: &str, command: &str, message: Message, wait: Duration) -> Result<Message> {
    let there: Destination = there.parse()?;
    let program = Some(command).filter(|command| !command.is_empty());
    let mut peer = Peer::start(&there, program, &["peer"])?;
    let (mut input, mut output) = (peer.input(), peer.output());
    let (said, heard) = channel();
    std::thread::spawn(move || {
        let talked = (|| {
            let greet = Frame::of_connection(Body::Message(Message::Greet(Greet::of(store))));
            greet.write(&mut input)?;
            let channel = Uuid::new_v4();
            Frame { channel, epoch: Uuid::nil(), body: Body::Message(message) }.write(&mut input)?;
            loop {
                match Frame::read(&mut output)?.map(|frame| frame.body) {
                    Some(Body::Message(Message::Failed { kind, message, hint })) => {
                        return Err(far_failure(&kind, &message, hint.as_deref()));
                    }
                    Some(Body::Message(Message::Greet(greet))) => drop(greet.version()?),
                    Some(Body::Message(answer)) => return Ok(answer),
                    Some(_) => {}
                    None => return Err(broke()),
                }
            }
        })();
        // Nobody waits any more if this fails.
        let _ = said.send(talked);
    });
    let place = peer.place().to_owned();
    let talked = match heard.recv_timeout(wait) {
        Ok(talked) => talked,
        Err(RecvTimeoutError::Timeout) => Err(Error::new(
            crate::ErrorKind::Interrupted,
            format!("{place} does not answer within {} s", wait.as_secs()),
        )),
        Err(RecvTimeoutError::Disconnected) => Err(broke()),
    };
    if talked.is_err() {
        peer.kill();
    }
    talked.map_err(|error| error.context(place))
}

/// The same about roles.
///
/// # Errors
/// As for [`ask`].
pub fn ask_role(
    store: Uuid,
    there: &str,
    command: &str,
    request: RoleRequest,
    wait: Duration,
) -> Result<RoleAnswer> {
    match ask(store, there, command, Message::Ask { request }, wait)? {
        Message::Told { answer } => Ok(answer),
        other => Err(Error::invalid(format!("the other side says '{}' out of turn", other.word()))),
    }
}
