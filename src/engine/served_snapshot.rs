//! A snapshot as a device that clients read; also what the export of a secondary shows:
//! its newest received snapshot, pinned for the connection.

use super::clients::Seat;
use super::device::{ALLOCATION_HOLE, ALLOCATION_ZERO, Device, Extent, Kind, Piece, ZeroHow};
use super::production::{allocation_extents, delta_extents};
use crate::error::{Error, ErrorKind, Result};
use crate::snapshot::SnapshotReader;
use bytes::Bytes;
use futures::FutureExt;
use futures::future::LocalBoxFuture;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

/// A read-only device over a snapshot.
pub(super) struct SnapshotDevice {
    reader: Rc<SnapshotReader>,
    seat: Seat,
    /// Whether every connection sees this same snapshot.
    shared: bool,
    pins: RefCell<BTreeMap<String, SnapshotReader>>,
}

impl SnapshotDevice {
    pub fn new(reader: SnapshotReader, seat: Seat, shared: bool) -> Self {
        Self { reader: Rc::new(reader), seat, shared, pins: RefCell::default() }
    }
}

fn refused<T: 'static>() -> LocalBoxFuture<'static, Result<T>> {
    async { Err(Error::new(ErrorKind::ReadOnly, "the export is read-only")) }.boxed_local()
}

impl Device for SnapshotDevice {
    fn size(&self) -> u64 {
        self.reader.size()
    }

    fn block_size(&self) -> u32 {
        self.reader.volume().geometry().block_size
    }

    fn read_only(&self) -> bool {
        true
    }

    fn multi_conn(&self) -> bool {
        self.shared
    }

    fn read(&self, offset: u64, len: u64) -> LocalBoxFuture<'static, Result<Vec<Piece>>> {
        let reader = Rc::clone(&self.reader);
        async move { reader.read(offset, len).await }.boxed_local()
    }

    fn write(&self, _: u64, _: Bytes, _: bool) -> LocalBoxFuture<'static, Result<()>> {
        refused()
    }

    fn flush(&self) -> LocalBoxFuture<'static, Result<()>> {
        async { Ok(()) }.boxed_local()
    }

    fn trim(&self, _: u64, _: u64, _: bool) -> LocalBoxFuture<'static, Result<()>> {
        refused()
    }

    fn zero(&self, _: u64, _: u64, _: ZeroHow) -> LocalBoxFuture<'static, Result<()>> {
        refused()
    }

    fn cache(&self, offset: u64, len: u64) -> LocalBoxFuture<'static, Result<()>> {
        let reader = Rc::clone(&self.reader);
        async move { reader.read(offset, len).await.map(drop) }.boxed_local()
    }

    fn allocation(&self, offset: u64, len: u64) -> LocalBoxFuture<'static, Result<Vec<Extent>>> {
        let reader = Rc::clone(&self.reader);
        async move { Ok(allocation_extents(reader.allocation(offset, len).await?)) }.boxed_local()
    }

    fn pin_delta(&self, snapshot: &str) -> Result<()> {
        if !self.reader.older().iter().any(|name| name == snapshot) {
            return Err(Error::not_found(format!(
                "there is no older snapshot '{}'",
                snapshot.escape_debug()
            )));
        }
        let reader = self.reader.volume().open_snapshot(snapshot)?;
        self.pins.borrow_mut().insert(snapshot.to_owned(), reader);
        Ok(())
    }

    fn delta_bases(&self) -> Vec<String> {
        self.reader.older()
    }

    fn delta(&self, snapshot: &str, offset: u64, len: u64) -> LocalBoxFuture<'static, Result<Vec<Extent>>> {
        let base = self.pins.borrow().get(snapshot).map(SnapshotReader::uuid);
        let reader = Rc::clone(&self.reader);
        async move {
            let base = base.ok_or_else(|| Error::invalid("that context was not negotiated"))?;
            let volume = reader.volume();
            let delta = volume.delta_within(Some(base), Some(reader.uuid()), offset..offset + len).await?;
            Ok(delta_extents(&delta, offset, len))
        }
        .boxed_local()
    }

    fn count(&self, kind: Kind, bytes: u64) {
        self.seat.count(kind, bytes);
    }

    fn closed(&self) -> LocalBoxFuture<'static, ()> {
        self.seat.closed().boxed_local()
    }
}

/// A secondary that has received nothing yet: zeros.
pub(super) struct EmptyDevice {
    pub size: u64,
    pub block_size: u32,
    pub seat: Seat,
}

impl Device for EmptyDevice {
    fn size(&self) -> u64 {
        self.size
    }

    fn block_size(&self) -> u32 {
        self.block_size
    }

    fn read_only(&self) -> bool {
        true
    }

    fn multi_conn(&self) -> bool {
        false
    }

    fn read(&self, _: u64, len: u64) -> LocalBoxFuture<'static, Result<Vec<Piece>>> {
        async move { Ok(vec![Piece::Hole(len)]) }.boxed_local()
    }

    fn write(&self, _: u64, _: Bytes, _: bool) -> LocalBoxFuture<'static, Result<()>> {
        refused()
    }

    fn flush(&self) -> LocalBoxFuture<'static, Result<()>> {
        async { Ok(()) }.boxed_local()
    }

    fn trim(&self, _: u64, _: u64, _: bool) -> LocalBoxFuture<'static, Result<()>> {
        refused()
    }

    fn zero(&self, _: u64, _: u64, _: ZeroHow) -> LocalBoxFuture<'static, Result<()>> {
        refused()
    }

    fn cache(&self, _: u64, _: u64) -> LocalBoxFuture<'static, Result<()>> {
        async { Ok(()) }.boxed_local()
    }

    fn allocation(&self, _: u64, len: u64) -> LocalBoxFuture<'static, Result<Vec<Extent>>> {
        async move { Ok(vec![Extent { len, flags: ALLOCATION_HOLE | ALLOCATION_ZERO }]) }.boxed_local()
    }

    fn pin_delta(&self, snapshot: &str) -> Result<()> {
        Err(Error::not_found(format!("there is no snapshot '{}'", snapshot.escape_debug())))
    }

    fn delta_bases(&self) -> Vec<String> {
        Vec::new()
    }

    fn delta(&self, _: &str, _: u64, _: u64) -> LocalBoxFuture<'static, Result<Vec<Extent>>> {
        async { Err(Error::invalid("that context was not negotiated")) }.boxed_local()
    }

    fn count(&self, kind: Kind, bytes: u64) {
        self.seat.count(kind, bytes);
    }

    fn closed(&self) -> LocalBoxFuture<'static, ()> {
        self.seat.closed().boxed_local()
    }
}
