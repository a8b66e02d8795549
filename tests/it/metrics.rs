//! Metrics as a scraper sees them, and warnings as an owner does.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use crate::support::pair::Pair;
use crate::support::server::{Server, terminate};
use crate::support::stamper::Stamper;
use crate::support::{fails, json, ok, wait_for};
use snapvol::nbd::client::{Client, Options};

/// A port that nobody has at this moment.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// An answer: its status, and its body.
fn ask(port: u16, request: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{answer}"));
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

/// Samples by name and labels, in order; anything that is no sample or comment fails.
fn scrape(port: u16) -> BTreeMap<String, f64> {
    let (status, body) = ask(port, "GET /metrics HTTP/1.1\r\nHost: here\r\n\r\n");
    assert_eq!(status, 200);
    assert!(body.ends_with("# EOF\n"), "{body}");
    let mut found = BTreeMap::new();
    let mut types = BTreeMap::new();
    for line in body.lines() {
        if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').unwrap();
            assert!(types.insert(name.to_owned(), kind.to_owned()).is_none(), "{name} twice");
        } else if !line.starts_with('#') {
            let (sample, value) = line.rsplit_once(' ').unwrap();
            let name = sample.split('{').next().unwrap();
            let family = name.strip_suffix("_total").unwrap_or(name);
            let kind = if name.ends_with("_total") { "counter" } else { "gauge" };
            assert_eq!(types.get(family).map(String::as_str), Some(kind), "{line}");
            assert!(found.insert(sample.to_owned(), value.parse().unwrap()).is_none(), "{line} twice");
        }
    }
    found
}

#[test]
fn a_scraper_sees_volumes_clients_and_sessions() {
    let pair = Pair::new("64M");
    let port = free_port();
    let metrics = format!("127.0.0.1:{port}");
    let a = Server::start(&pair.a(), &["--metrics", &metrics]);
    let _b = Server::start(&pair.b(), &["--create", "other:1M"]);
    let mut client = Client::unix(&pair.a().join("nbd.sock"), "v", &Options::default()).unwrap();
    client.write(0, &vec![7; 1 << 20], false).unwrap();
    client.write(8192, &[8; 4096], true).unwrap();
    client.read(0, 65536).unwrap();
    client.flush().unwrap();
    client.trim(1 << 20, 4096).unwrap();
    ok(&pair.a(), &["snapshot", "v@s"]);
    ok(&pair.a(), &["drill", "v"]);
    ok(&pair.a(), &["schedule", "v", "--every", "1h"]);
    ok(&pair.a(), &["replicate", "v", &pair.there(), "--timeout", "100ms"]);
    ok(&pair.a(), &["cut", "v", "--wait"]);
    client.write(0, &[9; 4096], false).unwrap();
    ok(&pair.a(), &["cut", "v", "--wait"]);

    let found = scrape(port);
    let of = |name: &str, labels: &str| {
        let sample = format!("snapvol_{name}{{{labels}}}");
        *found.get(&sample).unwrap_or_else(|| panic!("{sample} in {found:#?}"))
    };
    let v = "volume=\"v\"";
    assert_eq!(of("volume_size_bytes", v), 67_108_864.0);
    assert_eq!(of("volume_in_use_bytes", v), 1_048_576.0);
    assert_eq!(of("volume_clients", "volume=\"v\",access=\"write\""), 1.0);
    for (kind, count, bytes) in [
        ("write", 3.0, 1_056_768.0),
        ("read", 1.0, 65_536.0),
        ("flush", 1.0, 0.0),
        ("trim", 1.0, 4096.0),
        ("cache", 0.0, 0.0),
    ] {
        let labels = format!("{v},kind=\"{kind}\"");
        assert_eq!(of("volume_requests_total", &labels), count, "{kind}");
        assert_eq!(of("volume_requested_bytes_total", &labels), bytes, "{kind}");
    }
    assert_eq!(of("volume_state", "volume=\"v+drill\",role=\"primary\",state=\"ok\""), 1.0);
    assert_eq!(of("volume_schedule_failing", v), 0.0);
    let session = format!("{v},peer=\"{}\",role=\"sender\"", pair.there());
    assert_eq!(of("session_state", &format!("{session},state=\"following\"")), 1.0);
    assert!(of("session_shipped_sets_total", &session) >= 2.0);
    assert!(of("session_shipped_bytes_total", &session) > 1_048_576.0);
    assert!(of("session_applied_set", &session) >= 2.0);
    assert_eq!((of("session_lag_seconds", &session), of("session_backlog_bytes", &session)), (0.0, 0.0));
    assert!(found["snapvol_space_free_bytes"] > 0.0);

    // Counters only rise, and whoever hangs or babbles is in nobody's way.
    let silent: Vec<TcpStream> = (0..8).map(|_| TcpStream::connect(("127.0.0.1", port)).unwrap()).collect();
    client.read(0, 512).unwrap();
    let later = scrape(port);
    for (name, value) in found.iter().filter(|(name, _)| name.contains("_total")) {
        assert!(later[name] >= *value, "{name}");
    }
    assert_eq!(later["snapvol_volume_requests_total{volume=\"v\",kind=\"read\"}"], 2.0);
    drop(silent);
    for (request, status) in [
        ("GET / HTTP/1.1\r\n\r\n", 404),
        ("POST /metrics HTTP/1.1\r\n\r\n", 404),
        ("GET /v1/status HTTP/1.1\r\n\r\n", 404),
        ("\x16\x03\x01 nonsense\r\n\r\n", 400),
    ] {
        assert_eq!(ask(port, request).0, status, "{request:?}");
    }
    // Two daemons can't have one port; the second says so and goes.
    let other = pair.dir.path().join("c");
    assert!(fails(1, &other, &["serve", "--metrics", &metrics]).contains("listen for metrics"));
    a.stop();
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err());
}

