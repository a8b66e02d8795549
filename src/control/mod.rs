//! The daemon's control API: HTTP with JSON on the unix socket `STORE/control.sock`,
//! and [`Access`], which makes a served and an unserved store look the same.
//!
//! An operation is `POST /v1/OPERATION` with its arguments as a JSON object
//! ([`wire::Call`]); `send` answers with a stream, `receive/VOL` takes one. A failure
//! travels as `{"kind", "message", "hint"}` and comes back as the same kind of
//! [`crate::Error`]. A connection carries one request; only the store's owner and
//! root are served.

pub mod access;
pub mod client;
pub mod http;
pub mod metrics;
pub mod only;
pub mod scrape;
pub mod server;
pub mod service;
pub mod wire;

#[cfg(test)]
mod tests;

pub use access::Access;
pub use client::Client;
pub use server::Server;

use crate::error::{Error, Result};
use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

/// The control socket's name in the store's directory.
pub const SOCKET_NAME: &str = "control.sock";

/// A path by which a unix socket in a directory can be named, however long the
/// directory's own path is; valid while it lives.
pub(crate) struct SocketPath {
    path: PathBuf,
    _dir: Option<File>,
}

impl SocketPath {
    /// The socket `name` in `dir`.
    ///
    /// # Errors
    /// What the system says when a directory with a long path can't be opened.
    pub(crate) fn new(dir: &Path, name: &str) -> std::io::Result<Self> {
        /// The kernel's limit for the path of a unix socket, less its final zero.
        const PATH_LEN_MAX: usize = 107;
        let path = dir.join(name);
        if path.as_os_str().len() <= PATH_LEN_MAX {
            return Ok(Self { path, _dir: None });
        }
        let dir = File::open(dir)?;
        let path = PathBuf::from(format!("/proc/self/fd/{}/{name}", dir.as_raw_fd()));
        Ok(Self { path, _dir: Some(dir) })
    }

    /// The path to bind or connect to.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

/// The error inside an I/O error where one was wrapped, or the I/O error wrapped.
#[must_use]
pub fn error_of(what: &str, error: std::io::Error) -> Error {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
        Some(inner) => inner.duplicate(),
        None => Error::os(what, error),
    }
}

/// The inverse of [`error_of`], for readers that must answer with an I/O error.
#[must_use]
pub fn into_io(error: Error) -> std::io::Error {
    std::io::Error::other(error)
}

/// Whether a store stands in that directory.
///
/// # Errors
/// `NotFound` when there is none, with a hint how to make one.
pub fn require_store(dir: &Path) -> Result<()> {
    match std::fs::metadata(dir.join("store")) {
        Ok(_) => Ok(()),
        Err(error)
            if matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) =>
        {
            Err(Error::not_found(format!("there is no store in {}", dir.display()))
                .hint(format!("make one with: snapvol --store {} init", dir.display())))
        }
        Err(error) => Err(Error::os(format!("look for a store in {}", dir.display()), error)),
    }
}
