//! Applying a stream: a new snapshot appears whole or not at all.
//!
//! The state from before is held by a snapshot (the base, or a hidden one), so it stays
//! readable while production changes, and an abort restores it. Begin, progress and abort
//! are records; the take that ends the receive sets snapshot and size in one record. A
//! crash leaves the receive where it was: a resumption goes on, an abort restores.

use super::read::Piece;
use super::reader::SnapshotReader;
use super::take::{TakeRequest, TakeTicket};
use super::volume::{Volume, Who};
use crate::error::{Error, ErrorKind, Result};
use crate::format::journal::Record;
use crate::format::roles::{RoleState, TurnRecord};
use crate::format::state::ReceiveRecord;
use crate::io::buffers::Buffers;
use crate::types::{Role, RoleEpoch, SetStamp};
use bytes::Bytes;
use futures::future::{join, join_all};
use std::rc::Rc;
use uuid::Uuid;

/// The hidden snapshot that holds the state from before a whole stream.
const BEFORE: &str = "_before-receive";

/// Bytes compared in one step.
const STEP: u64 = 128 << 10;
/// Steps at the same time.
const STEPS_AT_ONCE: usize = 32;

/// A stream being applied; only one at a time.
pub struct Receiving {
    volume: Rc<Volume>,
}

impl Drop for Receiving {
    fn drop(&mut self) {
        self.volume.receiving.set(false);
        *self.volume.bulk.buffers.borrow_mut() = Buffers::default();
        self.volume.changed.notify();
    }
}

/// What to do with a stream.
pub enum ReceiveStart {
    /// The snapshot is held already.
    Already,
    /// Everything below that byte is here.
    Go(Receiving, u64),
}

/// What a stream says of itself.
#[derive(Clone, Debug)]
pub struct Incoming {
    /// The identity of the snapshot to come.
    pub target: Uuid,
    /// Its name.
    pub name: String,
    /// When it was taken, in microseconds since 1970.
    pub created_us: u64,
    /// Its size in bytes.
    pub size: u64,
    /// The base's identity and name; none for a whole stream.
    pub base: Option<(Uuid, String)>,
    /// The set that it is, if it comes from a session.
    pub set: Option<SetStamp>,
}

impl Volume {
    /// The receive that was begun and not ended.
    #[must_use]
    pub fn half_received(&self) -> Option<(ReceiveRecord, bool)> {
        let receive = self.s.borrow().durable.receive.clone()?;
        Some((receive, self.receiving.get()))
    }

    /// Begins a receive or goes on with one.
    ///
    /// # Errors
    /// `Conflict` for a primary, a missing base, a base that production does not equal, a
    /// name taken by another identity, or another receive.
    pub async fn receive_begin(self: &Rc<Self>, incoming: &Incoming) -> Result<ReceiveStart> {
        self.receive_begin_inner(incoming).await.map_err(|e| self.named(e))
    }

    async fn receive_begin_inner(self: &Rc<Self>, incoming: &Incoming) -> Result<ReceiveStart> {
        if self.s.borrow().durable.snapshot(incoming.target).is_some() {
            return Ok(ReceiveStart::Already);
        }
        if self.receiving.replace(true) {
            return Err(Error::conflict("another receive is running").hint("wait until it has ended"));
        }
        let receiving = Receiving { volume: Rc::clone(self) };
        self.writable(Who::Store)?;
        self.check_incoming(incoming)?;
        let begun = self.s.borrow().durable.receive.clone();
        if let Some(begun) = begun {
            if begun.target != incoming.target
                || begun.base != incoming.base.as_ref().map(|(u, _)| *u)
                || begun.set != incoming.set
                || begun.aborting
            {
                return Err(Error::conflict(format!("snapshot {} is half received", begun.name)).hint(
                    "send that one again to complete it, or drop it with 'snapvol receive VOL --abort'",
                ));
            }
            self.map_stage().await?;
            self.make_room(&begun).await?;
            return Ok(ReceiveStart::Go(receiving, begun.durable));
        }
        let before = self.hold_before(incoming).await?;
        let record = ReceiveRecord {
            target: incoming.target,
            name: incoming.name.clone(),
            created_us: incoming.created_us,
            size: incoming.size,
            base: incoming.base.as_ref().map(|(uuid, _)| *uuid),
            before,
            durable: 0,
            aborting: false,
            arrived: false,
            set: incoming.set,
            begun_us: self.io.now_us(),
        };
        // A take that found no receive under way has its instant before this one begins.
        let exclusive = self.exclusive().await;
        self.record_durably(Record::Receive(Some(record.clone()))).await?;
        drop(exclusive);
        self.make_room(&record).await?;
        Ok(ReceiveStart::Go(receiving, 0))
    }

