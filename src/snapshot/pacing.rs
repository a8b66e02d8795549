//! Pacing: how fast writers go on while much of the stage is full.
//!
//! Staged writes leave the stage in groups, each after a sync, so slots become free in
//! bursts and sometimes, when a sync waits for the disk, not at all for a while. Writers that
//! waited for the next burst would stop and go. Instead each one waits for its turn, and
//! turns are granted in short ticks: as many slots as became free in a tick on average
//! lately, times a factor that falls with the room that is left, from two where pacing
//! begins to nothing in a full stage. So the stage comes to rest three quarters full, and
//! where nothing becomes free at all, a share of what is left is granted, so that replies
//! come ever more slowly but don't stop.
//!
//! Whoever waits here has been staged; only its reply is late. So nothing that settles,
//! takes, flushes or deletes ever waits for a turn, and turns are granted by time alone:
//! in the worst case they come slowly.

use super::volume::{Volume, Who};
use futures::channel::oneshot;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

/// How often turns are granted.
const TICK: Duration = Duration::from_micros(250);
/// Over so many ticks the slots that became free are averaged: several groups' time.
const TICKS_AVERAGED: usize = 64;
/// In so many ticks the room that is left would be granted if nothing became free.
const TICKS_OF_ROOM: u64 = 400;
/// A slot in the unit of credit.
const SLOT: u64 = 256;
/// What is granted in a tick at least, so that nobody waits for ever.
const GRANT_MIN: u64 = SLOT / 8;

/// How full a stage is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fill {
    /// Slots that are taken.
    pub taken: u64,
    /// Slots in all.
    pub slots: u64,
    /// Slots that became free so far, ever.
    pub freed: u64,
}

impl Fill {
    /// Whether so many more would be enough for writers to be paced.
    pub fn is_pressed(&self, more: u64) -> bool {
        (self.taken + more) * 2 > self.slots
    }

    /// Whether so much is staged that what writers will need is prepared: the rate at which
    /// they go on, and space.
    pub fn is_busy(&self) -> bool {
        self.taken * 4 > self.slots
    }
}

/// Writers that wait for their turn, and what they may have.
#[derive(Default)]
pub(super) struct Pacer {
    /// Slots that each one took, first come, first served.
    queue: RefCell<VecDeque<(u64, oneshot::Sender<()>)>>,
    /// What may be taken at once; less than nothing after a large write.
    credit: Cell<i64>,
    rate: RefCell<Rate>,
    ticking: Cell<bool>,
}

/// The slots that became free in the last ticks.
#[derive(Default)]
struct Rate {
    ticks: VecDeque<u64>,
    sum: u64,
    /// Those that were free at the last tick.
    seen: u64,
}

impl Rate {
    fn tick(&mut self, freed: u64) {
        let fresh = freed - self.seen;
        self.seen = freed;
        self.sum += fresh;
        self.ticks.push_back(fresh);
        if self.ticks.len() > TICKS_AVERAGED {
            self.sum -= self.ticks.pop_front().unwrap_or_default();
        }
    }

    /// What is granted in a tick, in the unit of credit.
    fn grant(&self, fill: &Fill) -> u64 {
        let room = fill.slots - fill.taken;
        let freed = self.sum * SLOT / (self.ticks.len() as u64).max(1);
        let paced = freed * 4 * room / fill.slots.max(1);
        paced.max(room * SLOT / TICKS_OF_ROOM).max(GRANT_MIN)
    }

    /// Whether nothing became free for as long as is looked back.
    fn is_idle(&self) -> bool {
        self.sum == 0 && self.ticks.len() >= TICKS_AVERAGED
    }
}

impl Pacer {
    /// Takes a turn at once, if there is one and nobody waits.
    pub fn take(&self, slots: u64) -> bool {
        let free = self.credit.get() > 0 && self.queue.borrow().is_empty();
        if free {
            self.pay(slots);
        }
        free
    }

    fn pay(&self, slots: u64) {
        self.credit.set(self.credit.get().saturating_sub_unsigned(slots.saturating_mul(SLOT)));
    }

