//! The kernel's nbd driver, asked over generic netlink (linux/nbd-netlink.h).
//!
//! Numbers are in the machine's own byte order and attributes are padded to four
//! bytes. One request is under way at a time; its answer is read whole.
#![allow(clippy::host_endian_bytes, reason = "netlink speaks the byte order of the machine")]

use crate::error::{Error, ErrorKind, Result};
use rustix::io::Errno;
use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use std::os::fd::{AsRawFd, OwnedFd};

const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLA_F_NESTED: u16 = 1 << 15;
const NLA_TYPE_MASK: u16 = 0x3fff;
/// Bytes of a message's header, and of the generic one after it.
const HEADER_LEN: usize = 16;
const GENERIC_LEN: usize = 4;

const CONTROLLER: u16 = 0x10;
const CONTROLLER_GET_FAMILY: u8 = 3;
const CONTROLLER_FAMILY_ID: u16 = 1;
const CONTROLLER_FAMILY_NAME: u16 = 2;

const NBD_CONNECT: u8 = 1;
const NBD_DISCONNECT: u8 = 2;
const NBD_RECONFIGURE: u8 = 3;
const NBD_STATUS: u8 = 5;
const NBD_INDEX: u16 = 1;
const NBD_SIZE_BYTES: u16 = 2;
const NBD_BLOCK_SIZE_BYTES: u16 = 3;
const NBD_TIMEOUT: u16 = 4;
const NBD_SERVER_FLAGS: u16 = 5;
const NBD_SOCKETS: u16 = 7;
const NBD_DEAD_CONN_TIMEOUT: u16 = 8;
const NBD_DEVICE_LIST: u16 = 9;
const NBD_BACKEND_IDENTIFIER: u16 = 10;
const NBD_DEVICE_ITEM: u16 = 1;
const NBD_DEVICE_CONNECTED: u16 = 2;
const NBD_SOCK_ITEM: u16 = 1;
const NBD_SOCK_FD: u16 = 1;

/// A device to connect.
#[derive(Clone, Debug)]
pub(in crate::cli) struct Connect {
    /// The device's number; a free one if none.
    pub index: Option<u32>,
    /// Bytes in the export.
    pub size: u64,
    /// Bytes in a block of the device.
    pub block_size: u64,
    /// The export's transmission flags.
    pub server_flags: u64,
    /// Seconds for a request; 0: no limit.
    pub timeout: u64,
    /// Seconds to wait for a new connection.
    pub dead_conn_timeout: u64,
    /// What a new connection must name, so that it does not go to a device that was
    /// detached and attached to something else meanwhile.
    pub identifier: String,
}

/// The driver's generic netlink family.
pub(in crate::cli) struct Nbd {
    socket: OwnedFd,
    family: u16,
}

