//! `verify` with real processes, over a path and over ssh: copies that are equal, copies that
//! were altered behind the store's back, and stored bytes whose checksum is wrong.

use std::fs;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::support::pair::Pair;
use crate::support::server::Server;
use crate::support::sshd::{Sshd, have_sshd};
use crate::support::{SNAPVOL, describe, fails, json, ok, snapvol, wait_for};
use snapvol::control::Access;
use snapvol::delta::digest::{Digest, Grain, Question};
use snapvol::nbd::client::{Client, Options};
use uuid::Uuid;

const BLOCK: u64 = 4096;
const MIB: u64 = 1 << 20;

/// A has the volume `v`, and B a copy of its snapshots `s` and `t`. In `t`, the blocks 4 to 8 of
/// `s` were written again, and one beyond was trimmed.
fn copied() -> Pair {
    let pair = Pair::without_a();
    let a = Server::start(&pair.a(), &["--create", "v:4G"]);
    let mut client = client(&a);
    for at in [0, MIB, 37 * MIB, 3 << 30] {
        for block in 0..16 {
            client.write(at + block * BLOCK, &block_of(at / MIB + block + 1), false).unwrap();
        }
    }
    // In use, and zeros.
    client.write(MIB + 32 * BLOCK, &[0; 8192], false).unwrap();
    ok(&pair.a(), &["snapshot", "v@s"]);
    for block in 4..8 {
        client.write(block * BLOCK, &block_of(200 + block), false).unwrap();
    }
    client.trim(MIB, 4096).unwrap();
    client.flush().unwrap();
    ok(&pair.a(), &["snapshot", "v@t"]);
    client.write(9 * BLOCK, &block_of(250), true).unwrap();
    client.disconnect().unwrap();
    a.stop();
    ok(&pair.a(), &["copy", "v@s", &pair.there()]);
    ok(&pair.a(), &["copy", "v@t", &pair.there()]);
    pair
}

/// The report on a snapshot, which must come with that exit code.
#[track_caller]
fn verify(pair: &Pair, snapshot: &str, code: i32) -> serde_json::Value {
    let args = ["verify", snapshot, &pair.there(), "--json"];
    let output = snapvol(&pair.a()).args(args).output().unwrap();
    assert_eq!(output.status.code(), Some(code), "{}", describe(&output));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["equal"], code == 0, "{report}");
    report
}

fn client(server: &Server) -> Client {
    Client::unix(&server.socket(), "v", &Options::default()).unwrap()
}

/// A block that is like no other and begins with its number.
fn block_of(number: u64) -> Vec<u8> {
    (0..BLOCK / 8).flat_map(|at| (number + (at << 32)).to_le_bytes()).collect()
}

fn flip(file: &Path, at: u64) {
    let file = fs::OpenOptions::new().read(true).write(true).open(file).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x20], at).unwrap();
}

/// Flips a byte of the before-image with those bytes; it must be there, once.
#[track_caller]
fn flip_image(store: &Path, image: &[u8]) {
    let mut found = Vec::new();
    for entry in fs::read_dir(store.join("volumes/v/save")).unwrap() {
        let path = entry.unwrap().path();
        let bytes = fs::read(&path).unwrap();
        let places = (0..bytes.len().saturating_sub(image.len() - 1)).step_by(512);
        found.extend(places.filter(|at| bytes[*at..].starts_with(image)).map(|at| (path.clone(), at)));
    }
    let [(path, at)] = &found[..] else { panic!("the image is at {found:?}") };
    flip(path, *at as u64 + 100);
}

/// The identity of a snapshot of `v`.
fn identity(store: &Path, name: &str) -> Uuid {
    let list = json(store, &["list", "v", "--json"]);
    let all = list["volumes"][0]["snapshots"].as_array().unwrap();
    let found = all.iter().find(|snapshot| snapshot["name"] == name).unwrap();
    found["uuid"].as_str().unwrap().parse().unwrap()
}

fn range(offset: u64, length: u64) -> serde_json::Value {
    serde_json::json!({ "offset": offset, "length": length })
}

#[test]
fn copies_are_equal_served_or_not() {
    let pair = copied();
    let report = verify(&pair, "v@s", 0);
    assert_eq!((&report["size"], &report["differing_bytes"]), (&(4u64 << 30).into(), &0.into()), "{report}");
    assert_eq!(report["in_use"], 66 * BLOCK, "{report}");
    verify(&pair, "v@t", 0);
    let text = ok(&pair.a(), &["verify", "v@s", &pair.there()]);
    assert!(text.starts_with("v@s: equal; 264.0 KiB in use here"), "{text}");
    let b = Server::start(&pair.b(), &[]);
    verify(&pair, "v@t", 0);
    let a = Server::start(&pair.a(), &[]);
    verify(&pair, "v@s", 0);
    b.stop();
    verify(&pair, "v@t", 0);
    a.stop();
}