/// A daemon whose log goes to a file.
fn serve_logged(store: &Path, log: &Path) -> Child {
    let mut command = crate::support::snapvol(store);
    command.arg("serve").stdout(Stdio::null()).stderr(File::create(log).unwrap());
    let child = command.spawn().unwrap();
    wait_for("a daemon", Duration::from_secs(30), || json(store, &["status", "--json"])["running"] == true);
    child
}

#[test]
fn an_owner_is_warned_once_per_crossing() {
    let pair = Pair::new("64M");
    let log = pair.dir.path().join("log");
    let mut a = serve_logged(&pair.a(), &log);
    let b = Server::start(&pair.b(), &["--create", "other:1M"]);
    let stamper = Stamper::start(&pair.a(), 2000, Duration::from_millis(1));
    stamper.more(10);
    ok(
        &pair.a(),
        &["replicate", "v", &pair.there(), "--timeout", "200ms", "--warn-lag", "2s", "--warn-backlog", "64K"],
    );
    ok(&pair.a(), &["cut", "v", "--wait"]);
    let warnings = || {
        let status = json(&pair.a(), &["status", "--json"]);
        status["sessions"][0]["warnings"].as_array().unwrap().len()
    };
    let said = |what: &str| {
        let text = std::fs::read_to_string(&log).unwrap();
        text.lines().filter(|line| line.contains(what)).count()
    };
    // The far side takes nothing more.
    let held = File::open(pair.b().join("lock")).unwrap();
    b.kill();
    rustix::fs::flock(&held, rustix::fs::FlockOperation::LockExclusive).unwrap();
    wait_for("both warnings", Duration::from_secs(30), || warnings() == 2);
    assert!(ok(&pair.a(), &["status"]).contains("warning: "));
    wait_for("both in the log", Duration::from_secs(10), || said("past the mark") == 2);
    // However long it lasts, that is said once.
    std::thread::sleep(Duration::from_secs(5));
    assert_eq!(said("past the mark"), 2);
    stamper.end();
    drop(held);
    wait_for("no warnings", Duration::from_secs(90), || warnings() == 0);
    wait_for("that in the log", Duration::from_secs(10), || said("below the mark again") == 2);
    assert_eq!(said("past the mark"), 2);
    assert!(terminate(&mut a, Duration::from_secs(30)).is_some_and(|status| status.success()));
}
