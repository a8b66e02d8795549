//! What the two ends of sessions say to each other, as frames on one connection.
//!
//! A frame is a head of fixed size and a body: a message in JSON, bytes of a set's stream, or
//! nothing (a heartbeat). The page on replication draws the head; a test compares the two.
//! A length is believed after the head's checksum matched and is held against its limit before
//! anything is allocated; what a body's checksum does not fit ends the connection.

use crate::engine::roles::{RoleAnswer, RoleRequest, TakeOver};
use crate::engine::sets::{Feed, OpenFeed};
use crate::engine::together::GroupName;
use crate::error::{Error, ErrorKind, Result};
use crate::transport::one_line;
use crate::types::{RoleEpoch, SetId};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::io::{Read, Write};
use uuid::Uuid;

/// Versions of the conversation that this program speaks: from, to.
pub const VERSIONS: (u32, u32) = (1, 1);
/// Bytes of a head.
pub const HEAD_SIZE: usize = 52;
/// Bytes of a message, at most.
pub const MESSAGE_SIZE_MAX: usize = 1 << 20;
/// Bytes of data in a frame, at most.
pub const DATA_SIZE_MAX: usize = 2 << 20;
/// Bytes of data of a session that were not taken yet, at most.
pub const WINDOW: u64 = 8 << 20;

const MAGIC: [u8; 4] = *b"SVRP";

/// Something said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Message {
    /// Who is there; the first of each side.
    Greet(Greet),
    /// The sender asks for a session.
    Open {
        /// Its volumes.
        members: Vec<OpenFeed>,
        /// The group that they are, if they are one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        group: Option<GroupName>,
    },
    /// What the receiver has, member by member.
    Opened {
        /// In the order of `open`.
        members: Vec<Feed>,
    },
    /// What is half received is of no use.
    Abort {
        /// The volume at the receiver.
        volume: String,
    },
    /// It is dropped.
    Aborted {
        /// The volume at the receiver.
        volume: String,
    },
    /// The receiver is to take the sender's place.
    TakeOver {
        /// The volume at the receiver.
        volume: String,
        /// How.
        take: Box<TakeOver>,
    },
    /// It has.
    TookOver {
        /// The line that it is in now.
        lineage: Vec<RoleEpoch>,
    },
    /// What changed at a receiver with something of its own, from a byte on?
    Changes {
        /// The volume at the receiver.
        volume: String,
        /// The byte.
        from: u64,
    },
    /// The answer.
    Changed {
        /// First byte and count, ascending and disjoint.
        ranges: Vec<(u64, u64)>,
        /// Where the next question begins; none: that is all.
        next: Option<u64>,
    },
    /// The stream of a set follows.
    Set {
        /// The volume at the receiver.
        volume: String,
        /// The set.
        set: SetId,
        /// No mark of any session of the origin is older than this number.
        keep: Option<u64>,
    },
    /// The stream is over.
    End {
        /// It is not complete and will not be.
        broken: bool,
    },
    /// All of a set of a volume of a group is here, and waits for the others.
    Arrived {
        /// The volume at the receiver.
        volume: String,
    },
    /// The sets of a group's volumes are to be shown, all or none.
    Commit {
        /// By volume at the receiver.
        sets: Vec<(String, SetId)>,
    },
    /// They are durable and shown.
    Committed,
    /// Bytes of data that the receiver has consumed since it said so last.
    Taken {
        /// How many.
        bytes: u64,
    },
    /// The marks of a volume.
    Marks {
        /// The volume at the receiver.
        volume: String,
        /// The last set that can't be lost.
        durable: Option<SetId>,
        /// The last set that is shown.
        applied: Option<SetId>,
    },
    /// No mark of any session of the origin is older than this number.
    Keep {
        /// The volume at the receiver.
        volume: String,
        /// The number of a cut.
        number: u64,
    },
    /// The sender leaves the channel; the session stays.
    Leave,
    /// What one store asks another about roles; it opens a channel of its own.
    Ask {
        /// It.
        request: RoleRequest,
    },
    /// The answer.
    Told {
        /// It.
        answer: RoleAnswer,
    },
    /// The session is given up.
    Close {
        /// It.
        session: Uuid,
    },
    /// It is forgotten.
    Closed,
    /// What was asked failed.
    Failed {
        /// [`ErrorKind::name`].
        kind: String,
        /// One sentence.
        message: String,
        /// What to do next.
        hint: Option<String>,
    },
}

