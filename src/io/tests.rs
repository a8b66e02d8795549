//! One suite over every driver, and what only the real ones can do.

use super::sim::{ENOSPC, SimDisk, SimOptions};
use super::*;
use crate::ErrorKind;
use futures::future::join_all;
use std::cell::Cell;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Instant;

/// Runs a test on every driver: plain, ring, and the simulated disk in three moods.
fn on_every_driver<F>(test: impl Fn(Io, PathBuf) -> F)
where
    F: Future<Output = ()> + 'static,
{
    on_real_drivers(&test);
    for (seed, inline, reorder) in [(1, false, true), (2, true, true), (3, true, false)] {
        let disk = SimDisk::new(SimOptions { seed, inline, reorder });
        let mut reactor = Reactor::new(Box::new(disk.driver()));
        let io = reactor.io();
        reactor.block_on(test(io, PathBuf::from("/")));
    }
}

/// The drivers that this machine can run. Continuous integration has to run both.
fn real_drivers() -> Vec<DriverKind> {
    match uring::Uring::new() {
        Err(error) if std::env::var_os("CI").is_none() => {
            eprintln!("io_uring is not tested, this machine forbids it: {error}");
            vec![DriverKind::Plain]
        }
        _ => vec![DriverKind::Plain, DriverKind::Uring],
    }
}

fn on_real_drivers<F>(test: impl Fn(Io, PathBuf) -> F)
where
    F: Future<Output = ()> + 'static,
{
    for kind in real_drivers() {
        let folder = tempfile::tempdir().unwrap();
        let mut reactor = Reactor::new(driver(kind).unwrap());
        let io = reactor.io();
        reactor.block_on(test(io, folder.path().to_owned()));
    }
}

async fn fresh(io: &Io, path: &Path) -> FileId {
    io.open(path, OpenHow::CreateNew).await.unwrap()
}

/// Bytes that differ from place to place.
fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; len];
    fastrand::Rng::with_seed(seed).fill(&mut bytes);
    bytes
}

#[test]
fn bytes_past_the_end_are_zeros() {
    on_every_driver(|io, at| async move {
        let file = fresh(&io, &at.join("f")).await;
        io.write(file, 0, Bytes::from_static(b"abc")).await.unwrap();
        assert_eq!(&io.read(file, 1, 5).await.unwrap()[..], b"bc\0\0\0");
        assert_eq!(&io.read(file, 1 << 40, 3).await.unwrap()[..], b"\0\0\0");
        assert_eq!(io.read(file, 0, 0).await.unwrap().len(), 0);
        assert_eq!(io.size(file).await.unwrap(), 3);
    });
}

#[test]
fn pieces_are_written_and_read_each_in_its_place() {
    on_every_driver(|io, at| async move {
        let file = fresh(&io, &at.join("f")).await;
        let data = Bytes::from(noise(40_000, 5));
        let places = [(70_000, 0..8192), (3, 8192..8193), (8192, 9000..40_000)];
        let pieces = places.iter().map(|(offset, range)| (*offset, data.slice(range.clone())));
        io.write_each(file, pieces.collect()).await.unwrap();
        for (offset, range) in &places {
            assert_eq!(io.read(file, *offset, range.len()).await.unwrap()[..], data[range.clone()]);
        }
        let mut asked: Vec<(u64, usize)> =
            places.iter().map(|(offset, range)| (*offset, range.len())).collect();
        asked.insert(1, (1 << 30, 77));
        let (read, missing) = io.read_each(file, asked, BytesMut::from(&b"head"[..])).await.unwrap();
        let mut rest = &read[..];
        let mut next = |len: usize| {
            let (piece, after) = rest.split_at(len);
            rest = after;
            piece
        };
        assert_eq!(next(4), b"head");
        for (number, range) in [0..8192, 0..77, 8192..8193, 9000..40_000].into_iter().enumerate() {
            let piece = next(range.len());
            let is_zero = piece.iter().all(|byte| *byte == 0);
            // The page cache may have lost a piece; past the end there is none.
            let expected = number != 1 && !missing.contains(&number);
            assert!(if expected { *piece == data[range] } else { is_zero }, "piece {number}");
        }
        assert!(rest.is_empty());
        assert!(missing.is_sorted());
        io.close(file);
        assert!(io.read_each(file, vec![(0, 1)], BytesMut::new()).await.is_err());
        assert!(io.write_each(file, vec![(0, Bytes::from_static(b"x"))]).await.is_err());
    });
}