    /// Prepares production for the stream. A crash may have come before or amid it, so a
    /// resumption does it again as long as nothing of the stream is durable.
    async fn make_room(self: &Rc<Self>, receive: &ReceiveRecord) -> Result<()> {
        let size = self.geometry().size;
        if receive.base.is_none() && receive.durable == 0 {
            self.trim(Who::Store, 0, size, false).await?;
        }
        if receive.size > size {
            self.set_size(receive.size).await?;
        }
        Ok(())
    }

    fn check_incoming(&self, incoming: &Incoming) -> Result<()> {
        let s = self.s.borrow();
        if s.durable.role == Role::Primary {
            return Err(Error::conflict("it is a primary, and only a secondary receives")
                .hint("receive into another volume, or make this one a secondary with 'snapvol demote'"));
        }
        if s.durable.named(&incoming.name).is_some() {
            return Err(Error::conflict(format!("there is another snapshot of the name {}", incoming.name))
                .hint("delete it, or send a snapshot of another name"));
        }
        if let Some((base, name)) = &incoming.base
            && s.durable.snapshot(*base).is_none()
        {
            return Err(Error::conflict(format!("the base {name} ({base}) is not here"))
                .hint("send the whole snapshot, or a delta from one that both sides have"));
        }
        Ok(())
    }

    /// Makes sure that a snapshot holds the state from before; returns it.
    async fn hold_before(self: &Rc<Self>, incoming: &Incoming) -> Result<Option<Uuid>> {
        if let Some((base, name)) = &incoming.base {
            let reader = self.open_snapshot_by_id(*base)?;
            if !self.equals(&reader).await? {
                return Err(Error::conflict(format!("the volume does not equal the base {name} any more"))
                    .hint("send a delta from the youngest snapshot here, or the whole snapshot"));
            }
            self.map_stage().await?;
            return Ok(Some(*base));
        }
        let nothing_to_hold = {
            let s = self.s.borrow();
            // A size is something, too.
            let grows = incoming.size > s.durable.geometry.size;
            s.durable.snapshots.is_empty() && s.production.is_empty() && !grows
        };
        if nothing_to_hold {
            return Ok(None);
        }
        let uuid = self.io.identity();
        let created_us = incoming.created_us;
        self.take(TakeRequest {
            uuid,
            name: BEFORE.to_owned(),
            created_us,
            batch: None,
            received: false,
            set: None,
        })
        .await?;
        Ok(Some(uuid))
    }

    /// Whether production has the content of a snapshot. What the maps name may have been
    /// written back since: an abort restores content, not maps.
    async fn equals(self: &Rc<Self>, reader: &SnapshotReader) -> Result<bool> {
        if reader.size() != self.geometry().size {
            return Ok(false);
        }
        let delta = self.delta_between(Some(reader.uuid()), None).await?;
        let mut runs = delta.runs(0..delta.size).map(|run| run.bytes);
        let mut run = 0..0;
        loop {
            let mut steps = Vec::with_capacity(STEPS_AT_ONCE);
            while steps.len() < STEPS_AT_ONCE {
                if run.is_empty() {
                    let Some(next) = runs.next() else { break };
                    run = next;
                }
                let len = STEP.min(run.end - run.start);
                steps.push((run.start, len));
                run.start += len;
            }
            if steps.is_empty() {
                return Ok(true);
            }
            let compared = steps.iter().map(|(at, len)| async move {
                let (mine, theirs) = join(self.read(*at, *len), reader.read(*at, *len)).await;
                Ok::<_, Error>(same_bytes(&mine?, &theirs?))
            });
            for same in join_all(compared).await {
                if !same? {
                    return Ok(false);
                }
            }
        }
    }