/// Who is there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Greet {
    /// The oldest version that it speaks.
    pub oldest: u32,
    /// The newest.
    pub newest: u32,
    /// The identity of its store.
    pub store: Uuid,
    /// The program's version.
    pub program: String,
    /// The stores from the origin down to this one, which is the last.
    pub path: Vec<Uuid>,
}

impl Greet {
    /// This program's, for a store.
    #[must_use]
    pub fn of(store: Uuid) -> Self {
        let (oldest, newest) = VERSIONS;
        Self { oldest, newest, store, program: env!("CARGO_PKG_VERSION").to_owned(), path: vec![store] }
    }

    /// The version that both sides speak.
    ///
    /// # Errors
    /// `Unsupported` when there is none.
    pub fn version(&self) -> Result<u32> {
        let (oldest, newest) = VERSIONS;
        if self.oldest <= newest && oldest <= self.newest {
            return Ok(newest.min(self.newest));
        }
        Err(Error::new(
            ErrorKind::Unsupported,
            format!(
                "the other side speaks versions {} to {} of the protocol, this side {oldest} to {newest}",
                self.oldest, self.newest
            ),
        )
        .hint("use releases of snapvol on both sides that have a version in common"))
    }
}

impl Message {
    /// The message for a failure.
    #[must_use]
    pub fn failure(error: &Error) -> Self {
        /// What fits a message whatever the error says.
        const TEXT_LEN_MAX: usize = 4000;
        let short = |text: &str| text.chars().take(TEXT_LEN_MAX).collect::<String>();
        Self::Failed {
            kind: error.kind().name().to_owned(),
            message: short(&error.to_string()),
            hint: error.hint_text().map(short),
        }
    }

    /// A word for it, for whoever hears it out of turn.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Greet(_) => "greet",
            Self::Open { .. } => "open",
            Self::Opened { .. } => "opened",
            Self::Abort { .. } => "abort",
            Self::Aborted { .. } => "aborted",
            Self::TakeOver { .. } => "take-over",
            Self::TookOver { .. } => "took-over",
            Self::Changes { .. } => "changes",
            Self::Changed { .. } => "changed",
            Self::Set { .. } => "set",
            Self::End { .. } => "end",
            Self::Arrived { .. } => "arrived",
            Self::Commit { .. } => "commit",
            Self::Committed => "committed",
            Self::Taken { .. } => "taken",
            Self::Marks { .. } => "marks",
            Self::Keep { .. } => "keep",
            Self::Leave => "leave",
            Self::Ask { .. } => "ask",
            Self::Told { .. } => "told",
            Self::Close { .. } => "close",
            Self::Closed => "closed",
            Self::Failed { .. } => "failed",
        }
    }
}

/// The failure that the other side reported.
#[must_use]
pub fn far_failure(kind: &str, message: &str, hint: Option<&str>) -> Error {
    let kind = ErrorKind::from_name(kind).unwrap_or(ErrorKind::Interrupted);
    let error = Error::new(kind, format!("the other side: {}", one_line(message)));
    match hint {
        Some(hint) => error.hint(format!("there: {}", one_line(hint))),
        None => error,
    }
}

/// What a frame carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// A message.
    Message(Message),
    /// Bytes of a set's stream.
    Data(Bytes),
    /// A sign of life.
    Heartbeat,
}

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The channel, made up by the sender whenever it opens a session; zero: the connection
    /// itself.
    pub channel: Uuid,
    /// The role epoch that the session is in; zero where it is in none yet.
    pub epoch: Uuid,
    /// What it carries.
    pub body: Body,
}

impl Frame {
    /// A frame of the connection itself.
    #[must_use]
    pub fn of_connection(body: Body) -> Self {
        Self { channel: Uuid::nil(), epoch: Uuid::nil(), body }
    }

    /// Head and body.
    ///
    /// # Errors
    /// `Invalid` when it is longer than any frame.
    pub fn encode(&self) -> Result<(Vec<u8>, Bytes)> {
        let (kind, body) = match &self.body {
            Body::Message(message) => {
                let text = serde_json::to_vec(message);
                (0, Bytes::from(text.map_err(|_| Error::invalid("a message can't be said in JSON"))?))
            }
            Body::Data(data) => (1, data.clone()),
            Body::Heartbeat => (2, Bytes::new()),
        };
        let len = u32::try_from(body.len()).ok().filter(|_| body.len() <= size_max(kind));
        let len = len.ok_or_else(|| Error::invalid("a frame is longer than any may be"))?;
        let mut head = Vec::with_capacity(HEAD_SIZE);
        head.extend_from_slice(&MAGIC);
        head.extend_from_slice(&[kind, 0, 0, 0]);
        head.extend_from_slice(self.channel.as_bytes());
        head.extend_from_slice(self.epoch.as_bytes());
        head.extend_from_slice(&len.to_le_bytes());
        head.extend_from_slice(&crc32c::crc32c(&body).to_le_bytes());
        let crc = crc32c::crc32c(&head);
        head.extend_from_slice(&crc.to_le_bytes());
        Ok((head, body))
    }

