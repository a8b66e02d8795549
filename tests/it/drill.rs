//! Drills with real processes: writable copies of a state, whatever goes on beside them.

use std::path::Path;
use std::time::Duration;

use crate::support::pair::Pair;
use crate::support::server::Server;
use crate::support::stamper::{Stamper, state};
use crate::support::{fails, have, json, ok, python, run, scratch, tool, wait_for};
use snapvol::nbd::client::{Client, Options};

const MIB: u64 = 1 << 20;

fn client(store: &Path, export: &str) -> Client {
    Client::unix(&store.join("nbd.sock"), export, &Options::default()).unwrap()
}

/// What `list --json` says of a volume or drill.
#[track_caller]
fn listed(store: &Path, name: &str) -> serde_json::Value {
    let list = json(store, &["list", "--json"]);
    let volumes = list["volumes"].as_array().unwrap();
    volumes.iter().find(|volume| volume["name"] == name).unwrap_or_else(|| panic!("{name} in {list}")).clone()
}

/// A drill is made, listed, used, refused and ended; with a daemon and without one.
#[test]
fn a_drill_from_its_begin_to_its_end() {
    let dir = scratch();
    let store = dir.path().join("s");
    let server = Server::start(&store, &["--create", "v:64M", "--create", "w:1M"]);
    client(&store, "v").write(0, &vec![1; 4 << 20], true).unwrap();
    assert!(fails(3, &store, &["drill", "v"]).contains("no state"));
    fails(5, &store, &["drill", "none"]);
    fails(5, &store, &["drill", "v@none"]);
    ok(&store, &["snapshot", "v@one"]);
    client(&store, "v").write(0, &vec![2; 2 << 20], true).unwrap();
    ok(&store, &["snapshot", "v@two"]);
    client(&store, "v").write(0, &vec![3; 1 << 20], true).unwrap();

    assert_eq!(ok(&store, &["drill", "v"]), "v+drill\n");
    let other = json(&store, &["drill", "v@one", "--name", "old", "--json"]);
    assert_eq!((other["export"].as_str(), other["snapshot"].as_str()), (Some("v+old"), Some("one")));
    assert_eq!(listed(&store, "v+drill")["drill"]["snapshot"], "two");
    assert!(ok(&store, &["list"]).contains("drill of v@one"));
    assert!(fails(3, &store, &["drill", "v", "--name", "old"]).contains("already"));

    let mut drill = client(&store, "v+old");
    assert_eq!(drill.read(0, 4096).unwrap(), vec![1; 4096]);
    drill.write(1000, &[9; 5000], true).unwrap();
    drill.trim(2 * MIB, 65536).unwrap();
    let read = drill.read(0, 3 << 20).unwrap();
    assert!(read[..1000] == [1; 1000] && read[1000..6000] == [9; 5000] && read[6000..8192] == [1; 2192]);
    assert!(read[2 << 20..][..65536] == [0; 65536] && read[(2 << 20) + 65536] == 1);
    // Nobody else sees any of it.
    assert_eq!(client(&store, "v@one").read(1000, 4096).unwrap(), vec![1; 4096]);
    assert_eq!(client(&store, "v+drill").read(0, 4096).unwrap(), vec![2; 4096]);
    assert_eq!(client(&store, "v").read(0, 4096).unwrap(), vec![3; 4096]);
    assert!(listed(&store, "v+old")["in_use"].as_u64().unwrap() <= 8192 + 65536);

    // What would take the state away, and what a drill does not do.
    for args in [
        &["delete", "v@one"][..],
        &["delete", "v", "--recursive"],
        &["drill", "v", "--end"],
        &["drill", "v", "--end", "old"],
    ] {
        fails(3, &store, args);
    }
    for args in [
        &["snapshot", "v+old@x"][..],
        &["delete", "v+old"],
        &["resize", "v+old", "1G"],
        &["create", "v+mine", "--size", "1M"],
        &["drill", "v+old"],
        &["release", "v@one", "+old"],
        &["promote", "v+old"],
    ] {
        fails(2, &store, args);
    }
    fails(5, &store, &["drill", "v", "--end", "none"]);
    fails(5, &store, &["drill", "w", "--end"]);

    // After the death of the daemon it is as it was; then without a daemon.
    drop(drill);
    server.kill();
    assert_eq!(listed(&store, "v+old")["drill"]["snapshot"], "one");
    let server = Server::start(&store, &[]);
    let mut drill = client(&store, "v+old");
    assert_eq!(drill.read(1000, 5000).unwrap(), vec![9; 5000]);
    assert_eq!(drill.read(2 * MIB, 65536).unwrap(), vec![0; 65536]);
    ok(&store, &["drill", "v", "--end", "old", "--force"]);
    assert!(drill.read(0, 512).is_err());
    ok(&store, &["delete", "v@one"]);
    server.stop();
    ok(&store, &["check"]);
    ok(&store, &["drill", "v", "--end"]);
    assert_eq!(ok(&store, &["drill", "v", "--name", "again"]), "v+again\n");
    ok(&store, &["drill", "v", "--end", "again"]);
    ok(&store, &["delete", "v", "--recursive"]);
    let left: Vec<_> = std::fs::read_dir(store.join("volumes")).unwrap().flatten().collect();
    assert_eq!(left.len(), 1, "{left:?}");
    ok(&store, &["check"]);
}