#[test]
fn many_unaligned_buffers_are_written_in_order() {
    on_every_driver(|io, at| async move {
        let file = fresh(&io, &at.join("f")).await;
        // More buffers than one system call takes, of all sizes, empty ones too.
        let all = noise(300_000, 7);
        let mut data = Vec::new();
        let mut rest = Bytes::from(all.clone());
        let mut len = 0;
        while !rest.is_empty() {
            data.push(rest.split_to(len.min(rest.len())));
            len = (len + 1) % 300;
        }
        assert!(data.len() > 1500);
        io.write_all(file, 12_345, data).await.unwrap();
        assert_eq!(io.read(file, 12_345, all.len()).await.unwrap()[..], all[..]);
        assert_eq!(io.read(file, 0, 12_345).await.unwrap()[..], vec![0; 12_345][..]);
        io.write(file, 20_001, Bytes::from_static(b"xyz")).await.unwrap();
        assert_eq!(&io.read(file, 20_001, 3).await.unwrap()[..], b"xyz");
        io.write_all(file, 0, Vec::new()).await.unwrap();
    });
}

#[test]
fn large_writes_and_reads_come_back() {
    on_every_driver(|io, at| async move {
        let file = fresh(&io, &at.join("f")).await;
        let data = Bytes::from(noise(9 << 20, 8));
        io.write_all(file, 4096, vec![data.slice(..1 << 20), data.slice(1 << 20..)]).await.unwrap();
        io.sync(file).await.unwrap();
        assert!(io.read(file, 4096, data.len()).await.unwrap() == data);
    });
}

#[test]
fn truncate_cuts_and_extends() {
    on_every_driver(|io, at| async move {
        let file = fresh(&io, &at.join("f")).await;
        io.write(file, 0, Bytes::from(vec![7; 10_000])).await.unwrap();
        io.truncate(file, 5000).await.unwrap();
        assert_eq!(io.size(file).await.unwrap(), 5000);
        io.truncate(file, 1 << 40).await.unwrap();
        assert_eq!(io.size(file).await.unwrap(), 1 << 40);
        assert_eq!(io.read(file, 4999, 3).await.unwrap()[..], [7, 0, 0]);
        assert_eq!(io.read(file, (1 << 40) - 2, 4).await.unwrap()[..], [0; 4]);
        assert!(io.allocated(file).await.unwrap() < 1 << 20);
    });
}

#[test]
fn punched_ranges_read_as_zeros_and_free_space() {
    on_every_driver(|io, at| async move {
        let file = fresh(&io, &at.join("f")).await;
        io.write(file, 0, Bytes::from(vec![9; 1 << 20])).await.unwrap();
        io.sync(file).await.unwrap();
        let before = io.allocated(file).await.unwrap();
        assert!(before >= 1 << 20);
        io.punch(file, 4096, 512 * 1024).await.unwrap();
        io.punch(file, 1_000_000, 1000).await.unwrap();
        io.punch(file, 0, 0).await.unwrap();
        // Past the end: the size stays.
        io.punch(file, (1 << 20) - 10, 1 << 20).await.unwrap();
        let data = io.read(file, 0, 1 << 20).await.unwrap();
        for (i, byte) in data.iter().enumerate() {
            let hole = (4096..4096 + 512 * 1024).contains(&i)
                || (1_000_000..1_001_000).contains(&i)
                || i >= (1 << 20) - 10;
            assert_eq!(*byte, if hole { 0 } else { 9 }, "byte {i}");
        }
        assert_eq!(io.size(file).await.unwrap(), 1 << 20);
        assert!(io.allocated(file).await.unwrap() <= before - 512 * 1024);
    });
}

#[test]
fn allocation_keeps_data_and_grows() {
    on_every_driver(|io, at| async move {
        let file = fresh(&io, &at.join("f")).await;
        io.write(file, 5000, Bytes::from_static(b"data")).await.unwrap();
        io.allocate(file, 0, 1 << 20).await.unwrap();
        assert_eq!(io.size(file).await.unwrap(), 1 << 20);
        assert!(io.allocated(file).await.unwrap() >= 1 << 20);
        assert_eq!(&io.read(file, 4999, 6).await.unwrap()[..], b"\0data\0");
        io.allocate(file, 0, 4096).await.unwrap();
        assert_eq!(io.size(file).await.unwrap(), 1 << 20);
    });
}

