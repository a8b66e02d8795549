//! Tests of the NBD layer: the handshake as a state machine, requests over a scripted
//! socket, and whole servers with a client at the other end.

mod handshake;
mod random;
mod server;
mod transmission;

use super::handshake::{Handshake, Step};
use super::memory::{Memory, MemoryExports};
use super::proto::{OPTION_REPLY_MAGIC, OptionHeader, u32_at, u64_at};
use crate::io::DriverKind;
use bytes::{BufMut, BytesMut};

/// Two volumes, one of them with snapshots.
pub(super) fn exports() -> MemoryExports {
    let exports = MemoryExports::new(DriverKind::Auto);
    let disk = exports.add("disk", Memory::new(64 << 20));
    disk.snapshot("one");
    disk.snapshot("two");
    exports.add("fixed", Memory::new(1 << 20).read_only());
    exports
}

/// An option as it goes over the wire.
pub(super) fn option(option: u32, data: &[u8]) -> Vec<u8> {
    let mut out = BytesMut::new();
    OptionHeader { option, len: u32::try_from(data.len()).unwrap() }.encode(&mut out);
    out.put_slice(data);
    out.to_vec()
}

/// The data of `OPT_GO` and `OPT_INFO`.
pub(super) fn go(name: &str, wanted: &[u16]) -> Vec<u8> {
    let mut data = BytesMut::new();
    data.put_u32(u32::try_from(name.len()).unwrap());
    data.put_slice(name.as_bytes());
    data.put_u16(u16::try_from(wanted.len()).unwrap());
    wanted.iter().for_each(|kind| data.put_u16(*kind));
    data.to_vec()
}

/// Feeds bytes and goes on as long as there is something to do; the last step and
/// everything that was said after the greeting.
pub(super) fn converse(input: &[u8], chunk: usize) -> (Step, Vec<u8>) {
    let exports = exports();
    let mut out = BytesMut::new();
    let mut handshake = Handshake::new(&mut out);
    assert_eq!(out.len(), 18);
    out.clear();
    for chunk in input.chunks(chunk) {
        handshake.feed(chunk);
        loop {
            match handshake.advance(&exports, &mut out) {
                Step::Again => {}
                Step::NeedMore => break,
                step => return (step, out.to_vec()),
            }
        }
    }
    (Step::NeedMore, out.to_vec())
}

/// Replies to options: option, type, data.
pub(super) fn replies(mut said: &[u8]) -> Vec<(u32, u32, Vec<u8>)> {
    let mut replies = Vec::new();
    while !said.is_empty() {
        assert_eq!(u64_at(said, 0), Some(OPTION_REPLY_MAGIC));
        let len = u32_at(said, 16).unwrap() as usize;
        replies.push((u32_at(said, 8).unwrap(), u32_at(said, 12).unwrap(), said[20..20 + len].to_vec()));
        said = &said[20 + len..];
    }
    replies
}
