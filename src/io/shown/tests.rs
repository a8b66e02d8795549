//! What is shown reaches the peer as the file is then, and whatever became of the file.

use super::super::files::Files;
use super::super::{DriverKind, FileId, Io, OpenHow, Reactor, Shown, driver};
use super::*;
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

/// A file of 1 MiB whose pages are numbered, on both real drivers.
fn with_file<F: Future<Output = ()> + 'static>(test: impl Fn(Io, FileId, PathBuf) -> F + Copy + 'static) {
    for kind in [DriverKind::Plain, DriverKind::Auto] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        let bytes: Vec<u8> = (0..=255).flat_map(|page| [page; 4096]).collect();
        std::fs::write(&path, bytes).unwrap();
        let mut reactor = Reactor::new(driver(kind).unwrap());
        let io = reactor.io();
        reactor.block_on(async move {
            let file = io.open(&path, OpenHow::Write).await.unwrap();
            test(io, file, path).await;
        });
    }
}

fn shown(io: &Io, file: FileId, page: u64) -> Shown {
    io.show(file, page * 4096, 4096).expect("it was written just now, so it is cached")
}

/// What a peer receives of parts that are sent.
async fn sent(io: &Io, parts: Vec<Part>) -> Result<Vec<u8>, crate::Error> {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let socket = io.adopt(ours.into()).unwrap();
    let peer = std::thread::spawn(move || {
        let mut all = Vec::new();
        theirs.read_to_end(&mut all).unwrap();
        all
    });
    let sent = io.send(socket, parts).await;
    io.close(socket);
    sent.map(|()| peer.join().unwrap())
}

#[test]
fn parts_are_cut_where_the_kernel_stopped() {
    let all = ["", "ab", "", "cdef", "g"].map(|part| Part::from(Bytes::from_static(part.as_bytes())));
    for count in 0..=7 {
        let mut parts = all.to_vec();
        advance(&mut parts, count);
        let left = parts.iter().map(|part| match part {
            Part::Bytes(bytes) => bytes.clone(),
            Part::Shown(_) => unreachable!("there is none"),
        });
        let left: Vec<Bytes> = left.collect();
        assert_eq!(left.concat(), b"abcdefg"[count..]);
        assert!(left.first().is_none_or(|first| !first.is_empty()));
    }
}

#[test]
fn parts_go_out_in_order_and_as_the_file_is_then() {
    with_file(|io, file, _| async move {
        let head = Part::from(Bytes::from_static(b"head"));
        let parts = vec![shown(&io, file, 7).into(), head, shown(&io, file, 3).into()];
        io.write(file, 3 * 4096, Bytes::from(vec![99; 4096])).await.unwrap();
        let expected = [&[7; 4096][..], b"head", &[99; 4096]].concat();
        assert!(sent(&io, parts).await.unwrap() == expected);
    });
}

#[test]
fn a_send_goes_on_in_the_middle_of_a_part() {
    with_file(|io, file, _| async move {
        // Far more than a socket takes at once.
        let parts = (0..4).flat_map(|_| (0..256).map(|page| shown(&io, file, page).into())).collect();
        let all = sent(&io, parts).await.unwrap();
        assert_eq!(all.len(), 4 << 20);
        assert!(
            all.chunks(4096).enumerate().all(|(at, page)| page == [u8::try_from(at % 256).unwrap(); 4096])
        );
    });
}

#[test]
fn a_hole_made_meanwhile_reads_as_zeros() {
    with_file(|io, file, _| async move {
        let parts = vec![shown(&io, file, 5).into()];
        io.punch(file, 0, 1 << 20).await.unwrap();
        assert!(sent(&io, parts).await.unwrap() == [0; 4096]);
    });
}

#[test]
fn a_page_that_is_gone_ends_the_send_and_not_the_process() {
    with_file(|io, file, _| async move {
        let parts = vec![shown(&io, file, 200).into()];
        io.truncate(file, 4096).await.unwrap();
        sent(&io, parts).await.unwrap_err();
        let parts = vec![shown(&io, file, 0).into()];
        assert!(sent(&io, parts).await.unwrap() == [0; 4096]);
    });
}

#[test]
fn little_and_unknown_things_are_not_shown() {
    with_file(|io, file, path| async move {
        assert!(io.show(file, 0, 4095).is_none(), "it is copied sooner");
        assert!(io.show(file, WINDOW_BYTES - 4096, 8192).is_none(), "it lies in two windows");
        assert!(io.show(file, 1 << 20, 4096).is_none(), "there is nothing");
        let part = shown(&io, file, 9);
        io.close(file);
        assert!(io.show(file, 0, 4096).is_none(), "it is closed");
        // What was shown before holds on to the file.
        std::fs::remove_file(path).unwrap();
        assert!(sent(&io, vec![part.into()]).await.unwrap() == [9; 4096]);
    });
}

#[test]
fn a_window_makes_room_only_after_long_disuse() {
    with_file(|io, file, _| async move {
        io.truncate(file, (WINDOWS_MAX as u64 + 1) * WINDOW_BYTES).await.unwrap();
        for window in 0..=WINDOWS_MAX as u64 {
            io.write(file, window * WINDOW_BYTES, Bytes::from(vec![1; 4096])).await.unwrap();
        }
        let show = |window: u64| io.show(file, window * WINDOW_BYTES, 4096).is_some();
        assert!((0..WINDOWS_MAX as u64).all(show));
        assert!(!show(WINDOWS_MAX as u64));
        assert!((0..DISUSE).all(|_| show(0)));
        assert!(show(WINDOWS_MAX as u64), "another one was not used for long");
        assert!(show(0));
    });
}

#[test]
fn after_a_wait_for_the_disk_nothing_is_shown_for_a_while() {
    let mut file = tempfile::tempfile().unwrap();
    std::io::Write::write_all(&mut file, &[7; 8192]).unwrap();
    let mut files = Files::default();
    let id = files.adopt(file.into()).unwrap();
    let handle = Arc::clone(files.handle(id).unwrap());
    let mut windows = Windows::default();
    assert!(windows.show(id, &handle, 0, 4096).is_some());
    // As if the page had not been there when it was asked for.
    windows.found.iter_mut().for_each(|chunk| chunk.pages = 0);
    assert!(windows.show(id, &handle, 0, 4096).is_none());
    windows.found(id, 0, 4096);
    assert!(windows.show(id, &handle, 0, 4096).is_some(), "a read found it");
    assert!(windows.show(id, &handle, 4096, 4096).is_none());
    let rests = |windows: &mut Windows| {
        windows.waited -= 1;
        windows.shown = windows.shown.next_multiple_of(ASK_EVERY);
        (0..).take_while(|_| windows.show(id, &handle, 0, 4096).is_none()).count() as u64
    };
    assert_eq!(rests(&mut windows), REST_MIN + 1);
    assert!(windows.show(id, &handle, 4096, 4096).is_some(), "it was asked for anew");
    assert_eq!(rests(&mut windows), 2 * REST_MIN + 1, "it comes soon again");
    windows.shown += REST_FORGOTTEN;
    assert_eq!(rests(&mut windows), REST_MIN + 1);
}
