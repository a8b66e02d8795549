//! Links in the simulation: two queues that lose what is on its way when they break.

use super::machine::{Process, VOLUME, image_of};
use crate::engine::api::SessionStatus;
use crate::error::{Error, ErrorKind, Result};
use crate::format::session::SessionRecord;
use crate::replica::receiver;
use crate::replica::sender::{self, Event};
use crate::replica::wire::{Body, Message, WINDOW, broke};
use crate::transport::Destination;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::Read;
use std::rc::Rc;
use std::time::Duration;
use uuid::Uuid;

/// A channel between two machines.
pub(super) type Wire = Rc<RefCell<Line>>;

#[derive(Default)]
pub(super) struct Line {
    pub to_far: VecDeque<(Uuid, Body)>,
    pub to_near: VecDeque<Message>,
    /// Bytes of data that the far side has not taken.
    waiting: u64,
    pub broken: bool,
}

impl Line {
    pub fn break_off(&mut self) {
        self.broken = true;
        self.to_far.clear();
        self.to_near.clear();
    }
}

/// The identity of a machine's store.
pub(super) fn identity(machine: usize) -> Uuid {
    Uuid::from_u128(0x1000 + machine as u128)
}

/// What the owner of a session says.
pub(super) type Owner = Rc<RefCell<VecDeque<Event>>>;

/// A sender's port.
pub(super) struct NearPort {
    pub process: Rc<Process>,
    pub wire: Option<Wire>,
    pub owner: Owner,
    pub status: Rc<RefCell<SessionStatus>>,
}

impl NearPort {
    /// Links break by chance, with what is on them.
    fn disturb(&self) {
        let shared = &self.process.shared;
        if shared.options.cuts
            && !shared.calm.get()
            && shared.chance(60)
            && let Some(wire) = &self.wire
            && !wire.borrow().broken
        {
            wire.borrow_mut().break_off();
            shared.count(|counts| counts.cuts += 1);
        }
    }
}

impl sender::Port for NearPort {
    async fn connect(&mut self, record: &SessionRecord) -> Result<Uuid> {
        self.process.pause().await;
        let there: Destination = record.destination.parse()?;
        let machine: usize = there.store[2..].parse().expect("the number of a machine");
        let shared = &self.process.shared;
        if !shared.up[machine].get() {
            return Err(Error::new(ErrorKind::Interrupted, "nobody answers"));
        }
        let wire = Wire::default();
        shared.calls[machine].borrow_mut().push(Rc::clone(&wire));
        self.process.wires.borrow_mut().push(Rc::clone(&wire));
        self.wire = Some(wire);
        Ok(identity(machine))
    }

    fn hang_up(&mut self) {
        if let Some(wire) = self.wire.take() {
            wire.borrow_mut().to_far.push_back((Uuid::nil(), Body::Message(Message::Leave)));
        }
    }

    async fn say(&mut self, epoch: Uuid, body: Body) -> Result<()> {
        self.process.pause().await;
        if self.process.shared.options.group {
            super::groups::leaves(&self.process, &body).await;
        } else if let Body::Message(Message::Set { set, .. }) = &body {
            // What leaves is what the primary has under that identity.
            let image = image_of(&self.process, set.target).await;
            let shared = &self.process.shared;
            shared.oracle.borrow_mut().shipped(set.target, &image);
            shared.count(|counts| {
                counts.sets += 1;
                counts.wholes += u64::from(set.stamp.base.is_none());
            });
        }
        self.disturb();
        let Some(wire) = &self.wire else { return Err(broke()) };
        let mut line = wire.borrow_mut();
        if line.broken {
            return Err(broke());
        }
        if let Body::Data(data) = &body {
            let len = data.len() as u64;
            assert!(line.waiting == 0 || line.waiting + len <= WINDOW, "more than the window");
            line.waiting += len;
        }
        line.to_far.push_back((epoch, body));
        Ok(())
    }