    /// Writes it.
    ///
    /// # Errors
    /// `Interrupted` when the connection broke.
    pub fn write(&self, output: &mut impl Write) -> Result<()> {
        let (head, body) = self.encode()?;
        let written = output.write_all(&head).and_then(|()| output.write_all(&body));
        written.and_then(|()| output.flush()).map_err(|_| broke())
    }

    /// Reads one; none at the end of the input.
    ///
    /// # Errors
    /// `Interrupted` when the input ends within a frame; `Corrupt`, `Invalid` for what is none.
    pub fn read(input: &mut impl Read) -> Result<Option<Self>> {
        let mut head = [0; HEAD_SIZE];
        let mut have = 0;
        while have < HEAD_SIZE {
            match input.read(&mut head[have..]) {
                Ok(0) if have == 0 => return Ok(None),
                Ok(0) => return Err(broke()),
                Ok(count) => have += count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => return Err(broke()),
            }
        }
        let (kind, len, crc) = check_head(&head)?;
        let mut body = vec![0; len];
        input.read_exact(&mut body).map_err(|_| broke())?;
        if crc32c::crc32c(&body) != crc {
            return Err(Error::corrupt("a frame on the connection has a wrong checksum"));
        }
        let uuid = |at: usize| Uuid::from_bytes(std::array::from_fn(|i| head[at + i]));
        let body = match kind {
            0 => Body::Message(serde_json::from_slice(&body).map_err(|error| {
                Error::invalid(format!("a message on the connection is not understood: {error}"))
            })?),
            1 => Body::Data(Bytes::from(body)),
            _ => Body::Heartbeat,
        };
        Ok(Some(Self { channel: uuid(8), epoch: uuid(24), body }))
    }
}

/// The end of a connection without a word.
#[must_use]
pub fn broke() -> Error {
    Error::new(ErrorKind::Interrupted, "the connection to the other side broke")
}

fn size_max(kind: u8) -> usize {
    match kind {
        0 => MESSAGE_SIZE_MAX,
        1 => DATA_SIZE_MAX,
        _ => 0,
    }
}