    /// Takes up a receive that has arrived as a whole, to commit it.
    ///
    /// # Errors
    /// `Conflict` when it is another one, or while something is received.
    pub fn receive_arrived(self: &Rc<Self>, target: Uuid) -> Result<Receiving> {
        let is_it =
            |receive: &ReceiveRecord| receive.target == target && receive.arrived && !receive.aborting;
        if !self.s.borrow().durable.receive.as_ref().is_some_and(is_it) {
            return Err(Error::conflict(format!("a set of volume {} has not arrived", self.name())));
        }
        if self.receiving.replace(true) {
            return Err(Error::conflict(format!("a receive into volume {} is running", self.name())));
        }
        Ok(Receiving { volume: Rc::clone(self) })
    }

    /// A receive that was ended by a take which never was is under way again, as it was.
    pub(super) async fn receive_again(&self, before: BeforeEnd) -> Result<()> {
        let BeforeEnd { receive, size, roles, lineage } = before;
        self.record(Record::Receive(Some(receive)));
        self.record(Record::Resize { size });
        if roles.resync.is_some() {
            let RoleState { standing, restart, operation, resync, .. } = roles;
            let role = Role::Secondary;
            let turn = TurnRecord { role, standing, lineage, restart, operation, rollback: None, resync };
            self.record(Record::Turn(Box::new(turn)));
        }
        self.journal_synced().await
    }

    /// What the end of a receive changes.
    pub(super) fn before_end(&self) -> Option<BeforeEnd> {
        let s = self.s.borrow();
        Some(BeforeEnd {
            receive: s.durable.receive.clone()?,
            size: s.durable.geometry.size,
            roles: s.durable.roles.clone(),
            lineage: s.durable.lineage.clone(),
        })
    }

    /// Restores the state from before and forgets the receive.
    ///
    /// # Errors
    /// `NotFound` when nothing is half received; `Conflict` while it runs.
    pub async fn receive_abort(self: &Rc<Self>) -> Result<()> {
        let _exclusive = self.exclusive().await;
        if self.receiving.replace(true) {
            return Err(Error::conflict(format!("a receive into volume {} is running", self.name()))
                .hint("stop its sender first"));
        }
        // Nobody goes on with what is being dropped, and nobody drops it twice.
        let _alone = Receiving { volume: Rc::clone(self) };
        let receive = self.s.borrow().durable.receive.clone();
        let Some(mut receive) = receive else {
            return Err(Error::not_found(format!("nothing is half received in volume {}", self.name())));
        };
        (receive.aborting, receive.arrived) = (true, false);
        self.record_durably(Record::Receive(Some(receive))).await?;
        self.restore_before_receive().await
    }

    pub(super) async fn restore_before_receive(self: &Rc<Self>) -> Result<()> {
        let receive = self.s.borrow().durable.receive.clone();
        let Some(receive) = receive else { return Ok(()) };
        self.map_stage().await?;
        let size = match receive.before {
            Some(before) => self.restore(before).await?,
            None => {
                let size = self.geometry().size;
                self.trim(Who::Store, 0, size, false).await?;
                size
            }
        };
        self.flush().await?;
        self.record(Record::Resize { size });
        self.record_durably(Record::Receive(None)).await?;
        if let Some(hidden) = receive.before.filter(|_| receive.base.is_none()) {
            self.delete_one(hidden, false).await?;
        }
        Ok(())
    }
}

/// What a volume was before a take ended its receive.
pub(super) struct BeforeEnd {
    receive: ReceiveRecord,
    size: u64,
    roles: RoleState,
    lineage: Vec<RoleEpoch>,
}

/// The take that ends a receive.
fn take_of(receive: &ReceiveRecord, batch: Option<Uuid>) -> TakeRequest {
    TakeRequest {
        uuid: receive.target,
        name: receive.name.clone(),
        created_us: receive.created_us,
        batch,
        received: true,
        set: receive.set,
    }
}

