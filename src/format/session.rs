//! The file of a session: who follows whom, under which policy, and how far it got.
//!
//! One file for each session and side, written beside, synced and renamed; so it is always
//! one whole version of it. A group of volumes is one session with several members, so what is
//! decided for all of them is decided in one step.

use super::codec::{Fields, Put};
use super::envelope::Envelope;
pub use super::envelope::HEADER_SIZE;
use super::roles::{put_set_id, take_set_id};
use crate::error::{Error, Result};
use crate::types::{RoleEpoch, SetId};
use uuid::Uuid;

/// The version that this program writes, and the newest that it reads.
pub const VERSION: u32 = 1;

const FILE: Envelope = Envelope { magic: b"SVSESS01", version: VERSION, what: "a session's file" };

/// Which end of a session this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// It cuts sets and ships them.
    Sender,
    /// It applies them.
    Receiver,
}

/// What an owner asked of a session, beyond its policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// It works.
    Running,
    /// It rests until somebody says `resume`.
    Paused,
    /// Its backlog passed the bound and its base was given up.
    Ended,
    /// At a receiver: the volume takes the sender's place, or has taken it. The state from which
    /// it goes on is kept, for the old sender's way back.
    Turned,
}

/// What a primary does with its writers when its store is opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Start {
    /// They wait until a receiver has confirmed that nobody else became the primary.
    #[default]
    Confirmed,
    /// They write at once.
    Alone,
}

/// What happens when a session's backlog passes its bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnBacklog {
    /// The session ends and lets its base go.
    #[default]
    Terminate,
    /// Writers wait.
    Freeze,
    /// Writes are refused.
    Readonly,
}

/// When a session cuts, how fast it ships, how much it lets pile up.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct SessionPolicy {
    /// Milliseconds after which what has changed is cut.
    pub timeout_ms: u64,
    /// Bytes of changed data at which it is cut at once.
    pub high_water: u64,
    /// Bytes a second that it ships at most; 0: no limit.
    pub limit: u64,
    /// Bytes that may be kept for it; 0: no bound.
    pub backlog_bytes: u64,
    /// Milliseconds that its mark may be old; 0: no bound.
    pub backlog_ms: u64,
    /// What happens at either bound.
    pub on_backlog: OnBacklog,
    /// What its volume's writers do after a start.
    pub start: Start,
    /// Shell command run before a cut; empty: none.
    pub before_cut: String,
    /// Shell command run after a cut; empty: none.
    pub after_cut: String,
    /// Shell command run when attempts keep failing; empty: none.
    pub on_error: String,
    /// Milliseconds of lag from which on the owner is warned; 0: never.
    pub warn_lag_ms: u64,
    /// Bytes of backlog from which on the owner is warned; 0: at half of the bound, if there is one.
    pub warn_backlog: u64,
}

impl Default for SessionPolicy {
    fn default() -> Self {
        Self {
            timeout_ms: 5000,
            high_water: 64 << 20,
            limit: 0,
            backlog_bytes: 0,
            backlog_ms: 0,
            on_backlog: OnBacklog::default(),
            start: Start::default(),
            before_cut: String::new(),
            after_cut: String::new(),
            on_error: String::new(),
            warn_lag_ms: 5 * 60_000,
            warn_backlog: 0,
        }
    }
}

/// A volume of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberRecord {
    /// Its name here.
    pub volume: String,
    /// Its identity here.
    pub uuid: Uuid,
    /// Its name at the other end.
    pub far_volume: String,
    /// The last set that the receiver can't lose any more.
    pub durable: Option<SetId>,
    /// The last set that the receiver shows.
    pub applied: Option<SetId>,
    /// The set that is being shipped, or would be if there were a connection.
    pub target: Option<SetId>,
}

/// A turn of all volumes of a group that was decided and is carried out, now or at the next open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TurnIntent {
    /// What it is part of.
    pub operation: Uuid,
    /// The role epoch that all volumes will be in.
    pub epoch: RoleEpoch,
    /// The snapshot that they go on from; empty: their newest state.
    pub snapshot: String,
}

