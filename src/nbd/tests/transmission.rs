//! Requests over a scripted socket: every command, every refusal, every way to end.

use crate::nbd::memory::Memory;
use crate::nbd::metacontext::{Context, Selected};
use crate::nbd::proto::{
    CHUNK_MAGIC, Request, SIMPLE_REPLY_MAGIC, chunk, cmd, cmd_flag, errno, u16_at, u32_at, u64_at,
};
use crate::nbd::script::{Script, run};
use crate::nbd::transmission::{End, IN_FLIGHT_MAX, Session};
use bytes::{Bytes, BytesMut};
use std::sync::Arc;

fn session(structured: bool) -> Session {
    let contexts = vec![
        Selected { id: 7, context: Context::Allocation },
        Selected { id: 9, context: Context::Delta("one".to_owned()) },
    ];
    let contexts = if structured { contexts } else { Vec::new() };
    Session { structured, contexts, greeting: Bytes::new(), leftover: BytesMut::new() }
}

fn request(cookie: u64, command: u16, flags: u16, offset: u64, len: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    Request { flags, command, cookie, offset, len }.encode(&mut out);
    out.extend_from_slice(payload);
    out
}

/// One chunk or simple reply: cookie, type (none: simple), last one, errno, payload.
#[derive(Debug, PartialEq, Eq)]
struct Said {
    cookie: u64,
    kind: Option<u16>,
    done: bool,
    errno: u32,
    data: Vec<u8>,
}

/// Takes replies apart; `reads` gives the length of simple replies with data.
fn parse(mut sent: &[u8], reads: &[(u64, usize)]) -> Vec<Said> {
    let mut said = Vec::new();
    while !sent.is_empty() {
        if u32_at(sent, 0) == Some(SIMPLE_REPLY_MAGIC) {
            let (errno, cookie) = (u32_at(sent, 4).unwrap(), u64_at(sent, 8).unwrap());
            let len = reads.iter().find(|(read, _)| *read == cookie && errno == 0).map_or(0, |(_, len)| *len);
            said.push(Said { cookie, kind: None, done: true, errno, data: sent[16..16 + len].to_vec() });
            sent = &sent[16 + len..];
        } else {
            assert_eq!(u32_at(sent, 0), Some(CHUNK_MAGIC));
            let kind = u16_at(sent, 6).unwrap();
            let len = u32_at(sent, 16).unwrap() as usize;
            let data = sent[20..20 + len].to_vec();
            let errno = if kind & chunk::ERROR_BIT == 0 { 0 } else { u32_at(&data, 0).unwrap() };
            let done = u16_at(sent, 4) == Some(1);
            said.push(Said { cookie: u64_at(sent, 8).unwrap(), kind: Some(kind), done, errno, data });
            sent = &sent[20 + len..];
        }
    }
    said
}

/// Sends requests in pieces of `size`, gives the replies.
fn talk(memory: &Arc<Memory>, structured: bool, requests: &[Vec<u8>], size: usize) -> (End, Vec<u8>) {
    let bytes = Bytes::from(requests.concat());
    let receive =
        (0..bytes.len()).step_by(size).map(|at| bytes.slice(at..bytes.len().min(at + size))).collect();
    let (end, script) = run(memory, session(structured), Script { receive, ..Script::default() });
    (end, script.sent)
}

fn ask(memory: &Arc<Memory>, structured: bool, one: Vec<u8>, read_len: usize) -> Vec<Said> {
    let (end, sent) = talk(memory, structured, &[one], usize::MAX);
    assert_eq!(end, End::Gone);
    parse(&sent, &[(1, read_len)])
}

fn disk() -> Arc<Memory> {
    let memory = Memory::new(64 << 20);
    memory.snapshot("one");
    Arc::new(memory)
}

