//! Bad days of a pair: a store that was copied, a link that is slower than the writers, the other
//! side lost in the middle of a resync, two owners at once, full disks. No command leaves a state
//! that the next one can't mend.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::follow::{children, more_sets, session, signal};
use crate::roles::{BLOCKS, becomes, connect, following, is, serve, standing};
use crate::support::mount::{Kind, Mounted, where_mounts_are_private};
use crate::support::pair::Pair;
use crate::support::server::Server;
use crate::support::stamper::{Stamper, state};
use crate::support::{describe, fails, json, ok, run, snapvol, tool, wait_for};
use rustix::process::Signal;
use snapvol::nbd::client::{Client, Options};

const MIB: u64 = 1 << 20;

fn random(bytes: usize, seed: u64) -> Vec<u8> {
    let mut data = vec![0; bytes];
    fastrand::Rng::with_seed(seed).fill(&mut data);
    data
}

/// What went wrong last in the only session of a store.
fn last_error(store: &Path) -> String {
    session(store)["last_error"].as_str().unwrap_or_default().to_owned()
}

/// The whole copies that the session has shipped in this run of the daemon.
fn whole_copies(store: &Path) -> usize {
    session(store)["history"].as_array().unwrap().iter().filter(|set| set["whole"] == true).count()
}

/// What each block of a volume holds, and which ranges of it are said to be in use.
fn content_and_map(store: &Path, export: &str) -> (Vec<u8>, Vec<(u64, u32)>) {
    let options =
        Options { structured: true, contexts: vec!["base:allocation".to_owned()], ..Options::default() };
    let mut client = Client::unix(&store.join("nbd.sock"), export, &options).unwrap();
    let (mut bytes, mut map) = (Vec::new(), Vec::<(u64, u32)>::new());
    while (bytes.len() as u64) < client.size {
        let at = bytes.len() as u64;
        let len = u32::try_from(MIB.min(client.size - at)).unwrap();
        bytes.extend(client.read(at, len).unwrap());
        for (_, extents) in client.block_status(at, len, 0).unwrap() {
            for extent in extents {
                match map.last_mut() {
                    Some((length, flags)) if *flags == extent.flags => *length += extent.len,
                    _ => map.push((extent.len, extent.flags)),
                }
            }
        }
    }
    (bytes, map)
}

/// Both copies of a store are started, and both ship. The receiver goes on with the one that was
/// first; the other one is told, and puts nothing in the place of what its twin shipped.
#[test]
fn a_copied_store_does_not_replace_what_its_twin_shipped() {
    let (pair, a, b, stamper) = following(None);
    let _ = stamper.end();
    ok(&pair.a(), &["cut", "v", "--wait"]);
    a.stop();
    let twin = pair.dir.path().join("twin");
    run(tool("cp").arg("-a").arg(pair.a()).arg(&twin));
    let stores = [pair.a(), twin];
    let servers = stores.each_ref().map(|store| serve(store));
    let mut writers = stores.each_ref().map(|store| connect(store));
    for (value, writer) in (1..).zip(&mut writers) {
        writer.write(12 << 20, &[value; 4096], true).unwrap();
    }
    // Who has cut nothing itself meanwhile might as well be an older copy.
    let refused = |store: &Path| {
        let said = last_error(store);
        said.contains("another copy of this store") || said.contains("the last one cut here")
    };
    wait_for("one is refused", Duration::from_secs(30), || stores.iter().any(|store| refused(store)));
    let loser = usize::from(refused(&stores[1]));
    let winner = 1 - loser;
    // Whatever the two are asked to do, the receiver has what the first one shipped.
    for value in 0..5 {
        writers[loser].write(12 << 20, &[100 + value; 4096], true).unwrap();
        ok(&stores[loser], &["resume", "v"]);
        writers[winner].write(13 << 20, &[50 + value; 4096], true).unwrap();
        ok(&stores[winner], &["cut", "v", "--wait"]);
        let mut shown = connect(&pair.b());
        assert_eq!(shown.read(12 << 20, 1).unwrap()[0], u8::try_from(winner + 1).unwrap());
        assert_eq!(shown.read(13 << 20, 1).unwrap()[0], 50 + value);
    }
    assert!(stores.iter().all(|store| whole_copies(store) == 0));
    // Between two attempts it may say something else.
    wait_for("only the other one is refused", Duration::from_secs(30), || {
        !refused(&stores[winner]) && refused(&stores[loser])
    });
    drop((writers, servers, b));
}