/// A session, as one side knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionRecord {
    /// Its identity, the same on both sides.
    pub session: Uuid,
    /// Which end this is.
    pub side: Side,
    /// The volume here, or the group.
    pub unit: String,
    /// The identity of the other store, once it is known.
    pub peer_store: Option<Uuid>,
    /// Where it ships to; empty at a receiver.
    pub destination: String,
    /// The program to run there, as its shell takes it; empty: `snapvol`.
    pub remote_command: String,
    /// How the receiver's store reaches the sender's, as a destination; empty: it can't. A
    /// receiver has it from its sender.
    pub way_back: String,
    /// The program to run at the sender's, as its shell takes it; empty: `snapvol`.
    pub way_back_command: String,
    /// At a receiver, the opening that it listens to: what an earlier one brings comes too late.
    pub opening: Option<Uuid>,
    /// What its owner asked of it.
    pub condition: Condition,
    /// Its policy; at a receiver the default.
    pub policy: SessionPolicy,
    /// Its volumes: one, unless it is of a group.
    pub members: Vec<MemberRecord>,
    /// The identity of the group, if it is of one.
    pub group: Option<Uuid>,
    /// A turn of the group that has not come to its end.
    pub turn: Option<TurnIntent>,
}

impl SessionRecord {
    /// The member of that volume here.
    #[must_use]
    pub fn member(&self, volume: &str) -> Option<&MemberRecord> {
        self.members.iter().find(|member| member.volume == volume)
    }

    /// The file's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = FILE.begin();
        out.uuid(self.session);
        out.u8(match self.side {
            Side::Sender => 0,
            Side::Receiver => 1,
        });
        out.text(&self.unit);
        out.maybe_uuid(self.peer_store);
        out.text(&self.destination);
        out.text(&self.remote_command);
        out.text(&self.way_back);
        out.text(&self.way_back_command);
        out.maybe_uuid(self.opening);
        out.u8(match self.condition {
            Condition::Running => 0,
            Condition::Paused => 1,
            Condition::Ended => 2,
            Condition::Turned => 3,
        });
        put_policy(&mut out, &self.policy);
        out.count(self.members.len());
        for member in &self.members {
            out.text(&member.volume);
            out.uuid(member.uuid);
            out.text(&member.far_volume);
            put_set_id(&mut out, member.durable);
            put_set_id(&mut out, member.applied);
            put_set_id(&mut out, member.target);
        }
        out.maybe_uuid(self.group);
        out.u8(u8::from(self.turn.is_some()));
        if let Some(turn) = &self.turn {
            out.uuid(turn.operation);
            out.u64(turn.epoch.counter);
            out.uuid(turn.epoch.identity);
            out.text(&turn.snapshot);
        }
        FILE.seal(out)
    }

    /// Reads the file.
    ///
    /// # Errors
    /// `Corrupt`; `Unsupported` for a newer version.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let (damaged, mut from) = (|| FILE.damaged(), FILE.open(bytes)?);
        let record = Self {
            session: from.uuid()?,
            side: match from.u8()? {
                0 => Side::Sender,
                1 => Side::Receiver,
                _ => return Err(damaged()),
            },
            unit: from.text()?,
            peer_store: from.maybe_uuid()?,
            destination: from.text()?,
            remote_command: from.text()?,
            way_back: from.text()?,
            way_back_command: from.text()?,
            opening: from.maybe_uuid()?,
            condition: match from.u8()? {
                0 => Condition::Running,
                1 => Condition::Paused,
                2 => Condition::Ended,
                3 => Condition::Turned,
                _ => return Err(damaged()),
            },
            policy: take_policy(&mut from)?,
            members: (0..from.count(27)?).map(|_| take_member(&mut from)).collect::<Result<_>>()?,
            group: from.maybe_uuid()?,
            turn: match from.flag()? {
                false => None,
                true => Some(TurnIntent {
                    operation: from.uuid()?,
                    epoch: RoleEpoch { counter: from.u64()?, identity: from.uuid()? },
                    snapshot: from.text()?,
                }),
            },
        };
        from.end()?;
        Ok(record)
    }
}

fn put_policy(out: &mut Put, policy: &SessionPolicy) {
    for number in
        [policy.timeout_ms, policy.high_water, policy.limit, policy.backlog_bytes, policy.backlog_ms]
    {
        out.u64(number);
    }
    out.u8(match policy.on_backlog {
        OnBacklog::Terminate => 0,
        OnBacklog::Freeze => 1,
        OnBacklog::Readonly => 2,
    });
    out.u8(match policy.start {
        Start::Confirmed => 0,
        Start::Alone => 1,
    });
    for command in [&policy.before_cut, &policy.after_cut, &policy.on_error] {
        out.text(command);
    }
    out.u64(policy.warn_lag_ms);
    out.u64(policy.warn_backlog);
}

