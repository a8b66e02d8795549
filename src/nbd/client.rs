//! A lean blocking client: for tests, for load, for anything that wants volumes of a
//! server without a library.
//!
//! One [`Client`] is one connection. The simple calls send one request and wait for its
//! reply; [`Client::send`] and [`Client::receive`] keep many in flight.

use super::proto::{
    self, CHUNK_MAGIC, MAGIC, OPTION_MAGIC, OPTION_REPLY_MAGIC, OptionHeader, Request, SIMPLE_REPLY_MAGIC,
    chunk, cmd, cmd_flag, errno, info, opt, rep, u16_at, u32_at, u64_at,
};
use crate::engine::device::Extent;
use crate::error::{Error, ErrorKind, Result};
use bytes::{BufMut, BytesMut};
use std::collections::HashMap;
use std::io::{BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;

/// A socket of either kind.
pub trait Socket: Read + Write + Send {}
impl<T: Read + Write + Send> Socket for T {}

/// What a client asks for when it connects.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Ask for structured replies.
    pub structured: bool,
    /// Metadata contexts to select; they need structured replies.
    pub contexts: Vec<String>,
    /// Use the old way in, `OPT_EXPORT_NAME`.
    pub export_name: bool,
}

/// A reply, whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reply {
    /// The request's number.
    pub cookie: u64,
    /// 0, or what went wrong.
    pub errno: u32,
    /// What the server said about it.
    pub message: String,
    /// What was read.
    pub data: Vec<u8>,
    /// Extents by the number of their metadata context.
    pub extents: Vec<(u32, Vec<Extent>)>,
    /// Chunks of content that the reply came in.
    pub chunks: usize,
    /// Of them, holes.
    pub holes: usize,
}

/// A connection in its transmission phase.
pub struct Client {
    socket: BufReader<Box<dyn Socket>>,
    /// The size of the export in bytes.
    pub size: u64,
    /// What the server can do, [`proto::flag`].
    pub flags: u16,
    /// The contexts selected, with their numbers.
    pub contexts: Vec<(u32, String)>,
    structured: bool,
    next_cookie: u64,
    /// Requests under way; of reads where they start and how long they are.
    under_way: HashMap<u64, Option<(u64, u32)>>,
}

/// The most content chunks in a reply besides one for each sector, and the most extents of
/// all kinds: a server that sends more without an end has no bound for what it sends.
const PARTS_MAX: usize = 1 << 20;

fn broken(text: impl Into<String>) -> Error {
    Error::new(ErrorKind::Invalid, text).context("the NBD server")
}

fn lost(error: std::io::Error) -> Error {
    Error::os("the connection to the NBD server is lost", error)
}

impl Client {
    /// Connects to a unix socket.
    ///
    /// # Errors
    /// `Io`; `NotFound` when there is no such export; `Invalid` for nonsense.
    pub fn unix(path: &Path, export: &str, options: &Options) -> Result<Self> {
        let socket = UnixStream::connect(path)
            .map_err(|error| Error::os(format!("cannot connect to {}", path.display()), error))?;
        Self::new(Box::new(socket), export, options)
    }

    /// Connects over TCP.
    ///
    /// # Errors
    /// As for [`Self::unix`].
    pub fn tcp(address: &str, export: &str, options: &Options) -> Result<Self> {
        let socket = TcpStream::connect(address)
            .map_err(|error| Error::os(format!("cannot connect to {address}"), error))?;
        socket.set_nodelay(true).map_err(lost)?;
        Self::new(Box::new(socket), export, options)
    }

    /// Negotiates over a connected socket.
    ///
    /// # Errors
    /// As for [`Self::unix`].
    pub fn new(socket: Box<dyn Socket>, export: &str, options: &Options) -> Result<Self> {
        let mut client = Self {
            socket: BufReader::with_capacity(256 << 10, socket),
            size: 0,
            flags: 0,
            contexts: Vec::new(),
            structured: false,
            next_cookie: 1,
            under_way: HashMap::new(),
        };
        let greeting: [u8; 18] = client.take()?;
        if u64_at(&greeting, 0) != Some(MAGIC) || u64_at(&greeting, 8) != Some(OPTION_MAGIC) {
            return Err(broken("does not speak newstyle NBD"));
        }
        client.put(&u32::from(proto::FLAG_FIXED_NEWSTYLE | proto::FLAG_NO_ZEROES).to_be_bytes())?;
        if options.structured {
            client.option(opt::STRUCTURED_REPLY, &[])?;
            client.structured = true;
        }
        if !options.contexts.is_empty() {
            let replies = client.option(opt::SET_META_CONTEXT, &context_query(export, &options.contexts))?;
            for (_, data) in replies {
                let id = u32_at(&data, 0).ok_or_else(|| broken("sent a short metadata context"))?;
                client.contexts.push((id, String::from_utf8_lossy(&data[4..]).into_owned()));
            }
        }
        client.enter(export, options)?;
        Ok(client)
    }

