//! Roles with real processes: a secondary takes its primary's place, and whoever comes back late
//! takes no write.

use std::path::Path;
use std::time::Duration;

use crate::follow::{more_sets, session};
use crate::support::pair::Pair;
use crate::support::server::Server;
use crate::support::sshd::{Sshd, have_sshd};
use crate::support::stamper::{Stamper, state};

use crate::support::{SNAPVOL, fails, json, ok, wait_for};
use snapvol::nbd::client::{Client, Options};
use snapvol::nbd::proto::{cmd, flag};

const BLOCK: u64 = 4096;
/// Blocks that are stamped.
pub(crate) const BLOCKS: u64 = 1000;

/// How `list` shows the volume: role and state.
#[track_caller]
pub(crate) fn standing(store: &Path) -> (String, String) {
    let list = json(store, &["list", "v", "--json"]);
    let text = |field: &str| list["volumes"][0][field].as_str().unwrap().to_owned();
    (text("role"), text("state"))
}

pub(crate) fn is(store: &Path, role: &str, state: &str) -> bool {
    standing(store) == (role.to_owned(), state.to_owned())
}

#[track_caller]
pub(crate) fn becomes(store: &Path, role: &str, state: &str) {
    wait_for(&format!("{role}, {state}"), Duration::from_secs(40), || is(store, role, state));
}

pub(crate) fn connect(store: &Path) -> Client {
    Client::unix(&store.join("nbd.sock"), "v", &Options::default()).unwrap()
}

/// A store without volumes is not ready, so each has another one.
pub(crate) fn serve(store: &Path) -> Server {
    Server::start(store, &["--create", "other:1M"])
}

/// A pair that follows; the way back leads where it is said.
pub(crate) fn following(way_back: Option<&str>) -> (Pair, Server, Server, Stamper) {
    let pair = Pair::new("16M");
    let (a, b) = (serve(&pair.a()), serve(&pair.b()));
    let stamper = Stamper::start(&pair.a(), BLOCKS, Duration::from_micros(500));
    let there = pair.there();
    let mut args = vec!["replicate", "v", &there, "--timeout", "100ms"];
    args.extend(way_back.iter().flat_map(|way| ["--way-back", way]));
    ok(&pair.a(), &args);
    more_sets(&pair.a(), 3);
    (pair, a, b, stamper)
}

/// The worst day: the primary dies, its place is taken, and it comes back with a writer that
/// starts by itself. Not one write is acknowledged there.
#[test]
fn a_primary_that_comes_back_late_takes_no_write() {
    // Nobody can tell it before it opens its session.
    let (pair, a, b, stamper) = following(Some("/nowhere/store/v"));
    let said = fails(3, &pair.b(), &["failover", "v"]);
    assert!(said.contains("heard within seconds"), "{said}");
    a.kill();
    std::thread::sleep(Duration::from_millis(300));
    let written = stamper.acknowledged();
    let plan = json(&pair.b(), &["failover", "v", "--dry-run", "--json", "--force"]);
    assert_eq!((plan["done"].as_bool(), plan["epoch"].as_u64()), (Some(false), Some(2)), "{plan}");
    assert!(is(&pair.b(), "secondary", "ok") || is(&pair.b(), "secondary", "receiving"));
    // The connection that was there is noticed to be dead.
    wait_for("the failover", Duration::from_secs(20), || {
        crate::support::snapvol(&pair.b()).args(["failover", "v"]).output().unwrap().status.success()
    });
    assert!(is(&pair.b(), "primary", "ok"));
    let shown = state(&pair.b(), "v", BLOCKS);
    assert!(shown > 0 && shown <= written + 1, "{shown} of {written}");
    // Said again it is done; whoever else promotes it is told so.
    assert!(ok(&pair.b(), &["failover", "v"]).contains("already"));
    fails(3, &pair.b(), &["promote", "v"]);
    let mut there = connect(&pair.b());
    there.write(0, &[9; 8192], true).unwrap();

    let a = serve(&pair.a());
    becomes(&pair.a(), "primary", "fenced");
    std::thread::sleep(Duration::from_millis(500));
    assert!(stamper.acknowledged() <= written + 1, "{} after {written}", stamper.acknowledged());
    let late = stamper.end();
    // What was there can be read, and it stays like that through a restart.
    a.stop();
    let a = serve(&pair.a());
    assert!(is(&pair.a(), "primary", "fenced"));
    assert!(state(&pair.a(), "v", BLOCKS) >= late);
    let mut here = connect(&pair.a());
    assert_ne!(here.flags & flag::READ_ONLY, 0);
    assert_eq!(here.write(0, &[1; 512], false).unwrap_err().kind(), snapvol::ErrorKind::ReadOnly);
    assert_eq!(session(&pair.a())["state"], "fenced");
    fails(3, &pair.a(), &["promote", "v"]);
    // What it has is as it was: neither its size nor its content changes by other ways.
    fails(3, &pair.a(), &["resize", "v", "32M"]);
    ok(&pair.a(), &["snapshot", "v@late"]);
    fails(3, &pair.a(), &["rollback", "v@late", "--force"]);
    drop((here, there));
    a.stop();
    b.stop();
    for store in [pair.a(), pair.b()] {
        ok(&store, &["check"]);
    }
}

