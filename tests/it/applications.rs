//! A database and a file system on a replicated volume, in a guest with a real kernel: what is gone
//! on from after the loss of the primary is a state that they had, no older than the lag that was
//! shown; and who reads the secondary meanwhile sees one state.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::follow::{more_sets, session};
use crate::roles::{becomes, is};
use crate::support::pair::Pair;
use crate::support::server::Server;
use crate::support::vm::{Vm, have_vm};
use crate::support::{SNAPVOL, find, have, json, ok, wait_for};
use crate::vm::{attach, detach};

/// What each row holds follows from its number, and the last row says how many there are.
const SCHEMA: &str = "PRAGMA journal_mode=DELETE; CREATE TABLE log(n INTEGER PRIMARY KEY, sum INTEGER, fill TEXT); \
     CREATE TABLE total(one INTEGER PRIMARY KEY, rows INTEGER, sum INTEGER); INSERT INTO total VALUES(1, 0, 0);";

/// A transaction after the other, each noted when it is durable.
fn writer(from: u64) -> String {
    format!(
        "rm -f /tmp/stop /tmp/ended /tmp/failed; (i={from}; while [ ! -e /tmp/stop ]; do \
         sqlite3 /mnt/db \"PRAGMA synchronous=FULL; BEGIN; \
         INSERT INTO log VALUES($i, $i * 37 % 1009, hex(zeroblob($i % 900))); \
         UPDATE total SET rows = rows + 1, sum = sum + $i * 37 % 1009; COMMIT;\" 2>>/tmp/failed || break; \
         echo $i > /tmp/noted.part; mv /tmp/noted.part /tmp/noted; i=$((i+1)); done; touch /tmp/ended) \
         >/tmp/writer.log 2>&1 &"
    )
}

fn noted(vm: &mut Vm) -> u64 {
    vm.ok("cat /tmp/noted 2>/dev/null || echo 0").trim().parse().unwrap()
}

/// The number of rows of a database that is whole, with exactly the rows from 1 on.
#[track_caller]
fn rows(vm: &mut Vm, database: &str) -> u64 {
    let check = vm.ok(&format!("sqlite3 {database} 'PRAGMA integrity_check'"));
    assert_eq!(check.trim(), "ok");
    let told = vm.ok(&format!(
        "sqlite3 {database} 'SELECT count(*), max(n), min(n), sum(sum), \
         sum(sum <> n * 37 % 1009 OR length(fill) <> 2 * (n % 900)) FROM log; SELECT rows, sum FROM total'"
    ));
    let lines: Vec<Vec<u64>> = told
        .lines()
        .map(|line| line.split('|').map(|number| number.trim().parse().unwrap()).collect())
        .collect();
    let [log, total] = &lines[..] else { panic!("{told}") };
    assert!(log[0] == log[1] && log[2] == 1 && log[4] == 0, "not the first rows: {told}");
    assert_eq!([log[0], log[3]], total[..], "{told}");
    log[0]
}

fn serve(store: &Path) -> Server {
    Server::start_tcp(store, &["--create", "other:1M"])
}

/// The primary is lost under a database that commits. At the secondary it has all that was committed
/// but for the lag that `status` showed; it goes on there, and comes back with the role.
#[test]
fn a_database_goes_on_at_the_secondary() {
    if !have_vm() || !have(&["sqlite3"]) {
        return;
    }
    let pair = Pair::new("64M");
    let (a, b) = (serve(&pair.a()), serve(&pair.b()));
    let mut vm = Vm::boot_with(&[Path::new(SNAPVOL), &find("sqlite3").unwrap()]);
    let device = attach(&mut vm, a.port(), "v");
    vm.ok(&format!(
        "mkfs.ext4 -q -E lazy_itable_init=1,nodiscard {device}; mount {device} /mnt; sqlite3 /mnt/db '{SCHEMA}'"
    ));
    ok(&pair.a(), &["replicate", "v", &pair.there(), "--timeout", "300ms"]);
    vm.ok(&writer(1));
    more_sets(&pair.a(), 3);
    // How many were committed when, and in the end how far the secondary was behind.
    let (mut committed, begun) = (Vec::new(), Instant::now());
    while begun.elapsed() < Duration::from_secs(4) || committed.len() < 8 {
        // Committed before that moment.
        committed.push((Instant::now(), noted(&mut vm)));
    }
    // Where nothing was missing at the last look, that was a quarter of a second ago.
    let asked = Instant::now().checked_sub(Duration::from_millis(750)).unwrap();
    let lag = session(&pair.a())["lag_seconds"].as_f64().unwrap();
    a.kill();
    let most = noted(&mut vm) + 1;
    let since = asked.checked_sub(Duration::from_secs_f64(lag)).unwrap();
    let least = committed.iter().rev().find(|(at, _)| *at <= since).map_or(0, |(_, count)| *count);
    println!("{lag:.2} s behind: {least} to {most} commits");
    assert!(least > 0, "{lag} s behind");
    ok(&pair.b(), &["failover", "v", "--now"]);

    // The old device hangs on nobody, and so does what is mounted from it; the guest goes on with the
    // other one.
    vm.ok("touch /tmp/stop");
    let there = attach(&mut vm, b.port(), "v");
    vm.ok(&format!("mkdir -p /tmp/m; mount {there} /tmp/m"));
    let found = rows(&mut vm, "/tmp/m/db");
    assert!((least..=most).contains(&found), "{found} rows of {least} to {most}");
    vm.ok(&format!("umount /tmp/m; e2fsck -fn {there}; mount {there} /tmp/m"));
    vm.ok(&format!(
        "for i in $(seq {} {}); do sqlite3 /tmp/m/db \"BEGIN; INSERT INTO log VALUES($i, $i * 37 % 1009, \
         hex(zeroblob($i % 900))); UPDATE total SET rows = rows + 1, sum = sum + $i * 37 % 1009; COMMIT;\"; done",
        found + 1,
        found + 5
    ));
    assert_eq!(rows(&mut vm, "/tmp/m/db"), found + 5);
    vm.ok("umount /tmp/m");
    detach(&mut vm, &there);

    // The old primary comes back, follows, and takes its role again.
    let a = serve(&pair.a());
    becomes(&pair.a(), "primary", "fenced");
    ok(&pair.a(), &["resync", "v"]);
    becomes(&pair.a(), "secondary", "ok");
    let back = pair.a().join("v");
    assert!(ok(&pair.b(), &["verify", "v", back.to_str().unwrap()]).contains("equal"));
    wait_for("no writer", Duration::from_secs(20), || {
        json(&pair.b(), &["status", "--json"])["clients"].as_array().unwrap().is_empty()
    });
    ok(&pair.a(), &["failback", "v"]);
    assert!(is(&pair.a(), "primary", "ok"));
    let device = attach(&mut vm, a.port(), "v");
    vm.ok(&format!("mount {device} /tmp/m"));
    assert_eq!(rows(&mut vm, "/tmp/m/db"), found + 5);
    vm.ok(&format!("umount /tmp/m; e2fsck -fn {device}"));
    // What the old primary had of its own, with what was committed and not shipped.
    let kept = attach(&mut vm, a.port(), "v@diverged-1");
    vm.ok(&format!("mount -t ext4 -o ro,noload {kept} /tmp/m; umount /tmp/m"));
    drop(vm);
    assert!(ok(&pair.a(), &["verify", "v", &pair.there()]).contains("equal"));
    a.stop();
    b.stop();
    for store in [pair.a(), pair.b()] {
        ok(&store, &["check"]);
    }
}

