//! `update`: a local copy that fetches what is newer, over the file system and over a restricted
//! ssh key.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::support::pair::Pair;
use crate::support::server::Server;
use crate::support::sshd::{Sshd, have_sshd};
use crate::support::{SNAPVOL, describe, fails, json, ok, random_file, run, snapvol, wait_for};
use snapvol::nbd::client::{Client, Options};

const MIB: u64 = 1 << 20;

fn write(store: &Path, offset: u64, data: &[u8]) {
    let mut client = Client::unix(&store.join("nbd.sock"), "v", &Options::default()).unwrap();
    for (at, part) in (0..).zip(data.chunks(1 << 20)) {
        client.write(offset + at * MIB, part, false).unwrap();
    }
    client.flush().unwrap();
}

fn read(store: &Path, export: &str, len: u64) -> Vec<u8> {
    let mut client = Client::unix(&store.join("nbd.sock"), export, &Options::default()).unwrap();
    (0..len / MIB).flat_map(|at| client.read(at * MIB, 1 << 20).unwrap()).collect()
}

/// The outcome of an update of `c` in a store.
#[track_caller]
fn updated(store: &Path, more: &[&str]) -> (String, serde_json::Value) {
    let answer = json(store, &[&["update", "c", "--json"], more].concat());
    (answer["outcome"].as_str().unwrap().to_owned(), answer)
}

#[test]
fn a_copy_fetches_what_is_newer() {
    let pair = Pair::new("16M");
    let _a = Server::start(&pair.a(), &[]);
    let source = pair.a().join("v").to_str().unwrap().to_owned();
    write(&pair.a(), 0, &vec![1; 4 << 20]);
    assert!(fails(5, &pair.b(), &["update", "c"]).contains("--from"));
    assert!(fails(5, &pair.b(), &["update", "c", "--from", &source]).contains("no snapshot"));
    ok(&pair.a(), &["snapshot", "v@one"]);
    fails(5, &pair.b(), &["update", "c", "--from", &source, "--to", "none"]);
    let nowhere = pair.a().join("nothing").to_str().unwrap().to_owned();
    fails(5, &pair.b(), &["update", "c", "--from", &nowhere]);

    let (outcome, answer) = updated(&pair.b(), &["--from", &source]);
    assert_eq!((outcome.as_str(), answer["snapshot"].as_str()), ("whole", Some("one")));
    assert_eq!(answer["data_bytes"], 4 << 20);
    // From now on it knows from where; what is current costs nothing, also while it is served.
    let b = Server::start(&pair.b(), &[]);
    assert_eq!(updated(&pair.b(), &[]).0, "current");
    assert_eq!(read(&pair.b(), "c", 4 * MIB), vec![1; 4 << 20]);
    write(&pair.a(), MIB, &[2; 8192]);
    ok(&pair.a(), &["snapshot", "v@two"]);
    assert_eq!(updated(&pair.b(), &["--min-interval", "1h"]).0, "not-due");
    let (outcome, answer) = updated(&pair.b(), &["--min-interval", "1ms"]);
    assert_eq!((outcome.as_str(), answer["data_bytes"].as_u64()), ("delta", Some(8192)));
    assert_eq!(read(&pair.b(), "c@two", 4 * MIB), read(&pair.a(), "v@two", 4 * MIB));
    assert!(ok(&pair.b(), &["update", "c"]).contains("current, with two"));

    // A named one, though there are younger; what a schedule here took changes nothing.
    for (name, byte) in [("three", 3), ("four", 4)] {
        write(&pair.a(), 2 * MIB, &[byte; 4096]);
        ok(&pair.a(), &["snapshot", &format!("v@{name}")]);
    }
    ok(&pair.b(), &["schedule", "c", "--every", "1s"]);
    let scheduled = || json(&pair.b(), &["schedule", "c", "--json"])["snapshots"].as_u64().unwrap();
    wait_for("a snapshot by schedule", Duration::from_secs(20), || scheduled() > 0);
    ok(&pair.b(), &["schedule", "c", "--off"]);
    assert_eq!(updated(&pair.b(), &["--to", "three"]).1["data_bytes"], 4096);
    assert_eq!(updated(&pair.b(), &["--to", "three"]).0, "current");
    assert_eq!(updated(&pair.b(), &[]).1["snapshot"], "four");

    // Where the other side has forgotten what is here, the whole is fetched.
    write(&pair.a(), 0, &[5; 4096]);
    ok(&pair.a(), &["snapshot", "v@five"]);
    ok(&pair.a(), &["delete", "v@four"]);
    assert_eq!(updated(&pair.b(), &[]).0, "whole");
    assert_eq!(read(&pair.b(), "c", 4 * MIB), read(&pair.a(), "v@five", 4 * MIB));

    // What it is not for.
    ok(&pair.b(), &["promote", "c"]);
    write(&pair.a(), 0, &[6; 4096]);
    ok(&pair.a(), &["snapshot", "v@six"]);
    assert!(fails(3, &pair.b(), &["update", "c"]).contains("primary"));
    b.stop();
    ok(&pair.b(), &["check"]);
}

