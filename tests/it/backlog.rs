//! What happens to writers at the bound of a session's backlog: they wait, or are refused, until
//! the other side has caught up.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};

use crate::support::pair::Pair;
use crate::support::server::Server;
use crate::support::{json, ok, wait_for};
use snapvol::nbd::client::{Client, Options};

const MIB: u64 = 1 << 20;
const BOUND: u64 = 4 * MIB;

fn client(store: &Path) -> Client {
    Client::unix(&store.join("nbd.sock"), "v", &Options::default()).unwrap()
}

fn state(store: &Path) -> String {
    let list = json(store, &["list", "v", "--json"]);
    list["volumes"][0]["state"].as_str().unwrap().to_owned()
}

/// A volume that is followed, with a bound and a policy; the far side takes nothing any more
/// until what is returned last is dropped.
fn behind(policy: &str) -> (Pair, Server, File) {
    let pair = Pair::new("128M");
    let a = Server::start(&pair.a(), &[]);
    let b = Server::start(&pair.b(), &["--create", "other:1M"]);
    client(&pair.a()).write(0, &[1; 4096], true).unwrap();
    // After a restart the bound alone is what writers wait for.
    let bound = ["--timeout", "100ms", "--backlog", "4M", "--on-backlog", policy, "--start", "alone"];
    ok(&pair.a(), &[&["replicate", "v", pair.there().as_str()], &bound[..]].concat());
    ok(&pair.a(), &["cut", "v", "--wait"]);
    let held = File::open(pair.b().join("lock")).unwrap();
    b.kill();
    flock(&held, FlockOperation::LockExclusive).unwrap();
    (pair, a, held)
}

/// Writes block after block in a thread of its own, and counts them.
struct Writer {
    written: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<bool>,
}

impl Writer {
    fn start(store: &Path) -> Self {
        let (written, stop) = (Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default());
        let (count, flag, mut client) = (written.clone(), stop.clone(), client(store));
        let thread = std::thread::spawn(move || {
            for block in 0.. {
                if flag.load(Ordering::SeqCst) {
                    break;
                }
                if client.write(MIB + block % 16_384 * 4096, &[2; 4096], false).is_err() {
                    return false;
                }
                count.store(block + 1, Ordering::SeqCst);
                std::thread::sleep(Duration::from_micros(500));
            }
            true
        });
        Self { written, stop, thread }
    }

    fn bytes(&self) -> u64 {
        self.written.load(Ordering::SeqCst) * 4096
    }

    /// Waits until it writes no more, of itself.
    #[track_caller]
    fn stands(&self) {
        let (mut last, mut since) = (0, Instant::now());
        wait_for("writers stand", Duration::from_secs(60), || {
            if self.bytes() != last {
                (last, since) = (self.bytes(), Instant::now());
            }
            since.elapsed() > Duration::from_secs(2)
        });
    }

    /// Whether all was written.
    fn end(self) -> bool {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().unwrap()
    }
}

#[test]
fn writers_wait_until_the_other_side_has_caught_up() {
    let (pair, a, held) = behind("freeze");
    let writer = Writer::start(&pair.a());
    writer.stands();
    let stood = writer.bytes();
    // The bound is looked at once a second.
    assert!((BOUND..BOUND + 16 * MIB).contains(&stood), "{stood}");
    assert_eq!(state(&pair.a()), "frozen (backlog)");
    // Whoever reads or flushes is not held up, nor are snapshots; and who leaves does leave.
    let mut other = client(&pair.a());
    other.read(0, 4096).unwrap();
    other.flush().unwrap();
    ok(&pair.a(), &["snapshot", "v@meanwhile"]);
    let clients = || json(&pair.a(), &["status", "--json"])["clients"].as_array().unwrap().len();
    let leaving = Writer::start(&pair.a());
    wait_for("three clients", Duration::from_secs(5), || clients() == 3);
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(leaving.bytes(), 0);

    // A daemon that stops in good order meanwhile ends them, and the bound holds after it, too.
    let stopping = Instant::now();
    a.stop();
    assert!(stopping.elapsed() < Duration::from_secs(20));
    assert!(!writer.end() && !leaving.end());
    let a = Server::start(&pair.a(), &[]);
    wait_for("the bound", Duration::from_secs(20), || state(&pair.a()) == "frozen (backlog)");

    let writer = Writer::start(&pair.a());
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(writer.bytes(), 0);
    drop(held);
    wait_for("writers go on", Duration::from_secs(90), || writer.bytes() > MIB);
    assert_eq!(state(&pair.a()), "ok");
    assert!(writer.end());
    ok(&pair.a(), &["cut", "v", "--wait"]);
    assert!(ok(&pair.a(), &["verify", "v", &pair.there()]).contains("equal"));
    a.stop();
    ok(&pair.a(), &["check"]);
}

#[test]
fn writers_are_refused_until_the_bound_or_the_session_is_gone() {
    let (pair, _a, held) = behind("readonly");
    assert!(!Writer::start(&pair.a()).thread.join().unwrap());
    assert_eq!(state(&pair.a()), "read-only (backlog)");
    let mut other = client(&pair.a());
    assert!(other.write(0, &[3; 4096], false).is_err());
    assert!(other.trim(0, 4096).is_err());
    assert_eq!(other.read(0, 4096).unwrap(), [1; 4096]);
    // A larger bound, another policy, no session: each lets writers go on.
    ok(&pair.a(), &["replicate", "v", &pair.there(), "--backlog", "1G"]);
    wait_for("a larger bound", Duration::from_secs(10), || state(&pair.a()) == "ok");
    other.write(0, &[3; 4096], false).unwrap();
    ok(&pair.a(), &["replicate", "v", &pair.there(), "--backlog", "1M", "--on-backlog", "freeze"]);
    wait_for("the other policy", Duration::from_secs(10), || state(&pair.a()) == "frozen (backlog)");
    ok(&pair.a(), &["unreplicate", "v"]);
    assert_eq!(state(&pair.a()), "ok");
    other.write(0, &[4; 4096], true).unwrap();
    drop(held);
}
