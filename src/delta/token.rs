//! The resume token: where in which transfer a receiver stands, as one opaque word.
//!
//! `docs/stream.md` gives its bytes. It is no secret and no proof: it only saves
//! sending again what has arrived, and the receiver checks the place itself.

use crate::error::{Error, ErrorKind, Result};
use std::fmt;
use std::str::FromStr;
use uuid::Uuid;

const START: &str = "sv1-";
const SIZE: usize = 44;

/// A place in the transfer of one snapshot from one base.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResumeToken {
    /// The identity of the target snapshot.
    pub target: Uuid,
    /// The identity of the base snapshot; none: a whole stream.
    pub base: Option<Uuid>,
    /// Every byte of the volume below this offset has arrived.
    pub durable: u64,
}

impl ResumeToken {
    /// Checks that the token belongs to this transfer.
    ///
    /// # Errors
    /// `Conflict` when target or base is another.
    pub fn check(&self, target: Uuid, base: Option<Uuid>) -> Result<()> {
        if self.target != target {
            return Err(Error::conflict("the resume token belongs to another snapshot")
                .hint("'receive VOL --status' on the receiving side says which one"));
        }
        if self.base != base {
            return Err(Error::conflict("the resume token belongs to a stream from another base")
                .hint("give the same --from as the first time, or none if none was given then"));
        }
        Ok(())
    }
}

impl fmt::Display for ResumeToken {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = Vec::with_capacity(SIZE);
        bytes.extend_from_slice(self.target.as_bytes());
        bytes.extend_from_slice(self.base.unwrap_or_default().as_bytes());
        bytes.extend_from_slice(&self.durable.to_le_bytes());
        bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
        out.write_str(START)?;
        bytes.iter().try_for_each(|byte| write!(out, "{byte:02x}"))
    }
}

impl FromStr for ResumeToken {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let bad = |what: &str| {
            Err(Error::invalid(format!("the resume token is {what}"))
                .hint("copy it whole from 'receive VOL --status' on the receiving side"))
        };
        let Some(digits) = text.trim().strip_prefix(START) else {
            let newer = text.trim().strip_prefix("sv").is_some_and(|rest| rest.contains('-'));
            return if newer {
                Err(Error::new(ErrorKind::Unsupported, "the resume token is of another version")
                    .hint("use the same release of snapvol on both sides"))
            } else {
                bad("no token")
            };
        };
        if digits.len() != 2 * SIZE || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            return bad("incomplete");
        }
        let mut bytes = [0; SIZE];
        for (at, byte) in bytes.iter_mut().enumerate() {
            match u8::from_str_radix(&digits[2 * at..2 * at + 2], 16) {
                Ok(value) => *byte = value,
                Err(_) => return bad("incomplete"),
            }
        }
        let crc = u32::from_le_bytes(std::array::from_fn(|i| bytes[40 + i]));
        if crc32c::crc32c(&bytes[..40]) != crc {
            return bad("mistyped");
        }
        let uuid = |at: usize| Uuid::from_bytes(std::array::from_fn(|i| bytes[at + i]));
        let base = uuid(16);
        Ok(Self {
            target: uuid(0),
            base: (!base.is_nil()).then_some(base),
            durable: u64::from_le_bytes(std::array::from_fn(|i| bytes[32 + i])),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn survives_the_way_through_text() {
        for base in [None, Some(Uuid::from_u128(7))] {
            let token = ResumeToken { target: Uuid::from_u128(99), base, durable: 123 << 20 };
            let text = token.to_string();
            assert_eq!(text.parse::<ResumeToken>().unwrap(), token);
            assert!(token.check(token.target, base).is_ok());
            assert_eq!(
                token.check(token.target, Some(Uuid::from_u128(8))).unwrap_err().kind(),
                ErrorKind::Conflict
            );
            for at in 0..text.len() {
                let mut wrong = text.clone().into_bytes();
                wrong[at] ^= 1;
                assert!(String::from_utf8(wrong).unwrap().parse::<ResumeToken>().is_err(), "{at}");
                assert!(text[..at].parse::<ResumeToken>().is_err(), "{at}");
            }
        }
        assert_eq!("sv2-00".parse::<ResumeToken>().unwrap_err().kind(), ErrorKind::Unsupported);
        assert_eq!("sv1-é".parse::<ResumeToken>().unwrap_err().kind(), ErrorKind::Invalid);
    }
}