/// While nobody can be asked, writers wait and readers don't; the owner's word lets them in. If
/// the other side was promoted, too, the two are split, and both stay as they are.
#[test]
fn without_a_word_writers_wait_and_an_owner_may_let_them_in() {
    let (pair, a, b, stamper) = following(Some("/nowhere/store/v"));
    let _ = stamper.end();
    ok(&pair.a(), &["cut", "v", "--wait"]);
    b.stop();
    a.kill();
    // The directory is away, so that the far program can't be asked either.
    let away = pair.dir.path().join("away");
    std::fs::rename(pair.b(), &away).unwrap();
    let a = serve(&pair.a());
    assert!(is(&pair.a(), "primary", "unconfirmed"));
    let mut client = connect(&pair.a());
    client.read(0, 4096).unwrap();
    client.send(cmd::WRITE, 0, 0, 512, &[1; 512]).unwrap();
    let (told, heard) = std::sync::mpsc::channel();
    let waiting = std::thread::spawn(move || {
        let reply = client.receive();
        let _ = told.send(());
        (reply, client)
    });
    assert!(heard.recv_timeout(Duration::from_secs(2)).is_err(), "a write was let in");
    assert!(is(&pair.a(), "primary", "unconfirmed"));
    fails(3, &pair.a(), &["promote", "v"]);
    ok(&pair.a(), &["promote", "v", "--force"]);
    heard.recv_timeout(Duration::from_secs(10)).unwrap();
    let (reply, _client) = waiting.join().unwrap();
    assert_eq!(reply.unwrap().errno, 0);
    assert!(is(&pair.a(), "primary", "ok"));

    std::fs::rename(&away, pair.b()).unwrap();
    ok(&pair.b(), &["failover", "v", "--now"]);
    let b = serve(&pair.b());
    becomes(&pair.a(), "primary", "split");
    becomes(&pair.b(), "primary", "split");
    for store in [pair.a(), pair.b()] {
        connect(&store).write(BLOCK, &[2; 4096], true).unwrap();
    }
    assert_eq!(session(&pair.a())["state"], "split");
    a.stop();
    b.stop();
}

/// A primary that answers is not passed over, unless that is forced; then it is fenced first.
#[test]
fn a_primary_that_answers_is_not_passed_over() {
    let (pair, a, b, stamper) = following(None);
    let said = fails(3, &pair.b(), &["failover", "v"]);
    assert!(said.contains("answers"), "{said}");
    assert_eq!(standing(&pair.b()).0, "secondary");
    more_sets(&pair.a(), 2);
    let said = ok(&pair.b(), &["failover", "v", "--force"]);
    assert!(said.contains("is the primary"), "{said}");
    // It was fenced before, so nothing was written there meanwhile that is not in this count.
    assert!(is(&pair.a(), "primary", "fenced"));
    let written = stamper.end();
    let shown = state(&pair.b(), "v", BLOCKS);
    assert!(shown <= written + 1, "{shown} of {written}");
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(state(&pair.a(), "v", BLOCKS).max(written), state(&pair.a(), "v", BLOCKS));
    a.stop();
    b.stop();
}

/// An older state can be gone on from; the newest one stays.
#[test]
fn a_failover_to_an_older_state_keeps_the_newest() {
    let (pair, a, b, stamper) = following(None);
    ok(&pair.b(), &["snapshot", "v@then"]);
    let then = state(&pair.b(), "v@then", BLOCKS);
    stamper.more(300);
    let written = stamper.end();
    ok(&pair.a(), &["cut", "v", "--wait"]);
    a.kill();
    fails(5, &pair.b(), &["failover", "v@never", "--now"]);
    ok(&pair.b(), &["failover", "v@then", "--now"]);
    assert_eq!(state(&pair.b(), "v", BLOCKS), then);
    let list = json(&pair.b(), &["list", "v", "--json"]);
    let names = list["volumes"][0]["snapshots"].as_array().unwrap();
    let newest = names.iter().filter_map(|s| s["name"].as_str()).find(|name| name.starts_with("newest-"));
    assert_eq!(state(&pair.b(), &format!("v@{}", newest.unwrap()), BLOCKS), written);
    b.stop();
    ok(&pair.b(), &["check"]);
}