    async fn next(&mut self, wait: Duration) -> Event {
        let until = self.now() + wait;
        loop {
            if let Some(event) = self.owner.borrow_mut().pop_front() {
                return event;
            }
            self.disturb();
            if let Some(wire) = &self.wire {
                let mut line = wire.borrow_mut();
                if line.broken {
                    return Event::Down(broke());
                }
                if let Some(message) = line.to_near.pop_front() {
                    return Event::Message(message);
                }
            }
            if self.now() >= until {
                return Event::Timeout;
            }
            self.process.rest().await;
        }
    }

    fn now(&self) -> Duration {
        self.process.shared.clock.get()
    }

    async fn hook(&mut self, _: &str, _: &str, _: &SessionRecord) -> Result<()> {
        self.process.pause().await;
        Ok(())
    }

    fn show(&mut self, status: &SessionStatus) {
        self.status.borrow_mut().clone_from(status);
    }
}

/// A receiver's port.
pub(super) struct FarPort {
    pub process: Rc<Process>,
    pub wire: Wire,
}

impl FarPort {
    async fn frame(&mut self) -> Option<(Uuid, Body)> {
        loop {
            {
                let mut line = self.wire.borrow_mut();
                if line.broken {
                    return None;
                }
                if let Some((epoch, body)) = line.to_far.pop_front() {
                    if let Body::Data(data) = &body {
                        let bytes = data.len() as u64;
                        line.waiting -= bytes;
                        line.to_near.push_back(Message::Taken { bytes });
                    }
                    return Some((epoch, body));
                }
            }
            self.process.rest().await;
        }
    }
}

impl receiver::Port for FarPort {
    async fn next(&mut self) -> Option<(Uuid, Body)> {
        self.process.pause().await;
        self.frame().await
    }

    async fn say(&mut self, _: Uuid, message: Message) -> Result<()> {
        let shared = &self.process.shared;
        if shared.options.group {
            super::groups::answers(&self.process, &message).await;
        } else if let Message::Marks { applied: Some(set), durable, .. } = &message {
            assert_eq!(Some(set), durable.as_ref());
            shared.oracle.borrow_mut().confirms(self.process.index, set);
            shared.count(|counts| counts.confirmed += 1);
            let cuts = self.process.core().cuts(VOLUME).await?;
            self.process.alive().await;
            let states: Vec<(u64, Uuid)> =
                cuts.iter().map(|cut| (cut.set.stamp.number, cut.set.target)).collect();
            if !shared.options.roles {
                shared.oracle.borrow().could_feed(self.process.index, &states);
            }
        }
        if let Message::Opened { members } = &message
            && let Some(set) = members[0].applied
        {
            // It says what it had no chance to say before.
            shared.oracle.borrow_mut().confirms(self.process.index, &set);
        }
        if let Message::Opened { members } = &message
            && members[0].half.as_ref().is_some_and(|half| half.durable > 0)
        {
            shared.count(|counts| counts.resumed += 1);
        }
        let mut line = self.wire.borrow_mut();
        if line.broken {
            return Err(broke());
        }
        line.to_near.push_back(message);
        Ok(())
    }

    async fn stream(&mut self, epoch: Uuid) -> Box<dyn Read + Send + '_> {
        let mut bytes = VecDeque::new();
        loop {
            self.process.pause().await;
            match self.frame().await {
                Some((of, Body::Data(data))) => {
                    assert_eq!(of, epoch, "a chunk of another role epoch");
                    bytes.extend(data);
                }
                Some((_, Body::Message(Message::End { broken: false }))) => {
                    return Box::new(Arrived { bytes, whole: true });
                }
                _ => return Box::new(Arrived { bytes, whole: false }),
            }
        }
    }
}

/// A stream, as much of it as arrived.
struct Arrived {
    bytes: VecDeque<u8>,
    whole: bool,
}

impl Read for Arrived {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.bytes.is_empty() && !self.whole {
            return Err(std::io::Error::other(broke()));
        }
        self.bytes.read(buffer)
    }
}

/// Where a machine is reached.
pub(super) fn destination(machine: usize) -> String {
    format!("/m{machine}/{VOLUME}")
}
