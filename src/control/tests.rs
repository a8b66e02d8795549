//! The two ends of the control socket against each other, and the server against
//! peers that misbehave; the store behind it is a fake.

use super::service::Service;
use super::wire::Call;
use super::*;
use crate::engine::api::{Received, SendRequest, Status};
use crate::engine::sets::FeedSet;
use crate::error::ErrorKind;
use crate::types::{RoleEpoch, SetId, SetStamp};
use serde_json::{Value, json};
use std::io::{Cursor, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use uuid::Uuid;

/// What streams in tests are made of.
fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| u8::try_from(at % 251).unwrap()).collect()
}

const STREAM_LEN: usize = 5 << 20;

#[derive(Default)]
struct Fake {
    calls: Mutex<Vec<Call>>,
    /// Where given, `scrub` waits for it.
    gate: Mutex<Option<mpsc::Receiver<()>>>,
}

struct FailsLater(Cursor<Vec<u8>>);

impl Read for FailsLater {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        match self.0.read(buffer)? {
            0 => Err(into_io(Error::corrupt("block 7 is damaged\nindeed").hint("scrub"))),
            read => Ok(read),
        }
    }
}

/// A set with something in every field.
fn feed() -> FeedSet {
    let (one, two) = (Uuid::from_u128(1), Uuid::from_u128(u128::MAX));
    let epoch = RoleEpoch { counter: 2, identity: one };
    let stamp = SetStamp { epoch, number: 7, base: Some(two) };
    FeedSet {
        session: two,
        opening: one,
        volume: "v".to_owned(),
        set: SetId { stamp, target: one },
        keep: Some(5),
        together: true,
    }
}

impl Service for Fake {
    fn call(&self, call: Call) -> Result<Value> {
        self.calls.lock().unwrap().push(call.clone());
        match call {
            Call::Status {} => {
                Ok(serde_json::to_value(Status { pid: Some(7), ..Status::default() }).unwrap())
            }
            Call::Scrub { .. } => {
                if let Some(gate) = self.gate.lock().unwrap().take() {
                    let _ = gate.recv();
                }
                Ok(json!(null))
            }
            Call::Promote { volume, .. } => {
                Err(Error::conflict(format!("{volume} is primary")).context("promote").hint("do nothing"))
            }
            _ => Ok(json!(null)),
        }
    }

    fn send(&self, request: &SendRequest) -> Result<Box<dyn Read + Send>> {
        match request.snapshot.as_str() {
            "whole" => Ok(Box::new(Cursor::new(pattern(STREAM_LEN)))),
            "empty" => Ok(Box::new(std::io::empty())),
            "damaged" => Ok(Box::new(FailsLater(Cursor::new(pattern(100_000))))),
            other => Err(Error::not_found(format!("no snapshot {other}"))),
        }
    }

    fn receive_set(&self, feed: &FeedSet, input: &mut (dyn Read + Send)) -> Result<Received> {
        assert_eq!(*feed, self::feed());
        self.receive(&feed.volume, input)
    }

    fn receive(&self, volume: &str, input: &mut (dyn Read + Send)) -> Result<Received> {
        if volume == "refused" {
            return Err(Error::conflict("the base does not match"));
        }
        let mut bytes = Vec::new();
        input.read_to_end(&mut bytes).map_err(|error| error_of("read the stream", error))?;
        assert!(bytes == pattern(bytes.len()));
        Ok(Received {
            volume: volume.to_owned(),
            snapshot: "s".to_owned(),
            uuid: uuid::Uuid::nil(),
            already: false,
            data_bytes: bytes.len() as u64,
            discard_bytes: 0,
        })
    }
}

struct Setup {
    dir: tempfile::TempDir,
    fake: Arc<Fake>,
    server: Server,
}

impl Setup {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let fake = Arc::new(Fake::default());
        let server = Server::start(dir.path(), fake.clone()).unwrap();
        Self { dir, fake, server }
    }

    fn client(&self) -> Client {
        Client::probe(self.dir.path()).unwrap().unwrap()
    }

    /// Sends bytes as they are and returns all that comes back.
    fn raw(&self, bytes: &[u8]) -> String {
        let mut stream = UnixStream::connect(self.dir.path().join(SOCKET_NAME)).unwrap();
        let _ = stream.write_all(bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    }
}

fn request(snapshot: &str) -> SendRequest {
    SendRequest { volume: "db".into(), snapshot: snapshot.into(), from: None, compress: false, resume: None }
}

#[test]
fn calls_arrive_as_they_were_made() {
    let setup = Setup::new();
    let status: Status = setup.client().call(&Call::Status {}).unwrap();
    assert_eq!(status.pid, Some(7));
    let call = Call::DeleteSnapshots { names: vec!["db@a".into(), "db@b".into()] };
    setup.client().call::<()>(&call).unwrap();
    assert_eq!(*setup.fake.calls.lock().unwrap(), [Call::Status {}, call]);
}

