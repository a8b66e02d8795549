//! An NBD client's handshake, up to the moment at which the kernel takes the socket:
//! fixed newstyle, `NBD_OPT_GO`, nothing else negotiated, since the kernel's driver
//! speaks simple replies (NBD protocol, "Handshake phase").

use crate::error::{Error, ErrorKind, Result};
use crate::nbd::uri::encode;
use std::ffi::OsString;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

const MAGIC: u64 = u64::from_be_bytes(*b"NBDMAGIC");
const OPTION_MAGIC: u64 = u64::from_be_bytes(*b"IHAVEOPT");
const REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const FIXED_NEWSTYLE: u16 = 1;
const NO_ZEROES: u16 = 2;
const OPT_GO: u32 = 7;
const REP_ACK: u32 = 1;
const REP_INFO: u32 = 3;
const REP_ERROR: u32 = 1 << 31;
const REP_ERR_UNKNOWN: u32 = REP_ERROR | 6;
const INFO_EXPORT: u16 = 0;
const INFO_BLOCK_SIZE: u16 = 3;
/// The longest reply that is read, in bytes.
const REPLY_LEN_MAX: usize = 64 << 10;
/// The most replies to one option.
const REPLIES_MAX: usize = 64;
/// How long the server may take for each answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where exports are served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Address {
    /// A unix socket.
    Unix(PathBuf),
    /// `ADDR:PORT`.
    Tcp(String),
}

impl Address {
    /// An NBD URI that is parsed to this address.
    ///
    /// # Errors
    /// `Io` when the place of a socket can't be told.
    pub(super) fn uri(&self) -> Result<String> {
        match self {
            Self::Tcp(authority) => Ok(format!("nbd://{authority}")),
            Self::Unix(path) => {
                let path = std::path::absolute(path)
                    .map_err(|error| Error::os(format!("resolve {}", path.display()), error))?;
                Ok(format!("nbd+unix:///?socket={}", encode(path.as_os_str().as_bytes(), b"/")))
            }
        }
    }
}

impl FromStr for Address {
    type Err = Error;

    /// Takes an NBD URI; an export in it is passed over.
    fn from_str(text: &str) -> Result<Self> {
        let bad = || {
            Error::invalid(format!(
                "'{}' is no NBD URI; write nbd+unix:///?socket=PATH or nbd://ADDR:PORT",
                text.escape_debug()
            ))
        };
        if let Some(rest) = text.strip_prefix("nbd+unix://") {
            let (_, query) = rest.split_once('?').ok_or_else(bad)?;
            let socket = query.split('&').find_map(|pair| pair.strip_prefix("socket=")).ok_or_else(bad)?;
            let path = decode(socket).filter(|path| !path.is_empty()).ok_or_else(bad)?;
            return Ok(Self::Unix(OsString::from_vec(path).into()));
        }
        let rest = text.strip_prefix("nbd://").ok_or_else(bad)?;
        let authority = rest.split(['/', '?']).next().unwrap_or_default();
        if authority.is_empty() {
            return Err(bad());
        }
        let has_port = authority.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        Ok(Self::Tcp(if has_port { authority.to_owned() } else { format!("{authority}:10809") }))
    }
}

/// Undoes percent-encoding.
fn decode(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte == b'%' {
            let digits = std::str::from_utf8(after.get(..2)?).ok()?;
            bytes.push(u8::from_str_radix(digits, 16).ok()?);
            rest = &after[2..];
        } else {
            bytes.push(byte);
        }
    }
    Some(bytes)
}

/// A socket in its transmission phase.
#[derive(Debug)]
pub(super) struct Negotiated {
    /// The connection.
    pub socket: OwnedFd,
    /// The export's size in bytes.
    pub size: u64,
    /// Its transmission flags.
    pub flags: u16,
    /// The block size that the server prefers, in bytes.
    pub block_size: u32,
}

