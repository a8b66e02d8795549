//! Sleeps of a kernel driver: a heap of moments.

use super::{OpId, Outcome, Output};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::{Duration, Instant};

/// Sleeps under way, the earliest first.
#[derive(Default)]
pub(super) struct Timers(BinaryHeap<Reverse<(Instant, OpId)>>);

impl Timers {
    /// Starts a sleep. One too long for the clock never ends.
    pub(super) fn start(&mut self, id: OpId, time: Duration) {
        let now = Instant::now();
        let end = now.checked_add(time).unwrap_or_else(|| now + Duration::from_secs(u64::from(u32::MAX)));
        self.0.push(Reverse((end, id)));
    }

    /// Takes the sleeps that are over.
    pub(super) fn collect(&mut self, done: &mut Vec<(OpId, Outcome)>) {
        if self.0.is_empty() {
            return;
        }
        let now = Instant::now();
        while let Some(Reverse((end, id))) = self.0.peek() {
            if *end > now {
                break;
            }
            done.push((*id, Ok(Output::None)));
            self.0.pop();
        }
    }

    /// How long a wait may last: until `deadline` or the end of the next sleep.
    pub(super) fn limit(&self, deadline: Option<Instant>) -> Option<Duration> {
        let next = self.0.peek().map(|Reverse((end, _))| *end);
        let end = [next, deadline].into_iter().flatten().min()?;
        Some(end.saturating_duration_since(Instant::now()))
    }
}
