//! The little of HTTP/1.1 that the control socket needs: one bounded head a message,
//! bodies by length or in chunks, both read and written in bounded memory.
//!
//! A chunked body that fails half-way must never look complete. Its writer then sends
//! a line that is no chunk size, `!` and the failure as JSON, instead of the last
//! chunk: this side reads the failure out of it, any other client sees a broken body.
//! A body that ends without its last chunk, or short of its length, is an error too.

use super::wire::WireError;
use crate::error::{Error, ErrorKind, Result};
use std::io::{self, BufRead, Read, Write};

/// The longest head (request or status line and headers), in bytes.
pub const HEAD_LEN_MAX: usize = 16 << 10;
/// The most headers in a head.
pub const HEADERS_MAX: usize = 32;
/// The longest JSON body of a request, in bytes.
pub const REQUEST_JSON_LEN_MAX: u64 = 4 << 20;
/// The longest JSON body of an answer, in bytes: a diff of a volume in disorder is long.
pub const ANSWER_JSON_LEN_MAX: u64 = 4 << 30;
/// The longest line between chunks, in bytes; an error record must fit.
const CHUNK_LINE_LEN_MAX: usize = 16 << 10;
/// How much a chunk carries at most when this side writes it, in bytes.
const CHUNK_LEN: usize = 256 << 10;

/// How the end of a body is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// So many bytes.
    Length(u64),
    /// Chunks up to the empty one.
    Chunked,
}

/// The first line and headers of a message, parsed.
#[derive(Debug)]
pub struct Head {
    /// Method and path of a request; empty in an answer.
    pub method: String,
    /// The path of a request; empty in an answer.
    pub path: String,
    /// The status of an answer; 0 in a request.
    pub status: u16,
    /// How its body ends.
    pub framing: Framing,
}

/// Reads up to the empty line; `None` if the peer closed before the first byte.
fn read_head(input: &mut impl BufRead) -> Result<Option<Vec<u8>>> {
    let mut head = Vec::new();
    loop {
        let start = head.len();
        let room = HEAD_LEN_MAX.saturating_sub(start);
        let read = input
            .by_ref()
            .take(room as u64)
            .read_until(b'\n', &mut head)
            .map_err(|error| Error::os("read from the control socket", error))?;
        if read == 0 || !head.ends_with(b"\n") {
            if head.is_empty() {
                return Ok(None);
            }
            return Err(if head.len() >= HEAD_LEN_MAX {
                Error::invalid(format!("the head of a message is longer than {HEAD_LEN_MAX} bytes"))
            } else {
                Error::new(ErrorKind::Interrupted, "the peer closed the control socket in mid-message")
            });
        }
        let line = &head[start..start + read];
        if start > 0 && (line == b"\r\n" || line == b"\n") {
            return Ok(Some(head));
        }
    }
}

