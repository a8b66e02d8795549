//! Damage of every file of a store: it is found and named, nothing panics, nothing is
//! overwritten, and what is not damaged goes on working.

use crate::support::server::Server;
use crate::support::{describe, fails, ok, scratch, snapvol};
use snapvol::nbd::client::{Client, Options};
use std::collections::BTreeMap;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

const BLOCK: u64 = 4096;

/// What is done to a store, how that is called, and the exit code.
type Damaged<'a> = (&'static str, i32, &'a dyn Fn(&Path));
/// What is done to a file, and how that is called.
type Damage = (&'static str, fn(&Path));

fn client(server: &Server, export: &str) -> Client {
    Client::unix(&server.socket(), export, &Options::default()).unwrap()
}

fn block(value: u8) -> Vec<u8> {
    vec![value; usize::try_from(BLOCK).unwrap()]
}

/// Every block of `blocks` gets bytes of `value`.
fn fill(client: &mut Client, blocks: std::ops::Range<u64>, value: u8) {
    for number in blocks {
        client.write(number * BLOCK, &block(value), false).unwrap();
    }
}

/// Two volumes alike, `good` and `bad`: snapshots `a`, `b`, `c` of three states (a fourth
/// was deleted), before-images in each, a trim, and a checkpoint of the meta bit map.
fn build(store: &Path) {
    let server = Server::start(store, &["--create", "bad:64M", "--create", "good:64M"]);
    for volume in ["bad", "good"] {
        let mut client = client(&server, volume);
        fill(&mut client, 0..64, 1);
        ok(store, &["snapshot", &format!("{volume}@a")]);
        fill(&mut client, 0..16, 2);
        ok(store, &["snapshot", &format!("{volume}@gone")]);
        fill(&mut client, 8..24, 3);
        ok(store, &["snapshot", &format!("{volume}@b")]);
        fill(&mut client, 16..40, 4);
        client.trim(50 * BLOCK, 4 * 4096).unwrap();
        client.flush().unwrap();
        ok(store, &["snapshot", &format!("{volume}@c")]);
        fill(&mut client, 0..4, 5);
        client.flush().unwrap();
        client.disconnect().unwrap();
        ok(store, &["delete", &format!("{volume}@gone")]);
    }
    server.kill();
    // An unclean stop: the next open writes a checkpoint.
    ok(store, &["list"]);
    ok(store, &["check"]);
}

/// A store of its own for a test, copied from one that is built once.
fn store() -> (tempfile::TempDir, PathBuf) {
    static BUILT: OnceLock<tempfile::TempDir> = OnceLock::new();
    let built = BUILT.get_or_init(|| {
        let dir = scratch();
        build(&dir.path().join("s"));
        dir
    });
    let dir = scratch();
    let store = dir.path().join("s");
    copy(&built.path().join("s"), &store);
    (dir, store)
}

/// Copies a file or a directory. Checkpoints are long and stay sparse; sockets stay behind.
fn copy(from: &Path, to: &Path) {
    let status = std::process::Command::new("cp").args(["-a", "--sparse=always"]).arg(from).arg(to).status();
    assert!(status.unwrap().success());
    for name in ["nbd.sock", "control.sock"] {
        let _ = std::fs::remove_file(to.join(name));
    }
}

/// Path and contents of every file under a directory, without the lock.
fn contents(store: &Path) -> BTreeMap<PathBuf, blake3::Hash> {
    let mut all = BTreeMap::new();
    let mut dirs = vec![store.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let entry = entry.unwrap();
            let kind = entry.file_type().unwrap();
            if kind.is_dir() {
                dirs.push(entry.path());
            } else if kind.is_file() {
                all.insert(entry.path(), digest(&entry.path()));
            }
        }
    }
    all
}

/// A digest of length, data and places of data; the checkpoints are long and sparse.
fn digest(path: &Path) -> blake3::Hash {
    use rustix::fs::{SeekFrom, seek};
    let file = std::fs::File::open(path).unwrap();
    let len = file.metadata().unwrap().len();
    let mut hash = blake3::Hasher::new();
    hash.update(&len.to_le_bytes());
    let mut at = 0;
    while let Ok(start) = seek(&file, SeekFrom::Data(at)) {
        let end = seek(&file, SeekFrom::Hole(start)).unwrap();
        let mut bytes = vec![0; usize::try_from(end - start).unwrap()];
        file.read_exact_at(&mut bytes, start).unwrap();
        hash.update(&start.to_le_bytes()).update(&bytes);
        at = end;
    }
    hash.finalize()
}

