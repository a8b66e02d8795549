//! Any bytes, as what arrives at the control socket: the head of a request or an answer,
//! its body in either framing, the JSON of an operation or an error.
//! `cargo fuzz run --fuzz-dir tests/fuzz control fixtures/fuzz/control`

#![no_main]

use libfuzzer_sys::fuzz_target;
use snapvol::Error;
use snapvol::control::http::{Body, read_answer, read_request};
use snapvol::control::wire::{Call, WireError};

const BODY_MAX: u64 = 1 << 16;

fuzz_target!(|data: &[u8]| {
    let mut input = data;
    if let Ok(Some(head)) = read_request(&mut input) {
        let body = Body::new(&mut input, head.framing).read_all(BODY_MAX);
        if let (Ok(body), Some(op)) = (body, head.path.strip_prefix("/v1/")) {
            assert!(body.len() as u64 <= BODY_MAX);
            if let Ok(call) = Call::from_parts(op, &body) {
                let (op, arguments) = call.to_parts().expect("an operation can be said");
                let again = Call::from_parts(&op, arguments.to_string().as_bytes());
                assert_eq!(again.expect("it was just said"), call);
            }
        }
    }
    let mut input = data;
    if let Ok(head) = read_answer(&mut input)
        && let Ok(body) = Body::new(&mut input, head.framing).read_all(BODY_MAX)
        && let Ok(error) = serde_json::from_slice::<WireError>(&body)
    {
        let _ = Error::from(error).to_string();
    }
});
