//! Wrong words, wrong moments, wrong streams: the exit code that the interface promises,
//! one sentence and mostly a hint, and a store that is as it was.

use crate::support::server::{Server, terminate};
use crate::support::{available, describe, find, json, ok, scratch, snapvol};
use snapvol::nbd::client::{Client, Options};
use std::io::{Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

/// A store with the primary `v` (snapshots `a`, `b`, `held`), the secondary `r` that
/// received `v@a`, and streams of `v` beside it.
struct Fixture {
    _dir: tempfile::TempDir,
    root: PathBuf,
    store: PathBuf,
}

impl Fixture {
    fn new() -> Self {
        let dir = scratch();
        let root = dir.path().to_owned();
        let store = root.join("s");
        let server = Server::start(&store, &["--create", "v:8M", "--create", "w:8M"]);
        let mut client = connect(&server, "v");
        for (snapshot, value) in [("a", 1_u8), ("b", 2), ("held", 3)] {
            for block in 0..64_u64 {
                client.write(block * 4096, &[value; 4096], false).unwrap();
            }
            ok(&store, &["snapshot", &format!("v@{snapshot}")]);
        }
        client.disconnect().unwrap();
        ok(&store, &["hold", "v@held", "tag"]);
        server.stop();
        let this = Self { _dir: dir, root, store };
        for (args, file) in [(&["v@a"][..], "whole"), (&["v@b", "--from", "a"], "delta"), (&["v@b"], "b")] {
            let mut all = vec!["send"];
            all.extend(args);
            let path = this.path(file);
            all.extend(["-o", &path]);
            ok(&this.store, &all);
        }
        ok(&this.store, &["receive", "r", "-i", &this.path("whole")]);
        this
    }

    fn path(&self, name: &str) -> String {
        self.root.join(name).display().to_string()
    }

    fn bytes(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.root.join(name)).unwrap()
    }

    fn write(&self, name: &str, bytes: &[u8]) -> String {
        std::fs::write(self.root.join(name), bytes).unwrap();
        self.path(name)
    }

    /// The command fails so, says so, and changes nothing.
    #[track_caller]
    fn refuses(&self, code: i32, args: &[&str], words: &str) {
        let before = self.state();
        let output = snapvol(&self.store).args(args).output().unwrap();
        expect(code, &format!("{args:?}"), &output, words);
        assert_eq!(self.state(), before, "{args:?} changed the store");
    }

    fn state(&self) -> (serde_json::Value, Vec<String>) {
        let mut list = json(&self.store, &["list", "--json"]);
        for volume in list["volumes"].as_array_mut().unwrap() {
            // A state says what goes on, not what is stored.
            volume.as_object_mut().unwrap().remove("state");
        }
        let names = std::fs::read_dir(self.store.join("volumes")).unwrap();
        let mut names: Vec<String> =
            names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        (list, names)
    }
}

fn connect(server: &Server, export: &str) -> Client {
    Client::unix(&server.socket(), export, &Options::default()).unwrap()
}

/// Exit code, one sentence, perhaps a hint, no panic. Logs of the store may come first.
#[track_caller]
fn expect(code: i32, what: &str, output: &Output, words: &str) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{what}: {}", describe(output));
    assert!(!stderr.contains("panicked") && !stderr.contains("RUST_BACKTRACE"), "{what}: {stderr}");
    assert!(stderr.contains(words), "{what}: '{words}' is not in: {stderr}");
    let lines: Vec<&str> = stderr.lines().filter(|line| line.starts_with("snapvol: ")).collect();
    let usage = stderr.lines().any(|line| line.starts_with("error: "));
    assert!(lines.len() == 1 || usage, "{what}: {stderr}");
    assert!(stderr.lines().filter(|line| line.starts_with("hint: ")).count() <= 1, "{what}: {stderr}");
}

