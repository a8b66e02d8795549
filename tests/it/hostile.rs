//! Hostile peers: another user of the machine at the sockets, and streams that are well
//! framed and mean harm. Clear errors in bounded time and memory; nothing is changed.

use crate::support::server::Server;
use crate::support::{SNAPVOL, available, describe, fails, find, json, ok, scratch, tool_within};
use snapvol::delta::{Encoder, PlainChunk, SnapshotId, StreamHeader};
use snapvol::format::stream::{
    Encoding, Extent, ExtentKind, FrameKind, PREFIX_SIZE, Prefix, encode_preamble,
};
use snapvol::types::Geometry;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Output;
use std::time::Duration;
use uuid::Uuid;

/// Nobody's, on Linux.
const STRANGER: &str = "65534";

fn open_to_all(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

fn as_stranger(program: &str, args: &[&str]) -> Output {
    let mut command = tool_within("setpriv", Duration::from_secs(30));
    command.args(["--reuid", STRANGER, "--regid", STRANGER, "--clear-groups", program]).args(args);
    command.output().unwrap()
}

/// The store's directory is its owner's alone. Should somebody open it, the control socket
/// still is; and should somebody open that too, the daemon looks who is there.
#[test]
fn the_daemon_obeys_its_owner_alone() {
    let root = rustix::process::getuid().is_root();
    if !available(root && find("setpriv").is_some(), "root's rights and setpriv") {
        return;
    }
    let dir = scratch();
    let (store, program) = (dir.path().join("s"), dir.path().join("snapvol"));
    std::fs::copy(SNAPVOL, &program).unwrap();
    open_to_all(dir.path(), 0o755);
    let server = Server::start(&store, &["--create", "v:1M"]);
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&store), 0o700);
    assert_eq!(mode(&store.join("control.sock")), 0o600);
    // Made with the umask; to connect is to write.
    assert_eq!(mode(&store.join("nbd.sock")) & 0o022, 0);

    let ask = |args: &[&str]| {
        let all = [&["--store", store.to_str().unwrap()], args].concat();
        as_stranger(program.to_str().unwrap(), &all)
    };
    let connect = "import socket, sys\nsocket.socket(socket.AF_UNIX).connect(sys.argv[1])";
    let nbd = store.join("nbd.sock");
    for step in ["as it is", "an open directory", "an open socket"] {
        match step {
            "an open directory" => open_to_all(&store, 0o755),
            "an open socket" => open_to_all(&store.join("control.sock"), 0o666),
            _ => {}
        }
        for args in [&["list"][..], &["snapshot", "v@x"], &["delete", "v"], &["status"]] {
            let output = ask(args);
            assert_ne!(output.status.code(), Some(0), "{step}: {args:?} {}", describe(&output));
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(!said.contains("panicked"), "{said}");
            if step == "an open socket" {
                assert!(said.contains("owner"), "{step}: {args:?}: {said}");
            }
        }
        let output = as_stranger("/usr/bin/python3", &["-c", connect, nbd.to_str().unwrap()]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains("Permission denied"), "{step}: {said}");
    }
    let list = json(&store, &["list", "--json"]);
    assert_eq!(list["volumes"][0]["snapshots"].as_array().unwrap().len(), 0);
    server.stop();
    // Without the daemon the store itself is closed to strangers.
    assert_ne!(ask(&["snapshot", "v@x"]).status.code(), Some(0));
    ok(&store, &["check"]);
}

fn header(name: &str, size: u64, compressed: bool) -> StreamHeader {
    StreamHeader {
        stream: Uuid::from_u128(1),
        volume: Uuid::from_u128(2),
        volume_name: "v".to_owned(),
        base: None,
        base_size: 0,
        target: SnapshotId { uuid: Uuid::from_u128(3), name: name.to_owned() },
        created: "2026-01-01T00:00:00Z".to_owned(),
        geometry: Geometry::new(size, 4096, 1).unwrap(),
        resume_from: 0,
        data_bytes: None,
        discard_bytes: None,
        compressed,
    }
}

/// A chunk of our own making, its checksums right.
fn frame(number: u64, encoding: Encoding, extents: &[Extent], stored: &[u8]) -> Vec<u8> {
    let mut body: Vec<u8> = extents.iter().flat_map(Extent::encode).collect();
    body.extend_from_slice(stored);
    let prefix = Prefix {
        kind: FrameKind::Chunk,
        encoding,
        number,
        extents: u32::try_from(extents.len()).unwrap(),
        stored: u32::try_from(stored.len()).unwrap(),
        body_crc: crc32c::crc32c(&body),
    };
    [&prefix.encode()[..], &body].concat()
}

fn data(offset: u64, len: u64) -> Extent {
    Extent { offset, len, kind: ExtentKind::Data }
}