#[test]
fn what_was_written_is_read_however_it_arrives() {
    let data: Vec<u8> = (0..20_000_u32).map(|at| (at % 251) as u8).collect();
    let requests = [
        request(1, cmd::WRITE, 0, 3000, 20_000, &data),
        request(2, cmd::READ, 0, 3000, 20_000, &[]),
        request(3, cmd::FLUSH, 0, 0, 0, &[]),
        request(4, cmd::DISC, 0, 0, 0, &[]),
    ];
    for size in [1, 27, 28, 29, 1000, 20_028, 20_029, usize::MAX] {
        let memory = disk();
        let (end, sent) = talk(&memory, false, &requests, size);
        assert_eq!(end, End::Disconnect);
        let said = parse(&sent, &[(2, 20_000)]);
        assert_eq!(said.len(), 3, "{size}");
        assert!(said.iter().all(|said| said.errno == 0));
        assert_eq!(said.iter().find(|said| said.cookie == 2).unwrap().data, data);
        assert_eq!(memory.syncs(), 1);
    }
}

#[test]
fn holes_are_chunks_unless_told_otherwise() {
    let memory = disk();
    ask(&memory, true, request(1, cmd::WRITE, 0, 8192, 8192, &[7; 8192]), 0);
    let said = ask(&memory, true, request(1, cmd::READ, 0, 100, 20_380, &[]), 0);
    let shape: Vec<_> = said.iter().map(|said| (said.kind.unwrap(), said.done, said.data.len())).collect();
    assert_eq!(
        shape,
        [(chunk::OFFSET_HOLE, false, 12), (chunk::OFFSET_DATA, false, 8200), (chunk::OFFSET_HOLE, true, 12)]
    );
    assert_eq!(u64_at(&said[0].data, 0), Some(100));
    assert_eq!(u32_at(&said[0].data, 8), Some(8092));
    assert_eq!(u64_at(&said[1].data, 0), Some(8192));
    assert_eq!((u64_at(&said[2].data, 0), u32_at(&said[2].data, 8)), (Some(16384), Some(4096)));

    let expected: Vec<u8> = [vec![0; 8092], vec![7; 8192], vec![0; 4096]].concat();
    let said = ask(&memory, true, request(1, cmd::READ, cmd_flag::DF, 100, 20_380, &[]), 0);
    assert_eq!((said.len(), said[0].kind, said[0].done), (1, Some(chunk::OFFSET_DATA), true));
    assert_eq!(said[0].data[8..], expected);
    let said = ask(&memory, false, request(1, cmd::READ, 0, 100, 20_380, &[]), 20_380);
    assert_eq!(said[0].data, expected);
    // A hole as a whole stays one, and a long one in simple replies is all there.
    let said = ask(&memory, true, request(1, cmd::READ, cmd_flag::DF, 1 << 20, 32 << 20, &[]), 0);
    assert_eq!((said.len(), said[0].kind), (1, Some(chunk::OFFSET_HOLE)));
    let said = ask(&memory, false, request(1, cmd::READ, 0, 1 << 20, 32 << 20, &[]), 32 << 20);
    assert!(said[0].data.len() == 32 << 20 && said[0].data.iter().all(|byte| *byte == 0));
}

#[test]
fn refusals() {
    let end = 64 << 20;
    let cases: &[(u16, u16, u64, u32, u32)] = &[
        (cmd::READ, 0, end, 1, errno::EINVAL),
        (cmd::READ, 0, u64::MAX, u32::MAX, errno::EOVERFLOW),
        (cmd::READ, 0, u64::MAX, 2, errno::EINVAL),
        (cmd::READ, 0, 0, (32 << 20) + 1, errno::EOVERFLOW),
        (cmd::READ, cmd_flag::NO_HOLE, 0, 1, errno::EINVAL),
        (cmd::READ, 1 << 9, 0, 1, errno::EINVAL),
        (cmd::FLUSH, 0, 1, 0, errno::EINVAL),
        (cmd::FLUSH, 0, 0, 1, errno::EINVAL),
        (cmd::TRIM, 0, end - 1, 2, errno::EINVAL),
        (cmd::TRIM, cmd_flag::DF, 0, 1, errno::EINVAL),
        (cmd::WRITE_ZEROES, 0, end - 1, 2, errno::ENOSPC),
        (cmd::WRITE_ZEROES, cmd_flag::NO_HOLE | cmd_flag::FAST_ZERO, 0, 1, errno::ENOTSUP),
        (cmd::CACHE, 0, end, 1, errno::EINVAL),
        (cmd::BLOCK_STATUS, 0, end, 1, errno::EINVAL),
        (cmd::BLOCK_STATUS, 0, 0, 0, errno::EINVAL),
        (8, 0, 0, 0, errno::EINVAL),
        (0xffff, 0, 0, 0, errno::EINVAL),
    ];
    for structured in [false, true] {
        for &(command, flags, offset, len, expected) in cases {
            let said = ask(&disk(), structured, request(1, command, flags, offset, len, &[]), 0);
            assert_eq!((said.len(), said[0].errno), (1, expected), "{command} {flags} {offset} {len}");
            assert_eq!(said[0].kind, structured.then_some(chunk::ERROR));
            assert_eq!(structured, said[0].data.len() > 6, "there is a message");
        }
    }
    // Only where it was negotiated.
    let said = ask(&disk(), false, request(1, cmd::READ, cmd_flag::DF, 0, 1, &[]), 0);
    assert_eq!(said[0].errno, errno::EINVAL);
    let said = ask(&disk(), false, request(1, cmd::BLOCK_STATUS, 0, 0, 1, &[]), 0);
    assert_eq!(said[0].errno, errno::EINVAL);
}

