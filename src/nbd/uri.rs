//! The addresses of exports, as clients take them (NBD URI specification).

use super::server::Address;
use std::fmt::Write;

/// The URI of `export` at `address`.
pub fn uri(address: &Address, export: &str) -> String {
    match address {
        Address::Unix(path) => {
            let socket = encode(path.as_os_str().as_encoded_bytes(), b"/");
            format!("nbd+unix:///{}?socket={socket}", encode(export.as_bytes(), b"@+"))
        }
        Address::Tcp(address) => format!("nbd://{address}/{}", encode(export.as_bytes(), b"@+")),
    }
}

/// Percent-encodes all but what a URI may always hold and the bytes in `also`.
pub(crate) fn encode(bytes: &[u8], also: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for &byte in bytes {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) || also.contains(&byte) {
            text.push(char::from(byte));
        } else {
            // Writing to a string cannot fail.
            let _ = write!(text, "%{byte:02X}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_characters_are_encoded() {
        let unix = Address::Unix("/tmp/a b&ä/nbd.sock".into());
        assert_eq!(uri(&unix, "db@x.1"), "nbd+unix:///db@x.1?socket=/tmp/a%20b%26%C3%A4/nbd.sock");
        let tcp = Address::Tcp("[::1]:10809".parse().unwrap());
        assert_eq!(uri(&tcp, "db"), "nbd://[::1]:10809/db");
    }
}
