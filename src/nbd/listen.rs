//! Listening sockets: made, named and removed; and the sockets of clients.
//!
//! A unix socket is a file. A path where a living server answers is refused; what a
//! dead one left is replaced. Who may connect is who may write to that file: it is made
//! with the process's umask, so with the usual 022 only the owner (and root), with 002
//! also the group.

use super::server::Address;
use crate::error::{Error, Result};
use rustix::net::sockopt;
use std::fs;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The longest path that fits into a unix socket's address.
const UNIX_PATH_MAX: usize = 107;

/// Where to listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// On a unix socket at that path.
    Unix(PathBuf),
    /// On TCP at `ADDR:PORT`; port 0 lets the kernel choose one.
    Tcp(String),
}

/// A socket that takes clients.
#[derive(Debug)]
pub enum Listener {
    /// A unix socket, its path, and its identity there (device, inode).
    Unix(UnixListener, PathBuf, (u64, u64)),
    /// A TCP socket.
    Tcp(TcpListener),
}

impl Listener {
    /// Starts to listen.
    ///
    /// # Errors
    /// `Invalid` for a path that is too long or an address that can't be understood;
    /// `Conflict` for a path or an address in use; `Io`.
    pub fn open(listen: &Listen) -> Result<Self> {
        let listener = match listen {
            Listen::Unix(path) => Self::open_unix(path)?,
            Listen::Tcp(address) => Self::Tcp(open_tcp(address)?),
        };
        let outcome = match &listener {
            Self::Unix(socket, ..) => socket.set_nonblocking(true),
            Self::Tcp(socket) => socket.set_nonblocking(true),
        };
        outcome.map_err(|error| Error::os("cannot make a listening socket non-blocking", error))?;
        Ok(listener)
    }

    fn open_unix(path: &Path) -> Result<Self> {
        if path.as_os_str().len() > UNIX_PATH_MAX {
            let len = path.as_os_str().len();
            return Err(Error::invalid(format!(
                "the path of the socket {} has {len} bytes, at most {UNIX_PATH_MAX} are possible",
                path.display()
            ))
            .hint("choose a shorter path for the socket"));
        }
        clear_unix(path)?;
        let socket = UnixListener::bind(path)
            .map_err(|error| Error::os(format!("cannot listen on {}", path.display()), error))?;
        let identity = fs::symlink_metadata(path)
            .map_err(|error| Error::os(format!("cannot look at {}", path.display()), error))
            .map(|metadata| (metadata.dev(), metadata.ino()))?;
        Ok(Self::Unix(socket, path.to_owned(), identity))
    }

    /// Where it listens.
    ///
    /// # Errors
    /// `Io`.
    pub fn address(&self) -> Result<Address> {
        match self {
            Self::Unix(_, path, _) => std::path::absolute(path)
                .map(Address::Unix)
                .map_err(|error| Error::os(format!("cannot resolve {}", path.display()), error)),
            Self::Tcp(socket) => socket
                .local_addr()
                .map(Address::Tcp)
                .map_err(|error| Error::os("cannot ask for the address of a socket", error)),
        }
    }

    /// Takes a client, if one waits.
    pub fn accept(&self) -> io::Result<(Stream, String)> {
        match self {
            Self::Unix(socket, ..) => {
                let (stream, _) = socket.accept()?;
                stream.set_nonblocking(false)?;
                Ok((Stream::Unix(stream), "unix".to_owned()))
            }
            Self::Tcp(socket) => {
                let (stream, peer) = socket.accept()?;
                stream.set_nonblocking(false)?;
                stream.set_nodelay(true)?;
                keep_alive(&stream)?;
                Ok((Stream::Tcp(stream), peer.to_string()))
            }
        }
    }

    /// Removes the file of a unix socket, if it is still the one that was made.
    pub fn remove_file(&self) {
        let Self::Unix(_, path, identity) = self else { return };
        let same =
            fs::symlink_metadata(path).is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == *identity);
        if same && let Err(error) = fs::remove_file(path) {
            tracing::warn!("cannot remove the socket {}: {error}", path.display());
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Unix(socket, ..) => socket.as_fd(),
            Self::Tcp(socket) => socket.as_fd(),
        }
    }
}

/// Finds out within two minutes that a silent client's machine has gone.
fn keep_alive(stream: &TcpStream) -> io::Result<()> {
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, Duration::from_secs(60))?;
    sockopt::set_tcp_keepintvl(stream, Duration::from_secs(10))?;
    Ok(sockopt::set_tcp_keepcnt(stream, 6)?)
}

/// Removes what a dead server left at `path`.
fn clear_unix(path: &Path) -> Result<()> {
    let Ok(metadata) = fs::symlink_metadata(path) else { return Ok(()) };
    if !metadata.file_type().is_socket() {
        return Err(Error::conflict(format!("{} exists and is no socket", path.display()))
            .hint("choose another path for the socket, or remove the file"));
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path)
            .map_err(|error| Error::os(format!("cannot replace the dead socket {}", path.display()), error)),
        _ => Err(Error::conflict(format!("another server listens on {}", path.display()))
            .hint("stop it, or choose another path with --unix")),
    }
}

fn open_tcp(address: &str) -> Result<TcpListener> {
    TcpListener::bind(address).map_err(|error| match error.kind() {
        io::ErrorKind::InvalidInput => Error::invalid(format!("'{}' is no address", address.escape_debug()))
            .hint("write ADDR:PORT, such as 127.0.0.1:10809 or [::1]:10809"),
        io::ErrorKind::AddrInUse => Error::conflict(format!("another program listens on {address}"))
            .hint("stop it, or choose another address with --listen"),
        _ => Error::os(format!("cannot listen on {address}"), error),
    })
}

/// A client's socket during the handshake.
#[derive(Debug)]
pub enum Stream {
    /// A unix socket.
    Unix(UnixStream),
    /// A TCP connection.
    Tcp(TcpStream),
}

impl Stream {
    /// How long one read and one write may take.
    pub fn set_timeouts(&self, time: Duration) -> io::Result<()> {
        match self {
            Self::Unix(stream) => {
                stream.set_read_timeout(Some(time))?;
                stream.set_write_timeout(Some(time))
            }
            Self::Tcp(stream) => {
                stream.set_read_timeout(Some(time))?;
                stream.set_write_timeout(Some(time))
            }
        }
    }

    /// The socket, without time-outs.
    pub fn into_fd(self) -> io::Result<OwnedFd> {
        match self {
            Self::Unix(stream) => {
                stream.set_read_timeout(None)?;
                stream.set_write_timeout(None)?;
                Ok(stream.into())
            }
            Self::Tcp(stream) => {
                stream.set_read_timeout(None)?;
                stream.set_write_timeout(None)?;
                Ok(stream.into())
            }
        }
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Unix(stream) => stream.as_fd(),
            Self::Tcp(stream) => stream.as_fd(),
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.read(buffer),
            Self::Tcp(stream) => stream.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.write(data),
            Self::Tcp(stream) => stream.write(data),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
