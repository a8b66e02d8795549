//! What a server of blocks needs from a volume or a snapshot: the border between
//! the engine, which knows nothing of NBD, and `nbd`, which knows nothing of maps.
//!
//! Offsets and lengths are in bytes, of any alignment, and already checked against
//! [`Device::size`] by the caller (an implementation checks again and answers
//! `OutOfRange`). Futures are local to the engine's thread.

use crate::error::Result;
pub use crate::snapshot::{Piece, ReadNow};
use bytes::{Bytes, BytesMut};
use futures::future::LocalBoxFuture;

/// A run of equal state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Bytes in the run; never 0.
    pub len: u64,
    /// What it is; the meaning depends on what was asked.
    pub flags: u32,
}

/// `base:allocation`: nothing is stored here.
pub const ALLOCATION_HOLE: u32 = 1;
/// `base:allocation`: it reads as zeros.
pub const ALLOCATION_ZERO: u32 = 2;
/// `snapvol:delta:SNAP`: changed since SNAP; the new content counts.
pub const DELTA_DATA: u32 = 1;
/// `snapvol:delta:SNAP`: discarded since SNAP (changed, and not in use any more).
pub const DELTA_DISCARD: u32 = 2;

/// How a range is made zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ZeroHow {
    /// Keep the space allocated.
    pub no_hole: bool,
    /// Fail with `Unsupported` rather than be slower than a trim.
    pub fast: bool,
    /// Make it durable before the answer.
    pub fua: bool,
}

/// What a request asks for, for who counts them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "as the methods of Device")]
pub enum Kind {
    Read,
    Write,
    Flush,
    Trim,
    Zero,
    Cache,
    Status,
}

impl Kind {
    /// All of them, in their order.
    pub const ALL: [Self; 7] =
        [Self::Read, Self::Write, Self::Flush, Self::Trim, Self::Zero, Self::Cache, Self::Status];

    /// Its word.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Flush => "flush",
            Self::Trim => "trim",
            Self::Zero => "write-zeroes",
            Self::Cache => "cache",
            Self::Status => "block-status",
        }
    }
}

/// A served volume or snapshot, on the thread of its engine.
pub trait Device {
    /// The size in bytes; it may grow while it is served.
    fn size(&self) -> u64;

    /// The block size in bytes, which a client does best to align to.
    fn block_size(&self) -> u32;

    /// Whether writes are refused.
    fn read_only(&self) -> bool;

    /// Whether a flush on one connection covers what other connections had acknowledged.
    fn multi_conn(&self) -> bool;

    /// Reads a range; the pieces add up to `len`.
    fn read(&self, offset: u64, len: u64) -> LocalBoxFuture<'static, Result<Vec<Piece>>>;

    /// Reads a range if that needs no wait, into the end of `buffer` or without a copy; else
    /// the buffer stays as it was, and [`Device::read`] says what is there.
    ///
    /// # Errors
    /// As for [`Device::read`]; the buffer stays as it was.
    fn read_now(&self, _offset: u64, _len: usize, _buffer: &mut BytesMut) -> Result<ReadNow> {
        Ok(ReadNow::Waits)
    }

    /// Writes a range if that needs no wait (true); else nothing is acknowledged, and
    /// [`Device::write`] does it or says why not.
    fn write_now(&self, _offset: u64, _data: &Bytes) -> bool {
        false
    }

    /// Writes a range; with `fua` it is durable before the answer.
    fn write(&self, offset: u64, data: Bytes, fua: bool) -> LocalBoxFuture<'static, Result<()>>;

    /// Makes durable what was acknowledged before, on any connection.
    fn flush(&self) -> LocalBoxFuture<'static, Result<()>>;

    /// Forgets a range: it reads as zeros and needs no space.
    fn trim(&self, offset: u64, len: u64, fua: bool) -> LocalBoxFuture<'static, Result<()>>;

    /// Makes a range zero.
    fn zero(&self, offset: u64, len: u64, how: ZeroHow) -> LocalBoxFuture<'static, Result<()>>;

    /// Brings a range into the page cache; best effort.
    fn cache(&self, offset: u64, len: u64) -> LocalBoxFuture<'static, Result<()>>;

    /// What is stored where (`ALLOCATION_*`, 0: data): runs from `offset`, merged, that
    /// reach at least one byte and at most `len` bytes.
    fn allocation(&self, offset: u64, len: u64) -> LocalBoxFuture<'static, Result<Vec<Extent>>>;

    /// Whether `snapshot` can be the start of a delta to this device, and if so pins it:
    /// it counts as open until this device is dropped.
    ///
    /// # Errors
    /// `NotFound` when there is no such snapshot or it is not older.
    fn pin_delta(&self, snapshot: &str) -> Result<()>;

    /// The snapshots that [`Device::pin_delta`] would take, for clients that list.
    fn delta_bases(&self) -> Vec<String>;

    /// What changed since a pinned `snapshot` (`DELTA_*`, 0: unchanged), as for
    /// [`Device::allocation`].
    fn delta(&self, snapshot: &str, offset: u64, len: u64) -> LocalBoxFuture<'static, Result<Vec<Extent>>>;

    /// A request of so many bytes was taken; it may still fail.
    fn count(&self, _kind: Kind, _bytes: u64) {}

    /// The client sends nothing more: what of its requests waits for space ends now.
    fn leave(&self) {}

    /// Resolves when the device goes away under its clients (forced roll-back, shrink,
    /// deletion, shutdown); the connection ends then.
    fn closed(&self) -> LocalBoxFuture<'static, ()>;
}