/// Programs that others wrote, on a drill over a volume that is in use.
#[test]
fn clients_that_others_wrote() {
    if !have(&["qemu-io", "qemu-img", "fio", "nbdinfo", "/usr/bin/python3"]) {
        return;
    }
    let dir = scratch();
    let store = dir.path().join("s");
    // A size that is no multiple of a block.
    let server = Server::start(&store, &["--create", "v:100000256"]);
    let qemu_io = |export: &str, commands: &[&str]| {
        let mut command = tool("qemu-io");
        command.args(["-f", "raw", "-d", "unmap"]);
        if export.contains('@') {
            command.arg("-r");
        }
        for line in commands {
            command.args(["-c", line]);
        }
        let output = run(command.arg(server.uri(export)));
        assert!(!output.contains("verification failed") && !output.contains("rror"), "{output}");
    };
    qemu_io("v", &["write -P 0x11 0 32M", "write -P 0x12 99999744 512", "flush"]);
    ok(&store, &["snapshot", "v@s"]);
    ok(&store, &["drill", "v"]);
    qemu_io("v+drill", &["read -P 0x11 0 32M", "read -P 0 32M 32M", "read -P 0x12 99999744 512"]);
    qemu_io(
        "v+drill",
        &["write -P 0x22 4097 511", "discard 1M 8M", "write -z 16M 1M", "write -P 0x33 60M 1M", "flush"],
    );
    qemu_io(
        "v+drill",
        &[
            "read -P 0x11 0 4097",
            "read -P 0x22 4097 511",
            "read -P 0x11 4608 512k",
            "read -P 0 1M 8M",
            "read -P 0 16M 1M",
            "read -P 0x33 60M 1M",
            "read -P 0x12 99999744 512",
        ],
    );
    qemu_io("v@s", &["read -P 0x11 0 32M", "read -P 0 60M 1M"]);
    // What is said to be a hole is one in both, and what is none is data in one of them.
    let map = run(tool("nbdinfo").args(["--map", "--json", &server.uri("v+drill")]));
    let map: serde_json::Value = serde_json::from_str(&map).unwrap();
    let holes = map.as_array().unwrap().iter().filter(|extent| extent["type"] == 3);
    let holes: u64 = holes.map(|extent| extent["length"].as_u64().unwrap()).sum();
    assert_eq!(holes, 100_000_256 - 33 * MIB - 512, "{map}");

    let changes = python("clients/verify.py").args([&server.uri("v"), "12", "3"]).spawn().unwrap();
    print!("{}", run(python("clients/verify.py").args([&server.uri("v+drill"), "6", "1"])));
    let fio = run(tool("fio").current_dir(dir.path()).args([
        "--name=load",
        "--ioengine=nbd",
        &format!("--uri={}", server.uri("v+drill")),
        "--rw=randwrite",
        "--bsrange=4k-64k",
        "--size=64M",
        "--iodepth=16",
        "--verify=crc32c",
        "--verify_fatal=1",
        "--verify_backlog=256",
        "--fsync=200",
    ]));
    assert!(fio.contains("err= 0"), "{fio}");
    assert!(changes.wait_with_output().unwrap().status.success());
    qemu_io("v@s", &["read -P 0x11 0 32M", "read -P 0 60M 1M"]);
    server.stop();
    ok(&store, &["check"]);
    ok(&store, &["scrub"]);
}

