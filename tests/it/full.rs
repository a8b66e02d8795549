//! Full disks, with the real daemon on a real file system: what writers meet by the
//! policy of their volume, and that snapshots can be deleted then.

use crate::support::mount::{Kind, Mounted, where_mounts_are_private};
use crate::support::server::Server;
use crate::support::{fails, json, ok, wait_for};
use snapvol::nbd::client::{Client, Options};
use snapvol::nbd::proto::cmd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;
/// Bytes of one write.
const STEP: u64 = 256 << 10;
/// What a volume holds, in such steps.
const STEPS: u64 = 160;
const SOON: Duration = Duration::from_secs(30);

fn connect(store: &Path, export: &str) -> Client {
    let options = Options { structured: true, ..Options::default() };
    Client::unix(&store.join("nbd.sock"), export, &options).unwrap()
}

fn content(step: u64, round: u8) -> Vec<u8> {
    let mut data = vec![round; usize::try_from(STEP).unwrap()];
    data[..8].copy_from_slice(&step.to_le_bytes());
    data
}

/// Writes the whole volume once, in order; counts the steps that were acknowledged.
struct Writer {
    done: Arc<AtomicU64>,
    thread: JoinHandle<u32>,
}

impl Writer {
    fn start(store: &Path, volume: &str, round: u8) -> Self {
        let mut client = connect(store, volume);
        let done = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&done);
        let thread = std::thread::spawn(move || {
            for step in 0..STEPS {
                let len = u32::try_from(STEP).unwrap();
                let data = content(step, round);
                let sent = client.send(cmd::WRITE, 0, step * STEP, len, &data);
                match sent.and_then(|_| client.receive()) {
                    Ok(reply) if reply.errno == 0 => counter.fetch_add(1, Ordering::SeqCst),
                    Ok(reply) => return reply.errno,
                    Err(_) => return u32::MAX,
                };
            }
            client.flush().unwrap();
            0
        });
        Self { done, thread }
    }

    fn done(&self) -> u64 {
        self.done.load(Ordering::SeqCst)
    }

    /// Waits for its end; the error that a write got, or 0.
    #[track_caller]
    fn end(self) -> u32 {
        wait_for("a writer to end", SOON * 2, || self.thread.is_finished());
        self.thread.join().unwrap()
    }
}

#[track_caller]
fn write_all(store: &Path, volume: &str, round: u8) {
    assert_eq!(Writer::start(store, volume, round).end(), 0);
}

/// The rounds that the steps of an export hold; each must be whole.
#[track_caller]
fn rounds(store: &Path, export: &str) -> Vec<u8> {
    let mut client = connect(store, export);
    let read = |step| {
        let data = client.read(step * STEP, u32::try_from(STEP).unwrap()).unwrap();
        let round = data[100];
        assert!(round == 0 || data == content(step, round), "{export}: step {step} is no whole write");
        round
    };
    let all = (0..STEPS).map(read).collect();
    client.disconnect().unwrap();
    all
}

/// What a volume holds after `done` steps of a round were acknowledged and the next one
/// perhaps not.
#[track_caller]
fn check_rounds(store: &Path, volume: &str, before: u8, round: u8, done: u64) {
    for (step, found) in (0..).zip(rounds_loose(store, volume)) {
        match step {
            _ if step < done => assert_eq!(found, Some(round), "{volume}: step {step}"),
            _ if step == done => {}
            _ => assert_eq!(found, Some(before), "{volume}: step {step}"),
        }
    }
}

/// As [`rounds`], with nothing for a step that is half written.
fn rounds_loose(store: &Path, export: &str) -> Vec<Option<u8>> {
    let mut client = connect(store, export);
    let read = |step| {
        let data = client.read(step * STEP, u32::try_from(STEP).unwrap()).unwrap();
        (data == content(step, data[100])).then_some(data[100])
    };
    let all = (0..STEPS).map(read).collect();
    client.disconnect().unwrap();
    all
}

fn state(store: &Path, volume: &str) -> String {
    let list = json(store, &["list", volume, "--json"]);
    list["volumes"][0]["state"].as_str().unwrap().to_owned()
}