/// Connects and negotiates.
///
/// # Errors
/// `NotFound` if the server has no such export; `Io`; `Invalid` for a server that
/// speaks something else.
pub(super) fn connect(address: &Address, export: &str) -> Result<Negotiated> {
    let failed = |error| Error::os(format!("connect to {address:?}"), error);
    let (socket, (size, flags, block_size)) = match address {
        Address::Unix(path) => {
            let mut socket = UnixStream::connect(path).map_err(failed)?;
            socket.set_read_timeout(Some(PATIENCE)).map_err(failed)?;
            let told = negotiate(&mut socket, export)?;
            socket.set_read_timeout(None).map_err(failed)?;
            (OwnedFd::from(socket), told)
        }
        Address::Tcp(authority) => {
            let mut socket = TcpStream::connect(authority).map_err(failed)?;
            socket.set_nodelay(true).map_err(failed)?;
            socket.set_read_timeout(Some(PATIENCE)).map_err(failed)?;
            let told = negotiate(&mut socket, export)?;
            socket.set_read_timeout(None).map_err(failed)?;
            (OwnedFd::from(socket), told)
        }
    };
    Ok(Negotiated { socket, size, flags, block_size })
}

/// Negotiates over a connected socket: size, flags and preferred block size.
///
/// # Errors
/// As for the connection.
pub fn negotiate<S: Read + Write>(socket: &mut S, export: &str) -> Result<(u64, u16, u32)> {
    let broken = |error| Error::os("negotiate with the NBD server", error);
    let stranger = || Error::invalid("the server does not speak NBD as it should");
    let hello: [u8; 18] = read(socket).map_err(broken)?;
    let server_flags = be16(&hello[16..]);
    if be64(&hello) != MAGIC || be64(&hello[8..]) != OPTION_MAGIC || server_flags & FIXED_NEWSTYLE == 0 {
        return Err(stranger());
    }
    let client_flags = u32::from(server_flags & (FIXED_NEWSTYLE | NO_ZEROES));
    let name_len =
        u32::try_from(export.len()).map_err(|_| Error::invalid("the export's name is too long"))?;
    let mut option = client_flags.to_be_bytes().to_vec();
    option.extend(OPTION_MAGIC.to_be_bytes());
    option.extend(OPT_GO.to_be_bytes());
    // The length of the name, the name, and one piece of information asked for.
    option.extend((4 + name_len + 4).to_be_bytes());
    option.extend(name_len.to_be_bytes());
    option.extend(export.as_bytes());
    option.extend(1u16.to_be_bytes());
    option.extend(INFO_BLOCK_SIZE.to_be_bytes());
    socket.write_all(&option).map_err(broken)?;

    let (mut told, mut block_size) = (None, 4096);
    for _ in 0..REPLIES_MAX {
        let header: [u8; 20] = read(socket).map_err(broken)?;
        let (kind, len) = (be32(&header[12..]), be32(&header[16..]) as usize);
        if be64(&header) != REPLY_MAGIC || be32(&header[8..]) != OPT_GO || len > REPLY_LEN_MAX {
            return Err(stranger());
        }
        let mut payload = vec![0; len];
        socket.read_exact(&mut payload).map_err(broken)?;
        match (kind, payload.get(..2).map(be16)) {
            (REP_INFO, Some(INFO_EXPORT)) if len >= 12 => {
                told = Some((be64(&payload[2..]), be16(&payload[10..])));
            }
            (REP_INFO, Some(INFO_BLOCK_SIZE)) if len >= 14 => block_size = be32(&payload[6..]),
            (REP_INFO, _) => {}
            (REP_ACK, _) => return told.map(|(size, flags)| (size, flags, block_size)).ok_or_else(stranger),
            (REP_ERR_UNKNOWN, _) => {
                return Err(Error::not_found(format!("the server has no export {export}"))
                    .hint("see what there is with: snapvol list"));
            }
            (error, _) if error & REP_ERROR != 0 => {
                let why = String::from_utf8_lossy(&payload).escape_debug().to_string();
                return Err(Error::new(ErrorKind::Conflict, format!("the server refused {export}: {why}")));
            }
            _ => return Err(stranger()),
        }
    }
    Err(stranger())
}

