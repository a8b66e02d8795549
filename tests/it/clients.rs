//! Clients that others wrote: QEMU's tools, libnbd's, its Python module, fio.

use std::fs;
use std::process::Command;
use std::time::Duration;

use crate::support::server::Server;
use crate::support::{describe, fails, have, json, ok, python, random_file, run, scratch, tool, tool_within};

const MIB: usize = 1 << 20;

/// A served store with one volume `v`.
fn served(size: &str) -> (tempfile::TempDir, Server) {
    let dir = scratch();
    let server = Server::start(&dir.path().join("s"), &["--create", &format!("v:{size}")]);
    (dir, server)
}

/// `qemu-io` with one command after the other; any that fails is a failure.
#[track_caller]
fn qemu_io(uri: &str, commands: &[&str]) -> String {
    let mut command = tool("qemu-io");
    command.args(["-f", "raw", "-d", "unmap"]);
    for line in commands {
        command.args(["-c", line]);
    }
    let output = run(command.arg(uri));
    assert!(!output.contains("verification failed") && !output.contains("rror"), "{output}");
    output
}

/// A digest of what an export holds, read through a connection of its own.
#[track_caller]
fn digest(uri: &str) -> String {
    let mut child = tool("nbdcopy").arg(uri).arg("-").stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(child.stdout.take().unwrap()).unwrap();
    assert!(child.wait().unwrap().success(), "nbdcopy {uri}");
    hasher.finalize().to_hex().to_string()
}

#[test]
fn qemu_writes_converts_compares_and_maps() {
    if !have(&["qemu-io", "qemu-img"]) {
        return;
    }
    let (dir, server) = served("64M");
    let uri = server.uri("v");
    qemu_io(
        &uri,
        &[
            "write -P 0x11 0 1M",
            "write -P 0x22 4097 511",
            "write -P 0x33 65535 3",
            "write -P 0x44 67108863 1",
            "write -z 262144 65536",
            "discard 524288 65536",
            "write -f -P 0x55 3M 4k",
            "flush",
        ],
    );
    qemu_io(
        &uri,
        &[
            "read -P 0x11 0 4097",
            "read -P 0x22 4097 511",
            "read -P 0x11 4608 60927",
            "read -P 0x33 65535 3",
            "read -P 0x11 65538 1000",
            "read -P 0 262144 65536",
            "read -P 0 524288 65536",
            "read -P 0x55 3M 4k",
            "read -P 0 8M 32M",
            "read -P 0x44 67108863 1",
        ],
    );
    let map: serde_json::Value =
        serde_json::from_str(&run(tool("qemu-img").args(["map", "--output=json", "-f", "raw", &uri])))
            .unwrap();
    let zeros: u64 = map
        .as_array()
        .unwrap()
        .iter()
        .filter(|extent| extent["zero"] == true)
        .map(|extent| extent["length"].as_u64().unwrap())
        .sum();
    assert!(zeros > 60 << 20, "{map}");

    let copy = dir.path().join("copy.qcow2");
    run(tool("qemu-img").args(["convert", "-f", "raw", "-O", "qcow2", &uri]).arg(&copy));
    run(tool("qemu-img").args(["compare", "-f", "raw", "-F", "qcow2", &uri]).arg(&copy));
    qemu_io(&uri, &["discard 0 64M"]);
    run(tool("qemu-img").args(["convert", "-n", "-f", "qcow2", "-O", "raw"]).arg(&copy).arg(&uri));
    run(tool("qemu-img").args(["compare", "-f", "raw", "-F", "qcow2", &uri]).arg(&copy));
}

#[test]
fn libnbd_copies_in_and_out() {
    if !have(&["nbdcopy", "nbdinfo"]) {
        return;
    }
    let (dir, server) = served("64M");
    let (file, back) = (dir.path().join("file"), dir.path().join("back"));
    random_file(&file, 48 * MIB, 7);
    run(tool("nbdcopy")
        .args(["--connections=4", "--requests=32", "--flush"])
        .arg(&file)
        .arg(server.uri("v")));
    run(tool("nbdcopy").args(["--connections=4"]).arg(server.uri("v")).arg(&back));
    let mut expected = fs::read(&file).unwrap();
    expected.resize(64 * MIB, 0);
    assert!(fs::read(&back).unwrap() == expected);

    let info: serde_json::Value =
        serde_json::from_str(&run(tool("nbdinfo").args(["--json", &server.uri("v")]))).unwrap();
    let export = &info["exports"][0];
    assert_eq!(export["export-size"], 64 * MIB);
    assert_eq!(export["is_read_only"], false, "{export}");
    for ability in ["can_flush", "can_fua", "can_multi_conn", "can_trim", "can_zero", "can_df"] {
        assert_eq!(export[ability], true, "{ability} in {export}");
    }
    ok(server.store(), &["snapshot", "v@s1"]);
    let list =
        run(tool("nbdinfo").arg("--list").arg(format!("nbd+unix://?socket={}", server.socket().display())));
    assert!(list.contains("\"v\"") && list.contains("\"v@s1\""), "{list}");
}