/// How a body with these headers ends. Two framings at once are refused: that is
/// how requests are smuggled.
fn framing(headers: &[httparse::Header<'_>]) -> Result<Framing> {
    let mut found = None;
    for header in headers {
        let value = std::str::from_utf8(header.value).unwrap_or_default().trim();
        let this = if header.name.eq_ignore_ascii_case("content-length") {
            if value.is_empty() || !value.bytes().all(|b| b.is_ascii_digit()) {
                return Err(Error::invalid("a message has no valid Content-Length"));
            }
            Framing::Length(value.parse().map_err(|_| Error::invalid("a message is too long"))?)
        } else if header.name.eq_ignore_ascii_case("transfer-encoding") {
            if !value.eq_ignore_ascii_case("chunked") {
                return Err(Error::invalid("a message has an unknown Transfer-Encoding"));
            }
            Framing::Chunked
        } else {
            continue;
        };
        if found.replace(this).is_some() {
            return Err(Error::invalid("a message says twice how long it is"));
        }
    }
    Ok(found.unwrap_or(Framing::Length(0)))
}

/// Reads the head of a request; `None` if the peer closed without one.
///
/// # Errors
/// `Invalid` for anything that is no bounded HTTP/1.1 head, `Interrupted` or `Io` for
/// a connection that breaks.
pub fn read_request(input: &mut impl BufRead) -> Result<Option<Head>> {
    let Some(bytes) = read_head(input)? else { return Ok(None) };
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    let parsed = request.parse(&bytes);
    let (Ok(httparse::Status::Complete(_)), Some(method), Some(path)) =
        (parsed, request.method, request.path)
    else {
        return Err(Error::invalid("what arrived at the control socket is no HTTP request"));
    };
    let (method, path) = (method.to_owned(), path.to_owned());
    Ok(Some(Head { method, path, status: 0, framing: framing(request.headers)? }))
}

/// Reads the head of an answer.
///
/// # Errors
/// As for [`read_request`]; `Interrupted` if there is no answer at all.
pub fn read_answer(input: &mut impl BufRead) -> Result<Head> {
    let bytes = read_head(input)?.ok_or_else(|| {
        Error::new(ErrorKind::Interrupted, "the daemon closed the connection without an answer")
            .hint("it may have stopped; run the command again")
    })?;
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut answer = httparse::Response::new(&mut headers);
    let parsed = answer.parse(&bytes);
    let (Ok(httparse::Status::Complete(_)), Some(status)) = (parsed, answer.code) else {
        return Err(Error::invalid("what the control socket answered is no HTTP"));
    };
    let framing = framing(answer.headers)?;
    Ok(Head { method: String::new(), path: String::new(), status, framing })
}

/// Writes the head of a request.
///
/// # Errors
/// What the socket says.
pub fn write_request(output: &mut dyn Write, path: &str, kind: &str, framing: Framing) -> io::Result<()> {
    write!(output, "POST {path} HTTP/1.1\r\nHost: snapvol\r\n")?;
    write_headers(output, kind, framing)
}

/// Writes the head of an answer.
///
/// # Errors
/// What the socket says.
pub fn write_answer(output: &mut dyn Write, status: u16, kind: &str, framing: Framing) -> io::Result<()> {
    let reason = match status {
        200 => "OK",
        400 => "Bad Request",
        403 => "Forbidden",
        404 => "Not Found",
        409 => "Conflict",
        503 => "Service Unavailable",
        507 => "Insufficient Storage",
        _ => "Internal Server Error",
    };
    write!(output, "HTTP/1.1 {status} {reason}\r\n")?;
    write_headers(output, kind, framing)
}

fn write_headers(output: &mut dyn Write, kind: &str, framing: Framing) -> io::Result<()> {
    match framing {
        Framing::Length(length) => write!(output, "Content-Length: {length}\r\n")?,
        Framing::Chunked => write!(output, "Transfer-Encoding: chunked\r\n")?,
    }
    write!(output, "Content-Type: {kind}\r\nConnection: close\r\n\r\n")
}

/// A body being read; ends exactly where its framing says, or fails.
pub struct Body<R> {
    input: R,
    /// Bytes left in the body, or in the current chunk.
    left: u64,
    chunked: bool,
    /// A chunk was read, so its line end comes before the next size.
    between: bool,
    done: bool,
}

impl<R: BufRead> Body<R> {
    /// A body that follows its head on `input`.
    pub fn new(input: R, framing: Framing) -> Self {
        match framing {
            Framing::Length(left) => Self { input, left, chunked: false, between: false, done: left == 0 },
            Framing::Chunked => Self { input, left: 0, chunked: true, between: false, done: false },
        }
    }

    /// The whole body, if it is no longer than `max` bytes.
    ///
    /// # Errors
    /// `OutOfRange` when it is longer; what reading gives.
    pub fn read_all(&mut self, max: u64) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let read = self.by_ref().take(max.saturating_add(1)).read_to_end(&mut bytes);
        read.map_err(|error| super::error_of("read from the control socket", error))?;
        if bytes.len() as u64 > max {
            return Err(Error::new(ErrorKind::OutOfRange, format!("a message is longer than {max} bytes")));
        }
        Ok(bytes)
    }

    fn line(&mut self) -> io::Result<Vec<u8>> {
        let mut line = Vec::new();
        self.input.by_ref().take(CHUNK_LINE_LEN_MAX as u64).read_until(b'\n', &mut line)?;
        if line.pop() != Some(b'\n') {
            return Err(cut_off());
        }
        if line.last() == Some(&b'\r') {
            line.pop();
        }
        Ok(line)
    }

    /// Reads the size of the next chunk, or what stands in its place.
    fn next_chunk(&mut self) -> io::Result<()> {
        if self.between && !self.line()?.is_empty() {
            return Err(malformed());
        }
        self.between = true;
        let line = self.line()?;
        if let Some(record) = line.strip_prefix(b"!") {
            let error: WireError = serde_json::from_slice(record).map_err(|_| malformed())?;
            return Err(super::into_io(error.into()));
        }
        let text = std::str::from_utf8(&line).map_err(|_| malformed())?;
        let digits = text.split(';').next().unwrap_or_default().trim();
        if digits.is_empty() || digits.len() > 15 || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(malformed());
        }
        self.left = u64::from_str_radix(digits, 16).map_err(|_| malformed())?;
        if self.left == 0 {
            let mut trailers = 0;
            while !self.line()?.is_empty() {
                trailers += 1;
                if trailers > HEADERS_MAX {
                    return Err(malformed());
                }
            }
            self.done = true;
        }
        Ok(())
    }
}

