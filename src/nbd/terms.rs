//! The terms on which a connection is served: how long its client may keep it waiting, and
//! how much memory all connections together may hold.
//!
//! A client owes something in the middle of a request, and while it does not take replies
//! that are ready; one that owes nothing may be silent for as long as it likes. So a client
//! that is stuck or gone holds its connection, and what it sent, for a bounded time.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Looks at a client within its patience.
const LOOKS: u32 = 4;
/// Bytes that must have moved between two looks.
const PROGRESS_BYTES: u64 = 16 << 10;

/// What a connection may take.
#[derive(Clone, Debug)]
pub struct Terms {
    /// How long a client may leave a request unfinished, or a reply untaken, and move
    /// hardly anything; none: for ever.
    pub patience: Option<Duration>,
    /// What all connections together may hold.
    pub budget: Budget,
}

impl Default for Terms {
    fn default() -> Self {
        Self { patience: None, budget: Budget::new(u64::MAX) }
    }
}

/// Bytes of payload that many connections hold together. A connection with one request is
/// always served; more at a time need room here.
#[derive(Clone, Debug)]
pub struct Budget(Arc<(u64, AtomicU64)>);

impl Budget {
    /// So many bytes.
    #[must_use]
    pub fn new(bytes: u64) -> Self {
        Self(Arc::new((bytes, AtomicU64::new(0))))
    }

    /// Bytes that are held.
    #[must_use]
    pub fn held(&self) -> u64 {
        self.0.1.load(Ordering::Relaxed)
    }

    fn has(&self, bytes: u64) -> bool {
        self.held().saturating_add(bytes) <= self.0.0
    }
}

/// One connection's part of the budget; given back when it is dropped.
#[derive(Debug)]
pub(super) struct Part {
    budget: Budget,
    bytes: Cell<u64>,
}

impl Part {
    pub fn new(budget: Budget) -> Self {
        Self { budget, bytes: Cell::new(0) }
    }

    /// Whether the connection may hold so many requests and bytes.
    pub fn has(&self, requests: usize, bytes: u64) -> bool {
        requests <= 1 || self.budget.has(bytes.saturating_sub(self.bytes.get()))
    }

    /// The connection holds so many requests and bytes now.
    pub fn hold(&self, requests: usize, bytes: u64) {
        let now = if requests > 1 { bytes } else { 0 };
        let before = self.bytes.replace(now);
        let used = &self.budget.0.1;
        if now > before {
            used.fetch_add(now - before, Ordering::Relaxed);
        } else if now < before {
            used.fetch_sub(before - now, Ordering::Relaxed);
        }
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.hold(0, 0);
    }
}

/// What a client owes at this moment, and how much it moves.
#[derive(Debug, Default)]
pub(super) struct Debt {
    /// A request has begun to arrive.
    pub request: Cell<bool>,
    /// Replies are on their way out.
    pub reply: Cell<bool>,
    moved: Cell<u64>,
    seen: Cell<u64>,
    strikes: Cell<u32>,
}

impl Debt {
    /// Bytes came or went.
    pub fn moved(&self, bytes: usize) {
        self.moved.set(self.moved.get().wrapping_add(bytes as u64));
    }

    /// A request arrived whole, or replies went out: the debt is paid.
    pub fn paid(&self) {
        self.strikes.set(0);
        self.moved(usize::try_from(PROGRESS_BYTES).unwrap_or(usize::MAX));
    }

    /// To be called this often.
    pub fn look_every(patience: Duration) -> Duration {
        patience / LOOKS
    }

    /// Whether the client has used up all patience.
    pub fn look(&self) -> bool {
        let moved = self.moved.get().wrapping_sub(self.seen.replace(self.moved.get()));
        let owes = self.request.get() || self.reply.get();
        let strikes = if owes && moved < PROGRESS_BYTES { self.strikes.get() + 1 } else { 0 };
        self.strikes.set(strikes);
        strikes >= LOOKS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_request_is_always_served() {
        let budget = Budget::new(100);
        let (one, two) = (Part::new(budget.clone()), Part::new(budget.clone()));
        one.hold(1, 5000);
        assert_eq!(budget.held(), 0);
        one.hold(2, 90);
        assert!(two.has(1, 5000) && two.has(2, 10) && !two.has(2, 11));
        two.hold(2, 10);
        assert_eq!(budget.held(), 100);
        drop(one);
        two.hold(1, 5);
        assert_eq!(budget.held(), 0);
    }

    #[test]
    fn patience_ends_only_for_who_owes_and_stands_still() {
        let debt = Debt::default();
        assert!((0..20).all(|_| !debt.look()), "an idle client may stay");
        debt.request.set(true);
        for _ in 0..20 {
            debt.moved(usize::try_from(PROGRESS_BYTES).unwrap());
            assert!(!debt.look(), "a slow one may, too");
        }
        debt.moved(1);
        assert_eq!((0..LOOKS).map(|_| debt.look()).collect::<Vec<_>>(), [false, false, false, true]);
        debt.paid();
        assert!(!debt.look());
    }
}
