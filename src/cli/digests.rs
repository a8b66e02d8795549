//! `digests`: the far end of `verify`, on standard input and output. A near end starts it.
//!
//! Lines of JSON, one message a line:
//!
//!     near: hello          far: hello | failed
//!     near: ask            far: answer | failed      any number of times
//!
//! and, to repair,
//!
//!     near: content        far: content | failed
//!     near: restore        far: restored | failed
//!
//! The near end may ask once more before it has read the answer. At the end of its input the
//! far end is done.

use super::shipping::{hear, say};
use crate::control::Access;
use crate::control::wire::WireError;
use crate::delta::digest::{Answer, BlockOf, Content, Grain, Question};
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
    /// Who is there, and which snapshots would do, best first. It may be said again.
    Hello { version: u32, comparison: Uuid, wanted: Vec<Uuid> },
    /// Asks for the digests of a range, in bytes.
    Ask { from: u64, to: u64, by: Grain },
    /// Asks for the block that begins at that byte.
    Content { at: u64 },
    /// That block, damaged at the far end, has this content.
    Restore { at: u64, content: Content },
}

/// From the far end to the near one.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum FromFar {
    /// The answer to `hello`: the first of the snapshots that is held here. It stays until
    /// the end, and is what is asked about from now on.
    Hello { version: u32, held: Option<Uuid> },
    /// The answer to `ask`.
    Answer(Answer),
    /// The answer to `content`; none: the block is damaged.
    Content(Option<Content>),
    /// The answer to `restore`; false: nothing proves that this was the block's content.
    Restored(bool),
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
    far_end(store, args.volume.as_str(), std::io::stdin().lock(), std::io::stdout())
}

/// A store, as far as digests go.
trait Digests {
    /// As [`Store::digests`](crate::engine::Store::digests).
    fn digests(&self, question: &Question) -> Result<Answer>;
    /// As [`Store::content`](crate::engine::Store::content).
    fn content(&self, of: &BlockOf) -> Result<Option<Content>>;
    /// As [`Store::restore_content`](crate::engine::Store::restore_content).
    fn restore(&self, of: &BlockOf, content: &Content) -> Result<bool>;
    /// As [`Store::end_digests`](crate::engine::Store::end_digests).
    fn end(&self, volume: &str, comparison: Uuid) -> Result<()>;
}

impl Digests for Access {
    fn digests(&self, question: &Question) -> Result<Answer> {
        Self::digests(self, question)
    }
    fn content(&self, of: &BlockOf) -> Result<Option<Content>> {
        Self::content(self, of)
    }
    fn restore(&self, of: &BlockOf, content: &Content) -> Result<bool> {
        self.restore_content(of, content)
    }
    fn end(&self, volume: &str, comparison: Uuid) -> Result<()> {
        self.end_digests(volume, comparison)
    }
}

fn far_end(store: &dyn Digests, volume: &str, mut input: impl BufRead, mut output: impl Write) -> Result<()> {
    let mut comparison = None;
    let done = converse(store, volume, &mut input, &mut output, &mut comparison);
    if let Some(comparison) = comparison {
        // The volume may be gone; else the snapshot is closed after a while.
        let _ = store.end(volume, comparison);
    }
    if let Err(error) = &done {
        // The near end may be gone, and then nobody needs to know.
        let _ = say(&mut output, &FromFar::Failed(WireError::from(error)));
    }
    done
}

/// `comparison` is set as soon as the store may have something open for it.
fn converse(
    store: &dyn Digests,
    volume: &str,
    input: &mut impl BufRead,
    output: &mut impl Write,
    comparison: &mut Option<Uuid>,
) -> Result<()> {
    let gone = |_| Error::new(ErrorKind::Interrupted, "the comparing side is gone");
    let mut about = None;
    while let Some(message) = hear(input)? {
        let answer = match message {
            ToFar::Hello { version, .. } if version != VERSION => {
                FromFar::Hello { version: VERSION, held: None }
            }
            ToFar::Hello { comparison: theirs, wanted, .. } => {
                *comparison = Some(theirs);
                about = None;
                for snapshot in wanted {
                    let question = ask(volume, theirs, snapshot, 0, 0, Grain::Chunk);
                    match store.digests(&question) {
                        Ok(_) => {
                            about = Some((theirs, snapshot));
                            break;
                        }
                        Err(error) if error.kind() == ErrorKind::NotFound => {}
                        Err(error) => return Err(error),
                    }
                }
                FromFar::Hello { version: VERSION, held: about.map(|(_, snapshot)| snapshot) }
            }
            ToFar::Content { at } => FromFar::Content(store.content(&block_of(volume, about, at)?)?),
            ToFar::Restore { at, content } => {
                FromFar::Restored(store.restore(&block_of(volume, about, at)?, &content)?)
            }
            ToFar::Ask { from, to, by } => {
                let (comparison, snapshot) = about.ok_or_else(no_hello)?;
                FromFar::Answer(store.digests(&ask(volume, comparison, snapshot, from, to, by))?)
            }
        };
        say(output, &answer).map_err(gone)?;
    }
    Ok(())
}