#[test]
fn libnbd_verifies_under_random_load() {
    if !have(&["/usr/bin/python3"]) {
        return;
    }
    // A size that is no multiple of a block.
    let (_dir, server) = served("20000256");
    print!("{}", run(python("clients/verify.py").args([&server.uri("v"), "5", "1"])));
    ok(server.store(), &["snapshot", "v@s1"]);
    print!("{}", run(python("clients/verify.py").args([&server.uri("v"), "5", "2"])));
}

#[test]
fn the_delta_context_is_what_diff_says() {
    if !have(&["nbdinfo", "qemu-io", "/usr/bin/python3"]) {
        return;
    }
    let (_dir, server) = served("64M");
    qemu_io(&server.uri("v"), &["write -P 1 0 1M", "write -P 2 8M 1M"]);
    ok(server.store(), &["snapshot", "v@s1"]);
    qemu_io(&server.uri("v"), &["write -P 3 4096 8192", "discard 8M 64k", "write -P 4 32M 64k"]);
    ok(server.store(), &["snapshot", "v@s2"]);
    qemu_io(&server.uri("v"), &["write -P 5 60M 4k"]);

    for (export, to) in [("v@s2", Some("s2")), ("v", None)] {
        let to = to.map_or("v".to_owned(), |name| format!("v@{name}"));
        let diff = json(server.store(), &["diff", "v@s1", &to, "--json"]);
        let expected: Vec<String> = diff["extents"]
            .as_array()
            .unwrap()
            .iter()
            .map(|extent| {
                let flags = if extent["kind"] == "data" { 1 } else { 3 };
                format!("{} {} {flags}", extent["offset"], extent["length"])
            })
            .collect();
        let context = run(python("clients/delta.py").args([&server.uri(export), "s1"]));
        let changed: Vec<&str> = context.lines().filter(|line| !line.ends_with(" 0")).collect();
        assert_eq!(changed, expected, "{export}");
        assert!(changed.contains(&"4096 8192 1") && changed.contains(&"8388608 65536 3"), "{changed:?}");
        let map = run(tool("nbdinfo").args(["--map=snapvol:delta:s1", "--json", &server.uri(export)]));
        assert!(map.contains("4096") && map.contains("33554432"), "{map}");
    }
}

#[test]
fn snapshots_are_read_only_and_unknown_names_fail() {
    if !have(&["nbdinfo", "qemu-io", "/usr/bin/python3"]) {
        return;
    }
    let (_dir, server) = served("64M");
    qemu_io(&server.uri("v"), &["write -P 1 0 1M"]);
    ok(server.store(), &["snapshot", "v@s1"]);
    run(python("clients/read_only.py").arg(server.uri("v@s1")));
    for name in ["w", "v@s2", "v@", "@s1", "../v"] {
        let output = tool_within("nbdinfo", Duration::from_secs(20)).arg(server.uri(name)).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{name}: {}", describe(&output));
    }
    // The only volume answers to the empty name too.
    run(tool("nbdinfo").arg(server.uri("")));
    qemu_io(&server.uri("v"), &["read -P 1 0 1M"]);
}

#[test]
fn fio_verifies_while_snapshots_come_and_go() {
    if !have(&["fio", "nbdcopy"]) {
        return;
    }
    let (dir, server) = served("96M");
    let store = server.store();
    let mut load = fio(&server, dir.path()).spawn().unwrap();
    let mut taken: Vec<(String, String)> = Vec::new();
    let mut round = 0;
    while load.try_wait().unwrap().is_none() {
        round += 1;
        let name = format!("v@s{round}");
        ok(store, &["snapshot", &name]);
        let digest_now = digest(&server.uri(&name));
        taken.push((name, digest_now));
        if taken.len() > 4 {
            // Not the oldest each time: a deletion in the middle hands entries on.
            let (name, before) = taken.remove(round % 3);
            assert_eq!(digest(&server.uri(&name)), before, "{name}");
            ok(store, &["delete", &name]);
            fails(5, store, &["delete", &name]);
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    assert!(load.wait().unwrap().success(), "fio found what it had not written");
    assert!(round > 2, "the load was over too soon");
    for (name, before) in &taken {
        assert_eq!(&digest(&server.uri(name)), before, "{name}");
    }
    // The same after a restart.
    let store = store.to_owned();
    server.stop();
    let server = Server::start(&store, &[]);
    for (name, before) in &taken {
        assert_eq!(&digest(&server.uri(name)), before, "{name} after a restart");
    }
    drop(server);
    ok(&store, &["check"]);
}

/// Random writes of mixed sizes, each read back and compared, several times over.
fn fio(server: &Server, dir: &std::path::Path) -> Command {
    let mut command = tool("fio");
    command.current_dir(dir).args([
        "--name=load",
        "--ioengine=nbd",
        &format!("--uri={}", server.uri("v")),
        "--rw=randwrite",
        "--bsrange=4k-64k",
        "--size=64M",
        "--iodepth=16",
        "--verify=crc32c",
        "--verify_fatal=1",
        "--verify_backlog=256",
        "--loops=4",
        "--rate=24M",
        "--fsync=200",
        "--output=fio.log",
    ]);
    command
}
