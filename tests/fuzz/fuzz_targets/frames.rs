//! Any bytes, as what arrives on the connection of sessions: an error or a frame that can be said
//! again. With the first byte odd, the rest is the body of a frame of some kind whose head is
//! right.
//! `cargo fuzz run --fuzz-dir tests/fuzz frames fixtures/fuzz/frames`

#![no_main]

use libfuzzer_sys::fuzz_target;
use snapvol::replica::wire::{Body, Frame, HEAD_SIZE, Message};

fuzz_target!(|data: &[u8]| {
    let Some((choice, data)) = data.split_first() else { return };
    let framed;
    let mut input = data;
    if choice & 1 == 1 {
        let body = Body::Data(data.to_vec().into());
        let (mut head, body) = Frame::of_connection(body).encode().expect("it is short");
        head[4] = choice >> 1 & 3;
        let crc = crc32c::crc32c(&head[..HEAD_SIZE - 4]);
        head[HEAD_SIZE - 4..].copy_from_slice(&crc.to_le_bytes());
        framed = [&head[..], &body[..]].concat();
        input = &framed;
    }
    while let Ok(Some(frame)) = Frame::read(&mut input) {
        let mut again = Vec::new();
        frame.write(&mut again).expect("it goes into memory");
        let heard = Frame::read(&mut &again[..]).expect("it was just said");
        assert_eq!(heard.as_ref(), Some(&frame));
        if let Body::Message(Message::Greet(greet)) = frame.body {
            let _ = greet.version();
        }
    }
});