/// A store that was put back from an older copy does not let writers in: what it lacks is at the
/// receiver, and would be lost under what they write.
#[test]
fn a_store_from_an_older_copy_lets_nobody_write() {
    let (pair, a, b, stamper) = following(None);
    stamper.more(100);
    a.kill();
    let older = pair.dir.path().join("older");
    run(tool("cp").arg("-a").arg(pair.a()).arg(&older));
    let a = serve(&pair.a());
    more_sets(&pair.a(), 3);
    let written = stamper.end();
    ok(&pair.a(), &["cut", "v", "--wait"]);
    a.stop();
    std::fs::remove_dir_all(pair.a()).unwrap();
    std::fs::rename(&older, pair.a()).unwrap();
    let a = serve(&pair.a());
    wait_for("a refusal", Duration::from_secs(20), || {
        last_error(&pair.a()).contains("the last one cut here")
    });
    assert!(is(&pair.a(), "primary", "unconfirmed"), "{:?}", standing(&pair.a()));
    // The newer state is gone on from, and the older one follows it.
    ok(&pair.b(), &["failover", "v", "--force"]);
    assert_eq!(state(&pair.b(), "v", BLOCKS), written);
    becomes(&pair.a(), "primary", "fenced");
    // What the older copy has in common with the other side is long gone there.
    fails(3, &pair.a(), &["resync", "v"]);
    ok(&pair.a(), &["resync", "v", "--full"]);
    assert_eq!(state(&pair.a(), "v", BLOCKS), written);
    a.stop();
    b.stop();
}

/// A writer that notes how long its longest write took.
struct Paced {
    stop: std::sync::Arc<std::sync::atomic::AtomicBool>,
    thread: std::thread::JoinHandle<(Duration, u64, bool)>,
}

impl Paced {
    /// Writes so many bytes a second, over and over the first `span` bytes.
    fn start(store: &Path, rate: u64, span: u64) -> Self {
        let stop = std::sync::Arc::<std::sync::atomic::AtomicBool>::default();
        let (flag, mut client) = (stop.clone(), connect(store));
        let step = 64 << 10;
        let thread = std::thread::spawn(move || {
            let (begun, mut longest, mut count) = (Instant::now(), Duration::ZERO, 0u64);
            while !flag.load(std::sync::atomic::Ordering::SeqCst) {
                count += 1;
                let data = count.to_le_bytes().repeat(usize::try_from(step).unwrap() / 8);
                let writing = Instant::now();
                if let Err(error) = client.write((count - 1) * step % span, &data, false) {
                    eprintln!("a write ends with: {error}");
                    return (longest.max(writing.elapsed()), count - 1, false);
                }
                longest = longest.max(writing.elapsed());
                let due = Duration::from_micros(count * step * 1_000_000 / rate);
                std::thread::sleep(due.saturating_sub(begun.elapsed()));
            }
            (longest, count, true)
        });
        Self { stop, thread }
    }

    /// The longest write, how many were acknowledged, and whether all were.
    fn end(self) -> (Duration, u64, bool) {
        self.stop.store(true, std::sync::atomic::Ordering::SeqCst);
        self.thread.join().unwrap()
    }
}

