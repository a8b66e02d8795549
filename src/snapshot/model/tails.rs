//! Short scripts that together reach every write path. Each goes on from the same prepared
//! volume: a primary with three snapshots, or a replica that received two.

use super::oracle::{Fate, Receiving, Since, Snap};
use super::script::{Script, stamp};
use super::*;
use crate::snapshot::{Incoming, ReceiveStart};
use bytes::Bytes;
use futures::future::{LocalBoxFuture, join};

pub(super) const BLOCK: usize = 4096;
pub(super) const SIZE: usize = 24 * BLOCK + 512;

/// The volume that a script goes on from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Start {
    /// A primary, closed in good order.
    Closed,
    /// A secondary, closed in good order.
    Replica,
    /// A primary whose process died with much under way.
    Dead,
    /// A primary whose machine lost what was not synced.
    Cut,
}

/// A script.
pub(super) struct Tail {
    pub name: &'static str,
    pub start: Start,
    pub run: fn(Rc<Script>) -> LocalBoxFuture<'static, ()>,
}

/// What a stream brings: a base, and runs of offset, length and byte (none: a discard).
struct Shipment {
    target: u128,
    base: Option<u128>,
    size: usize,
    runs: &'static [(usize, usize, Option<u8>)],
}

const WHOLE: Shipment = Shipment {
    target: 1,
    base: None,
    size: SIZE,
    runs: &[(0, 10 * BLOCK, Some(1)), (12 * BLOCK, BLOCK, Some(2))],
};
const SECOND: Shipment = Shipment {
    target: 2,
    base: Some(1),
    size: SIZE,
    runs: &[(BLOCK, 2 * BLOCK, Some(3)), (4 * BLOCK, 2 * BLOCK, None), (14 * BLOCK, BLOCK, Some(4))],
};
const THIRD: Shipment = Shipment {
    target: 3,
    base: Some(2),
    size: SIZE + 3 * BLOCK,
    runs: &[(0, 3 * BLOCK, Some(5)), (8 * BLOCK, BLOCK, None), (24 * BLOCK, BLOCK, Some(6))],
};
const SMALLER: Shipment =
    Shipment { target: 4, base: Some(2), size: 9 * BLOCK, runs: &[(2 * BLOCK, 3 * BLOCK, Some(7))] };
const ANEW: Shipment = Shipment {
    target: 5,
    base: None,
    size: 20 * BLOCK,
    runs: &[(BLOCK, 4 * BLOCK, Some(8)), (10 * BLOCK, BLOCK, Some(8))],
};

/// Writes `len` bytes of `byte`.
pub(super) async fn put(script: &Script, at: usize, len: usize, byte: u8) {
    script.apply(0, at, vec![byte; len], false).await;
}

pub(super) async fn trim(script: &Script, at: usize, len: usize) {
    script.apply(6, at, vec![0; len], false).await;
}

async fn zero(script: &Script, at: usize, len: usize) {
    script.apply(9, at, vec![0; len], false).await;
}

fn named(number: u128, batch: Option<u128>) -> TakeRequest {
    TakeRequest {
        uuid: Uuid::from_u128(number),
        name: format!("n{number}"),
        created_us: 1,
        batch: batch.map(Uuid::from_u128),
        received: false,
        set: None,
    }
}

async fn take(script: &Script, number: u128) {
    script.take_as(named(number, None), 9).await;
}

/// Takes a cut.
async fn cut(script: &Script, number: u128) {
    script.take_as(TakeRequest { set: Some(stamp()), ..named(number, None) }, 9).await;
}

/// Takes a cut that becomes a bookmark.
async fn mark(script: &Script, number: u128) {
    cut(script, number).await;
    script.shrink_it(Uuid::from_u128(number)).await;
}

async fn delete(script: &Script, number: u128) {
    script.delete_these(vec![Uuid::from_u128(number)]).await;
}

async fn checkpoint(script: &Script) {
    let done = script.volume.checkpoint().await;
    script.is_done(&done);
}

async fn close(script: &Script) {
    let done = script.volume.close().await;
    script.is_done(&done);
}

