//! Making a failing run smaller: operations and whole lives are left out as long as what is
//! left fails in the same way. An order of completions and a place of the crash that fit
//! fewer operations are found by trying some.

use crate::attempt::attempt_run;
use snapvol::snapshot::model::{Id, Kind, Run};
use std::collections::BTreeSet;
use std::time::Instant;

/// Variations that are tried for every set of operations.
const VARIATIONS: u64 = 12;

/// The smallest failing run that was found before `deadline`.
pub fn shrink(kind: &Kind, seed: u64, deadline: Instant) -> Run {
    let whole = Run::new(seed).noted();
    let (run, _, result) = attempt_run(kind, whole);
    let Err(message) = result else { return Run::new(seed) };
    let class = class_of(&message);
    let all: BTreeSet<Id> = run.did().into_iter().map(|(id, _)| id).collect();
    let mut best: (Vec<Id>, u64) = (all.into_iter().collect(), 0);
    if best.0.is_empty() || fails(kind, seed, &best.0, 0, &class).is_none() {
        return Run::new(seed);
    }
    let mut parts = 2;
    while parts <= best.0.len() && Instant::now() < deadline {
        let size = best.0.len().div_ceil(parts);
        let smaller = (0..parts).find_map(|part| {
            let (from, to) = (part * size, ((part + 1) * size).min(best.0.len()));
            if from >= to || Instant::now() >= deadline {
                return None;
            }
            let left: Vec<Id> = best.0[..from].iter().chain(&best.0[to..]).copied().collect();
            fails(kind, seed, &left, best.1, &class).map(|vary| (left, vary))
        });
        match smaller {
            Some(smaller) => {
                best = smaller;
                parts = parts.saturating_sub(1).max(2);
            }
            None if size == 1 => break,
            None => parts = (parts * 2).min(best.0.len()),
        }
    }
    Run::new(seed).part(Some(best.0.into_iter().collect()), best.1)
}

/// The variation in which these operations fail in that way.
fn fails(kind: &Kind, seed: u64, only: &[Id], vary: u64, class: &str) -> Option<u64> {
    let others = (0..VARIATIONS).filter(|other| *other != vary);
    std::iter::once(vary).chain(others).find(|vary| {
        let run = Run::new(seed).part(Some(only.iter().copied().collect()), *vary);
        attempt_run(kind, run).2.is_err_and(|message| class_of(&message) == class)
    })
}

/// How a message reads without its numbers.
fn class_of(message: &str) -> String {
    message.chars().filter(|c| c.is_alphabetic() || *c == ' ').take(30).collect()
}
