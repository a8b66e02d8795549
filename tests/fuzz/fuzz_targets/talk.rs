//! Any bytes, as what the other end of a copy says: to the far end, which applies a stream
//! to a store, and lines to the near one.
//! `cargo fuzz run --fuzz-dir tests/fuzz talk fixtures/fuzz/talk`

#![no_main]

use libfuzzer_sys::fuzz_target;
use snapvol::cli::receive::far_end;
use snapvol::cli::shipping::{Shipping, ToNear, hear, say};
use snapvol::delta::Decoder;
use snapvol::engine::api::{HalfReceived, Received, SendRequest, StoreInfo};
use snapvol::{Error, Result};
use std::io::Read;

/// A store that verifies what it receives and keeps nothing.
struct Sink;

impl Shipping for Sink {
    fn list(&self, _: Option<&str>) -> Result<StoreInfo> {
        Ok(StoreInfo { store: String::new(), volumes: Vec::new() })
    }
    fn send(&self, _: &SendRequest) -> Result<Box<dyn Read + Send>> {
        Err(Error::invalid("nothing is sent"))
    }
    fn receive(&self, volume: &str, mut input: &mut (dyn Read + Send)) -> Result<Received> {
        let mut decoder = Decoder::new(&mut input)?;
        let (snapshot, uuid) = (decoder.header().target.name.clone(), decoder.header().target.uuid);
        while decoder.next_chunk()?.is_some() {}
        let (data_bytes, discard_bytes) = decoder.progress();
        let volume = volume.to_owned();
        Ok(Received { volume, snapshot, uuid, already: false, data_bytes, discard_bytes })
    }
    fn receive_status(&self, _: &str) -> Result<Option<HalfReceived>> {
        Ok(None)
    }
    fn receive_abort(&self, _: &str) -> Result<()> {
        Ok(())
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((choice, data)) = data.split_first() else { return };
    if choice & 1 == 0 {
        let mut said = Vec::new();
        let done = far_end(&Sink, "v", data, &mut said);
        let mut said = said.as_slice();
        let mut last = None;
        while let Some(message) = hear::<ToNear>(&mut said).expect("our own words") {
            last = Some(message);
        }
        assert!(done.is_ok() || matches!(last, Some(ToNear::Error { .. })), "a failure is told");
        return;
    }
    let mut input = data;
    while let Ok(Some(message)) = hear::<ToNear>(&mut input) {
        let mut again = Vec::new();
        say(&mut again, &message).expect("it goes into memory");
        assert_eq!(hear::<ToNear>(&mut again.as_slice()).expect("it was just said"), Some(message));
    }
});