#[test]
fn streams_that_mean_harm_are_refused() {
    let dir = scratch();
    let store = dir.path().join("s");
    ok(&store, &["init"]);
    ok(&store, &["create", "primary", "--size", "1M"]);
    let size = 1 << 20;
    let start = |header: &StreamHeader| Encoder::new(header).unwrap().1;
    let with = |name: &str, compressed: bool, frames: &[Vec<u8>]| {
        [start(&header(name, size, compressed)), frames.concat()].concat()
    };
    let block = vec![1; 4096];
    // 256 MiB of zeros, in a chunk that says it holds 64 KiB.
    let bomb = zstd::bulk::compress(&vec![0; 256 << 20], 1).unwrap();
    assert!(bomb.len() < 64 << 10, "{}", bomb.len());
    let mut endless_header = encode_preamble().to_vec();
    let mut prefix = frame(0, Encoding::Raw, &[], &[]);
    prefix[..4].copy_from_slice(b"HEAD");
    prefix[20..24].copy_from_slice(&u32::MAX.to_le_bytes());
    let crc = crc32c::crc32c(&prefix[..28]);
    prefix[28..PREFIX_SIZE].copy_from_slice(&crc.to_le_bytes());
    endless_header.extend(prefix);
    endless_header.resize(1 << 20, 7);
    let empty = vec![frame(1, Encoding::Raw, &[], &[]); 100_000];

    let mut cases = vec![
        ("past the end", with("a", false, &[frame(1, Encoding::Raw, &[data(size, 4096)], &block)])),
        ("far past it", with("a", false, &[frame(1, Encoding::Raw, &[data(1 << 62, 4096)], &block)])),
        (
            "backwards",
            with(
                "a",
                false,
                &[
                    frame(1, Encoding::Raw, &[data(8192, 4096)], &block),
                    frame(2, Encoding::Raw, &[data(4096, 4096)], &block),
                ],
            ),
        ),
        ("twice in a chunk", with("a", false, &[frame(1, Encoding::Raw, &[data(0, 4096); 2], &[1; 8192])])),
        ("half a block", with("a", false, &[frame(1, Encoding::Raw, &[data(0, 512)], &[1; 512])])),
        ("less than it says", with("a", false, &[frame(1, Encoding::Raw, &[data(0, 8192)], &block)])),
        ("a bomb", with("a", true, &[frame(1, Encoding::Zstd, &[data(0, 64 << 10)], &bomb)])),
        (
            "no compression was said",
            with("a", false, &[frame(1, Encoding::Zstd, &[data(0, 64 << 10)], &bomb)]),
        ),
        ("empty chunks", with("a", false, &empty)),
        ("a header without an end", endless_header),
    ];
    // A name is a name wherever it comes from.
    for name in ["../x", "/etc/x", "_before-receive", "a/b", "", "a@b"] {
        let mut wrong = header("a", size, false);
        name.clone_into(&mut wrong.target.name);
        if let Ok((encoder, mut bytes)) = Encoder::new(&wrong) {
            bytes.extend(encoder.finish().0);
            cases.push(("a name of a snapshot", bytes));
        }
    }
    let path = dir.path().join("stream");
    for (what, bytes) in &cases {
        std::fs::write(&path, bytes).unwrap();
        for volume in ["fresh", "primary"] {
            // In so much address space, half of it for threads, and so much time.
            let line = format!(
                "ulimit -v 1200000; exec {SNAPVOL} --store {} receive {volume} -i {}",
                store.display(),
                path.display()
            );
            let output = tool_within("sh", Duration::from_secs(20)).args(["-c", &line]).output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            let code = output.status.code();
            assert!(matches!(code, Some(1..=4)), "{what} into {volume}: {}", describe(&output));
            assert!(said.starts_with("snapvol: ") && !said.contains("panicked"), "{what}: {said}");
        }
        let list = json(&store, &["list", "--json"]);
        for volume in list["volumes"].as_array().unwrap() {
            assert_eq!(volume["snapshots"].as_array().unwrap().len(), 0, "{what}: {list}");
            assert_eq!(volume["in_use"].as_u64().unwrap().min(8192), volume["in_use"], "{what}: {list}");
        }
    }
    for name in ["../x", "/tmp/x", "a/b", ".", "_v"] {
        fails(2, &store, &["receive", name, "-i", path.to_str().unwrap()]);
    }
    let entries = std::fs::read_dir(dir.path()).unwrap().count();
    assert_eq!(entries, 2, "something was made outside the store");
    assert_eq!(std::fs::read_dir(store.join("volumes")).unwrap().count(), 2);

    // What is right still is.
    let (mut encoder, mut bytes) = Encoder::new(&header("a", size, false)).unwrap();
    let mut chunk = PlainChunk::new();
    chunk.data(0, &block);
    bytes.extend(encoder.push(chunk.encode(1, false).unwrap()));
    bytes.extend(encoder.finish().0);
    std::fs::write(&path, bytes).unwrap();
    // A half received one of the same identity may be there: it goes on, or is dropped.
    let mut command = crate::support::snapvol(&store);
    let _ = command.args(["receive", "fresh", "--abort"]).output().unwrap();
    ok(&store, &["receive", "fresh", "-i", path.to_str().unwrap()]);
    ok(&store, &["check"]);
    ok(&store, &["scrub"]);
}