/// What is written does not fit through the link within the pause: writers are not held for longer,
/// the roles stay, and it is said. With less to ship it goes.
#[test]
fn a_failback_that_does_not_fit_its_pause_is_refused() {
    let (pair, a, b, stamper) = following(None);
    let _ = stamper.end();
    ok(&pair.a(), &["replicate", "v", &pair.there(), "--limit", "6M"]);
    // Each set takes longer than writers may wait.
    let writer = Paced::start(&pair.a(), 24 << 20, 3 << 20);
    more_sets(&pair.a(), 1);
    let said = fails(3, &pair.a(), &["failback", "v", "--force", "--pause-max", "300ms"]);
    assert!(said.contains("the roles are as before"), "{said}");
    let (longest, _, all) = writer.end();
    assert!(all && longest < Duration::from_millis(1500), "a write took {longest:?}");
    assert!(is(&pair.a(), "primary", "ok"), "{:?}", standing(&pair.a()));
    assert_eq!(standing(&pair.b()).0, "secondary");

    // The sets before it are short; in the middle of the last one the far program stands still.
    ok(&pair.a(), &["replicate", "v", &pair.there(), "--limit", "2M"]);
    let writer = Paced::start(&pair.a(), 1 << 20, 8 << 20);
    more_sets(&pair.a(), 1);
    let mut command = snapvol(&pair.a());
    command.args(["failback", "v", "--force", "--pause-max", "2s"]);
    let asked = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait_for("writers are held", Duration::from_secs(30), || standing(&pair.a()).1 == "handing-over");
    let far = children(a.pid(), "peer");
    far.iter().for_each(|pid| signal(*pid, Signal::STOP));
    let output = asked.wait_with_output().unwrap();
    far.iter().for_each(|pid| signal(*pid, Signal::CONT));
    assert_eq!(output.status.code(), Some(3), "{}", describe(&output));
    std::thread::sleep(Duration::from_millis(300));
    let (longest, _, all) = writer.end();
    assert!(
        all && longest < Duration::from_secs(4),
        "all: {all}, a write took {longest:?}; {}",
        describe(&output)
    );
    becomes(&pair.a(), "primary", "ok");
    assert_eq!(standing(&pair.b()).0, "secondary");

    // At a moderate rate nothing that was acknowledged is lost. The session rests before it tries
    // again.
    wait_for("the session goes on", Duration::from_secs(30), || session(&pair.a())["state"] == "following");
    let writer = Paced::start(&pair.a(), 1 << 20, 8 << 20);
    ok(&pair.a(), &["failback", "v", "--force", "--pause-max", "5s"]);
    assert!(is(&pair.b(), "primary", "ok"), "{:?}", standing(&pair.b()));
    let (_, count, _) = writer.end();
    let mut there = connect(&pair.b());
    for number in count.saturating_sub(100).max(1)..=count {
        let at = (number - 1) * (64 << 10) % (8 << 20);
        assert_eq!(there.read(at, 8).unwrap(), number.to_le_bytes(), "write {number} of {count}");
    }
    drop(there);
    a.stop();
    b.stop();
    for store in [pair.a(), pair.b()] {
        ok(&store, &["check"]);
    }
}

/// A pair whose secondary took the place of its primary, which has something of its own; the link
/// back is slow. The bytes are what the new primary wrote since.
fn taken_over() -> (Pair, Server, Server, u64) {
    let (pair, a, b, stamper) = following(None);
    let there = pair.b().join("v");
    // The session back begins with the policy of this one.
    ok(&pair.a(), &["replicate", "v", there.to_str().unwrap(), "--limit", "2M"]);
    ok(&pair.a(), &["pause", "v"]);
    stamper.more(100);
    let own = stamper.end();
    ok(&pair.b(), &["failover", "v", "--force"]);
    connect(&pair.b()).write(4 << 20, &random(12 << 20, 9), true).unwrap();
    becomes(&pair.a(), "primary", "fenced");
    (pair, a, b, own)
}

