//! Receiving: whoever takes a stream apart hands it to an engine, which applies it in
//! batches, a few at the same time.

use super::api::{CreateOptions, TransferInfo};
use super::core::Core;
use super::sets::FeedSet;
use super::thread::{Engine, Handle, Pending};
use super::volumes::parse_rfc3339;
use crate::delta::receiver::{Begin, Target};
use crate::delta::{StreamHeader, Trailer};
use crate::error::{Error, Result};
use crate::snapshot::{Incoming, ReceiveStart, Receiving, cut_name};
use crate::types::{Name, OnFull, Role};
use bytes::Bytes;
use futures::future::join_all;
use slab::Slab;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

/// Bytes handed over in one batch, about.
const BATCH_BYTES: usize = 1 << 20;
/// Changes in one batch, at most.
const BATCH_COUNT: usize = 1024;
/// Batches that an engine works on at the same time.
const BATCHES_AHEAD: usize = 4;

/// The receives under way on an engine.
#[derive(Default)]
pub(super) struct Receives(RefCell<Slab<Rc<Applying>>>);

struct Applying {
    receiving: Receiving,
    volume: String,
    snapshot: String,
    bytes: Cell<u64>,
    total: Option<u64>,
}

impl Receives {
    /// For `status`.
    pub fn transfers(&self) -> Vec<TransferInfo> {
        let list = self.0.borrow();
        list.iter()
            .map(|(_, a)| TransferInfo {
                kind: "receive".to_owned(),
                volume: a.volume.clone(),
                snapshot: a.snapshot.clone(),
                data_bytes: a.bytes.get(),
                total_bytes: a.total,
            })
            .collect()
    }

    fn get(&self, number: usize) -> Result<Rc<Applying>> {
        self.0.borrow().get(number).map(Rc::clone).ok_or_else(|| Error::invalid("that transfer has ended"))
    }
}

enum Change {
    Data(u64, Bytes),
    Discard(u64, u64),
}

/// Where a stream goes, on whatever thread reads it.
pub(crate) struct EngineTarget<'a> {
    core: &'a Core,
    volume: &'a str,
    /// The set that the stream must be, and the session that brings it.
    pub(super) feed: Option<&'a FeedSet>,
    engine: Option<(Handle, usize)>,
    batch: Vec<Change>,
    batch_bytes: usize,
    ahead: VecDeque<Pending<()>>,
}

impl<'a> EngineTarget<'a> {
    pub fn new(core: &'a Core, volume: &'a str) -> Self {
        let (batch, ahead) = (Vec::new(), VecDeque::new());
        Self { core, volume, feed: None, engine: None, batch, batch_bytes: 0, ahead }
    }

    /// For the stream of a set, whose snapshot has an internal name.
    pub fn of_set(core: &'a Core, feed: &'a FeedSet) -> Self {
        let mut target = Self::new(core, &feed.volume);
        target.feed = Some(feed);
        target
    }

    /// The name of the snapshot to come. A stream of a session must be the set that was
    /// announced; any other brings a name that users may type.
    fn name_of(&self, header: &StreamHeader) -> Result<String> {
        let Some(FeedSet { set, .. }) = self.feed else {
            return Ok(header.target.name.parse::<Name>()?.to_string());
        };
        let base = header.base.as_ref().map(|base| base.uuid);
        if header.target.uuid != set.target || base != set.stamp.base {
            return Err(Error::invalid("the stream is another one than the set that was announced"));
        }
        Ok(cut_name(set.stamp.number, set.target))
    }

    /// Waits until the engine has let go of the volume, so that the next receive finds it
    /// idle.
    pub async fn end(mut self) {
        while let Some(pending) = self.ahead.pop_front() {
            // What failed was said before, or is found again by a resumption.
            let _ = pending.await;
        }
        if let Some(gone) = self.let_go() {
            let _ = gone.await;
        }
    }

    fn let_go(&mut self) -> Option<Pending<()>> {
        let (engine, number) = self.engine.take()?;
        Some(engine.call(move |engine| async move {
            engine.receives.0.borrow_mut().try_remove(number);
            Ok(())
        }))
    }

    fn engine(&self) -> Result<(Handle, usize)> {
        self.engine.clone().ok_or_else(|| Error::invalid("the stream has not begun"))
    }

    async fn add(&mut self, change: Change, bytes: usize) -> Result<()> {
        self.batch.push(change);
        self.batch_bytes += bytes;
        if self.batch_bytes >= BATCH_BYTES || self.batch.len() >= BATCH_COUNT {
            self.hand_over(BATCHES_AHEAD).await?;
        }
        Ok(())
    }

    /// Hands over the batch and waits until at most `ahead` are under way.
    async fn hand_over(&mut self, ahead: usize) -> Result<()> {
        if let Some(feed) = self.feed {
            // A session that was stopped or opened again meanwhile brings nothing more.
            self.core.check_opening(feed)?;
        }
        self.hand_over_rest(ahead).await
    }