    /// Waits for a turn.
    fn wait(&self, slots: u64) -> oneshot::Receiver<()> {
        let (turn, waiting) = oneshot::channel();
        self.queue.borrow_mut().push_back((slots, turn));
        waiting
    }

    /// Lets everybody go.
    fn open(&self) {
        self.credit.set(0);
        for (_, turn) in self.queue.take() {
            // Who is gone needs no turn.
            let _ = turn.send(());
        }
    }

    /// Grants the turns of a tick.
    fn tick(&self, fill: &Fill) {
        let mut rate = self.rate.borrow_mut();
        rate.tick(fill.freed);
        if !fill.is_pressed(0) {
            drop(rate);
            self.open();
            return;
        }
        // What nobody took in one tick is not added to the next.
        let grant = i64::try_from(rate.grant(fill)).unwrap_or(i64::MAX);
        self.credit.set(self.credit.get().saturating_add(grant).min(grant));
        while self.credit.get() > 0 {
            let Some((slots, turn)) = self.queue.borrow_mut().pop_front() else { return };
            if turn.send(()).is_ok() {
                self.pay(slots);
            }
        }
    }

    /// Begins to measure.
    fn begin(&self, freed: u64) {
        *self.rate.borrow_mut() = Rate { seen: freed, ..Rate::default() };
        self.credit.set(0);
    }

    /// Whether there is nothing to grant and nothing worth measuring.
    fn is_done(&self, fill: &Fill) -> bool {
        self.queue.borrow().is_empty() && (!fill.is_busy() || self.rate.borrow().is_idle())
    }
}

impl Volume {
    /// Whoever has taken so many slots waits for its turn, if the stage is so full.
    pub(super) async fn paced(self: &Rc<Self>, slots: u64) {
        if slots == 0 || !self.fill().is_pressed(0) || !self.may_pace() {
            return;
        }
        if self.pacer.take(slots) {
            return;
        }
        let turn = self.pacer.wait(slots);
        self.kick_pacer();
        // An end without a word is a turn as well.
        let _ = turn.await;
    }

    /// Whether so many slots may be taken without a wait.
    pub(super) fn may_stage(&self, slots: u64) -> bool {
        let fill = self.fill();
        !fill.is_pressed(slots) || (fill.taken + slots <= fill.slots && self.pacer.take(slots))
    }

    fn fill(&self) -> Fill {
        self.s.borrow().slots.fill()
    }

    /// Whether anything is to be waited for: a volume that is about to be closed, or takes no
    /// writes any more, has nobody wait.
    fn may_pace(&self) -> bool {
        !self.closing.get() && self.writable(Who::Store).is_ok()
    }

