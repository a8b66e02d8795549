//! Links that go bad, between two hosts with a router and a real sshd each: silent, deaf in one
//! direction, slow, at each stage of a session; partitions; and what comes over a link that nobody
//! should believe: bits turned over, a peer of another version.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::follow::{more_sets, session};
use crate::roles::{BLOCKS, becomes, connect, is, standing};
use crate::support::network::{HOSTS, Network, where_networks_are_private};
use crate::support::pair::Pair;
use crate::support::server::Server;
use crate::support::sshd::{Sshd, have_sshd};
use crate::support::stamper::{Stamper, state};
use crate::support::{SNAPVOL, describe, fails, json, number, ok, run, wait_for};
use snapvol::replica::wire::{Body, Frame, Greet, Message};
use uuid::Uuid;

const MIB: u64 = 1 << 20;
/// A silent link is noticed within 5 s; what else there is to do takes little.
const NOTICED_WITHIN: Duration = Duration::from_secs(9);
/// After that it is tried again at growing intervals, and a call into the silence has a patience of
/// its own.
const BACK_WITHIN: Duration = Duration::from_secs(45);

/// Two hosts, a store on each.
struct Hosts {
    pair: Pair,
    /// What runs on each host instead of ssh: it leads to the other one.
    ssh: [PathBuf; 2],
    there: String,
    back: String,
    _sshd: [Sshd; 2],
}

impl Hosts {
    fn new(size: &str) -> Self {
        let pair = Pair::new(size);
        let sshd = HOSTS.map(|(host, address)| Sshd::start_on(host, address));
        let there = sshd[1].url(&pair.b(), "v").replace(":22/", "/");
        let back = sshd[0].url(&pair.a(), "v").replace(":22/", "/");
        Self { ssh: [sshd[1].ssh(), sshd[0].ssh()], there, back, pair, _sshd: sshd }
    }

    fn serve(&self, host: usize) -> Server {
        let store = [self.pair.a(), self.pair.b()][host].clone();
        let variables = [("SNAPVOL_SSH", self.ssh[host].as_path())];
        Server::start_by(&Network::on(HOSTS[host].0), &store, &["--create", "other:1M"], &variables)
    }

    /// The session from A to B.
    fn replicate(&self, more: &[&str]) {
        let args = ["replicate", "v", &self.there, "--timeout", "100ms", "--remote-command", SNAPVOL];
        let ways = ["--way-back", &self.back, "--way-back-command", SNAPVOL];
        ok(&self.pair.a(), &[&args[..], &ways, more].concat());
    }

    /// A command that itself connects to the other side.
    fn on(&self, host: usize, args: &[&str]) -> Command {
        let (before, store) = (Network::on(HOSTS[host].0), [self.pair.a(), self.pair.b()][host].clone());
        let mut command = Command::new(&before[0]);
        command.args(&before[1..]).arg(SNAPVOL).arg("--store").arg(store).args(args);
        command.env("SNAPVOL_SSH", &self.ssh[host]).stdin(Stdio::null());
        command
    }
}

fn tried(store: &Path) -> u64 {
    session(store)["failed_attempts"].as_u64().unwrap()
}

/// Waits until the session has noticed that its link is bad.
#[track_caller]
fn notices(what: &str, store: &Path, before: u64) {
    let start = Instant::now();
    wait_for(what, NOTICED_WITHIN, || tried(store) > before);
    println!("{what}: noticed after {:.1?}", start.elapsed());
}

