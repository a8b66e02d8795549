//! Warnings: the marks of lag and backlog that a session may pass, and who is told when.
//!
//! A mark is told once when it is passed, and again only after the session was clearly below it:
//! lag that goes up and down around a mark fills no log.

use crate::engine::api::SessionStatus;
use crate::format::session::SessionPolicy;
use std::collections::BTreeSet;
use uuid::Uuid;

/// How far below a mark a session counts as clear of it, in hundredths.
const CLEAR: u64 = 80;

/// A mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mark {
    /// Seconds by which the receiver is behind.
    Lag,
    /// Bytes that wait to be shipped.
    Backlog,
}

/// Where a session stands to a mark, in the same unit; none for a mark that is not set.
fn stand(mark: Mark, policy: &SessionPolicy, status: &SessionStatus) -> Option<(u64, u64)> {
    // Until something was applied there is a copy under way, and nothing to lag behind.
    status.applied?;
    let (at, limit) = match mark {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "whole milliseconds")]
        Mark::Lag => ((status.lag_seconds.max(0.0) * 1000.0) as u64, policy.warn_lag_ms),
        Mark::Backlog if policy.warn_backlog == 0 => (status.lag_bytes, policy.backlog_bytes / 2),
        Mark::Backlog => (status.lag_bytes, policy.warn_backlog),
    };
    (limit > 0).then_some((at, limit))
}

fn sentence(mark: Mark, at: u64, limit: u64) -> String {
    match mark {
        Mark::Lag => format!("{} s behind, past the mark of {} s", at / 1000, limit / 1000),
        Mark::Backlog => format!("{at} bytes wait to be shipped, past the mark of {limit}"),
    }
}

/// The marks that a session has passed, in words.
#[must_use]
pub fn passed(policy: &SessionPolicy, status: &SessionStatus) -> Vec<String> {
    let all = [Mark::Lag, Mark::Backlog].into_iter();
    all.filter_map(|mark| {
        let (at, limit) = stand(mark, policy, status)?;
        (at >= limit).then(|| sentence(mark, at, limit))
    })
    .collect()
}

/// What was told last.
#[derive(Debug, Default)]
pub struct Watch(BTreeSet<(Uuid, Mark)>);

/// What is to be said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Say {
    /// A mark was passed.
    Passed(String),
    /// It is clear of that mark again.
    Clear(Mark),
}

impl Watch {
    /// Looks at a session.
    pub fn see(&mut self, policy: &SessionPolicy, status: &SessionStatus) -> Vec<Say> {
        let mut said = Vec::new();
        for mark in [Mark::Lag, Mark::Backlog] {
            let key = (status.session, mark);
            let stand = stand(mark, policy, status);
            match stand {
                Some((at, limit)) if at >= limit => {
                    if self.0.insert(key) {
                        said.push(Say::Passed(sentence(mark, at, limit)));
                    }
                }
                Some((at, limit)) if u128::from(at) * 100 >= u128::from(limit) * u128::from(CLEAR) => {}
                _ => {
                    if self.0.remove(&key) {
                        said.push(Say::Clear(mark));
                    }
                }
            }
        }
        said
    }

    /// Forgets sessions that are gone.
    pub fn retain(&mut self, there: impl Fn(Uuid) -> bool) {
        self.0.retain(|(session, _)| there(*session));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(lag: f64, bytes: u64) -> SessionStatus {
        SessionStatus { applied: Some(1), lag_seconds: lag, lag_bytes: bytes, ..SessionStatus::default() }
    }

    #[test]
    fn a_mark_is_told_once_per_crossing() {
        let policy = SessionPolicy { warn_lag_ms: 10_000, warn_backlog: 1000, ..SessionPolicy::default() };
        let mut watch = Watch::default();
        let mut see = |lag, bytes| watch.see(&policy, &status(lag, bytes)).len();
        assert_eq!(see(0.0, 0), 0);
        assert_eq!(see(10.0, 0), 1);
        for lag in [11.0, 9.9, 10.0, 8.1, 12.0] {
            assert_eq!(see(lag, 0), 0, "{lag}");
        }
        assert_eq!(see(7.9, 0), 1, "clear again");
        assert_eq!(see(10.0, 1000), 2);
        assert_eq!(see(0.0, 0), 2);
        assert_eq!(passed(&policy, &status(11.0, 2000)).len(), 2);
        assert!(passed(&policy, &status(9.0, 999)).is_empty());
    }

    #[test]
    fn marks_that_are_not_set_are_never_passed() {
        let none = SessionPolicy { warn_lag_ms: 0, ..SessionPolicy::default() };
        assert!(passed(&none, &status(1e9, u64::MAX)).is_empty());
        let bound = SessionPolicy { backlog_bytes: 1000, ..none };
        assert_eq!(passed(&bound, &status(0.0, 500)), ["500 bytes wait to be shipped, past the mark of 500"]);
        let copying = SessionStatus { applied: None, ..status(1e9, u64::MAX) };
        assert!(passed(&bound, &copying).is_empty(), "a first copy lags behind nothing");
    }
}