#[test]
fn refused_writes_are_skipped() {
    let fixed = Arc::new(Memory::new(1 << 20).read_only());
    let over = vec![1; (32 << 20) + 1];
    let cases = [
        (disk(), request(1, cmd::WRITE, 0, (64 << 20) - 10, 20, &[1; 20]), errno::ENOSPC),
        (disk(), request(1, cmd::WRITE, cmd_flag::DF, 0, 20, &[1; 20]), errno::EINVAL),
        (disk(), request(1, cmd::WRITE, 0, 0, (32 << 20) + 1, &over), errno::EINVAL),
        (Arc::clone(&fixed), request(1, cmd::WRITE, 0, 0, 20, &[1; 20]), errno::EPERM),
        (Arc::clone(&fixed), request(1, cmd::WRITE, 0, 0, 0, &[]), errno::EPERM),
        (Arc::clone(&fixed), request(1, cmd::TRIM, 0, 0, 20, &[]), errno::EPERM),
        (fixed, request(1, cmd::WRITE_ZEROES, 0, 0, 20, &[]), errno::EPERM),
    ];
    for (memory, write, expected) in cases {
        let requests = [write, request(2, cmd::READ, 0, 0, 10, &[])];
        for size in [100_000, usize::MAX] {
            let (end, sent) = talk(&memory, true, &requests, size);
            assert_eq!(end, End::Gone);
            let said = parse(&sent, &[]);
            assert_eq!((said[0].cookie, said[0].errno), (1, expected));
            assert_eq!((said[1].cookie, said[1].errno), (2, 0));
        }
    }
}

#[test]
fn nothing_is_done_for_no_bytes() {
    for (command, kind) in
        [(cmd::READ, Some(chunk::NONE)), (cmd::WRITE, None), (cmd::TRIM, None), (cmd::CACHE, None)]
    {
        let said = ask(&disk(), true, request(1, command, cmd_flag::FUA, 64 << 20, 0, &[]), 0);
        assert_eq!((said.len(), said[0].kind, said[0].done, said[0].errno), (1, kind, true, 0));
    }
}

#[test]
fn status_of_every_context() {
    let memory = disk();
    ask(&memory, true, request(1, cmd::WRITE, cmd_flag::FUA, 4096, 4096, &[7; 4096]), 0);
    assert_eq!(memory.syncs(), 1);
    let status = |flags| ask(&memory, true, request(1, cmd::BLOCK_STATUS, flags, 1000, 15_000, &[]), 0);
    let numbers = |said: &Said| -> Vec<u32> {
        (0..said.data.len() / 4).map(|at| u32_at(&said.data, at * 4).unwrap()).collect()
    };
    let said = status(0);
    assert_eq!(said.iter().map(|said| said.done).collect::<Vec<_>>(), [false, true]);
    assert_eq!(numbers(&said[0]), [7, 3096, 3, 4096, 0, 7808, 3]);
    assert_eq!(numbers(&said[1]), [9, 3096, 0, 4096, 1, 7808, 0]);
    let said = status(cmd_flag::REQ_ONE);
    assert_eq!(numbers(&said[0]), [7, 3096, 3]);
    assert_eq!(numbers(&said[1]), [9, 3096, 0]);
}

