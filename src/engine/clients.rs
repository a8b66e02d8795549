//! The clients of an engine's exports: who is there, what they asked for, and how they are made
//! to leave.

use super::device::Kind;
use crate::store::event::Event;
use slab::Slab;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

/// Requests of one kind, and the bytes that they were about.
pub(super) type Count = (u64, u64);

/// What clients asked of a volume and its snapshots since the engine began.
#[derive(Default)]
pub(super) struct Traffic([Cell<Count>; Kind::ALL.len()]);

impl Traffic {
    /// What there was of each kind.
    pub fn counts(&self) -> impl Iterator<Item = (Kind, Count)> + '_ {
        Kind::ALL.into_iter().zip(&self.0).map(|(kind, count)| (kind, count.get()))
    }
}

/// A connected client.
pub(super) struct Client {
    pub volume: String,
    /// None: the volume itself.
    pub snapshot: Option<String>,
    pub peer: String,
    pub writable: bool,
    closed: Cell<bool>,
    event: Event,
}

/// All clients of an engine.
#[derive(Default)]
pub(super) struct Clients {
    list: RefCell<Slab<Rc<Client>>>,
    left: Event,
    traffic: RefCell<BTreeMap<String, Rc<Traffic>>>,
}

/// A client's place in the list, until it is dropped.
pub(super) struct Seat {
    clients: Rc<Clients>,
    number: usize,
    client: Rc<Client>,
    traffic: Rc<Traffic>,
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.clients.list.borrow_mut().remove(self.number);
        self.clients.left.notify();
    }
}

impl Seat {
    /// A request was taken.
    pub fn count(&self, kind: Kind, bytes: u64) {
        let count = &self.traffic.0[kind as usize];
        let (requests, sum) = count.get();
        count.set((requests + 1, sum + bytes));
    }

    /// Resolves when the client is to leave.
    pub fn closed(&self) -> impl Future<Output = ()> + 'static {
        let client = Rc::clone(&self.client);
        async move {
            while !client.closed.get() {
                client.event.wait().await;
            }
        }
    }
}

impl Clients {
    /// A client comes.
    pub fn seat(self: &Rc<Self>, volume: &str, snapshot: Option<&str>, peer: String, writable: bool) -> Seat {
        let client = Rc::new(Client {
            volume: volume.to_owned(),
            snapshot: snapshot.map(str::to_owned),
            peer,
            writable,
            closed: Cell::new(false),
            event: Event::default(),
        });
        let number = self.list.borrow_mut().insert(Rc::clone(&client));
        let traffic = Rc::clone(self.traffic.borrow_mut().entry(volume.to_owned()).or_default());
        Seat { clients: Rc::clone(self), number, client, traffic }
    }

    /// What clients asked of a volume and its snapshots.
    pub fn traffic(&self, volume: &str) -> Rc<Traffic> {
        self.traffic.borrow().get(volume).cloned().unwrap_or_default()
    }

    /// All clients.
    pub fn all(&self) -> Vec<Rc<Client>> {
        self.list.borrow().iter().map(|(_, c)| Rc::clone(c)).collect()
    }

    /// Clients of a volume's production, or also of its snapshots.
    pub fn of(&self, volume: &str, snapshots: bool) -> Vec<Rc<Client>> {
        let all = self.all().into_iter();
        all.filter(|c| c.volume == volume && (snapshots || c.snapshot.is_none())).collect()
    }

    /// Tells them to leave and waits until they have.
    pub async fn disconnect(&self, volume: &str, snapshots: bool) {
        loop {
            let there = self.of(volume, snapshots);
            if there.is_empty() {
                return;
            }
            for client in there {
                client.closed.set(true);
                client.event.notify();
            }
            self.left.wait().await;
        }
    }
}
