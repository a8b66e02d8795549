//! Replication with real processes: a secondary follows under write load, whoever is killed,
//! stopped or cut off meanwhile, and shows a state that the primary had, always.

use std::path::Path;
use std::time::Duration;

use crate::support::pair::Pair;
use crate::support::server::Server;
use crate::support::sshd::{Relay, Sshd, have_sshd, sent};
use crate::support::stamper::{Stamper, state};
use crate::support::{SNAPVOL, fails, json, number, ok, scratch, wait_for};
use snapvol::nbd::client::{Client, Options};

const MIB: u64 = 1 << 20;

/// The status of the only session of a store.
#[track_caller]
pub(crate) fn session(store: &Path) -> serde_json::Value {
    let status = json(store, &["status", "--json"]);
    let sessions = status["sessions"].as_array().unwrap();
    assert_eq!(sessions.len(), 1, "{status}");
    sessions[0].clone()
}

fn applied(store: &Path) -> u64 {
    session(store)["applied"].as_u64().unwrap_or(0)
}

/// Waits until the session has applied so many more sets.
#[track_caller]
pub(crate) fn more_sets(store: &Path, count: u64) {
    let before = applied(store);
    wait_for("more sets", Duration::from_secs(90), || applied(store) >= before + count);
}

/// The processes that a process has started and that run a command with that word.
pub(crate) fn children(parent: u32, word: &str) -> Vec<u32> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let after = stat.rsplit(')').next().unwrap_or_default();
        if after.split_whitespace().nth(1) != Some(parent.to_string().as_str()) {
            continue;
        }
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if String::from_utf8_lossy(&line).split('\0').any(|argument| argument.contains(word)) {
            found.push(pid);
        }
    }
    found
}

pub(crate) fn signal(pid: u32, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    // It may be gone already.
    let _ = rustix::process::kill_process(pid, signal);
}

#[test]
fn a_secondary_follows_and_is_left_alone() {
    let pair = Pair::new("64M");
    let (a, b) = (Server::start(&pair.a(), &[]), Server::start(&pair.b(), &["--create", "other:1M"]));
    let stamper = Stamper::start(&pair.a(), 2000, Duration::from_micros(200));
    stamper.more(3000);
    ok(&pair.a(), &["replicate", "v", &pair.there(), "--timeout", "200ms"]);
    more_sets(&pair.a(), 1);
    let mut last = 0;
    for _ in 0..10 {
        stamper.more(300);
        let written = stamper.acknowledged();
        ok(&pair.a(), &["cut", "v", "--wait"]);
        let shown = state(&pair.b(), "v", 2000);
        assert!(shown >= written && shown >= last, "{shown} of {written}, after {last}");
        last = shown;
    }
    // What would part the two is refused, on either side.
    let there = pair.there();
    ok(&pair.a(), &["snapshot", "v@s"]);
    for (store, args) in [
        (pair.b(), &["promote", "v"][..]),
        (pair.b(), &["resize", "v", "128M"]),
        (pair.b(), &["delete", "v"]),
        (pair.b(), &["receive", "v", "--abort"]),
        (pair.a(), &["copy", "v@s", &there]),
        (pair.a(), &["demote", "v"]),
        (pair.a(), &["delete", "v", "--recursive"]),
        (pair.b(), &["replicate", "v", pair.dir.path().join("c/v").to_str().unwrap()]),
        (pair.a(), &["replicate", "v", pair.a().join("w").to_str().unwrap()]),
    ] {
        fails(3, &store, args);
    }
    // Nothing of it disturbed the session.
    more_sets(&pair.a(), 2);

    // A pause holds back, whatever is cut; what was held back travels at once.
    ok(&pair.a(), &["pause", "v"]);
    fails(3, &pair.a(), &["cut", "v", "--wait"]);
    std::thread::sleep(Duration::from_millis(500));
    let shown = state(&pair.b(), "v", 2000);
    stamper.more(500);
    assert_eq!(state(&pair.b(), "v", 2000), shown);
    ok(&pair.a(), &["resume", "v"]);
    let written = stamper.end();
    ok(&pair.a(), &["cut", "v", "--wait"]);
    assert_eq!(state(&pair.b(), "v", 2000), written);
    let status = session(&pair.a());
    assert_eq!((status["state"].as_str(), status["lag_blocks"].as_u64()), (Some("following"), Some(0)));
    assert!(status["history"].as_array().unwrap().len() >= 10, "{status}");

    // With nothing to ship, no set is cut.
    let sets = applied(&pair.a());
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(applied(&pair.a()), sets);

    ok(&pair.a(), &["unreplicate", "v"]);
    assert_eq!(state(&pair.b(), "v", 2000), written);
    ok(&pair.b(), &["promote", "v"]);
    a.stop();
    b.stop();
    for store in [pair.a(), pair.b()] {
        ok(&store, &["check"]);
        ok(&store, &["scrub"]);
    }
}