    fn enter(&mut self, export: &str, options: &Options) -> Result<()> {
        if options.export_name {
            self.put_option(opt::EXPORT_NAME, export.as_bytes())?;
            let answer: [u8; 10] = self.take()?;
            self.size = u64_at(&answer, 0).unwrap_or(0);
            self.flags = u16_at(&answer, 8).unwrap_or(0);
            return Ok(());
        }
        let mut data = BytesMut::new();
        put_text(&mut data, export);
        data.put_u16(0);
        for (_, data) in self.option(opt::GO, &data)? {
            if u16_at(&data, 0) == Some(info::EXPORT) {
                self.size = u64_at(&data, 2).ok_or_else(|| broken("sent short information"))?;
                self.flags = u16_at(&data, 10).ok_or_else(|| broken("sent short information"))?;
            }
        }
        Ok(())
    }

    fn put(&mut self, data: &[u8]) -> Result<()> {
        self.socket.get_mut().write_all(data).map_err(lost)
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut data = [0; N];
        self.socket.read_exact(&mut data).map_err(lost)?;
        Ok(data)
    }

    fn take_vec(&mut self, len: u32) -> Result<Vec<u8>> {
        let mut data = vec![0; len as usize];
        self.socket.read_exact(&mut data).map_err(lost)?;
        Ok(data)
    }

    fn put_option(&mut self, option: u32, data: &[u8]) -> Result<()> {
        let mut out = BytesMut::new();
        let len = u32::try_from(data.len()).map_err(|_| Error::invalid("an option is too long"))?;
        OptionHeader { option, len }.encode(&mut out);
        out.put_slice(data);
        self.put(&out)
    }

    /// Sends an option and takes its replies up to the last one.
    fn option(&mut self, option: u32, data: &[u8]) -> Result<Vec<(u32, Vec<u8>)>> {
        self.put_option(option, data)?;
        let mut replies = Vec::new();
        loop {
            let head: [u8; 20] = self.take()?;
            if u64_at(&head, 0) != Some(OPTION_REPLY_MAGIC) || u32_at(&head, 8) != Some(option) {
                return Err(broken("sent a bad reply to an option"));
            }
            let kind = u32_at(&head, 12).unwrap_or(0);
            let len = u32_at(&head, 16).unwrap_or(0);
            if len > 64 << 10 {
                return Err(broken("sent a reply to an option that is too long"));
            }
            let data = self.take_vec(len)?;
            match kind {
                rep::ACK => return Ok(replies),
                rep::ERR_UNKNOWN => return Err(Error::not_found(String::from_utf8_lossy(&data))),
                kind if kind & rep::ERR_BIT != 0 => {
                    return Err(broken(format!(
                        "refused option {option}: {}",
                        String::from_utf8_lossy(&data)
                    )));
                }
                kind => replies.push((kind, data)),
            }
        }
    }

    /// Sends a request, with its payload if it is a write; gives its number.
    ///
    /// # Errors
    /// `Io`.
    pub fn send(&mut self, command: u16, flags: u16, offset: u64, len: u32, payload: &[u8]) -> Result<u64> {
        let cookie = self.next_cookie;
        self.next_cookie += 1;
        self.under_way.insert(cookie, (command == cmd::READ).then_some((offset, len)));
        let mut out = Vec::with_capacity(Request::SIZE + payload.len());
        Request { flags, command, cookie, offset, len }.encode(&mut out);
        out.extend_from_slice(payload);
        self.put(&out)?;
        Ok(cookie)
    }

    /// Takes the reply that comes next, to whichever request.
    ///
    /// # Errors
    /// `Io` at the end of the stream, `Invalid` for nonsense. A request that failed is no
    /// error here.
    pub fn receive(&mut self) -> Result<Reply> {
        let mut partial: HashMap<u64, Reply> = HashMap::new();
        loop {
            let magic: [u8; 4] = self.take()?;
            match u32::from_be_bytes(magic) {
                SIMPLE_REPLY_MAGIC => {
                    let head: [u8; 12] = self.take()?;
                    let mut reply = Reply {
                        errno: u32_at(&head, 0).unwrap_or(0),
                        cookie: u64_at(&head, 4).unwrap_or(0),
                        ..Reply::default()
                    };
                    let asked = self.under_way.remove(&reply.cookie);
                    let asked = asked.ok_or_else(|| broken("answered what nobody asked"))?;
                    if let Some((_, len)) = asked
                        && reply.errno == 0
                    {
                        if self.structured {
                            return Err(broken("answered a read with a simple reply"));
                        }
                        reply.data = self.take_vec(len)?;
                    }
                    return Ok(reply);
                }
                CHUNK_MAGIC if self.structured => {
                    if let Some(reply) = self.receive_chunk(&mut partial)? {
                        if !partial.is_empty() {
                            return Err(broken("interleaves the chunks of replies"));
                        }
                        return Ok(reply);
                    }
                }
                magic => return Err(broken(format!("sent a reply with the magic number {magic:#x}"))),
            }
        }
    }