/// The files in a directory of the volume `bad`, by name.
fn files(store: &Path, dir: &str) -> Vec<PathBuf> {
    let list = std::fs::read_dir(store.join("volumes/bad").join(dir)).unwrap();
    let mut files: Vec<PathBuf> = list.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty(), "{dir} is empty");
    files
}

fn relative(store: &Path, file: &Path) -> String {
    file.strip_prefix(store).unwrap().display().to_string()
}

fn flip(file: &Path, at: u64) {
    let file = std::fs::OpenOptions::new().read(true).write(true).open(file).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x20], at).unwrap();
}

fn set_len(file: &Path, len: u64) {
    std::fs::OpenOptions::new().write(true).open(file).unwrap().set_len(len).unwrap();
}

fn scribble(file: &Path) {
    let len = usize::try_from(std::fs::metadata(file).unwrap().len().min(64 << 10)).unwrap();
    let mut bytes = vec![0; len];
    fastrand::Rng::with_seed(7).fill(&mut bytes);
    let file = std::fs::OpenOptions::new().write(true).open(file).unwrap();
    file.write_all_at(&bytes, 0).unwrap();
}

/// `check` finds damage in `file` of volume `bad`, twice the same, and touches nothing.
#[track_caller]
fn check_finds(store: &Path, file: &str) {
    let before = contents(store);
    for json in [false, true] {
        let mut command = snapvol(store);
        command.arg("check");
        if json {
            command.arg("--json");
        }
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(4), "{file}: {}", describe(&output));
        let stdout = String::from_utf8_lossy(&output.stdout);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(!stderr.contains("panicked"), "{stderr}");
        let lines: Vec<&str> = stderr.lines().filter(|line| !line.is_empty()).collect();
        assert!(lines.len() == 2 && lines[1].starts_with("hint: "), "{stderr}");
        if json {
            let report: serde_json::Value = serde_json::from_str(&stdout).unwrap();
            let findings = report["findings"].as_array().unwrap();
            let named = findings.iter().any(|f| {
                f["volume"] == "bad" && f["file"].as_str().is_some_and(|found| found.contains(file))
            });
            assert!(named, "{file} is not named: {stdout}");
            assert!(findings.iter().all(|f| f["volume"] == "bad"), "the other volume is blamed: {stdout}");
        } else {
            assert!(stdout.lines().any(|l| l.starts_with("bad") && l.contains(file)), "{file}: {stdout}");
        }
    }
    assert!(contents(store) == before, "check changed something");
}

/// Whatever is wrong with `bad`: nothing panics, and `good` is read and written.
#[track_caller]
fn good_works(store: &Path) {
    for args in [&["list"][..], &["list", "bad"], &["list", "--json"], &["scrub", "bad"], &["diff", "bad@a"]]
    {
        let output = snapvol(store).args(args).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code().is_some(), "{args:?}: {}", describe(&output));
        assert!(!stderr.contains("panicked"), "{args:?}: {stderr}");
    }
    ok(store, &["list", "good"]);
    let server = Server::start(store, &[]);
    let mut client = client(&server, "good");
    assert_eq!(client.read(0, 4096).unwrap(), block(5));
    assert_eq!(client.read(40 * BLOCK, 4096).unwrap(), block(1));
    client.write(60 * BLOCK, &block(9), true).unwrap();
    client.disconnect().unwrap();
    let mut old = Client::unix(&server.socket(), "good@a", &Options::default()).unwrap();
    assert_eq!(old.read(0, 4096).unwrap(), block(1));
    assert_eq!(old.read(60 * BLOCK, 4096).unwrap(), block(1));
    old.disconnect().unwrap();
    server.stop();
}