/// Sizes travel with the sets, and so do trims.
#[test]
fn size_and_trims_travel() {
    let pair = Pair::new("16M");
    let (_a, _b) = (Server::start(&pair.a(), &[]), Server::start(&pair.b(), &["--create", "other:1M"]));
    let mut client = Client::unix(&pair.a().join("nbd.sock"), "v", &Options::default()).unwrap();
    client.write(0, &vec![7; 8 << 20], false).unwrap();
    ok(&pair.a(), &["replicate", "v", &pair.there(), "--timeout", "1h", "--high-water", "1G"]);
    ok(&pair.a(), &["cut", "v", "--wait"]);
    assert_eq!(crate::support::in_use(&pair.b(), "v"), 8 << 20);
    client.trim(MIB, 4 << 20).unwrap();
    ok(&pair.a(), &["resize", "v", "32M"]);
    ok(&pair.a(), &["cut", "v", "--wait"]);
    assert_eq!(crate::support::in_use(&pair.b(), "v"), 4 << 20);
    let there = Client::unix(&pair.b().join("nbd.sock"), "v", &Options::default()).unwrap();
    assert_eq!(there.size, 32 << 20);
    // Neither the time-out nor the mark has cut anything.
    assert_eq!(applied(&pair.a()), 2);
    // The mark does, once it is passed.
    ok(&pair.a(), &["replicate", "v", &pair.there(), "--high-water", "2M"]);
    client.write(0, &vec![9; 3 << 20], false).unwrap();
    more_sets(&pair.a(), 1);
}