/// A restricted key is enough; what breaks goes on where it stopped; two at a time are one.
#[test]
fn an_update_over_ssh_goes_on_where_it_stopped() {
    if !have_sshd() {
        return;
    }
    let (pair, sshd) = (Pair::new("64M"), Sshd::start());
    let file = pair.dir.path().join("random");
    random_file(&file, 48 << 20, 5);
    let content = std::fs::read(&file).unwrap();
    let _a = Server::start(&pair.a(), &[]);
    write(&pair.a(), 0, &content);
    ok(&pair.a(), &["snapshot", "v@one"]);
    sshd.restrict(&format!("{SNAPVOL} --store {} peer --only v", pair.a().display()));
    let source = sshd.url(&pair.a(), "v");
    let update = |ssh: &Path| -> Command {
        let mut command = snapvol(&pair.b());
        command.args(["update", "c", "--json", "--from", &source]).env("SNAPVOL_SSH", ssh);
        command
    };
    let b = Server::start(&pair.b(), &["--create", "other:1M"]);
    // Slow enough to be met half-way, then killed.
    let slow = sshd.slowed_ssh("slow", 8 << 20);
    let mut first = update(&slow).stdout(std::process::Stdio::null()).spawn().unwrap();
    let half = || {
        let status = snapvol(&pair.b()).args(["receive", "c", "--status", "--json"]).output().unwrap();
        serde_json::from_slice::<serde_json::Value>(&status.stdout).unwrap_or_default()
    };
    wait_for("half of it", Duration::from_secs(60), || half()["running"] == true);
    let second = update(&sshd.ssh()).output().unwrap();
    assert_eq!(second.status.code(), Some(3), "{}", describe(&second));
    assert!(describe(&second).contains("at this moment"), "{}", describe(&second));
    // Progress is durable every 64 MiB, and when a receive ends before its time.
    std::thread::sleep(Duration::from_secs(2));
    first.kill().unwrap();
    first.wait().unwrap();
    wait_for("its end", Duration::from_secs(20), || half()["running"] == false);
    let durable = half()["durable"].as_u64().unwrap();

    assert!(durable > 0);
    let rest: serde_json::Value = serde_json::from_str(&run(&mut update(&sshd.ssh()))).unwrap();
    assert_eq!(rest["outcome"], "whole");
    assert_eq!(rest["data_bytes"].as_u64().unwrap() + durable, 48 << 20, "{rest}, after {durable}");
    assert_eq!(read(&pair.b(), "c", 48 * MIB), content);
    // The key reads and does nothing else.
    let mut other = snapvol(&pair.b());
    other.args(["update", "d", "--from", &sshd.url(&pair.a(), "w")]).env("SNAPVOL_SSH", sshd.ssh());
    assert!(describe(&other.output().unwrap()).contains("restricted"));
    b.stop();
    ok(&pair.b(), &["check"]);
    ok(&pair.b(), &["scrub"]);
}
