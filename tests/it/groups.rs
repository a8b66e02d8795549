//! Groups with real processes: money moves between three volumes of different sizes, and wherever the
//! group is looked at, it adds up.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::follow::{more_sets, session};
use crate::support::pair::Pair;
use crate::support::server::Server;
use crate::support::{fails, json, number, ok, snapvol, wait_for};
use snapvol::nbd::client::{Client, Options};

const VOLUMES: [(&str, &str); 3] = [("data", "16M"), ("index", "4M"), ("log", "9M")];
const BLOCK: u64 = 4096;
/// Accounts in each volume, a block each, and what each has at first.
const ACCOUNTS: u64 = 128;
const BALANCE: u64 = 1000;
const TOTAL: u64 = ACCOUNTS * BALANCE * VOLUMES.len() as u64;

fn connect(store: &Path, export: &str) -> Client {
    Client::unix(&store.join("nbd.sock"), export, &Options::default()).unwrap()
}

fn block(balance: u64) -> Vec<u8> {
    balance.to_le_bytes().repeat(512)
}

/// What all accounts of an export have together.
fn sum_of(store: &Path, export: &str) -> u64 {
    let mut client = connect(store, export);
    let balances = (0..ACCOUNTS).map(|account| {
        let read = client.read(account * BLOCK, 4096).unwrap();
        let balance = u64::from_le_bytes(read[..8].try_into().unwrap());
        assert!(read == block(balance), "account {account} of {export} is torn");
        balance
    });
    balances.sum()
}

/// What all accounts of all volumes have together.
fn sum_of_all(store: &Path, snapshot: &str) -> u64 {
    VOLUMES.iter().map(|(volume, _)| sum_of(store, &format!("{volume}{snapshot}"))).sum()
}

/// Of a transfer one half may be missing: it is a debit, then a credit.
#[track_caller]
fn adds_up_to(total: u64, store: &Path, snapshot: &str) {
    let sum = sum_of_all(store, snapshot);
    assert!(sum == total || sum == total - 1, "{sum} of {total}");
}

/// The same of what there was at first.
#[track_caller]
fn adds_up(store: &Path, snapshot: &str) {
    adds_up_to(TOTAL, store, snapshot);
}

/// Moves money from volume to volume until it is stopped, or its connections end.
struct Bank {
    stop: Arc<AtomicBool>,
    transfers: Arc<AtomicU64>,
    thread: JoinHandle<()>,
}

impl Bank {
    fn open(store: &Path) {
        for (volume, _) in VOLUMES {
            let mut client = connect(store, volume);
            for account in 0..ACCOUNTS {
                client.write(account * BLOCK, &block(BALANCE), false).unwrap();
            }
            client.flush().unwrap();
        }
    }

    fn start(store: &Path) -> Self {
        let (stop, transfers) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&transfers));
        let mut clients = VOLUMES.map(|(volume, _)| connect(store, volume));
        let mut rng = fastrand::Rng::with_seed(number("SNAPVOL_SEED", 1));
        let thread = std::thread::spawn(move || {
            let mut shift = |at: usize, account: u64, by: i64| {
                let read = clients[at].read(account * BLOCK, 8)?;
                let balance = u64::from_le_bytes(read[..8].try_into().unwrap());
                let balance = balance.checked_add_signed(by).unwrap();
                clients[at].write(account * BLOCK, &block(balance), false)
            };
            while !stopped.load(Ordering::Relaxed) {
                let from = rng.usize(0..VOLUMES.len());
                let to = (from + rng.usize(1..VOLUMES.len())) % VOLUMES.len();
                let (debtor, creditor) = (rng.u64(0..ACCOUNTS), rng.u64(0..ACCOUNTS));
                if shift(from, debtor, -1).and_then(|()| shift(to, creditor, 1)).is_err() {
                    return;
                }
                counted.fetch_add(1, Ordering::Relaxed);
            }
        });
        Self { stop, transfers, thread }
    }

    fn end(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
        self.transfers.load(Ordering::Relaxed)
    }
}

/// A with the volumes and the group, B empty.
fn grouped() -> Pair {
    let pair = Pair::without_a();
    ok(&pair.a(), &["init"]);
    for (volume, size) in VOLUMES {
        ok(&pair.a(), &["create", volume, "--size", size]);
    }
    ok(&pair.a(), &["group", "create", "db", "data", "log", "index"]);
    pair
}

/// A store without volumes is not ready, so each has another one.
fn serve(store: &Path) -> Server {
    Server::start(store, &["--create", "other:1M"])
}

