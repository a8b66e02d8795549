//! What a session does next, from facts alone.
//!
//! Invariants:
//! - what is half received goes on only if epoch, base and target are still to be had;
//! - a set starts at what the receiver shows, or it is whole;
//! - a set never passes a state that another session has or is getting, so that any receiver
//!   can feed those behind it by deltas.

use crate::engine::sets::{Cut, HalfSet};
use crate::types::{RoleEpoch, SetId, SetStamp};
use std::collections::BTreeSet;
use std::time::Duration;
use uuid::Uuid;

/// How long a session rests after a failure, at first and at most.
const BACK_OFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// What is known when a session decides.
#[derive(Clone, Debug)]
pub struct Facts<'a> {
    /// The role epoch here.
    pub epoch: RoleEpoch,
    /// What the receiver shows; a delta can start from nothing else.
    pub shown: Option<Uuid>,
    /// What it has half received.
    pub half: Option<&'a HalfSet>,
    /// All snapshots here, cuts among them, oldest first.
    pub queue: &'a [Uuid],
    /// The cuts, oldest first.
    pub cuts: &'a [Cut],
    /// Cuts that other sessions' receivers have or are getting.
    pub others: &'a BTreeSet<Uuid>,
    /// It is time to ship what there is.
    pub due: bool,
    /// Something changed since the youngest cut.
    pub changed: bool,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// The receiver drops what it has half.
    Abort,
    /// A cut is taken, and shipped from this base.
    Cut {
        /// None: whole.
        base: Option<Uuid>,
    },
    /// A set is shipped.
    Ship {
        /// It.
        set: SetId,
        /// The token that says what has arrived.
        resume: Option<String>,
    },
    /// Nothing, for now.
    Rest,
}

/// The set that leads from a base to a cut.
#[must_use]
pub fn set_to(cut: &SetId, base: Option<Uuid>) -> SetId {
    SetId { stamp: SetStamp { base, ..cut.stamp }, target: cut.target }
}

/// Decides.
#[must_use]
pub fn next(facts: &Facts<'_>) -> Step {
    let place = |uuid: Uuid| facts.queue.iter().position(|known| *known == uuid);
    let base = facts.shown.filter(|shown| place(*shown).is_some());
    if let Some(half) = facts.half {
        let goes_on = half.set.filter(|set| {
            let cut = facts.cuts.iter().find(|cut| cut.set.target == set.target);
            let fits = cut.is_some_and(|cut| set_to(&cut.set, set.stamp.base) == *set);
            fits && (set.stamp.base.is_none() || set.stamp.base == base) && set.stamp.epoch == facts.epoch
        });
        return match goes_on {
            Some(set) => Step::Ship { set, resume: Some(half.token.clone()) },
            None => Step::Abort,
        };
    }
    let behind = |cut: &&Cut| match base {
        None => true,
        Some(base) => place(cut.set.target) > place(base),
    };
    let ahead: Vec<&Cut> = facts.cuts.iter().filter(behind).collect();
    if !facts.due {
        return Step::Rest;
    }
    let boundary = ahead.iter().find(|cut| facts.others.contains(&cut.set.target));
    if let Some(cut) = boundary.filter(|_| base.is_some()) {
        return Step::Ship { set: set_to(&cut.set, base), resume: None };
    }
    if facts.changed {
        return Step::Cut { base };
    }
    match ahead.last() {
        Some(cut) if cut.set.stamp.epoch == facts.epoch => {
            Step::Ship { set: set_to(&cut.set, base), resume: None }
        }
        // A cut of an earlier role epoch is not shipped under the present one.
        Some(_) => Step::Cut { base },
        None if base.is_none() => Step::Cut { base },
        None => Step::Rest,
    }
}

/// The rest after so many failures in a row.
#[must_use]
pub fn back_off(failures: u64) -> Duration {
    let (first, most) = BACK_OFF;
    let doubled = u32::try_from(failures.saturating_sub(1)).unwrap_or(u32::MAX).min(16);
    (first * (1 << doubled)).min(most)
}

#[cfg(test)]
mod tests {
    use super::*;

    const EPOCH: RoleEpoch = RoleEpoch { counter: 1, identity: Uuid::from_u128(99) };

    fn id(number: u64) -> Uuid {
        Uuid::from_u128(u128::from(number))
    }

    fn cut(number: u64) -> Cut {
        let stamp = SetStamp { epoch: EPOCH, number, base: number.checked_sub(1).map(id) };
        Cut { set: SetId { stamp, target: id(number) }, created_us: number }
    }

