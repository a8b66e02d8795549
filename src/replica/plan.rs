//! What a session does next, from facts alone.
//!
//! Invariants:
//! - what is half received goes on only if epoch, base and target are still to be had;
//! - a set starts at what the receiver shows, or it is whole;
//! - a set never passes a state that another session has or is getting, so that any receiver
//!   can feed those behind it by deltas.

use crate::engine::sets::{Cut, HalfSet};
use crate::error::{Error, Result};
use crate::types::{RoleEpoch, SetId, SetStamp, VOLUME_SIZE_MAX};
use std::collections::BTreeSet;
use std::time::Duration;
use uuid::Uuid;

/// Ranges of a receiver's own changes that are kept, at most.
const RANGES_KEPT: usize = 1 << 18;

/// How long a session rests after a failure, at first and at most.
const BACK_OFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// What is known when a session decides.
#[derive(Clone, Debug)]
pub struct Facts<'a> {
    /// The role epoch here.
    pub epoch: RoleEpoch,
    /// What the receiver shows; a delta can start from nothing else.
    pub shown: Option<Uuid>,
    /// Of a receiver with something of its own, which it shows: the state that both have.
    pub common: Option<Uuid>,
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

/// What the volumes of a session do next: one thing, all of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Joint {
    /// The receiver drops what it has half.
    Abort,
    /// A cut is taken of each, and shipped from these bases.
    Cut {
        /// None: whole.
        bases: Vec<Option<Uuid>>,
    },
    /// A set of each is shipped, or goes on by the token that says what has arrived.
    Ship(Vec<(SetId, Option<String>)>),
    /// Nothing, for now.
    Rest,
}

/// The set that leads from a base to a cut.
#[must_use]
pub fn set_to(cut: &SetId, base: Option<Uuid>) -> SetId {
    SetId { stamp: SetStamp { base, ..cut.stamp }, target: cut.target }
}

/// What the receiver shows, where a delta can start from it.
fn base_of(facts: &Facts<'_>) -> Option<Uuid> {
    let stands = facts.common.or(facts.shown).filter(|state| facts.queue.contains(state));
    facts.shown.filter(|_| stands.is_some())
}

/// The set that leads to the cut of that number, if there is one ahead.
fn to_number(facts: &Facts<'_>, number: u64) -> Option<SetId> {
    let place = |uuid: Uuid| facts.queue.iter().position(|known| *known == uuid);
    let stands = facts.common.or(facts.shown).and_then(place);
    let wanted = |cut: &&Cut| cut.set.stamp.number == number && cut.set.stamp.epoch == facts.epoch;
    let cut = facts.cuts.iter().find(wanted).filter(|cut| place(cut.set.target) > stands)?;
    Some(set_to(&cut.set, base_of(facts)))
}