fn cut_off() -> io::Error {
    super::into_io(Error::new(ErrorKind::Interrupted, "the peer closed the control socket in mid-stream"))
}

fn malformed() -> io::Error {
    super::into_io(Error::invalid("a stream over the control socket is malformed"))
}

impl<R: BufRead> Read for Body<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        while self.left == 0 {
            if self.done {
                return Ok(0);
            }
            self.next_chunk()?;
        }
        let want = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let read = self.input.read(&mut buffer[..want])?;
        if read == 0 {
            return Err(cut_off());
        }
        self.left -= read as u64;
        self.done = self.left == 0 && !self.chunked;
        Ok(read)
    }
}

/// Which side of a copy failed.
#[derive(Debug)]
pub enum CopyFailure {
    /// The reader: the peer can still be told.
    Input(io::Error),
    /// The connection.
    Output(io::Error),
}

/// Writes all of `input` in chunks, but not the last, empty one.
///
/// # Errors
/// The side that failed.
pub fn write_chunks(output: &mut dyn Write, input: &mut dyn Read) -> Result<u64, CopyFailure> {
    let mut buffer = vec![0; CHUNK_LEN];
    let mut total = 0;
    loop {
        let read = match input.read(&mut buffer) {
            Ok(0) => return Ok(total),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(CopyFailure::Input(error)),
        };
        total += read as u64;
        write!(output, "{read:x}\r\n")
            .and_then(|()| output.write_all(&buffer[..read]))
            .and_then(|()| output.write_all(b"\r\n"))
            .and_then(|()| output.flush())
            .map_err(CopyFailure::Output)?;
    }
}

/// Ends a chunked body well.
///
/// # Errors
/// What the socket says.
pub fn write_last_chunk(output: &mut dyn Write) -> io::Result<()> {
    output.write_all(b"0\r\n\r\n")?;
    output.flush()
}

/// Ends a chunked body with a failure.
///
/// # Errors
/// What the socket says.
pub fn write_failure(output: &mut dyn Write, error: &Error) -> io::Result<()> {
    let record = serde_json::to_string(&WireError::from(error))?;
    write!(output, "!{record}\r\n")?;
    output.flush()
}
