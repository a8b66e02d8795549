//! What `copy`, `send` and `receive` ask of a store, and the words in which the two
//! ends of a copy talk: lines of JSON, one message a line, over the far program's
//! standard input and output.
//!
//!     near: hello          far: held | error
//!     near: start, then the stream as marked pieces
//!                          far: progress ..., then done | error
//!
//! Only `done` makes a copy successful.

use crate::control::Access;
use crate::engine::api::{HalfReceived, Received, SendRequest, StoreInfo};
use crate::error::{Error, ErrorKind, Result};
use crate::transport::one_line;
use crate::types::Role;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::io::{BufRead, Read, Write};
use uuid::Uuid;

/// The version of the conversation.
pub const PEER_VERSION: u32 = 1;
/// The hint after a copy that broke off.
pub const GOES_ON: &str = "run the same command again: it goes on where it stopped";
/// The longest line that one end takes from the other, in bytes.
const LINE_MAX: u64 = 64 << 20;

/// A store, as far as shipping goes; served or not.
pub trait Shipping: Send + Sync {
    /// As [`Store::list`](crate::engine::store::Store::list).
    ///
    /// # Errors
    /// As there.
    fn list(&self, volume: Option<&str>) -> Result<StoreInfo>;
    /// As [`Store::send`](crate::engine::store::Store::send).
    ///
    /// # Errors
    /// As there.
    fn send(&self, request: &SendRequest) -> Result<Box<dyn Read + Send>>;
    /// As [`Store::receive`](crate::engine::store::Store::receive).
    ///
    /// # Errors
    /// As there.
    fn receive(&self, volume: &str, input: &mut (dyn Read + Send)) -> Result<Received>;
    /// As [`Store::receive_status`](crate::engine::store::Store::receive_status).
    ///
    /// # Errors
    /// As there.
    fn receive_status(&self, volume: &str) -> Result<Option<HalfReceived>>;
    /// As [`Store::receive_abort`](crate::engine::store::Store::receive_abort).
    ///
    /// # Errors
    /// As there.
    fn receive_abort(&self, volume: &str) -> Result<()>;
}

impl Shipping for Access {
    fn list(&self, volume: Option<&str>) -> Result<StoreInfo> {
        Self::list(self, volume)
    }
    fn send(&self, request: &SendRequest) -> Result<Box<dyn Read + Send>> {
        Self::send(self, request)
    }
    fn receive(&self, volume: &str, input: &mut (dyn Read + Send)) -> Result<Received> {
        Self::receive(self, volume, input)
    }
    fn receive_status(&self, volume: &str) -> Result<Option<HalfReceived>> {
        Self::receive_status(self, volume)
    }
    fn receive_abort(&self, volume: &str) -> Result<()> {
        Self::receive_abort(self, volume)
    }
}

/// From the near end, which sends, to the far one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ToFar {
    /// Who is there; asks what is held.
    Hello {
        /// [`PEER_VERSION`].
        version: u32,
        /// The snapshot that is to be shipped.
        target: Uuid,
    },
    /// The stream follows.
    Start,
}

/// From the far end to the near one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ToNear {
    /// The answer to `hello`.
    Held(Held),
    /// Every byte of the volume below this is durable there.
    Progress {
        /// A byte offset.
        durable: u64,
    },
    /// The snapshot is there, durable.
    Done(Received),
    /// It failed, and why.
    Error {
        /// [`ErrorKind::name`].
        kind: String,
        /// One sentence.
        message: String,
        /// What to do next.
        hint: Option<String>,
    },
}

/// What the far end has of the volume.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// The far end's [`PEER_VERSION`].
    pub version: u32,
    /// None: there is no such volume.
    pub role: Option<Role>,
    /// Names and identities, oldest first.
    pub snapshots: Vec<(String, Uuid)>,
    /// A receive that was begun and not ended.
    pub half: Option<HalfReceived>,
}

impl ToNear {
    /// The message for a failure.
    #[must_use]
    pub fn failure(error: &Error) -> Self {
        Self::Error {
            kind: error.kind().name().to_owned(),
            message: error.to_string(),
            hint: error.hint_text().map(str::to_owned),
        }
    }
}

/// The failure that the far end at `place` reported.
#[must_use]
pub fn far_failure(place: &str, kind: &str, message: &str, hint: Option<&str>) -> Error {
    let kind = ErrorKind::from_name(kind).unwrap_or(ErrorKind::Interrupted);
    let error = Error::new(kind, format!("{place}: {}", one_line(message)));
    match hint {
        _ if kind == ErrorKind::Interrupted => error.hint(GOES_ON),
        Some(hint) => error.hint(format!("at {place}: {}", one_line(hint))),
        None => error,
    }
}

/// Writes one message.
///
/// # Errors
/// Those of the output.
pub fn say(output: &mut impl Write, message: &impl Serialize) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    output.write_all(&line)?;
    output.flush()
}

/// Reads one message; none at the end of the input.
///
/// # Errors
/// `Interrupted` when the other end is gone, `Invalid` when it says something else.
pub fn hear<T: DeserializeOwned>(input: &mut impl BufRead) -> Result<Option<T>> {
    let mut line = Vec::new();
    // Byte for byte up to the line's end: after it a stream may follow.
    Read::take(&mut *input, LINE_MAX)
        .read_until(b'\n', &mut line)
        .map_err(|_| Error::new(ErrorKind::Interrupted, "the connection to the other side broke"))?;
    if line.is_empty() {
        return Ok(None);
    }
    if line.last() != Some(&b'\n') {
        return Err(Error::new(ErrorKind::Interrupted, "the connection to the other side broke"));
    }
    serde_json::from_slice(&line).map(Some).map_err(|_| {
        let text: String = String::from_utf8_lossy(&line).chars().take(100).collect();
        Error::invalid(format!(
            "the other side does not speak the protocol of snapvol: '{}'",
            one_line(&text)
        ))
        .hint("something there prints text at login, or another program answers")
    })
}