#[test]
fn a_whole_store_has_no_damage() {
    let (_dir, store) = store();
    let before = contents(&store);
    ok(&store, &["check"]);
    assert!(contents(&store) == before);
    ok(&store, &["scrub"]);
    ok(&store, &["check"]);
    good_works(&store);
}

#[test]
fn the_journal() {
    let damages: &[Damage] = &[
        ("empty", |f| set_len(f, 0)),
        ("short", |f| set_len(f, 63)),
        ("header alone", |f| set_len(f, 64)),
        ("in the state", |f| set_len(f, 200)),
        ("random", scribble),
        ("missing", |f| std::fs::remove_file(f).unwrap()),
    ];
    for (what, damage) in damages {
        let (_dir, store) = store();
        damage(&store.join("volumes/bad/journal"));
        eprintln!("journal: {what}");
        check_finds(&store, "volumes/bad/journal");
        let damaged = std::fs::read(store.join("volumes/bad/journal")).ok();
        good_works(&store);
        assert_eq!(std::fs::read(store.join("volumes/bad/journal")).ok(), damaged, "{what}: overwritten");
        let message = fails(4, &store, &["list", "bad"]);
        assert!(message.contains("bad") && message.contains("journal"), "{what}: {message}");
    }
}

/// The checkpoint that the journal names.
fn checkpoint(store: &Path) -> PathBuf {
    let mut found = Vec::new();
    for name in ["meta-A", "meta-B"] {
        let path = store.join("volumes/bad").join(name);
        if path.exists() {
            found.push(path);
        }
    }
    assert!(!found.is_empty(), "no checkpoint");
    // The other one, if there is one, is what the next checkpoint overwrites.
    found
        .into_iter()
        .max_by_key(|path| {
            let bytes = std::fs::File::open(path).unwrap();
            let mut seq = [0; 8];
            bytes.read_exact_at(&mut seq, 32).unwrap();
            u64::from_le_bytes(seq)
        })
        .unwrap()
}

#[test]
fn the_checkpoint() {
    let damages: &[Damage] = &[
        ("header", |f| flip(f, 40)),
        ("table", |f| flip(f, 1 << 26)),
        ("empty", |f| set_len(f, 0)),
        ("without its table", |f| set_len(f, 512)),
        ("random", scribble),
        ("missing", |f| std::fs::remove_file(f).unwrap()),
    ];
    for (what, damage) in damages {
        let (_dir, store) = store();
        let file = checkpoint(&store);
        damage(&file);
        eprintln!("checkpoint: {what}");
        check_finds(&store, &relative(&store, &file));
        good_works(&store);
    }
}

#[test]
fn sealed_layers() {
    let damages: &[Damage] = &[
        ("header", |f| flip(f, 40)),
        ("table", |f| flip(f, 130)),
        ("bucket", |f| flip(f, std::fs::metadata(f).unwrap().len() - 100)),
        ("empty", |f| set_len(f, 0)),
        ("half", |f| set_len(f, std::fs::metadata(f).unwrap().len() / 2)),
        ("one byte short", |f| set_len(f, std::fs::metadata(f).unwrap().len() - 1)),
        ("random", scribble),
        ("missing", |f| std::fs::remove_file(f).unwrap()),
    ];
    let (_dir, probe) = store();
    let names: Vec<String> = files(&probe, "snapshots").iter().map(|f| relative(&probe, f)).collect();
    for name in &names {
        for (what, damage) in damages {
            let (_dir, store) = store();
            damage(&store.join(name));
            eprintln!("{name}: {what}");
            check_finds(&store, name);
        }
    }
    let (_dir, store) = store();
    for name in &names {
        flip(&store.join(name), 40);
    }
    good_works(&store);
}

#[test]
fn segments() {
    let damages: &[Damage] = &[
        ("header", |f| flip(f, 30)),
        ("group's magic", |f| flip(f, 4096)),
        ("group's list", |f| flip(f, 4096 + 70)),
        ("empty", |f| set_len(f, 0)),
        ("header alone", |f| set_len(f, 4096)),
        ("in the first group", |f| set_len(f, 4096 + 512)),
        ("random", scribble),
        ("missing", |f| std::fs::remove_file(f).unwrap()),
    ];
    for (what, damage) in damages {
        let (_dir, store) = store();
        let file = files(&store, "save").remove(0);
        damage(&file);
        eprintln!("{}: {what}", relative(&store, &file));
        check_finds(&store, &relative(&store, &file));
        good_works(&store);
    }
}

