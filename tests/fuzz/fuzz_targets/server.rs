//! Any bytes, as what an NBD server says to our own clients: the one in `nbd::client` and
//! the handshake of `attach`. The first byte says what was asked for. Put together, what a
//! client keeps of it stays in proportion to what was sent and asked for.
//! `cargo fuzz run --fuzz-dir tests/fuzz server fixtures/fuzz/server`

#![no_main]

use libfuzzer_sys::fuzz_target;
use snapvol::cli::attach::handshake::negotiate;
use snapvol::nbd::client::{Client, Options};
use snapvol::nbd::proto::cmd;
use std::io::{Cursor, Read, Result, Write};

/// Reads from the fuzzer's bytes; what is written goes nowhere.
struct Scripted(Cursor<Vec<u8>>);

impl Read for Scripted {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        self.0.read(buffer)
    }
}

impl Write for Scripted {
    fn write(&mut self, data: &[u8]) -> Result<usize> {
        Ok(data.len())
    }

    fn flush(&mut self) -> Result<()> {
        Ok(())
    }
}

/// A handshake that goes well, so that the fuzzer gets behind it.
fn good_handshake(structured: bool) -> Vec<u8> {
    let mut bytes = b"NBDMAGICIHAVEOPT\0\x03".to_vec();
    let mut reply = |option: u32, kind: u32, payload: &[u8]| {
        bytes.extend(0x0003_e889_0455_65a9_u64.to_be_bytes());
        bytes.extend(option.to_be_bytes());
        bytes.extend(kind.to_be_bytes());
        bytes.extend((payload.len() as u32).to_be_bytes());
        bytes.extend(payload);
    };
    if structured {
        reply(8, 1, &[]);
        reply(10, 4, &[&7u32.to_be_bytes()[..], b"base:allocation"].concat());
        reply(10, 1, &[]);
    }
    reply(7, 3, &[&[0, 0][..], &(1u64 << 20).to_be_bytes(), &[0, 0x6d]].concat());
    reply(7, 1, &[]);
    bytes
}

fuzz_target!(|data: &[u8]| {
    let Some((choice, data)) = data.split_first() else { return };
    if choice & 1 == 1 {
        let _ = negotiate(&mut Scripted(Cursor::new(data.to_vec())), "v");
        return;
    }
    let structured = choice & 2 != 0;
    let mut bytes = if choice & 4 != 0 { good_handshake(structured) } else { Vec::new() };
    bytes.extend(data);
    let contexts = if structured { vec!["base:allocation".to_owned()] } else { Vec::new() };
    let options = Options { structured, contexts, export_name: choice & 8 != 0 };
    let Ok(mut client) = Client::new(Box::new(Scripted(Cursor::new(bytes))), "v", &options) else { return };
    for (command, len) in [(cmd::READ, 4096), (cmd::READ, 512), (cmd::BLOCK_STATUS, 1 << 20), (cmd::FLUSH, 0)] {
        client.send(command, 0, 8192, len, &[]).expect("it goes nowhere");
    }
    for _ in 0..4 {
        let Ok(reply) = client.receive() else { return };
        assert!(reply.data.len() <= 4096);
    }
    assert!(client.receive().is_err(), "more answers than requests");
});