/// Tells the writer to end when it is dropped.
struct Ended<'a>(&'a AtomicBool);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Clients write all over what is compared meanwhile.
#[test]
fn a_snapshot_is_equal_while_production_changes() {
    let pair = copied();
    let a = Server::start(&pair.a(), &[]);
    let stop = AtomicBool::new(false);
    let mut client = client(&a);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut count = 0;
            while !stop.load(Ordering::SeqCst) {
                client.write(count * 7 % 16 * BLOCK, &block_of(1000 + count), count % 64 == 0).unwrap();
                client.write(MIB + count % 40 * BLOCK, &block_of(1000 + count), false).unwrap();
                count += 1;
            }
            count
        });
        // Also when one of these fails.
        let ended = Ended(&stop);
        for _ in 0..5 {
            verify(&pair, "v@s", 0);
            verify(&pair, "v@t", 0);
        }
        drop(ended);
        assert!(writer.join().unwrap() > 100);
    });
}

#[test]
fn altered_bytes_are_found_and_named() {
    let pair = copied();
    // The clone volume has no checksums: what is altered there is a difference.
    let there = pair.b().join("volumes/v/clone");
    flip(&there, 37 * MIB + 3 * BLOCK + 7);
    flip(&there, 37 * MIB + 4 * BLOCK);
    flip(&there, (3 << 30) + 4095);
    for served in [false, true] {
        let _b = served.then(|| Server::start(&pair.b(), &[]));
        for snapshot in ["v@s", "v@t"] {
            let report = verify(&pair, snapshot, 4);
            let expected = [range(37 * MIB + 3 * BLOCK, 2 * BLOCK), range(3 << 30, BLOCK)];
            assert_eq!(report["differs"], serde_json::json!(expected), "{report}");
            assert_eq!(report["damaged"], serde_json::json!([]), "{report}");
            assert_eq!(report["differing_bytes"], 3 * BLOCK, "{report}");
        }
    }
    let text = fails(4, &pair.a(), &["verify", "v@s", &pair.there()]);
    assert!(text.contains("12.0 KiB differ") && text.contains("hint: "), "{text}");
    // What is altered back on this side too is equal again.
    let here = pair.a().join("volumes/v/clone");
    flip(&here, 37 * MIB + 3 * BLOCK + 7);
    flip(&here, 37 * MIB + 4 * BLOCK);
    assert_eq!(verify(&pair, "v@s", 4)["differs"], serde_json::json!([range(3 << 30, BLOCK)]));
    flip(&here, (3 << 30) + 4095);
    verify(&pair, "v@s", 0);
}

#[test]
fn damage_is_told_apart_from_a_difference() {
    let pair = copied();
    // `s` has the images of what `t` overwrote; there by the copy, here by the client.
    flip_image(&pair.b(), &block_of(5 + 1));
    let report = verify(&pair, "v@s", 4);
    let there = serde_json::json!([{"side": "there", "offset": 5 * BLOCK, "length": BLOCK}]);
    assert_eq!((&report["damaged"], &report["differs"]), (&there, &serde_json::json!([])), "{report}");
    verify(&pair, "v@t", 0);
    // One beside it differs, and one here is damaged.
    flip_image(&pair.a(), &block_of(7 + 1));
    flip(&pair.b().join("volumes/v/clone"), 3 * BLOCK);
    let report = verify(&pair, "v@s", 4);
    assert_eq!(report["differs"], serde_json::json!([range(3 * BLOCK, BLOCK)]), "{report}");
    let both = serde_json::json!([
        {"side": "here", "offset": 7 * BLOCK, "length": BLOCK},
        {"side": "there", "offset": 5 * BLOCK, "length": BLOCK},
    ]);
    assert_eq!(report["damaged"], both, "{report}");
    // The same with the daemons reading.
    let (_a, _b) = (Server::start(&pair.a(), &[]), Server::start(&pair.b(), &[]));
    assert_eq!(verify(&pair, "v@s", 4), report);
    let text = ok(&pair.a(), &["verify", "--help"]);
    assert!(text.contains("3: the snapshot is not there"), "{text}");
}