    /// The same of a set that is here as a whole.
    async fn hand_over_rest(&mut self, ahead: usize) -> Result<()> {
        let (engine, number) = self.engine()?;
        let batch = std::mem::take(&mut self.batch);
        self.batch_bytes = 0;
        if !batch.is_empty() {
            self.ahead
                .push_back(engine.call(move |engine| async move { apply(&engine, number, batch).await }));
        }
        while self.ahead.len() > ahead {
            if let Some(pending) = self.ahead.pop_front() {
                pending.await?;
            }
        }
        Ok(())
    }
}

async fn apply(engine: &Engine, number: usize, batch: Vec<Change>) -> Result<()> {
    let applying = engine.receives.get(number)?;
    let (mut data, mut discards) = (Vec::new(), Vec::new());
    for change in batch {
        match change {
            Change::Data(offset, bytes) => data.push((offset, bytes)),
            Change::Discard(offset, len) => discards.push((offset, len)),
        }
    }
    applying.receiving.data(&data).await?;
    let bytes: u64 = data.iter().map(|(_, bytes)| bytes.len() as u64).sum();
    applying.bytes.set(applying.bytes.get() + bytes);
    let discards = discards.into_iter().map(|(offset, len)| {
        let applying = Rc::clone(&applying);
        async move { applying.receiving.discard(offset, len).await }
    });
    join_all(discards).await.into_iter().collect()
}

impl Drop for EngineTarget<'_> {
    fn drop(&mut self) {
        drop(self.let_go());
    }
}

impl Target for EngineTarget<'_> {
    async fn begin(&mut self, header: &StreamHeader) -> Result<Begin> {
        let name = self.name_of(header)?;
        let created_us = parse_rfc3339(&header.created)?;
        self.volume.parse::<Name>()?;
        if !self.core.has_volume(self.volume) {
            if let Some(base) = &header.base {
                return Err(Error::conflict(format!(
                    "there is no volume {} with the base {}",
                    self.volume, base.name
                ))
                .hint("send the whole snapshot first"));
            }
            let options = CreateOptions {
                size: header.geometry.size,
                block_size: header.geometry.block_size,
                granularity: header.geometry.granularity,
                on_full: OnFull::Readonly,
            };
            self.core.create(self.volume, &options, Role::Secondary).await?;
        }
        let engine = self.core.engine_of(self.volume)?;
        let incoming = Incoming {
            target: header.target.uuid,
            name,
            created_us,
            size: header.geometry.size,
            base: header.base.as_ref().map(|b| (b.uuid, b.name.clone())),
            set: self.stamp(),
        };
        let (volume, total, block) = (self.volume.to_owned(), header.data_bytes, header.geometry.block_size);
        let begun = engine.call(move |engine| async move {
            let found = engine.volume(&volume)?;
            if found.geometry().block_size != block {
                return Err(Error::conflict(format!(
                    "volume {volume} has blocks of {} bytes, the stream of {block}",
                    found.geometry().block_size
                ))
                .hint("receive into a new volume"));
            }
            match found.receive_begin(&incoming).await? {
                ReceiveStart::Already => Ok(None),
                ReceiveStart::Go(receiving, durable) => {
                    let snapshot = incoming.name.clone();
                    let applying = Applying { receiving, volume, snapshot, bytes: Cell::new(0), total };
                    Ok(Some((engine.receives.0.borrow_mut().insert(Rc::new(applying)), durable)))
                }
            }
        });
        match begun.await? {
            None => Ok(Begin::AlreadyHave),
            Some((number, durable)) => {
                self.engine = Some((engine, number));
                if let Some(feed) = self.feed {
                    // Whoever opens the session again sees this receive, or is seen here.
                    self.core.check_opening(feed)?;
                }
                Ok(Begin::Resume { durable })
            }
        }
    }

    async fn data(&mut self, offset: u64, bytes: Bytes) -> Result<()> {
        let len = bytes.len();
        self.add(Change::Data(offset, bytes), len).await
    }

    async fn discard(&mut self, offset: u64, len: u64) -> Result<()> {
        self.add(Change::Discard(offset, len), 0).await
    }

    async fn progress(&mut self, below: u64) -> Result<()> {
        self.hand_over(0).await?;
        let (engine, number) = self.engine()?;
        let durable = engine
            .call(move |engine| async move { engine.receives.get(number)?.receiving.progress(below).await });
        durable.await
    }

    async fn commit(&mut self, _: &Trailer) -> Result<()> {
        self.hand_over_rest(0).await?;
        let (engine, number) = self.engine()?;
        let together = self.feed.is_some_and(|feed| feed.together);
        let ended = engine.call(move |engine| async move {
            let applying = engine.receives.get(number)?;
            match together {
                true => applying.receiving.arrived().await,
                false => applying.receiving.commit().await,
            }
        });
        ended.await
    }
}
