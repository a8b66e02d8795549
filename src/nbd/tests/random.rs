//! Random and mutated input, seeded: nothing panics, nothing grows, everything ends.

use super::{converse, go, option};
use crate::nbd::client::context_query;
use crate::nbd::memory::Memory;
use crate::nbd::proto::{Request, opt};
use crate::nbd::script::{Script, run};
use crate::nbd::transmission::Session;
use bytes::{Bytes, BytesMut};
use std::sync::Arc;

fn mutate(random: &mut fastrand::Rng, bytes: &mut Vec<u8>) {
    for _ in 0..random.usize(0..4) {
        if bytes.is_empty() {
            return;
        }
        let at = random.usize(0..bytes.len());
        match random.u8(0..4) {
            0 => bytes[at] ^= 1 << random.u8(0..8),
            1 => bytes[at] = random.u8(..),
            2 => bytes.truncate(at),
            _ => bytes.insert(at, random.u8(..)),
        }
    }
}

#[test]
fn mutated_handshakes() {
    for seed in 0..3000 {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut input = vec![0, 0, 0, random.u8(0..4)];
        for _ in 0..random.usize(0..6) {
            let queries: Vec<String> = (0..random.usize(0..4))
                .map(|_| {
                    (*random.choice(&["base:", "base:allocation", "snapvol:", "snapvol:delta:one"]).unwrap())
                        .to_owned()
                })
                .collect();
            let data = match random.u8(0..4) {
                0 => Vec::new(),
                1 => go("disk", &[0, 1, 2, 3]),
                2 => context_query("disk", &queries).to_vec(),
                _ => std::iter::repeat_with(|| random.u8(..)).take(40).collect(),
            };
            let kind = if random.bool() { random.u32(0..13) } else { opt::SET_META_CONTEXT };
            input.extend(option(kind, &data));
        }
        mutate(&mut random, &mut input);
        let (_, said) = converse(&input, random.usize(1..64));
        assert!(said.len() < 10_000, "seed {seed}");
    }
}

#[test]
fn mutated_requests() {
    for seed in 0..3000 {
        let mut random = fastrand::Rng::with_seed(seed);
        let memory = Arc::new(Memory::new(1 << 20));
        memory.snapshot("one");
        let mut input = Vec::new();
        for cookie in 0..random.u64(0..20) {
            let len = if random.u8(0..8) == 0 { random.u32(..) } else { random.u32(0..10_000) };
            let command = random.u16(0..9);
            let request = Request {
                flags: if random.bool() { 0 } else { random.u16(0..64) },
                command,
                cookie,
                offset: if random.u8(0..8) == 0 { random.u64(..) } else { random.u64(0..1 << 20) },
                len,
            };
            request.encode(&mut input);
            if command == 1 {
                input.extend(std::iter::repeat_n(random.u8(..), len.min(100_000) as usize));
            }
        }
        mutate(&mut random, &mut input);
        let structured = random.bool();
        let contexts = if structured { super::super::script::contexts() } else { Vec::new() };
        let at = random.usize(0..=input.len());
        let leftover = BytesMut::from(&input[..at]);
        let session = Session { structured, contexts, greeting: Bytes::from_static(b"hello"), leftover };
        let chunk = random.usize(1..5000);
        let receive = input[at..].chunks(chunk).map(Bytes::copy_from_slice).collect();
        let send_limit = (random.u8(0..4) == 0).then(|| random.usize(0..20_000));
        let (_, script) = run(&memory, session, Script { receive, send_limit, ..Script::default() });
        assert!(script.receive_size_max <= 1 << 20, "seed {seed}");
    }
}
