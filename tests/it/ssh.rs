//! `copy` through a real ssh server: whole, by delta, interrupted, refused, out of space.

use std::fs;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::support::pair::Pair;
use crate::support::server::Server;
use crate::support::sshd::{Relay, Sshd, have_sshd, sent};
use crate::support::{
    SNAPVOL, available, describe, fails, find, have, json, ok, random_file, run, snapvol, tool, wait_for,
};

const MIB: u64 = 1 << 20;

/// Two stores, A here and B "there", and what lies between them.
struct Linked {
    sshd: Sshd,
    pair: Pair,
}

impl Deref for Linked {
    type Target = Pair;

    fn deref(&self) -> &Pair {
        &self.pair
    }
}

impl Linked {
    /// A holds a volume `v` of 64 MiB, B is empty.
    fn new() -> Self {
        Self { sshd: Sshd::start(), pair: Pair::new("64M") }
    }

    /// `copy` of a snapshot to `v` in B through `ssh`.
    fn copy(&self, snapshot: &str, more: &[&str], ssh: &Path) -> Command {
        self.copy_to(&self.b(), snapshot, more, ssh)
    }

    fn copy_to(&self, store: &Path, snapshot: &str, more: &[&str], ssh: &Path) -> Command {
        let mut command = snapvol(&self.a());
        command.args(["copy", snapshot]).arg(self.sshd.url(store, "v"));
        command.args(["--remote-command", SNAPVOL]).args(more).env("SNAPVOL_SSH", ssh);
        command
    }

    /// Writes `length` random bytes at `offset` of `v`, then takes a snapshot.
    fn write(&self, server: &Server, offset: u64, length: u64, seed: u64) {
        let file = self.dir.path().join("random");
        random_file(&file, usize::try_from(length).unwrap(), seed);
        run(tool("qemu-io")
            .args(["-f", "raw", "-c"])
            .arg(format!("write -s {} {offset} {length}", file.display()))
            .arg(server.uri("v")));
    }
}

/// Fails unless the two exports hold the same bytes.
#[track_caller]
fn same(a: &str, b: &str) {
    run(tool("qemu-img").args(["compare", "-f", "raw", "-F", "raw", a, b]));
}

#[track_caller]
fn code(command: &mut Command) -> (Option<i32>, String) {
    let output = command.output().unwrap();
    (output.status.code(), describe(&output))
}

#[test]
fn the_ssh_server_of_the_tests_works() {
    if !have_sshd() {
        return;
    }
    let sshd = Sshd::start();
    assert_eq!(run(sshd.command().args(["echo", "hello"])), "hello\n");
    let (ssh, count) = sshd.relayed_ssh("relay", &Relay::default());
    let url = sshd.url(Path::new("/x"), "v");
    let port = url.split(['/', ':']).nth(4).unwrap();
    let mut child = tool(ssh.to_str().unwrap())
        .args(["-p", port, "127.0.0.1", "cat"])
        .stdin(fs::File::open("/bin/sh").unwrap())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut back = Vec::new();
    std::io::Read::read_to_end(child.stdout.as_mut().unwrap(), &mut back).unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(back, fs::read("/bin/sh").unwrap());
    assert_eq!(sent(&count), back.len() as u64);
}

#[test]
fn a_copy_ships_the_whole_then_only_what_changed() {
    if !have_sshd() || !have(&["qemu-io", "qemu-img"]) {
        return;
    }
    let pair = Linked::new();
    let a = Server::start(&pair.a(), &[]);
    pair.write(&a, 3 * MIB + 4096, 16 * MIB, 1);
    ok(&pair.a(), &["snapshot", "v@s1"]);

    let (ssh, whole) = pair.sshd.relayed_ssh("whole", &Relay::default());
    run(&mut pair.copy("v@s1", &[], &ssh));
    assert!((16 * MIB..20 * MIB).contains(&sent(&whole)), "sent {}", sent(&whole));

    // What is unused is not shipped; what is trimmed is shipped as such.
    pair.write(&a, 40 * MIB, MIB, 2);
    run(tool("qemu-io").args(["-f", "raw", "-d", "unmap", "-c", "discard 4M 2M", &a.uri("v")]));
    ok(&pair.a(), &["snapshot", "v@s2"]);
    {
        // While the far store is served, its daemon receives.
        let b = Server::start(&pair.b(), &[]);
        same(&a.uri("v@s1"), &b.uri("v"));
        same(&a.uri("v@s1"), &b.uri("v@s1"));
        let (ssh, delta) = pair.sshd.relayed_ssh("delta", &Relay::default());
        run(&mut pair.copy("v@s2", &[], &ssh));
        assert!((MIB..2 * MIB).contains(&sent(&delta)), "sent {}", sent(&delta));
        same(&a.uri("v@s2"), &b.uri("v"));
        same(&a.uri("v@s2"), &b.uri("v@s2"));
        same(&a.uri("v@s1"), &b.uri("v@s1"));

        // What is there already is not shipped again.
        let (ssh, again) = pair.sshd.relayed_ssh("again", &Relay::default());
        run(&mut pair.copy("v@s2", &[], &ssh));
        assert!(sent(&again) < 64 * 1024, "sent {}", sent(&again));
    }
    let list = json(&pair.b(), &["list", "--json"]);
    assert_eq!(list["volumes"][0]["role"], "secondary", "{list}");
    let local = json(&pair.a(), &["list", "--json"]);
    for (far, near) in [(0, 0), (1, 1)] {
        let field = |list: &serde_json::Value, at: usize| list["volumes"][0]["snapshots"][at]["uuid"].clone();
        assert_eq!(field(&list, far), field(&local, near), "a snapshot keeps its identity");
    }
    ok(&pair.b(), &["check"]);

    // A whole copy into a third store that lies here.
    let c = pair.dir.path().join("c");
    ok(&c, &["init"]);
    ok(&pair.a(), &["copy", "v@s2", c.join("v").to_str().unwrap(), "--full"]);
    let c = Server::start(&c, &[]);
    same(&a.uri("v@s2"), &c.uri("v"));
}