    /// Grants turns for as long as much is staged.
    pub(super) fn kick_pacer(self: &Rc<Self>) {
        let fill = self.fill();
        let needed = fill.is_busy() || !self.pacer.queue.borrow().is_empty();
        if !needed || self.pacer.ticking.replace(true) {
            return;
        }
        self.pacer.begin(fill.freed);
        let volume = Rc::clone(self);
        self.io.spawn(async move {
            loop {
                volume.io.sleep(TICK).await;
                let fill = volume.fill();
                if !volume.may_pace() {
                    break;
                }
                volume.pacer.tick(&fill);
                if volume.pacer.is_done(&fill) {
                    break;
                }
            }
            volume.pacer.open();
            volume.pacer.ticking.set(false);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLOTS: u64 = 4096;

    /// A stage and writers who each stage a block as soon as the reply to the last one came.
    struct Bench {
        pacer: Pacer,
        fill: Fill,
        waiting: VecDeque<oneshot::Receiver<()>>,
    }

    impl Bench {
        fn new(writers: usize, slots: u64, taken: u64) -> Self {
            let mut bench = Self {
                pacer: Pacer::default(),
                fill: Fill { taken, slots, freed: 0 },
                waiting: VecDeque::new(),
            };
            bench.pacer.begin(0);
            (0..writers).for_each(|_| bench.write());
            bench
        }

        fn write(&mut self) {
            self.fill.taken += 1;
            assert!(self.fill.taken <= self.fill.slots, "the stage is full");
            if self.pacer.take(1) {
                self.write();
            } else {
                self.waiting.push_back(self.pacer.wait(1));
            }
        }

        /// One tick in which so many slots became free; returns how many replies were sent.
        fn tick(&mut self, freed: u64) -> u64 {
            let freed = freed.min(self.fill.taken);
            self.fill.taken -= freed;
            self.fill.freed += freed;
            let before = self.fill.taken;
            self.pacer.tick(&self.fill);
            let waiting = std::mem::take(&mut self.waiting);
            let (mut ready, mut left) = (0, VecDeque::new());
            for mut turn in waiting {
                match turn.try_recv() {
                    Ok(None) => left.push_back(turn),
                    _ => {
                        assert!(left.is_empty(), "first come, first served");
                        ready += 1;
                    }
                }
            }
            self.waiting = left;
            (0..ready).for_each(|_| self.write());
            self.fill.taken - before
        }
    }

    #[test]
    fn writers_go_as_fast_as_slots_become_free() {
        let mut bench = Bench::new(64, SLOTS, SLOTS / 2);
        let mut replies = 0;
        for tick in 0..4000 {
            // Groups of 256, two milliseconds apart.
            let sent = bench.tick(if tick % 8 == 0 { 256 } else { 0 });
            if tick >= 2000 {
                replies += sent;
                assert!(sent > 0, "nobody was served in tick {tick}");
                assert!((SLOTS * 5 / 8..SLOTS * 7 / 8).contains(&bench.fill.taken), "{:?}", bench.fill);
            }
        }
        assert!((63_000..65_000).contains(&replies), "{replies} of 64,000");
    }

    #[test]
    fn replies_go_on_while_nothing_becomes_free() {
        let mut bench = Bench::new(64, SLOTS, SLOTS / 2);
        for tick in 0..2000 {
            bench.tick(if tick % 8 == 0 { 256 } else { 0 });
        }
        let mut silent = 0;
        // A tenth of a second.
        for tick in 0..400 {
            silent = if bench.tick(0) > 0 { 0 } else { silent + 1 };
            assert!(silent < 4, "a pause of a millisecond at tick {tick}");
        }
        assert!(bench.fill.taken < SLOTS);
        for tick in 0..2000 {
            bench.tick(if tick % 8 == 0 { 256 } else { 0 });
        }
        assert!(bench.fill.taken < SLOTS * 7 / 8, "it has recovered");
    }

    #[test]
    fn turns_come_however_small_and_full_the_stage_is() {
        let pacer = Pacer::default();
        pacer.begin(0);
        let full = Fill { taken: 8, slots: 8, freed: 0 };
        let mut turns: Vec<_> = (0..8).map(|_| pacer.wait(100)).collect();
        let mut ticks = 0;
        while !turns.is_empty() {
            pacer.tick(&full);
            turns.retain_mut(|turn| matches!(turn.try_recv(), Ok(None)));
            ticks += 1;
            assert!(ticks < 8 * 100 * 8 + 8, "somebody waits for ever");
        }
        let waiting = [pacer.wait(100), pacer.wait(100)];
        pacer.tick(&Fill { taken: 4, slots: 8, freed: 4 });
        for mut turn in waiting {
            assert_eq!(turn.try_recv(), Ok(Some(())), "there is room again");
        }
    }

    #[test]
    fn a_large_write_pays_for_all_its_slots() {
        let pacer = Pacer::default();
        pacer.begin(0);
        let fill = |freed| Fill { taken: SLOTS * 3 / 4, slots: SLOTS, freed };
        let large = pacer.wait(64);
        let mut small = pacer.wait(1);
        let mut freed = 0;
        for tick in 1..=17 {
            freed += 4;
            pacer.tick(&fill(freed));
            let served = small.try_recv() == Ok(Some(()));
            assert_eq!(served, tick == 17, "tick {tick}");
        }
        drop(large);
    }

    #[test]
    fn whoever_is_gone_takes_no_turn() {
        let pacer = Pacer::default();
        pacer.begin(0);
        drop(pacer.wait(1000));
        let mut next = pacer.wait(1);
        pacer.tick(&Fill { taken: SLOTS * 3 / 4, slots: SLOTS, freed: 1 });
        assert_eq!(next.try_recv(), Ok(Some(())));
    }
}
