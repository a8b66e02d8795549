//! Roles: what a volume remembers of turns, beside its role and its lineage.
//!
//! One record, [`TurnRecord`], changes role, standing, lineage, restart point and the resync under
//! way together. So whatever crash comes, an open finds the state before a turn or the one after it.

use super::codec::{Fields, Put};
use super::state::{put_lineage, put_set, role_code, role_from, take_lineage, take_set};
use crate::error::{Error, Result};
use crate::types::{Role, RoleEpoch, SetId, Standing};
use uuid::Uuid;

/// What the state of a volume says of roles, beside the role itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RoleState {
    /// Whether a primary may be written to.
    pub standing: Standing,
    /// The state from which this volume went on when it became the primary last.
    pub restart: Option<SetId>,
    /// What the last turn was part of: whoever runs that again finds that it is done.
    pub operation: Option<Uuid>,
    /// The resync under way.
    pub resync: Option<ResyncRecord>,
    /// When the set that was received last began to arrive, in microseconds since 1970 by the
    /// clock here; 0: none ever did.
    pub received_us: u64,
}

/// A resync: the volume follows another line from a state that both lines have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResyncRecord {
    /// The session that brings the other line's state.
    pub session: Uuid,
    /// The store that it comes from.
    pub peer: Uuid,
    /// The youngest state that both sides have; none: a whole copy was agreed to.
    pub common: Option<Uuid>,
    /// The snapshot of what this side had of its own.
    pub diverged: Uuid,
    /// The line that the volume is in as soon as it has the other side's state.
    pub lineage: Vec<RoleEpoch>,
}

/// A turn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TurnRecord {
    /// The role from now on.
    pub role: Role,
    /// The standing from now on.
    pub standing: Standing,
    /// The line from now on.
    pub lineage: Vec<RoleEpoch>,
    /// The restart point from now on.
    pub restart: Option<SetId>,
    /// What it is part of.
    pub operation: Option<Uuid>,
    /// Production is to become that snapshot, as after *RollbackBegin*.
    pub rollback: Option<Uuid>,
    /// The resync that begins or goes on with it.
    pub resync: Option<ResyncRecord>,
}

impl RoleState {
    /// Takes over what a turn says.
    pub(super) fn turn(&mut self, turn: &TurnRecord) {
        self.standing = turn.standing;
        self.restart = turn.restart;
        self.operation = turn.operation;
        self.resync.clone_from(&turn.resync);
        if turn.role == Role::Secondary {
            // Its newest state is its own.
            self.received_us = 0;
        }
    }

    pub(super) fn put(&self, out: &mut Put) {
        out.u8(standing_code(self.standing));
        put_set_id(out, self.restart);
        out.maybe_uuid(self.operation);
        put_resync(out, self.resync.as_ref());
        out.u64(self.received_us);
    }

    pub(super) fn take(from: &mut Fields<'_>) -> Result<Self> {
        Ok(Self {
            standing: standing_from(from.u8()?)?,
            restart: take_set_id(from)?,
            operation: from.maybe_uuid()?,
            resync: take_resync(from)?,
            received_us: from.u64()?,
        })
    }
}

impl TurnRecord {
    pub(super) fn put(&self, out: &mut Put) {
        out.u8(role_code(self.role));
        out.u8(standing_code(self.standing));
        put_lineage(out, &self.lineage);
        put_set_id(out, self.restart);
        out.maybe_uuid(self.operation);
        out.maybe_uuid(self.rollback);
        put_resync(out, self.resync.as_ref());
    }

    pub(super) fn take(from: &mut Fields<'_>) -> Result<Self> {
        Ok(Self {
            role: role_from(from.u8()?)?,
            standing: standing_from(from.u8()?)?,
            lineage: take_lineage(from)?,
            restart: take_set_id(from)?,
            operation: from.maybe_uuid()?,
            rollback: from.maybe_uuid()?,
            resync: take_resync(from)?,
        })
    }
}

fn standing_code(value: Standing) -> u8 {
    match value {
        Standing::Open => 0,
        Standing::Fenced => 1,
        Standing::HandingOver => 2,
        Standing::Alone => 3,
    }
}

fn standing_from(code: u8) -> Result<Standing> {
    match code {
        0 => Ok(Standing::Open),
        1 => Ok(Standing::Fenced),
        2 => Ok(Standing::HandingOver),
        3 => Ok(Standing::Alone),
        _ => Err(Error::corrupt(format!("standing {code} is unknown"))),
    }
}

/// A set and the snapshot that it ends in, or neither.
pub(super) fn put_set_id(out: &mut Put, set: Option<SetId>) {
    put_set(out, set.map(|set| set.stamp));
    if let Some(set) = set {
        out.uuid(set.target);
    }
}

pub(super) fn take_set_id(from: &mut Fields<'_>) -> Result<Option<SetId>> {
    match take_set(from)? {
        Some(stamp) => Ok(Some(SetId { stamp, target: from.uuid()? })),
        None => Ok(None),
    }
}

fn put_resync(out: &mut Put, resync: Option<&ResyncRecord>) {
    out.u8(u8::from(resync.is_some()));
    if let Some(resync) = resync {
        out.uuid(resync.session);
        out.uuid(resync.peer);
        out.maybe_uuid(resync.common);
        out.uuid(resync.diverged);
        put_lineage(out, &resync.lineage);
    }
}

fn take_resync(from: &mut Fields<'_>) -> Result<Option<ResyncRecord>> {
    if !from.flag()? {
        return Ok(None);
    }
    Ok(Some(ResyncRecord {
        session: from.uuid()?,
        peer: from.uuid()?,
        common: from.maybe_uuid()?,
        diverged: from.uuid()?,
        lineage: take_lineage(from)?,
    }))
}
