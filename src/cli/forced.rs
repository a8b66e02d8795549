//! A forced command: what an ssh key may ask for that is restricted to one store and some volumes.
//!
//! In `authorized_keys` the key's line begins with
//! `command="snapvol --store STORE peer --only VOL",restrict`. Then sshd runs that, whatever the
//! other side asked for, and leaves that in `SSH_ORIGINAL_COMMAND`. It is read here as the words
//! that this program's own near ends write, never by a shell, and is run only if it is one of their
//! few shapes, word for word, about this store and these volumes. The program that it names is
//! passed over: it is always this one.

use crate::error::{Error, Result};
use crate::types::{Name, SnapName};
use std::path::Path;

/// Where sshd says what was asked for.
pub(super) const ASKED_ENV: &str = "SSH_ORIGINAL_COMMAND";
/// The longest request, in bytes: a token is the longest part of any.
const ASKED_MAX: usize = 8192;

/// What the other side asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// To be the far end of sessions.
    Peer,
    /// To run this command of the program, on the store.
    Run(Vec<String>),
}

fn refused(what: &str) -> Error {
    Error::conflict(format!("this key is restricted, and {what}"))
        .hint("it may be used for replicate, copy, verify and update with the volumes it names, and for nothing else")
}

/// Reads a request, and checks that it may be granted.
///
/// # Errors
/// `Conflict` for everything that is not this program's own, or is about something else.
pub(super) fn asked(text: &str, store: &Path, only: &[Name]) -> Result<Asked> {
    let words = words(text).ok_or_else(|| refused("what was asked for is no request of snapvol"))?;
    let at = words.iter().position(|word| word == "--store");
    let (store_there, rest) = match at.map(|at| &words[at + 1..]) {
        // A program, or several words that run one, come first.
        Some([there, rest @ ..]) if at > Some(0) => (there, rest),
        _ => return Err(refused("what was asked for is no request of snapvol")),
    };
    if !same_dir(Path::new(store_there), store) {
        return Err(refused("the store that was asked for is another one"));
    }
    let volume = |name: &str| {
        let name: Name = name.parse()?;
        if only.contains(&name) { Ok(()) } else { Err(not_among(&name)) }
    };
    let rest: Vec<&str> = rest.iter().map(String::as_str).collect();
    match &rest[..] {
        ["peer"] => return Ok(Asked::Peer),
        ["receive", name, "--peer"] | ["digests", name] | ["list", name, "--json"] => volume(name)?,
        ["send", snapshot, options @ ..] => {
            let snapshot: SnapName = snapshot.parse()?;
            volume(snapshot.volume.as_str())?;
            sending(options)?;
        }
        _ => return Err(refused("what was asked for is none of that")),
    }
    Ok(Asked::Run(rest.into_iter().map(str::to_owned).collect()))
}

/// Says that a volume is not one of the key's.
pub(super) fn not_among(volume: &Name) -> Error {
    refused(&format!("volume {volume} is not one of its volumes"))
}

/// The options of a `send` that is read by another store.
fn sending(mut options: &[&str]) -> Result<()> {
    while !options.is_empty() {
        options = match options {
            ["--compress", rest @ ..] => rest,
            ["--from", snapshot, rest @ ..] => {
                snapshot.parse::<Name>()?;
                rest
            }
            ["--resume", token, rest @ ..] => {
                token.parse::<crate::delta::ResumeToken>()?;
                rest
            }
            _ => return Err(refused("what was asked for is none of that")),
        };
    }
    Ok(())
}

/// The words of a line as near ends quote them: plain ones, and pieces between single quotes
/// with `\'` between those. Whatever else a shell might understand is none.
fn words(text: &str) -> Option<Vec<String>> {
    if text.len() > ASKED_MAX || text.chars().any(char::is_control) {
        return None;
    }
    let mut words = Vec::new();
    for piece in split(text)? {
        let mut word = String::new();
        let mut rest = piece;
        while !rest.is_empty() {
            if let Some(quoted) = rest.strip_prefix('\'') {
                let (inner, after) = quoted.split_once('\'')?;
                word.push_str(inner);
                rest = after;
            } else if let Some(after) = rest.strip_prefix("\\'") {
                word.push('\'');
                rest = after;
            } else {
                let plain = |c: char| c.is_ascii_alphanumeric() || "/._-".contains(c);
                let end = rest.find(|c| !plain(c)).unwrap_or(rest.len());
                if end == 0 {
                    return None;
                }
                word.push_str(&rest[..end]);
                rest = &rest[end..];
            }
        }
        words.push(word);
    }
    Some(words)
}