/// Whether pieces of the same length hold the same bytes.
fn same_bytes(a: &[Piece], b: &[Piece]) -> bool {
    let mut rest = b.iter().map(|piece| (piece, 0));
    let mut theirs = rest.next();
    for mine in a {
        let mut at = 0;
        while at < mine.len() {
            let Some((piece, from)) = theirs else { return false };
            let len = (mine.len() - at).min(piece.len() - from);
            let same = match (part_of(mine, at, len), part_of(piece, from, len)) {
                (Some(a), Some(b)) => a == b,
                (Some(data), None) | (None, Some(data)) => data.iter().all(|byte| *byte == 0),
                (None, None) => true,
            };
            if !same {
                return false;
            }
            at += len;
            theirs = if from + len == piece.len() { rest.next() } else { Some((piece, from + len)) };
        }
    }
    true
}

/// Bytes of a piece; none where it is a hole.
fn part_of(piece: &Piece, at: u64, len: u64) -> Option<&[u8]> {
    let Piece::Data(data) = piece else { return None };
    let index = |value: u64| usize::try_from(value).unwrap_or(usize::MAX);
    data.get(index(at)..index(at + len))
}

impl Receiving {
    /// Writes parts of the new state: whole blocks, ascending and disjoint.
    ///
    /// # Errors
    /// As for a write.
    pub async fn data(&self, pieces: &[(u64, Bytes)]) -> Result<()> {
        self.volume.write_bulk(pieces).await
    }

    /// Discards a part.
    ///
    /// # Errors
    /// As for a trim.
    pub async fn discard(&self, offset: u64, len: u64) -> Result<()> {
        let end = self.volume.geometry().size;
        let len = len.min(end.saturating_sub(offset));
        if len == 0 { Ok(()) } else { self.volume.trim(Who::Store, offset, len, false).await }
    }

    /// Everything below that byte is durable when this returns, and remembered.
    ///
    /// # Errors
    /// `Io`.
    pub async fn progress(&self, below: u64) -> Result<()> {
        self.volume.flush().await?;
        let receive = self.volume.s.borrow().durable.receive.clone();
        if let Some(mut receive) = receive {
            receive.durable = below;
            self.volume.record_durably(Record::Receive(Some(receive))).await?;
        }
        Ok(())
    }

    /// All of it is here, verified and durable when this returns; a commit together with other
    /// volumes may follow at any time, also after a crash.
    ///
    /// # Errors
    /// `Io`, `Full`.
    pub async fn arrived(&self) -> Result<()> {
        self.volume.flush().await?;
        let mut receive = self.under_way()?;
        (receive.durable, receive.arrived) = (receive.size, true);
        self.volume.record_durably(Record::Receive(Some(receive))).await?;
        Ok(())
    }

    fn under_way(&self) -> Result<ReceiveRecord> {
        let receive = self.volume.s.borrow().durable.receive.clone();
        receive.ok_or_else(|| Error::new(ErrorKind::Interrupted, "the receive was dropped"))
    }

    /// What is beyond the size to come goes.
    async fn shorten(&self, receive: &ReceiveRecord) -> Result<()> {
        let now = self.volume.geometry().size;
        if receive.size < now {
            self.volume.trim(Who::Store, receive.size, now - receive.size, false).await?;
        }
        Ok(())
    }

    /// First step of a commit together with other volumes, of a receive that has arrived. The other
    /// steps are those of a take.
    ///
    /// # Errors
    /// `Conflict` when it has not; as for a take.
    pub async fn prepare(self, batch: Uuid) -> Result<TakeTicket> {
        let receive = self.under_way()?;
        if !receive.arrived {
            return Err(Error::conflict(format!("snapshot {} has not arrived as a whole", receive.name)));
        }
        self.shorten(&receive).await?;
        let ticket = self.volume.prepare_take(take_of(&receive, Some(batch))).await?;
        Ok(ticket.ending(self))
    }

    /// The new snapshot appears.
    ///
    /// # Errors
    /// `Io`, `Full`; it can be tried again.
    pub async fn commit(&self) -> Result<()> {
        let volume = &self.volume;
        let receive = self.under_way()?;
        self.shorten(&receive).await?;
        volume.take(take_of(&receive, None)).await?;
        if let Some(hidden) = receive.before.filter(|_| receive.base.is_none()) {
            // The receive is done; a hidden snapshot that is left goes at the next open.
            if let Err(error) = volume.delete(&[hidden]).await {
                tracing::warn!("volume {}: the state from before stays for now: {error}", volume.name());
            }
        }
        Ok(())
    }
}