/// The old primary follows again, by a delta; what it had of its own is a snapshot, and what was
/// written at the new one is there.
#[test]
fn a_resync_ships_the_change_and_keeps_what_was_here() {
    let (pair, a, b, stamper) = following(None);
    let mut bulk = connect(&pair.a());
    let mut bytes = vec![0; 4 << 20];
    fastrand::Rng::with_seed(5).fill(&mut bytes);
    bulk.write(8 << 20, &bytes, true).unwrap();
    ok(&pair.a(), &["cut", "v", "--wait"]);
    // From here on nothing arrives: what follows is A's own.
    ok(&pair.a(), &["pause", "v"]);
    stamper.more(200);
    let own = stamper.end();
    bulk.write(12 << 20, &[7; 65536], true).unwrap();
    bulk.trim(8 << 20, 1 << 20).unwrap();
    drop(bulk);
    ok(&pair.a(), &["resize", "v", "20M"]);
    // After a kill the unit in which is known what changed since a bookmark is a region of 4 MiB.
    a.stop();
    ok(&pair.b(), &["failover", "v", "--now"]);
    let shown = state(&pair.b(), "v", BLOCKS);
    let mut there = connect(&pair.b());
    there.write(9 << 20, &[9; 65536], true).unwrap();
    there.trim(11 << 20, 65536).unwrap();

    let a = serve(&pair.a());
    ok(&pair.a(), &["resume", "v"]);
    becomes(&pair.a(), "primary", "fenced");
    assert!(state(&pair.a(), "v", BLOCKS) >= own);
    ok(&pair.a(), &["resync", "v"]);
    assert!(is(&pair.a(), "secondary", "ok"));
    // What was here is all there, and the rest is as at the new primary.
    assert!(state(&pair.a(), "v@diverged-1", BLOCKS) >= own);
    let mut kept = Client::unix(&pair.a().join("nbd.sock"), "v@diverged-1", &Options::default()).unwrap();
    assert_eq!(kept.size, 20 << 20);
    assert_eq!(kept.read(12 << 20, 65536).unwrap(), [7; 65536]);
    assert_eq!(kept.read(8 << 20, 65536).unwrap(), [0; 65536]);
    assert_eq!(state(&pair.a(), "v", BLOCKS), shown);
    assert_eq!(connect(&pair.a()).size, 16 << 20);
    let back = pair.a().join("v");
    ok(&pair.b(), &["verify", "v", back.to_str().unwrap()]);
    // 4 MiB were there in common; of them 1 MiB was trimmed here and comes again.
    let sent = session(&pair.b())["history"].as_array().unwrap().last().unwrap()["bytes"].as_u64().unwrap();
    let changed = (own.min(BLOCKS) * BLOCK) + (1 << 20) + 65536 * 3;
    assert!(sent < changed + changed / 4, "{sent} bytes for {changed}");
    // It follows from now on.
    there.write(0, &[3; 4096], true).unwrap();
    ok(&pair.b(), &["cut", "v", "--wait"]);
    assert_eq!(connect(&pair.a()).read(0, 4096).unwrap(), [3; 4096]);
    let list = json(&pair.a(), &["list", "v", "--json"]);
    assert_eq!(list["volumes"][0]["snapshots"][0]["holds"].as_array().unwrap().len(), 0, "{list}");
    drop((there, kept));
    ok(&pair.a(), &["delete", "v@diverged-1"]);
    assert_eq!(session(&pair.a())["role"], "receiver");
    a.stop();
    b.stop();
    for store in [pair.a(), pair.b()] {
        ok(&store, &["check"]);
        ok(&store, &["scrub"]);
    }
}