    fn receive_chunk(&mut self, partial: &mut HashMap<u64, Reply>) -> Result<Option<Reply>> {
        let head: [u8; 16] = self.take()?;
        let done = u16_at(&head, 0).unwrap_or(0) & chunk::FLAG_DONE != 0;
        let kind = u16_at(&head, 2).unwrap_or(0);
        let cookie = u64_at(&head, 4).unwrap_or(0);
        let len = u32_at(&head, 12).unwrap_or(0);
        let read = *self.under_way.get(&cookie).ok_or_else(|| broken("answered what nobody asked"))?;
        let mut reply = partial.remove(&cookie).unwrap_or_else(|| Reply {
            cookie,
            data: vec![0; read.map_or(0, |(_, len)| len as usize)],
            ..Reply::default()
        });
        let short = || broken("sent a chunk that is too short");
        if len > (64 << 20) {
            return Err(broken("sent a chunk that is too long"));
        }
        let data = self.take_vec(len)?;
        match kind {
            chunk::NONE => {}
            chunk::OFFSET_DATA | chunk::OFFSET_HOLE => {
                let (start, _) = read.ok_or_else(|| broken("sent content for no read"))?;
                let at = u64_at(&data, 0).and_then(|at| at.checked_sub(start)).ok_or_else(short)?;
                let at = usize::try_from(at).map_err(|_| short())?;
                reply.chunks += 1;
                let target = reply.data.get_mut(at..).unwrap_or_default();
                if kind == chunk::OFFSET_DATA {
                    target.get_mut(..data.len() - 8).ok_or_else(short)?.copy_from_slice(&data[8..]);
                } else {
                    reply.holes += 1;
                    let len = u32_at(&data, 8).ok_or_else(short)? as usize;
                    target.get_mut(..len).ok_or_else(short)?.fill(0);
                }
            }
            chunk::BLOCK_STATUS => {
                let id = u32_at(&data, 0).ok_or_else(short)?;
                let extents = data[4..].chunks_exact(8).map(|extent| Extent {
                    len: u32_at(extent, 0).unwrap_or(0).into(),
                    flags: u32_at(extent, 4).unwrap_or(0),
                });
                reply.extents.push((id, extents.collect()));
            }
            kind if kind & chunk::ERROR_BIT != 0 => {
                reply.errno = u32_at(&data, 0).ok_or_else(short)?;
                let text_len = usize::from(u16_at(&data, 4).ok_or_else(short)?);
                let text = data.get(6..6 + text_len).ok_or_else(short)?;
                reply.message = String::from_utf8_lossy(text).into_owned();
            }
            _ => return Err(broken(format!("sent a chunk of type {kind}"))),
        }
        if done {
            self.under_way.remove(&cookie);
            return Ok(Some(reply));
        }
        let parts = reply.chunks + reply.extents.iter().map(|(_, extents)| 1 + extents.len()).sum::<usize>();
        if parts > PARTS_MAX {
            return Err(broken("does not come to the end of a reply"));
        }
        partial.insert(cookie, reply);
        Ok(None)
    }

    /// Sends one request and waits for its reply.
    ///
    /// # Errors
    /// As for [`Self::receive`], and [`ErrorKind`] by the errno of a failed request.
    pub fn call(&mut self, command: u16, flags: u16, offset: u64, len: u32, payload: &[u8]) -> Result<Reply> {
        let cookie = self.send(command, flags, offset, len, payload)?;
        let reply = self.receive()?;
        if reply.cookie != cookie {
            return Err(broken("answered another request"));
        }
        if reply.errno == 0 {
            return Ok(reply);
        }
        let kind = match reply.errno {
            errno::EPERM => ErrorKind::ReadOnly,
            errno::EINVAL | errno::EOVERFLOW => ErrorKind::OutOfRange,
            errno::ENOSPC => ErrorKind::Full,
            errno::ENOTSUP => ErrorKind::Unsupported,
            errno::ESHUTDOWN => ErrorKind::Interrupted,
            _ => ErrorKind::Io,
        };
        Err(Error::new(kind, format!("request failed with errno {} {}", reply.errno, reply.message)))
    }

    /// Reads a range.
    ///
    /// # Errors
    /// As for [`Self::call`].
    pub fn read(&mut self, offset: u64, len: u32) -> Result<Vec<u8>> {
        Ok(self.call(cmd::READ, 0, offset, len, &[])?.data)
    }

