//! Bookmarks with real processes: what every receiver has costs its sender no before-images,
//! and what is shipped next is what was changed.

use std::path::Path;
use std::time::Duration;

use crate::support::pair::Pair;
use crate::support::server::Server;
use crate::support::stamper::{Stamper, state};
use crate::support::{fails, json, ok};
use snapvol::control::Access;
use snapvol::nbd::client::{Client, Options};
use uuid::Uuid;

const BLOCK: u64 = 4096;

fn client(store: &Path) -> Client {
    Client::unix(&store.join("nbd.sock"), "v", &Options::default()).unwrap()
}

/// Writes blocks, each with that byte.
fn fill(client: &mut Client, blocks: impl Iterator<Item = u64>, byte: u8) {
    for block in blocks {
        client.write(block * BLOCK, &[byte; 4096], false).unwrap();
    }
}

/// Cuts a set, waits until it is applied, and says how many bytes it took.
fn ship(store: &Path) -> u64 {
    ok(store, &["cut", "v", "--wait"]);
    let history = &json(store, &["status", "--json"])["sessions"][0]["history"];
    assert_eq!(history[0]["whole"], false, "{history}");
    history[0]["bytes"].as_u64().unwrap()
}

/// Bytes of before-images.
fn saved(store: &Path) -> u64 {
    json(store, &["list", "--json"])["volumes"][0]["saved"].as_u64().unwrap()
}

/// Both sides hold the same.
#[track_caller]
fn are_equal(pair: &Pair) {
    let report = json(&pair.a(), &["verify", "v", &pair.there(), "--json"]);
    assert_eq!(report["equal"], true, "{report}");
}

/// What is shipped of so many blocks: them, and little else.
#[track_caller]
fn is_about(bytes: u64, blocks: u64) {
    let data = blocks * BLOCK;
    assert!((data..data + data / 50 + 8192).contains(&bytes), "{bytes} bytes for {blocks} blocks");
}

#[test]
fn what_every_receiver_has_costs_no_before_images() {
    let pair = Pair::new("64M");
    let (a, _b) = (Server::start(&pair.a(), &[]), Server::start(&pair.b(), &["--create", "other:1M"]));
    let mut writer = client(&pair.a());
    fill(&mut writer, 0..2000, 1);
    ok(&pair.a(), &["replicate", "v", &pair.there(), "--timeout", "1h"]);
    ok(&pair.a(), &["cut", "v", "--wait"]);
    fill(&mut writer, 0..2000, 2);
    writer.flush().unwrap();
    assert_eq!(saved(&pair.a()), 0, "nothing has to be kept of what the receiver has");
    is_about(ship(&pair.a()), 2000);
    // Each block once, however often it was written.
    for byte in 3..6 {
        fill(&mut writer, (0..1000).step_by(10), byte);
    }
    is_about(ship(&pair.a()), 100);
    assert_eq!(saved(&pair.a()), 0);
    // No bookmark is shown.
    let list = json(&pair.a(), &["list", "--json"]);
    assert_eq!(list["volumes"][0]["snapshots"].as_array().unwrap().len(), 0, "{list}");
    fill(&mut writer, 500..510, 9);
    writer.trim(1500 * BLOCK, u32::try_from(20 * BLOCK).unwrap()).unwrap();
    are_equal(&pair);
    // What a secondary has is not the business of who ends a comparison there.
    let (far, comparison) = (Access::open(&pair.b()).unwrap(), Uuid::new_v4());
    far.keep_readable("v", comparison).unwrap();
    far.end_digests("v", comparison).unwrap();
    // Nothing stays behind a comparison, and one without a session that works says why.
    fill(&mut writer, 0..2000, 8);
    assert_eq!(saved(&pair.a()), 0);
    is_about(ship(&pair.a()), 2000);
    ok(&pair.a(), &["pause", "v"]);
    let why = fails(3, &pair.a(), &["verify", "v", &pair.there()]);
    assert!(why.contains("is paused"), "{why}");
    ok(&pair.a(), &["resume", "v"]);
    // A close in good order forgets nothing and adds nothing.
    fill(&mut writer, 700..712, 10);
    writer.disconnect().unwrap();
    a.stop();
    let _a = Server::start(&pair.a(), &[]);
    is_about(ship(&pair.a()), 12);
    are_equal(&pair);
}

