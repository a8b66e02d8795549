//! Schedules with real daemons: snapshots come and go by themselves, at either end of a session,
//! and nothing else goes with them.

use std::path::Path;
use std::time::Duration;

use crate::support::pair::Pair;
use crate::support::server::Server;
use crate::support::stamper::{Stamper, state};
use crate::support::{fails, json, ok, wait_for};

/// The names of a volume's snapshots, oldest first.
#[track_caller]
fn snapshots(store: &Path, volume: &str) -> Vec<String> {
    let list = json(store, &["list", volume, "--json"]);
    let all = list["volumes"][0]["snapshots"].as_array().unwrap();
    all.iter().map(|one| one["name"].as_str().unwrap().to_owned()).collect()
}

fn by_schedule(store: &Path, volume: &str) -> Vec<String> {
    let mut names = snapshots(store, volume);
    names.retain(|name| name.starts_with("auto-"));
    names
}

/// Waits until the schedule has taken so many more.
#[track_caller]
fn more(store: &Path, volume: &str, count: usize) {
    let mut seen: std::collections::BTreeSet<String> = by_schedule(store, volume).into_iter().collect();
    let goal = seen.len() + count;
    wait_for("more snapshots", Duration::from_secs(60), || {
        seen.extend(by_schedule(store, volume));
        seen.len() >= goal
    });
}

#[test]
fn snapshots_come_and_go_by_themselves() {
    let pair = Pair::new("8M");
    let store = pair.a();
    assert!(ok(&store, &["schedule", "v"]).contains("no schedule"));
    ok(&store, &["schedule", "v", "--every", "1s", "--keep-last", "3", "--keep-hourly", "0"]);
    ok(&store, &["schedule", "v", "--keep-daily", "0"]);
    let info = json(&store, &["schedule", "v", "--json"]);
    assert_eq!(info["schedule"]["every_ms"], 1000);
    assert_eq!((info["schedule"]["keep_last"].as_u64(), info["snapshots"].as_u64()), (Some(3), Some(0)));
    fails(2, &store, &["schedule", "v", "--every", "10ms"]);
    fails(2, &store, &["schedule", "v", "--every", "often"]);
    fails(5, &store, &["schedule", "none"]);

    let server = Server::start(&store, &[]);
    ok(&store, &["snapshot", "v@mine"]);
    more(&store, "v", 2);
    // What is held stays, and what somebody else took.
    let held = by_schedule(&store, "v").remove(0);
    ok(&store, &["hold", &format!("v@{held}"), "tape"]);
    more(&store, "v", 5);
    wait_for("old ones are gone", Duration::from_secs(10), || by_schedule(&store, "v").len() <= 4);
    let names = snapshots(&store, "v");
    assert!(names.contains(&held) && names.contains(&"mine".to_owned()), "{names:?}");

    // Missed while down: one is taken, not many.
    server.kill();
    let before = by_schedule(&store, "v");
    ok(&store, &["schedule", "v", "--every", "2s", "--keep-last", "50"]);
    std::thread::sleep(Duration::from_secs(7));
    let server = Server::start(&store, &[]);
    wait_for("one more", Duration::from_secs(10), || by_schedule(&store, "v").len() > before.len());
    assert_eq!(by_schedule(&store, "v").len(), before.len() + 1);

    ok(&store, &["schedule", "v", "--off"]);
    let last = snapshots(&store, "v");
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(snapshots(&store, "v"), last);
    server.stop();
    ok(&store, &["check"]);

    // A file that can't be read stops what hangs on it, and nothing else.
    std::fs::write(store.join("upkeep"), b"no").unwrap();
    assert!(fails(4, &store, &["schedule", "v"]).contains("upkeep"));
    fails(4, &store, &["check"]);
    let _server = Server::start(&store, &[]);
    ok(&store, &["snapshot", "v@still"]);
    std::fs::remove_file(store.join("upkeep")).unwrap();
}

/// A secondary has a series of its own while sets come in; each is a state that the primary
/// had, and the next set finds its base.
#[test]
fn a_secondary_has_a_series_of_its_own() {
    let pair = Pair::new("64M");
    let (a, b) = (Server::start(&pair.a(), &[]), Server::start(&pair.b(), &["--create", "other:1M"]));
    let stamper = Stamper::start(&pair.a(), 500, Duration::from_micros(500));
    stamper.more(600);
    // A copy by hand first: then what the secondary shows is no set.
    ok(&pair.a(), &["snapshot", "v@one"]);
    ok(&pair.a(), &["copy", "v@one", &pair.there()]);
    ok(&pair.b(), &["schedule", "v", "--every", "1s", "--keep-last", "4", "--keep-hourly", "0"]);
    ok(&pair.a(), &["schedule", "v", "--every", "1s", "--keep-last", "2", "--keep-hourly", "0"]);
    more(&pair.b(), "v", 1);
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(by_schedule(&pair.b(), "v").len(), 1, "nothing new, and a second one");
    ok(&pair.a(), &["replicate", "v", &pair.there(), "--timeout", "100ms"]);
    more(&pair.b(), "v", 4);
    a.kill();
    let a = Server::start(&pair.a(), &[]);
    more(&pair.b(), "v", 2);
    b.kill();
    let b = Server::start(&pair.b(), &[]);
    more(&pair.b(), "v", 3);
    let names = by_schedule(&pair.b(), "v");
    let mut last = 0;
    for name in &names {
        let Ok(shown) = std::panic::catch_unwind(|| state(&pair.b(), &format!("v@{name}"), 500)) else {
            // It may be gone by now.
            assert!(!by_schedule(&pair.b(), "v").contains(name), "{name}");
            continue;
        };
        assert!(shown >= last, "{name} shows {shown}, after {last}");
        last = shown;
    }
    assert!(last > 0);
    let written = stamper.end();
    ok(&pair.a(), &["cut", "v", "--wait"]);
    assert_eq!(state(&pair.b(), "v", 500), written);
    let status = json(&pair.a(), &["status", "--json"]);
    let history = status["sessions"][0]["history"].as_array().unwrap();
    assert!(!history.is_empty() && history.iter().all(|set| set["whole"] == false), "{history:?}");
    assert_eq!(ok(&pair.a(), &["verify", "v", &pair.there()]).lines().count(), 1);
    for store in [pair.a(), pair.b()] {
        ok(&store, &["schedule", "v", "--off"]);
    }
    a.stop();
    b.stop();
    ok(&pair.b(), &["check"]);
    ok(&pair.b(), &["scrub"]);
}