/// `verify --repair` with that exit code: the report.
#[track_caller]
fn repair(pair: &Pair, snapshot: &str, code: i32) -> serde_json::Value {
    let args = ["verify", snapshot, &pair.there(), "--repair", "--json"];
    let output = snapvol(&pair.a()).args(args).output().unwrap();
    assert_eq!(output.status.code(), Some(code), "{}", describe(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn damage_is_repaired_from_the_other_side() {
    for served in [false, true] {
        let pair = copied();
        flip_image(&pair.b(), &block_of(5 + 1));
        flip_image(&pair.a(), &block_of(7 + 1));
        let servers = served.then(|| [Server::start(&pair.a(), &[]), Server::start(&pair.b(), &[])]);
        let text = fails(4, &pair.a(), &["verify", "v@s", &pair.there()]);
        assert!(text.contains("--repair"), "{text}");
        let report = repair(&pair, "v@s", 0);
        assert_eq!(
            (&report["equal"], &report["repaired_bytes"]),
            (&true.into(), &(2 * BLOCK).into()),
            "{report}"
        );
        assert_eq!(report["damaged"], serde_json::json!([]), "{report}");
        verify(&pair, "v@s", 0);
        assert_eq!(repair(&pair, "v@s", 0)["repaired_bytes"], 0);
        drop(servers);
        ok(&pair.a(), &["scrub"]);
        ok(&pair.b(), &["scrub"]);
    }
}

/// Nothing but the bytes that were saved is ever taken for a repair.
#[test]
fn what_nothing_proves_is_not_repaired() {
    let pair = copied();
    let image = block_of(9 + 1);
    // Damaged here, and altered there, where no checksum tells; damaged on both sides.
    flip_image(&pair.a(), &image);
    let there = pair.b().join("volumes/v/clone");
    flip(&there, 9 * BLOCK + 40);
    for store in [pair.a(), pair.b()] {
        flip_image(&store, &block_of(6 + 1));
    }
    let report = repair(&pair, "v@s", 4);
    let both = serde_json::json!([
        {"side": "here", "offset": 6 * BLOCK, "length": BLOCK},
        {"side": "here", "offset": 9 * BLOCK, "length": BLOCK},
        {"side": "there", "offset": 6 * BLOCK, "length": BLOCK},
    ]);
    assert_eq!((&report["damaged"], &report["repaired_bytes"]), (&both, &0.into()), "{report}");
    // It is as it was altered: this alters it back.
    flip(&there, 9 * BLOCK + 40);
    let report = repair(&pair, "v@s", 4);
    assert_eq!(
        (&report["damaged_bytes"], &report["repaired_bytes"]),
        (&(2 * BLOCK).into(), &BLOCK.into()),
        "{report}"
    );
    verify(&pair, "v@t", 0);
}

#[test]
fn what_is_not_there_is_no_difference() {
    let pair = copied();
    let there = pair.there();
    fails(5, &pair.a(), &["verify", "v@nobody", &there]);
    fails(5, &pair.a(), &["verify", "nobody@s", &there]);
    fails(5, &pair.a(), &["verify", "v@s", "/nowhere/at/all/v"]);
    let text = fails(3, &pair.a(), &["verify", "v@s", pair.b().join("w").to_str().unwrap()]);
    assert!(text.contains("snapvol copy"), "{text}");
    // One that is not there, and one of the same name that is another one.
    ok(&pair.a(), &["snapshot", "v@u"]);
    fails(3, &pair.a(), &["verify", "v@u", &there]);
    ok(&pair.b(), &["promote", "v"]);
    ok(&pair.b(), &["snapshot", "v@u"]);
    fails(3, &pair.a(), &["verify", "v@u", &there]);
    verify(&pair, "v@t", 0);
}

/// Between two questions the snapshot is open, by whoever asks and through the daemon too.
#[test]
fn what_is_compared_stays() {
    let pair = copied();
    let snapshot = identity(&pair.a(), "s");
    let a = Server::start(&pair.a(), &[]);
    let access = Access::open(&pair.a()).unwrap();
    let ask = |comparison, from| {
        let (volume, comparison) = ("v".to_owned(), Uuid::from_u128(comparison));
        access.digests(&Question { comparison, volume, snapshot, from, to: u64::MAX, by: Grain::Chunk })
    };
    let answer = ask(1, 0).unwrap();
    assert_eq!((answer.name.as_str(), answer.size, answer.reached), ("s", 4 << 30, 4 << 30));
    assert_eq!(answer.spans.iter().map(|span| span.in_use).sum::<u64>(), 66 * BLOCK);
    assert!(answer.spans.iter().all(|span| span.digest.is_some_and(|d| d != Digest::of_zeros())));
    assert_eq!(ask(1, 4 << 20).unwrap().spans[..], answer.spans[1..]);
    assert!(ask(1, 4096).is_err());
    ask(2, 0).unwrap();
    for comparison in [1, 2] {
        fails(3, &pair.a(), &["delete", "v@s"]);
        access.end_digests("v", Uuid::from_u128(comparison)).unwrap();
    }
    ok(&pair.a(), &["delete", "v@s"]);
    assert!(ask(1, 0).is_err());
    // A store is closed in good order while something is compared.
    let (volume, snapshot, comparison) = ("v".to_owned(), identity(&pair.a(), "t"), Uuid::from_u128(3));
    let question = Question { comparison, volume, snapshot, from: 0, to: 1, by: Grain::Block };
    access.digests(&question).unwrap();
    fails(3, &pair.a(), &["delete", "v@t"]);
    a.stop();
    ok(&pair.a(), &["check"]);
    ok(&pair.a(), &["delete", "v@t"]);
}

/// What comes back is counted on its way.
#[test]
fn over_ssh_digests_travel_and_nothing_else() {
    if !have_sshd() {
        return;
    }
    let pair = copied();
    {
        let a = Server::start(&pair.a(), &[]);
        let mut client = client(&a);
        let mut bytes = vec![0; usize::try_from(MIB).unwrap()];
        fastrand::Rng::with_seed(7).fill(&mut bytes);
        for at in 100..164 {
            bytes[0] = u8::try_from(at).unwrap();
            client.write(at * MIB, &bytes, false).unwrap();
        }
        client.disconnect().unwrap();
        ok(&pair.a(), &["snapshot", "v@large"]);
        a.stop();
    }
    ok(&pair.a(), &["copy", "v@large", &pair.there()]);
    let sshd = Sshd::start();
    let (program, heard) = (pair.dir.path().join("far"), pair.dir.path().join("heard"));
    fs::write(&program, format!("#!/bin/sh\n{SNAPVOL} \"$@\" | tee {}\n", heard.display())).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let verify = |code: i32| {
        let mut command = snapvol(&pair.a());
        command.args(["verify", "v@large", &sshd.url(&pair.b(), "v"), "--json"]);
        command.arg("--remote-command").arg(&program).env("SNAPVOL_SSH", sshd.ssh());
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{}", describe(&output));
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        (report, fs::metadata(&heard).unwrap().len())
    };
    let (report, bytes) = verify(0);
    assert!(report["in_use"].as_u64().unwrap() > 64 * MIB, "{report}");
    assert!((1000..8192).contains(&bytes), "{bytes} bytes came back");
    // One chunk differs: the digests of its blocks come as well.
    flip(&pair.b().join("volumes/v/clone"), 130 * MIB + 5 * BLOCK);
    let (report, bytes) = verify(4);
    assert_eq!(report["differs"], serde_json::json!([range(130 * MIB + 5 * BLOCK, BLOCK)]));
    assert!(bytes < 200_000, "{bytes} bytes came back");
    // The store there is gone: the far program says so.
    let nowhere = sshd.url(&pair.dir.path().join("nowhere"), "v");
    let mut command = snapvol(&pair.a());
    command.args(["verify", "v@large", &nowhere, "--remote-command", SNAPVOL]).env("SNAPVOL_SSH", sshd.ssh());
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(5), "{}", describe(&output));
}

/// Without a name it is the youngest state that both sides have, whatever sets come and go.
#[test]
fn a_replica_is_verified_while_it_follows() {
    let pair = copied();
    let there = pair.there();
    // No session yet: it is the youngest snapshot that both have.
    ok(&pair.a(), &["snapshot", "v@here"]);
    assert_eq!(verify(&pair, "v", 0)["snapshot"], "t");
    let (a, b) = (Server::start(&pair.a(), &[]), Server::start(&pair.b(), &[]));
    ok(&pair.a(), &["replicate", "v", &there, "--timeout", "50ms"]);
    let stop = AtomicBool::new(false);
    let mut client = client(&a);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut count = 0;
            while !stop.load(Ordering::SeqCst) {
                client.write(count * 7 % 512 * BLOCK, &block_of(1000 + count), false).unwrap();
                count += 1;
            }
        });
        let ended = Ended(&stop);
        let mut seen = std::collections::BTreeSet::new();
        wait_for("three sets that were verified", Duration::from_secs(90), || {
            let report = verify(&pair, "v", 0);
            let name = report["snapshot"].as_str().unwrap().to_owned();
            if name.starts_with("_set-") {
                seen.insert(name);
            }
            seen.len() >= 3
        });
        drop(ended);
        writer.join().unwrap();
    });
    client.disconnect().unwrap();
    ok(&pair.a(), &["cut", "v", "--wait"]);
    flip(&pair.b().join("volumes/v/clone"), (3 << 30) + 5 * BLOCK);
    let report = verify(&pair, "v", 4);
    assert_eq!(report["differs"], serde_json::json!([range((3 << 30) + 5 * BLOCK, BLOCK)]), "{report}");
    // Nothing stays open behind a comparison.
    ok(&pair.a(), &["delete", "v@here"]);
    ok(&pair.a(), &["delete", "v@s"]);
    a.stop();
    b.stop();
}
