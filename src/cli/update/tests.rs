//! What is decided from what both sides have.

use super::*;
use crate::delta::ResumeToken;
use crate::types::OnFull;

fn uuid(number: u128) -> Uuid {
    Uuid::from_u128(number)
}

fn snapshot(name: &str, number: u128) -> SnapshotInfo {
    SnapshotInfo {
        name: name.to_owned(),
        uuid: uuid(number),
        created: "2025-01-01T00:00:00Z".to_owned(),
        size: 1 << 20,
        in_use: 0,
        saved: 0,
        freed_by_delete: 0,
        holds: Vec::new(),
        of: None,
        set: None,
    }
}

fn there() -> Vec<SnapshotInfo> {
    vec![snapshot("a", 1), snapshot("b", 2), snapshot("c", 3)]
}

fn here(snapshots: Vec<SnapshotInfo>) -> VolumeInfo {
    VolumeInfo {
        name: "db".to_owned(),
        uuid: uuid(100),
        role: Role::Secondary,
        drill: None,
        state: "ok".to_owned(),
        on_full: OnFull::Freeze,
        size: 1 << 20,
        block_size: 4096,
        granularity: 1,
        in_use: 0,
        saved: 0,
        snapshots,
    }
}

fn half(target: u128, base: Option<u128>) -> HalfReceived {
    let base = base.map(uuid);
    HalfReceived {
        volume: "db".to_owned(),
        snapshot: "x".to_owned(),
        uuid: uuid(target),
        base,
        durable: 4096,
        token: ResumeToken { target: uuid(target), base, durable: 4096 }.to_string(),
        running: false,
    }
}

fn fetch(at: usize, from: Option<&str>) -> Step {
    Step::Fetch { at, from: from.map(str::to_owned), resume: None }
}

#[test]
fn the_youngest_is_fetched_by_delta_where_that_goes() {
    let decide = |to, here: Option<&VolumeInfo>| decide(&there(), to, here, None).unwrap();
    assert_eq!(decide(None, None), fetch(2, None));
    assert_eq!(decide(None, Some(&here(vec![]))), fetch(2, None));
    assert_eq!(decide(None, Some(&here(vec![snapshot("a", 1)]))), fetch(2, Some("a")));
    assert_eq!(decide(Some("b"), Some(&here(vec![snapshot("a", 1)]))), fetch(1, Some("a")));
    assert_eq!(decide(None, Some(&here(vec![snapshot("old", 9)]))), fetch(2, None), "not there any more");
    assert_eq!(decide(None, Some(&here(there()))), Step::Nothing { at: 2 });
    assert_eq!(decide(Some("a"), Some(&here(there()))), Step::Nothing { at: 0 });
    // A name that it has there counts for nothing, the identity does.
    assert_eq!(decide(None, Some(&here(vec![snapshot("renamed", 2)]))), fetch(2, Some("b")));
}

/// What a schedule took here is a second name of what was fetched.
#[test]
fn a_second_name_is_what_it_is_a_name_of() {
    let second = SnapshotInfo { of: Some(uuid(1)), ..snapshot("auto-1", 50) };
    let here = here(vec![snapshot("a", 1), second]);
    assert_eq!(decide(&there(), None, Some(&here), None).unwrap(), fetch(2, Some("a")));
}

#[test]
fn what_is_half_here_goes_on_or_is_dropped() {
    let here = here(vec![snapshot("a", 1)]);
    let decide = |half: HalfReceived| decide(&there(), None, Some(&here), Some(&half)).unwrap();
    let resumed = |at, from: Option<&str>, of: HalfReceived| Step::Fetch {
        at,
        from: from.map(str::to_owned),
        resume: Some(of.token),
    };
    assert_eq!(decide(half(2, Some(1))), resumed(1, Some("a"), half(2, Some(1))));
    assert_eq!(decide(half(3, None)), resumed(2, None, half(3, None)));
    assert_eq!(decide(half(9, None)), Step::Drop);
    assert_eq!(decide(half(3, Some(9))), Step::Drop);
}

#[test]
fn what_is_refused() {
    let kind = |to, here: Option<&VolumeInfo>, half: Option<&HalfReceived>| {
        decide(&there(), to, here, half).unwrap_err().kind()
    };
    assert_eq!(kind(Some("none"), None, None), ErrorKind::NotFound);
    let primary = VolumeInfo { role: Role::Primary, ..here(vec![snapshot("a", 1)]) };
    assert_eq!(kind(None, Some(&primary), None), ErrorKind::Conflict);
    let twin = here(vec![snapshot("a", 1), snapshot("c", 77)]);
    assert_eq!(kind(None, Some(&twin), None), ErrorKind::Conflict);
    let running = HalfReceived { running: true, ..half(3, None) };
    assert_eq!(kind(None, Some(&here(vec![])), Some(&running)), ErrorKind::Conflict);
    assert_eq!(decide(&[], None, None, None).unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn when_it_is_due() {
    use clap::Parser;
    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }
    let due = |words: &[&str], checked_s: u64, now_s: u64| {
        let known = UpdateSource { checked_us: checked_s * 1_000_000, ..UpdateSource::default() };
        let args = Line::parse_from(["update", "db"].iter().chain(words)).args;
        is_due(Some(&known), &args, now_s * 1_000_000)
    };
    assert!(due(&[], 100, 100));
    assert!(!due(&["--min-interval", "10s"], 100, 109));
    assert!(due(&["--min-interval", "10s"], 100, 110));
    assert!(due(&["--min-interval", "10s"], 100, 50), "the clock was set back");
    assert!(due(&["--min-interval", "10s"], 0, 5), "never before");
    assert!(due(&["--min-interval", "10s", "--to", "x"], 100, 101), "something else is asked for");
}
