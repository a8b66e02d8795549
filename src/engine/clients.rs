//! The clients of an engine's exports: who is there, and how they are made to leave.

use crate::store::event::Event;
use slab::Slab;
use std::cell::{Cell, RefCell};
use std::rc::Rc;

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
}

/// A client's place in the list, until it is dropped.
pub(super) struct Seat {
    clients: Rc<Clients>,
    number: usize,
    client: Rc<Client>,
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.clients.list.borrow_mut().remove(self.number);
        self.clients.left.notify();
    }
}

impl Seat {
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
        Seat { clients: Rc::clone(self), number, client }
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