/// In a whole copy, in a set, and at rest: a link on which nothing passes is noticed, writers go on,
/// and when it is well again so does the session, where it was.
#[test]
fn a_silent_link_is_noticed_at_every_stage() {
    if !have_sshd() {
        return;
    }
    where_networks_are_private("links::a_silent_link_is_noticed_at_every_stage", |network| {
        let hosts = Hosts::new("64M");
        let (a, b) = (hosts.serve(0), hosts.serve(1));
        let near = hosts.pair.a();
        let mut bytes = vec![0; 24 << 20];
        fastrand::Rng::with_seed(1).fill(&mut bytes);
        connect(&near).write(16 << 20, &bytes, true).unwrap();
        network.slow("b", 6 << 10);
        hosts.replicate(&[]);
        let sent = || session(&near)["shipped_bytes"].as_u64().unwrap();
        wait_for("half a copy", Duration::from_secs(20), || sent() > 12 * MIB);
        let before = tried(&near);
        network.silence();
        notices("in a whole copy", &near, before);
        network.heal();
        wait_for("the whole copy", BACK_WITHIN, || session(&near)["applied"].is_u64());
        // What is on its way when it breaks is sent again: a window, and what sockets hold.
        assert!(sent() < (24 + 16) * MIB, "{} sent", sent());
        assert_eq!(connect(&hosts.pair.b()).read(16 << 20, 24 << 20).unwrap(), bytes);

        let stamper = Stamper::start(&near, BLOCKS, Duration::from_micros(500));
        more_sets(&near, 2);
        let before = tried(&near);
        // It hears the answers no more, and what it says arrives.
        network.deafen("a");
        notices("deaf, while sets are shipped", &near, before);
        stamper.more(100);
        network.heal();
        wait_for("sets again", BACK_WITHIN, || session(&near)["failures"] == 0);
        more_sets(&near, 2);
        let written = stamper.end();
        ok(&near, &["cut", "v", "--wait"]);
        assert_eq!(state(&hosts.pair.b(), "v", BLOCKS), written);

        let before = tried(&near);
        network.deafen("b");
        notices("at rest", &near, before);
        network.heal();
        connect(&near).write(0, &[9; 4096], true).unwrap();
        wait_for("a set again", BACK_WITHIN, || connect(&hosts.pair.b()).read(0, 4096).unwrap() == [9; 4096]);
        let whole =
            session(&near)["history"].as_array().unwrap().iter().filter(|s| s["whole"] == true).count();
        assert_eq!(whole, 1);
        a.stop();
        b.stop();
        for store in [near, hosts.pair.b()] {
            ok(&store, &["check"]);
        }
    });
}

/// A link that takes a minute for a frame is slow and not dead.
#[test]
fn a_slow_link_is_not_taken_for_a_dead_one() {
    if !have_sshd() {
        return;
    }
    where_networks_are_private("links::a_slow_link_is_not_taken_for_a_dead_one", |network| {
        let hosts = Hosts::new("16M");
        let (_a, _b) = (hosts.serve(0), hosts.serve(1));
        let near = hosts.pair.a();
        hosts.replicate(&["--limit", "0"]);
        ok(&near, &["cut", "v", "--wait"]);
        network.slow("b", 180);
        let mut bytes = vec![0; 3 << 20];
        fastrand::Rng::with_seed(2).fill(&mut bytes);
        connect(&near).write(0, &bytes, true).unwrap();
        let before = tried(&near);
        let start = Instant::now();
        more_sets(&near, 1);
        assert!(start.elapsed() > Duration::from_secs(10), "the link is not slow");
        assert_eq!(tried(&near), before, "{}", session(&near)["last_error"]);
        assert_eq!(connect(&hosts.pair.b()).read(0, 3 << 20).unwrap(), bytes);
    });
}