#[test]
fn status_of_a_long_range_is_cut_and_goes_on() {
    let memory = Arc::new(Memory::new(4 << 30));
    memory.snapshot("one");
    // Every second block of the first 800 MiB, so that there are more runs than fit.
    for at in 0..100_000 {
        memory.put(at * 8192, &Bytes::from_static(b"x"));
    }
    let said = ask(&memory, true, request(1, cmd::BLOCK_STATUS, 0, 0, u32::MAX, &[]), 0);
    assert_eq!(said[0].data.len(), 4 + 8 * crate::nbd::reply::EXTENTS_MAX);
    // A hole of 3 GiB is one run.
    let said = ask(&memory, true, request(1, cmd::BLOCK_STATUS, 0, 1 << 30, 3 << 30, &[]), 0);
    assert_eq!((said[0].data.len(), u32_at(&said[0].data, 4)), (12, Some(3 << 30)));
}

#[test]
fn the_stream_ends_at_nonsense() {
    let mut bad = request(2, cmd::READ, 0, 0, 10, &[]);
    bad[3] ^= 1;
    let (end, sent) = talk(&disk(), true, &[request(1, cmd::READ, 0, 0, 10, &[]), bad], usize::MAX);
    assert_eq!(end, End::BadMagic);
    assert_eq!(parse(&sent, &[]).len(), 1, "what came before is answered");
    let (end, _) = talk(&disk(), true, &[request(1, cmd::WRITE, 0, 0, u32::MAX, &[])], usize::MAX);
    assert_eq!(end, End::TooBig);
    // In the middle of a header, and of a payload.
    for cut in [1, 27, 28, 30] {
        let whole = request(1, cmd::WRITE, 0, 0, 100, &[1; 100]);
        let (end, sent) = talk(&disk(), true, &[whole[..cut].to_vec()], usize::MAX);
        assert_eq!((end, sent.len()), (End::Gone, 0));
    }
}

#[test]
fn nothing_leaks_when_replies_cannot_be_sent() {
    let memory = disk();
    let requests: Vec<_> = (0..2000).map(|at| request(at, cmd::READ, 0, at * 4096, 65_536, &[])).collect();
    let receive = requests.concat().chunks(5000).map(Bytes::copy_from_slice).collect();
    let script = Script { receive, send_limit: Some(100_000), ..Script::default() };
    let (end, script) = run(&memory, session(false), script);
    assert_eq!(end, End::Stopped);
    assert!(script.sent.len() < 128 << 20, "it went on sending");
}

#[test]
fn no_more_is_received_than_the_limits_allow() {
    // Many small requests meet the limit of their number, a few large ones that of bytes.
    for (len, in_flight_max) in [(1, IN_FLIGHT_MAX), (1 << 20, 64)] {
        let requests: Vec<_> = (0..2000).map(|at| request(at, cmd::READ, 0, 0, len, &[])).collect();
        let receive = requests.into_iter().map(Bytes::from).collect();
        let script = Script { receive, slow_sends: true, ..Script::default() };
        let (end, script) = run(&disk(), session(true), script);
        assert_eq!(end, End::Gone);
        assert_eq!(script.received, 2000 * Request::SIZE, "all is answered in the end");
        // One more is received before it is known to have no room.
        assert_eq!(script.received_before_send, (in_flight_max + 1) * Request::SIZE);
    }
}

#[test]
fn replies_overtake_each_other() {
    let memory = Arc::new(Memory::new(1 << 20).slow(std::time::Duration::from_millis(1)));
    let requests = [
        request(1, cmd::READ, 0, 0, 4096, &[]),
        request(2, cmd::READ, 0, 4096, 4096, &[]),
        request(3, cmd::DISC, 0, 0, 0, &[]),
    ];
    let (end, sent) = talk(&memory, false, &requests, usize::MAX);
    assert_eq!(end, End::Disconnect);
    let cookies: Vec<u64> = parse(&sent, &[(1, 4096), (2, 4096)]).iter().map(|said| said.cookie).collect();
    assert_eq!(cookies, [2, 1]);
}