#[test]
fn words_that_mean_nothing() {
    let f = Fixture::new();
    let long = "x".repeat(64);
    let cases: &[(&[&str], i32, &str)] = &[
        // Names.
        (&["create", &long, "--size", "1M"], 2, ""),
        (&["create", "", "--size", "1M"], 2, ""),
        (&["create", ".x", "--size", "1M"], 2, ""),
        (&["create", "-x", "--size", "1M"], 2, ""),
        (&["create", "a/b", "--size", "1M"], 2, ""),
        (&["create", "a\nb", "--size", "1M"], 2, ""),
        (&["create", "ä", "--size", "1M"], 2, ""),
        (&["create", "v@a", "--size", "1M"], 2, ""),
        (&["snapshot", "v@"], 2, ""),
        (&["snapshot", "@a"], 2, ""),
        (&["snapshot", "v@a@b"], 2, ""),
        (&["snapshot", "v@../x"], 2, ""),
        (&["snapshot", "v@_hidden"], 2, ""),
        (&["hold", "v@a", ""], 2, ""),
        (&["hold", "v@a", "a/b"], 2, ""),
        // Sizes.
        (&["create", "n", "--size", "1"], 2, "512"),
        (&["create", "n", "--size", "65T"], 2, ""),
        (&["create", "n", "--size", "99999999999999999999"], 2, ""),
        (&["create", "n", "--size", "16777216T"], 2, ""),
        (&["create", "n", "--size", "1.5M"], 2, ""),
        (&["create", "n", "--size", " 1M"], 2, ""),
        (&["create", "n", "--size", "0x10"], 2, ""),
        (&["create", "n", "--size", "1M", "--block-size", "256"], 2, ""),
        (&["create", "n", "--size", "1M", "--block-size", "1G"], 2, ""),
        (&["create", "n", "--size", "1M", "--granularity", "0"], 2, ""),
        (&["create", "n", "--size", "1M", "--granularity", "99999999"], 2, ""),
        (&["resize", "v", "513"], 2, ""),
        (&["resize", "v", "0"], 2, ""),
        (&["resize", "v", "65T"], 2, ""),
        (&["set", "v", "on-full=never"], 2, ""),
        // Snapshots of one volume, twice in one command.
        (&["snapshot", "v@x", "v@y"], 2, "twice"),
        (&["snapshot", "v@x", "v@x"], 2, "twice"),
        (&["snapshot", "w@x", "v@y", "w@z"], 2, "twice"),
        // The wrong order, the wrong base.
        (&["diff", "v@b", "v@a"], 2, ""),
        (&["diff", "v@a", "v@a"], 2, ""),
        (&["diff", "v@a", "w@b"], 2, ""),
        (&["send", "v@a", "--from", "b", "-o", "/dev/null"], 2, ""),
        (&["send", "v@a", "--from", "v@a", "-o", "/dev/null"], 2, ""),
        (&["send", "v@a", "--from", "w@a", "-o", "/dev/null"], 2, ""),
        (&["send", "v@a", "--resume", "nonsense", "-o", "/dev/null"], 2, ""),
        (&["copy", "v@a", "relative/path"], 2, ""),
        (&["copy", "v@a", "http://host/s/v"], 2, ""),
        (&["copy", "v@a", "ssh://-oProxyCommand=x/s/v"], 2, ""),
        (&["copy", "v@a", "ssh://-x@host/s/v"], 2, ""),
        (&["copy", "v@a", "ssh://host:99999/s/v"], 2, ""),
        (&["copy", "v@a", "/v"], 2, ""),
        (&["copy", "v@a", "/tmp/s/v", "--from", "a", "--full"], 2, ""),
        (&["verify", "v@", "/tmp/s/v"], 2, ""),
        (&["verify", "v@a", "relative/path"], 2, ""),
        (&["verify", "v@a", "ssh://-oProxyCommand=x/s/v"], 2, ""),
        (&["serve", "--create", "x:513"], 2, ""),
        (&["serve", "--listen", "nonsense"], 2, ""),
        (&["serve", "--listen", "127.0.0.1:99999"], 2, ""),
        (&["serve", "--threads", "-1"], 2, ""),
        (&["receive", "v", "--status", "--abort"], 2, ""),
        // What is not there.
        (&["list", "nobody"], 5, "nobody"),
        (&["snapshot", "nobody@x"], 5, "nobody"),
        (&["snapshot", "v@x", "nobody@x"], 5, "nobody"),
        (&["delete", "v@nothing"], 5, "nothing"),
        (&["delete", "v@a", "v@nothing"], 5, "nothing"),
        (&["delete", "nobody"], 5, "nobody"),
        (&["delete", "nobody", "--recursive"], 5, "nobody"),
        (&["hold", "v@nothing", "t"], 5, "nothing"),
        (&["release", "v@a", "no-such-tag"], 5, ""),
        (&["rollback", "v@nothing"], 5, "nothing"),
        (&["diff", "v@nothing"], 5, "nothing"),
        (&["diff", "v@a", "v@nothing"], 5, "nothing"),
        (&["resize", "nobody", "1M"], 5, "nobody"),
        (&["set", "nobody", "on-full=freeze"], 5, "nobody"),
        (&["send", "v@nothing", "-o", "/dev/null"], 5, "nothing"),
        (&["send", "v@a", "--from", "nothing", "-o", "/dev/null"], 5, "nothing"),
        (&["promote", "nobody"], 5, "nobody"),
        (&["demote", "nobody"], 5, "nobody"),
        (&["scrub", "nobody"], 5, "nobody"),
        (&["receive", "nobody", "--status"], 5, "nobody"),
        (&["receive", "nobody", "--abort"], 5, "nobody"),
        // What forbids it.
        (&["init"], 3, ""),
        (&["create", "v", "--size", "1M"], 3, "exists"),
        (&["snapshot", "v@a"], 3, "a"),
        (&["snapshot", "w@new", "v@a"], 3, "a"),
        (&["delete", "v@held"], 3, "held"),
        (&["delete", "v@a", "v@held"], 3, "held"),
        (&["delete", "v"], 3, ""),
        (&["delete", "v", "--recursive"], 3, "held"),
        (&["hold", "v@held", "tag"], 3, ""),
        (&["resize", "v", "4M"], 3, "--force"),
        (&["promote", "v"], 3, ""),
        (&["demote", "r"], 3, ""),
        (&["rollback", "r@a"], 3, ""),
        (&["resize", "r", "16M"], 3, ""),
        // Files.
        (&["send", "v@a", "-o", "/nonexistent/file"], 1, "/nonexistent"),
        (&["receive", "x", "-i", "/nonexistent"], 1, "/nonexistent"),
        (&["receive", "x", "-i", "/"], 1, ""),
    ];
    let mut wrong = Vec::new();
    for (args, code, words) in cases {
        let result = std::panic::catch_unwind(|| f.refuses(*code, args, words));
        if result.is_err() {
            wrong.push(format!("{args:?}"));
        }
    }
    assert!(wrong.is_empty(), "{} of {}: {wrong:#?}", wrong.len(), cases.len());
}

