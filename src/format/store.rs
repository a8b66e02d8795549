//! The file `store`: identity and format version of the whole directory.

use super::codec::{Fields, Put};
use crate::error::{Error, ErrorKind, Result};
use uuid::Uuid;

/// Bytes of the file.
pub const STORE_SIZE: usize = 512;
/// The version that this program writes, and the newest that it reads.
pub const VERSION: u32 = 1;

const MAGIC: &[u8; 8] = b"SNAPVOL1";

/// The store's identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreHeader {
    /// Made at random by `init`.
    pub uuid: Uuid,
}

impl StoreHeader {
    /// The file's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Put::default();
        out.0.extend_from_slice(MAGIC);
        out.u32(VERSION);
        out.uuid(self.uuid);
        let crc = crc32c::crc32c(&out.0);
        out.u32(crc);
        out.0.resize(STORE_SIZE, 0);
        out.0
    }

    /// Reads the file.
    ///
    /// # Errors
    /// `Corrupt`; `Unsupported` for a newer version.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let mut fields = Fields(bytes);
        if fields.bytes(8)? != MAGIC {
            return Err(Error::corrupt("the file 'store' is not that of a snapvol store"));
        }
        let (version, uuid, crc) = (fields.u32()?, fields.uuid()?, fields.u32()?);
        if crc32c::crc32c(&bytes[..28]) != crc {
            return Err(Error::corrupt("the file 'store' has a wrong checksum"));
        }
        if version > VERSION {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "the store has format version {version}; this program knows versions up to {VERSION}"
                ),
            )
            .hint("use a newer snapvol"));
        }
        if version != VERSION || bytes.len() != STORE_SIZE || bytes[32..].iter().any(|&byte| byte != 0) {
            return Err(Error::corrupt("the file 'store' is not as this program writes it"));
        }
        Ok(Self { uuid })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::page_test::compare;

    #[test]
    fn the_page_tells_the_file() {
        let header = StoreHeader { uuid: Uuid::from_u128(0x0102_0304) };
        let bytes = header.encode();
        compare("### The file store", &bytes, |field| match field {
            "version" => VERSION.to_le_bytes().to_vec(),
            "store identity" => header.uuid.as_bytes().to_vec(),
            other => panic!("{other}"),
        });
        assert_eq!(StoreHeader::decode(&bytes).unwrap().uuid, header.uuid);
        for at in 0..32 {
            let mut bad = bytes.clone();
            bad[at] ^= 1;
            assert!(StoreHeader::decode(&bad).is_err(), "byte {at}");
        }
    }

    #[test]
    fn a_newer_version_is_refused() {
        let mut out = Put::default();
        out.0.extend_from_slice(MAGIC);
        out.u32(VERSION + 1);
        out.uuid(Uuid::nil());
        let crc = crc32c::crc32c(&out.0);
        out.u32(crc);
        out.0.resize(STORE_SIZE, 0);
        assert_eq!(StoreHeader::decode(&out.0).unwrap_err().kind(), ErrorKind::Unsupported);
    }
}

#[cfg(test)]
mod damage {
    use super::*;

    /// The bytes with a checksum that fits again.
    fn mended(mut bytes: Vec<u8>) -> Vec<u8> {
        let crc = crc32c::crc32c(&bytes[..28]).to_le_bytes();
        bytes[28..32].copy_from_slice(&crc);
        bytes
    }

    #[test]
    fn the_file_is_read_back_and_nothing_else_is() {
        let header = StoreHeader { uuid: Uuid::from_u128(7) };
        let bytes = header.encode();
        assert_eq!(bytes.len(), STORE_SIZE);
        assert_eq!(StoreHeader::decode(&bytes).unwrap(), header);
        for len in 0..STORE_SIZE {
            let error = StoreHeader::decode(&bytes[..len]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{len} bytes");
        }
        for bit in 0..STORE_SIZE * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            let error = StoreHeader::decode(&bad).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt, "bit {bit}");
        }
        assert!(StoreHeader::decode(&[bytes.as_slice(), &[0]].concat()).is_err());
    }

    #[test]
    fn versions() {
        let bytes = StoreHeader { uuid: Uuid::from_u128(7) }.encode();
        for (version, kind) in
            [(0, ErrorKind::Corrupt), (2, ErrorKind::Unsupported), (u32::MAX, ErrorKind::Unsupported)]
        {
            let mut other = bytes.clone();
            other[8..12].copy_from_slice(&u32::to_le_bytes(version));
            let error = StoreHeader::decode(&mended(other)).unwrap_err();
            assert_eq!(error.kind(), kind, "{version}");
            assert_eq!(error.hint_text().is_some(), kind == ErrorKind::Unsupported);
        }
    }
}
