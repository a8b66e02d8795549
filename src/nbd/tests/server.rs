//! Whole servers on sockets, with the client of this crate at the other end.

use super::exports;
use crate::engine::device::Extent;
use crate::error::ErrorKind;
use crate::io::DriverKind;
use crate::nbd::client::{Client, Options};
use crate::nbd::memory::{Memory, MemoryExports};
use crate::nbd::proto::{Request, cmd, cmd_flag, flag};
use crate::nbd::server::Address;
use crate::nbd::{Limits, Listen, Server};
use bytes::BytesMut;
use std::collections::HashMap;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

const QUICK: Limits = Limits {
    connections: 8,
    handshake: Duration::from_millis(300),
    stop: Duration::from_millis(300),
    patience: Duration::from_secs(60),
    in_flight_bytes: 1 << 30,
};

fn structured() -> Options {
    Options { structured: true, ..Options::default() }
}

struct Here {
    dir: tempfile::TempDir,
    exports: MemoryExports,
    server: Server,
}

impl Here {
    fn new(exports: MemoryExports) -> Self {
        Self::within(QUICK, exports)
    }

    fn within(limits: Limits, exports: MemoryExports) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listen = [Listen::Unix(dir.path().join("s")), Listen::Tcp("127.0.0.1:0".to_owned())];
        let server = Server::start(exports.clone(), &listen, limits).unwrap();
        Self { dir, exports, server }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("s")
    }

    fn client(&self, export: &str, options: &Options) -> Client {
        Client::unix(&self.socket(), export, options).unwrap()
    }

    /// Waits until that many connections are left.
    fn wait_for(&self, connections: usize) {
        let start = Instant::now();
        while self.server.connections() != connections {
            assert!(start.elapsed() < Duration::from_secs(20), "{} connections", self.server.connections());
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

fn use_all_commands(mut client: Client) {
    let data: Vec<u8> = (0..3_000_000_u32).map(|at| (at % 253) as u8).collect();
    client.write(1234, &data, true).unwrap();
    assert!(client.read(1234, 3_000_000).unwrap() == data);
    client.trim(8192, 4096).unwrap();
    client.zero(20_000, 10, cmd_flag::NO_HOLE | cmd_flag::FUA).unwrap();
    client.flush().unwrap();
    client.call(cmd::CACHE, 0, 0, 1 << 20, &[]).unwrap();
    assert_eq!(client.read(8192, 4096).unwrap(), [0; 4096]);
    assert_eq!(client.read(19_999, 12).unwrap()[1..11], [0; 10]);
    assert_eq!(client.read(64 << 20, 1).unwrap_err().kind(), ErrorKind::OutOfRange);
    assert_eq!(client.write(64 << 20, b"x", false).unwrap_err().kind(), ErrorKind::Full);
    client.disconnect().unwrap();
}

#[test]
fn every_command_on_every_driver_and_transport() {
    for driver in [DriverKind::Auto, DriverKind::Plain] {
        let exports = MemoryExports::new(driver);
        exports.add("disk", Memory::new(64 << 20));
        let here = Here::new(exports);
        let Address::Tcp(tcp) = &here.server.addresses()[1] else { panic!() };
        for options in [Options::default(), structured(), Options { export_name: true, ..Options::default() }]
        {
            use_all_commands(here.client("disk", &options));
            // The only volume is the default one.
            use_all_commands(Client::tcp(&tcp.to_string(), "", &options).unwrap());
        }
        here.wait_for(0);
    }
}

#[test]
fn contexts_go_all_the_way() {
    let here = Here::new(exports());
    let contexts = vec!["base:allocation".to_owned(), "snapvol:delta:one".to_owned()];
    let mut client = here.client("disk", &Options { contexts, ..structured() });
    assert_eq!(client.contexts.len(), 2);
    assert_ne!(client.flags & flag::SEND_DF, 0);
    client.write(4096, &[1; 4096], false).unwrap();
    let run = |len, flags| Extent { len, flags };
    let status = client.block_status(0, 12288, 0).unwrap();
    assert_eq!(status[0].1, [run(4096, 3), run(4096, 0), run(4096, 3)]);
    assert_eq!(status[1].1, [run(4096, 0), run(4096, 1), run(4096, 0)]);
}

#[test]
fn volumes_appear_and_vanish() {
    let here = Here::new(exports());
    let none = Client::unix(&here.socket(), "new", &structured());
    assert_eq!(none.err().unwrap().kind(), ErrorKind::NotFound);
    here.exports.add("new", Memory::new(4096));
    let mut client = here.client("new", &structured());
    assert_eq!(client.size, 4096);
    here.exports.remove("new");
    client.write(0, b"still here", false).unwrap();
    let mut fixed = here.client("fixed", &structured());
    assert_ne!(fixed.flags & flag::READ_ONLY, 0);
    assert_eq!(fixed.write(0, b"x", false).unwrap_err().kind(), ErrorKind::ReadOnly);
}

#[test]
fn many_requests_in_flight() {
    let exports = MemoryExports::new(DriverKind::Auto);
    exports.add("disk", Memory::new(64 << 20).slow(Duration::from_millis(1)));
    let here = Here::new(exports);
    let mut client = here.client("disk", &structured());
    let mut expected = HashMap::new();
    for at in 0..2000_u64 {
        let cookie = client.send(cmd::WRITE, 0, at * 4096, 4096, &[(at % 255) as u8 + 1; 4096]).unwrap();
        expected.insert(cookie, at);
        if expected.len() >= 400 {
            assert_eq!(expected.remove(&client.receive().unwrap().cookie).map(|_| ()), Some(()));
        }
    }
    while !expected.is_empty() {
        expected.remove(&client.receive().unwrap().cookie).unwrap();
    }
    for at in 0..500_u64 {
        expected.insert(client.send(cmd::READ, 0, at * 4096, 4096, &[]).unwrap(), at);
    }
    let mut order = Vec::new();
    while !expected.is_empty() {
        let reply = client.receive().unwrap();
        let at = expected.remove(&reply.cookie).unwrap();
        assert_eq!(reply.data, [(at % 255) as u8 + 1; 4096]);
        order.push(at);
    }
    assert!(!order.is_sorted(), "nothing overtook anything");
}

#[test]
fn a_client_that_takes_nothing_stalls_only_itself() {
    let mut here = Here::new(exports());
    let mut greedy = here.client("disk", &Options::default());
    greedy.write(0, &vec![1; 32 << 20], false).unwrap();
    for _ in 0..40 {
        greedy.send(cmd::READ, 0, 0, 32 << 20, &[]).unwrap();
    }
    use_all_commands(here.client("disk", &structured()));
    here.wait_for(1);
    // It cannot hold up the end either.
    let start = Instant::now();
    here.server.stop();
    assert!(start.elapsed() < Duration::from_secs(10));
    assert_eq!(here.server.connections(), 0);
}

#[test]
fn clients_that_stop_half_way_are_cut_off() {
    let limits = Limits { patience: Duration::from_millis(400), ..QUICK };
    let here = Here::within(limits, exports());
    let connect = || {
        let client = here.client("disk", &structured());
        here.client("disk", &structured()).disconnect().unwrap();
        client
    };
    // Half a payload, half a header, and replies that nobody takes.
    let mut payload = connect();
    payload.send(cmd::WRITE, 0, 0, 1 << 20, &[0; 1000]).unwrap();
    let mut header = UnixStream::connect(here.socket()).unwrap();
    enter(&mut header, "disk");
    header.write_all(&[0x25, 0x60, 0x95]).unwrap();
    let mut greedy = connect();
    greedy.write(0, &vec![1; 32 << 20], false).unwrap();
    for _ in 0..4 {
        greedy.send(cmd::READ, 0, 0, 32 << 20, &[]).unwrap();
    }
    // Who is silent between requests stays, and so does who is slow.
    let mut idle = connect();
    let mut slow = UnixStream::connect(here.socket()).unwrap();
    enter(&mut slow, "disk");
    let request = Request { flags: 0, command: cmd::WRITE, cookie: 7, offset: 0, len: 512 << 10 };
    let mut bytes = BytesMut::new();
    request.encode(&mut bytes);
    slow.write_all(&bytes).unwrap();
    for _ in 0..16 {
        slow.write_all(&[7; 32 << 10]).unwrap();
        std::thread::sleep(Duration::from_millis(80));
    }
    let mut reply = [0; 16];
    slow.read_exact(&mut reply).unwrap();
    assert_eq!(reply[4..8], [0; 4], "a slow write is done");
    here.wait_for(2);
    idle.write(0, b"still here", false).unwrap();
    idle.disconnect().unwrap();
    let mut left = Vec::new();
    header.read_to_end(&mut left).unwrap();
    assert!(left.is_empty(), "it was told something");
}

/// A handshake by hand.
fn enter(stream: &mut UnixStream, export: &str) {
    let mut hello = [0; 18];
    stream.read_exact(&mut hello).unwrap();
    stream.write_all(&3_u32.to_be_bytes()).unwrap();
    stream.write_all(&[b"IHAVEOPT", &super::option(1, export.as_bytes())[8..]].concat()).unwrap();
    stream.read_exact(&mut [0; 10]).unwrap();
}

#[test]
fn all_connections_together_hold_no_more_than_they_may() {
    let exports = MemoryExports::new(DriverKind::Auto);
    exports.add("disk", Memory::new(64 << 20).slow(Duration::from_millis(30)));
    let here = Here::within(Limits { in_flight_bytes: 4 << 20, ..QUICK }, exports);
    let clients: Vec<_> = (0..6).map(|_| here.client("disk", &structured())).collect();
    let threads: Vec<_> = clients
        .into_iter()
        .map(|mut client| {
            std::thread::spawn(move || {
                for at in 0..12 {
                    client.send(cmd::WRITE, 0, at << 20, 1 << 20, &vec![5; 1 << 20]).unwrap();
                }
                (0..12).for_each(|_| assert_eq!(client.receive().unwrap().errno, 0));
                client.disconnect().unwrap();
            })
        })
        .collect();
    let mut most = 0;
    while !threads.iter().all(std::thread::JoinHandle::is_finished) {
        most = most.max(here.server.held_bytes());
        std::thread::sleep(Duration::from_millis(1));
    }
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert!(most > 0 && most <= 4 << 20, "{most} bytes were held");
    here.wait_for(0);
    assert_eq!(here.server.held_bytes(), 0);
}

#[test]
fn clients_that_vanish_leave_nothing() {
    let exports = MemoryExports::new(DriverKind::Auto);
    exports.add("disk", Memory::new(64 << 20).slow(Duration::from_millis(20)));
    let here = Here::new(exports);
    for at in 0..6 {
        let mut client = here.client("disk", &structured());
        for _ in 0..at * 20 {
            client.send(cmd::READ, 0, 0, 1 << 20, &[]).unwrap();
        }
        client.send(cmd::WRITE, 0, 0, 1 << 20, &[0; 1000]).unwrap();
    }
    here.wait_for(0);
}

#[test]
fn a_device_that_goes_takes_its_clients_along() {
    let exports = MemoryExports::new(DriverKind::Auto);
    let memory = exports.add("disk", Memory::new(64 << 20).slow(Duration::from_millis(100)).closable());
    let here = Here::new(exports);
    let mut idle = here.client("disk", &structured());
    let mut busy = here.client("disk", &structured());
    let cookie = busy.send(cmd::WRITE, 0, 0, 5, b"hello").unwrap();
    let quick = busy.send(cmd::READ, 0, 4096, 5, &[]).unwrap();
    assert_eq!(busy.receive().unwrap().cookie, quick);
    memory.close();
    assert_eq!(busy.receive().unwrap().cookie, cookie, "what was received is answered");
    assert!(busy.receive().is_err());
    assert!(idle.flush().is_err());
    here.wait_for(0);
}

#[test]
fn stopping_answers_what_was_received() {
    let exports = MemoryExports::new(DriverKind::Auto);
    exports.add("disk", Memory::new(64 << 20).slow(Duration::from_millis(100)));
    let mut here = Here::new(exports);
    let mut client = here.client("disk", &structured());
    let mut idle = here.client("disk", &structured());
    let first = client.send(cmd::WRITE, 0, 0, 5, b"hello").unwrap();
    let second = client.send(cmd::READ, 0, 4096, 10, &[]).unwrap();
    assert_eq!(client.receive().unwrap().cookie, second);
    here.server.stop();
    assert_eq!(client.receive().unwrap().cookie, first);
    assert!(client.receive().is_err());
    assert!(idle.flush().is_err());
    assert_eq!(here.server.connections(), 0);
    assert!(!here.socket().exists());
    assert!(UnixStream::connect(here.socket()).is_err());
}

#[test]
fn slow_handshakes_and_crowds_are_turned_away() {
    let here = Here::new(exports());
    let mut silent: Vec<UnixStream> = (0..8).map(|_| UnixStream::connect(here.socket()).unwrap()).collect();
    here.wait_for(8);
    let mut refused = UnixStream::connect(here.socket()).unwrap();
    assert_eq!(refused.read(&mut [0; 18]).unwrap(), 0);
    for stream in &mut silent {
        // Fails where the time is up already.
        let _ = stream.write_all(&[0]);
        let mut said = Vec::new();
        let _ = stream.read_to_end(&mut said);
        assert_eq!(said.len(), 18);
    }
    here.wait_for(0);
    use_all_commands(here.client("disk", &structured()));
}

#[test]
fn unix_sockets_are_taken_over_from_the_dead_only() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let start = |path: PathBuf| Server::start(exports(), &[Listen::Unix(path)], QUICK);
    let mut first = start(path.clone()).unwrap();
    assert_eq!(start(path.clone()).unwrap_err().kind(), ErrorKind::Conflict);
    first.stop();
    assert!(!path.exists());
    drop(UnixListener::bind(&path).unwrap());
    let mut second = start(path.clone()).unwrap();
    // A socket that somebody else put there is not ours to remove.
    std::fs::remove_file(&path).unwrap();
    let _other = UnixListener::bind(&path).unwrap();
    second.stop();
    assert!(path.exists());
    let file = dir.path().join("file");
    std::fs::write(&file, b"precious").unwrap();
    assert_eq!(start(file.clone()).unwrap_err().kind(), ErrorKind::Conflict);
    assert_eq!(std::fs::read(&file).unwrap(), b"precious");
    let error = start(dir.path().join("x".repeat(120))).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.to_string().contains("at most 107"));
}

#[test]
fn bad_addresses_are_told() {
    let start = |address: &str| Server::start(exports(), &[Listen::Tcp(address.to_owned())], QUICK);
    assert_eq!(start("nonsense").unwrap_err().kind(), ErrorKind::Invalid);
    let server = start("127.0.0.1:0").unwrap();
    let uri = server.uris("disk").remove(0);
    assert!(uri.starts_with("nbd://127.0.0.1:") && uri.ends_with("/disk") && !uri.contains(":0/"));
    let taken = server.addresses()[0].to_string();
    assert_eq!(start(&taken).unwrap_err().kind(), ErrorKind::Conflict);
}
