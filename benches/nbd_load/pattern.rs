//! Where requests go: at random, in sequence, or everywhere once in random order.

use clap::ValueEnum;

/// The order of requests over a range of slots, each as long as one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Order {
    /// Uniformly at random, with repetitions.
    Random,
    /// One after the other, from the start again at the end.
    Sequential,
    /// Each slot once, in random order; the run ends with the last one.
    Once,
}

/// Gives the slots of one connection.
pub struct Pattern {
    order: Order,
    first: u64,
    count: u64,
    next: u64,
    rng: fastrand::Rng,
    /// For [`Order::Once`]: the slots left.
    left: Vec<u32>,
}

impl Pattern {
    /// Slots `first..first + count`.
    pub fn new(order: Order, first: u64, count: u64, seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut left = Vec::new();
        if order == Order::Once {
            left.extend(0..u32::try_from(count).unwrap_or(u32::MAX));
            rng.shuffle(&mut left);
        }
        Self { order, first, count, next: 0, rng, left }
    }

    /// These slots, from the last to the first.
    pub fn of(slots: Vec<u64>) -> Self {
        let left = slots.into_iter().filter_map(|slot| u32::try_from(slot).ok()).collect();
        Self { order: Order::Once, first: 0, count: 0, next: 0, rng: fastrand::Rng::with_seed(0), left }
    }

    /// The next slot; `None` when there is none left.
    pub fn next(&mut self) -> Option<u64> {
        let index = match self.order {
            Order::Random => self.rng.u64(0..self.count),
            Order::Sequential => {
                let index = self.next;
                self.next = (self.next + 1) % self.count;
                index
            }
            Order::Once => u64::from(self.left.pop()?),
        };
        Some(self.first + index)
    }

    /// True in so many of a hundred cases.
    pub fn chance(&mut self, percent: u32) -> bool {
        percent >= 100 || self.rng.u32(0..100) < percent
    }
}
