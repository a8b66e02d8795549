//! Bytes of a client in its transmission phase: the first byte says how they arrive, the
//! second what was negotiated and whether the client takes its replies.
//! `cargo fuzz run --fuzz-dir tests/fuzz requests`

#![no_main]

use bytes::{Bytes, BytesMut};
use libfuzzer_sys::fuzz_target;
use snapvol::nbd::memory::Memory;
use snapvol::nbd::script::{Script, contexts, run};
use snapvol::nbd::transmission::Session;
use std::sync::Arc;

fuzz_target!(|data: &[u8]| {
    let [size, how, data @ ..] = data else { return };
    let memory = Arc::new(Memory::new(1 << 20));
    memory.snapshot("one");
    let structured = how & 1 != 0;
    let contexts = if structured { contexts() } else { Vec::new() };
    let receive = data.chunks(usize::from(*size) + 1).map(Bytes::copy_from_slice).collect();
    let send_limit = (how & 2 != 0).then_some(usize::from(*how) * 64);
    let session = Session { structured, contexts, greeting: Bytes::new(), leftover: BytesMut::new() };
    run(&memory, session, Script { receive, send_limit, ..Script::default() });
});
