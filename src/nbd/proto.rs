//! The NBD protocol's numbers and fixed headers: bytes to structs and back, nothing else.
//!
//! Everything on the wire is big-endian. Names follow the protocol's, without `NBD_`.

use bytes::{BufMut, BytesMut};

/// `NBDMAGIC`, the first thing that a server says.
pub const MAGIC: u64 = 0x4e42_444d_4147_4943;
/// `IHAVEOPT`: newstyle follows; also before each option of the client.
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// Before each reply to an option.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// Before each request.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// Before a simple reply.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// Before each chunk of a structured reply.
pub const CHUNK_MAGIC: u32 = 0x668e_33ef;

/// Handshake flags of both sides: options may be refused and the session goes on.
pub const FLAG_FIXED_NEWSTYLE: u16 = 1;
/// Handshake flags of both sides: no 124 zeros after `OPT_EXPORT_NAME`.
pub const FLAG_NO_ZEROES: u16 = 2;

/// Option types.
pub mod opt {
    #![allow(missing_docs, reason = "the protocol's own names")]
    pub const EXPORT_NAME: u32 = 1;
    pub const ABORT: u32 = 2;
    pub const LIST: u32 = 3;
    pub const STARTTLS: u32 = 5;
    pub const INFO: u32 = 6;
    pub const GO: u32 = 7;
    pub const STRUCTURED_REPLY: u32 = 8;
    pub const LIST_META_CONTEXT: u32 = 9;
    pub const SET_META_CONTEXT: u32 = 10;
    pub const EXTENDED_HEADERS: u32 = 11;
}

/// Types of replies to options; errors have bit 31 set.
pub mod rep {
    #![allow(missing_docs, reason = "the protocol's own names")]
    pub const ACK: u32 = 1;
    pub const SERVER: u32 = 2;
    pub const INFO: u32 = 3;
    pub const META_CONTEXT: u32 = 4;
    pub const ERR_BIT: u32 = 1 << 31;
    pub const ERR_UNSUP: u32 = ERR_BIT + 1;
    pub const ERR_POLICY: u32 = ERR_BIT + 2;
    pub const ERR_INVALID: u32 = ERR_BIT + 3;
    pub const ERR_PLATFORM: u32 = ERR_BIT + 4;
    pub const ERR_UNKNOWN: u32 = ERR_BIT + 6;
    pub const ERR_SHUTDOWN: u32 = ERR_BIT + 7;
    pub const ERR_TOO_BIG: u32 = ERR_BIT + 9;
}

/// Kinds of information in a `REP_INFO`.
pub mod info {
    #![allow(missing_docs, reason = "the protocol's own names")]
    pub const EXPORT: u16 = 0;
    pub const NAME: u16 = 1;
    pub const DESCRIPTION: u16 = 2;
    pub const BLOCK_SIZE: u16 = 3;
}

/// Transmission flags: what an export can do.
pub mod flag {
    #![allow(missing_docs, reason = "the protocol's own names")]
    pub const HAS_FLAGS: u16 = 1 << 0;
    pub const READ_ONLY: u16 = 1 << 1;
    pub const SEND_FLUSH: u16 = 1 << 2;
    pub const SEND_FUA: u16 = 1 << 3;
    pub const SEND_TRIM: u16 = 1 << 5;
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    pub const SEND_DF: u16 = 1 << 7;
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
    pub const SEND_CACHE: u16 = 1 << 10;
    pub const SEND_FAST_ZERO: u16 = 1 << 11;
}

/// Commands.
pub mod cmd {
    #![allow(missing_docs, reason = "the protocol's own names")]
    pub const READ: u16 = 0;
    pub const WRITE: u16 = 1;
    pub const DISC: u16 = 2;
    pub const FLUSH: u16 = 3;
    pub const TRIM: u16 = 4;
    pub const CACHE: u16 = 5;
    pub const WRITE_ZEROES: u16 = 6;
    pub const BLOCK_STATUS: u16 = 7;
}

/// Flags of a command.
pub mod cmd_flag {
    #![allow(missing_docs, reason = "the protocol's own names")]
    pub const FUA: u16 = 1 << 0;
    pub const NO_HOLE: u16 = 1 << 1;
    pub const DF: u16 = 1 << 2;
    pub const REQ_ONE: u16 = 1 << 3;
    pub const FAST_ZERO: u16 = 1 << 4;
}

/// Types of structured reply chunks; errors have bit 15 set.
pub mod chunk {
    #![allow(missing_docs, reason = "the protocol's own names")]
    pub const FLAG_DONE: u16 = 1;
    pub const NONE: u16 = 0;
    pub const OFFSET_DATA: u16 = 1;
    pub const OFFSET_HOLE: u16 = 2;
    pub const BLOCK_STATUS: u16 = 5;
    pub const ERROR_BIT: u16 = 1 << 15;
    pub const ERROR: u16 = ERROR_BIT + 1;
    pub const ERROR_OFFSET: u16 = ERROR_BIT + 2;
}

/// Error values of replies.
pub mod errno {
    #![allow(missing_docs, reason = "the protocol's own names")]
    pub const EPERM: u32 = 1;
    pub const EIO: u32 = 5;
    pub const EINVAL: u32 = 22;
    pub const ENOSPC: u32 = 28;
    pub const EOVERFLOW: u32 = 75;
    pub const ENOTSUP: u32 = 95;
    pub const ESHUTDOWN: u32 = 108;
}

/// The longest string that the protocol allows, in bytes.
pub const STRING_SIZE_MAX: usize = 4096;

/// Reads a big-endian number at `at`, if the bytes are there.
#[must_use]
pub fn u16_at(data: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*data.get(at..)?.first_chunk()?))
}