#[track_caller]
fn all_are(store: &Path, role: &str, state: &str) {
    wait_for(&format!("{role}, {state}"), Duration::from_secs(40), || {
        let list = json(store, &["list", "--json"]);
        let mut of = list["volumes"].as_array().unwrap().iter().filter(|volume| volume["name"] != "other");
        of.all(|volume| volume["role"] == role && volume["state"] == state)
    });
}

#[test]
fn volumes_belong_together_or_not() {
    let pair = grouped();
    let a = pair.a();
    assert_eq!(ok(&a, &["group", "list"]), "GROUP  VOLUMES\ndb     data, index, log\n");
    ok(&a, &["create", "web", "--size", "1M"]);
    for (code, args) in [
        (3, &["group", "create", "web", "web"][..]),
        (3, &["group", "create", "db", "web"]),
        (3, &["group", "create", "more", "log"]),
        (3, &["group", "add", "db", "log"]),
        (5, &["group", "add", "db", "none"]),
        (5, &["group", "add", "none", "web"]),
        (5, &["group", "remove", "db", "web"]),
        (5, &["group", "delete", "none"]),
        (5, &["group", "list", "none"]),
        (2, &["group", "create", "more"]),
        (3, &["create", "db", "--size", "1M"]),
        (3, &["delete", "log"]),
        (3, &["group", "remove", "db", "log", "data", "index"]),
    ] {
        fails(code, &a, args);
    }
    ok(&a, &["group", "add", "db", "web"]);
    ok(&a, &["group", "remove", "db", "web"]);
    ok(&a, &["delete", "web"]);

    ok(&a, &["snapshot", "db@one"]);
    fails(3, &a, &["snapshot", "db@one"]);
    ok(&a, &["delete", "log@one"]);
    // All of them or none.
    fails(3, &a, &["snapshot", "db@one"]);
    let names = || {
        let list = json(&a, &["list", "--json"]);
        let volumes = list["volumes"].as_array().unwrap().clone();
        let name = |snapshot: &serde_json::Value| snapshot["name"].as_str().unwrap().to_owned();
        volumes
            .iter()
            .flat_map(|volume| volume["snapshots"].as_array().unwrap().iter().map(name).collect::<Vec<_>>())
            .collect::<Vec<_>>()
    };
    assert_eq!(names(), ["one", "one"]);
    ok(&a, &["delete", "db@one"]);
    assert_eq!(names(), Vec::<String>::new());
    fails(5, &a, &["delete", "db@one"]);
    ok(&a, &["group", "delete", "db"]);
    assert_eq!(ok(&a, &["group", "list"]), "no groups\n");
    ok(&a, &["delete", "log"]);
    // What can't be read is told, and nothing is done that a group might forbid.
    std::fs::write(a.join("groups"), b"no").unwrap();
    assert!(fails(4, &a, &["group", "list"]).contains("groups"));
    fails(4, &a, &["delete", "data"]);
    assert!(ok_or_four(&a).contains("groups"));
}