#[test]
fn the_clone_volume() {
    for what in ["short", "empty", "missing"] {
        let (_dir, store) = store();
        let file = store.join("volumes/bad/clone");
        match what {
            "short" => set_len(&file, (64 << 20) - 4096),
            "empty" => set_len(&file, 0),
            _ => std::fs::remove_file(&file).unwrap(),
        }
        eprintln!("clone: {what}");
        check_finds(&store, "volumes/bad/clone");
        good_works(&store);
        if what == "missing" {
            assert!(!file.exists(), "an empty clone volume stands for what is gone");
        }
    }
}

/// The stage means nothing once a volume is closed: no damage there does harm.
#[test]
fn the_stage_of_a_closed_volume() {
    let damages: &[fn(&Path)] =
        &[scribble, |f| set_len(f, 0), |f| set_len(f, 700), |f| std::fs::remove_file(f).unwrap()];
    for damage in damages {
        let (_dir, store) = store();
        let file = store.join("volumes/bad/stage");
        if !file.exists() {
            continue;
        }
        damage(&file);
        ok(&store, &["check"]);
        good_works(&store);
        let server = Server::start(&store, &[]);
        let mut client = client(&server, "bad");
        assert_eq!(client.read(0, 4096).unwrap(), block(5));
        client.write(0, &block(6), true).unwrap();
        assert_eq!(client.read(0, 4096).unwrap(), block(6));
    }
}

#[test]
fn files_of_another_volume() {
    let (_dir, probe) = store();
    let mut names: Vec<String> = files(&probe, "snapshots").iter().map(|f| relative(&probe, f)).collect();
    names.extend(files(&probe, "save").iter().map(|f| relative(&probe, f)));
    names.push(relative(&probe, &checkpoint(&probe)));
    for name in names {
        let (_dir, store) = store();
        let other = store.join(name.replace("/bad/", "/good/"));
        if !other.exists() {
            continue;
        }
        copy(&other, &store.join(&name));
        eprintln!("{name} of the other volume");
        check_finds(&store, &name);
        good_works(&store);
    }
    // With the other one's journal nothing else fits.
    let (_dir, store) = store();
    std::fs::copy(store.join("volumes/good/journal"), store.join("volumes/bad/journal")).unwrap();
    check_finds(&store, "volumes/bad/");
    good_works(&store);
}

#[test]
fn a_store_of_another_kind() {
    let file = |store: &Path| store.join("store");
    let version = |store: &Path, version: u32| {
        let mut bytes = std::fs::read(file(store)).unwrap();
        bytes[8..12].copy_from_slice(&version.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..28]).to_le_bytes();
        bytes[28..32].copy_from_slice(&crc);
        std::fs::write(file(store), bytes).unwrap();
    };
    let all: &[Damaged<'_>] = &[
        ("newer", 1, &|s| version(s, 2)),
        ("much newer", 1, &|s| version(s, u32::MAX)),
        ("version 0", 4, &|s| version(s, 0)),
        ("flipped", 4, &|s| flip(&file(s), 13)),
        ("random", 4, &|s| scribble(&file(s))),
        ("empty", 4, &|s| set_len(&file(s), 0)),
        ("short", 4, &|s| set_len(&file(s), 40)),
        ("missing", 5, &|s| std::fs::remove_file(file(s)).unwrap()),
    ];
    for (what, code, damage) in all {
        let (_dir, store) = store();
        damage(&store);
        let before = contents(&store);
        for args in [&["list"][..], &["check"], &["check", "--repair"], &["snapshot", "bad@x"]] {
            let message = fails(*code, &store, args);
            assert!(message.lines().count() <= 2, "{what}: {message}");
            assert!(*code == 4 || message.contains("hint: "), "{what}: {message}");
        }
        assert!(contents(&store) == before, "{what}: something was written");
        // `serve` makes a store only where nothing is.
        let output = snapvol(&store).arg("serve").output().unwrap();
        assert!(!output.status.success(), "{what}: {}", describe(&output));
        assert!(contents(&store) == before, "{what}: serve wrote something: {}", describe(&output));
    }
}

