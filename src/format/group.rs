//! The file `groups`: which volumes belong together.
//!
//! One small file for the whole store, so that a volume that moves from one group to another is
//! never in both. Members are named, and told by their identity.

use super::codec::{Fields, Put};
use super::envelope::Envelope;
pub use super::envelope::HEADER_SIZE;
use crate::error::Result;
use uuid::Uuid;

/// The version that this program writes, and the newest that it reads.
pub const VERSION: u32 = 1;

const FILE: Envelope = Envelope { magic: b"SVGRUP01", version: VERSION, what: "the file of groups" };

/// A volume of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupMember {
    /// Its name.
    pub volume: String,
    /// Its identity.
    pub uuid: Uuid,
}

/// Volumes that belong together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupRecord {
    /// Its name, which no volume has.
    pub name: String,
    /// Its identity.
    pub uuid: Uuid,
    /// Its volumes, sorted by name.
    pub members: Vec<GroupMember>,
}

impl GroupRecord {
    /// The names of its volumes, sorted.
    pub fn volumes(&self) -> impl Iterator<Item = &str> {
        self.members.iter().map(|member| member.volume.as_str())
    }

    /// Whether a volume of that name belongs to it.
    #[must_use]
    pub fn has(&self, volume: &str) -> bool {
        self.volumes().any(|member| member == volume)
    }
}

/// The file's bytes.
#[must_use]
pub fn encode(groups: &[GroupRecord]) -> Vec<u8> {
    let mut out = FILE.begin();
    out.count(groups.len());
    for group in groups {
        out.text(&group.name);
        out.uuid(group.uuid);
        put_members(&mut out, &group.members);
    }
    FILE.seal(out)
}

fn put_members(out: &mut Put, members: &[GroupMember]) {
    out.count(members.len());
    for member in members {
        out.text(&member.volume);
        out.uuid(member.uuid);
    }
}

/// Reads the file.
///
/// # Errors
/// `Corrupt`; `Unsupported` for a newer version.
pub fn decode(bytes: &[u8]) -> Result<Vec<GroupRecord>> {
    let mut from = FILE.open(bytes)?;
    let groups = (0..from.count(24)?).map(|_| take_group(&mut from)).collect::<Result<_>>()?;
    from.end()?;
    Ok(groups)
}

fn take_group(from: &mut Fields<'_>) -> Result<GroupRecord> {
    Ok(GroupRecord {
        name: from.text()?,
        uuid: from.uuid()?,
        members: (0..from.count(20)?)
            .map(|_| Ok(GroupMember { volume: from.text()?, uuid: from.uuid()? }))
            .collect::<Result<_>>()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;
    use crate::format::page_test::{compare, text};

    fn groups() -> Vec<GroupRecord> {
        let member = |name: &str, uuid| GroupMember { volume: name.to_owned(), uuid: Uuid::from_u128(uuid) };
        let group = |name: &str, uuid, members| GroupRecord {
            name: name.to_owned(),
            uuid: Uuid::from_u128(uuid),
            members,
        };
        vec![group("db", 1, vec![member("data", 2), member("log", 3)]), group("none", 4, Vec::new())]
    }

    #[test]
    fn it_comes_back_and_nothing_else_does() {
        for groups in [groups(), Vec::new()] {
            let bytes = encode(&groups);
            assert_eq!(decode(&bytes).unwrap(), groups);
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
        let mut bytes = encode(&groups());
        bytes[8] = 2;
        let end = bytes.len() - 4;
        let crc = crc32c::crc32c(&bytes[..end]).to_le_bytes();
        bytes[end..].copy_from_slice(&crc);
        assert_eq!(decode(&bytes).unwrap_err().kind(), ErrorKind::Unsupported);
    }

    #[test]
    fn the_page_tells_the_header() {
        compare("### Header of groups", &encode(&groups())[..HEADER_SIZE], |field| match field {
            "version" => VERSION.to_le_bytes().to_vec(),
            other => panic!("{other}"),
        });
        assert!(text().contains("`groups [name text, id, members [volume text, id]]`"));
    }
}
