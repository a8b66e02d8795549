//! What else can fail around the daemon: descriptors run out, directories vanish, the file
//! system turns read-only. Errors are clear, reads go on, and nothing spins.

use crate::support::mount::{Kind, Mounted, where_mounts_are_private};
use crate::support::server::Server;
use crate::support::{fails, json, ok, scratch, wait_for};
use snapvol::nbd::client::{Client, Options};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

const SOON: Duration = Duration::from_secs(20);

fn connect(store: &Path, export: &str) -> Client {
    let options = Options { structured: true, ..Options::default() };
    Client::unix(&store.join("nbd.sock"), export, &options).unwrap()
}

fn state(store: &Path, volume: &str) -> String {
    let list = json(store, &["list", volume, "--json"]);
    list["volumes"][0]["state"].as_str().unwrap().to_owned()
}

/// Seconds of processor time that a process has used.
fn cpu_seconds(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
    let ticks: f64 = fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap();
    ticks / 100.0
}

#[test]
fn clients_wait_while_there_are_no_descriptors() {
    let dir = scratch();
    let store = dir.path().join("s");
    ok(&store, &["init"]);
    ok(&store, &["create", "v", "--size", "16M"]);
    // Fewer than the silent clients below take together.
    let server = Server::start_limited(&store, "--nofile=96:96", &[]);
    let mut client = connect(&store, "v");
    client.write(0, &[1; 65536], true).unwrap();
    let mut control: Vec<UnixStream> = Vec::new();
    let mut crowd: Vec<UnixStream> = Vec::new();
    for _ in 0..40 {
        control.push(UnixStream::connect(store.join("control.sock")).unwrap());
        crowd.push(UnixStream::connect(store.join("nbd.sock")).unwrap());
    }
    std::thread::sleep(Duration::from_millis(500));
    let before = cpu_seconds(server.pid());
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(2) {
        client.write(4096, &[2; 4096], false).unwrap();
        assert_eq!(client.read(0, 4096).unwrap(), [1; 4096]);
        std::thread::sleep(Duration::from_millis(20));
    }
    let used = cpu_seconds(server.pid()) - before;
    assert!(used < 1.0, "it used {used} s of processor time in 2 s");
    drop((control, crowd));
    wait_for("descriptors to be there again", SOON, || {
        Client::unix(&store.join("nbd.sock"), "v", &Options::default()).is_ok()
    });
    ok(&store, &["snapshot", "v@a"]);
    client.flush().unwrap();
    drop(client);
    server.stop();
    ok(&store, &["check"]);
}

#[test]
fn a_removed_store_takes_no_more_writes() {
    let dir = scratch();
    let store = dir.path().join("s");
    let server = Server::start(&store, &["--create", "v:16M"]);
    let mut client = connect(&store, "v");
    client.write(0, &[1; 4096], true).unwrap();
    std::fs::remove_dir_all(&store).unwrap();
    // What was written would be found by nobody.
    wait_for("writes to be refused", SOON, || client.write(4096, &[2; 4096], false).is_err());
    assert_eq!(client.read(0, 4096).unwrap(), [1; 4096]);
    fails(5, &store, &["list"]);
    drop(client);
    drop(server);
}

#[test]
fn a_removed_volume_does_not_touch_the_others() {
    let dir = scratch();
    let store = dir.path().join("s");
    let server = Server::start(&store, &["--create", "v:16M", "--create", "w:16M"]);
    let mut client = connect(&store, "v");
    let mut other = connect(&store, "w");
    client.write(0, &[1; 4096], true).unwrap();
    std::fs::remove_dir_all(store.join("volumes/v")).unwrap();
    wait_for("writes to be refused", SOON, || client.write(4096, &[2; 4096], false).is_err());
    assert_eq!(state(&store, "v"), "read-only");
    other.write(0, &[3; 4096], true).unwrap();
    ok(&store, &["snapshot", "w@a"]);
    let refused = fails(1, &store, &["snapshot", "v@a"]);
    assert!(refused.contains("were removed while they are served"), "{refused}");
    drop((client, other));
    drop(server);
}

#[test]
fn a_file_system_that_turns_read_only() {
    where_mounts_are_private("failures::a_file_system_that_turns_read_only", || {
        let disk = Mounted::new(Kind::Ext4, 200);
        let store = disk.dir().join("s");
        let server = Server::start(&store, &["--create", "v:16M"]);
        let mut client = connect(&store, "v");
        client.write(0, &[1; 65536], true).unwrap();
        ok(&store, &["snapshot", "v@a"]);
        client.write(0, &[2; 4096], true).unwrap();
        disk.abort();
        wait_for("a flush to fail", SOON, || {
            client.write(8192, &[3; 4096], false).is_err() || client.flush().is_err()
        });
        assert_eq!(client.read(0, 4096).unwrap(), [2; 4096]);
        assert_eq!(state(&store, "v"), "read-only");
        let refused = fails(1, &store, &["snapshot", "v@b"]);
        assert!(refused.contains("read-only"), "{refused}");
        drop(client);
        drop(server);
    });
}

#[test]
fn a_store_on_a_read_only_file_system() {
    where_mounts_are_private("failures::a_store_on_a_read_only_file_system", || {
        let disk = Mounted::new(Kind::Tmpfs, 100);
        let store = disk.dir().join("s");
        ok(&store, &["init"]);
        ok(&store, &["create", "v", "--size", "16M"]);
        ok(&store, &["check"]);
        disk.remount("ro");
        for args in [&["create", "w", "--size", "1M"][..], &["snapshot", "v@a"]] {
            let refused = fails(1, &store, args);
            assert!(refused.contains("Read-only file system"), "{refused}");
        }
        disk.remount("rw");
        ok(&store, &["snapshot", "v@a"]);
        ok(&store, &["check"]);
    });
}
