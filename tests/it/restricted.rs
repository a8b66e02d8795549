//! An ssh key that is restricted to one store and one volume, with the real sshd: what it is for
//! works, and nothing else does.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use crate::support::pair::Pair;
use crate::support::server::Server;
use crate::support::sshd::{Sshd, have_sshd};
use crate::support::{SNAPVOL, describe, json, ok, run, snapvol, wait_for};
use snapvol::nbd::client::{Client, Options};

/// Runs a line at the far side with the key.
fn far(sshd: &Sshd, line: &str) -> Output {
    sshd.command().arg(line).stdin(Stdio::null()).output().unwrap()
}

fn with_key(sshd: &Sshd, store: &Path) -> Command {
    let mut command = snapvol(store);
    command.env("SNAPVOL_SSH", sshd.ssh());
    command
}

#[test]
fn a_restricted_key_does_what_it_is_for_and_nothing_else() {
    if !have_sshd() {
        return;
    }
    let (pair, sshd) = (Pair::new("16M"), Sshd::start());
    ok(&pair.a(), &["create", "w", "--size", "1M"]);
    ok(&pair.b(), &["create", "mine", "--size", "1M"]);
    ok(&pair.b(), &["snapshot", "mine@s"]);
    let b = pair.b();
    let other = pair.dir.path().join("other");
    ok(&other, &["init"]);
    sshd.restrict(&format!("{SNAPVOL} --store {} peer --only v,x", b.display()));

    // Copies, comparisons and sessions.
    let ssh = sshd.ssh();
    let a = Server::start_with(&pair.a(), &[], &[("SNAPVOL_SSH", &ssh)]);
    let mut client = Client::unix(&pair.a().join("nbd.sock"), "v", &Options::default()).unwrap();
    client.write(0, &vec![7; 1 << 20], true).unwrap();
    for name in ["v@s1", "w@s1"] {
        ok(&pair.a(), &["snapshot", name]);
    }
    let there = sshd.url(&b, "v");
    run(with_key(&sshd, &pair.a()).args(["copy", "v@s1", &there]));
    run(with_key(&sshd, &pair.a()).args(["verify", "v@s1", &there]));
    // The program that is named counts for nothing.
    run(with_key(&sshd, &pair.a()).args(["verify", "v@s1", &there, "--remote-command", "/nowhere/x"]));
    ok(&pair.a(), &["replicate", "v", &there, "--timeout", "100ms"]);
    ok(&pair.a(), &["cut", "v", "--wait"]);
    client.write(4096, &[9; 4096], true).unwrap();
    ok(&pair.a(), &["cut", "v", "--wait"]);
    // By the far end's own commands, as `update` uses them.
    let store = b.display();
    let list = far(&sshd, &format!("snapvol --store {store} list v --json"));
    assert!(list.status.success(), "{}", describe(&list));
    let stream = far(&sshd, &format!("snapvol --store {store} send 'v@s1'"));
    assert!(stream.status.success() && stream.stdout.len() > 1 << 20, "{}", describe(&stream));

    // Other volumes, other stores.
    for (snapshot, store, volume) in [("w@s1", &b, "w"), ("w@s1", &b, "mine"), ("v@s1", &other, "v")] {
        let output =
            with_key(&sshd, &pair.a()).args(["copy", snapshot, &sshd.url(store, volume)]).output().unwrap();
        assert_eq!(output.status.code(), Some(3), "{}", describe(&output));
        assert!(describe(&output).contains("restricted"), "{}", describe(&output));
    }
    ok(&pair.a(), &["replicate", "w", &sshd.url(&b, "mine")]);
    let refused = || {
        let status = json(&pair.a(), &["status", "--json"]);
        let sessions = status["sessions"].as_array().unwrap().clone();
        let of_w = sessions.into_iter().find(|session| session["unit"] == "w").unwrap();
        of_w["last_error"].as_str().is_some_and(|error| error.contains("not one of its volumes"))
    };
    wait_for("a refusal", Duration::from_secs(30), refused);

    // Everything else that somebody might try.
    let marker = pair.dir.path().join("marker");
    let touch = format!("touch {}", marker.display());
    for line in [
        "",
        "id",
        "sh",
        touch.as_str(),
        &format!("snapvol --store {store} delete v --recursive"),
        &format!("snapvol --store {store} promote v"),
        &format!("snapvol --store {store} list --json"),
        &format!("snapvol --store {store} list mine --json"),
        &format!("snapvol --store {store} send 'mine@s'"),
        &format!("snapvol --store {store} send 'v@s1' -o {}", marker.display()),
        &format!("snapvol --store {store} receive mine --peer"),
        &format!("snapvol --store {store} digests mine"),
        &format!("snapvol --store {store} serve"),
        &format!("snapvol --store {store} peer; {touch}"),
        &format!("snapvol --store {store} peer && {touch}"),
        &format!("snapvol --store {store} peer\n{touch}"),
        &format!("snapvol --store {store} digests v `{touch}`"),
        &format!("snapvol --store {store} digests $({touch})"),
        &format!("snapvol --store {} peer", other.display()),
        &format!("snapvol --store {store}/../other peer"),
        &format!("snapvol --store {store} --store {} peer", other.display()),
        &format!("{touch} --store {store} digests nothing"),
    ] {
        let output = far(&sshd, line);
        assert!(!output.status.success(), "{line}: {}", describe(&output));
        assert!(!marker.exists(), "{line}");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains("snapvol: ") && !said.contains("panicked"), "{line}: {said}");
    }
    let sftp = sshd.command().args(["-s", "sftp"]).stdin(Stdio::null()).output().unwrap();
    assert!(!sftp.status.success(), "{}", describe(&sftp));
    assert!(!marker.exists());
    ok(&pair.a(), &["cut", "v", "--wait"]);
    a.stop();
    let list = json(&b, &["list", "--json"]);
    let names: Vec<_> = list["volumes"].as_array().unwrap().iter().map(|v| v["name"].clone()).collect();
    assert_eq!(names, ["mine", "v"]);
    assert!(json(&other, &["list", "--json"])["volumes"].as_array().unwrap().is_empty());
    ok(&b, &["check"]);
}