fn ok_or_four(store: &Path) -> String {
    let output = snapvol(store).arg("check").output().unwrap();
    assert_eq!(output.status.code(), Some(4));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// After a change of roles the session of before is forgotten with the next opening.
fn has_one_session(store: &Path) {
    wait_for("the session of before is forgotten", Duration::from_secs(20), || {
        json(store, &["status", "--json"])["sessions"].as_array().unwrap().len() == 1
    });
}

/// Daemons on either side are killed in the middle of it; then the primary's dies, the group is
/// failed over, the old primary follows, and the pair is turned around.
#[test]
fn money_that_moves_between_volumes_adds_up_everywhere() {
    let pair = grouped();
    let (a_dir, b_dir) = (pair.a(), pair.b());
    let (mut a, mut b) = (serve(&a_dir), serve(&b_dir));
    Bank::open(&a_dir);
    let there = b_dir.to_str().unwrap();
    ok(&a_dir, &["replicate", "db", there, "--timeout", "50ms"]);
    fails(3, &a_dir, &["replicate", "log", &format!("{there}/log")]);
    fails(3, &a_dir, &["group", "delete", "db"]);
    let mut bank = Bank::start(&a_dir);
    more_sets(&a_dir, 3);
    ok(&a_dir, &["snapshot", "db@moment"]);
    adds_up(&a_dir, "@moment");
    let mut total = TOTAL;
    let mut rng = fastrand::Rng::with_seed(number("SNAPVOL_SEED", 1));
    for round in 0..number("SNAPVOL_ROUNDS", 4) {
        std::thread::sleep(Duration::from_millis(rng.u64(1..300)));
        if round % 2 == 0 {
            b.kill();
            b = serve(&b_dir);
        } else {
            a.kill();
            let _ = bank.end();
            adds_up_to(total, &b_dir, "");
            a = serve(&a_dir);
            // The credit of a transfer that the kill broke off never comes.
            adds_up_to(total, &a_dir, "");
            total = sum_of_all(&a_dir, "");
            bank = Bank::start(&a_dir);
        }
        ok(&a_dir, &["resume", "db"]);
        more_sets(&a_dir, 2);
    }
    assert_eq!(session(&b_dir)["unit"], "db");
    assert!(fails(3, &b_dir, &["failover", "log"]).contains("group"));
    assert!(fails(3, &b_dir, &["promote", "log"]).contains("failover"));
    assert!(fails(3, &b_dir, &["group", "remove", "db", "log"]).contains("follows"));
    fails(3, &b_dir, &["failover", "db"]);

    a.kill();
    assert!(bank.end() > 0);
    adds_up_to(total, &b_dir, "");
    wait_for("the failover", Duration::from_secs(20), || {
        snapvol(&b_dir).args(["failover", "db"]).output().unwrap().status.success()
    });
    assert!(ok(&b_dir, &["failover", "db"]).contains("already"));
    all_are(&b_dir, "primary", "ok");
    adds_up_to(total, &b_dir, "");
    // What was in the middle of a transfer is lost; from here on it is the total.
    Bank::open(&b_dir);
    let bank = Bank::start(&b_dir);
    let a = serve(&a_dir);
    all_are(&a_dir, "primary", "fenced");
    assert!(fails(3, &a_dir, &["resync", "log"]).contains("group"));
    ok(&a_dir, &["resync", "db"]);
    all_are(&a_dir, "secondary", "ok");
    has_one_session(&b_dir);
    more_sets(&b_dir, 2);
    assert!(bank.end() > 0);
    ok(&b_dir, &["cut", "db", "--wait"]);
    adds_up(&a_dir, "");
    let sums = |store: &Path| VOLUMES.map(|(volume, _)| sum_of(store, volume));
    assert_eq!(sums(&a_dir), sums(&b_dir));

    ok(&b_dir, &["failback", "db"]);
    all_are(&a_dir, "primary", "ok");
    all_are(&b_dir, "secondary", "ok");
    let bank = Bank::start(&a_dir);
    has_one_session(&a_dir);
    more_sets(&a_dir, 2);
    assert!(bank.end() > 0);
    ok(&a_dir, &["cut", "db", "--wait"]);
    assert_eq!(sums(&a_dir), sums(&b_dir));
    adds_up(&b_dir, "");
    ok(&a_dir, &["unreplicate", "db", there]);
    ok(&a_dir, &["group", "delete", "db"]);
    a.stop();
    b.stop();
    for store in [a_dir, b_dir] {
        ok(&store, &["check"]);
    }
}

/// Who belongs to a group changes at the primary, and travels.
#[test]
fn another_membership_travels_with_a_set() {
    let pair = grouped();
    let (a_dir, b_dir) = (pair.a(), pair.b());
    let (a, b) = (serve(&a_dir), serve(&b_dir));
    ok(&a_dir, &["replicate", "db", b_dir.to_str().unwrap(), "--timeout", "50ms"]);
    ok(&a_dir, &["cut", "db", "--wait"]);
    ok(&a_dir, &["create", "blobs", "--size", "2M"]);
    connect(&a_dir, "blobs").write(0, &[7; 8192], true).unwrap();
    ok(&a_dir, &["group", "add", "db", "blobs"]);
    ok(&a_dir, &["group", "remove", "db", "index"]);
    let members = || json(&b_dir, &["group", "list", "--json"])[0]["volumes"].to_string();
    wait_for("the new membership", Duration::from_secs(30), || members() == r#"["blobs","data","log"]"#);
    ok(&a_dir, &["cut", "db", "--wait"]);
    assert_eq!(connect(&b_dir, "blobs").read(0, 8192).unwrap(), [7; 8192]);
    // The one that left goes on by itself, on both sides.
    ok(&a_dir, &["delete", "index"]);
    ok(&b_dir, &["promote", "index"]);
    a.stop();
    b.stop();
    for store in [a_dir, b_dir] {
        ok(&store, &["check"]);
    }
}