/// What ext4 takes no file of is refused with a sentence, and leaves nothing behind.
#[test]
fn more_than_the_file_system_takes() {
    let f = Fixture::new();
    let before = f.state();
    let output = snapvol(&f.store).args(["create", "huge", "--size", "64T"]).output().unwrap();
    if output.status.success() {
        ok(&f.store, &["delete", "huge"]);
        return;
    }
    expect(1, "create", &output, "hint: ");
    assert_eq!(f.state(), before);
    f.refuses(1, &["resize", "v", "64T"], "hint: ");
    let output = snapvol(&f.root.join("new")).args(["serve", "--create", "huge:64T"]).output().unwrap();
    expect(1, "serve", &output, "");
}

#[test]
fn a_store_that_is_none() {
    let f = Fixture::new();
    let file = f.write("file", b"x");
    for (store, code) in [(f.path("absent"), 5), (f.path("file"), 5), (file, 5)] {
        for args in [&["list"][..], &["check"], &["snapshot", "v@x"], &["create", "x", "--size", "1M"]] {
            let output = snapvol(Path::new(&store)).args(args).output().unwrap();
            expect(code, &format!("{args:?}"), &output, "there is no store");
        }
    }
    for store in [f.path("file"), f.path("")] {
        let output = snapvol(Path::new(&store)).arg("init").output().unwrap();
        assert!(matches!(output.status.code(), Some(1 | 3)), "{}", describe(&output));
        let output = snapvol(Path::new(&store)).arg("serve").output().unwrap();
        assert!(matches!(output.status.code(), Some(1 | 3)), "{}", describe(&output));
    }
    assert_eq!(f.bytes("file"), b"x");
}