/// The line at the blanks that are not between quotes.
fn split(text: &str) -> Option<Vec<&str>> {
    let (mut pieces, mut start, mut quoted) = (Vec::new(), 0, false);
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' if !quoted => escaped = true,
            '\'' => quoted = !quoted,
            ' ' if !quoted => {
                pieces.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    pieces.push(&text[start..]);
    let whole = !quoted && !escaped && pieces.iter().all(|piece| !piece.is_empty());
    whole.then_some(pieces)
}

fn same_dir(a: &Path, b: &Path) -> bool {
    match (std::fs::canonicalize(a), std::fs::canonicalize(b)) {
        (Ok(a), Ok(b)) => a == b,
        _ => a == b,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    fn ask(text: &str) -> Result<Asked> {
        let only = ["db".parse().unwrap(), "web".parse().unwrap()];
        asked(text, Path::new("/srv/my store"), &only)
    }

    fn run(words: &[&str]) -> Asked {
        Asked::Run(words.iter().map(|word| (*word).to_owned()).collect())
    }

    #[test]
    fn what_near_ends_ask_for_is_granted() {
        let store = "--store '/srv/my store'";
        assert_eq!(ask(&format!("snapvol {store} peer")).unwrap(), Asked::Peer);
        assert_eq!(
            ask(&format!("sudo -u x /opt/snapvol {store} receive db --peer")).unwrap(),
            run(&["receive", "db", "--peer"])
        );
        assert_eq!(ask(&format!("snapvol {store} digests web")).unwrap(), run(&["digests", "web"]));
        assert_eq!(ask(&format!("snapvol {store} list db --json")).unwrap(), run(&["list", "db", "--json"]));
        assert_eq!(
            ask(&format!("snapvol {store} send 'db@new' --compress --from old")).unwrap(),
            run(&["send", "db@new", "--compress", "--from", "old"])
        );
    }

    #[test]
    fn everything_else_is_refused() {
        let store = "--store '/srv/my store'";
        for what in [
            "receive other --peer",
            "receive db",
            "receive db --abort",
            "receive db --peer --abort",
            "receive db --peer peer",
            "receive '' --peer",
            "receive db+drill --peer",
            "digests other",
            "list --json",
            "list db",
            "list other --json",
            "send 'other@s'",
            "send 'db@s' -o /etc/passwd",
            "send 'db@s' --output=/etc/passwd",
            "send 'db@s' --from",
            "send 'db@s' --from ../x",
            "send 'db@s' --resume x",
            "send db",
            "delete db --recursive",
            "serve",
            "peer --only other",
            "peer peer",
            "peer; id",
            "peer && id",
            "peer | sh",
            "peer\nid",
            "peer `id`",
            "peer $(id)",
            "peer > /tmp/x",
            "'peer",
            "peer\\",
            "pe''er x",
            "  peer",
            "",
        ] {
            let error = ask(&format!("snapvol {store} {what}")).unwrap_err();
            assert!([ErrorKind::Conflict, ErrorKind::Invalid].contains(&error.kind()), "{what}: {error}");
        }
        for line in [
            "",
            "id",
            "scp -t /",
            "peer",
            "--store '/srv/my store' peer",
            "snapvol peer",
            "snapvol --store /srv/other peer",
            "snapvol --store",
            "sh -c id --store /srv/other peer",
            "snapvol --store '/srv/my store/../other' peer",
            "snapvol --store=/srv/other peer",
            "$(id) --store '/srv/my store' peer",
            "PATH=/tmp snapvol --store '/srv/my store' peer",
        ] {
            assert_eq!(ask(line).unwrap_err().kind(), ErrorKind::Conflict, "{line}");
        }
        assert!(ask(&format!("snapvol {} peer", "x ".repeat(ASKED_MAX))).is_err());
    }

    #[test]
    fn words_are_those_that_were_quoted() {
        for all in [&["a b", "c'd", "é;rm"][..], &["''", "x y 'z'"], &["plain", "/a/b-c_d.e"]] {
            let quote = |word: &&str| format!("'{}'", word.replace('\'', r"'\''"));
            let line = all.iter().map(quote).collect::<Vec<_>>().join(" ");
            assert_eq!(words(&line).unwrap(), all);
        }
        for bad in ["a  b", " a", "a ", "a\"b\"", "a\tb", "a*", "~", "a=b", "'a", "a\\b"] {
            assert!(words(bad).is_none(), "{bad}");
        }
    }
}
