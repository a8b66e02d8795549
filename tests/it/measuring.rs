//! What measures: the load generator tells right data from wrong, and the volume that is
//! made of maps alone is a sound one.

use crate::support::server::Server;
use crate::support::{SNAPVOL, available, have, ok, run, scratch, tool};
use serde_json::Value;
use std::path::Path;
use std::process::Command;

/// A program of `benches/`, built beside the one under test.
fn example(name: &str) -> Option<Command> {
    let path = Path::new(SNAPVOL).with_file_name("examples").join(name);
    let built = available(path.exists(), &format!("{} (cargo build --examples)", path.display()));
    built.then(|| Command::new(path))
}

fn load(server: &Server, words: &str) -> Option<(bool, String)> {
    let mut command = example("nbd_load")?;
    command.args(["--unix", &server.socket().display().to_string(), "--export", "v"]);
    let output = command.args(words.split_whitespace()).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    Some((output.status.success(), text))
}

#[test]
fn the_load_generator_finds_one_wrong_block() {
    if !have(&["qemu-io"]) {
        return;
    }
    let dir = scratch();
    ok(dir.path(), &["init"]);
    ok(dir.path(), &["create", "v", "--size", "8M"]);
    let server = Server::start(dir.path(), &[]);
    let Some((good, report)) = load(&server, "--read 0 --order once --depth 16 --read-back 500") else {
        return;
    };
    assert!(good, "{report}");
    let report: Value = serde_json::from_str(&report).unwrap();
    assert_eq!(report["requests"], 2048, "{report}");

    let all = "--order once --depth 16";
    assert!(load(&server, all).unwrap().0);
    // A block that is whole, but another one's.
    run(tool("qemu-io").args(["-f", "raw", &server.uri("v"), "-c", "write -P 7 1M 4k", "-c", "flush"]));
    let (good, report) = load(&server, all).unwrap();
    assert!(!good);
    let report: Value = serde_json::from_str(&report).unwrap();
    assert_eq!(report["wrong"], 1, "{report}");
    server.stop();
}

#[test]
fn a_volume_of_maps_alone_is_sound() {
    let Some(mut make) = example("big_volume") else { return };
    let dir = scratch();
    ok(dir.path(), &["init"]);
    ok(dir.path(), &["create", "v", "--size", "1T"]);
    let volume = dir.path().join("volumes/v");
    run(make.arg("make").arg(&volume).args(["--snapshots", "3", "--changed", "1000"]));
    ok(dir.path(), &["check"]);
    let diff: Value = serde_json::from_str(&ok(dir.path(), &["diff", "v@s0", "v@s2", "--json"])).unwrap();
    let changed = diff["data_bytes"].as_u64().unwrap();
    assert!((990 * 4096..=1000 * 4096).contains(&changed), "{changed}");
    assert_eq!(diff["discard_bytes"], 0);

    let scanned = example("big_volume").unwrap().arg("scan").arg(&volume).output().unwrap();
    let scanned: Value = serde_json::from_slice(&scanned.stdout).unwrap();
    assert_eq!(scanned["changed_bytes"], changed);
    let list: Value = serde_json::from_str(&ok(dir.path(), &["list", "--json"])).unwrap();
    assert_eq!(list["volumes"][0]["in_use"], 1_u64 << 40, "{list}");
    ok(dir.path(), &["check"]);
}