#[test]
fn streams_that_are_none() {
    let f = Fixture::new();
    let (whole, delta) = (f.bytes("whole"), f.bytes("delta"));
    let mut random = vec![0; 10_000];
    fastrand::Rng::with_seed(3).fill(&mut random);
    let altered = |at: usize| {
        let mut bytes = whole.clone();
        bytes[at] ^= 4;
        bytes
    };
    let cases = [
        ("empty", Vec::new(), 1),
        ("random", random, 2),
        ("text", b"hello, this is no stream at all, only a text".to_vec(), 2),
        ("cut in the preamble", whole[..7].to_vec(), 1),
        ("cut in the header", whole[..40].to_vec(), 1),
        ("cut in the middle", whole[..whole.len() / 2].to_vec(), 1),
        ("cut before the last byte", whole[..whole.len() - 1].to_vec(), 1),
        ("altered in the header", altered(60), 4),
        ("altered in the middle", altered(whole.len() / 2), 4),
        ("altered at the end", altered(whole.len() - 2), 4),
    ];
    let mut wrong = Vec::new();
    for (what, bytes, code) in cases {
        let path = f.write("stream", &bytes);
        let volume = format!("new-{}", what.replace(' ', "-"));
        let output = snapvol(&f.store).args(["receive", &volume, "-i", &path]).output().unwrap();
        let result = std::panic::catch_unwind(|| expect(code, what, &output, ""));
        if result.is_err() {
            wrong.push(what);
        }
        // What was begun shows no snapshot, and can be given up.
        let list = json(&f.store, &["list", "--json"]);
        let entry = list["volumes"].as_array().unwrap().iter().find(|v| v["name"] == volume.as_str());
        if let Some(entry) = entry {
            assert_eq!(entry["snapshots"].as_array().unwrap().len(), 0, "{what}: {list}");
            assert_eq!(entry["role"], "secondary", "{what}: a half received volume is writable");
        }
    }
    assert!(wrong.is_empty(), "{wrong:?}");
    // What came before is not harmed, and the right stream still works.
    let path = f.write("stream", &delta[..delta.len() - 10]);
    let output = snapvol(&f.store).args(["receive", "r", "-i", &path]).output().unwrap();
    expect(1, "a cut delta", &output, "");
    ok(&f.store, &["receive", "r", "-i", &f.path("delta")]);
    ok(&f.store, &["receive", "r", "-i", &f.path("delta")]);
    ok(&f.store, &["check"]);
    ok(&f.store, &["scrub"]);
}

#[test]
fn streams_for_somebody_else() {
    let f = Fixture::new();
    // Into a primary; without its base; again; under a name that is taken.
    // (The volume that the stream came from holds it already.)
    ok(&f.store, &["receive", "v", "-i", &f.path("whole")]);
    f.refuses(3, &["receive", "w", "-i", &f.path("whole")], "");
    let output = snapvol(&f.store).args(["receive", "fresh", "-i", &f.path("delta")]).output().unwrap();
    expect(3, "a delta without its base", &output, "");
    ok(&f.store, &["receive", "r", "-i", &f.path("whole")]);
    // Another snapshot of the same name.
    let other = f.root.join("o");
    ok(&other, &["init"]);
    ok(&other, &["create", "v", "--size", "8M"]);
    ok(&other, &["snapshot", "v@a"]);
    ok(&other, &["send", "v@a", "-o", &f.path("other")]);
    f.refuses(3, &["receive", "r", "-i", &f.path("other")], "a");
    // From standard input that is a terminal, or to standard output that is one.
    if available(find("script").is_some(), "script") {
        for words in ["send v@a", "receive fresh"] {
            let line = format!("{} --store {} {words}", crate::support::SNAPVOL, f.store.display());
            let output = std::process::Command::new("script")
                .args(["-qec", &line, "/dev/null"])
                .stdin(Stdio::null())
                .output()
                .unwrap();
            let text = String::from_utf8_lossy(&output.stdout);
            assert_eq!(output.status.code(), Some(2), "{words}: {}", describe(&output));
            assert!(text.contains("terminal") && text.contains("hint: "), "{words}: {text}");
        }
    }
}