#[test]
fn a_store_copied_in_part() {
    for missing in ["save", "snapshots"] {
        let (_dir, store) = store();
        std::fs::remove_dir_all(store.join("volumes/bad").join(missing)).unwrap();
        check_finds(&store, &format!("volumes/bad/{missing}"));
        good_works(&store);
        assert!(!store.join("volumes/bad").join(missing).exists(), "{missing} was made again, empty");
    }
    let (_dir, store) = store();
    std::fs::remove_dir_all(store.join("volumes/bad")).unwrap();
    std::fs::create_dir(store.join("volumes/bad")).unwrap();
    check_finds(&store, "volumes/bad/journal");
    good_works(&store);
    assert_eq!(std::fs::read_dir(store.join("volumes/bad")).unwrap().count(), 0);
}

#[test]
fn what_is_no_volume_is_left_alone() {
    let (_dir, store) = store();
    std::fs::write(store.join("volumes/notes.txt"), "mine").unwrap();
    std::fs::create_dir(store.join("volumes/lost+found")).unwrap();
    let output = snapvol(&store).arg("check").output().unwrap();
    assert!(!String::from_utf8_lossy(&output.stderr).contains("panicked"));
    good_works_beside(&store);
    assert_eq!(std::fs::read_to_string(store.join("volumes/notes.txt")).unwrap(), "mine");
    assert!(store.join("volumes/lost+found").is_dir());
}

fn good_works_beside(store: &Path) {
    let server = Server::start(store, &[]);
    let mut client = client(&server, "good");
    assert_eq!(client.read(0, 4096).unwrap(), block(5));
    client.disconnect().unwrap();
    server.stop();
}

/// Where the before-image of a block lies, found by its contents.
fn image_of(store: &Path, value: u8, nth: usize) -> (PathBuf, u64) {
    let mut seen = 0;
    for file in files(store, "save") {
        let bytes = std::fs::read(&file).unwrap();
        for at in (4096..bytes.len().saturating_sub(4095)).step_by(512) {
            if bytes[at..at + 4096].iter().all(|byte| *byte == value) {
                if seen == nth {
                    return (file, at as u64);
                }
                seen += 1;
            }
        }
    }
    panic!("no before-image of {value}");
}

#[test]
fn a_rotten_before_image() {
    let (_dir, store) = store();
    // The block saved from state 3 when state 4 was written: b needs it, a does not.
    let (file, at) = image_of(&store, 3, 2);
    flip(&file, at + 1000);
    let output = snapvol(&store).args(["scrub", "--json"]).output().unwrap();
    assert_eq!(output.status.code(), Some(4), "{}", describe(&output));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let findings = report["findings"].as_array().unwrap();
    assert_eq!(findings.len(), 1, "{report}");
    assert_eq!(findings[0]["volume"], "bad");
    assert_eq!(findings[0]["snapshot"], "b");
    assert_eq!(findings[0]["file"], relative(&store, &file).as_str());
    let rotten = findings[0]["block"].as_u64().unwrap();
    assert!((16..24).contains(&rotten), "{report}");
    // Metadata is whole, so check has nothing to say.
    ok(&store, &["check"]);
    let text = fails(4, &store, &["scrub", "bad"]);
    assert!(text.contains("hint: "), "{text}");

    let server = Server::start(&store, &[]);
    let mut at_b = client(&server, "bad@b");
    let error = at_b.read(rotten * BLOCK, 4096).unwrap_err();
    assert!(error.to_string().contains('5') || error.to_string().contains("EIO"), "{error}");
    for number in 0..64 {
        if number != rotten {
            let want = match number {
                0..8 => 2,
                8..24 => 3,
                _ => 1,
            };
            assert_eq!(at_b.read(number * BLOCK, 4096).unwrap(), block(want), "block {number} of b");
        }
    }
    at_b.disconnect().unwrap();
    for (export, want) in [("bad@a", 1), ("bad@c", 4), ("bad", 4), ("good@b", 3)] {
        let mut other = client(&server, export);
        assert_eq!(other.read(rotten * BLOCK, 4096).unwrap(), block(want), "{export}");
        other.disconnect().unwrap();
    }
    for args in [&["send", "bad@b"][..], &["send", "bad@b", "--from", "bad@a"]] {
        let out = store.join("out");
        let mut all = args.to_vec();
        all.extend(["-o", out.to_str().unwrap()]);
        let message = fails(4, &store, &all);
        assert!(message.contains("bad") && message.contains(&rotten.to_string()), "{args:?}: {message}");
        assert!(!out.exists(), "half a stream is left in its file");
    }
    server.stop();
    let message = fails(4, &store, &["send", "bad@b", "-o", store.join("out").to_str().unwrap()]);
    assert!(message.contains("bad"), "{message}");
    // It is still there to be seen, and to be looked at by whoever wants to save it.
    fails(4, &store, &["scrub"]);
}

