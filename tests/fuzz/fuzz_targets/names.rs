//! Any text, as each of the things that users type: what is taken can be said again, and
//! no name leaves its directory.
//! `cargo fuzz run --fuzz-dir tests/fuzz names fixtures/fuzz/names`

#![no_main]

use libfuzzer_sys::fuzz_target;
use snapvol::delta::ResumeToken;
use snapvol::transport::Destination;
use snapvol::types::{Name, OnFull, SnapName, parse_size};

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(name) = text.parse::<Name>() {
        assert_eq!(name.as_str(), text);
        assert!(text.len() <= 63 && !text.contains('/') && !text.starts_with(['.', '-', '_']));
    }
    if let Ok(name) = text.parse::<SnapName>() {
        assert_eq!(name.to_string(), text);
        assert_eq!(text.matches('@').count(), 1);
    }
    if let Ok(destination) = text.parse::<Destination>() {
        assert!(destination.store.starts_with('/') && !destination.store.contains('\0'));
        if let Some(host) = &destination.host {
            assert!(!host.name.is_empty() && !host.name.starts_with('-'));
            assert!(host.user.as_ref().is_none_or(|user| !user.is_empty() && !user.starts_with('-')));
        }
    }
    if let Ok(token) = text.parse::<ResumeToken>() {
        assert_eq!(token.to_string().parse::<ResumeToken>().expect("it was just said"), token);
    }
    let _ = text.parse::<OnFull>();
    let _ = parse_size(text);
});