/// What every script but those of a replica starts from.
pub(super) async fn prepare(script: &Script) {
    put(script, 0, 12 * BLOCK, 1).await;
    take(script, 1).await;
    put(script, BLOCK, 3 * BLOCK, 2).await;
    trim(script, 6 * BLOCK, 2 * BLOCK).await;
    take(script, 2).await;
    put(script, 2 * BLOCK, 4 * BLOCK, 3).await;
    put(script, 7 * BLOCK, BLOCK, 3).await;
    take(script, 3).await;
    put(script, 3 * BLOCK + 100, BLOCK, 4).await;
    script.flush_now().await;
}

/// What a process leaves that dies with much under way.
pub(super) async fn leave(script: &Script) {
    put(script, 0, 2 * BLOCK, 5).await;
    script.flush_now().await;
    trim(script, BLOCK, 2 * BLOCK).await;
    put(script, BLOCK, BLOCK, 6).await;
    take(script, 4).await;
    put(script, 8 * BLOCK, 3 * BLOCK, 7).await;
    put(script, 20 * BLOCK, BLOCK, 7).await;
    script.flush_now().await;
    put(script, 8 * BLOCK, BLOCK, 8).await;
    trim(script, 9 * BLOCK, BLOCK).await;
    put(script, 21 * BLOCK + 5, 100, 9).await;
}

/// What the scripts of a replica start from.
pub(super) async fn prepare_replica(script: &Script) {
    receive(script, &WHOLE, usize::MAX, true).await;
    receive(script, &SECOND, usize::MAX, true).await;
}

/// Applies the runs of a stream up to the one of that number, and commits it or leaves it.
async fn receive(script: &Script, shipment: &Shipment, runs: usize, commit: bool) {
    let name = |number: u128| format!("n{number}");
    let (target, base) = (Uuid::from_u128(shipment.target), shipment.base.map(Uuid::from_u128));
    {
        let mut oracle = script.oracle.borrow_mut();
        let mut image = base.map(|base| oracle.snap(base).image.clone()).unwrap_or_default();
        image.resize(shipment.size, 0);
        for (at, len, byte) in shipment.runs {
            image[*at..at + len].fill(byte.unwrap_or(0));
        }
        if oracle.receiving.is_none() {
            let before = oracle.live.clone();
            oracle.receiving = Some(Receiving { target, name: name(shipment.target), image, before });
        }
    }
    let incoming = Incoming {
        target,
        name: name(shipment.target),
        created_us: 1,
        size: shipment.size as u64,
        base: base.zip(shipment.base.map(name)),
        set: None,
    };
    let begun = script.volume.receive_begin(&incoming).await;
    if !script.is_done(&begun) {
        return;
    }
    let ReceiveStart::Go(receiving, from) = begun.unwrap() else { panic!("it is there already") };
    for (index, (at, len, byte)) in shipment.runs.iter().enumerate().take(runs) {
        let (at, len) = (*at as u64, *len);
        if at + (len as u64) <= from {
            continue;
        }
        let done = match byte {
            Some(byte) => receiving.data(&[(at, Bytes::from(vec![*byte; len]))]).await,
            None => receiving.discard(at, len as u64).await,
        };
        if !script.is_done(&done) {
            return;
        }
        if index % 2 == 0 {
            let done = receiving.progress(at + len as u64).await;
            if !script.is_done(&done) {
                return;
            }
        }
    }
    if !commit {
        return;
    }
    let done = receiving.commit().await;
    if script.is_done(&done) {
        let mut oracle = script.oracle.borrow_mut();
        let Receiving { target, name, image, .. } = oracle.receiving.take().unwrap();
        oracle.adopt(image.clone());
        oracle.snaps.push(Snap::there(target, name, image));
    }
}

/// Drops what is half received.
async fn abort(script: &Script) {
    let done = script.volume.receive_abort().await;
    if script.is_done(&done) {
        let mut oracle = script.oracle.borrow_mut();
        let before = oracle.receiving.take().unwrap().before;
        oracle.adopt(before);
    }
}

