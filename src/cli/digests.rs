//! `digests`: the far end of `verify`, on standard input and output. A near end starts it.
//!
//! Lines of JSON, one message a line:
//!
//!     near: hello          far: hello | failed
//!     near: ask            far: answer | failed      any number of times
//!
//! The near end may ask once more before it has read the answer. At the end of its input the
//! far end is done.

use super::shipping::{hear, say};
use crate::control::Access;
use crate::control::wire::WireError;
use crate::delta::digest::{Answer, Grain, Question};
use crate::error::{Error, ErrorKind, Result};
use crate::types::Name;
use serde::{Deserialize, Serialize};
use std::io::{BufRead, Write};
use uuid::Uuid;

/// The version of the conversation.
pub(super) const VERSION: u32 = 1;

/// From the near end, which compares, to the far one.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum ToFar {
    /// Who is there, and which snapshot it is about.
    Hello { version: u32, snapshot: Uuid },
    /// Asks for the digests of a range, in bytes.
    Ask { from: u64, to: u64, by: Grain },
}

/// From the far end to the near one.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum FromFar {
    /// The answer to `hello`: whether the snapshot is held.
    Hello { version: u32, held: bool },
    /// The answer to `ask`.
    Answer(Answer),
    /// It failed, and why.
    Failed(WireError),
}

/// Be the far end of 'verify'
#[derive(clap::Args)]
pub(super) struct Args {
    /// The volume that has the copy
    #[arg(value_name = "VOL")]
    volume: Name,
}

/// Runs the command. A failure goes to the near end; here it is said again for who looks at
/// the exit code.
///
/// # Errors
/// Those of the store and of the conversation.
pub(super) fn run(store: &Access, args: &Args) -> Result<()> {
    let ask = |question: &Question| store.digests(question);
    far_end(&ask, args.volume.as_str(), std::io::stdin().lock(), std::io::stdout())
}

fn far_end(
    store: &dyn Fn(&Question) -> Result<Answer>,
    volume: &str,
    mut input: impl BufRead,
    mut output: impl Write,
) -> Result<()> {
    let done = converse(store, volume, &mut input, &mut output);
    if let Err(error) = &done {
        // The near end may be gone, and then nobody needs to know.
        let _ = say(&mut output, &FromFar::Failed(WireError::from(error)));
    }
    done
}

fn converse(
    store: &dyn Fn(&Question) -> Result<Answer>,
    volume: &str,
    input: &mut impl BufRead,
    output: &mut impl Write,
) -> Result<()> {
    let gone = |_| Error::new(ErrorKind::Interrupted, "the comparing side is gone");
    let Some(ToFar::Hello { version, snapshot }) = hear(input)? else {
        return Err(Error::invalid("the other side does not begin with a hello"));
    };
    let question = |from, to, by| Question { volume: volume.to_owned(), snapshot, from, to, by };
    let held = match store(&question(0, 0, Grain::Chunk)) {
        // The near end says what it thinks of another version.
        _ if version != VERSION => true,
        Ok(_) => true,
        Err(error) if error.kind() == ErrorKind::NotFound => false,
        Err(error) => return Err(error),
    };
    say(output, &FromFar::Hello { version: VERSION, held }).map_err(gone)?;
    while let Some(message) = hear(input)? {
        let ToFar::Ask { from, to, by } = message else {
            return Err(Error::invalid("the other side says hello twice"));
        };
        say(output, &FromFar::Answer(store(&question(from, to, by))?)).map_err(gone)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn talk(input: &str) -> (Result<()>, String) {
        let store = |question: &Question| match question.snapshot.as_u128() {
            1 => Ok(Answer { size: 8192, block_size: 4096, reached: question.to, spans: Vec::new() }),
            2 => Err(Error::corrupt("a bad map")),
            _ => Err(Error::not_found("no snapshot")),
        };
        let mut output = Vec::new();
        let done = far_end(&store, "v", input.as_bytes(), &mut output);
        (done, String::from_utf8(output).unwrap())
    }

    fn hello(snapshot: u128) -> String {
        let snapshot = Uuid::from_u128(snapshot);
        serde_json::to_string(&ToFar::Hello { version: VERSION, snapshot }).unwrap() + "\n"
    }

    #[test]
    fn a_conversation() {
        let ask = "{\"ask\":{\"from\":0,\"to\":8192,\"by\":\"block\"}}\n";
        let (done, said) = talk(&(hello(1) + ask));
        done.unwrap();
        assert_eq!(
            said,
            "{\"hello\":{\"version\":1,\"held\":true}}\n\
             {\"answer\":{\"size\":8192,\"block_size\":4096,\"reached\":8192,\"spans\":[]}}\n"
        );
        let (done, said) = talk(&hello(3));
        done.unwrap();
        assert_eq!(said, "{\"hello\":{\"version\":1,\"held\":false}}\n");
    }

    #[test]
    fn failures_are_told_to_both() {
        let (done, said) = talk(&hello(2));
        assert_eq!(done.unwrap_err().kind(), ErrorKind::Corrupt);
        assert!(said.contains("\"failed\"") && said.contains("a bad map"), "{said}");
        for bad in ["", "{}\n", "rubbish\n", &(hello(1) + &hello(1))] {
            assert!(talk(bad).0.is_err(), "{bad}");
        }
    }
}