/// The new primary is lost for good in the middle of a resync, after either side was killed in each
/// part of it: what the old one had of its own is there, and can be gone on from.
#[test]
fn what_an_old_primary_had_outlasts_the_loss_of_the_new_one() {
    let (pair, a, b, own) = taken_over();
    let (mut a, mut b) = (Some(a), Some(b));
    let back = pair.a().join("v");
    for round in 0..4 {
        let mut begun = snapvol(&pair.a());
        let mut begun =
            begun.args(["resync", "v"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        // At once, before anything is recorded or asked, then ever later.
        std::thread::sleep(Duration::from_millis([0, 30, 300, 900][round]));
        let limit = ["replicate", "v", back.to_str().unwrap(), "--limit", "2M"];
        let _ = snapvol(&pair.b()).args(limit).output().unwrap();
        a.take().unwrap().kill();
        let _ = begun.kill();
        let _ = begun.wait();
        a = Some(serve(&pair.a()));
        if round == 1 {
            b.take().unwrap().kill();
            b = Some(serve(&pair.b()));
        }
        let now = standing(&pair.a());
        assert!(["fenced", "resyncing"].contains(&now.1.as_str()), "round {round}: {now:?}");
        assert_eq!(state(&pair.a(), "v", BLOCKS), own, "round {round}");
    }
    // It goes on by itself, or is asked to once more; then the other side is gone.
    let mut begun = snapvol(&pair.a());
    let mut begun = begun.args(["resync", "v"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    wait_for("something arrives", Duration::from_secs(20), || {
        json(&pair.b(), &["status", "--json"])["sessions"]
            .as_array()
            .unwrap()
            .iter()
            .any(|session| session["set"]["sent_bytes"].as_u64().is_some_and(|sent| sent > MIB))
    });
    b.take().unwrap().kill();
    std::fs::remove_dir_all(pair.b()).unwrap();
    assert!(is(&pair.a(), "secondary", "resyncing"), "{:?}", standing(&pair.a()));
    assert_eq!(state(&pair.a(), "v", BLOCKS), own);
    let _ = begun.kill();
    let _ = begun.wait();
    ok(&pair.a(), &["resync", "v", "--abort"]);
    assert!(is(&pair.a(), "primary", "fenced"));
    ok(&pair.a(), &["promote", "v", "--force"]);
    let mut here = connect(&pair.a());
    here.write(15 << 20, &[3; 4096], true).unwrap();
    assert_eq!(state(&pair.a(), "v", BLOCKS), own);
    assert_eq!(here.read(4 << 20, 8192).unwrap(), vec![0; 8192]);
    drop(here);
    a.take().unwrap().stop();
    ok(&pair.a(), &["check"]);
    ok(&pair.a(), &["scrub"]);
}

/// The disk of an old primary fills up in the middle of its resync: it stops there and says so, what
/// it had can be read and gone on from; with space it goes on by itself.
#[test]
fn a_resync_onto_a_full_disk_stops_and_drops_nothing() {
    where_mounts_are_private("baddays::a_resync_onto_a_full_disk_stops_and_drops_nothing", || {
        let mounted = Mounted::new(Kind::Ext4, 256);
        let pair = Pair::without_a();
        let near = mounted.dir().join("a");
        ok(&near, &["init"]);
        ok(&near, &["create", "v", "--size", "64M"]);
        let (a, b) = (serve(&near), serve(&pair.b()));
        let stamper = Stamper::start(&near, BLOCKS, Duration::from_micros(500));
        ok(&near, &["replicate", "v", &pair.there(), "--timeout", "100ms"]);
        more_sets(&near, 2);
        ok(&near, &["pause", "v"]);
        stamper.more(100);
        let own = stamper.end();
        ok(&pair.b(), &["failover", "v", "--force"]);
        let bytes = random(40 << 20, 3);
        connect(&pair.b()).write(16 << 20, &bytes[..20 << 20], true).unwrap();
        connect(&pair.b()).write(36 << 20, &bytes[20 << 20..], true).unwrap();
        let shown = state(&pair.b(), "v", BLOCKS);
        becomes(&near, "primary", "fenced");
        let _filler = mounted.fill(12 << 20);
        let mut begun = snapvol(&near);
        let mut begun =
            begun.args(["resync", "v"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let error = || {
            let status = json(&pair.b(), &["status", "--json"]);
            let sessions = status["sessions"].as_array().unwrap().clone();
            let errors = sessions.iter().filter_map(|session| session["last_error"].as_str());
            errors.map(str::to_owned).collect::<String>()
        };
        wait_for("no space", Duration::from_secs(30), || error().contains("space"));
        assert_eq!(state(&near, "v", BLOCKS), own);
        let _ = begun.kill();
        let _ = begun.wait();
        // A restart on the full disk changes nothing of that.
        a.kill();
        let a = Server::start(&near, &[]);
        assert!(is(&near, "secondary", "resyncing"), "{:?}", standing(&near));
        assert_eq!(state(&near, "v", BLOCKS), own);
        // Without a byte to write in it can't even be given up; what it had stays readable.
        let none = mounted.fill(0);
        let said = fails(1, &near, &["resync", "v", "--abort"]);
        assert!(said.contains("No space"), "{said}");
        assert_eq!(state(&near, "v", BLOCKS), own);
        // With very little it can, and can be gone on from.
        none.remove();
        let filler = mounted.fill(6 << 20);
        ok(&near, &["resync", "v", "--abort"]);
        assert!(is(&near, "primary", "fenced"), "{:?}", standing(&near));
        assert_eq!(state(&near, "v", BLOCKS), own);
        filler.remove();
        ok(&near, &["resync", "v"]);
        becomes(&near, "secondary", "ok");
        assert_eq!(state(&near, "v", BLOCKS), shown);
        assert_eq!(state(&near, "v@diverged-1", BLOCKS), own);
        let back = near.join("v");
        ok(&pair.b(), &["verify", "v", back.to_str().unwrap()]);
        a.stop();
        b.stop();
        ok(&near, &["check"]);
    });
}

/// Trims, another size, and writes to what was never used, after the last set that arrived: none of
/// it is left where the volume follows again, neither in bytes nor in what counts as used.
#[test]
fn what_was_trimmed_grown_and_newly_used_is_taken_back() {
    let (pair, a, b, stamper) = following(None);
    let _ = stamper.end();
    let mut here = connect(&pair.a());
    here.write(4 << 20, &random(4 << 20, 1), true).unwrap();
    ok(&pair.a(), &["cut", "v", "--wait"]);
    let common = content_and_map(&pair.b(), "v");
    ok(&pair.a(), &["pause", "v"]);
    here.trim(0, 1 << 20).unwrap();
    here.trim((5 << 20) + 4096, (1 << 20) - 8192).unwrap();
    here.write(9 << 20, &random(1 << 20, 2), true).unwrap();
    drop(here);
    ok(&pair.a(), &["resize", "v", "24M"]);
    let mut here = connect(&pair.a());
    here.write(20 << 20, &random(2 << 20, 3), true).unwrap();
    here.zero((6 << 20) + 512, 1 << 20, 0).unwrap();
    drop(here);
    let own = content_and_map(&pair.a(), "v");
    a.kill();
    ok(&pair.b(), &["failover", "v", "--now"]);
    assert_eq!(content_and_map(&pair.b(), "v"), common);
    let mut there = connect(&pair.b());
    there.trim(7 << 20, 1 << 20).unwrap();
    there.write(11 << 20, &[5; 8192], true).unwrap();
    drop(there);
    let a = serve(&pair.a());
    ok(&pair.a(), &["resume", "v"]);
    becomes(&pair.a(), "primary", "fenced");
    ok(&pair.a(), &["resync", "v"]);
    becomes(&pair.a(), "secondary", "ok");
    let now = content_and_map(&pair.b(), "v");
    assert_eq!(now.0.len(), 16 << 20);
    assert!(content_and_map(&pair.a(), "v") == now, "the old primary differs from the new one");
    assert!(content_and_map(&pair.a(), "v@diverged-1") == own, "what it had is not what it was");
    // And after the way back.
    ok(&pair.b(), &["resize", "v", "20M"]);
    let mut there = connect(&pair.b());
    there.write(18 << 20, &[6; 4096], true).unwrap();
    there.trim(4 << 20, 1 << 20).unwrap();
    drop(there);
    let now = content_and_map(&pair.b(), "v");
    ok(&pair.b(), &["failback", "v"]);
    becomes(&pair.a(), "primary", "ok");
    assert!(content_and_map(&pair.a(), "v") == now, "after the way back it differs");
    assert!(content_and_map(&pair.b(), "v") == now, "its receiver differs");
    ok(&pair.a(), &["verify", "v", &pair.there()]);
    drop((a, b));
    for store in [pair.a(), pair.b()] {
        ok(&store, &["check"]);
        ok(&store, &["scrub"]);
    }
}

/// Two owners turn the pair around at once, at either side and by different commands. At most one
/// side takes writes, nobody hangs, and the next commands lead to a pair that follows.
#[test]
fn two_owners_at_once_leave_one_primary() {
    let (pair, a, b, stamper) = following(None);
    let _ = stamper.end();
    let seed = crate::support::number("SNAPVOL_SEED", fastrand::u64(..));
    println!("seed {seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    let (mut near, mut far) = (pair.a(), pair.b());
    for round in 0..crate::support::number("SNAPVOL_ROUNDS", 6) {
        // `near` is the primary.
        connect(&near).write(8 << 20, &[u8::try_from(round % 200).unwrap(); 4096], true).unwrap();
        let plans: [(&Path, &[&str]); 5] = [
            (&near, &["failback", "v"]),
            (&far, &["failback", "v"]),
            (&far, &["failover", "v", "--force"]),
            (&far, &["failover", "v", "--sync"]),
            (&far, &["failover", "v", "--now"]),
        ];
        let (first, second) = (plans[rng.usize(0..plans.len())], plans[rng.usize(0..plans.len())]);
        let start = |(store, args): (&Path, &[&str])| {
            let mut command = snapvol(store);
            command.args(args).stdout(Stdio::piped()).stderr(Stdio::piped());
            command.spawn().unwrap()
        };
        let one = start(first);
        std::thread::sleep(Duration::from_millis(rng.u64(0..60)));
        let two = start(second);
        let outputs = [one, two].map(|child| child.wait_with_output().unwrap());
        let told = outputs.each_ref().map(describe);
        let what = format!("round {round}: {first:?} {second:?}: {told:?}");
        for output in &outputs {
            // 5: asked at the new primary before it had its session to the old one.
            assert!(matches!(output.status.code(), Some(0 | 3 | 5)), "{what}");
        }
        // It settles: one takes writes, and the other one does not.
        let open = |store: &Path| is(store, "primary", "ok");
        wait_for(&what, Duration::from_secs(20), || open(&near) != open(&far));
        assert!(outputs.iter().any(|output| output.status.success()), "{what}");
        if open(&far) {
            std::mem::swap(&mut near, &mut far);
        }
        if standing(&far).0 == "primary" {
            becomes(&far, "primary", "fenced");
            ok(&far, &["resync", "v"]);
        }
        becomes(&far, "secondary", "ok");
        ok(&near, &["cut", "v", "--wait"]);
        let there = far.join("v");
        assert!(ok(&near, &["verify", "v", there.to_str().unwrap()]).contains("equal"), "{what}");
        assert_eq!(json(&near, &["status", "--json"])["sessions"].as_array().unwrap().len(), 1, "{what}");
    }
    a.stop();
    b.stop();
    for store in [pair.a(), pair.b()] {
        ok(&store, &["check"]);
    }
}

/// The disk of the secondary fills up in the middle of a set: it shows what it showed, its primary's
/// writers don't notice, and with space it goes on by itself.
#[test]
fn a_secondary_with_a_full_disk_goes_on_when_there_is_space() {
    where_mounts_are_private("baddays::a_secondary_with_a_full_disk_goes_on_when_there_is_space", || {
        let mounted = Mounted::new(Kind::Ext4, 256);
        let pair = Pair::new("64M");
        let far = mounted.dir().join("b");
        ok(&far, &["init"]);
        let (a, b) = (serve(&pair.a()), serve(&far));
        let stamper = Stamper::start(&pair.a(), BLOCKS, Duration::from_micros(500));
        let there = far.join("v");
        ok(&pair.a(), &["replicate", "v", there.to_str().unwrap(), "--timeout", "100ms"]);
        more_sets(&pair.a(), 2);
        let filler = mounted.fill(10 << 20);
        connect(&pair.a()).write(16 << 20, &random(30 << 20, 7), true).unwrap();
        wait_for("no space", Duration::from_secs(30), || last_error(&pair.a()).contains("space"));
        let shown = state(&far, "v", BLOCKS);
        let before = stamper.acknowledged();
        stamper.more(500);
        assert!(is(&pair.a(), "primary", "ok"));
        assert!(shown <= before && state(&far, "v", BLOCKS) == shown);
        // It is started again on the full disk.
        b.kill();
        let b = Server::start(&far, &[]);
        assert_eq!(state(&far, "v", BLOCKS), shown);
        filler.remove();
        more_sets(&pair.a(), 2);
        let written = stamper.end();
        ok(&pair.a(), &["cut", "v", "--wait"]);
        assert_eq!(state(&far, "v", BLOCKS), written);
        assert!(ok(&pair.a(), &["verify", "v", there.to_str().unwrap()]).contains("equal"));
        assert_eq!(whole_copies(&pair.a()), 1);
        a.stop();
        b.stop();
        ok(&far, &["check"]);
    });
}

/// The disk of the primary fills up while its receiver is away, under each policy of the volume and
/// of the session: what the policy says happens, and with space, or the receiver, it goes on by
/// itself and nothing that was acknowledged is missing.
#[test]
fn a_primary_with_a_full_disk_goes_on_when_there_is_space() {
    where_mounts_are_private("baddays::a_primary_with_a_full_disk_goes_on_when_there_is_space", || {
        for (on_full, on_backlog) in
            [("freeze", "terminate"), ("readonly", "freeze"), ("drop-oldest", "readonly")]
        {
            full_at_the_primary(on_full, on_backlog);
        }
    });
}

fn full_at_the_primary(on_full: &str, on_backlog: &str) {
    let mounted = Mounted::new(Kind::Ext4, 256);
    let pair = Pair::without_a();
    let near = mounted.dir().join("a");
    ok(&near, &["init"]);
    ok(&near, &["create", "v", "--size", "64M", "--on-full", on_full]);
    let (a, b) = (serve(&near), serve(&pair.b()));
    connect(&near).write(0, &random(30 << 20, 1), true).unwrap();
    let policy = ["--timeout", "100ms", "--backlog", "1G", "--on-backlog", on_backlog];
    ok(&near, &[&["replicate", "v", pair.there().as_str()], &policy[..]].concat());
    ok(&near, &["cut", "v", "--wait"]);
    // The receiver is away with a set half received: the cut keeps before-images.
    ok(&near, &["replicate", "v", &pair.there(), "--limit", "256K"]);
    connect(&near).write(0, &random(4 << 20, 2), true).unwrap();
    wait_for("a set on its way", Duration::from_secs(10), || session(&near)["set"].is_object());
    let filler = mounted.fill(8 << 20);
    let mut client = connect(&near);
    let (told, heard) = std::sync::mpsc::channel();
    let writing = std::thread::spawn(move || {
        let mut acknowledged = 0u64;
        for mib in 4..30 {
            match client.write(mib << 20, &vec![u8::try_from(mib).unwrap(); 1 << 20], false) {
                Ok(()) => acknowledged = mib,
                Err(error) => {
                    let _ = told.send(());
                    return (acknowledged, Some(error), client);
                }
            }
        }
        let _ = told.send(());
        (acknowledged, None, client)
    });
    // It stands, or was refused: in any case the session's base is not what goes.
    let ended = heard.recv_timeout(Duration::from_secs(2)).is_ok();
    let state_there = content_and_map(&pair.b(), "v");
    assert_eq!(on_full == "readonly", ended, "{on_full}: {:?}", standing(&near));
    filler.remove();
    ok(&near, &["replicate", "v", &pair.there(), "--limit", "0"]);
    wait_for("the writer ends", Duration::from_secs(30), || writing.is_finished());
    let (acknowledged, error, mut client) = writing.join().unwrap();
    assert_eq!(error.is_some(), ended, "{on_full}: {error:?}");
    for mib in 4..=acknowledged {
        let expected = vec![u8::try_from(mib).unwrap(); 1 << 20];
        assert!(client.read(mib << 20, 1 << 20).unwrap() == expected, "{on_full}: MiB {mib}");
    }
    wait_for("writes go on", Duration::from_secs(30), || client.write(40 << 20, &[9; 4096], false).is_ok());
    ok(&near, &["cut", "v", "--wait"]);
    assert!(ok(&near, &["verify", "v", &pair.there()]).contains("equal"), "{on_full}");
    assert_eq!(whole_copies(&near), 1, "{on_full}");
    assert_eq!(state_there.0.len(), 64 << 20);
    drop(client);
    a.stop();
    b.stop();
    ok(&near, &["check"]);
}