impl Nbd {
    /// Finds the driver.
    ///
    /// # Errors
    /// `Unsupported` when it is not loaded.
    pub(in crate::cli) fn open() -> Result<Self> {
        let failed = |error: Errno| Error::os("open a netlink socket", error.into());
        let flags = SocketFlags::CLOEXEC;
        let socket =
            rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, Some(netlink::GENERIC))
                .map_err(failed)?;
        rustix::net::bind(&socket, &SocketAddrNetlink::new(0, 0)).map_err(failed)?;
        // Port 0 is the kernel: only it is written to and heard.
        rustix::net::connect(&socket, &SocketAddrNetlink::new(0, 0)).map_err(failed)?;
        let mut nbd = Self { socket, family: CONTROLLER };
        let name = attribute(CONTROLLER_FAMILY_NAME, b"nbd\0");
        let answer = nbd.ask(CONTROLLER_GET_FAMILY, &name).map_err(|error| match error {
            Failure::Refused(Errno::NOENT) => {
                Error::new(ErrorKind::Unsupported, "the kernel's nbd driver is not loaded")
                    .hint("run: modprobe nbd")
            }
            other => other.into_error("find the kernel's nbd driver"),
        })?;
        nbd.family = find(&answer, CONTROLLER_FAMILY_ID)
            .and_then(|value| Some(u16::from_ne_bytes(value.get(..2)?.try_into().ok()?)))
            .ok_or_else(|| Error::new(ErrorKind::Unsupported, "the kernel did not name its nbd driver"))?;
        Ok(nbd)
    }

    /// Gives the socket to a device and says which.
    ///
    /// # Errors
    /// `Conflict` for a device in use, `Io` for what else the kernel says.
    pub(in crate::cli) fn connect(&self, request: &Connect, socket: &OwnedFd) -> Result<u32> {
        let fd = socket.as_raw_fd().unsigned_abs();
        let answer = self.ask(NBD_CONNECT, &connect_attributes(request, fd)).map_err(|error| {
            let conflict = matches!(error, Failure::Refused(Errno::BUSY | Errno::EXIST));
            let error = error.into_error("connect the device");
            if conflict {
                Error::conflict(error.to_string()).hint("name another device, or none")
            } else {
                error
            }
        })?;
        find(&answer, NBD_INDEX)
            .and_then(|value| Some(u32::from_ne_bytes(value.get(..4)?.try_into().ok()?)))
            .or(request.index)
            .ok_or_else(|| Error::new(ErrorKind::Unsupported, "the kernel did not say which device it took"))
    }

    /// Disconnects a device.
    ///
    /// # Errors
    /// `NotFound` for a device that is not connected.
    pub(in crate::cli) fn disconnect(&self, index: u32) -> Result<()> {
        let what = format!("disconnect /dev/nbd{index}");
        // The kernel finds nothing wrong with letting go of what is not attached.
        if !self.is_attached(index)? {
            return Err(Error::not_found(format!("/dev/nbd{index} is not attached")));
        }
        match self.ask(NBD_DISCONNECT, &attribute(NBD_INDEX, &index.to_ne_bytes())) {
            Ok(_) => Ok(()),
            Err(Failure::Refused(Errno::INVAL | Errno::NOENT | Errno::NXIO | Errno::NODEV)) => {
                Err(Error::not_found(format!("/dev/nbd{index} is not attached")))
            }
            Err(error) => Err(error.into_error(&what)),
        }
    }

    /// Gives a device that lost its connection a new one; false if the device does not
    /// want it any more: it was detached, or is another one by now.
    ///
    /// # Errors
    /// `Io` for what else the kernel says.
    pub(in crate::cli) fn reconnect(&self, index: u32, identifier: &str, socket: &OwnedFd) -> Result<bool> {
        let mut bytes = attribute(NBD_INDEX, &index.to_ne_bytes());
        bytes.extend(identifier_attribute(identifier));
        bytes.extend(socket_attribute(socket.as_raw_fd().unsigned_abs()));
        match self.ask(NBD_RECONFIGURE, &bytes) {
            Ok(_) => Ok(true),
            Err(Failure::Refused(Errno::INVAL | Errno::NOENT | Errno::NXIO | Errno::NODEV)) => Ok(false),
            Err(error) => Err(error.into_error(&format!("connect /dev/nbd{index} again"))),
        }
    }

    /// Whether a device is attached, with a living connection or without one.
    ///
    /// # Errors
    /// `Io`.
    pub(in crate::cli) fn is_attached(&self, index: u32) -> Result<bool> {
        match self.ask(NBD_STATUS, &attribute(NBD_INDEX, &index.to_ne_bytes())) {
            Ok(answer) => Ok(connected(&answer)),
            Err(Failure::Refused(Errno::INVAL | Errno::NOENT | Errno::NXIO | Errno::NODEV)) => Ok(false),
            Err(error) => Err(error.into_error(&format!("ask for /dev/nbd{index}"))),
        }
    }

    /// Sends a request and returns the attributes of the answer, if it has one.
    fn ask(&self, command: u8, attributes: &[u8]) -> Result<Vec<u8>, Failure> {
        let request = message(self.family, command, attributes);
        rustix::net::send(&self.socket, &request, SendFlags::empty()).map_err(Failure::Broken)?;
        let mut answer = Vec::new();
        loop {
            let mut buffer = vec![0; 32 << 10];
            let (read, _) = rustix::net::recv(&self.socket, buffer.as_mut_slice(), RecvFlags::empty())
                .map_err(Failure::Broken)?;
            buffer.truncate(read);
            if take_answers(&buffer, &mut answer)? {
                return Ok(answer);
            }
        }
    }
}