#[test]
fn names_are_made_replaced_listed_and_removed() {
    on_every_driver(|io, at| async move {
        let folder = at.join("d");
        io.make_dir(&folder).await.unwrap();
        assert!(io.make_dir(&folder).await.is_err());
        for name in ["b", "c", "a"] {
            let file = fresh(&io, &folder.join(name)).await;
            io.write(file, 0, Bytes::copy_from_slice(name.as_bytes())).await.unwrap();
            io.close(file);
        }
        assert_eq!(io.list(&folder).await.unwrap(), ["a", "b", "c"]);
        io.rename(&folder.join("c"), &folder.join("a")).await.unwrap();
        io.sync_dir(&folder).await.unwrap();
        assert_eq!(io.list(&folder).await.unwrap(), ["a", "b"]);
        assert_eq!(&io.map(&folder.join("a")).await.unwrap()[..], b"c");
        assert!(io.remove_dir(&folder).await.is_err());
        io.remove(&folder.join("a")).await.unwrap();
        io.remove(&folder.join("b")).await.unwrap();
        io.remove_dir(&folder).await.unwrap();
        assert!(!io.list(&at).await.unwrap().contains(&"d".to_owned()));
        assert!(io.free(&at).await.unwrap() > 1 << 20);
    });
}

#[test]
fn opening_keeps_its_promises() {
    on_every_driver(|io, at| async move {
        let path = at.join("f");
        for how in [OpenHow::Read, OpenHow::Write] {
            let error = io.open(&path, how).await.unwrap_err();
            assert!(error.to_string().contains(&path.display().to_string()), "{error}");
        }
        assert!(io.map(&path).await.is_err());
        assert!(io.remove(&path).await.is_err());
        assert!(io.list(&at.join("none")).await.is_err());
        assert!(io.sync_dir(&at.join("none")).await.is_err());
        assert!(io.rename(&path, &at.join("g")).await.is_err());
        let file = fresh(&io, &path).await;
        io.write(file, 0, Bytes::from_static(b"old")).await.unwrap();
        assert!(io.open(&path, OpenHow::CreateNew).await.is_err());
        let reader = io.open(&path, OpenHow::Read).await.unwrap();
        assert!(io.write(reader, 0, Bytes::from_static(b"no")).await.is_err());
        let again = io.open(&path, OpenHow::CreateEmpty).await.unwrap();
        assert_eq!(io.size(file).await.unwrap(), 0);
        io.close(file);
        assert!(io.read(file, 0, 1).await.is_err());
        let next = io.open(&path, OpenHow::Write).await.unwrap();
        assert!(io.read(file, 0, 1).await.is_err(), "a closed number means no other file");
        io.write(again, 0, Bytes::from_static(b"new")).await.unwrap();
        assert_eq!(&io.read(next, 0, 3).await.unwrap()[..], b"new");
    });
}

#[test]
fn files_are_mapped_whole() {
    on_every_driver(|io, at| async move {
        for len in [0, 1, 4096, 256 * 1024, 256 * 1024 + 1, 3 << 20] {
            let path = at.join(len.to_string());
            let file = fresh(&io, &path).await;
            let data = noise(len, len as u64);
            io.write(file, 0, Bytes::from(data.clone())).await.unwrap();
            let mapped = io.map(&path).await.unwrap();
            assert!(mapped[..] == data[..], "{len} bytes");
            io.remove(&path).await.unwrap();
            assert!(mapped[..] == data[..], "{len} bytes, removed");
        }
    });
}

#[test]
fn regions_stay_until_their_size_changes() {
    on_every_driver(|io, at| async move {
        let path = at.join("r");
        let region = io.map_region(&path, 10_000).await.unwrap();
        let mut bytes = [1; 4];
        region.read(9996, &mut bytes);
        assert_eq!((region.len(), bytes), (10_000, [0; 4]));
        region.write(9996, b"tail");
        drop(region);
        let region = io.map_region(&path, 10_000).await.unwrap();
        region.read(9996, &mut bytes);
        assert_eq!(&bytes, b"tail");
        let region = io.map_region(&path, 20_000).await.unwrap();
        region.read(9996, &mut bytes);
        assert_eq!((region.len(), bytes), (20_000, [0; 4]));
    });
}