fn read<const N: usize>(socket: &mut impl Read) -> std::io::Result<[u8; N]> {
    let mut bytes = [0; N];
    socket.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// The leading bytes as a number; the callers have checked the length.
fn be64(bytes: &[u8]) -> u64 {
    bytes[..8].iter().fold(0, |number, &byte| number << 8 | u64::from(byte))
}

fn be32(bytes: &[u8]) -> u32 {
    bytes[..4].iter().fold(0, |number, &byte| number << 8 | u32::from(byte))
}

fn be16(bytes: &[u8]) -> u16 {
    u16::from(bytes[0]) << 8 | u16::from(bytes[1])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let parse = |text: &str| text.parse::<Address>();
        assert_eq!(parse("nbd+unix:///?socket=/a/b").unwrap(), Address::Unix("/a/b".into()));
        assert_eq!(parse("nbd+unix:///db@x?socket=/a%20b").unwrap(), Address::Unix("/a b".into()));
        assert_eq!(parse("nbd://[::1]:99/db").unwrap(), Address::Tcp("[::1]:99".into()));
        assert_eq!(parse("nbd://[::1]").unwrap(), Address::Tcp("[::1]:10809".into()));
        assert_eq!(parse("nbd://host/").unwrap(), Address::Tcp("host:10809".into()));
        for bad in
            ["", "http://x", "nbd://", "nbd+unix:///", "nbd+unix:///?socket=", "nbd+unix:///?socket=%4"]
        {
            assert!(parse(bad).is_err(), "{bad}");
        }
        for address in [Address::Unix("/a b/ü%&?\n".into()), Address::Tcp("[::1]:99".into())] {
            assert_eq!(parse(&address.uri().unwrap()).unwrap(), address);
        }
    }

    fn reply(kind: u32, payload: &[u8]) -> Vec<u8> {
        let mut bytes = REPLY_MAGIC.to_be_bytes().to_vec();
        bytes.extend(OPT_GO.to_be_bytes());
        bytes.extend(kind.to_be_bytes());
        bytes.extend(u32::try_from(payload.len()).unwrap().to_be_bytes());
        bytes.extend(payload);
        bytes
    }

    fn against(replies: &[Vec<u8>]) -> Result<(u64, u16, u32)> {
        let (mut here, mut there) = UnixStream::pair().unwrap();
        there.write_all(b"NBDMAGICIHAVEOPT\x00\x03").unwrap();
        there.write_all(&replies.concat()).unwrap();
        there.shutdown(std::net::Shutdown::Write).unwrap();
        let told = negotiate(&mut here, "db");
        drop(here);
        let mut sent = Vec::new();
        there.read_to_end(&mut sent).unwrap();
        assert_eq!(sent, b"\0\0\0\x03IHAVEOPT\0\0\0\x07\0\0\0\x0a\0\0\0\x02db\0\x01\0\x03");
        told
    }

    #[test]
    fn a_server_tells_size_flags_and_block_size() {
        let export = reply(REP_INFO, &[&[0, 0][..], &(1u64 << 30).to_be_bytes(), &[0, 0x6d]].concat());
        let sizes = reply(REP_INFO, &[0, 3, 0, 0, 2, 0, 0, 0, 16, 0, 2, 0, 0, 0]);
        let told = against(&[export, sizes, reply(REP_ACK, &[])]).unwrap();
        assert_eq!(told, (1 << 30, 0x6d, 4096));
    }

    #[test]
    fn refusals_and_strangers() {
        assert_eq!(against(&[reply(REP_ERR_UNKNOWN, b"no")]).unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(against(&[reply(REP_ERROR | 2, b"policy")]).unwrap_err().kind(), ErrorKind::Conflict);
        assert_eq!(against(&[reply(REP_ACK, &[])]).unwrap_err().kind(), ErrorKind::Invalid);
        assert_eq!(against(&[reply(REP_INFO, &[0])]).unwrap_err().kind(), ErrorKind::Io);
        assert_eq!(against(&[vec![0; 20]]).unwrap_err().kind(), ErrorKind::Invalid);
    }
}
