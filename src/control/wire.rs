//! What travels over the control socket: operations, and failures as JSON.

use crate::delta::digest::{BlockOf, Content, Question};
use crate::engine::api::{CreateOptions, UpdateSource};
use crate::engine::groups::GroupRequest;
use crate::engine::sets::FeedSet;
use crate::error::{Error, ErrorKind, Result};
use crate::format::upkeep::Schedule;
use crate::replica::manage::{FarRequest, Replicate};
use crate::replica::{failover, resync};
use crate::types::{OnFull, SnapName};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

/// A failure in JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WireError {
    /// [`ErrorKind::name`].
    pub kind: String,
    /// One sentence.
    pub message: String,
    /// What to do next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl From<&Error> for WireError {
    fn from(error: &Error) -> Self {
        /// Leaves room in the line of a chunked body's error record.
        const TEXT_LEN_MAX: usize = 2000;
        let short = |text: &str| text.chars().take(TEXT_LEN_MAX).collect::<String>();
        Self {
            kind: error.kind().name().to_owned(),
            message: short(&error.to_string()),
            hint: error.hint_text().map(short),
        }
    }
}

impl From<WireError> for Error {
    fn from(wire: WireError) -> Self {
        let kind = ErrorKind::from_name(&wire.kind).unwrap_or(ErrorKind::Io);
        let error = Error::new(kind, wire.message);
        match wire.hint {
            Some(hint) => error.hint(hint),
            None => error,
        }
    }
}

/// The HTTP status for a kind of failure, for those who talk to the socket by hand.
#[must_use]
pub fn status_of(kind: ErrorKind) -> u16 {
    match kind {
        ErrorKind::Invalid | ErrorKind::OutOfRange => 400,
        ErrorKind::NotFound => 404,
        ErrorKind::Conflict | ErrorKind::ReadOnly => 409,
        ErrorKind::Interrupted => 503,
        ErrorKind::Full => 507,
        ErrorKind::Io | ErrorKind::Corrupt | ErrorKind::Unsupported => 500,
    }
}

/// An operation without a stream. Its JSON is the path `/v1/OP` and an object of
/// the other fields.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case", rename_all_fields = "snake_case")]
#[allow(missing_docs, reason = "the methods of Store say what they mean")]
pub enum Call {
    Create { volume: String, options: CreateOptions },
    SetOnFull { volume: String, on_full: OnFull },
    List { volume: Option<String> },
    Resize { volume: String, size: u64, force: bool },
    Snapshot { names: Vec<String> },
    DeleteSnapshots { names: Vec<String> },
    DeleteVolume { volume: String, recursive: bool },
    Hold { name: String, tag: String },
    Release { name: String, tag: String },
    Rollback { name: String, force: bool },
    Diff { from: String, to: Option<String> },
    ReceiveStatus { volume: String },
    ReceiveAbort { volume: String },
    Promote { volume: String, force: bool },
    Demote { volume: String, force: bool },
    Check { repair: bool },
    Scrub { volume: Option<String> },
    Digests { question: Question },
    Content { of: BlockOf },
    RestoreContent { of: BlockOf, content: Content },
    EndDigests { volume: String, comparison: Uuid },
    KeepReadable { volume: String, comparison: Uuid },
    Offers { volume: String, bookmarks: bool },
    Status {},
    Replicate { request: Replicate },
    Unreplicate { volume: String, destination: Option<String> },
    Pause { volume: String, destination: Option<String>, paused: bool },
    Cut { volume: String },
    Failover { request: failover::Request },
    Resync { request: resync::Request },
    HandOver { volume: String, pause_max_ms: u64, force: bool },
    Far { request: FarRequest },
    BeginDrill { volume: String, snapshot: Option<String>, name: Option<String> },
    SetSchedule { volume: String, schedule: Option<Schedule> },
    Schedule { volume: String },
    UpdateSource { volume: String },
    RememberSource { volume: String, source: UpdateSource },
    Group { request: GroupRequest },
    EndDrill { volume: String, name: Option<String>, force: bool },
}

impl Call {
    /// The operation's name and its arguments.
    ///
    /// # Errors
    /// `Invalid` if it can't be said in JSON.
    pub fn to_parts(&self) -> Result<(String, Value)> {
        let bad = || Error::invalid("an operation can't be said in JSON");
        let mut value = serde_json::to_value(self).map_err(|_| bad())?;
        match value.as_object_mut().and_then(|object| object.remove("op")) {
            Some(Value::String(op)) => Ok((op, value)),
            _ => Err(bad()),
        }
    }

    /// The inverse of [`Self::to_parts`]; an empty body means no arguments.
    ///
    /// # Errors
    /// `Invalid` for an unknown operation or arguments that it does not take.
    pub fn from_parts(op: &str, body: &[u8]) -> Result<Self> {
        let bad = |error: serde_json::Error| {
            Error::invalid(format!("the request '{}' is not understood: {error}", op.escape_debug()))
                .hint("the daemon and this program may be of different versions")
        };
        let mut value = if body.is_empty() {
            Value::Object(serde_json::Map::new())
        } else {
            serde_json::from_slice(body).map_err(bad)?
        };
        let Some(object) = value.as_object_mut() else {
            return Err(Error::invalid("a request's arguments are no JSON object"));
        };
        object.insert("op".to_owned(), Value::String(op.to_owned()));
        serde_json::from_value(value).map_err(bad)
    }
}

/// A set, as a part of a path: its JSON in hexadecimal.
pub struct FeedPath;

impl FeedPath {
    /// The text.
    ///
    /// # Errors
    /// `Invalid` if it can't be said in JSON.
    pub fn text(feed: &FeedSet) -> Result<String> {
        let json = serde_json::to_vec(feed).map_err(|_| Error::invalid("a set can't be said in JSON"))?;
        Ok(json.iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// The inverse.
    ///
    /// # Errors
    /// `Invalid`.
    pub fn parse(text: &str) -> Result<FeedSet> {
        let bad = || Error::invalid("the path names no set");
        let digits = text.as_bytes();
        if !digits.len().is_multiple_of(2) {
            return Err(bad());
        }
        let pair = |pair: &[u8]| {
            let text = std::str::from_utf8(pair).map_err(|_| bad())?;
            u8::from_str_radix(text, 16).map_err(|_| bad())
        };
        let json: Vec<u8> = digits.chunks(2).map(pair).collect::<Result<_>>()?;
        serde_json::from_slice(&json).map_err(|_| bad())
    }
}

/// Snapshot names as text.
#[must_use]
pub fn to_texts(names: &[SnapName]) -> Vec<String> {
    names.iter().map(ToString::to_string).collect()
}

/// Snapshot names from text.
///
/// # Errors
/// `Invalid` for the first that is none, or if there are none at all.
pub fn from_texts(names: &[String]) -> Result<Vec<SnapName>> {
    if names.is_empty() {
        return Err(Error::invalid("no snapshot is named").hint("name them as VOL@SNAP"));
    }
    names.iter().map(|name| name.parse()).collect()
}