#[test]
fn sleeps_end_in_order() {
    on_every_driver(|io, _| async move {
        let order = Rc::new(std::cell::RefCell::new(Vec::new()));
        let sleepers = [400, 100, 250].map(|millis| {
            let (io, order) = (io.clone(), Rc::clone(&order));
            async move {
                io.sleep(Duration::from_millis(millis)).await;
                order.borrow_mut().push(millis);
            }
        });
        futures::future::join_all(sleepers).await;
        assert_eq!(*order.borrow(), [100, 250, 400]);
    });
}

#[test]
fn work_is_done_elsewhere_and_its_answer_comes_back() {
    on_every_driver(|io, _| async move {
        let answers = (0..20u64).map(|n| io.compute(move || (n, std::thread::current().id())));
        let answers = join_all(answers).await;
        for (n, answer) in (0..20).zip(answers) {
            let (squared, thread) = answer.unwrap();
            assert_eq!(squared, n);
            if io.driver_name() != "simulated" {
                assert_ne!(thread, std::thread::current().id());
            }
        }
    });
    on_real_drivers(|io, _| async move {
        let failed = io.compute::<()>(|| panic!("as the test wants it")).await;
        assert_eq!(failed.unwrap_err().kind(), ErrorKind::Io);
    });
}

#[test]
fn who_steps_aside_lets_completions_in() {
    on_every_driver(|io, _| async move {
        let ended = Rc::new(Cell::new(0));
        for _ in 0..3 {
            let (other, ended) = (io.clone(), Rc::clone(&ended));
            io.spawn(async move {
                other.compute(|| ()).await.unwrap();
                other.compute(|| ()).await.unwrap();
                ended.set(ended.get() + 1);
            });
        }
        // Without a turn of the driver none of them would ever end.
        let start = Instant::now();
        while ended.get() < 3 && start.elapsed() < Duration::from_secs(20) {
            io.step_aside().await;
        }
        assert_eq!(ended.get(), 3);
    });
}

#[test]
fn dropped_completions_leave_their_operations() {
    on_every_driver(|io, at| async move {
        let file = fresh(&io, &at.join("f")).await;
        for i in 0..50_u64 {
            let data = vec![Bytes::from(vec![1; 100_000])];
            drop(io.submit(Op::Write { file, offset: i * 100_000, data }));
            drop(io.submit(Op::Sync { file }));
            drop(io.submit(Op::Read { file, offset: 0, len: 5000 }));
        }
        let mut turns = 0;
        while io.read(file, 0, 5_000_000).await.unwrap()[..] != vec![1; 5_000_000][..] {
            io.sleep(Duration::from_millis(5)).await;
            turns += 1;
            assert!(turns < 1000, "the writes never happened");
        }
    });
}

#[test]
fn thousands_of_operations_at_once() {
    on_every_driver(|io, at| async move {
        let file = fresh(&io, &at.join("f")).await;
        let sleeps: Vec<_> = (0..2000).map(|i| io.sleep(Duration::from_micros(i))).collect();
        let writes: Vec<_> = (0..3000_u64)
            .map(|i| {
                let data = vec![Bytes::from(i.to_le_bytes().to_vec())];
                io.submit(Op::Write { file, offset: i * 4096, data })
            })
            .collect();
        for done in futures::future::join_all(writes).await {
            done.unwrap();
        }
        let punches: Vec<_> = (0..3000_u64)
            .step_by(3)
            .map(|i| io.submit(Op::Punch { file, offset: i * 4096, len: 4096 }))
            .collect();
        for done in futures::future::join_all(punches).await {
            done.unwrap();
        }
        let reads: Vec<_> = (0..3000_u64).map(|i| io.read(file, i * 4096, 8)).collect();
        for (i, done) in futures::future::join_all(reads).await.into_iter().enumerate() {
            let expected = if i % 3 == 0 { 0 } else { i as u64 };
            assert_eq!(done.unwrap()[..], expected.to_le_bytes());
        }
        futures::future::join_all(sleeps).await;
    });
}

