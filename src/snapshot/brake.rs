//! The brake: what keeps a volume's writers back while somebody who follows it can't keep up.
//!
//! It stands before everything else that a client's write or trim does, so who waits here holds
//! nothing that others wait for: reads, flushes, takes and deletions pass it by. Nobody waits
//! longer than he is wanted: not for a client that has gone, and not once the volume is closed.

use super::full::{RETRY, Wanted};
use super::volume::{Volume, Who};
use crate::error::{Error, ErrorKind, Result};
use futures::future::select;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::pin::pin;
use uuid::Uuid;

/// What becomes of writes meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Brake {
    /// They wait.
    Wait,
    /// They are refused.
    Refuse,
}

/// Who keeps writers back, and how.
#[derive(Default)]
pub(super) struct Brakes(RefCell<BTreeMap<Uuid, Brake>>);

impl Brakes {
    /// The hardest of them; none: writers pass.
    pub fn closed(&self) -> Option<Brake> {
        self.0.borrow().values().max().copied()
    }
}

impl Volume {
    /// Keeps writers back for the sake of a session, or lets them pass again as far as that goes.
    pub fn set_brake(&self, session: Uuid, brake: Option<Brake>) {
        match brake {
            Some(brake) => self.brakes.0.borrow_mut().insert(session, brake),
            None => self.brakes.0.borrow_mut().remove(&session),
        };
        self.space.freed.notify();
    }

    /// Waits until a writer may pass.
    ///
    /// # Errors
    /// `Full` where writes are refused, or are not wanted any more.
    pub(super) async fn pass_brake(&self, who: Who, wanted: Wanted<'_>) -> Result<()> {
        if who == Who::Store {
            return Ok(());
        }
        while let Some(brake) = self.brakes.closed() {
            if brake == Brake::Refuse || self.closing.get() || !wanted() {
                let error = Error::new(
                    ErrorKind::Full,
                    "too much waits to be shipped to those who follow the volume",
                );
                let error = error.hint("'snapvol status' shows what holds that up");
                return Err(self.named(error));
            }
            self.writable(who)?;
            select(pin!(self.io.sleep(RETRY)), pin!(self.space.freed.wait())).await;
        }
        Ok(())
    }
}