/// Who begins with a state from before the newest bookmark is not left there.
#[test]
fn a_receiver_behind_a_bookmark_is_brought_along() {
    let pair = Pair::new("16M");
    let (_a, _b) = (Server::start(&pair.a(), &[]), Server::start(&pair.b(), &["--create", "other:1M"]));
    let mut writer = client(&pair.a());
    fill(&mut writer, 0..500, 1);
    ok(&pair.a(), &["snapshot", "v@s"]);
    let far = pair.dir.path().join("c");
    let there = far.join("v").to_str().unwrap().to_owned();
    ok(&far, &["init"]);
    ok(&pair.a(), &["copy", "v@s", &there]);
    fill(&mut writer, 100..200, 2);
    ok(&pair.a(), &["replicate", "v", &pair.there(), "--timeout", "1h"]);
    ok(&pair.a(), &["cut", "v", "--wait"]);
    // Nothing has changed since that bookmark.
    let _c = Server::start(&far, &["--create", "other:1M"]);
    ok(&pair.a(), &["replicate", "v", &there, "--timeout", "1h"]);
    ok(&pair.a(), &["cut", "v", "--wait"]);
    let mut reader = client(&far);
    assert_eq!(reader.read(150 * BLOCK, 4096).unwrap(), [2; 4096]);
    let report = json(&pair.a(), &["verify", "v", &there, "--json"]);
    assert_eq!(report["equal"], true, "{report}");
}

/// After the death of the process what was being written is shipped, whole regions of it, and
/// not the volume.
#[test]
fn a_sender_that_dies_knows_what_it_has_to_ship() {
    let pair = Pair::new("64M");
    let (a, _b) = (Server::start(&pair.a(), &[]), Server::start(&pair.b(), &["--create", "other:1M"]));
    let mut writer = client(&pair.a());
    fill(&mut writer, 0..8192, 1);
    ok(&pair.a(), &["replicate", "v", &pair.there(), "--timeout", "1h"]);
    ok(&pair.a(), &["cut", "v", "--wait"]);
    writer.disconnect().unwrap();
    a.stop();
    let a = Server::start(&pair.a(), &[]);
    let mut writer = client(&pair.a());
    fill(&mut writer, 5000..5010, 2);
    a.kill();
    let a = Server::start(&pair.a(), &[]);
    let shipped = ship(&pair.a());
    // A region of 4 MiB, in which all is in use.
    assert!((10 * BLOCK..9 << 20).contains(&shipped), "{shipped} bytes");
    are_equal(&pair);
    drop(a);
}

#[test]
fn a_sender_under_load_dies_again_and_again() {
    let pair = Pair::new("64M");
    let (mut a, _b) = (Server::start(&pair.a(), &[]), Server::start(&pair.b(), &["--create", "other:1M"]));
    let stamper = Stamper::start(&pair.a(), 2000, Duration::from_micros(100));
    ok(&pair.a(), &["replicate", "v", &pair.there(), "--timeout", "50ms"]);
    ok(&pair.a(), &["cut", "v", "--wait"]);
    for _ in 0..4 {
        stamper.more(1500);
        a.kill();
        a = Server::start(&pair.a(), &[]);
        ok(&pair.a(), &["cut", "v", "--wait"]);
        state(&pair.b(), "v", 2000);
    }
    let written = stamper.end();
    ok(&pair.a(), &["cut", "v", "--wait"]);
    assert_eq!(state(&pair.b(), "v", 2000), written);
    are_equal(&pair);
    a.stop();
    ok(&pair.a(), &["check"]);
}
