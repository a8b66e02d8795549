//! Bytes of a client in its handshake, delivered in pieces whose size is the first byte.
//! `cargo fuzz run --fuzz-dir tests/fuzz handshake`

#![no_main]

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use snapvol::nbd::exports::Exports;
use snapvol::nbd::handshake::{Handshake, Step, accept};
use snapvol::nbd::memory::{Memory, MemoryExports};

fuzz_target!(|data: &[u8]| {
    let Some((size, data)) = data.split_first() else { return };
    let exports = MemoryExports::default();
    exports.add("a", Memory::new(1 << 20)).snapshot("one");
    let mut out = BytesMut::new();
    let mut handshake = Handshake::new(&mut out);
    for piece in data.chunks(usize::from(*size) + 1) {
        handshake.feed(piece);
        loop {
            out.clear();
            match handshake.advance(&exports, &mut out) {
                Step::Again => assert!(out.len() < 1 << 16),
                Step::NeedMore => break,
                Step::Close(_) => return,
                Step::Enter(choice) => {
                    let found = exports.find(&choice.export).expect("it was found before");
                    accept(&choice, &found.describe().expect("it is in memory"), &mut out);
                    return;
                }
            }
        }
    }
});
