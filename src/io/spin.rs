//! Spinning: whether a thread that has nothing to do looks out for a while before it sleeps.
//!
//! To wake a thread takes longer than to serve a small request. So while a client asks for
//! one small thing after the other, and each next one comes soon, the driver looks for it
//! for as long as that usually takes. Where that is in vain (the client needs longer, or
//! needs this very processor), it is tried ever more rarely.

use std::time::{Duration, Instant};

/// How long a thread looks out.
const LOOK: Duration = Duration::from_micros(50);
/// A wait is short up to here; waking is part of it.
const SHORT: Duration = Duration::from_micros(120);
/// The most work between two waits that still counts as one small request: with more, it
/// is the thread's work that the client waits for.
const LITTLE: Duration = Duration::from_micros(25);
/// Short waits in a row, with little work between, before it is tried.
const STREAK: u32 = 8;
/// The same at most, after it was in vain time and again.
const STREAK_MAX: u32 = 4096;

/// What one thread has seen of its waits.
pub(super) struct Spin {
    /// Short waits in a row.
    streak: u32,
    /// As many are needed.
    needed: u32,
    began: Instant,
    ended: Instant,
    tried: bool,
}

impl Default for Spin {
    fn default() -> Self {
        let now = Instant::now();
        Self { streak: 0, needed: STREAK, began: now, ended: now, tried: false }
    }
}

impl Spin {
    /// A wait begins now that may last for `limit`: until when to look out, if at all.
    pub fn begin(&mut self, now: Instant, limit: Option<Duration>) -> Option<Instant> {
        if now - self.ended > LITTLE {
            self.streak = 0;
        }
        self.began = now;
        self.tried = self.streak >= self.needed && limit.is_none_or(|limit| limit >= LOOK);
        self.tried.then(|| now + LOOK)
    }

    /// It has ended now.
    pub fn end(&mut self, now: Instant) {
        self.ended = now;
        let waited = self.ended - self.began;
        if self.tried {
            let found = waited <= LOOK;
            self.needed = if found { STREAK } else { (self.needed * 2).min(STREAK_MAX) };
            self.streak = if found { self.streak } else { 0 };
        } else {
            self.streak = if waited <= SHORT { self.streak + 1 } else { 0 };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A wait of that length after that much work.
    fn wait(spin: &mut Spin, work: Duration, length: Duration) -> bool {
        let begin = spin.ended + work;
        let tries = spin.begin(begin, None).is_some();
        spin.end(begin + length);
        tries
    }

    #[test]
    fn only_short_waits_after_little_work_are_spun_away() {
        let (none, short, long) = (Duration::ZERO, Duration::from_micros(10), Duration::from_millis(5));
        let mut spin = Spin::default();
        for _ in 0..STREAK {
            assert!(!wait(&mut spin, none, short));
        }
        assert!(wait(&mut spin, none, short));
        assert!(!wait(&mut spin, long, short), "there was much to do");
        for _ in 1..STREAK {
            assert!(!wait(&mut spin, none, short));
        }
        assert!(wait(&mut spin, none, long), "the client went away");
        for _ in 0..2 * STREAK {
            assert!(!wait(&mut spin, none, short), "it was in vain");
        }
        assert!(wait(&mut spin, none, short));
        assert!(spin.begin(spin.ended, Some(none)).is_none(), "there is no time for it");
    }
}