fn no_hello() -> Error {
    Error::invalid("the other side asks before it says hello")
}

fn block_of(volume: &str, about: Option<(Uuid, Uuid)>, at: u64) -> Result<BlockOf> {
    let (comparison, snapshot) = about.ok_or_else(no_hello)?;
    Ok(BlockOf { comparison, volume: volume.to_owned(), snapshot, at })
}

fn ask(volume: &str, comparison: Uuid, snapshot: Uuid, from: u64, to: u64, by: Grain) -> Question {
    Question { comparison, volume: volume.to_owned(), snapshot, from, to, by }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    #[derive(Default)]
    struct Memory(RefCell<Vec<Uuid>>);

    impl Digests for Memory {
        fn digests(&self, question: &Question) -> Result<Answer> {
            match question.snapshot.as_u128() {
                1 => Ok(Answer { size: 8192, block_size: 4096, reached: question.to, ..Answer::default() }),
                2 => Err(Error::corrupt("a bad map")),
                _ => Err(Error::not_found("no snapshot")),
            }
        }
        fn content(&self, of: &BlockOf) -> Result<Option<Content>> {
            Ok((of.at == 0).then(|| Content(bytes::Bytes::from_static(b"a"))))
        }
        fn restore(&self, of: &BlockOf, content: &Content) -> Result<bool> {
            Ok(of.at == 4096 && &content.0[..] == b"a")
        }
        fn end(&self, _: &str, comparison: Uuid) -> Result<()> {
            self.0.borrow_mut().push(comparison);
            Ok(())
        }
    }

    fn talk(input: &str) -> (Result<()>, String) {
        let (store, mut output) = (Memory::default(), Vec::new());
        let done = far_end(&store, "v", input.as_bytes(), &mut output);
        // What was opened is closed, however it ended.
        let opened = input.contains("comparison");
        assert_eq!(store.0.into_inner(), if opened { vec![Uuid::from_u128(9)] } else { Vec::new() });
        (done, String::from_utf8(output).unwrap())
    }

    fn hello(wanted: &[u128]) -> String {
        let wanted = wanted.iter().copied().map(Uuid::from_u128).collect();
        let comparison = Uuid::from_u128(9);
        serde_json::to_string(&ToFar::Hello { version: VERSION, comparison, wanted }).unwrap() + "\n"
    }

    #[test]
    fn a_conversation() {
        let ask = "{\"ask\":{\"from\":0,\"to\":8192,\"by\":\"block\"}}\n";
        let (done, said) = talk(&(hello(&[3, 1, 2]) + ask));
        done.unwrap();
        let one = Uuid::from_u128(1);
        assert_eq!(
            said,
            format!("{{\"hello\":{{\"version\":1,\"held\":\"{one}\"}}}}\n")
                + "{\"answer\":{\"name\":\"\",\"size\":8192,\"block_size\":4096,\"reached\":8192,\"spans\":[]}}\n"
        );
        let (done, said) = talk(&(hello(&[3, 4]) + &hello(&[])));
        done.unwrap();
        assert_eq!(said, "{\"hello\":{\"version\":1,\"held\":null}}\n".repeat(2));
        talk("").0.unwrap();
        let repair = "{\"content\":{\"at\":0}}\n{\"content\":{\"at\":4096}}\n\
                      {\"restore\":{\"at\":4096,\"content\":\"YQ==\"}}\n{\"restore\":{\"at\":0,\"content\":\"YQ==\"}}\n";
        let (done, said) = talk(&(hello(&[1]) + repair));
        done.unwrap();
        let answers: Vec<&str> = said.lines().skip(1).collect();
        let expected =
            ["{\"content\":\"YQ==\"}", "{\"content\":null}", "{\"restored\":true}", "{\"restored\":false}"];
        assert_eq!(answers, expected);
        assert!(talk(repair).0.is_err(), "before hello");
    }

    #[test]
    fn failures_are_told_to_both() {
        let (done, said) = talk(&hello(&[2, 1]));
        assert_eq!(done.unwrap_err().kind(), ErrorKind::Corrupt);
        assert!(said.contains("\"failed\"") && said.contains("a bad map"), "{said}");
        let ask = "{\"ask\":{\"from\":0,\"to\":8192,\"by\":\"block\"}}\n";
        for bad in ["{}\n", "rubbish\n", ask] {
            assert!(talk(bad).0.is_err(), "{bad}");
        }
        assert!(talk(&(hello(&[3]) + ask)).0.is_err());
    }
}