#[test]
fn clients_that_are_in_the_way() {
    let f = Fixture::new();
    let server = Server::start(&f.store, &[]);
    let writer = connect(&server, "v");
    for (args, words) in [
        (&["rollback", "v@a"][..], "--force"),
        (&["delete", "w"], ""),
        (&["demote", "v"], "--force"),
        (&["resize", "v", "4M"], "--force"),
        (&["check", "--repair"], "stop the daemon"),
    ] {
        if args[0] == "delete" {
            continue;
        }
        f.refuses(3, args, words);
    }
    let old = connect(&server, "v@a");
    f.refuses(3, &["delete", "v@a"], "");
    f.refuses(3, &["delete", "v@b", "v@a"], "");
    old.disconnect().unwrap();
    writer.disconnect().unwrap();
    let reader = connect(&server, "w");
    f.refuses(3, &["delete", "w"], "");
    reader.disconnect().unwrap();
    // A second server, on any socket.
    let other = f.path("other.sock");
    for args in [&["serve"][..], &["serve", "--unix", &other]] {
        let output = snapvol(&f.store).args(args).output().unwrap();
        expect(3, "a second serve", &output, "");
    }
    let mut still = connect(&server, "v");
    assert_eq!(still.read(0, 4096).unwrap(), [3; 4096]);
    still.disconnect().unwrap();
    server.stop();
}

#[test]
fn sockets_that_cannot_be() {
    let f = Fixture::new();
    let long = f.path(&"x".repeat(120));
    f.refuses(2, &["serve", "--unix", &long], "");
    let theirs = f.path("theirs.sock");
    let listener = UnixListener::bind(&theirs).unwrap();
    f.refuses(3, &["serve", "--unix", &theirs], "theirs.sock");
    assert!(Path::new(&theirs).exists(), "the socket of a living server was taken away");
    drop(listener);
    let file = f.write("precious", b"data");
    let output = snapvol(&f.store).args(["serve", "--unix", &file]).output().unwrap();
    assert!(matches!(output.status.code(), Some(1..=3)), "{}", describe(&output));
    assert_eq!(f.bytes("precious"), b"data", "a file was replaced by a socket");
    f.refuses(1, &["serve", "--unix", &f.path("no/such/dir/sock")], "");
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = port.local_addr().unwrap().to_string();
    f.refuses(3, &["serve", "--listen", &address], &address);
    // What a dead server left is replaced.
    let server = Server::start(&f.store, &[]);
    server.kill();
    Server::start(&f.store, &[]).stop();
}

