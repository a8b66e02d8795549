//! Turns: a volume becomes the primary, is fenced, or follows another line.
//!
//! One record says all of a turn, and what it rests on is looked at in the step that pushes it:
//! role, last role epoch, newest state, and that nothing is half received. So of two operators, or of
//! an operator and a set that is just committed, one finds what he did not expect and changes
//! nothing.
//!
//! The gate is another thing: in memory alone it keeps clients' writes waiting, as a full disk
//! does, for as long as somebody finds out whether they may be let in. Reads go on. While the volume is
//! being handed over they wait as well, also after a restart: how that ends decides whether they are
//! let in or shut out.

use super::volume::{Volume, Who};
use crate::error::{Error, ErrorKind, Result};
use crate::format::journal::Record;
use crate::format::roles::{RoleState, TurnRecord};
use crate::types::{Role, RoleEpoch, Standing};
use futures::future::select;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;
use uuid::Uuid;

/// How often a writer at the gate looks whether it is still wanted.
const RETRY: Duration = Duration::from_millis(200);

/// Why clients' writes wait.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Gate {
    /// They don't.
    #[default]
    Open,
    /// Nobody knows yet whether another volume has become the primary.
    Unconfirmed,
    /// Another volume is about to become it.
    HandingOver,
}

/// What a turn rests on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TurnCheck {
    /// The role before it.
    pub role: Role,
    /// The last role epoch before it.
    pub last: Option<RoleEpoch>,
    /// The newest state, where that matters.
    pub newest: Option<Uuid>,
}

impl Volume {
    /// What turns have left.
    #[must_use]
    pub fn roles(&self) -> RoleState {
        self.s.borrow().durable.roles.clone()
    }

    /// Role, standing, lineage, restart point and resync change together, durably. With a
    /// roll-back in it, production is that snapshot when this returns.
    ///
    /// # Errors
    /// `Conflict` when something is not as the caller believes; `Io`, `Full`.
    pub async fn turn(self: &Rc<Self>, check: &TurnCheck, mut turn: TurnRecord) -> Result<()> {
        if turn.role == Role::Primary {
            // It may be written to sooner or later, and the snapshot that a resync began with would
            // not have that: the next one makes its own.
            turn.resync = None;
        }
        let _exclusive = self.exclusive().await;
        self.writable(Who::Store)?;
        self.journal.ensure_for_command().await?;
        self.check_turn(check)?;
        let rollback = turn.rollback;
        if rollback.is_some() {
            self.map_stage().await?;
            self.check_turn(check)?;
        }
        self.record(Record::Turn(Box::new(turn)));
        self.space.freed.notify();
        self.changed.notify();
        self.journal_synced().await?;
        if let Some(snapshot) = rollback {
            self.roll_back_to(snapshot).await?;
        }
        Ok(())
    }

    fn check_turn(&self, check: &TurnCheck) -> Result<()> {
        let changed = |what: &str| {
            Err(Error::conflict(format!("{what} of volume {} changed meanwhile", self.name()))
                .hint("look at 'snapvol status', then run the command again"))
        };
        {
            let s = self.s.borrow();
            if s.durable.role != check.role {
                return changed("the role");
            }
            if s.durable.lineage.last().copied() != check.last {
                return changed("the role epoch");
            }
            if s.durable.receive.is_some() || s.durable.rollback.is_some() || self.receiving.get() {
                return Err(Error::conflict(format!(
                    "volume {} is half received or rolled back",
                    self.name()
                )));
            }
        }
        let newest = self.newest_state().map(|record| record.uuid);
        if check.newest.is_some() && newest != check.newest {
            return changed("the newest state");
        }
        Ok(())
    }

    /// Has clients' writes wait from now on, or lets them in.
    pub fn set_gate(&self, gate: Gate) {
        self.gate.set(gate);
        self.space.freed.notify();
        self.changed.notify();
    }

    /// Why clients' writes wait.
    #[must_use]
    pub fn gate(&self) -> Gate {
        self.gate.get()
    }

    /// A session met another line of role epochs, or does not any more.
    pub fn set_split(&self, split: bool) {
        self.split.set(split);
    }

    /// Waits until no client's write that was let in is under way.
    ///
    /// # Errors
    /// What latched the volume.
    pub async fn writers_done(&self) -> Result<()> {
        self.wait_for_writers().await
    }

    /// Whether clients' writes have to wait until it is known what becomes of the volume.
    fn is_held(&self) -> bool {
        self.gate.get() != Gate::Open || self.s.borrow().durable.roles.standing == Standing::HandingOver
    }

    /// Refuses a client that has to wait at the gate.
    pub(super) fn check_gate(&self, who: Who) -> Result<()> {
        if who == Who::Store || !self.is_held() {
            return Ok(());
        }
        let name = self.name();
        Err(Error::new(
            ErrorKind::Interrupted,
            format!("writers of volume {name} wait: its role is not known"),
        ))
    }

    /// After a refusal: waits until the gate is open; false if it was no refusal of the gate's.
    pub(super) async fn passed_gate(self: &Rc<Self>, error: &Error, wanted: super::full::Wanted<'_>) -> bool {
        if error.kind() != ErrorKind::Interrupted || !self.is_held() {
            return false;
        }
        while self.is_held() {
            // What became of the volume, the request hears from its next attempt.
            if self.closing.get() || !wanted() || self.writable(Who::Client).is_err() {
                return false;
            }
            select(pin!(self.io.sleep(RETRY)), pin!(self.space.freed.wait())).await;
        }
        true
    }

    /// Refuses whatever would change a primary that is not open: clients' writes, and another size
    /// or a roll-back, which would not be part of what was handed over or is kept.
    pub(super) fn check_standing(&self, standing: Standing) -> Result<()> {
        let name = self.name();
        let error = match standing {
            Standing::Open | Standing::Alone => return Ok(()),
            Standing::Fenced => Error::new(
                ErrorKind::ReadOnly,
                format!("volume {name} is fenced: another one has become the primary"),
            )
            .hint(format!("'snapvol resync {name}' has it follow that one")),
            Standing::HandingOver => Error::new(
                ErrorKind::ReadOnly,
                format!("volume {name} is being handed over to another store"),
            )
            .hint("its session finds out how that ended as soon as it reaches the other side"),
        };
        Err(error)
    }
}
