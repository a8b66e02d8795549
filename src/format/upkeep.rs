//! The file `upkeep`: what is done for volumes by itself, and from where they are updated.
//!
//! One small file for the whole store, written beside, synced and renamed; so it is always one
//! whole version of it. Volumes are named by identity: a volume that is gone leaves an entry that
//! means nothing, and goes with the next version of the file.

use super::codec::Fields;
use super::envelope::Envelope;
pub use super::envelope::HEADER_SIZE;
use super::state::{put_set, take_set};
use crate::error::Result;
use crate::types::SetStamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The version that this program writes, and the newest that it reads.
pub const VERSION: u32 = 1;

const FILE: Envelope =
    Envelope { magic: b"SVUPKE01", version: VERSION, what: "the file of schedules and sources" };

/// When snapshots are taken, and which of them are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Schedule {
    /// Milliseconds between two.
    pub every_ms: u64,
    /// The youngest so many are kept.
    pub keep_last: u64,
    /// The youngest of each of the last so many hours that have any.
    pub keep_hourly: u64,
    /// The youngest of each of the last so many days that have any.
    pub keep_daily: u64,
}

impl Default for Schedule {
    fn default() -> Self {
        Self { every_ms: 15 * 60_000, keep_last: 8, keep_hourly: 24, keep_daily: 14 }
    }
}

/// A snapshot that a schedule took, or was about to take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Made {
    /// Its identity.
    pub snapshot: Uuid,
    /// On a secondary, the state that it is a second name of.
    pub of: Option<Uuid>,
    /// The set that brought that state, if a session did.
    pub set: Option<SetStamp>,
}

/// What is known of a volume.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VolumeUpkeep {
    /// Its identity.
    pub volume: Uuid,
    /// Its schedule, unless there is none.
    pub schedule: Option<Schedule>,
    /// What schedules took, oldest first.
    pub made: Vec<Made>,
    /// From where it is updated; empty: nobody said so yet.
    pub source: String,
    /// The program to run there, as its shell takes it; empty: `snapvol`.
    pub remote_command: String,
    /// When it was asked last whether there is something newer, in microseconds since 1970; 0:
    /// never.
    pub checked_us: u64,
}

/// The file's bytes.
#[must_use]
pub fn encode(volumes: &[VolumeUpkeep]) -> Vec<u8> {
    let mut out = FILE.begin();
    out.count(volumes.len());
    for volume in volumes {
        out.uuid(volume.volume);
        out.u8(u8::from(volume.schedule.is_some()));
        if let Some(Schedule { every_ms, keep_last, keep_hourly, keep_daily }) = volume.schedule {
            for number in [every_ms, keep_last, keep_hourly, keep_daily] {
                out.u64(number);
            }
        }
        out.count(volume.made.len());
        for made in &volume.made {
            out.uuid(made.snapshot);
            out.maybe_uuid(made.of);
            put_set(&mut out, made.set);
        }
        out.text(&volume.source);
        out.text(&volume.remote_command);
        out.u64(volume.checked_us);
    }
    FILE.seal(out)
}

/// Reads the file.
///
/// # Errors
/// `Corrupt`; `Unsupported` for a newer version.
pub fn decode(bytes: &[u8]) -> Result<Vec<VolumeUpkeep>> {
    let mut from = FILE.open(bytes)?;
    let volumes = (0..from.count(37)?).map(|_| take_volume(&mut from)).collect::<Result<_>>()?;
    from.end()?;
    Ok(volumes)
}

fn take_volume(from: &mut Fields<'_>) -> Result<VolumeUpkeep> {
    Ok(VolumeUpkeep {
        volume: from.uuid()?,
        schedule: match from.flag()? {
            false => None,
            true => Some(Schedule {
                every_ms: from.u64()?,
                keep_last: from.u64()?,
                keep_hourly: from.u64()?,
                keep_daily: from.u64()?,
            }),
        },
        made: (0..from.count(18)?)
            .map(|_| Ok(Made { snapshot: from.uuid()?, of: from.maybe_uuid()?, set: take_set(from)? }))
            .collect::<Result<_>>()?,
        source: from.text()?,
        remote_command: from.text()?,
        checked_us: from.u64()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;
    use crate::format::page_test::{compare, text};
    use crate::types::RoleEpoch;

    fn volumes() -> Vec<VolumeUpkeep> {
        let epoch = RoleEpoch { counter: 2, identity: Uuid::from_u128(5) };
        let set = Some(SetStamp { epoch, number: 9, base: Some(Uuid::from_u128(8)) });
        let made = |number, of, set| Made { snapshot: Uuid::from_u128(number), of, set };
        vec![
            VolumeUpkeep {
                volume: Uuid::from_u128(1),
                schedule: Some(Schedule::default()),
                made: vec![made(11, None, None), made(12, Some(Uuid::from_u128(3)), set)],
                ..VolumeUpkeep::default()
            },
            VolumeUpkeep {
                volume: Uuid::from_u128(2),
                source: "ssh://far/srv/store/db".to_owned(),
                remote_command: "sudo snapvol".to_owned(),
                checked_us: 7,
                ..VolumeUpkeep::default()
            },
        ]
    }

    #[test]
    fn it_comes_back_and_nothing_else_does() {
        for volumes in [volumes(), Vec::new()] {
            let bytes = encode(&volumes);
            assert_eq!(decode(&bytes).unwrap(), volumes);
            for len in 0..bytes.len() {
                assert_eq!(decode(&bytes[..len]).unwrap_err().kind(), ErrorKind::Corrupt);
            }
            for bit in 0..bytes.len() * 8 {
                let mut bad = bytes.clone();
                bad[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(decode(&bad).unwrap_err().kind(), ErrorKind::Corrupt, "bit {bit}");
            }
        }
    }

    #[test]
    fn a_newer_version_is_refused() {
        let mut bytes = encode(&volumes());
        bytes[8] = 2;
        let end = bytes.len() - 4;
        let crc = crc32c::crc32c(&bytes[..end]).to_le_bytes();
        bytes[end..].copy_from_slice(&crc);
        assert_eq!(decode(&bytes).unwrap_err().kind(), ErrorKind::Unsupported);
    }

    #[test]
    fn the_page_tells_the_header() {
        compare("### Header of upkeep", &encode(&volumes())[..HEADER_SIZE], |field| match field {
            "version" => VERSION.to_le_bytes().to_vec(),
            other => panic!("{other}"),
        });
        for field in ["every_ms", "keep_last", "keep_hourly", "keep_daily", "made", "source"] {
            assert!(text().contains(field), "{field}");
        }
    }
}