#[test]
fn errors_keep_kind_text_and_hint() {
    let setup = Setup::new();
    let error = setup.client().call::<()>(&Call::Promote { volume: "db".into(), force: false }).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert_eq!(error.to_string(), "promote: db is primary");
    assert_eq!(error.hint_text(), Some("do nothing"));
}

#[test]
fn streams_pass_whole_both_ways() {
    let setup = Setup::new();
    let mut bytes = Vec::new();
    setup.client().send(&request("whole")).unwrap().read_to_end(&mut bytes).unwrap();
    assert!(bytes == pattern(STREAM_LEN));
    bytes.clear();
    setup.client().send(&request("empty")).unwrap().read_to_end(&mut bytes).unwrap();
    assert!(bytes.is_empty());
    let received = setup.client().receive("db", &mut Cursor::new(pattern(STREAM_LEN))).unwrap();
    assert_eq!(received.data_bytes, STREAM_LEN as u64);
}

#[test]
fn a_stream_that_fails_never_looks_complete() {
    let setup = Setup::new();
    let mut bytes = Vec::new();
    let error = setup.client().send(&request("damaged")).unwrap().read_to_end(&mut bytes).unwrap_err();
    let error = error_of("read", error);
    assert_eq!((error.kind(), error.hint_text()), (ErrorKind::Corrupt, Some("scrub")));
    assert!(error.to_string().contains("block 7 is damaged"));
    assert_eq!(bytes.len(), 100_000);
    let body = serde_json::to_string(&request("damaged")).unwrap();
    let ask = format!("POST /v1/send HTTP/1.1\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    let answer = setup.raw(ask.as_bytes());
    assert!(answer.starts_with("HTTP/1.1 200 ") && !answer.ends_with("0\r\n\r\n"), "{}", answer.len());
    let error = setup.client().send(&request("none")).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

#[test]
fn a_refused_receive_says_why_in_mid_stream() {
    let setup = Setup::new();
    let received = setup.client().receive_set(&feed(), &mut Cursor::new(pattern(STREAM_LEN))).unwrap();
    assert_eq!(received.data_bytes, STREAM_LEN as u64);
    let error = setup.client().receive("refused", &mut std::io::repeat(7).take(1 << 30)).unwrap_err();
    assert_eq!((error.kind(), error.to_string().as_str()), (ErrorKind::Conflict, "the base does not match"));
}

#[test]
fn a_receive_whose_input_fails_is_not_applied() {
    let setup = Setup::new();
    let error = setup.client().receive("db", &mut FailsLater(Cursor::new(pattern(9000)))).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    let answer =
        setup.raw(b"POST /v1/receive/db HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n\0\x01\x02\r\n");
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("mid-stream"), "{answer}");
}

#[test]
fn a_long_request_does_not_hold_up_a_short_one() {
    let setup = Setup::new();
    let (open, gate) = mpsc::channel();
    *setup.fake.gate.lock().unwrap() = Some(gate);
    let client = setup.client();
    let long = std::thread::spawn(move || client.call::<()>(&Call::Scrub { volume: None }));
    let sending = setup.client().send(&request("whole")).unwrap();
    let status: Status = setup.client().call(&Call::Status {}).unwrap();
    assert_eq!(status.pid, Some(7));
    drop(sending);
    open.send(()).unwrap();
    long.join().unwrap().unwrap();
}

#[test]
fn garbage_is_refused_and_serving_goes_on() {
    let setup = Setup::new();
    let bad = [
        b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03\r\n\r\n".to_vec(),
        b"hello\r\n\r\n".to_vec(),
        b"POST /v1/status HTTP/1.1\r\nContent-Length: -1\r\n\r\n".to_vec(),
        b"POST /v1/status HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n".to_vec(),
        b"POST /v1/status HTTP/1.1\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}".to_vec(),
        b"POST /v1/status HTTP/1.1\r\nContent-Length: 3\r\n\r\n[1]".to_vec(),
        b"POST /v1/status HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n".to_vec(),
        b"POST /v1/status HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n!oops\r\n".to_vec(),
        b"POST /v1/no-such HTTP/1.1\r\n\r\n".to_vec(),
        b"POST /v1/create HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}".to_vec(),
        b"GET /v1/status HTTP/1.1\r\n\r\n".to_vec(),
        b"POST / HTTP/1.1\r\n\r\n".to_vec(),
    ];
    for bytes in &bad {
        let answer = setup.raw(bytes);
        assert!(answer.starts_with("HTTP/1.1 400 "), "{:?}: {answer}", String::from_utf8_lossy(bytes));
        assert!(answer.contains("\"kind\":\"invalid\""), "{answer}");
    }
    assert_eq!(setup.raw(b""), "");
    assert!(setup.raw(b"POST /v1/status HT").starts_with("HTTP/1.1 503 "));
    assert!(
        setup.raw(b"POST /v1/status HTTP/1.1\r\nContent-Length: 9\r\n\r\n{}").starts_with("HTTP/1.1 503 ")
    );
    assert!(setup.raw(b"POST /v1/status HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 200 "));
}

#[test]
fn what_is_too_large_is_refused() {
    let setup = Setup::new();
    let long = format!("POST /v1/status HTTP/1.1\r\nX: {}", "x".repeat(http::HEAD_LEN_MAX));
    assert!(setup.raw(long.as_bytes()).starts_with("HTTP/1.1 400 "));
    let many = format!("POST /v1/status HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(http::HEADERS_MAX + 1));
    assert!(setup.raw(many.as_bytes()).starts_with("HTTP/1.1 400 "));
    let len = http::REQUEST_JSON_LEN_MAX + 1;
    let mut body = format!("POST /v1/status HTTP/1.1\r\nContent-Length: {len}\r\n\r\n").into_bytes();
    body.resize(body.len() + usize::try_from(len).unwrap(), b' ');
    assert!(setup.raw(&body).starts_with("HTTP/1.1 400 "));
}

#[test]
fn the_socket_is_private_replaced_and_removed() {
    let mut setup = Setup::new();
    let path = setup.dir.path().join(SOCKET_NAME);
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    setup.server.stop();
    assert!(!path.exists());
    assert!(Client::probe(setup.dir.path()).unwrap().is_none());
    // What a daemon that was killed leaves behind.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    assert!(Client::probe(setup.dir.path()).unwrap().is_none());
    let again = Server::start(setup.dir.path(), Arc::new(Fake::default())).unwrap();
    assert!(Client::probe(setup.dir.path()).unwrap().is_some());
    drop(again);
}

#[test]
fn a_directory_with_a_long_path_has_a_socket_too() {
    let dir = tempfile::tempdir().unwrap();
    let deep = dir.path().join("d".repeat(100)).join("e".repeat(100));
    std::fs::create_dir_all(&deep).unwrap();
    let server = Server::start(&deep, Arc::new(Fake::default())).unwrap();
    let client = Client::probe(&deep).unwrap().unwrap();
    let status: Status = client.call(&Call::Status {}).unwrap();
    assert_eq!(status.pid, Some(7));
    drop(server);
    assert!(!deep.join(SOCKET_NAME).exists());
}

#[test]
fn a_stop_cuts_streams_off() {
    let mut setup = Setup::new();
    let mut stream = setup.client().send(&request("whole")).unwrap();
    setup.server.stop();
    let mut bytes = Vec::new();
    let error = stream.read_to_end(&mut bytes).unwrap_err();
    assert_eq!(error_of("read", error).kind(), ErrorKind::Interrupted);
}

#[test]
fn every_call_survives_the_wire() {
    let name = || "db@a".to_owned();
    let calls = [
        Call::List { volume: None },
        Call::Resize { volume: "db".into(), size: u64::MAX, force: true },
        Call::Hold { name: name(), tag: "t".into() },
        Call::Diff { from: name(), to: None },
        Call::SetOnFull { volume: "db".into(), on_full: crate::types::OnFull::DropOldest },
        Call::Status {},
    ];
    for call in calls {
        let (op, arguments) = call.to_parts().unwrap();
        assert_eq!(Call::from_parts(&op, arguments.to_string().as_bytes()).unwrap(), call);
    }
    assert_eq!(Call::from_parts("status", b"").unwrap(), Call::Status {});
    for kind in [ErrorKind::Corrupt, ErrorKind::ReadOnly, ErrorKind::OutOfRange] {
        let error = Error::new(kind, "x");
        assert_eq!(Error::from(wire::WireError::from(&error)).kind(), kind);
    }
}

#[test]
fn no_store_is_not_found() {
    let dir = tempfile::tempdir().unwrap();
    let error = Access::open(&dir.path().join("none")).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.hint_text().unwrap().ends_with(" init"));
}

/// A peer that goes after a whole line, and a head that is full after one, are the end:
/// reading nothing must not be taken for a line, over and over.
#[test]
fn a_head_without_its_end_ends() {
    let line = "X: y\r\n";
    let first = "POST /v1/list HTTP/1.1\r\n";
    for cut in ["\n", "\r\n", first, &format!("{first}{line}")] {
        let error = http::read_request(&mut cut.as_bytes()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Interrupted, "{cut:?}");
    }
    for pad in 0..line.len() {
        let endless = format!("{first}P: {}\r\n{}", "p".repeat(pad), line.repeat(100_000));
        let error = http::read_request(&mut endless.as_bytes()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
    }
}
