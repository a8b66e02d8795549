//! The other end of the control socket: one connection for every request.

use super::http::{self, Body, CopyFailure, Framing};
use super::wire::{Call, FeedPath, WireError};
use super::{SOCKET_NAME, SocketPath, error_of};
use crate::engine::api::{Received, SendRequest};
use crate::engine::sets::FeedSet;
use crate::error::{Error, ErrorKind, Result};
use serde::de::DeserializeOwned;
use std::io::{BufReader, BufWriter, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

/// The types of bodies.
pub(super) mod body_kind {
    pub const JSON: &str = "application/json";
    pub const STREAM: &str = "application/octet-stream";
}

/// A client of the daemon that serves the store in a directory.
#[derive(Debug)]
pub struct Client {
    dir: PathBuf,
}

impl Client {
    /// Whether a daemon answers there: `None` when there is no socket, or one that a
    /// dead daemon left behind.
    ///
    /// # Errors
    /// `Io` when there is a socket that this user may not use.
    pub fn probe(dir: &Path) -> Result<Option<Self>> {
        let client = Self { dir: dir.to_owned() };
        match client.dial() {
            Ok(_) => Ok(Some(client)),
            Err(error) => match error.kind() {
                std::io::ErrorKind::NotFound
                | std::io::ErrorKind::NotADirectory
                | std::io::ErrorKind::ConnectionRefused => Ok(None),
                _ => Err(client.unreachable(error)),
            },
        }
    }

    fn dial(&self) -> std::io::Result<UnixStream> {
        let socket = SocketPath::new(&self.dir, SOCKET_NAME)?;
        UnixStream::connect(socket.path())
    }

    fn unreachable(&self, error: std::io::Error) -> Error {
        let denied = error.kind() == std::io::ErrorKind::PermissionDenied;
        let error =
            Error::os(format!("talk to the daemon at {}", self.dir.join(SOCKET_NAME).display()), error);
        if denied { error.hint("run the command as the store's owner or as root") } else { error }
    }

    fn connect(&self) -> Result<UnixStream> {
        self.dial().map_err(|error| self.unreachable(error))
    }

    /// Sends the head and a JSON body. A failure to write is not looked at: the peer
    /// may have answered already, and if not, reading the answer fails.
    fn ask(stream: &UnixStream, path: &str, body: &[u8]) {
        let mut output = BufWriter::new(stream);
        let _ = http::write_request(&mut output, path, body_kind::JSON, Framing::Length(body.len() as u64))
            .and_then(|()| output.write_all(body))
            .and_then(|()| output.flush());
    }

    /// An operation without a stream.
    ///
    /// # Errors
    /// The operation's, as the daemon said it; `Interrupted` if it went away.
    pub fn call<T: DeserializeOwned>(&self, call: &Call) -> Result<T> {
        let (op, arguments) = call.to_parts()?;
        let stream = self.connect()?;
        Self::ask(&stream, &format!("/v1/{op}"), arguments.to_string().as_bytes());
        parse(&read_answer(BufReader::new(&stream))?)
    }

    /// A stream, as the daemon makes it. The reader fails with the daemon's error, or
    /// with `Interrupted`, if the stream ends before its end.
    ///
    /// # Errors
    /// What the daemon says before the first byte.
    pub fn send(&self, request: &SendRequest) -> Result<Box<dyn Read + Send>> {
        let stream = self.connect()?;
        let body =
            serde_json::to_vec(request).map_err(|_| Error::invalid("a request can't be said in JSON"))?;
        Self::ask(&stream, "/v1/send", &body);
        let mut input = BufReader::with_capacity(256 << 10, stream);
        let head = http::read_answer(&mut input)?;
        let mut body = Body::new(input, head.framing);
        if head.status != 200 {
            return Err(read_error(&mut body));
        }
        Ok(Box::new(body))
    }

    /// Gives a stream to the daemon and waits until it is applied.
    ///
    /// # Errors
    /// The operation's, or what reading `input` gives.
    pub fn receive(&self, volume: &str, input: &mut dyn Read) -> Result<Received> {
        self.give(&format!("/v1/receive/{volume}"), input)
    }

    /// Gives the stream of a set to the daemon and waits until it is applied.
    ///
    /// # Errors
    /// As for [`Self::receive`].
    pub fn receive_set(&self, feed: &FeedSet, input: &mut dyn Read) -> Result<Received> {
        self.give(&format!("/v1/receive-set/{}", FeedPath::text(feed)?), input)
    }

    fn give(&self, path: &str, input: &mut dyn Read) -> Result<Received> {
        let stream = self.connect()?;
        let mut output = BufWriter::with_capacity(64 << 10, &stream);
        let begun = http::write_request(&mut output, path, body_kind::STREAM, Framing::Chunked);
        let written = match begun {
            Ok(()) => http::write_chunks(&mut output, input)
                .and_then(|_| http::write_last_chunk(&mut output).map_err(CopyFailure::Output)),
            Err(error) => Err(CopyFailure::Output(error)),
        };
        match written {
            // A connection that refuses more has an answer, mostly: why it does.
            Ok(()) | Err(CopyFailure::Output(_)) => parse(&read_answer(BufReader::new(&stream))?),
            Err(CopyFailure::Input(error)) => {
                let error = error_of("read the stream", error);
                // The daemon learns why, and that what arrived is not the whole; when it
                // has answered, it no longer works on it.
                let _ = http::write_failure(&mut output, &error);
                let _ = stream.shutdown(Shutdown::Write);
                let _ = read_answer(BufReader::new(&stream));
                Err(error)
            }
        }
    }
}

fn read_answer(mut input: BufReader<&UnixStream>) -> Result<Vec<u8>> {
    let head = http::read_answer(&mut input)?;
    let mut body = Body::new(input, head.framing);
    if head.status != 200 {
        return Err(read_error(&mut body));
    }
    body.read_all(http::ANSWER_JSON_LEN_MAX)
}

fn read_error<R: std::io::BufRead>(body: &mut Body<R>) -> Error {
    let read = body.read_all(http::REQUEST_JSON_LEN_MAX);
    match read.map(|bytes| serde_json::from_slice::<WireError>(&bytes)) {
        Ok(Ok(wire)) => wire.into(),
        Ok(Err(_)) => Error::new(ErrorKind::Io, "the daemon refused the request and did not say why"),
        Err(error) => error,
    }
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|error| {
        Error::new(ErrorKind::Unsupported, format!("the daemon's answer is not understood: {error}"))
            .hint("the daemon and this program may be of different versions; restart the daemon")
    })
}