#[test]
fn an_interrupted_copy_resumes_where_it_stopped() {
    if !have_sshd() || !have(&["qemu-io", "qemu-img"]) {
        return;
    }
    let pair = Linked::new();
    {
        let a = Server::start(&pair.a(), &[]);
        pair.write(&a, 0, 48 * MIB, 3);
        ok(&pair.a(), &["snapshot", "v@s1"]);
    }

    // The connection breaks.
    let (cut, count) = pair.sshd.relayed_ssh("cut", &Relay { cut_after: Some(20 * MIB), ..Relay::default() });
    let (status, text) = code(&mut pair.copy("v@s1", &[], &cut));
    assert!(status.is_some_and(|status| status != 0), "{text}");
    let first = sent(&count);
    ok(&pair.b(), &["receive", "v", "--status"]);

    // Then the sender dies. A rate gives the time to meet it halfway.
    let slow = Relay { bytes_per_second: Some(8 * MIB), ..Relay::default() };
    let (ssh, count) = pair.sshd.relayed_ssh("slow", &slow);
    let mut sender = pair.copy("v@s1", &[], &ssh).spawn().unwrap();
    wait_for("some of the copy", Duration::from_secs(60), || {
        assert!(sender.try_wait().unwrap().is_none(), "the copy ended before it could be interrupted");
        sent(&count) > 10 * MIB
    });
    sender.kill().unwrap();
    sender.wait().unwrap();
    let second = sent(&count);

    let (ssh, count) = pair.sshd.relayed_ssh("rest", &Relay::default());
    finish(&mut || pair.copy("v@s1", &[], &ssh));
    let total = first + second + sent(&count);
    // What was on its way when the connection broke is lost: pipes, socket buffers and
    // the part of a chunk, each time.
    assert!(total < (48 + 16) * MIB, "resent too much: {first}, {second}, {}", sent(&count));

    ok(&pair.b(), &["check"]);
    let (a, b) = (Server::start(&pair.a(), &[]), Server::start(&pair.b(), &[]));
    same(&a.uri("v@s1"), &b.uri("v"));
}

/// Repeats a copy for as long as the far side still waits for a sender that is gone.
#[track_caller]
fn finish(copy: &mut dyn FnMut() -> Command) {
    let start = Instant::now();
    loop {
        let (status, text) = code(&mut copy());
        match status {
            Some(0) => return,
            Some(3) if start.elapsed() < Duration::from_secs(20) => {
                std::thread::sleep(Duration::from_millis(300))
            }
            _ => panic!("{text}"),
        }
    }
}

#[test]
fn a_base_that_does_not_match_is_refused() {
    if !have_sshd() || !have(&["qemu-io", "qemu-img"]) {
        return;
    }
    let pair = Linked::new();
    let a = Server::start(&pair.a(), &[]);
    for (seed, name) in [(1, "v@s1"), (2, "v@s2"), (3, "v@s3")] {
        pair.write(&a, seed * MIB, MIB, seed);
        ok(&pair.a(), &["snapshot", name]);
    }
    let ssh = pair.sshd.ssh();
    run(&mut pair.copy("v@s1", &[], &ssh));
    let before = json(&pair.b(), &["list", "--json"]);

    // A base that the far side has not.
    let (status, text) = code(&mut pair.copy("v@s3", &["--from", "s2"], &ssh));
    assert_eq!(status, Some(3), "{text}");
    assert_eq!(json(&pair.b(), &["list", "--json"]), before);

    // A snapshot of that name with another identity.
    ok(&pair.a(), &["create", "other", "--size", "64M"]);
    ok(&pair.a(), &["snapshot", "other@s1"]);
    let (status, text) = code(&mut pair.copy("other@s1", &[], &ssh));
    assert_eq!(status, Some(3), "{text}");

    // A primary receives nothing.
    ok(&pair.b(), &["promote", "v"]);
    let (status, text) = code(&mut pair.copy("v@s3", &[], &ssh));
    assert_eq!(status, Some(3), "{text}");

    let b = Server::start(&pair.b(), &[]);
    same(&a.uri("v@s1"), &b.uri("v"));
}