    fn set(base: Option<u64>, target: u64) -> SetId {
        set_to(&cut(target).set, base.map(id))
    }

    /// The step with cuts 5 to 9 here, a user's snapshot 100 before them and 101 after 6.
    fn step(shown: Option<u64>, others: &[u64], due: bool, changed: bool, half: Option<HalfSet>) -> Step {
        let cuts: Vec<Cut> = (5..=9).map(cut).collect();
        let queue: Vec<Uuid> = [100, 5, 6, 101, 7, 8, 9].map(id).to_vec();
        let others = others.iter().copied().map(id).collect();
        next(&Facts {
            epoch: EPOCH,
            shown: shown.map(id),
            half: half.as_ref(),
            queue: &queue,
            cuts: &cuts,
            others: &others,
            due,
            changed,
        })
    }

    fn ship(base: Option<u64>, target: u64) -> Step {
        Step::Ship { set: set(base, target), resume: None }
    }

    #[test]
    fn sets_not_sent_are_merged_where_nobody_needs_the_boundary() {
        assert_eq!(step(Some(5), &[], true, false, None), ship(Some(5), 9));
        assert_eq!(step(Some(5), &[7, 8], true, false, None), ship(Some(5), 7));
        assert_eq!(step(Some(7), &[7, 8], true, true, None), ship(Some(7), 8));
        assert_eq!(step(Some(8), &[5], true, false, None), ship(Some(8), 9));
        assert_eq!(step(Some(8), &[5], true, true, None), Step::Cut { base: Some(id(8)) });
        assert_eq!(step(Some(9), &[], true, false, None), Step::Rest);
        assert_eq!(step(Some(9), &[], true, true, None), Step::Cut { base: Some(id(9)) });
        assert_eq!(step(Some(5), &[7], false, true, None), Step::Rest);
    }

    #[test]
    fn what_was_copied_by_hand_is_a_base_too() {
        assert_eq!(step(Some(100), &[], true, false, None), ship(Some(100), 9));
        assert_eq!(step(Some(101), &[6, 8], true, false, None), ship(Some(101), 8));
    }

    #[test]
    fn a_receiver_with_nothing_in_common_gets_all() {
        for shown in [None, Some(77)] {
            assert_eq!(step(shown, &[], true, false, None), ship(None, 9));
            assert_eq!(step(shown, &[6], true, true, None), Step::Cut { base: None });
        }
        let facts = Facts {
            epoch: EPOCH,
            shown: None,
            half: None,
            queue: &[],
            cuts: &[],
            others: &BTreeSet::new(),
            due: true,
            changed: false,
        };
        assert_eq!(next(&facts), Step::Cut { base: None });
        let later = RoleEpoch { counter: 2, identity: id(98) };
        let cuts = [cut(5)];
        let facts = Facts { epoch: later, queue: &[id(5)], cuts: &cuts, ..facts };
        assert_eq!(next(&facts), Step::Cut { base: None }, "no cut of an earlier role epoch");
    }

    #[test]
    fn what_is_half_received_goes_on_or_is_dropped() {
        let half = |set| Some(HalfSet { set, durable: 4096, token: "token".to_owned() });
        let resumed = |set| Step::Ship { set, resume: Some("token".to_owned()) };
        for due in [false, true] {
            assert_eq!(step(Some(5), &[6], due, true, half(Some(set(Some(5), 8)))), resumed(set(Some(5), 8)));
            assert_eq!(step(None, &[], due, true, half(Some(set(None, 7)))), resumed(set(None, 7)));
            // The target is gone, the base is not what is shown, or it is nobody's set.
            assert_eq!(step(Some(5), &[], due, true, half(Some(set(Some(5), 4)))), Step::Abort);
            assert_eq!(step(Some(5), &[], due, true, half(Some(set(Some(6), 8)))), Step::Abort);
            assert_eq!(step(Some(5), &[], due, true, half(None)), Step::Abort);
            let mut other = set(Some(5), 8);
            other.stamp.epoch.counter = 2;
            assert_eq!(step(Some(5), &[], due, true, half(Some(other))), Step::Abort);
        }
    }

    #[test]
    fn rests_grow_up_to_a_minute() {
        let seconds: Vec<u64> = (1..9).map(|failures| back_off(failures).as_secs()).collect();
        assert_eq!(seconds, [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(back_off(u64::MAX), back_off(7));
    }
}