/// A healthy pair is turned around twice, from either side, under write load: nothing that was
/// acknowledged is lost, and only what changed is shipped.
#[test]
fn a_healthy_pair_is_turned_around_and_back() {
    let (pair, a, b, stamper) = following(None);
    let mut bytes = vec![0; 4 << 20];
    fastrand::Rng::with_seed(6).fill(&mut bytes);
    connect(&pair.a()).write(8 << 20, &bytes, true).unwrap();
    // While a writer is there it is refused; nothing has changed then.
    fails(3, &pair.a(), &["failback", "v"]);
    fails(3, &pair.b(), &["failover", "v", "--sync"]);
    assert!(is(&pair.a(), "primary", "ok"));
    stamper.more(100);
    ok(&pair.a(), &["failback", "v", "--force"]);
    assert!(is(&pair.b(), "primary", "ok"), "{:?}", standing(&pair.b()));
    assert_eq!(standing(&pair.a()).0, "secondary");
    let written = stamper.end();
    // The last write may have been done and not been acknowledged.
    let shown = state(&pair.b(), "v", BLOCKS);
    assert!(shown == written || shown == written + 1, "{shown} after {written}");
    assert_eq!(connect(&pair.b()).read(8 << 20, 4 << 20).unwrap(), bytes);

    // And back, asked for by the one that is to become the primary again.
    connect(&pair.b()).write(0, &[5; 8192], true).unwrap();
    becomes(&pair.a(), "secondary", "ok");
    ok(&pair.b(), &["cut", "v", "--wait"]);
    let sent = session(&pair.b())["history"].as_array().unwrap().clone();
    assert!(sent.iter().all(|set| set["whole"] == false), "{sent:?}");
    ok(&pair.a(), &["failback", "v"]);
    assert!(is(&pair.a(), "primary", "ok"));
    assert_eq!(standing(&pair.b()).0, "secondary");
    let mut here = connect(&pair.a());
    assert_eq!(here.read(0, 8192).unwrap(), [5; 8192]);
    here.write(4096, &[6; 4096], true).unwrap();
    ok(&pair.a(), &["cut", "v", "--wait"]);
    assert_eq!(connect(&pair.b()).read(4096, 4096).unwrap(), [6; 4096]);
    let sent = session(&pair.a())["history"].as_array().unwrap().clone();
    let bytes: u64 = sent.iter().map(|set| set["bytes"].as_u64().unwrap()).sum();
    assert!(bytes < 1 << 20, "{sent:?}");
    let back = pair.b().join("v");
    ok(&pair.a(), &["verify", "v", back.to_str().unwrap()]);
    drop(here);
    a.stop();
    b.stop();
    for store in [pair.a(), pair.b()] {
        ok(&store, &["check"]);
        ok(&store, &["scrub"]);
    }
}

/// Both sides were made primaries. The one at which the owner says so follows the other; what it had
/// is its snapshot.
#[test]
fn a_split_is_resolved_at_the_side_that_is_to_lose() {
    let (pair, a, b, stamper) = following(None);
    let written = stamper.end();
    ok(&pair.a(), &["cut", "v", "--wait"]);
    ok(&pair.b(), &["failover", "v", "--force"]);
    becomes(&pair.a(), "primary", "fenced");
    ok(&pair.a(), &["promote", "v", "--force"]);
    becomes(&pair.b(), "primary", "split");
    connect(&pair.a()).write(12 << 20, &[1; 4096], true).unwrap();
    connect(&pair.b()).write(12 << 20, &[2; 8192], true).unwrap();
    // B is to lose; it never sent anything, so it is told where to.
    fails(3, &pair.b(), &["resync", "v"]);
    let winner = pair.a().join("v");
    ok(&pair.b(), &["resync", "v", winner.to_str().unwrap()]);
    let mut there = connect(&pair.b());
    assert_eq!(there.read(12 << 20, 8192).unwrap()[..4097], [&[1; 4096][..], &[0]].concat());
    let mut kept = Client::unix(&pair.b().join("nbd.sock"), "v@diverged-1", &Options::default()).unwrap();
    assert_eq!(kept.read(12 << 20, 8192).unwrap(), [2; 8192]);
    assert_eq!(state(&pair.b(), "v@diverged-1", BLOCKS), written);
    drop((there, kept));
    // One session is left, and it follows.
    wait_for("one session", Duration::from_secs(20), || {
        json(&pair.a(), &["status", "--json"])["sessions"].as_array().unwrap().len() == 1
    });
    connect(&pair.a()).write(0, &[4; 4096], true).unwrap();
    ok(&pair.a(), &["cut", "v", "--wait"]);
    ok(&pair.a(), &["verify", "v", &pair.there()]);
    assert!(is(&pair.a(), "primary", "ok"));
    a.stop();
    b.stop();
}

