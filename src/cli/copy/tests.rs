//! What is decided from what both sides hold, and whole conversations between two
//! stores in memory.

use super::*;
use crate::cli::receive::far_end;
use crate::engine::api::{HalfReceived, StoreInfo, VolumeInfo};
use crate::types::OnFull;
use std::io::{BufReader, Read};
use std::os::unix::net::UnixStream;

fn uuid(number: u128) -> Uuid {
    Uuid::from_u128(number)
}

fn snapshot(name: &str, number: u128) -> SnapshotInfo {
    SnapshotInfo {
        name: name.to_owned(),
        uuid: uuid(number),
        created: "2025-01-01T00:00:00Z".to_owned(),
        size: 1 << 20,
        in_use: 0,
        saved: 0,
        freed_by_delete: 0,
        holds: Vec::new(),
        of: None,
        set: None,
    }
}

fn queue() -> Vec<SnapshotInfo> {
    vec![snapshot("a", 1), snapshot("b", 2), snapshot("c", 3), snapshot("d", 4)]
}

fn there(snapshots: &[(&str, u128)]) -> Held {
    let snapshots = snapshots.iter().map(|(name, number)| ((*name).to_owned(), uuid(*number))).collect();
    Held { version: PEER_VERSION, role: Some(Role::Secondary), snapshots, half: None }
}

fn token(target: u128, base: Option<u128>) -> String {
    ResumeToken { target: uuid(target), base: base.map(uuid), durable: 4096 }.to_string()
}

fn half(target: u128, base: Option<u128>) -> HalfReceived {
    HalfReceived {
        volume: "db".to_owned(),
        snapshot: "c".to_owned(),
        uuid: uuid(target),
        base: base.map(uuid),
        durable: 4096,
        token: token(target, base),
        running: false,
    }
}

fn plan(held: &Held, base: Base<'_>) -> Result<Plan> {
    decide(&queue(), 2, held, base)
}

fn send(from: Option<&str>, resume: Option<&str>) -> Plan {
    Plan::Send { from: from.map(str::to_owned), resume: resume.map(str::to_owned) }
}

#[test]
fn the_youngest_common_snapshot_by_identity() {
    assert_eq!(plan(&Held::default(), Base::Any).unwrap(), send(None, None));
    assert_eq!(plan(&there(&[("a", 1)]), Base::Any).unwrap(), send(Some("a"), None));
    // Renamed there, and a foreign one with a name of ours.
    assert_eq!(plan(&there(&[("a", 1), ("x", 2), ("d", 9)]), Base::Any).unwrap(), send(Some("b"), None));
    // A younger one is no base.
    assert_eq!(plan(&there(&[("a", 1), ("d", 4)]), Base::Any).unwrap(), send(Some("a"), None));
    assert_eq!(plan(&there(&[("a", 1), ("c", 3)]), Base::Any).unwrap(), Plan::Already);
    assert_eq!(plan(&there(&[("a", 1), ("b", 2)]), Base::From("a")).unwrap(), send(Some("a"), None));
    assert_eq!(plan(&there(&[("a", 1)]), Base::Full).unwrap(), send(None, None));
}

#[test]
fn what_is_refused() {
    let kind = |held: &Held, base| plan(held, base).unwrap_err().kind();
    assert_eq!(kind(&there(&[("a", 1)]), Base::From("b")), ErrorKind::Conflict);
    assert_eq!(kind(&there(&[("a", 1)]), Base::From("zz")), ErrorKind::NotFound);
    assert_eq!(kind(&there(&[("a", 1)]), Base::From("d")), ErrorKind::Invalid);
    assert_eq!(kind(&there(&[("c", 77)]), Base::Any), ErrorKind::Conflict);
    assert_eq!(
        kind(&Held { role: Some(Role::Primary), ..there(&[("a", 1)]) }, Base::Any),
        ErrorKind::Conflict
    );
}

#[test]
fn what_is_half_received_decides() {
    let with = |half| Held { half: Some(half), ..there(&[("a", 1), ("b", 2)]) };
    assert_eq!(plan(&with(half(3, Some(1))), Base::Any).unwrap(), send(Some("a"), Some(&token(3, Some(1)))));
    assert_eq!(plan(&with(half(3, None)), Base::Any).unwrap(), send(None, Some(&token(3, None))));
    assert_eq!(plan(&with(half(3, None)), Base::Full).unwrap(), send(None, Some(&token(3, None))));
    assert_eq!(
        plan(&with(half(3, Some(1))), Base::From("a")).unwrap(),
        send(Some("a"), Some(&token(3, Some(1))))
    );
    for (half, base) in [
        (half(3, Some(1)), Base::From("b")),
        (half(3, Some(1)), Base::Full),
        (half(3, Some(9)), Base::Any),
        (half(4, Some(1)), Base::Any),
        (HalfReceived { token: token(4, Some(1)), ..half(3, Some(1)) }, Base::Any),
        (HalfReceived { running: true, ..half(3, Some(1)) }, Base::Any),
    ] {
        assert_eq!(plan(&with(half), base).unwrap_err().kind(), ErrorKind::Conflict);
    }
}

/// A store that sends and takes a stream in memory.
#[derive(Default)]
pub(in crate::cli) struct Memory {
    pub(in crate::cli) stream: Vec<u8>,
    pub(in crate::cli) snapshots: Vec<SnapshotInfo>,
    pub(in crate::cli) got: Mutex<Vec<u8>>,
    pub(in crate::cli) refuse: Option<&'static str>,
    pub(in crate::cli) break_at: Option<usize>,
}

