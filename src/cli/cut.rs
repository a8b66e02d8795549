//! `cut`: a set is cut now, whatever the time-outs say.

use crate::control::Access;
use crate::engine::api::SessionStatus;
use crate::error::{Error, ErrorKind, Result};
use crate::types::Name;
use std::time::Duration;
use uuid::Uuid;

/// How often it is looked whether the cut has arrived.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Cut a set now, in every session of the volume
#[derive(clap::Args)]
pub(super) struct Args {
    /// The volume, or a group
    #[arg(value_name = "VOL")]
    volume: Name,
    /// Wait until every receiver shows what the volume holds now
    #[arg(long)]
    wait: bool,
}

pub(super) fn run(access: &Access, args: &Args) -> Result<()> {
    let wishes = access.cut(args.volume.as_str())?;
    while args.wait && !all_came_true(&access.status()?.sessions, &wishes)? {
        std::thread::sleep(LOOK_EVERY);
    }
    Ok(())
}

/// Whether those sessions have shipped what was there when they were asked.
///
/// # Errors
/// `Conflict` when one of them does not work.
pub(super) fn all_came_true(sessions: &[SessionStatus], wishes: &[(Uuid, u64)]) -> Result<bool> {
    let mut all = true;
    for (session, wish) in wishes {
        let Some(status) = sessions.iter().find(|status| status.session == *session) else {
            return Err(Error::new(ErrorKind::Interrupted, "a session was ended meanwhile"));
        };
        let dead = ["paused", "ended", "split", "fenced"].contains(&status.state.as_str());
        if status.cuts_done < *wish && dead {
            return Err(Error::conflict(format!("the session to {} is {}", status.peer, status.state))
                .hint("'snapvol status' says why; 'snapvol resume' has a paused one go on"));
        }
        all &= status.cuts_done >= *wish;
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wish_comes_true_when_every_session_has_it() {
        let status = |id, done, state: &str| SessionStatus {
            session: Uuid::from_u128(id),
            cuts_done: done,
            state: state.to_owned(),
            ..SessionStatus::default()
        };
        let wishes = [(Uuid::from_u128(1), 3), (Uuid::from_u128(2), 1)];
        let came = |sessions: &[SessionStatus]| all_came_true(sessions, &wishes);
        assert!(came(&[status(1, 3, "following"), status(2, 5, "paused")]).unwrap());
        assert!(!came(&[status(1, 2, "error"), status(2, 5, "following")]).unwrap());
        assert_eq!(
            came(&[status(1, 2, "paused"), status(2, 5, "x")]).unwrap_err().kind(),
            ErrorKind::Conflict
        );
        assert!(came(&[status(1, 3, "following")]).is_err());
    }
}