/// A file system that is mounted from the secondary stays the one that was mounted, while a hundred
/// sets are applied beneath it.
#[test]
fn a_mounted_secondary_shows_one_state() {
    if !have_vm() {
        return;
    }
    let pair = Pair::new("64M");
    let (a, b) = (serve(&pair.a()), serve(&pair.b()));
    let mut vm = Vm::boot_with(&[Path::new(SNAPVOL)]);
    let device = attach(&mut vm, a.port(), "v");
    vm.ok(&format!(
        "mkfs.ext4 -q -E lazy_itable_init=1,nodiscard {device}; mount {device} /mnt; mkdir /mnt/d; \
         for i in $(seq 24); do head -c $((i * 20001)) /dev/urandom > /mnt/d/$i; done; \
         (cd /mnt; sha256sum d/*) > /tmp/sums; sync; /sbin/fsfreeze -f /mnt"
    ));
    ok(&pair.a(), &["replicate", "v", &pair.there(), "--timeout", "30ms"]);
    ok(&pair.a(), &["cut", "v", "--wait"]);
    vm.ok("/sbin/fsfreeze -u /mnt");
    let there = attach(&mut vm, b.port(), "v");
    vm.ok(&format!("mkdir -p /tmp/m; mount -t ext4 -o ro,noload {there} /tmp/m"));
    let applied = || session(&pair.a())["applied"].as_u64().unwrap();
    let first = applied();
    vm.ok("rm -f /tmp/stop /tmp/ended; (i=0; while [ ! -e /tmp/stop ]; do i=$((i+1)); \
           head -c $((i % 7 * 30001)) /dev/urandom > /mnt/d/$((i % 24 + 1)); rm -f /mnt/d/x$((i % 5)); \
           echo $i > /mnt/d/x$((i % 5 + 1)); sync; done; touch /tmp/ended) >/dev/null 2>&1 &");
    let look =
        "echo 3 > /proc/sys/vm/drop_caches; cd /tmp/m; sha256sum -c -s /tmp/sums; [ $(ls d | wc -l) = 24 ]";
    let mut looks = 0;
    wait_for("a hundred sets", Duration::from_secs(120), || {
        vm.ok(look);
        looks += 1;
        applied() >= first + 100
    });
    println!("{looks} looks over {} sets", applied() - first);
    vm.ok("touch /tmp/stop; while [ ! -e /tmp/ended ]; do sleep 0.05; done");
    vm.ok(look);
    vm.ok(&format!("umount /tmp/m; e2fsck -fn {there}"));
    // Who mounts it now has the newest.
    detach(&mut vm, &there);
    vm.ok("(cd /mnt; sha256sum d/*) > /tmp/last; umount /mnt");
    ok(&pair.a(), &["cut", "v", "--wait"]);
    let there = attach(&mut vm, b.port(), "v");
    vm.ok(&format!("e2fsck -fn {there}; mount -t ext4 -o ro {there} /tmp/m"));
    vm.ok("cd /tmp/m; sha256sum -c -s /tmp/last; [ $(ls d | wc -l) = $(wc -l < /tmp/last) ]; cd /; umount /tmp/m");
    drop(vm);
    a.stop();
    b.stop();
}