fn snapshot_names(store: &Path, volume: &str) -> Vec<String> {
    let list = json(store, &["list", volume, "--json"]);
    let snapshots = list["volumes"][0]["snapshots"].as_array().unwrap();
    snapshots.iter().map(|s| s["name"].as_str().unwrap().to_owned()).collect()
}

#[track_caller]
fn wait_for_state(store: &Path, volume: &str, word: &str) {
    wait_for(&format!("{volume} to be {word}"), SOON, || state(store, volume) == word);
}

/// Waits until both volumes are frozen for good: what is settled leaves a little space for
/// a while.
#[track_caller]
fn wait_for_standstill(store: &Path, writers: &[Writer; 2]) {
    let done = || writers.iter().map(Writer::done).collect::<Vec<u64>>();
    wait_for("the writers to stand still", SOON, || {
        let before = done();
        std::thread::sleep(Duration::from_secs(1));
        before == done() && ["a", "b"].iter().all(|volume| state(store, volume) == "frozen")
    });
}

/// Two volumes with a snapshot each, all of it written once, and a server.
fn two_volumes(disk: &Mounted, policy: &str) -> Server {
    let store = disk.dir().join("s");
    ok(&store, &["init"]);
    for volume in ["a", "b"] {
        ok(&store, &["create", volume, "--size", "40M", "--on-full", policy]);
    }
    let server = Server::start(&store, &[]);
    for volume in ["a", "b"] {
        write_all(&store, volume, 1);
        ok(&store, &["snapshot", &format!("{volume}@one")]);
    }
    server
}

fn frozen(kind: Kind) {
    let disk = Mounted::new(kind, 320);
    let server = two_volumes(&disk, "freeze");
    let store = server.store().to_owned();
    let filler = disk.fill(10 * MIB);
    let writers = ["a", "b"].map(|volume| Writer::start(&store, volume, 2));
    wait_for_standstill(&store, &writers);
    let status = json(&store, &["status", "--json"]);
    assert_eq!(status["space"]["level"], "critical", "{status}");
    for volume in status["volumes"].as_array().unwrap() {
        assert_eq!((&volume["state"], &volume["on_full"]), (&"frozen".into(), &"freeze".into()), "{status}");
        assert!(volume["waiting_writes"].as_u64().unwrap() > 0, "{status}");
        assert!(volume["reserved"].as_u64().unwrap() > 0, "{status}");
    }
    assert!(ok(&store, &["status"]).contains("volume a: frozen, 1 writes wait for space"));
    // Reads and flushes go on, on another connection.
    let mut other = connect(&store, "a");
    other.read(0, 4096).unwrap();
    other.flush().unwrap();
    // A client that goes takes its waiting writes with it.
    for step in STEPS - 40..STEPS {
        other.send(cmd::WRITE, 0, step * STEP, u32::try_from(STEP).unwrap(), &content(step, 9)).unwrap();
    }
    wait_for("its writes to wait", SOON, || waiting(&store, "a") > 2);
    drop(other);
    wait_for("its writes to be gone", SOON, || waiting(&store, "a") <= 1);
    assert_eq!(rounds_loose(&store, "a@one"), vec![Some(1); 160]);
    // A deleted snapshot lets the writers of both volumes go on.
    let before: Vec<u64> = writers.iter().map(Writer::done).collect();
    assert!(before.iter().all(|done| *done < STEPS), "the disk is too large for this test: {before:?}");
    ok(&store, &["delete", "a@one"]);
    wait_for("the writer of a to go on", SOON, || writers[0].done() == STEPS);
    // And so does space that comes from outside.
    drop(filler);
    for writer in writers {
        assert_eq!(writer.end(), 0);
    }
    for volume in ["a", "b"] {
        wait_for_state(&store, volume, "ok");
        assert_eq!(rounds(&store, volume), [2; 160], "{volume}");
    }
    assert_eq!(rounds(&store, "b@one"), [1; 160]);
    server.stop();
    ok(&store, &["check"]);
    ok(&store, &["scrub"]);
}