/// The link is cut, the secondary takes the place, and the old primary doesn't know and writes on.
/// When they meet it is fenced; what it wrote alone is kept beside, and it follows, and takes its
/// role back.
#[test]
fn a_partition_ends_with_one_primary() {
    if !have_sshd() {
        return;
    }
    where_networks_are_private("links::a_partition_ends_with_one_primary", |network| {
        let hosts = Hosts::new("16M");
        let (a, b) = (hosts.serve(0), hosts.serve(1));
        let (near, far) = (hosts.pair.a(), hosts.pair.b());
        let stamper = Stamper::start(&near, BLOCKS, Duration::from_micros(500));
        hosts.replicate(&[]);
        more_sets(&near, 3);
        network.silence();
        let start = Instant::now();
        // It was heard a moment ago; then it is asked in vain.
        wait_for("a failover", Duration::from_secs(40), || {
            hosts.on(1, &["failover", "v"]).output().unwrap().status.success()
        });
        println!("failed over {:.1?} after the link went silent", start.elapsed());
        let shown = state(&far, "v", BLOCKS);
        connect(&far).write(8 << 20, &[2; 8192], true).unwrap();
        assert!(is(&near, "primary", "ok"));
        stamper.more(100);
        network.heal();
        wait_for("the old primary is fenced", BACK_WITHIN, || is(&near, "primary", "fenced"));
        let own = stamper.end();
        assert!(own > shown);
        run(&mut hosts.on(0, &["resync", "v"]));
        assert_eq!(state(&near, "v", BLOCKS), shown);
        assert_eq!(connect(&near).read(8 << 20, 8192).unwrap(), [2; 8192]);
        let kept = state(&near, "v@diverged-1", BLOCKS);
        assert!(kept == own || kept == own + 1, "{kept} of {own}");
        // The role goes back; the link breaks in the middle of that.
        let mut asked =
            hosts.on(1, &["failback", "v"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(fastrand::u64(0..400)));
        network.silence();
        std::thread::sleep(Duration::from_secs(7));
        // Never two, whatever was heard.
        let open = |store: &Path| is(store, "primary", "ok");
        assert!(!(open(&near) && open(&far)), "{:?} {:?}", standing(&near), standing(&far));
        network.heal();
        wait_for("it is known how that ended", BACK_WITHIN, || {
            let (near, far) = (standing(&near), standing(&far));
            [&near, &far].iter().filter(|s| s.0 == "primary" && s.1 == "ok").count() == 1
                && [&near, &far].iter().filter(|s| s.0 == "secondary" && s.1 == "ok").count() == 1
        });
        let _ = asked.kill();
        let _ = asked.wait();
        if open(&far) {
            wait_for("a failback", BACK_WITHIN, || {
                hosts.on(1, &["failback", "v"]).output().unwrap().status.success()
            });
        }
        becomes(&near, "primary", "ok");
        let mut verify = hosts.on(0, &["verify", "v", &hosts.there, "--remote-command", SNAPVOL]);
        assert!(run(&mut verify).contains("equal"));
        a.stop();
        b.stop();
        for store in [near, far] {
            ok(&store, &["check"]);
            ok(&store, &["scrub"]);
        }
    });
}

/// Both sides of a partition are made primaries by their owners. When they meet, nothing is merged
/// and nobody yields; at the one that is to lose, what it wrote is kept.
#[test]
fn a_partition_in_which_both_were_promoted_is_a_split() {
    if !have_sshd() {
        return;
    }
    where_networks_are_private("links::a_partition_in_which_both_were_promoted_is_a_split", |network| {
        let hosts = Hosts::new("16M");
        let (a, b) = (hosts.serve(0), hosts.serve(1));
        let (near, far) = (hosts.pair.a(), hosts.pair.b());
        let stamper = Stamper::start(&near, BLOCKS, Duration::from_micros(500));
        hosts.replicate(&[]);
        more_sets(&near, 2);
        let written = stamper.end();
        ok(&near, &["cut", "v", "--wait"]);
        network.silence();
        a.kill();
        ok(&far, &["failover", "v", "--now"]);
        let a = hosts.serve(0);
        assert!(is(&near, "primary", "unconfirmed"));
        ok(&near, &["promote", "v", "--force"]);
        connect(&near).write(8 << 20, &[1; 4096], true).unwrap();
        connect(&far).write(8 << 20, &[2; 8192], true).unwrap();
        network.heal();
        wait_for("a split", BACK_WITHIN, || is(&near, "primary", "split") && is(&far, "primary", "split"));
        // Both go on, apart.
        for (store, value) in [(&near, 3), (&far, 4)] {
            let mut client = connect(store);
            client.write(9 << 20, &[value; 4096], true).unwrap();
            assert_eq!(client.read(8 << 20, 8192).unwrap()[4096], if value == 3 { 0 } else { 2 });
        }
        // A is to lose.
        run(&mut hosts.on(0, &["resync", "v", "--force"]));
        becomes(&near, "secondary", "ok");
        let mut here = connect(&near);
        assert_eq!(here.read(8 << 20, 8192).unwrap(), [2; 8192]);
        assert_eq!(here.read(9 << 20, 4096).unwrap(), [4; 4096]);
        assert_eq!(state(&near, "v@diverged-1", BLOCKS), written);
        let options = snapvol::nbd::client::Options::default();
        let socket = near.join("nbd.sock");
        let mut kept = snapvol::nbd::client::Client::unix(&socket, "v@diverged-1", &options).unwrap();
        assert_eq!(kept.read(8 << 20, 8192).unwrap(), [[1; 4096], [0; 4096]].concat());
        assert_eq!(kept.read(9 << 20, 4096).unwrap(), [3; 4096]);
        becomes(&far, "primary", "ok");
        drop((here, kept));
        a.stop();
        b.stop();
    });
}

/// Bits are turned over between a session and its far program, in openings, sets, stamps and
/// answers: each time an error, nothing wrong is applied, and it is tried again.
#[test]
fn bits_that_turn_over_on_the_way_are_noticed() {
    let pair = Pair::new("16M");
    let _a = Server::start(&pair.a(), &[]);
    let _b = Server::start(&pair.b(), &["--create", "other:1M"]);
    let (seed, runs) = (number("SNAPVOL_SEED", fastrand::u64(..100_000)), number("SNAPVOL_ROUNDS", 8));
    println!("seed {seed}");
    let log = pair.dir.path().join("flips");
    let flip = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/ssh/flip.py");
    let flipping = format!(
        "/usr/bin/python3 {} --log {} --runs {runs} --seed {seed} -- {SNAPVOL}",
        flip.display(),
        log.display()
    );
    let stamper = Stamper::start(&pair.a(), BLOCKS, Duration::from_micros(500));
    let there = pair.there();
    ok(&pair.a(), &["replicate", "v", &there, "--timeout", "50ms", "--remote-command", &flipping]);
    let flipped = || std::fs::read_to_string(&log).unwrap_or_default().lines().count() as u64;
    let begun = || std::fs::read(log.with_extension("runs")).map_or(0, |runs| runs.len() as u64);
    let (mut errors, mut last) = (std::collections::BTreeSet::new(), 0);
    let held = || json(&pair.b(), &["list", "--json"])["volumes"].as_array().unwrap().len() > 1;
    wait_for("a run with no bit turned over", Duration::from_secs(100), || {
        if let Some(error) = session(&pair.a())["last_error"].as_str() {
            errors.insert(error.to_owned());
        }
        if held() {
            let shown = state(&pair.b(), "v", BLOCKS);
            assert!(shown >= last && shown <= stamper.acknowledged() + 1, "{shown} after {last}");
            last = shown;
        }
        // Nobody waits for the pause after a failure.
        ok(&pair.a(), &["resume", "v"]);
        begun() > runs
    });
    println!("{} bits: {errors:#?}", flipped());
    assert!(flipped() >= runs / 2, "{} of {runs}", flipped());
    more_sets(&pair.a(), 1);
    let written = stamper.end();
    ok(&pair.a(), &["cut", "v", "--wait"]);
    assert_eq!(state(&pair.b(), "v", BLOCKS), written);
    assert!(is(&pair.a(), "primary", "ok"));
    assert!(ok(&pair.a(), &["verify", "v", &there]).contains("equal"));
    for store in [pair.a(), pair.b()] {
        assert_eq!(json(&store, &["list", "v", "--json"])["volumes"][0]["state"], "ok");
    }
}

/// A release that speaks other versions is told from one that does not answer, on either side.
#[test]
fn a_peer_of_another_version_is_named() {
    let pair = Pair::new("16M");
    let _a = Server::start(&pair.a(), &[]);
    let greet = Greet { oldest: 7, newest: 9, ..Greet::of(Uuid::from_u128(5)) };
    let mut bytes = Vec::new();
    Frame::of_connection(Body::Message(Message::Greet(greet))).write(&mut bytes).unwrap();
    let said = pair.dir.path().join("said");
    std::fs::write(&said, &bytes).unwrap();
    let script = pair.dir.path().join("far");
    std::fs::write(&script, format!("cat {}; exec cat >/dev/null\n", said.display())).unwrap();
    let far = format!("sh {}", script.display());
    ok(&pair.a(), &["replicate", "v", &pair.there(), "--remote-command", &far]);
    let error = || session(&pair.a())["last_error"].as_str().unwrap_or_default().to_owned();
    wait_for("a refusal", Duration::from_secs(20), || !error().is_empty());
    assert!(error().contains("versions 7 to 9"), "{}", error());
    assert!(is(&pair.a(), "primary", "ok"));

    // This program as the far one.
    let mut far = crate::support::snapvol(&pair.b());
    let far = far.arg("peer").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut far = far.spawn().unwrap();
    let mut input = far.stdin.take().unwrap();
    std::io::Write::write_all(&mut input, &bytes).unwrap();
    let output = far.wait_with_output().unwrap();
    drop(input);
    assert!(!output.status.success(), "{}", describe(&output));
    let mut answers = &output.stdout[..];
    let mut failed = None;
    while let Some(frame) = Frame::read(&mut answers).unwrap() {
        if let Body::Message(Message::Failed { message, .. }) = frame.body {
            failed = Some(message);
        }
    }
    assert!(failed.as_ref().is_some_and(|said| said.contains("versions 7 to 9")), "{failed:?}");
    // With the right program it goes on by itself.
    ok(&pair.a(), &["replicate", "v", &pair.there(), "--remote-command", SNAPVOL]);
    ok(&pair.a(), &["cut", "v", "--wait"]);
    let _ = fails(5, &pair.b(), &["list", "nothing"]);
}