    /// Writes a range.
    ///
    /// # Errors
    /// As for [`Self::call`].
    pub fn write(&mut self, offset: u64, data: &[u8], fua: bool) -> Result<()> {
        let len = u32::try_from(data.len()).map_err(|_| Error::invalid("a write of 4 GiB or more"))?;
        self.call(cmd::WRITE, if fua { cmd_flag::FUA } else { 0 }, offset, len, data).map(drop)
    }

    /// Makes durable what was acknowledged.
    ///
    /// # Errors
    /// As for [`Self::call`].
    pub fn flush(&mut self) -> Result<()> {
        self.call(cmd::FLUSH, 0, 0, 0, &[]).map(drop)
    }

    /// Forgets a range.
    ///
    /// # Errors
    /// As for [`Self::call`].
    pub fn trim(&mut self, offset: u64, len: u32) -> Result<()> {
        self.call(cmd::TRIM, 0, offset, len, &[]).map(drop)
    }

    /// Makes a range zero; `flags` as in the protocol.
    ///
    /// # Errors
    /// As for [`Self::call`].
    pub fn zero(&mut self, offset: u64, len: u32, flags: u16) -> Result<()> {
        self.call(cmd::WRITE_ZEROES, flags, offset, len, &[]).map(drop)
    }

    /// What is where, for each context selected.
    ///
    /// # Errors
    /// As for [`Self::call`].
    pub fn block_status(&mut self, offset: u64, len: u32, flags: u16) -> Result<Vec<(u32, Vec<Extent>)>> {
        Ok(self.call(cmd::BLOCK_STATUS, flags, offset, len, &[])?.extents)
    }

    /// Says good-bye.
    ///
    /// # Errors
    /// `Io`.
    pub fn disconnect(mut self) -> Result<()> {
        self.send(cmd::DISC, 0, 0, 0, &[]).map(drop)
    }
}

fn put_text(out: &mut BytesMut, text: &str) {
    // Names and queries are far shorter than 4 GiB.
    out.put_u32(u32::try_from(text.len()).unwrap_or(u32::MAX));
    out.put_slice(text.as_bytes());
}

/// The data of an option about metadata contexts.
#[must_use]
pub fn context_query(export: &str, queries: &[String]) -> BytesMut {
    let mut data = BytesMut::new();
    put_text(&mut data, export);
    data.put_u32(u32::try_from(queries.len()).unwrap_or(u32::MAX));
    queries.iter().for_each(|query| put_text(&mut data, query));
    data
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the server says after a handshake that went well, answering one read of 512
    /// bytes.
    fn answered(said: &[u8]) -> Result<Reply> {
        let (here, mut there) = UnixStream::pair().unwrap();
        let mut bytes = b"NBDMAGICIHAVEOPT\0\x03".to_vec();
        let mut reply = |option: u32, kind: u32, payload: &[u8]| {
            bytes.extend(OPTION_REPLY_MAGIC.to_be_bytes());
            bytes.extend(option.to_be_bytes());
            bytes.extend(kind.to_be_bytes());
            bytes.extend(u32::try_from(payload.len()).unwrap().to_be_bytes());
            bytes.extend(payload);
        };
        reply(opt::STRUCTURED_REPLY, rep::ACK, &[]);
        reply(opt::GO, rep::INFO, &[&[0, 0][..], &(1u64 << 20).to_be_bytes(), &[0, 1]].concat());
        reply(opt::GO, rep::ACK, &[]);
        bytes.extend(said);
        let writer = std::thread::spawn(move || {
            // The client may have heard enough before the end.
            let _ = there.write_all(&bytes);
            there
        });
        let options = Options { structured: true, ..Options::default() };
        let mut client = Client::new(Box::new(here), "v", &options)?;
        client.send(cmd::READ, 0, 0, 512, &[])?;
        let answer = client.receive();
        drop(client);
        drop(writer.join());
        answer
    }

    fn part(flags: u16, cookie: u64, offset: u64) -> Vec<u8> {
        let head = [&CHUNK_MAGIC.to_be_bytes()[..], &flags.to_be_bytes(), &chunk::OFFSET_HOLE.to_be_bytes()];
        let rest = [&cookie.to_be_bytes()[..], &12u32.to_be_bytes(), &offset.to_be_bytes(), &[0, 0, 0, 1]];
        [head.concat(), rest.concat()].concat()
    }

    #[test]
    fn a_server_cannot_answer_without_an_end() {
        assert_eq!(answered(&part(chunk::FLAG_DONE, 1, 0)).unwrap().data, vec![0; 512]);
        let unasked = answered(&part(0, 7, 0)).unwrap_err().to_string();
        assert!(unasked.contains("nobody asked"), "{unasked}");
        let endless = answered(&part(0, 1, 0).repeat(PARTS_MAX + 1)).unwrap_err().to_string();
        assert!(endless.contains("the end of a reply"), "{endless}");
    }
}