fn volume_status(store: &Path, volume: &str) -> serde_json::Value {
    let status = json(store, &["status", "--json"]);
    status["volumes"].as_array().unwrap().iter().find(|v| v["name"] == volume).unwrap().clone()
}

fn waiting(store: &Path, volume: &str) -> u64 {
    volume_status(store, volume)["waiting_writes"].as_u64().unwrap()
}

#[test]
fn frozen_writers_wait_and_go_on() {
    where_mounts_are_private("full::frozen_writers_wait_and_go_on", || {
        frozen(Kind::Tmpfs);
        frozen(Kind::Ext4);
    });
}

#[test]
fn a_readonly_volume_refuses_until_there_is_space() {
    where_mounts_are_private("full::a_readonly_volume_refuses_until_there_is_space", || {
        for kind in [Kind::Tmpfs, Kind::Ext4] {
            let disk = Mounted::new(kind, 320);
            let server = two_volumes(&disk, "readonly");
            let store = server.store().to_owned();
            let filler = disk.fill(10 * MIB);
            let writer = Writer::start(&store, "a", 2);
            let done = Arc::clone(&writer.done);
            assert_eq!(writer.end(), 28, "no space");
            assert_eq!(state(&store, "a"), "read-only (disk full)");
            let mut client = connect(&store, "a");
            client.flush().unwrap();
            check_rounds(&store, "a", 1, 2, done.load(Ordering::SeqCst));
            assert_eq!(rounds(&store, "a@one"), [1; 160]);
            // The policy can be changed while the disk is full.
            ok(&store, &["set", "a", "on-full=freeze"]);
            ok(&store, &["set", "a", "on-full=readonly"]);
            drop(filler);
            write_all(&store, "a", 3);
            assert_eq!(state(&store, "a"), "ok");
            assert_eq!(rounds(&store, "a"), [3; 160]);
            drop(client);
            server.stop();
            ok(&store, &["check"]);
            ok(&store, &["scrub"]);
        }
    });
}

#[test]
fn the_oldest_snapshots_make_room() {
    where_mounts_are_private("full::the_oldest_snapshots_make_room", || {
        for kind in [Kind::Tmpfs, Kind::Ext4] {
            let disk = Mounted::new(kind, 420);
            let server = two_volumes(&disk, "drop-oldest");
            let store = server.store().to_owned();
            ok(&store, &["hold", "a@one", "tape"]);
            write_all(&store, "a", 2);
            ok(&store, &["snapshot", "a@two"]);
            let filler = disk.fill(30 * MIB);
            for round in 3..8 {
                write_all(&store, "a", round);
                ok(&store, &["snapshot", &format!("a@r{round}")]);
            }
            let there = snapshot_names(&store, "a");
            assert!(there.contains(&"one".to_owned()), "a held snapshot was dropped: {there:?}");
            assert!(!there.contains(&"two".to_owned()), "nothing was dropped: {there:?}");
            assert_eq!(there.last().map(String::as_str), Some("r7"));
            let status = volume_status(&store, "a");
            assert!(status["dropped_snapshots"].as_u64().unwrap() > 0, "{status}");
            assert_eq!(rounds(&store, "a"), [7; 160]);
            assert_eq!(rounds(&store, "a@one"), [1; 160]);
            assert_eq!(rounds(&store, "b@one"), [1; 160]);
            drop(filler);
            server.stop();
            ok(&store, &["check"]);
            ok(&store, &["scrub"]);
        }
    });
}