#[test]
fn a_full_disk_is_told_apart() {
    let disk = SimDisk::new(SimOptions::seeded(1));
    disk.fill(Some(16 * 4096));
    let mut reactor = Reactor::new(Box::new(disk.driver()));
    let io = reactor.io();
    let machine = disk.clone();
    reactor.block_on(async move {
        let file = fresh(&io, Path::new("/f")).await;
        io.write(file, 0, Bytes::from(vec![1; 10 * 4096])).await.unwrap();
        assert_eq!(io.free("/").await.unwrap(), 6 * 4096);
        let full = io.allocate(file, 0, 17 * 4096).await.unwrap_err();
        assert_eq!(full.kind(), ErrorKind::Full);
        let full = io.map_region(Path::new("/r"), 1 << 20).await.unwrap_err();
        assert_eq!(full.kind(), ErrorKind::Full);
        io.write(file, 0, Bytes::from(vec![2; 10 * 4096])).await.unwrap();
        io.punch(file, 0, 10 * 4096).await.unwrap();
        io.allocate(file, 0, 14 * 4096).await.unwrap();
        io.write(file, 0, Bytes::from(vec![2; 14 * 4096])).await.unwrap();
        machine.fail_at(machine.ops() + 1, ENOSPC);
        assert_eq!(io.write(file, 0, Bytes::from(vec![3])).await.unwrap_err().kind(), ErrorKind::Full);
    });
}

#[test]
fn streams_carry_both_ways_at_once_past_a_slow_reader() {
    const LEN: usize = 10 << 20;
    on_real_drivers(|io, _| async move {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let peer = std::thread::spawn(move || {
            use std::io::{Read, Write};
            let mut out = theirs.try_clone().unwrap();
            let sender = std::thread::spawn(move || out.write_all(&noise(LEN, 2)).unwrap());
            let mut all = vec![0; LEN];
            let mut theirs = theirs;
            for (i, part) in all.chunks_mut(LEN / 64).enumerate() {
                if i % 16 == 0 {
                    std::thread::sleep(Duration::from_millis(5));
                }
                theirs.read_exact(part).unwrap();
            }
            sender.join().unwrap();
            // Dropped here: our side sees the end of the stream.
            all
        });
        let file = io.adopt(ours.into()).unwrap();
        let data = Bytes::from(noise(LEN, 1));
        // Several sends at once keep their order.
        let sends = (0..10).map(|i| {
            let part = data.slice(i * (1 << 20)..(i + 1) * (1 << 20));
            io.submit(Op::Send {
                file,
                data: vec![part.slice(..1).into(), part.slice(1..1).into(), part.slice(1..).into()],
            })
        });
        let sends = futures::future::join_all(sends.collect::<Vec<_>>());
        let receiver = async {
            let mut all = Vec::new();
            loop {
                let part = io.recv(file, 100_000).await.unwrap();
                if part.is_empty() {
                    return all;
                }
                all.extend_from_slice(&part);
            }
        };
        let (sent, received) = futures::join!(sends, receiver);
        assert!(sent.iter().all(Result::is_ok));
        assert!(received == noise(LEN, 2));
        assert!(peer.join().unwrap() == data);
    });
}

#[test]
fn a_send_never_overtakes_one_that_waits() {
    on_real_drivers(|io, _| async move {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let file = io.adopt(ours.into()).unwrap();
        let first = io.submit(Op::Send { file, data: vec![Bytes::from(vec![1; 1 << 20]).into()] });
        // There is room again, and the driver has not looked yet.
        let mut taken = vec![0; 100_000];
        std::io::Read::read_exact(&mut theirs, &mut taken).unwrap();
        let second = io.submit(Op::Send { file, data: vec![Bytes::from(vec![2; 10]).into()] });
        let peer = std::thread::spawn(move || {
            let mut rest = vec![0; (1 << 20) - taken.len() + 10];
            std::io::Read::read_exact(&mut theirs, &mut rest).unwrap();
            rest
        });
        first.await.unwrap();
        second.await.unwrap();
        assert_eq!(peer.join().unwrap().iter().position(|byte| *byte == 2), Some((1 << 20) - 100_000));
    });
}