impl Snap {
    /// One that is there, with that content.
    pub(super) fn there(uuid: Uuid, name: String, image: Vec<u8>) -> Self {
        let (open, holds) = (Vec::new(), Vec::new());
        let (busy, holding, cut, since, shrinking) = (false, false, false, Since::Unknown, false);
        Self { uuid, name, fate: Fate::Must, image, open, busy, holds, holding, cut, since, shrinking }
    }
}

macro_rules! tails {
    ($($start:ident $name:literal: |$s:ident| $body:block)*) => {
        &[$(Tail { name: $name, start: Start::$start, run: |$s| Box::pin(async move { $body }) }),*]
    };
}

/// The scripts.
pub(super) const TAILS: &[Tail] = tails! {
    Closed "first write" : |s| { put(&s, 20 * BLOCK, BLOCK, 9).await; s.flush_now().await; }
    Closed "rewrite": |s| { put(&s, 0, BLOCK, 9).await; put(&s, 0, BLOCK, 10).await; s.flush_now().await; put(&s, 0, BLOCK, 11).await; }
    Closed "partial block": |s| { put(&s, 700, 900, 9).await; put(&s, 15 * BLOCK + 7, 10, 9).await; s.flush_now().await; }
    Closed "trim and rewrite": |s| {
        trim(&s, 0, 6 * BLOCK).await;
        s.flush_now().await;
        put(&s, BLOCK, BLOCK, 9).await;
        trim(&s, 13 * BLOCK, 2 * BLOCK).await;
        put(&s, BLOCK, 100, 10).await;
        trim(&s, BLOCK, BLOCK).await;
        s.flush_now().await;
        put(&s, BLOCK, BLOCK, 11).await;
    }
    Closed "write zeros": |s| {
        zero(&s, BLOCK, 2 * BLOCK).await;
        s.flush_now().await;
        zero(&s, 3 * BLOCK + 10, 2 * BLOCK).await;
        put(&s, BLOCK, BLOCK, 9).await;
    }
    Closed "flushes, and durable writes": |s| {
        put(&s, 18 * BLOCK, BLOCK, 9).await;
        s.flush_now().await;
        s.flush_now().await;
        put(&s, 0, 2 * BLOCK, 9).await;
        s.flush_now().await;
        s.apply(0, 0, vec![10; BLOCK], true).await;
        s.apply(6, BLOCK, vec![0; BLOCK], true).await;
        join(s.flush_now(), put(&s, 3 * BLOCK, BLOCK, 11)).await;
    }
    Closed "snapshot with writes beside it": |s| {
        put(&s, 0, 2 * BLOCK, 9).await;
        join(take(&s, 4), put(&s, 5 * BLOCK, 2 * BLOCK, 10)).await;
        put(&s, 0, BLOCK, 11).await;
    }
    Closed "snapshot in a batch, with a trim beside it": |s| {
        put(&s, 0, 2 * BLOCK, 9).await;
        join(s.take_as(named(4, Some(77)), 9), trim(&s, 0, 3 * BLOCK)).await;
        put(&s, 0, BLOCK, 11).await;
    }
    Closed "layers are sealed": |s| {
        for number in 4..7_u8 {
            put(&s, 0, 3 * BLOCK, 10 + number).await;
            take(&s, u128::from(number)).await;
            let sealed = s.volume.seal_closed().await;
            s.is_done(&sealed);
        }
        delete(&s, 5).await;
        put(&s, 0, BLOCK, 30).await;
    }
    Closed "delete the head": |s| { delete(&s, 1).await; put(&s, 0, BLOCK, 9).await; }
    Closed "delete in the middle": |s| { join(delete(&s, 2), put(&s, 8 * BLOCK, BLOCK, 9)).await; put(&s, 2 * BLOCK, BLOCK, 9).await; }
    Closed "delete the tail": |s| { join(delete(&s, 3), put(&s, 8 * BLOCK, BLOCK, 9)).await; put(&s, 2 * BLOCK, BLOCK, 9).await; }
    Closed "delete all": |s| {
        s.delete_these(vec![Uuid::from_u128(3), Uuid::from_u128(1), Uuid::from_u128(2)]).await;
        put(&s, 0, BLOCK, 9).await;
    }
    Closed "holds": |s| {
        s.hold_or_release(Uuid::from_u128(1)).await;
        s.hold_or_release(Uuid::from_u128(3)).await;
        s.hold_or_release(Uuid::from_u128(1)).await;
        delete(&s, 2).await;
    }
    Closed "roll back": |s| { put(&s, 0, 100, 9).await; s.roll_back_to(Uuid::from_u128(1)).await; put(&s, 0, 100, 9).await; }
    Closed "roll back to another size": |s| {
        s.resize_to(10 * BLOCK).await;
        put(&s, 0, BLOCK, 9).await;
        s.roll_back_to(Uuid::from_u128(2)).await;
        s.flush_now().await;
    }
    Closed "undone takes": |s| {
        for give_up in 1..3 {
            let request = named(50 + u128::from(give_up), None);
            join(s.take_as(request, give_up), put(&s, 8 * BLOCK, BLOCK, 9)).await;
            put(&s, 9 * BLOCK, BLOCK, 9).await;
        }
        take(&s, 4).await;
        put(&s, 8 * BLOCK, 2 * BLOCK, 10).await;
    }
    Closed "segments used again": |s| {
        for round in 0..3_u8 {
            put(&s, 0, 16 * BLOCK, 20 + round).await;
            take(&s, 100 + u128::from(round)).await;
        }
        delete(&s, 101).await;
        delete(&s, 100).await;
        put(&s, 0, 16 * BLOCK, 30).await;
    }
    Closed "holes are made": |s| {
        trim(&s, 0, 12 * BLOCK).await;
        s.delete_these(vec![Uuid::from_u128(3), Uuid::from_u128(1), Uuid::from_u128(2)]).await;
        s.io.sleep(std::time::Duration::from_secs(1)).await;
        put(&s, 2 * BLOCK, 2 * BLOCK, 9).await;
        s.flush_now().await;
        put(&s, 5 * BLOCK, 100, 10).await;
    }
    Closed "grow": |s| { put(&s, 24 * BLOCK, 512, 9).await; s.resize_to(30 * BLOCK).await; put(&s, 24 * BLOCK + 512, 2 * BLOCK, 10).await; s.flush_now().await; }
    Closed "shrink and grow": |s| { s.resize_to(5 * BLOCK + 512).await; put(&s, 5 * BLOCK, 512, 9).await; s.resize_to(SIZE).await; put(&s, 7 * BLOCK, 10, 10).await; }
    Closed "checkpoint": |s| {
        put(&s, 0, 2 * BLOCK, 9).await;
        join(checkpoint(&s), async { put(&s, 10 * BLOCK, 2 * BLOCK, 10).await; s.flush_now().await; trim(&s, 0, BLOCK).await; }).await;
        put(&s, 0, BLOCK, 11).await;
    }
    Closed "a journal that fills": |s| {
        for round in 0..7_u8 {
            put(&s, 0, 2 * BLOCK, 40 + round).await;
            s.flush_now().await;
        }
        put(&s, BLOCK, BLOCK, 60).await;
    }
    Closed "demote, promote and close": |s| {
        put(&s, 2 * BLOCK, BLOCK, 8).await;
        s.set_role(Role::Secondary).await;
        s.set_role(Role::Primary).await;
        put(&s, 2 * BLOCK, BLOCK, 9).await;
        close(&s).await;
    }
    Closed "close with much staged": |s| {
        put(&s, 0, 10 * BLOCK, 9).await;
        s.flush_now().await;
        put(&s, 2 * BLOCK, 2 * BLOCK, 10).await;
        trim(&s, 0, BLOCK).await;
        close(&s).await;
    }
    Closed "a bookmark, and writes": |s| {
        mark(&s, 10).await;
        put(&s, 0, 2 * BLOCK, 9).await;
        trim(&s, 6 * BLOCK, 6 * BLOCK).await;
        put(&s, 7 * BLOCK, 100, 10).await;
        put(&s, 20 * BLOCK, BLOCK, 11).await;
        s.flush_now().await;
        put(&s, 13 * BLOCK, 5 * BLOCK, 12).await;
    }
    Closed "nothing but a bookmark": |s| {
        s.delete_these(vec![Uuid::from_u128(3), Uuid::from_u128(1), Uuid::from_u128(2)]).await;
        mark(&s, 10).await;
        put(&s, 0, 2 * BLOCK, 9).await;
        checkpoint(&s).await;
        put(&s, 4 * BLOCK, 2 * BLOCK, 10).await;
        trim(&s, 8 * BLOCK, BLOCK).await;
        put(&s, 9 * BLOCK, BLOCK, 11).await;
    }
    Closed "a cut with writes beside it": |s| {
        mark(&s, 10).await;
        put(&s, 0, 2 * BLOCK, 9).await;
        join(cut(&s, 11), put(&s, 5 * BLOCK, 2 * BLOCK, 10)).await;
        put(&s, 0, BLOCK, 11).await;
        join(s.shrink_it(Uuid::from_u128(11)), put(&s, 12 * BLOCK, BLOCK, 12)).await;
        put(&s, 16 * BLOCK, BLOCK, 13).await;
    }
    Closed "checkpoints between bookmarks": |s| {
        mark(&s, 10).await;
        put(&s, 0, BLOCK, 9).await;
        join(checkpoint(&s), async { put(&s, 5 * BLOCK, BLOCK, 10).await; put(&s, 0, BLOCK, 11).await; }).await;
        mark(&s, 11).await;
        put(&s, 9 * BLOCK, BLOCK, 12).await;
        join(checkpoint(&s), trim(&s, 0, BLOCK)).await;
        checkpoint(&s).await;
        put(&s, 17 * BLOCK, BLOCK, 13).await;
    }
    Closed "bookmarks go, and an undone cut": |s| {
        mark(&s, 10).await;
        put(&s, 0, BLOCK, 9).await;
        mark(&s, 11).await;
        put(&s, 5 * BLOCK, BLOCK, 10).await;
        let request = TakeRequest { set: Some(stamp()), ..named(12, Some(78)) };
        join(s.take_as(request, 2), put(&s, 9 * BLOCK, BLOCK, 11)).await;
        s.forget_mark(Uuid::from_u128(11)).await;
        put(&s, 13 * BLOCK, BLOCK, 12).await;
        s.flush_now().await;
    }
    Closed "a bookmark, another size, a roll-back": |s| {
        mark(&s, 10).await;
        s.resize_to(30 * BLOCK).await;
        put(&s, 26 * BLOCK, 2 * BLOCK, 9).await;
        s.resize_to(10 * BLOCK).await;
        s.roll_back_to(Uuid::from_u128(1)).await;
    }
    Closed "a bookmark, and a close": |s| {
        mark(&s, 10).await;
        put(&s, 0, 2 * BLOCK, 9).await;
        mark(&s, 11).await;
        put(&s, 5 * BLOCK, 2 * BLOCK, 10).await;
        close(&s).await;
    }
    Replica "receive a delta": |s| { receive(&s, &THIRD, usize::MAX, true).await; s.flush_now().await; }
    Replica "receive a smaller volume": |s| { receive(&s, &SMALLER, usize::MAX, true).await; }
    Replica "receive all anew": |s| { receive(&s, &ANEW, usize::MAX, true).await; }
    Replica "half a receive, dropped": |s| { receive(&s, &THIRD, 2, false).await; abort(&s).await; }
    Replica "half a receive of all, dropped": |s| { receive(&s, &ANEW, 1, false).await; abort(&s).await; }
    Replica "a receive in two parts": |s| { receive(&s, &THIRD, 2, false).await; receive(&s, &THIRD, usize::MAX, true).await; }
    Replica "received, promoted and written": |s| {
        receive(&s, &SMALLER, usize::MAX, true).await;
        s.set_role(Role::Primary).await;
        put(&s, 0, 2 * BLOCK, 9).await;
        s.flush_now().await;
    }
    Dead "recovery after the death of the process": |s| { put(&s, 0, BLOCK, 9).await; }
    Cut "recovery after a power cut": |s| { put(&s, 0, BLOCK, 9).await; }
};
