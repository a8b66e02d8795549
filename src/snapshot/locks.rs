//! Ranges of blocks that an operation works on. A later one that touches any of them
//! waits its turn; disjoint ones run side by side.

use crate::store::event::Event;
use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::rc::Rc;

/// The ranges held and those waited for, in order of arrival.
#[derive(Default)]
pub struct Locks {
    inner: RefCell<Inner>,
    event: Event,
}

#[derive(Default)]
struct Inner {
    /// Start → end, disjoint.
    held: BTreeMap<u64, u64>,
    waiting: VecDeque<(u64, Range<u64>)>,
    next_ticket: u64,
}

impl Inner {
    fn overlaps(&self, range: &Range<u64>) -> bool {
        self.held.range(..range.end).next_back().is_some_and(|(_, end)| *end > range.start)
    }

    /// Whether somebody who came before `ticket` waits for a part of the range.
    fn is_behind(&self, range: &Range<u64>, ticket: u64) -> bool {
        self.waiting
            .iter()
            .take_while(|(other, _)| *other < ticket)
            .any(|(_, other)| other.start < range.end && range.start < other.end)
    }
}

/// Holds a range until it is dropped.
pub struct Held {
    locks: Rc<Locks>,
    start: u64,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.locks.inner.borrow_mut().held.remove(&self.start);
        self.locks.event.notify();
    }
}

impl Locks {
    /// Whether nobody holds any of the range or waits for it.
    pub fn is_free(&self, range: &Range<u64>) -> bool {
        let inner = self.inner.borrow();
        !inner.overlaps(range) && !inner.is_behind(range, u64::MAX)
    }

    /// Waits until no earlier operation touches the range, then holds it.
    pub async fn lock(self: &Rc<Self>, range: Range<u64>) -> Held {
        let ticket = {
            let mut inner = self.inner.borrow_mut();
            if !inner.overlaps(&range) && !inner.is_behind(&range, u64::MAX) {
                inner.held.insert(range.start, range.end);
                return Held { locks: Rc::clone(self), start: range.start };
            }
            inner.next_ticket += 1;
            let ticket = inner.next_ticket;
            inner.waiting.push_back((ticket, range.clone()));
            ticket
        };
        let place = Place { locks: self, ticket };
        loop {
            self.event.wait().await;
            let mut inner = self.inner.borrow_mut();
            if !inner.overlaps(&range) && !inner.is_behind(&range, ticket) {
                inner.held.insert(range.start, range.end);
                drop(inner);
                drop(place);
                return Held { locks: Rc::clone(self), start: range.start };
            }
        }
    }
}

/// A place in the queue; who gives up waiting leaves it.
struct Place<'a> {
    locks: &'a Locks,
    ticket: u64,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.locks.inner.borrow_mut().waiting.retain(|(other, _)| *other != self.ticket);
        self.locks.event.notify();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    #[test]
    fn who_gives_up_waiting_blocks_nobody() {
        let locks: Rc<Locks> = Rc::default();
        let held = locks.lock(0..4).now_or_never().expect("nobody holds it");
        assert!(locks.lock(3..6).now_or_never().is_none());
        assert!(locks.lock(5..8).now_or_never().is_some());
        drop(held);
        assert!(locks.lock(0..8).now_or_never().is_some());
    }
}
