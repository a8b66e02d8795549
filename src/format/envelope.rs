//! The envelope of a store's small files: magic, version, fields, checksum.
//!
//! Such a file is read as a whole and believed as a whole: what the checksum does not fit is
//! damaged, and a version that this program does not know is refused.

use super::codec::{Fields, Put};
use crate::error::{Error, ErrorKind, Result};

/// Bytes before the fields.
pub const HEADER_SIZE: usize = 16;

/// A kind of file.
#[derive(Clone, Copy, Debug)]
pub struct Envelope {
    /// Its first bytes.
    pub magic: &'static [u8; 8],
    /// The version that this program writes, and the newest that it reads.
    pub version: u32,
    /// What people call it, as the begin of a sentence's subject.
    pub what: &'static str,
}

impl Envelope {
    /// The begin of a file; fields are put behind it.
    #[must_use]
    pub fn begin(&self) -> Put {
        let mut out = Put::default();
        out.0.extend_from_slice(self.magic);
        out.u32(self.version);
        out.u32(0);
        out
    }

    /// The whole file.
    #[must_use]
    pub fn seal(&self, mut out: Put) -> Vec<u8> {
        let crc = crc32c::crc32c(&out.0);
        out.u32(crc);
        out.0
    }

    /// The fields of a file.
    ///
    /// # Errors
    /// `Corrupt`; `Unsupported` for another version.
    pub fn open<'a>(&self, bytes: &'a [u8]) -> Result<Fields<'a>> {
        let (body, sum) =
            bytes.split_at_checked(bytes.len().saturating_sub(4)).ok_or_else(|| self.damaged())?;
        if crc32c::crc32c(body).to_le_bytes() != *sum || body.get(..8) != Some(self.magic) {
            return Err(self.damaged());
        }
        let mut from = Fields(&body[8..]);
        let version = from.u32()?;
        if version != self.version {
            return Err(Error::new(ErrorKind::Unsupported, format!("{} has version {version}", self.what))
                .hint("use the version of snapvol that wrote it, or a newer one"));
        }
        from.u32()?;
        Ok(from)
    }

    /// Says that a file is damaged.
    #[must_use]
    pub fn damaged(&self) -> Error {
        Error::corrupt(format!("{} is damaged", self.what))
    }
}