#[test]
fn bad_destinations_are_refused() {
    if !have_sshd() {
        return;
    }
    let pair = Linked::new();
    ok(&pair.a(), &["snapshot", "v@s1"]);
    let marker = pair.dir.path().join("marker");
    let command = format!("-oProxyCommand=touch {}", marker.display());
    for host in [command.as_str(), "-v", "-v@127.0.0.1", "user@-v"] {
        fails(2, &pair.a(), &["copy", "v@s1", &format!("ssh://{host}/x/v")]);
    }
    assert!(!marker.exists());
    for bad in ["ssh://127.0.0.1", "ssh://127.0.0.1/v/", "http://127.0.0.1/x/v", "relative/v"] {
        fails(2, &pair.a(), &["copy", "v@s1", bad]);
    }
    // A store that is not there, and a program that is not there.
    let ssh = pair.sshd.ssh();
    let (status, text) = code(&mut pair.copy_to(Path::new("/nonexistent/store"), "v@s1", &[], &ssh));
    assert!(matches!(status, Some(1 | 5)), "{text}");
    let mut missing = snapvol(&pair.a());
    missing.args([
        "copy",
        "v@s1",
        &pair.sshd.url(&pair.b(), "v"),
        "--remote-command",
        "/nonexistent/program",
    ]);
    let (status, text) = code(missing.env("SNAPVOL_SSH", &ssh));
    assert_eq!(status, Some(1), "{text}");
}

#[test]
fn a_full_disk_at_the_far_end_says_so_and_keeps_what_was_there() {
    if !have_sshd() || !have(&["qemu-io", "qemu-img", "mount", "umount"]) {
        return;
    }
    let pair = Linked::new();
    let disk = pair.dir.path().join("disk");
    fs::create_dir(&disk).unwrap();
    let Some(mount) = Tmpfs::mount(&disk, "size=96M") else { return };
    let store = disk.join("s");
    ok(&store, &["init"]);

    let a = Server::start(&pair.a(), &[]);
    ok(&pair.a(), &["resize", "v", "256M"]);
    pair.write(&a, 0, 8 * MIB, 1);
    ok(&pair.a(), &["snapshot", "v@s1"]);
    let ssh = pair.sshd.ssh();
    run(&mut pair.copy_to(&store, "v@s1", &[], &ssh));

    pair.write(&a, 16 * MIB, 128 * MIB, 2);
    ok(&pair.a(), &["snapshot", "v@s2"]);
    let start = Instant::now();
    let (status, text) = code(&mut pair.copy_to(&store, "v@s2", &[], &ssh));
    assert_eq!(status, Some(1), "{text}");
    assert!(text.contains("full") || text.contains("space"), "{text}");
    assert!(start.elapsed() < Duration::from_secs(60));

    // With room made, the copy goes on.
    ok(&store, &["check"]);
    {
        let b = Server::start(&store, &[]);
        same(&a.uri("v@s1"), &b.uri("v"));
    }
    mount.remount("size=400M");
    run(&mut pair.copy_to(&store, "v@s2", &[], &ssh));
    let b = Server::start(&store, &[]);
    same(&a.uri("v@s2"), &b.uri("v"));
    same(&a.uri("v@s1"), &b.uri("v@s1"));
    drop(b);
    drop(mount);
}

/// A file system of limited size, gone with the value.
struct Tmpfs(PathBuf);

impl Tmpfs {
    fn mount(at: &Path, options: &str) -> Option<Self> {
        let status = Command::new(find("mount")?)
            .args(["-t", "tmpfs", "-o", options, "snapvol-test"])
            .arg(at)
            .status();
        available(status.is_ok_and(|status| status.success()), "the right to mount")
            .then(|| Self(at.to_owned()))
    }

    fn remount(&self, options: &str) {
        run(Command::new(find("mount").unwrap()).args(["-o", &format!("remount,{options}")]).arg(&self.0));
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn of_two_senders_one_is_refused() {
    if !have_sshd() || !have(&["qemu-io", "qemu-img"]) {
        return;
    }
    let pair = Linked::new();
    let a = Server::start(&pair.a(), &[]);
    pair.write(&a, 0, 24 * MIB, 5);
    ok(&pair.a(), &["snapshot", "v@s1"]);

    // Slow enough for a second one to begin meanwhile on a busy machine.
    let slow = Relay { bytes_per_second: Some(3 * MIB), ..Relay::default() };
    let (ssh, count) = pair.sshd.relayed_ssh("slow", &slow);
    let mut first = pair.copy("v@s1", &[], &ssh).spawn().unwrap();
    wait_for("the first sender", Duration::from_secs(60), || sent(&count) > 4 * MIB);
    let (status, text) = code(&mut pair.copy("v@s1", &[], &pair.sshd.ssh()));
    assert_eq!(status, Some(3), "{text}");
    assert!(first.wait().unwrap().success());

    let b = Server::start(&pair.b(), &[]);
    same(&a.uri("v@s1"), &b.uri("v"));
}