/// Decides for all volumes of a session together. Cuts of one number belong together: what one
/// of them has half, all go on with; no volume ever gets another number than the others.
#[must_use]
pub fn joint(all: &[Facts<'_>]) -> Joint {
    let steps: Vec<Step> = all.iter().map(next).collect();
    if steps.contains(&Step::Abort) {
        return Joint::Abort;
    }
    let ships = |resumed: bool| {
        let number = |step: &Step| match step {
            Step::Ship { set, resume } if resume.is_some() == resumed => Some(set.stamp.number),
            _ => None,
        };
        steps.iter().filter_map(number).min()
    };
    let to = |number: u64| {
        let set = |(facts, step): (&Facts<'_>, &Step)| match step {
            Step::Ship { set, resume: Some(token) } => {
                (set.stamp.number == number).then(|| (*set, Some(token.clone())))
            }
            _ => to_number(facts, number).map(|set| (set, None)),
        };
        all.iter().zip(&steps).map(set).collect::<Option<Vec<_>>>()
    };
    if let Some(number) = ships(true) {
        return to(number).map_or(Joint::Abort, Joint::Ship);
    }
    if steps.iter().all(|step| *step == Step::Rest) {
        return Joint::Rest;
    }
    if let Some(sets) = ships(false).and_then(to) {
        return Joint::Ship(sets);
    }
    Joint::Cut { bases: all.iter().map(base_of).collect() }
}

/// Decides.
#[must_use]
pub fn next(facts: &Facts<'_>) -> Step {
    let place = |uuid: Uuid| facts.queue.iter().position(|known| *known == uuid);
    // Where what the receiver shows stands among what is here.
    let stands = facts.common.or(facts.shown).filter(|state| place(*state).is_some());
    let base = facts.shown.filter(|_| stands.is_some());
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
    let behind = |cut: &&Cut| match stands {
        None => true,
        Some(stands) => place(cut.set.target) > place(stands),
    };
    let ahead: Vec<&Cut> = facts.cuts.iter().filter(behind).collect();
    if !facts.due {
        return Step::Rest;
    }
    // A cut of an earlier role epoch is not shipped under the present one.
    let of_now = |cut: &Cut| cut.set.stamp.epoch == facts.epoch;
    let boundary = ahead.iter().find(|cut| facts.others.contains(&cut.set.target) && of_now(cut));
    if let Some(cut) = boundary.filter(|_| base.is_some()) {
        return Step::Ship { set: set_to(&cut.set, base), resume: None };
    }
    // What the receiver has of its own goes also where nothing changed here.
    if facts.changed || facts.common.is_some() {
        return Step::Cut { base };
    }
    match ahead.last() {
        Some(cut) if of_now(cut) => Step::Ship { set: set_to(&cut.set, base), resume: None },
        Some(_) => Step::Cut { base },
        None if base.is_none() => Step::Cut { base },
        None => Step::Rest,
    }
}

/// Adds ranges behind those that there are; of very many, near ones become one.
///
/// # Errors
/// `Invalid` when they are not ascending and disjoint.
pub fn join_ranges(all: &mut Vec<(u64, u64)>, more: &[(u64, u64)]) -> Result<()> {
    for (at, len) in more {
        let end = all.last().map_or(0, |(at, len)| at + len);
        if *at < end || *len == 0 || at.checked_add(*len).is_none_or(|end| end > VOLUME_SIZE_MAX) {
            return Err(Error::invalid("the other side says ranges that are in no order"));
        }
        all.push((*at, *len));
        if all.len() > RANGES_KEPT {
            unite_nearest(all);
        }
    }
    Ok(())
}

/// Halves the number of ranges by closing the smallest gaps.
fn unite_nearest(all: &mut Vec<(u64, u64)>) {
    let gap = |pair: &[(u64, u64)]| pair[1].0 - (pair[0].0 + pair[0].1);
    let mut gaps: Vec<u64> = all.windows(2).map(gap).collect();
    let half = gaps.len() / 2;
    let (smaller, bound, _) = gaps.select_nth_unstable(half);
    let bound = *bound;
    // Of the gaps that are as large as that, only as many as are missing to the half.
    let mut as_large = half - smaller.iter().filter(|gap| **gap < bound).count();
    let mut united: Vec<(u64, u64)> = Vec::new();
    for (at, len) in all.drain(..) {
        let Some((from, count)) = united.last_mut() else {
            united.push((at, len));
            continue;
        };
        let gap = at - (*from + *count);
        if gap == bound && as_large > 0 {
            as_large -= 1;
        } else if gap >= bound {
            united.push((at, len));
            continue;
        }
        *count = at + len - *from;
    }
    *all = united;
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
            common: None,
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

    /// It shows what nobody here has; what both have is cut 7.
    #[test]
    fn a_receiver_with_something_of_its_own_gets_a_delta_above_that() {
        let cuts: Vec<Cut> = (5..=9).map(cut).collect();
        let queue: Vec<Uuid> = [5, 6, 7, 8, 9].map(id).to_vec();
        let half =
            HalfSet { set: Some(set(Some(700), 9)), durable: 0, token: "token".to_owned(), arrived: false };
        let facts = Facts {
            epoch: EPOCH,
            shown: Some(id(700)),
            common: Some(id(7)),
            half: None,
            queue: &queue,
            cuts: &cuts,
            others: &BTreeSet::new(),
            due: true,
            changed: false,
        };
        assert_eq!(next(&facts), Step::Cut { base: Some(id(700)) });
        let resumed = Step::Ship { set: set(Some(700), 9), resume: Some("token".to_owned()) };
        assert_eq!(next(&Facts { half: Some(&half), ..facts.clone() }), resumed);
        // What both had is not here any more.
        assert_eq!(next(&Facts { common: Some(id(4)), ..facts }), Step::Cut { base: None });
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
            common: None,
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
        // Also where another session needs the boundary.
        let (cuts, others) = ([cut(5), cut(6)], BTreeSet::from([id(6)]));
        let facts =
            Facts { shown: Some(id(5)), queue: &[id(5), id(6)], cuts: &cuts, others: &others, ..facts };
        assert_eq!(next(&facts), Step::Cut { base: Some(id(5)) }, "no boundary of an earlier role epoch");
    }

    #[test]
    fn what_is_half_received_goes_on_or_is_dropped() {
        let half = |set| Some(HalfSet { set, durable: 4096, token: "token".to_owned(), arrived: false });
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
    fn ranges_without_number_become_few() {
        let mut all = Vec::new();
        let far = RANGES_KEPT as u64 * 40;
        // Pairs with small gaps between them, and large ones between the pairs.
        for number in 0..RANGES_KEPT as u64 {
            join_ranges(&mut all, &[(number * 40, 8), (number * 40 + 10, 8)]).unwrap();
        }
        join_ranges(&mut all, &[(far, 8)]).unwrap();
        assert!(all.len() <= RANGES_KEPT && all.len() > RANGES_KEPT / 4, "{}", all.len());
        assert!(all.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0));
        for number in [0, 7, 40_000, RANGES_KEPT as u64 - 1] {
            for at in [number * 40, number * 40 + 17] {
                assert!(all.iter().any(|(from, len)| (*from..from + len).contains(&at)), "{at}");
            }
        }
        assert!(join_ranges(&mut all, &[(far, 1)]).is_err());
        assert!(join_ranges(&mut all, &[(u64::MAX, 2)]).is_err());
    }

    #[test]
    fn rests_grow_up_to_a_minute() {
        let seconds: Vec<u64> = (1..9).map(|failures| back_off(failures).as_secs()).collect();
        assert_eq!(seconds, [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(back_off(u64::MAX), back_off(7));
    }
}