#[test]
fn noise_at_the_control_socket() {
    let f = Fixture::new();
    let server = Server::start(&f.store, &[]);
    let socket = std::fs::read_dir(&f.store)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.extension().is_some_and(|e| e == "sock") && *path != server.socket())
        .unwrap();
    let mut rng = fastrand::Rng::with_seed(11);
    let mut requests: Vec<Vec<u8>> = vec![
        Vec::new(),
        b"\n\n\n\n".to_vec(),
        b"POST /v1/list HTTP/1.1\r\n".to_vec(),
        b"POST /v1/list HTTP/1.1\r\nX: y\r\n".to_vec(),
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        b"POST /v1/no-such-thing HTTP/1.1\r\nContent-Length: 0\r\n\r\n".to_vec(),
        b"POST /v1/list HTTP/1.1\r\nContent-Length: 5\r\n\r\n{\"a\"".to_vec(),
        b"POST /v1/list HTTP/1.1\r\nContent-Length: 3\r\n\r\n[1]".to_vec(),
        b"POST /v1/create HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n{}".to_vec(),
        b"POST /v1/list HTTP/1.1\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}".to_vec(),
        b"POST /v1/receive/../../etc HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
            .to_vec(),
        b"POST /v1/receive/new HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n".to_vec(),
        b"POST /v1/receive/new HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel".to_vec(),
        [b"POST /v1/list HTTP/1.1\r\n".to_vec(), b"X: y\r\n".repeat(10_000)].concat(),
        vec![b'A'; 1 << 20],
        [b"POST /v1/scrub HTTP/1.1\r\nContent-Length: 60000\r\n\r\n".to_vec(), vec![b'['; 60_000]].concat(),
        br#"POST /v1/resize HTTP/1.1
Content-Length: 61

{"volume":"v","size":18446744073709551615,"force":true}      "#
            .to_vec(),
        br#"POST /v1/snapshot HTTP/1.1
Content-Length: 12

{"names":[]}"#
            .to_vec(),
        br#"POST /v1/delete-volume HTTP/1.1
Content-Length: 40

{"volume":"../../volumes/v","recursive":true}"#
            .to_vec(),
    ];
    for _ in 0..200 {
        let mut bytes = vec![0; rng.usize(0..2000)];
        rng.fill(&mut bytes);
        requests.push(bytes);
    }
    let before = f.state();
    for request in requests {
        let mut stream = UnixStream::connect(&socket).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream.set_write_timeout(Some(Duration::from_secs(10))).unwrap();
        let _ = stream.write_all(&request);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        let begun = std::time::Instant::now();
        let _ = stream.read_to_end(&mut answer);
        assert!(begun.elapsed() < Duration::from_secs(9), "no answer and no end");
        assert!(
            !answer.starts_with(b"HTTP/1.1 200"),
            "{:?}",
            String::from_utf8_lossy(&request[..request.len().min(80)])
        );
    }
    // Many that say nothing at all.
    let silent: Vec<UnixStream> = (0..50).map(|_| UnixStream::connect(&socket).unwrap()).collect();
    assert_eq!(f.state(), before);
    let mut client = connect(&server, "v");
    assert_eq!(client.read(0, 4096).unwrap(), [3; 4096]);
    client.disconnect().unwrap();
    drop(silent);
    server.stop();
    ok(&f.store, &["check"]);
}

/// A request that arrives a byte at a time is given up in the time that a request has.
#[test]
fn a_request_that_trickles_in_is_given_up() {
    let f = Fixture::new();
    let server = Server::start(&f.store, &[]);
    let mut stream = UnixStream::connect(f.store.join("control.sock")).unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
    let begun = std::time::Instant::now();
    let mut answer = Vec::new();
    for byte in std::iter::repeat_n(b'A', 120) {
        let _ = stream.write_all(&[byte]);
        std::thread::sleep(Duration::from_millis(150));
        let mut some = [0; 256];
        match stream.read(&mut some) {
            Ok(0) => break,
            Ok(read) => answer.extend(&some[..read]),
            Err(_) => {}
        }
    }
    assert!(begun.elapsed() < Duration::from_secs(15), "it was heard for {:?}", begun.elapsed());
    assert!(!answer.starts_with(b"HTTP/1.1 200"));
    server.stop();
}

/// A daemon that is stopped ends, whoever is connected and silent.
#[test]
fn silence_does_not_keep_the_daemon() {
    let f = Fixture::new();
    let mut child = snapvol(&f.store).arg("serve").stdout(Stdio::piped()).spawn().unwrap();
    let mut line = [0; 16];
    child.stdout.as_mut().unwrap().read_exact(&mut line).unwrap();
    let nbd = UnixStream::connect(f.store.join("nbd.sock")).unwrap();
    let control = std::fs::read_dir(&f.store)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.extension().is_some_and(|e| e == "sock") && !path.ends_with("nbd.sock"))
        .map(|path| UnixStream::connect(path).unwrap());
    let status = terminate(&mut child, Duration::from_secs(30));
    assert!(status.is_some_and(|status| status.success()), "{status:?}");
    drop((nbd, control));
}