/// A secondary follows on while a drill of it is written to; both daemons may die.
#[test]
fn a_secondary_follows_beside_a_drill() {
    let pair = Pair::new("64M");
    let (a, b) = (Server::start(&pair.a(), &[]), Server::start(&pair.b(), &["--create", "other:1M"]));
    let stamper = Stamper::start(&pair.a(), 500, Duration::from_micros(500));
    stamper.more(600);
    ok(&pair.a(), &["replicate", "v", &pair.there(), "--timeout", "200ms"]);
    let applied = || json(&pair.a(), &["status", "--json"])["sessions"][0]["applied"].as_u64().unwrap_or(0);
    let more_sets = |count: u64| {
        let before = applied();
        wait_for("more sets", Duration::from_secs(90), || applied() >= before + count);
    };
    wait_for("the first set", Duration::from_secs(60), || applied() > 0);
    assert_eq!(ok(&pair.b(), &["drill", "v"]), "v+drill\n");
    let shown = state(&pair.b(), "v+drill", 500);
    assert!(listed(&pair.b(), "v+drill")["drill"]["snapshot"].is_null());
    more_sets(5);
    assert_eq!(state(&pair.b(), "v+drill", 500), shown, "a drill follows nobody");
    assert!(state(&pair.b(), "v", 500) > shown);
    // Written beyond what is stamped, so that what it shows can still be told.
    let mut drill = client(&pair.b(), "v+drill");
    for block in 500..1500u64 {
        drill.write(block * 4096, &block.to_le_bytes().repeat(512), false).unwrap();
    }
    drop(drill);
    b.kill();
    let b = Server::start(&pair.b(), &[]);
    more_sets(3);
    a.kill();
    let a = Server::start(&pair.a(), &[]);
    more_sets(3);
    assert_eq!(state(&pair.b(), "v+drill", 500), shown);
    let mut drill = client(&pair.b(), "v+drill");
    for block in 500..1500u64 {
        assert_eq!(drill.read(block * 4096, 4096).unwrap(), block.to_le_bytes().repeat(512), "{block}");
    }
    drop(drill);
    // A second one is of a younger state; ended, neither leaves anything.
    assert_eq!(ok(&pair.b(), &["drill", "v"]), "v+drill2\n");
    assert!(state(&pair.b(), "v+drill2", 500) > shown);
    for name in ["drill", "drill2"] {
        ok(&pair.b(), &["drill", "v", "--end", name]);
    }
    let written = stamper.end();
    ok(&pair.a(), &["cut", "v", "--wait"]);
    assert_eq!(state(&pair.b(), "v", 500), written);
    ok(&pair.a(), &["unreplicate", "v"]);
    a.stop();
    b.stop();
    ok(&pair.b(), &["check"]);
    ok(&pair.b(), &["scrub"]);
    ok(&pair.b(), &["promote", "v"]);
    ok(&pair.b(), &["delete", "v", "--recursive"]);
}
