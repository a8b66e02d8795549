//! A volume as a device that clients read and write.

use super::clients::Seat;
use super::device::{
    ALLOCATION_HOLE, ALLOCATION_ZERO, DELTA_DATA, DELTA_DISCARD, Device, Extent, Kind, Piece, ReadNow,
    ZeroHow,
};
use crate::error::{Error, ErrorKind, Result};
use crate::snapshot::{Delta, SnapshotReader, Volume, Who};
use crate::types::Standing;
use bytes::{Bytes, BytesMut};
use futures::FutureExt;
use futures::future::LocalBoxFuture;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

/// Production of a primary.
pub(super) struct ProductionDevice {
    volume: Rc<Volume>,
    seat: Seat,
    /// The client sends nothing more.
    left: Rc<Cell<bool>>,
    pins: RefCell<BTreeMap<String, SnapshotReader>>,
}

impl ProductionDevice {
    pub fn new(volume: Rc<Volume>, seat: Seat) -> Self {
        Self { volume, seat, left: Rc::default(), pins: RefCell::default() }
    }
}

impl Device for ProductionDevice {
    fn size(&self) -> u64 {
        self.volume.geometry().size
    }

    fn block_size(&self) -> u32 {
        self.volume.geometry().block_size
    }

    fn read_only(&self) -> bool {
        self.volume.roles().standing == Standing::Fenced
    }

    fn multi_conn(&self) -> bool {
        true
    }

    fn read(&self, offset: u64, len: u64) -> LocalBoxFuture<'static, Result<Vec<Piece>>> {
        let volume = Rc::clone(&self.volume);
        async move { volume.read(offset, len).await }.boxed_local()
    }

    fn read_now(&self, offset: u64, len: usize, buffer: &mut BytesMut) -> Result<ReadNow> {
        self.volume.read_now(offset, len, buffer)
    }

    fn write_now(&self, offset: u64, data: &Bytes) -> bool {
        self.volume.write_now(Who::Client, offset, data)
    }

    fn write(&self, offset: u64, data: Bytes, fua: bool) -> LocalBoxFuture<'static, Result<()>> {
        let (volume, left) = (Rc::clone(&self.volume), Rc::clone(&self.left));
        async move { volume.write_while(Who::Client, &|| !left.get(), offset, data, fua).await }.boxed_local()
    }

    fn flush(&self) -> LocalBoxFuture<'static, Result<()>> {
        let volume = Rc::clone(&self.volume);
        async move { volume.flush().await }.boxed_local()
    }

    fn trim(&self, offset: u64, len: u64, fua: bool) -> LocalBoxFuture<'static, Result<()>> {
        let (volume, left) = (Rc::clone(&self.volume), Rc::clone(&self.left));
        async move { volume.trim_while(Who::Client, &|| !left.get(), offset, len, fua).await }.boxed_local()
    }

    fn zero(&self, offset: u64, len: u64, how: ZeroHow) -> LocalBoxFuture<'static, Result<()>> {
        let (volume, left) = (Rc::clone(&self.volume), Rc::clone(&self.left));
        async move {
            let wanted = || !left.get();
            match how {
                ZeroHow { no_hole: true, fast: true, .. } => {
                    Err(Error::new(ErrorKind::Unsupported, "zeros that stay allocated are not written fast"))
                }
                ZeroHow { no_hole: true, fua, .. } => {
                    volume.write_zeros_while(Who::Client, &wanted, offset, len, fua).await
                }
                ZeroHow { fua, .. } => volume.trim_while(Who::Client, &wanted, offset, len, fua).await,
            }
        }
        .boxed_local()
    }

    fn cache(&self, offset: u64, len: u64) -> LocalBoxFuture<'static, Result<()>> {
        let volume = Rc::clone(&self.volume);
        async move { volume.read(offset, len).await.map(drop) }.boxed_local()
    }

    fn allocation(&self, offset: u64, len: u64) -> LocalBoxFuture<'static, Result<Vec<Extent>>> {
        let volume = Rc::clone(&self.volume);
        async move { Ok(allocation_extents(volume.shown_allocation(offset, len).await?)) }.boxed_local()
    }

    fn pin_delta(&self, snapshot: &str) -> Result<()> {
        let reader = self.volume.open_snapshot(snapshot)?;
        self.pins.borrow_mut().insert(snapshot.to_owned(), reader);
        Ok(())
    }

    fn delta_bases(&self) -> Vec<String> {
        self.volume.snapshots().into_iter().map(|r| r.name).collect()
    }

    fn delta(&self, snapshot: &str, offset: u64, len: u64) -> LocalBoxFuture<'static, Result<Vec<Extent>>> {
        let base = self.pins.borrow().get(snapshot).map(SnapshotReader::uuid);
        let volume = Rc::clone(&self.volume);
        async move {
            let base = base.ok_or_else(|| Error::invalid("that context was not negotiated"))?;
            let delta = volume.delta_within(Some(base), None, offset..offset + len).await?;
            Ok(delta_extents(&delta, offset, len))
        }
        .boxed_local()
    }

    fn count(&self, kind: Kind, bytes: u64) {
        self.seat.count(kind, bytes);
    }

    fn leave(&self) {
        self.left.set(true);
    }

    fn closed(&self) -> LocalBoxFuture<'static, ()> {
        self.seat.closed().boxed_local()
    }
}

/// Runs of use as `base:allocation`.
pub(super) fn allocation_extents(runs: Vec<(u64, bool)>) -> Vec<Extent> {
    runs.into_iter()
        .map(|(len, used)| Extent { len, flags: if used { 0 } else { ALLOCATION_HOLE | ALLOCATION_ZERO } })
        .collect()
}

/// The runs of a delta, and those between them, as `snapvol:delta`.
pub(super) fn delta_extents(delta: &Delta, offset: u64, len: u64) -> Vec<Extent> {
    let end = offset + len;
    let mut extents = Vec::new();
    let mut at = offset;
    let mut push = |len: u64, flags: u32| {
        if len > 0 {
            extents.push(Extent { len, flags });
        }
    };
    for run in delta.runs(offset..end) {
        push(run.bytes.start - at, 0);
        let flags = if run.discard { DELTA_DATA | DELTA_DISCARD } else { DELTA_DATA };
        push(run.bytes.end - run.bytes.start, flags);
        at = run.bytes.end;
    }
    push(end - at, 0);
    extents
}