#[test]
fn a_peer_that_vanishes_is_an_error() {
    on_real_drivers(|io, _| async move {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let ours = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (theirs, _) = listener.accept().unwrap();
        let file = io.adopt(ours.into()).unwrap();
        let recv = io.submit(Op::Recv { file, len: 10, into: BytesMut::new() });
        // Unread bytes at the peer's close make it a reset.
        io.send(file, vec![Bytes::from_static(b"unread").into()]).await.unwrap();
        std::thread::sleep(Duration::from_millis(5));
        drop(theirs);
        assert_eq!(recv.await.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
        let mut sent = Ok(());
        for _ in 0..100 {
            sent = sent.and(io.send(file, vec![Bytes::from(vec![0; 100_000]).into()]).await);
        }
        assert!(sent.is_err());
    });
}

#[test]
fn closing_ends_what_waits_and_the_peer_sees_it() {
    on_real_drivers(|io, _| async move {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let file = io.adopt(ours.into()).unwrap();
        let recv = io.submit(Op::Recv { file, len: 10, into: BytesMut::new() });
        io.sleep(Duration::from_millis(1)).await;
        let send = io.submit(Op::Send { file, data: vec![Bytes::from(vec![0; 50 << 20]).into()] });
        io.sleep(Duration::from_millis(1)).await;
        io.close(file);
        assert!(recv.await.is_err());
        assert!(send.await.is_err());
        theirs.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let mut rest = Vec::new();
        std::io::Read::read_to_end(&mut theirs, &mut rest).unwrap();
        assert!(rest.len() < 50 << 20);
        assert!(io.recv(file, 1).await.is_err());
    });
}

#[test]
fn pipes_are_streams_too() {
    on_real_drivers(|io, _| async move {
        let (reader, writer) = std::io::pipe().unwrap();
        let reader = io.adopt(reader.into()).unwrap();
        let writer = io.adopt(writer.into()).unwrap();
        let send = io.submit(Op::Send { file: writer, data: vec![Bytes::from(noise(1 << 20, 3)).into()] });
        let mut all = Vec::new();
        while all.len() < 1 << 20 {
            all.extend_from_slice(&io.recv(reader, 1 << 16).await.unwrap());
        }
        send.await.unwrap();
        assert!(all == noise(1 << 20, 3));
        io.close(writer);
        assert!(io.recv(reader, 1).await.unwrap().is_empty());
    });
}

#[test]
fn another_thread_ends_a_wait() {
    for kind in real_drivers() {
        let mut reactor = Reactor::new(driver(kind).unwrap());
        for _ in 0..3 {
            let waker = reactor.waker();
            let started = Instant::now();
            let thread = std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(5));
                waker.wake();
            });
            reactor.turn(None);
            assert!(started.elapsed() >= Duration::from_millis(5));
            thread.join().unwrap();
        }
        // One that comes before the wait counts.
        reactor.waker().wake();
        reactor.turn(None);
        // And time ends it.
        let started = Instant::now();
        reactor.turn(Some(Duration::from_millis(5)));
        assert!(started.elapsed() >= Duration::from_millis(5));
        reactor.turn(Some(Duration::ZERO));
    }
}

#[test]
fn what_is_under_way_at_the_end_is_finished() {
    for kind in real_drivers() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        let mut reactor = Reactor::new(driver(kind).unwrap());
        let io = reactor.io();
        let name = path.clone();
        reactor.block_on(async move {
            let file = fresh(&io, &name).await;
            for i in 0..20 {
                let data = vec![Bytes::from(vec![5; 1 << 20])];
                drop(io.submit(Op::Write { file, offset: i << 20, data }));
                drop(io.submit(Op::Read { file, offset: i << 20, len: 1 << 20 }));
            }
            drop(io.submit(Op::Sleep { time: Duration::from_secs(1000) }));
        });
        drop(reactor);
        assert!(std::fs::read(&path).unwrap() == vec![5; 20 << 20]);
    }
}

#[test]
fn uncached_reads_come_from_the_disk() {
    on_real_drivers(|io, at| async move {
        let path = at.join("f");
        let data = noise(4 << 20, 9);
        std::fs::write(&path, &data).unwrap();
        let file = io.open(&path, OpenHow::Write).await.unwrap();
        io.sync(file).await.unwrap();
        let forget = std::fs::File::open(&path).unwrap();
        rustix::fs::fadvise(&forget, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        let reads: Vec<_> = (0..512_usize).map(|i| io.read(file, i as u64 * 8192, 8192)).collect();
        for (i, part) in futures::future::join_all(reads).await.into_iter().enumerate() {
            assert!(part.unwrap()[..] == data[i * 8192..(i + 1) * 8192], "part {i}");
        }
    });
}

#[test]
fn the_boot_has_one_identity() {
    let first = driver(DriverKind::Auto).unwrap().boot_id();
    assert_ne!(first, [0; 16]);
    for kind in real_drivers() {
        assert_eq!(driver(kind).unwrap().boot_id(), first);
    }
}