#[test]
fn a_second_fault_does_not_hide_the_first() {
    let (_dir, store) = store();
    let (file, at) = image_of(&store, 3, 2);
    flip(&file, at + 1000);
    flip(&files(&store, "snapshots")[0], 40);
    let output = snapvol(&store).args(["scrub", "--json"]).output().unwrap();
    assert_eq!(output.status.code(), Some(4), "{}", describe(&output));
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("snapshots/"), "{text}");
}

#[test]
fn a_list_shows_the_other_volumes() {
    let (_dir, store) = store();
    // Not the tail's: the volume opens.
    flip(&files(&store, "snapshots")[0], 40);
    let list = ok(&store, &["list"]);
    assert!(list.contains("good") && list.contains("bad"), "{list}");
}

/// Reads every block of every snapshot of `bad` as a client does.
fn all_is_right(store: &Path) {
    let server = Server::start(store, &[]);
    for (export, old) in [("bad@a", 0), ("bad@b", 1), ("bad@c", 2)] {
        let mut client = client(&server, export);
        for number in 0..64 {
            let want = match number {
                8..16 if old > 0 => 3,
                16..24 if old == 1 => 3,
                16..40 if old == 2 => 4,
                0..8 if old > 0 => 2,
                50..54 if old == 2 => 0,
                _ => 1,
            };
            let found = client.read(number * BLOCK, 4096).unwrap();
            assert_eq!(found, block(want), "block {number} of {export}");
        }
        client.disconnect().unwrap();
    }
    server.stop();
}

#[test]
fn what_stands_twice_is_repaired() {
    let (_dir, probe) = store();
    all_is_right(&probe);
    let mut cases: Vec<(String, Damage)> = Vec::new();
    for file in files(&probe, "snapshots") {
        let name = relative(&probe, &file);
        cases.push((name.clone(), ("flipped", |f| flip(f, 40))));
        cases.push((name, ("missing", |f| std::fs::remove_file(f).unwrap())));
    }
    let segment = relative(&probe, &files(&probe, "save")[0]);
    cases.push((segment.clone(), ("header", |f| flip(f, 30))));
    cases.push((segment, ("group's head", |f| flip(f, 4096 + 70))));
    for name in ["meta-A", "meta-B"] {
        cases.push((format!("volumes/bad/{name}"), ("header", |f| flip(f, 40))));
        cases.push((format!("volumes/bad/{name}"), ("missing", |f| std::fs::remove_file(f).unwrap())));
    }
    cases.push(("volumes/bad/journal".to_owned(), ("state", |f| flip(f, 64 + 40 + 10))));
    cases.push(("volumes/bad/journal.copy".to_owned(), ("missing", |f| std::fs::remove_file(f).unwrap())));
    for (name, (what, damage)) in cases {
        let (_dir, store) = store();
        eprintln!("{name}: {what}");
        damage(&store.join(&name));
        check_finds(&store, &name);
        let output = snapvol(&store).args(["check", "--repair", "--json"]).output().unwrap();
        assert_eq!(output.status.code(), Some(4), "{}", describe(&output));
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let findings = report["findings"].as_array().unwrap();
        assert!(!findings.is_empty() && findings.iter().all(|f| f["repaired"].is_string()), "{report}");
        ok(&store, &["check"]);
        ok(&store, &["scrub"]);
        all_is_right(&store);
    }
}