/// Reads a big-endian number at `at`, if the bytes are there.
#[must_use]
pub fn u32_at(data: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(*data.get(at..)?.first_chunk()?))
}

/// Reads a big-endian number at `at`, if the bytes are there.
#[must_use]
pub fn u64_at(data: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_be_bytes(*data.get(at..)?.first_chunk()?))
}

/// The magic number at the head of a message was another one: the stream is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadMagic;

/// What precedes an option's data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionHeader {
    /// Which option.
    pub option: u32,
    /// Bytes of data that follow.
    pub len: u32,
}

impl OptionHeader {
    /// Bytes of the header.
    pub const SIZE: usize = 16;

    /// Decodes the first bytes of `data`; `None` if they are too few.
    ///
    /// # Errors
    /// [`BadMagic`].
    pub fn decode(data: &[u8]) -> Result<Option<Self>, BadMagic> {
        let (Some(magic), Some(option), Some(len)) = (u64_at(data, 0), u32_at(data, 8), u32_at(data, 12))
        else {
            return Ok(None);
        };
        if magic == OPTION_MAGIC { Ok(Some(Self { option, len })) } else { Err(BadMagic) }
    }

    /// Appends the header to `out`.
    pub fn encode(self, out: &mut BytesMut) {
        out.put_u64(OPTION_MAGIC);
        out.put_u32(self.option);
        out.put_u32(self.len);
    }
}

/// A request, without its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Flags of the command, [`cmd_flag`].
    pub flags: u16,
    /// The command, [`cmd`].
    pub command: u16,
    /// The client's number for it, repeated in the reply.
    pub cookie: u64,
    /// Where, in bytes.
    pub offset: u64,
    /// How much, in bytes.
    pub len: u32,
}

impl Request {
    /// Bytes of a request header.
    pub const SIZE: usize = 28;

    /// Decodes a header.
    ///
    /// # Errors
    /// [`BadMagic`].
    pub fn decode(data: &[u8; Self::SIZE]) -> Result<Self, BadMagic> {
        let (magic, rest) = data.split_first_chunk().ok_or(BadMagic)?;
        if u32::from_be_bytes(*magic) != REQUEST_MAGIC {
            return Err(BadMagic);
        }
        let (flags, rest) = rest.split_first_chunk().ok_or(BadMagic)?;
        let (command, rest) = rest.split_first_chunk().ok_or(BadMagic)?;
        let (cookie, rest) = rest.split_first_chunk().ok_or(BadMagic)?;
        let (offset, rest) = rest.split_first_chunk().ok_or(BadMagic)?;
        let (len, _) = rest.split_first_chunk().ok_or(BadMagic)?;
        Ok(Self {
            flags: u16::from_be_bytes(*flags),
            command: u16::from_be_bytes(*command),
            cookie: u64::from_be_bytes(*cookie),
            offset: u64::from_be_bytes(*offset),
            len: u32::from_be_bytes(*len),
        })
    }

    /// Appends the header to `out`.
    pub fn encode(&self, out: &mut impl BufMut) {
        out.put_u32(REQUEST_MAGIC);
        out.put_u16(self.flags);
        out.put_u16(self.command);
        out.put_u64(self.cookie);
        out.put_u64(self.offset);
        out.put_u32(self.len);
    }

    /// Whether that flag is set.
    #[must_use]
    pub fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }
}

/// Bytes of a simple reply's header.
pub const SIMPLE_REPLY_SIZE: usize = 16;
/// Bytes of a chunk's header.
pub const CHUNK_HEADER_SIZE: usize = 20;

/// Appends the header of a simple reply.
pub fn put_simple_reply(out: &mut BytesMut, errno: u32, cookie: u64) {
    out.put_u32(SIMPLE_REPLY_MAGIC);
    out.put_u32(errno);
    out.put_u64(cookie);
}

/// Appends the header of a structured reply's chunk with `len` bytes of payload.
pub fn put_chunk_header(out: &mut BytesMut, done: bool, kind: u16, cookie: u64, len: u32) {
    out.put_u32(CHUNK_MAGIC);
    out.put_u16(if done { chunk::FLAG_DONE } else { 0 });
    out.put_u16(kind);
    out.put_u64(cookie);
    out.put_u32(len);
}

/// Appends the reply to an option.
///
/// # Panics
/// If `data` is longer than 4 GiB.
pub fn put_option_reply(out: &mut BytesMut, option: u32, reply: u32, data: &[u8]) {
    out.put_u64(OPTION_REPLY_MAGIC);
    out.put_u32(option);
    out.put_u32(reply);
    out.put_u32(u32::try_from(data.len()).expect("the reply to an option is short"));
    out.put_slice(data);
}

/// `text`, cut at a character so that it has at most `size_max` bytes.
#[must_use]
pub fn cut(text: &str, size_max: usize) -> &str {
    if text.len() <= size_max {
        return text;
    }
    let end = (0..=size_max).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_come_back_as_they_went() {
        let request =
            Request { flags: 5, command: 7, cookie: u64::MAX - 3, offset: 1 << 40, len: 0xdead_beef };
        let mut bytes = BytesMut::new();
        request.encode(&mut bytes);
        let mut bytes: [u8; 28] = bytes[..].try_into().unwrap();
        assert_eq!(Request::decode(&bytes), Ok(request));
        bytes[0] ^= 1;
        assert_eq!(Request::decode(&bytes), Err(BadMagic));
    }

    #[test]
    fn a_cut_ends_at_a_character() {
        assert_eq!(cut("abc", 2), "ab");
        assert_eq!(cut("aä", 2), "a");
        assert_eq!(cut("aä", 3), "aä");
    }
}