/// Either side is killed, and the link cut, again and again; every state that is shown is one
/// that the primary had, none goes back, and in the end all is there.
fn killed_again_and_again(pair: &Pair, there: &str, more: &[&str], ssh: Option<&Path>, rounds: u64) {
    let seed = number("SNAPVOL_SEED", fastrand::u64(..));
    println!("seed {seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    let blocks = 3000;
    let start = |store: &Path| match ssh {
        Some(ssh) => Server::start_with(store, &["--create", "other:1M"], &[("SNAPVOL_SSH", ssh)]),
        None => Server::start(store, &["--create", "other:1M"]),
    };
    let (mut a, mut b) = (Some(start(&pair.a())), Some(start(&pair.b())));
    let stamper = Stamper::start(&pair.a(), blocks, Duration::from_micros(100));
    stamper.more(2000);
    let mut args = vec!["replicate", "v", there, "--timeout", "100ms"];
    args.extend(more);
    ok(&pair.a(), &args);
    let mut last = 0;
    for round in 0..rounds {
        std::thread::sleep(Duration::from_millis(rng.u64(0..1500)));
        match rng.u32(0..5) {
            0 => {
                a.take().unwrap().kill();
                a = Some(start(&pair.a()));
            }
            1 => {
                b.take().unwrap().kill();
                b = Some(start(&pair.b()));
            }
            2 => {
                // Nobody serves it for a while: the far program opens the store itself.
                b.take().unwrap().stop();
                std::thread::sleep(Duration::from_millis(rng.u64(0..800)));
                b = Some(start(&pair.b()));
            }
            _ => {
                let word = if ssh.is_some() { "ssh" } else { "peer" };
                for pid in children(a.as_ref().unwrap().pid(), word) {
                    signal(pid, rustix::process::Signal::KILL);
                }
            }
        }
        if json(&pair.b(), &["list", "--json"])["volumes"].as_array().unwrap().len() > 1 {
            let shown = state(&pair.b(), "v", blocks);
            assert!(shown >= last, "round {round}: {shown} after {last}");
            assert!(shown <= stamper.acknowledged() + 1, "round {round}");
            last = shown;
        }
    }
    more_sets(&pair.a(), 2);
    let written = stamper.end();
    ok(&pair.a(), &["cut", "v", "--wait"]);
    assert_eq!(state(&pair.b(), "v", blocks), written);
    // Neither side keeps more than it needs.
    let status = session(&pair.a());
    assert_eq!(status["outstanding"].as_array().unwrap().len(), 0, "{status}");
    a.unwrap().stop();
    b.unwrap().stop();
    for store in [pair.a(), pair.b()] {
        ok(&store, &["check"]);
        ok(&store, &["scrub"]);
    }
}

#[test]
fn whoever_dies_it_goes_on_over_a_local_path() {
    let pair = Pair::new("32M");
    killed_again_and_again(&pair, &pair.there(), &[], None, number("SNAPVOL_ROUNDS", 12));
}

#[test]
fn whoever_dies_it_goes_on_over_ssh() {
    if !have_sshd() {
        return;
    }
    let (pair, sshd) = (Pair::new("32M"), Sshd::start());
    let (there, ssh) = (sshd.url(&pair.b(), "v"), sshd.ssh());
    let rounds = number("SNAPVOL_ROUNDS", 12);
    killed_again_and_again(&pair, &there, &["--remote-command", SNAPVOL], Some(&ssh), rounds);
}

/// A whole copy over a link that breaks every 6 MiB arrives all the same, and little of it
/// travels twice.
#[test]
fn a_whole_copy_goes_on_at_the_block() {
    if !have_sshd() {
        return;
    }
    let (pair, sshd) = (Pair::new("64M"), Sshd::start());
    let relay = Relay { cut_after: Some(12 * MIB), ..Relay::default() };
    let (ssh, count) = sshd.relayed_ssh("cut", &relay);
    let _a = Server::start_with(&pair.a(), &[], &[("SNAPVOL_SSH", &ssh)]);
    let _b = Server::start(&pair.b(), &["--create", "other:1M"]);
    let mut client = Client::unix(&pair.a().join("nbd.sock"), "v", &Options::default()).unwrap();
    let mut bytes = vec![0; 40 << 20];
    fastrand::Rng::with_seed(4).fill(&mut bytes);
    client.write(0, &bytes[..20 << 20], false).unwrap();
    client.write(20 << 20, &bytes[20 << 20..], false).unwrap();
    ok(&pair.a(), &["replicate", "v", &sshd.url(&pair.b(), "v"), "--remote-command", SNAPVOL]);
    wait_for("the whole copy", Duration::from_secs(90), || applied(&pair.a()) >= 1);
    let mut there = Client::unix(&pair.b().join("nbd.sock"), "v", &Options::default()).unwrap();
    for (at, piece) in (0..).zip(bytes.chunks(1 << 20)) {
        assert!(there.read(at << 20, 1 << 20).unwrap() == piece, "MiB {at}");
    }
    // What is on its way when it breaks is sent again: at most what pipes and sockets hold.
    assert!(sent(&count) < (40 + 4 * 8) * MIB, "{} sent", sent(&count));
}

/// A far side that is there and says nothing is noticed within seconds.
#[test]
fn a_silent_peer_is_given_up() {
    let pair = Pair::new("16M");
    let (a, _b) = (Server::start(&pair.a(), &[]), Server::start(&pair.b(), &["--create", "other:1M"]));
    let stamper = Stamper::start(&pair.a(), 1000, Duration::from_millis(1));
    ok(&pair.a(), &["replicate", "v", &pair.there(), "--timeout", "100ms"]);
    more_sets(&pair.a(), 2);
    let peers = children(a.pid(), "peer");
    assert_eq!(peers.len(), 1, "one connection");
    signal(peers[0], rustix::process::Signal::STOP);
    let stopped = std::time::Instant::now();
    wait_for("another far program", Duration::from_secs(20), || {
        let now = children(a.pid(), "peer");
        !now.is_empty() && !now.contains(&peers[0])
    });
    assert!(stopped.elapsed() > Duration::from_secs(2), "nothing was silent for long");
    more_sets(&pair.a(), 2);
    let written = stamper.end();
    ok(&pair.a(), &["cut", "v", "--wait"]);
    assert_eq!(state(&pair.b(), "v", 1000), written);
}

/// Three secondaries, each at its own pace; one is away for a while. They always have a state
/// in common, and the one that was away catches up by deltas.
#[test]
fn several_secondaries_each_at_its_own_pace() {
    let dir = scratch();
    let store = |name: &str| dir.path().join(name);
    ok(&store("a"), &["init"]);
    ok(&store("a"), &["create", "v", "--size", "16M"]);
    let _a = Server::start(&store("a"), &[]);
    let stamper = Stamper::start(&store("a"), 1000, Duration::from_micros(500));
    let far = ["b", "c", "d"].map(store);
    let mut servers = Vec::new();
    for (far, timeout) in far.iter().zip(["100ms", "300ms", "150ms"]) {
        ok(far, &["init"]);
        servers.push(Some(Server::start(far, &["--create", "other:1M"])));
        let there = far.join("v");
        ok(&store("a"), &["replicate", "v", there.to_str().unwrap(), "--timeout", timeout]);
    }
    let sessions = || json(&store("a"), &["status", "v", "--json"])["sessions"].as_array().unwrap().clone();
    let all_have = |count: u64| sessions().iter().all(|s| s["applied"].as_u64().unwrap_or(0) >= count);
    wait_for("sets everywhere", Duration::from_secs(60), || all_have(8));
    let away = far[2].join("v");
    ok(&store("a"), &["pause", "v", away.to_str().unwrap()]);
    let rests = || sessions().iter().any(|session| session["state"] == "paused");
    wait_for("the pause", Duration::from_secs(10), rests);
    // A set that had arrived whole may just be applied.
    std::thread::sleep(Duration::from_millis(500));
    let before = state(&far[2], "v", 1000);
    stamper.more(3000);
    assert_eq!(state(&far[2], "v", 1000), before);
    ok(&store("a"), &["resume", "v"]);
    let written = stamper.end();
    ok(&store("a"), &["cut", "v", "--wait"]);
    for far in &far {
        assert_eq!(state(far, "v", 1000), written);
    }
    for session in sessions() {
        let wholes = session["history"].as_array().unwrap().iter().filter(|set| set["whole"] == true);
        assert!(wholes.count() <= 1, "{session}");
    }
}

/// What the other side says of itself is believed no further than it must be.
#[test]
fn what_does_not_belong_together_is_refused() {
    let pair = Pair::new("16M");
    let _a = Server::start(&pair.a(), &[]);
    let (there, has_failed) = (pair.there(), || session(&pair.a())["last_error"].is_string());
    // A volume of that name with content of its own.
    ok(&pair.b(), &["create", "v", "--size", "16M"]);
    ok(&pair.a(), &["replicate", "v", &there]);
    wait_for("a refusal", Duration::from_secs(30), has_failed);
    let text = session(&pair.a())["last_error"].as_str().unwrap().to_owned();
    assert!(text.contains("primary there"), "{text}");
    // With it out of the way it goes on by itself.
    ok(&pair.b(), &["delete", "v"]);
    ok(&pair.a(), &["resume", "v"]);
    ok(&pair.a(), &["cut", "v", "--wait"]);
    assert!(!has_failed());
    // A second session to the same volume, by another name of its store.
    let link = pair.dir.path().join("link");
    std::os::unix::fs::symlink(pair.b(), &link).unwrap();
    let other = link.join("v").to_str().unwrap().to_owned();
    ok(&pair.a(), &["replicate", "v", &other]);
    let status = |peer: &str| {
        let status = json(&pair.a(), &["status", "--json"]);
        status["sessions"].as_array().unwrap().iter().find(|s| s["peer"] == peer).unwrap().clone()
    };
    wait_for("a refusal", Duration::from_secs(30), || status(&other)["last_error"].is_string());
    assert!(status(&other)["last_error"].as_str().unwrap().contains("another session"));
    assert_eq!(status(&there)["state"], "following");
    ok(&pair.a(), &["unreplicate", "v", &other]);
    // Parted there by its owner, it does not join again by itself.
    ok(&pair.b(), &["unreplicate", "v"]);
    let mut client = Client::unix(&pair.a().join("nbd.sock"), "v", &Options::default()).unwrap();
    client.write(0, &[1; 4096], false).unwrap();
    wait_for("a refusal", Duration::from_secs(30), has_failed);
    wait_for("the reason", Duration::from_secs(30), || {
        session(&pair.a())["last_error"].as_str().unwrap().contains("parted")
    });
    ok(&pair.b(), &["promote", "v"]);
    fails(5, &pair.a(), &["unreplicate", "v", &other]);
    fails(5, &pair.a(), &["pause", "other"]);
    fails(2, &pair.a(), &["replicate", "v", "relative"]);
    fails(2, &pair.a(), &["replicate", "v", &there, "--timeout", "0s"]);
    ok(&pair.a(), &["unreplicate", "v"]);
}

/// A volume that was copied by hand is followed from there on, by a delta.
#[test]
fn a_copy_by_hand_is_a_beginning() {
    let pair = Pair::new("16M");
    let _a = Server::start(&pair.a(), &[]);
    let mut client = Client::unix(&pair.a().join("nbd.sock"), "v", &Options::default()).unwrap();
    client.write(0, &vec![7; 8 << 20], false).unwrap();
    ok(&pair.a(), &["snapshot", "v@s"]);
    ok(&pair.a(), &["copy", "v@s", &pair.there()]);
    client.write(MIB, &vec![8; 1 << 20], false).unwrap();
    ok(&pair.a(), &["replicate", "v", &pair.there()]);
    ok(&pair.a(), &["cut", "v", "--wait"]);
    let status = session(&pair.a());
    assert_eq!(status["history"].as_array().unwrap().len(), 1, "{status}");
    assert_eq!(status["history"][0]["whole"], false, "{status}");
    assert!(status["history"][0]["bytes"].as_u64().unwrap() < 2 * MIB, "{status}");
    let _b = Server::start(&pair.b(), &[]);
    let mut there = Client::unix(&pair.b().join("nbd.sock"), "v", &Options::default()).unwrap();
    for (at, byte) in [(0, 7), (MIB, 8), (2 * MIB, 7)] {
        assert!(there.read(at, 1 << 20).unwrap().iter().all(|found| *found == byte), "{at}");
    }
}

/// What an owner is told, and what is done, while nobody can be reached and when too much has
/// piled up.
#[test]
fn hooks_errors_and_the_bound_of_a_backlog() {
    let pair = Pair::new("16M");
    let note = |name: &str| pair.dir.path().join(name);
    let noted = |name: &str| std::fs::read_to_string(note(name)).unwrap_or_default().lines().count();
    let append = |name: &str| format!("echo $SNAPVOL_HOOK $SNAPVOL_UNIT >> {}", note(name).display());
    let _a = Server::start(&pair.a(), &[]);
    let mut client = Client::unix(&pair.a().join("nbd.sock"), "v", &Options::default()).unwrap();
    client.write(0, &vec![1; 4 << 20], false).unwrap();
    std::fs::rename(pair.b(), note("gone")).unwrap();
    let (before, after, failed) = (append("before"), append("after"), append("failed"));
    let hooks = ["--before-cut", &before, "--after-cut", &after, "--on-error", &failed];
    ok(&pair.a(), &[&["replicate", "v", &pair.there(), "--timeout", "100ms"][..], &hooks].concat());
    let state_is = |word: &str| session(&pair.a())["state"] == word;
    wait_for("an error", Duration::from_secs(60), || state_is("error"));
    assert_eq!((noted("before"), noted("failed")), (0, 1));
    assert!(session(&pair.a())["last_error"].as_str().unwrap().contains("no store"));
    // Mended there, it goes on by itself; an owner who does not want to wait says so.
    std::fs::rename(note("gone"), pair.b()).unwrap();
    ok(&pair.a(), &["resume", "v"]);
    wait_for("the whole copy", Duration::from_secs(30), || applied(&pair.a()) == 1 && state_is("following"));
    assert_eq!((noted("before"), noted("after"), noted("failed")), (1, 1, 1));

    // A hook that fails keeps a set from being cut.
    ok(&pair.a(), &["replicate", "v", &pair.there(), "--before-cut", "false", "--backlog", "1M"]);
    client.write(0, &[2; 4096], false).unwrap();
    wait_for("a failure", Duration::from_secs(30), || state_is("waiting"));
    assert_eq!((applied(&pair.a()), noted("after")), (1, 1));
    ok(&pair.a(), &["replicate", "v", &pair.there(), "--before-cut", ""]);
    wait_for("the second set", Duration::from_secs(30), || applied(&pair.a()) == 2);

    // Too much piles up: what is kept for the session is let go.
    ok(&pair.a(), &["pause", "v"]);
    client.write(0, &vec![3; 2 << 20], false).unwrap();
    wait_for("the end", Duration::from_secs(30), || state_is("ended"));
    fails(3, &pair.a(), &["cut", "v", "--wait"]);
    ok(&pair.a(), &["replicate", "v", &pair.there(), "--backlog", "0"]);
    ok(&pair.a(), &["resume", "v"]);
    ok(&pair.a(), &["cut", "v", "--wait"]);
    assert_eq!(session(&pair.a())["history"][0]["whole"], true);
    let _b = Server::start(&pair.b(), &[]);
    let mut there = Client::unix(&pair.b().join("nbd.sock"), "v", &Options::default()).unwrap();
    assert!(there.read(MIB, 1 << 20).unwrap().iter().all(|byte| *byte == 3));
    assert!(there.read(3 * MIB, 1 << 20).unwrap().iter().all(|byte| *byte == 1));
}

/// A far program that opens the store itself has it for as long as a set takes.
#[test]
fn a_daemon_waits_for_whoever_is_at_work_but_not_for_another_daemon() {
    let pair = Pair::new("16M");
    let lock = std::fs::OpenOptions::new().read(true).write(true).open(pair.a().join("lock")).unwrap();
    lock.lock().unwrap();
    let freed = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_secs(2));
        lock.unlock().unwrap();
    });
    let a = Server::start(&pair.a(), &[]);
    assert!(freed.is_finished(), "it serves what somebody else has");
    let text = fails(3, &pair.a(), &["serve"]);
    assert!(text.contains("hint: "), "{text}");
    a.stop();
}