/// Whoever is killed while a resync runs, what was here stays readable, and the resync goes on by
/// itself; given up, everything is as it was before it.
#[test]
fn a_resync_that_is_killed_goes_on() {
    let (pair, a, b, stamper) = following(None);
    ok(&pair.a(), &["pause", "v"]);
    stamper.more(100);
    let own = stamper.end();
    ok(&pair.b(), &["failover", "v", "--force"]);
    let shown = state(&pair.b(), "v", BLOCKS);
    let mut bytes = vec![0; 8 << 20];
    fastrand::Rng::with_seed(9).fill(&mut bytes);
    connect(&pair.b()).write(8 << 20, &bytes, true).unwrap();
    becomes(&pair.a(), "primary", "fenced");
    // A slow link, so that there is time to kill.
    let back = pair.a().join("v");
    let back = back.to_str().unwrap();
    let (mut a, mut b) = (Some(a), Some(b));
    let begin = || {
        let mut command = crate::support::snapvol(&pair.a());
        command.args(["resync", "v"]).stdout(std::process::Stdio::null());
        command.spawn().unwrap()
    };
    let mut waiting = begin();
    wait_for("the resync", Duration::from_secs(20), || standing(&pair.a()).0 == "secondary");
    ok(&pair.b(), &["replicate", "v", back, "--limit", "1M"]);
    for round in 0..4 {
        std::thread::sleep(Duration::from_millis(700));
        match round % 2 {
            0 => {
                a.take().unwrap().kill();
                a = Some(serve(&pair.a()));
            }
            _ => {
                b.take().unwrap().kill();
                b = Some(serve(&pair.b()));
            }
        }
        if is(&pair.a(), "secondary", "resyncing") {
            assert_eq!(state(&pair.a(), "v", BLOCKS), own, "round {round}");
        }
    }
    let _ = waiting.kill();
    let _ = waiting.wait();
    if is(&pair.a(), "secondary", "resyncing") {
        ok(&pair.a(), &["resync", "v", "--abort"]);
        assert!(is(&pair.a(), "primary", "fenced"));
        assert_eq!(state(&pair.a(), "v", BLOCKS), own);
        assert_eq!(json(&pair.b(), &["status", "--json"])["sessions"].as_array().unwrap().len(), 1);
        ok(&pair.a(), &["resync", "v"]);
    }
    becomes(&pair.a(), "secondary", "ok");
    assert_eq!(state(&pair.a(), "v", BLOCKS), shown);
    assert_eq!(connect(&pair.a()).read(8 << 20, 8 << 20).unwrap(), bytes);
    assert_eq!(state(&pair.a(), "v@diverged-1", BLOCKS), own);
    drop((a, b));
    for store in [pair.a(), pair.b()] {
        ok(&store, &["check"]);
        ok(&store, &["scrub"]);
    }
}

/// All of it over ssh: the primary is killed, its place is taken, it follows again and takes its role
/// back.
#[test]
fn there_and_back_over_ssh() {
    if !have_sshd() {
        return;
    }
    let (pair, sshd) = (Pair::new("16M"), Sshd::start());
    let ssh = sshd.ssh();
    let start = |store: &Path| Server::start_with(store, &["--create", "other:1M"], &[("SNAPVOL_SSH", &ssh)]);
    let (a, b) = (start(&pair.a()), start(&pair.b()));
    let stamper = Stamper::start(&pair.a(), BLOCKS, Duration::from_micros(500));
    let (there, back) = (sshd.url(&pair.b(), "v"), sshd.url(&pair.a(), "v"));
    let args = ["replicate", "v", &there, "--timeout", "100ms", "--remote-command", SNAPVOL];
    let ways = ["--way-back", &back, "--way-back-command", SNAPVOL];
    ok(&pair.a(), &[&args[..], &ways].concat());
    more_sets(&pair.a(), 3);
    let said = fails(3, &pair.b(), &["failover", "v"]);
    assert!(said.contains("answers"), "{said}");
    a.kill();
    let written = stamper.end();
    // The far program opens the store that nobody serves, and fences the volume in it.
    ok(&pair.b(), &["failover", "v", "--force"]);
    let shown = state(&pair.b(), "v", BLOCKS);
    assert!(shown > 0 && shown <= written + 1);
    connect(&pair.b()).write(8 << 20, &[8; 65536], true).unwrap();
    let a = start(&pair.a());
    assert!(is(&pair.a(), "primary", "fenced"));
    ok(&pair.a(), &["resync", "v"]);
    assert_eq!(connect(&pair.a()).read(8 << 20, 65536).unwrap(), [8; 65536]);
    ok(&pair.b(), &["cut", "v", "--wait"]);
    ok(&pair.a(), &["failback", "v"]);
    assert!(is(&pair.a(), "primary", "ok"));
    connect(&pair.a()).write(0, &[9; 4096], true).unwrap();
    ok(&pair.a(), &["cut", "v", "--wait"]);
    assert_eq!(connect(&pair.b()).read(0, 4096).unwrap(), [9; 4096]);
    a.stop();
    b.stop();
}
