//! The destination: which volume of which store on which host.
//!
//! `ssh://[user@]host[:port]/STORE/VOL`, or a path `/STORE/VOL` on this machine. The
//! last part is the volume, all before it the store's absolute path. The text is
//! taken literally: `%20` is three characters, not a space. What could turn into an
//! option of a program, or into two words, is refused here.

use crate::error::{Error, Result};
use crate::types::Name;
use std::fmt;
use std::str::FromStr;

/// A host reached over ssh. No part starts with `-`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// The user to log in as, if one was given.
    pub user: Option<String>,
    /// A name of `~/.ssh/config`, a host name or an address (IPv6 without brackets).
    pub name: String,
    /// The port, if one was given.
    pub port: Option<u16>,
}

/// Where a copy goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destination {
    /// None: this machine.
    pub host: Option<Host>,
    /// The store's absolute path there.
    pub store: String,
    /// The volume's name there.
    pub volume: Name,
}

fn bad(text: &str, what: &str) -> Error {
    Error::invalid(format!("'{}' is no destination: {what}", text.escape_debug()))
        .hint("write ssh://[user@]host[:port]/STORE/VOL, or /STORE/VOL for a store on this machine")
}

impl FromStr for Destination {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let bad = |what: &str| bad(text, what);
        if text.chars().any(char::is_control) {
            return Err(bad("it has a control character"));
        }
        let (host, path) = match text.strip_prefix("ssh://") {
            Some(rest) => {
                let slash = rest.find('/').ok_or_else(|| bad("the path is missing"))?;
                (
                    Some(rest[..slash].parse::<Host>().map_err(|error| bad(&error.to_string()))?),
                    &rest[slash..],
                )
            }
            None => (None, text),
        };
        if !path.starts_with('/') {
            let what =
                if text.contains("://") { "only ssh:// is known" } else { "the path must start with /" };
            return Err(bad(what));
        }
        let (store, volume) = path.rsplit_once('/').ok_or_else(|| bad("the path is missing"))?;
        if store.is_empty() {
            return Err(bad("the store's path is missing before the volume"));
        }
        if store[1..].split('/').any(str::is_empty) {
            return Err(bad("a part of the path is empty"));
        }
        let volume = volume.parse().map_err(|error: Error| bad(&error.to_string()))?;
        Ok(Self { host, store: store.to_owned(), volume })
    }
}

impl FromStr for Host {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let bad = |what: &str| Err(Error::invalid(what));
        let (user, rest) = match text.rsplit_once('@') {
            Some((user, rest)) => (Some(user), rest),
            None => (None, text),
        };
        let (name, port) = if let Some(rest) = rest.strip_prefix('[') {
            match rest.split_once(']') {
                Some((name, "")) => (name, None),
                Some((name, port)) if port.starts_with(':') => (name, Some(&port[1..])),
                _ => return bad("the bracket around the address is not closed"),
            }
        } else {
            match rest.split_once(':') {
                Some((_, port)) if port.contains(':') => return bad("an IPv6 address stands in brackets"),
                Some((name, port)) => (name, Some(port)),
                None => (rest, None),
            }
        };
        let in_brackets = rest.starts_with('[');
        if in_brackets && name.split('%').next().is_none_or(|ip| ip.parse::<std::net::Ipv6Addr>().is_err()) {
            return bad("what stands in brackets is no IPv6 address");
        }
        let is_word = |word: &str, more: &str| {
            !word.is_empty()
                && word.chars().all(|c| c.is_alphanumeric() || "._-".contains(c) || more.contains(c))
        };
        if name.starts_with('-') || user.is_some_and(|user| user.starts_with('-')) {
            return bad("a host or user must not start with '-'");
        }
        if !is_word(name, if in_brackets { ":%" } else { "" }) {
            return bad("the host's name is missing or malformed");
        }
        if user.is_some_and(|user| !is_word(user, "+@")) {
            return bad("the user's name is missing or malformed");
        }
        let port = match port {
            None => None,
            Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => match digits.parse::<u16>() {
                Ok(port) if port > 0 => Some(port),
                _ => return bad("the port is not between 1 and 65535"),
            },
            Some(_) => return bad("the port is no number"),
        };
        Ok(Self { user: user.map(str::to_owned), name: name.to_owned(), port })
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(host) = &self.host {
            out.write_str("ssh://")?;
            if let Some(user) = &host.user {
                write!(out, "{user}@")?;
            }
            if host.name.contains(':') {
                write!(out, "[{}]", host.name)?
            } else {
                out.write_str(&host.name)?
            }
            if let Some(port) = host.port {
                write!(out, ":{port}")?;
            }
        }
        write!(out, "{}/{}", self.store, self.volume)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_ones_survive() {
        for text in [
            "/srv/store/db",
            "/srv/a b/db",
            "ssh://host/srv/store/db",
            "ssh://me@host.example:2222/s/db",
            "ssh://[fe80::1%eth0]:22/s/db",
            "ssh://me@[::1]/s/db",
        ] {
            assert_eq!(text.parse::<Destination>().unwrap().to_string(), text);
        }
        let there: Destination = "ssh://me@[::1]:7/srv/x%20y/db".parse().unwrap();
        let host = Host { user: Some("me".to_owned()), name: "::1".to_owned(), port: Some(7) };
        assert_eq!(
            (there.host, there.store.as_str(), there.volume.as_str()),
            (Some(host), "/srv/x%20y", "db")
        );
    }

    #[test]
    fn bad_ones_are_refused() {
        for text in [
            "",
            "db",
            "store/db",
            "/db",
            "//db",
            "/s//db",
            "/s/db/",
            "/s/_db",
            "/s/d b",
            "/s/db@x",
            "/s\n/db",
            "ssh://",
            "ssh:///s/db",
            "ssh://host",
            "ssh://host/",
            "ssh://host/db",
            "ssh://-oProxyCommand=x/s/db",
            "ssh://-x@host/s/db",
            "ssh://@host/s/db",
            "ssh://host:/s/db",
            "ssh://host:0/s/db",
            "ssh://host:65536/s/db",
            "ssh://host:x/s/db",
            "ssh://host:+1/s/db",
            "ssh://::1/s/db",
            "ssh://[::1/s/db",
            "ssh://[::1]x/s/db",
            "ssh://[-x]/s/db",
            "ssh://a b/s/db",
            "ssh://a;b/s/db",
            "ssh://user name@host/s/db",
            "http://host/s/db",
            "ssh://host\u{7}/s/db",
        ] {
            let error = text.parse::<Destination>().expect_err(text);
            assert_eq!(error.kind(), crate::ErrorKind::Invalid, "{text}");
        }
    }
}