/// Killed while writers wait, opened again while the disk is full.
#[test]
fn a_kill_on_a_full_disk_loses_nothing() {
    where_mounts_are_private("full::a_kill_on_a_full_disk_loses_nothing", || {
        for kind in [Kind::Tmpfs, Kind::Ext4] {
            let disk = Mounted::new(kind, 320);
            let server = two_volumes(&disk, "freeze");
            let store = server.store().to_owned();
            let filler = disk.fill(10 * MIB);
            let writers = ["a", "b"].map(|volume| Writer::start(&store, volume, 2));
            for volume in ["a", "b"] {
                wait_for_state(&store, volume, "frozen");
            }
            server.kill();
            let done = writers.map(|writer| {
                let counter = Arc::clone(&writer.done);
                writer.end();
                counter.load(Ordering::SeqCst)
            });
            let rest = disk.fill(0);
            let server = Server::start(&store, &[]);
            for (volume, done) in ["a", "b"].into_iter().zip(done) {
                assert_eq!(state(&store, volume), "ok", "{volume} does not open on a full disk");
                check_rounds(&store, volume, 1, 2, done);
                assert_eq!(rounds(&store, &format!("{volume}@one")), [1; 160]);
            }
            ok(&store, &["delete", "b@one", "a@one"]);
            server.stop();
            drop((filler, rest));
            let server = Server::start(&store, &[]);
            write_all(&store, "a", 4);
            for (volume, done) in ["b"].into_iter().zip(&done[1..]) {
                check_rounds(&store, volume, 1, 2, *done);
            }
            server.stop();
            ok(&store, &["check"]);
            ok(&store, &["scrub"]);
        }
    });
}

/// Several deletions at one time want a list of them first, and even that has its space.
#[test]
fn snapshots_of_several_volumes_are_deleted_on_a_full_disk() {
    where_mounts_are_private("full::snapshots_of_several_volumes_are_deleted_on_a_full_disk", || {
        for kind in [Kind::Tmpfs, Kind::Ext4] {
            let disk = Mounted::new(kind, 320);
            let server = two_volumes(&disk, "readonly");
            let store = server.store().to_owned();
            let _filler = disk.fill(0);
            assert!(disk.free() < 4096, "{} bytes are free", disk.free());
            ok(&store, &["delete", "a@one", "b@one"]);
            for volume in ["a", "b"] {
                assert_eq!(snapshot_names(&store, volume), Vec::<String>::new());
                assert_eq!(rounds(&store, volume), [1; 160]);
            }
            server.stop();
            ok(&store, &["check"]);
        }
    });
}

/// The daemon ends in good order while writers wait, and soon.
#[test]
fn a_frozen_store_stops_when_it_is_asked_to() {
    where_mounts_are_private("full::a_frozen_store_stops_when_it_is_asked_to", || {
        let disk = Mounted::new(Kind::Tmpfs, 320);
        let server = two_volumes(&disk, "freeze");
        let store = server.store().to_owned();
        let _filler = disk.fill(10 * MIB);
        let writers = ["a", "b"].map(|volume| Writer::start(&store, volume, 2));
        for volume in ["a", "b"] {
            wait_for_state(&store, volume, "frozen");
        }
        let asked = Instant::now();
        server.stop();
        assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
        let done = writers.map(|writer| {
            let counter = Arc::clone(&writer.done);
            assert_ne!(writer.end(), 0);
            counter.load(Ordering::SeqCst)
        });
        ok(&store, &["check"]);
        let server = Server::start(&store, &[]);
        for (volume, done) in ["a", "b"].into_iter().zip(done) {
            check_rounds(&store, volume, 1, 2, done);
        }
        server.stop();
    });
}

/// Commands that need space say that there is none, and leave nothing behind.
#[test]
fn commands_on_a_full_disk_say_why_they_fail() {
    where_mounts_are_private("full::commands_on_a_full_disk_say_why_they_fail", || {
        let disk = Mounted::new(Kind::Tmpfs, 64);
        let store = disk.dir().join("s");
        ok(&store, &["init"]);
        ok(&store, &["create", "a", "--size", "16M"]);
        let _filler = disk.fill(0);
        let refused = fails(1, &store, &["create", "b", "--size", "16M"]);
        assert!(refused.contains("No space left"), "{refused}");
        let refused = fails(1, &store, &["snapshot", "a@s"]);
        assert!(refused.contains("No space left"), "{refused}");
        assert_eq!(snapshot_names(&store, "a"), Vec::<String>::new());
        ok(&store, &["list"]);
        ok(&store, &["check"]);
        drop(_filler);
        ok(&store, &["snapshot", "a@s"]);
        ok(&store, &["create", "b", "--size", "16M"]);
    });
}