/// Why a request brought nothing.
#[derive(Debug, PartialEq, Eq)]
enum Failure {
    /// The socket failed.
    Broken(Errno),
    /// The kernel answered with an errno.
    Refused(Errno),
}

impl Failure {
    fn into_error(self, what: &str) -> Error {
        let (Self::Broken(errno) | Self::Refused(errno)) = self;
        let error = Error::os(what, errno.into());
        if matches!(errno, Errno::PERM | Errno::ACCESS) {
            error.hint("run the command as root")
        } else {
            error
        }
    }
}

/// Goes through a datagram's messages; true once the acknowledgement was among them.
fn take_answers(mut bytes: &[u8], answer: &mut Vec<u8>) -> Result<bool, Failure> {
    while bytes.len() >= HEADER_LEN {
        let len = u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize;
        let kind = u16::from_ne_bytes([bytes[4], bytes[5]]);
        let Some(body) = bytes.get(HEADER_LEN..len) else { return Err(Failure::Broken(Errno::BADMSG)) };
        if kind == NLMSG_ERROR {
            let code = body.get(..4).ok_or(Failure::Broken(Errno::BADMSG))?;
            let code = i32::from_ne_bytes([code[0], code[1], code[2], code[3]]);
            return if code == 0 {
                Ok(true)
            } else {
                Err(Failure::Refused(Errno::from_raw_os_error(code.saturating_neg())))
            };
        }
        answer.extend_from_slice(body.get(GENERIC_LEN..).unwrap_or_default());
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

fn message(family: u16, command: u8, attributes: &[u8]) -> Vec<u8> {
    #[allow(clippy::cast_possible_truncation, reason = "the requests above are short")]
    let len = (HEADER_LEN + GENERIC_LEN + attributes.len()) as u32;
    let mut bytes = len.to_ne_bytes().to_vec();
    bytes.extend(family.to_ne_bytes());
    bytes.extend((NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes());
    // Sequence number and port: one request at a time on a socket of its own.
    bytes.extend(1u32.to_ne_bytes());
    bytes.extend(0u32.to_ne_bytes());
    bytes.extend([command, 1, 0, 0]);
    bytes.extend(attributes);
    bytes
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    #[allow(clippy::cast_possible_truncation, reason = "the attributes above are short")]
    let len = (4 + value.len()) as u16;
    let mut bytes = len.to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn connect_attributes(request: &Connect, fd: u32) -> Vec<u8> {
    let long = |kind, value: u64| attribute(kind, &value.to_ne_bytes());
    let mut bytes = Vec::new();
    if let Some(index) = request.index {
        bytes.extend(attribute(NBD_INDEX, &index.to_ne_bytes()));
    }
    bytes.extend(long(NBD_SIZE_BYTES, request.size));
    bytes.extend(long(NBD_BLOCK_SIZE_BYTES, request.block_size));
    bytes.extend(long(NBD_SERVER_FLAGS, request.server_flags));
    if request.timeout > 0 {
        bytes.extend(long(NBD_TIMEOUT, request.timeout));
    }
    if request.dead_conn_timeout > 0 {
        bytes.extend(long(NBD_DEAD_CONN_TIMEOUT, request.dead_conn_timeout));
    }
    bytes.extend(identifier_attribute(&request.identifier));
    bytes.extend(socket_attribute(fd));
    bytes
}

fn socket_attribute(fd: u32) -> Vec<u8> {
    let item = attribute(NBD_SOCK_ITEM | NLA_F_NESTED, &attribute(NBD_SOCK_FD, &fd.to_ne_bytes()));
    attribute(NBD_SOCKETS | NLA_F_NESTED, &item)
}

/// Older kernels don't know it and pass over it.
fn identifier_attribute(identifier: &str) -> Vec<u8> {
    attribute(NBD_BACKEND_IDENTIFIER, &[identifier.as_bytes(), &[0]].concat())
}

/// What the answer to a question for one device says.
fn connected(answer: &[u8]) -> bool {
    find(answer, NBD_DEVICE_LIST)
        .and_then(|list| find(list, NBD_DEVICE_ITEM))
        .and_then(|item| find(item, NBD_DEVICE_CONNECTED))
        .is_some_and(|value| value.first().is_some_and(|value| *value != 0))
}

/// The value of the first attribute of that kind.
fn find(mut attributes: &[u8], kind: u16) -> Option<&[u8]> {
    while attributes.len() >= 4 {
        let len = usize::from(u16::from_ne_bytes([attributes[0], attributes[1]]));
        let this = u16::from_ne_bytes([attributes[2], attributes[3]]) & NLA_TYPE_MASK;
        let value = attributes.get(4..len)?;
        if this == kind {
            return Some(value);
        }
        attributes = attributes.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_and_found() {
        let mut bytes = attribute(2, b"nbd\0\0");
        bytes.extend(attribute(1, &7u16.to_ne_bytes()));
        assert_eq!(bytes.len(), 12 + 8);
        assert_eq!(find(&bytes, 1), Some(&7u16.to_ne_bytes()[..]));
        assert_eq!(find(&bytes, 9), None);
        assert_eq!(find(&[3, 0, 1, 0], 1), None);
    }

    #[test]
    fn sockets_are_nested_twice() {
        let request = Connect {
            index: Some(3),
            size: 1 << 20,
            block_size: 4096,
            server_flags: 1,
            timeout: 0,
            dead_conn_timeout: 0,
            identifier: "one".to_owned(),
        };
        let bytes = connect_attributes(&request, 5);
        assert_eq!(find(&bytes, NBD_BACKEND_IDENTIFIER), Some(&b"one\0"[..]));
        let sockets = find(&bytes, NBD_SOCKETS).unwrap();
        let item = find(sockets, NBD_SOCK_ITEM).unwrap();
        assert_eq!(find(item, NBD_SOCK_FD), Some(&5u32.to_ne_bytes()[..]));
        assert_eq!(find(&bytes, NBD_INDEX), Some(&3u32.to_ne_bytes()[..]));
        assert_eq!(find(&bytes, NBD_TIMEOUT), None);
    }

    #[test]
    fn a_device_is_attached_or_not() {
        let answer = |value: u8| {
            let item =
                [attribute(1, &3u32.to_ne_bytes()), attribute(NBD_DEVICE_CONNECTED, &[value])].concat();
            attribute(NBD_DEVICE_LIST | NLA_F_NESTED, &attribute(NBD_DEVICE_ITEM | NLA_F_NESTED, &item))
        };
        assert!(connected(&answer(1)) && !connected(&answer(0)));
        for end in 0..answer(1).len() {
            let _ = connected(&answer(1)[..end]);
        }
    }

    #[test]
    fn the_kernel_answers() {
        let mut answer = Vec::new();
        let mut bytes = message(20, 1, &attribute(NBD_INDEX, &4u32.to_ne_bytes()));
        let acknowledged = |code: i32| {
            let mut bytes = 36u32.to_ne_bytes().to_vec();
            bytes.extend(NLMSG_ERROR.to_ne_bytes());
            bytes.resize(HEADER_LEN, 0);
            bytes.extend(code.to_ne_bytes());
            bytes.resize(36, 0);
            bytes
        };
        assert_eq!(take_answers(&bytes, &mut answer), Ok(false));
        assert_eq!(find(&answer, NBD_INDEX), Some(&4u32.to_ne_bytes()[..]));
        bytes.extend(acknowledged(0));
        assert_eq!(take_answers(&bytes, &mut answer), Ok(true));
        let refused = take_answers(&acknowledged(-16), &mut answer);
        assert_eq!(refused, Err(Failure::Refused(Errno::BUSY)));
        assert_eq!(take_answers(&[200; 20], &mut answer), Err(Failure::Broken(Errno::BADMSG)));
    }
}