/// Kind, length and checksum of the body.
fn check_head(head: &[u8; HEAD_SIZE]) -> Result<(u8, usize, u32)> {
    let word = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| head[at + i]));
    if head[..4] != MAGIC {
        let text: String = String::from_utf8_lossy(head).chars().take(40).collect();
        return Err(Error::invalid(format!(
            "the other side does not speak the protocol of snapvol: '{}'",
            one_line(&text)
        ))
        .hint("something there prints text at login, or another program answers"));
    }
    if crc32c::crc32c(&head[..48]) != word(48) {
        return Err(Error::corrupt("the head of a frame on the connection has a wrong checksum"));
    }
    let (kind, len) = (head[4], word(40) as usize);
    if kind > 2 || head[5..8] != [0; 3] || len > size_max(kind) {
        return Err(Error::invalid("a frame on the connection is of no known kind, or too long"));
    }
    Ok((kind, len, word(44)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames() -> Vec<Frame> {
        let (channel, epoch) = (Uuid::from_u128(7), Uuid::from_u128(8));
        let failed = Message::failure(&Error::conflict("no").hint("do"));
        let bodies = [
            Body::Message(Message::Greet(Greet::of(Uuid::from_u128(3)))),
            Body::Message(failed),
            Body::Data(Bytes::from_static(b"bytes")),
            Body::Heartbeat,
        ];
        bodies.map(|body| Frame { channel, epoch, body }).to_vec()
    }

    fn bytes_of(frame: &Frame) -> Vec<u8> {
        let mut out = Vec::new();
        frame.write(&mut out).unwrap();
        out
    }

    #[test]
    fn frames_come_back_and_nothing_else_does() {
        let all: Vec<u8> = frames().iter().flat_map(bytes_of).collect();
        let mut input = &all[..];
        for frame in frames() {
            assert_eq!(Frame::read(&mut input).unwrap(), Some(frame));
        }
        assert_eq!(Frame::read(&mut input).unwrap(), None);
        for frame in frames() {
            let bytes = bytes_of(&frame);
            for len in 1..bytes.len() {
                let error = Frame::read(&mut &bytes[..len]).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Interrupted, "{len}");
            }
            for bit in 0..bytes.len() * 8 {
                let mut bad = bytes.clone();
                bad[bit / 8] ^= 1 << (bit % 8);
                assert!(Frame::read(&mut &bad[..]).is_err(), "bit {bit} of {frame:?}");
            }
        }
    }

    #[test]
    fn what_is_too_long_is_neither_said_nor_heard() {
        let long = Frame::of_connection(Body::Data(vec![0; DATA_SIZE_MAX + 1].into()));
        assert!(long.write(&mut Vec::new()).is_err());
        let mut head = bytes_of(&Frame::of_connection(Body::Data(Bytes::new())));
        head[40..44].copy_from_slice(&u32::MAX.to_le_bytes());
        let crc = crc32c::crc32c(&head[..48]).to_le_bytes();
        head[48..52].copy_from_slice(&crc);
        assert_eq!(Frame::read(&mut &head[..]).unwrap_err().kind(), ErrorKind::Invalid);
        // A shell that greets.
        let text = b"Welcome to this machine, it has been up for 300 days and counting.\n";
        let error = Frame::read(&mut &text[..]).unwrap_err();
        assert!(error.hint_text().unwrap().contains("login"));
    }

    #[test]
    fn versions_meet_or_do_not() {
        let greet = |oldest, newest| Greet { oldest, newest, ..Greet::of(Uuid::nil()) };
        assert_eq!(greet(1, 1).version().unwrap(), 1);
        assert_eq!(greet(1, 9).version().unwrap(), 1);
        for (oldest, newest) in [(2, 9), (0, 0)] {
            assert_eq!(greet(oldest, newest).version().unwrap_err().kind(), ErrorKind::Unsupported);
        }
    }

    /// The table on the page, against a frame whose bytes are known.
    #[test]
    fn the_page_tells_the_frame() {
        let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/replication.md"));
        let page = page.unwrap();
        let section = page.split_once("\n### Frame\n").unwrap().1.split_once("\nA channel").unwrap().0;
        let frame = &frames()[2];
        let bytes = bytes_of(frame);
        let mut end = 0;
        for line in
            section.lines().filter(|line| line.starts_with("| ") && line.as_bytes()[2].is_ascii_digit())
        {
            let cells: Vec<&str> = line.split('|').map(str::trim).collect();
            let (at, size): (usize, usize) = (cells[1].parse().unwrap(), cells[2].parse().unwrap());
            assert_eq!(at, end, "{line}");
            end += size;
            let field = &bytes[at..end];
            let expected: Vec<u8> = match cells[3] {
                "magic: `SVRP`" => MAGIC.to_vec(),
                text if text.starts_with("kind:") => vec![1],
                "reserved" => vec![0; 3],
                text if text.starts_with("channel;") => frame.channel.as_bytes().to_vec(),
                text if text.starts_with("role epoch") => frame.epoch.as_bytes().to_vec(),
                "bytes of the body" => 5u32.to_le_bytes().to_vec(),
                "checksum of the body" => crc32c::crc32c(b"bytes").to_le_bytes().to_vec(),
                "checksum of the 48 bytes above" => crc32c::crc32c(&bytes[..48]).to_le_bytes().to_vec(),
                other => panic!("{other}"),
            };
            assert_eq!(field, expected, "{line}");
        }
        assert_eq!(end, HEAD_SIZE);
        for (text, size) in [("at most 1 MiB", MESSAGE_SIZE_MAX), ("at most 2 MiB", DATA_SIZE_MAX)] {
            assert!(page.contains(text) && text.contains(&format!("{} MiB", size >> 20)));
        }
        assert!(page.contains(&format!("at most {} MiB of data", WINDOW >> 20)));
        for word in ["greet", "open", "opened", "abort", "aborted", "set", "end", "taken", "marks"] {
            assert!(page.contains(&format!("| `{word}` |")), "{word}");
        }
        for word in ["keep", "leave", "close", "closed", "failed"] {
            assert!(page.contains(&format!("| `{word}` |")), "{word}");
        }
    }
}