impl Shipping for Memory {
    fn list(&self, volume: Option<&str>) -> Result<StoreInfo> {
        let name = volume.unwrap_or("db").to_owned();
        let volumes = vec![VolumeInfo {
            name,
            uuid: uuid(100),
            role: Role::Secondary,
            drill: None,
            state: "ok".to_owned(),
            on_full: OnFull::Freeze,
            size: 1 << 20,
            block_size: 4096,
            granularity: 1,
            in_use: 0,
            saved: 0,
            snapshots: self.snapshots.clone(),
        }];
        Ok(StoreInfo { store: "/s".to_owned(), volumes })
    }
    fn send(&self, _: &SendRequest) -> Result<Box<dyn Read + Send>> {
        let end = self.break_at.unwrap_or(self.stream.len());
        Ok(Box::new(std::io::Cursor::new(self.stream[..end].to_vec())))
    }
    fn receive(&self, volume: &str, input: &mut (dyn Read + Send)) -> Result<Received> {
        if let Some(text) = self.refuse {
            return Err(Error::conflict(text).hint("wait"));
        }
        let mut bytes = Vec::new();
        let result = input.read_to_end(&mut bytes);
        *self.got.lock().unwrap() = bytes;
        result.map_err(|_| Error::new(ErrorKind::Interrupted, "the stream ends too early"))?;
        Ok(Received {
            volume: volume.to_owned(),
            snapshot: "c".to_owned(),
            uuid: uuid(3),
            already: false,
            data_bytes: 0,
            discard_bytes: 0,
        })
    }
    fn receive_status(&self, _: &str) -> Result<Option<HalfReceived>> {
        Ok(None)
    }
    fn receive_abort(&self, _: &str) -> Result<()> {
        Ok(())
    }
}

/// A stream of 3 MiB.
pub(in crate::cli) fn stream() -> Vec<u8> {
    let header = crate::delta::tests::header(4 << 20, 4096);
    let (mut encoder, mut bytes) = crate::delta::Encoder::new(&header).unwrap();
    for at in 0..3 {
        let mut chunk = crate::delta::PlainChunk::new();
        chunk.data(at << 20, &vec![7; 1 << 20]);
        bytes.extend(encoder.push(chunk.encode(at + 1, false).unwrap()));
    }
    bytes.extend(encoder.finish().0);
    bytes
}

/// A copy from one store to the other: how both ends saw it.
fn copy(near: &Memory, far: &Memory) -> (Result<bool>, Result<()>) {
    let (here, there) = UnixStream::pair().unwrap();
    std::thread::scope(|scope| {
        let far = scope.spawn(move || {
            let input = BufReader::new(there.try_clone().unwrap());
            let done = far_end(far, "db", input, there.try_clone().unwrap());
            let _ = there.shutdown(std::net::Shutdown::Both);
            done
        });
        let snapshots = queue();
        let near = Near {
            store: near,
            volume: "db",
            snapshots: &snapshots,
            target: 2,
            base: Base::Any,
            compress: false,
        };
        let mut output = BufReader::new(here.try_clone().unwrap());
        let done = near.converse("there", Closing(here), &mut output);
        (done, far.join().unwrap())
    })
}

/// A socket whose sending half closes with it, as a pipe does.
struct Closing(UnixStream);

impl Write for Closing {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.write(bytes)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Drop for Closing {
    fn drop(&mut self) {
        let _ = self.0.shutdown(std::net::Shutdown::Write);
    }
}

#[test]
fn a_copy_arrives_and_is_confirmed() {
    let (near, far) = (Memory { stream: stream(), ..Memory::default() }, Memory::default());
    let (here, there) = copy(&near, &far);
    assert!(!here.unwrap());
    there.unwrap();
    assert!(*far.got.lock().unwrap() == near.stream);
}

#[test]
fn one_that_is_there_is_not_sent() {
    let far = Memory { snapshots: vec![snapshot("renamed", 3)], ..Memory::default() };
    let (here, there) = copy(&Memory::default(), &far);
    assert!(here.unwrap());
    there.unwrap();
}

#[test]
fn a_refusal_comes_back_with_its_kind_and_hint() {
    let near = Memory { stream: stream(), ..Memory::default() };
    let far = Memory { refuse: Some("another receive is running"), ..Memory::default() };
    let (here, there) = copy(&near, &far);
    let error = here.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert_eq!(error.to_string(), "there: another receive is running");
    assert_eq!(error.hint_text(), Some("at there: wait"));
    assert!(there.is_err());
}

#[test]
fn a_break_here_is_an_interruption_there() {
    let near = Memory { stream: stream(), break_at: Some(1_500_000), ..Memory::default() };
    let far = Memory::default();
    let (here, there) = copy(&near, &far);
    let error = here.unwrap_err();
    assert_eq!(error.to_string(), "the stream ends within a frame");
    assert_eq!(there.unwrap_err().kind(), ErrorKind::Interrupted);
    let got = far.got.lock().unwrap();
    assert!(!got.is_empty() && near.stream.starts_with(&got));
}

#[test]
fn a_far_side_that_prints_something_else() {
    let mut output = &b"Welcome to host!\n"[..];
    let snapshots = queue();
    let near = Memory::default();
    let near = Near {
        store: &near,
        volume: "db",
        snapshots: &snapshots,
        target: 2,
        base: Base::Any,
        compress: false,
    };
    let error = near.converse("there", std::io::sink(), &mut output).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    let error = near.converse("there", std::io::sink(), &mut &b""[..]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Interrupted, "{error}");
}
