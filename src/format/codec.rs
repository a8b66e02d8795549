//! Little-endian fields in and out of byte strings.
//!
//! A [`Fields`] never reads past its end and never allocates more than it was given:
//! every count is checked against the bytes that are left.

use crate::error::{Error, Result};
use uuid::Uuid;

/// Appends fields to a byte string.
#[derive(Default)]
pub struct Put(pub Vec<u8>);

impl Put {
    /// One byte.
    pub fn u8(&mut self, value: u8) {
        self.0.push(value);
    }

    /// Four bytes.
    pub fn u32(&mut self, value: u32) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    /// Eight bytes.
    pub fn u64(&mut self, value: u64) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    /// Sixteen bytes.
    pub fn uuid(&mut self, value: Uuid) {
        self.0.extend_from_slice(value.as_bytes());
    }

    /// A count of bytes (u32), then UTF-8.
    ///
    /// # Panics
    /// If the text is longer than 4 GiB.
    pub fn text(&mut self, value: &str) {
        self.count(value.len());
        self.0.extend_from_slice(value.as_bytes());
    }

    /// A count of things that follow (u32).
    ///
    /// # Panics
    /// If it does not fit.
    pub fn count(&mut self, count: usize) {
        self.u32(u32::try_from(count).expect("a count of fields fits 32 bits"));
    }

    /// A flag, then the identity if there is one.
    pub fn maybe_uuid(&mut self, value: Option<Uuid>) {
        self.u8(u8::from(value.is_some()));
        self.uuid(value.unwrap_or(Uuid::nil()));
    }
}

/// Takes fields off the front of a byte string.
pub struct Fields<'a>(pub &'a [u8]);

impl<'a> Fields<'a> {
    /// The next `count` bytes.
    ///
    /// # Errors
    /// `Corrupt` when there are fewer.
    pub fn bytes(&mut self, count: usize) -> Result<&'a [u8]> {
        let (head, rest) =
            self.0.split_at_checked(count).ok_or_else(|| Error::corrupt("a record ends too early"))?;
        self.0 = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.bytes(N)?);
        Ok(array)
    }

    /// One byte.
    ///
    /// # Errors
    /// `Corrupt` at the end.
    pub fn u8(&mut self) -> Result<u8> {
        Ok(self.array::<1>()?[0])
    }

    /// A byte that is 0 or 1.
    ///
    /// # Errors
    /// `Corrupt` for any other.
    pub fn flag(&mut self) -> Result<bool> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(Error::corrupt(format!("a flag is {other}"))),
        }
    }

    /// Four bytes.
    ///
    /// # Errors
    /// `Corrupt` at the end.
    pub fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    /// Eight bytes.
    ///
    /// # Errors
    /// `Corrupt` at the end.
    pub fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// Sixteen bytes.
    ///
    /// # Errors
    /// `Corrupt` at the end.
    pub fn uuid(&mut self) -> Result<Uuid> {
        Ok(Uuid::from_bytes(self.array()?))
    }

    /// The inverse of [`Put::maybe_uuid`].
    ///
    /// # Errors
    /// `Corrupt`.
    pub fn maybe_uuid(&mut self) -> Result<Option<Uuid>> {
        let there = self.flag()?;
        let uuid = self.uuid()?;
        Ok(there.then_some(uuid))
    }

    /// The inverse of [`Put::text`].
    ///
    /// # Errors
    /// `Corrupt`.
    pub fn text(&mut self) -> Result<String> {
        let count = self.count(1)?;
        let bytes = self.bytes(count)?;
        String::from_utf8(bytes.to_vec()).map_err(|_| Error::corrupt("a text is not UTF-8"))
    }

    /// A count of things that take at least `size` bytes each, all of which must be there.
    ///
    /// # Errors
    /// `Corrupt` when they can't be.
    pub fn count(&mut self, size: usize) -> Result<usize> {
        let count = self.u32()? as usize;
        if count.saturating_mul(size) > self.0.len() {
            return Err(Error::corrupt("a count is larger than its record"));
        }
        Ok(count)
    }

    /// Checks that nothing is left.
    ///
    /// # Errors
    /// `Corrupt` when something is.
    pub fn end(&self) -> Result<()> {
        if self.0.is_empty() { Ok(()) } else { Err(Error::corrupt("a record is longer than its fields")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_come_back() {
        let mut out = Put::default();
        let uuid = Uuid::from_u128(0x0102);
        out.u8(1);
        out.u32(2);
        out.u64(3);
        out.uuid(uuid);
        out.text("grün");
        out.maybe_uuid(None);
        out.maybe_uuid(Some(uuid));
        let mut from = Fields(&out.0);
        assert!(from.flag().unwrap());
        assert_eq!((from.u32().unwrap(), from.u64().unwrap()), (2, 3));
        assert_eq!(from.uuid().unwrap(), uuid);
        assert_eq!(from.text().unwrap(), "grün");
        assert_eq!((from.maybe_uuid().unwrap(), from.maybe_uuid().unwrap()), (None, Some(uuid)));
        from.end().unwrap();
        assert!(from.u8().is_err() && from.bytes(1).is_err() && from.bytes(usize::MAX).is_err());
        assert!(Fields(&[0]).end().is_err());
    }

    /// Whatever a count says, no more is promised than the bytes can hold.
    #[test]
    fn counts_are_bounded_by_what_is_there() {
        for (count, size, there, fits) in [
            (u32::MAX, 1, 8, false),
            (u32::MAX, usize::MAX, 8, false),
            (3, 4, 11, false),
            (3, 4, 12, true),
            (0, 1000, 0, true),
        ] {
            let mut bytes = count.to_le_bytes().to_vec();
            bytes.resize(4 + there, 0);
            assert_eq!(Fields(&bytes).count(size).is_ok(), fits, "{count} of {size} in {there}");
        }
        assert!(Fields(&[255, 255, 255, 255, b'a']).text().is_err());
        assert!(Fields(&[2, 0, 0, 0, 0xc3, 0x28]).text().is_err(), "no UTF-8");
        assert!(Fields(&[2]).flag().is_err());
    }
}
