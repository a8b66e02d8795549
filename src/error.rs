//! The error: a kind, what was being done to which thing, a hint, a source.
//!
//! The kind decides the exit code ([`ErrorKind::exit_code`]) and the NBD errno
//! ([`ErrorKind::nbd_errno`]); the text is one sentence for a person, and the
//! hint says what to do next. Damage (`Corrupt`) never melts into `Io`.

use std::error::Error as StdError;
use std::fmt;

/// What this crate's fallible functions return.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The kinds of failure that callers tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The operating system refused an operation.
    Io,
    /// Stored bytes do not match their checksum or contradict each other.
    Corrupt,
    /// No space left where bytes must go.
    Full,
    /// An offset, a length or a size outside what the thing allows.
    OutOfRange,
    /// A version, feature or file system that this program can't work with.
    Unsupported,
    /// A role, a base, a hold or an open client forbids it; or it exists already.
    Conflict,
    /// No such store, volume or snapshot.
    NotFound,
    /// The caller's words are wrong: an argument, a name, a packet, a stream.
    Invalid,
    /// The volume takes no writes (secondary, snapshot, latched failure, policy).
    ReadOnly,
    /// Stopped before the end: a peer vanished, a shutdown, a cancelled command.
    Interrupted,
}

impl ErrorKind {
    /// The exit code of the program; the one table of them.
    #[must_use]
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Io | Self::Full | Self::Unsupported | Self::Interrupted => 1,
            Self::OutOfRange | Self::Invalid => 2,
            Self::Conflict | Self::ReadOnly => 3,
            Self::Corrupt => 4,
            Self::NotFound => 5,
        }
    }

    /// The errno on the NBD wire; the one table of them (NBD protocol, "Error values").
    #[must_use]
    pub fn nbd_errno(self) -> u32 {
        match self {
            Self::Io | Self::Corrupt => 5,
            Self::Full => 28,
            Self::OutOfRange | Self::Invalid | Self::NotFound => 22,
            Self::Unsupported => 95,
            Self::Conflict | Self::ReadOnly => 1,
            Self::Interrupted => 108,
        }
    }

    /// The name in JSON and logs.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Io => "io",
            Self::Corrupt => "corrupt",
            Self::Full => "full",
            Self::OutOfRange => "out-of-range",
            Self::Unsupported => "unsupported",
            Self::Conflict => "conflict",
            Self::NotFound => "not-found",
            Self::Invalid => "invalid",
            Self::ReadOnly => "read-only",
            Self::Interrupted => "interrupted",
        }
    }

    /// The kind of that name, if there is one; the inverse of [`Self::name`].
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        const ALL: [ErrorKind; 10] = [
            ErrorKind::Io,
            ErrorKind::Corrupt,
            ErrorKind::Full,
            ErrorKind::OutOfRange,
            ErrorKind::Unsupported,
            ErrorKind::Conflict,
            ErrorKind::NotFound,
            ErrorKind::Invalid,
            ErrorKind::ReadOnly,
            ErrorKind::Interrupted,
        ];
        ALL.into_iter().find(|kind| kind.name() == name)
    }
}

/// One failure. Cheap to move: a box inside.
pub struct Error(Box<Inner>);

#[derive(Debug)]
struct Inner {
    kind: ErrorKind,
    /// The innermost message first, contexts after it.
    message: String,
    context: Vec<String>,
    hint: Option<String>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    /// A failure of that kind; `message` names the thing and what is wrong with it.
    #[must_use]
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self(Box::new(Inner { kind, message: message.into(), context: Vec::new(), hint: None, source: None }))
    }

    /// Wraps what the operating system said; a full disk becomes [`ErrorKind::Full`].
    #[must_use]
    pub fn os(message: impl Into<String>, source: std::io::Error) -> Self {
        let kind = match source.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => ErrorKind::Full,
            _ => ErrorKind::Io,
        };
        let mut error = Self::new(kind, message);
        error.0.source = Some(Box::new(source));
        error
    }

    /// Damage found in what is stored.
    #[must_use]
    pub fn corrupt(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Corrupt, message)
    }

    /// A wrong argument, name, packet or stream.
    #[must_use]
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Invalid, message)
    }

    /// Something forbids it now.
    #[must_use]
    pub fn conflict(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Conflict, message)
    }

    /// There is no such thing.
    #[must_use]
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::NotFound, message)
    }

    /// Says what was being done (volume, snapshot, block, path), outermost last.
    #[must_use]
    pub fn context(mut self, context: impl Into<String>) -> Self {
        self.0.context.push(context.into());
        self
    }

    /// Says what the reader can do next.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }

    /// The kind.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// What the operating system said, if it was that.
    #[must_use]
    pub fn os_kind(&self) -> Option<std::io::ErrorKind> {
        let source = self.0.source.as_ref()?;
        source.downcast_ref::<std::io::Error>().map(std::io::Error::kind)
    }

    /// What to do next, where somebody said it.
    #[must_use]
    pub fn hint_text(&self) -> Option<&str> {
        self.0.hint.as_deref()
    }

    /// The number of the operating system's error, where it is the source.
    #[must_use]
    pub fn os_code(&self) -> Option<i32> {
        self.0.source.as_ref()?.downcast_ref::<std::io::Error>()?.raw_os_error()
    }

    /// A second error that says the same, for every waiter of one failed operation.
    #[must_use]
    pub fn duplicate(&self) -> Self {
        let mut copy = Self::new(self.0.kind, self.to_string());
        copy.0.hint.clone_from(&self.0.hint);
        copy
    }
}

impl fmt::Display for Error {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for context in self.0.context.iter().rev() {
            write!(out, "{context}: ")?;
        }
        out.write_str(&self.0.message)?;
        if let Some(source) = &self.0.source {
            write!(out, ": {source}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:?}: {self}", self.0.kind)
    }
}

impl StdError for Error {}

/// Adds context to the error of a result.
pub trait ResultExt<T> {
    /// Says what was being done, lazily.
    ///
    /// # Errors
    /// The same error with the context added.
    fn context(self, context: impl FnOnce() -> String) -> Result<T>;
}

impl<T> ResultExt<T> for Result<T> {
    fn context(self, context: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|error| error.context(context()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_reads_from_the_outside_in() {
        let error = Error::corrupt("bad checksum").context("block 7").context("volume db");
        assert_eq!(error.to_string(), "volume db: block 7: bad checksum");
        assert_eq!(error.kind().exit_code(), 4);
    }

    #[test]
    fn full_disk_is_told_apart() {
        let full = std::io::Error::from_raw_os_error(28);
        assert_eq!(Error::os("write", full).kind(), ErrorKind::Full);
    }
}