fn take_policy(from: &mut Fields<'_>) -> Result<SessionPolicy> {
    Ok(SessionPolicy {
        timeout_ms: from.u64()?,
        high_water: from.u64()?,
        limit: from.u64()?,
        backlog_bytes: from.u64()?,
        backlog_ms: from.u64()?,
        on_backlog: match from.u8()? {
            0 => OnBacklog::Terminate,
            1 => OnBacklog::Freeze,
            2 => OnBacklog::Readonly,
            other => return Err(Error::corrupt(format!("policy {other} for a backlog is unknown"))),
        },
        start: match from.u8()? {
            0 => Start::Confirmed,
            1 => Start::Alone,
            other => return Err(Error::corrupt(format!("policy {other} for a start is unknown"))),
        },
        before_cut: from.text()?,
        after_cut: from.text()?,
        on_error: from.text()?,
        warn_lag_ms: from.u64()?,
        warn_backlog: from.u64()?,
    })
}

fn take_member(from: &mut Fields<'_>) -> Result<MemberRecord> {
    Ok(MemberRecord {
        volume: from.text()?,
        uuid: from.uuid()?,
        far_volume: from.text()?,
        durable: take_set_id(from)?,
        applied: take_set_id(from)?,
        target: take_set_id(from)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;
    use crate::format::page_test::{compare, text};
    use crate::types::SetStamp;

    fn record() -> SessionRecord {
        let epoch = RoleEpoch { counter: 2, identity: Uuid::from_u128(5) };
        let set = |number, base| {
            let stamp = SetStamp { epoch, number, base };
            Some(SetId { stamp, target: Uuid::from_u128(u128::from(number)) })
        };
        SessionRecord {
            session: Uuid::from_u128(1),
            side: Side::Sender,
            unit: "db".to_owned(),
            peer_store: Some(Uuid::from_u128(2)),
            destination: "ssh://far/srv/store/db".to_owned(),
            remote_command: "sudo snapvol".to_owned(),
            way_back: "ssh://near/srv/store/db".to_owned(),
            way_back_command: "/opt/snapvol".to_owned(),
            opening: Some(Uuid::from_u128(6)),
            condition: Condition::Paused,
            policy: SessionPolicy {
                limit: 1 << 20,
                on_backlog: OnBacklog::Freeze,
                start: Start::Alone,
                before_cut: "sync".to_owned(),
                ..SessionPolicy::default()
            },
            members: vec![MemberRecord {
                volume: "db".to_owned(),
                uuid: Uuid::from_u128(3),
                far_volume: "db2".to_owned(),
                durable: set(8, Some(Uuid::from_u128(7))),
                applied: set(7, None),
                target: set(9, Some(Uuid::from_u128(8))),
            }],
            group: None,
            turn: None,
        }
    }

    #[test]
    fn a_session_comes_back_and_nothing_else_does() {
        let bare = SessionRecord {
            side: Side::Receiver,
            peer_store: None,
            opening: None,
            condition: Condition::Ended,
            members: vec![
                MemberRecord {
                    durable: None,
                    applied: None,
                    target: None,
                    ..record().members[0].clone()
                };
                3
            ],
            group: Some(Uuid::from_u128(20)),
            ..record()
        };
        let turn = TurnIntent {
            operation: Uuid::from_u128(21),
            epoch: RoleEpoch { counter: 3, identity: Uuid::from_u128(22) },
            snapshot: "monday".to_owned(),
        };
        let turned = SessionRecord { condition: Condition::Turned, turn: Some(turn), ..bare.clone() };
        for record in [record(), bare, turned] {
            let bytes = record.encode();
            assert_eq!(SessionRecord::decode(&bytes).unwrap(), record);
            for len in 0..bytes.len() {
                assert_eq!(SessionRecord::decode(&bytes[..len]).unwrap_err().kind(), ErrorKind::Corrupt);
            }
            for bit in 0..bytes.len() * 8 {
                let mut bad = bytes.clone();
                bad[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(SessionRecord::decode(&bad).unwrap_err().kind(), ErrorKind::Corrupt, "bit {bit}");
            }
        }
    }

    #[test]
    fn a_newer_version_is_refused() {
        let mut bytes = record().encode();
        bytes[8] = 2;
        let end = bytes.len() - 4;
        let crc = crc32c::crc32c(&bytes[..end]).to_le_bytes();
        bytes[end..].copy_from_slice(&crc);
        assert_eq!(SessionRecord::decode(&bytes).unwrap_err().kind(), ErrorKind::Unsupported);
    }

    #[test]
    fn the_page_tells_the_header() {
        let bytes = record().encode();
        compare("### Header of a session", &bytes[..HEADER_SIZE], |field| match field {
            "version" => VERSION.to_le_bytes().to_vec(),
            other => panic!("{other}"),
        });
        for field in [
            "way_back_command",
            "start",
            "timeout_ms",
            "high_water",
            "backlog_ms",
            "on_backlog",
            "far_volume",
            "remote_command",
            "turn (operation id, counter u64, identity id, snapshot text)?",
        ] {
            assert!(text().contains(field), "{field}");
        }
    }
}
