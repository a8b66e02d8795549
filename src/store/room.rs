//! Room: bytes of a file that are promised to records which are still to come.
//!
//! A promise is made before anything is acknowledged whose record may follow later, and
//! ends when that record is in the queue or is no longer to come. Whoever allocates counts
//! all promises, so two writers never rely on the same bytes.

use std::cell::Cell;
use std::rc::Rc;

/// The sum of all promises.
#[derive(Clone, Default)]
pub struct Ledger(Rc<Cell<u64>>);

impl Ledger {
    /// Bytes promised in all.
    #[must_use]
    pub fn promised(&self) -> u64 {
        self.0.get()
    }

    /// Promises so many more bytes.
    pub fn promise(&self, bytes: u64) {
        self.0.set(self.0.get() + bytes);
    }

    /// So many bytes are promised no longer.
    pub fn end(&self, bytes: u64) {
        debug_assert!(self.0.get() >= bytes, "{bytes} of {} bytes were never promised", self.0.get());
        self.0.set(self.0.get().saturating_sub(bytes));
    }

    /// A promise that ends when it is dropped.
    #[must_use]
    pub fn room(&self, bytes: u64) -> Room {
        self.promise(bytes);
        Room { ledger: self.clone(), bytes }
    }
}

/// A promise that ends when it is dropped.
pub struct Room {
    ledger: Ledger,
    bytes: u64,
}

impl Drop for Room {
    fn drop(&mut self) {
        self.ledger.end(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn promises_add_up_and_end() {
        let ledger = Ledger::default();
        ledger.promise(5);
        let room = ledger.room(7);
        assert_eq!(ledger.promised(), 12);
        drop(room);
        ledger.end(5);
        assert_eq!(ledger.promised(), 0);
    }
}
