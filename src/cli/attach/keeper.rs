//! The keeper of an attached device: a process that connects it again when its connection
//! is lost, because the daemon was restarted.
//!
//! It holds a second descriptor of the socket that the kernel reads and writes, and waits
//! for its end; it never reads from it. It goes when the device was detached, when the
//! kernel has stopped waiting, or when what is served is not what was attached (see
//! [`crate::cli::leases`]).

use super::handshake::{self, Address, Negotiated};
use super::netlink::{Connect, Nbd};
use super::{Args, DeviceName, Lease};
use crate::error::{Error, ErrorKind, Result};
use rustix::event::{PollFd, PollFlags, poll};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How often a daemon that is away is looked for.
const INTERVAL: Duration = Duration::from_millis(200);

/// Starts the keeper in the background.
///
/// # Errors
/// `Io`.
pub(super) fn start(
    device: DeviceName,
    args: &Args,
    address: &Address,
    lease: Option<&Lease>,
    request: &Connect,
    socket: OwnedFd,
) -> Result<()> {
    let failed = |error| Error::os("start the process that keeps the device connected", error);
    let program = std::env::current_exe().map_err(failed)?;
    let mut command = Command::new(program);
    command.args(["attach", &args.export.to_string(), &device.to_string()]);
    command.args([
        "--uri",
        &address.uri()?,
        "--dead-conn-timeout",
        &request.dead_conn_timeout.to_string(),
        "--keep",
    ]);
    command.args([&request.identifier, &request.size.to_string(), &request.server_flags.to_string()]);
    command.arg(lease.map_or(Path::new(""), |lease| &lease.path));
    // Its standard output is the lease, whose lock it holds from here on. Nothing else of
    // ours stays open in it, so that nobody waits for its end.
    let locked = match lease {
        Some(lease) => lease.file.try_clone().map_err(failed)?.into(),
        None => Stdio::null(),
    };
    command.stdin(socket).stdout(locked).stderr(Stdio::null()).current_dir("/");
    command.spawn().map(drop).map_err(failed)
}

/// Keeps a device connected until it is detached.
///
/// # Errors
/// `Interrupted` when nobody serves it any more, `Conflict` when something else is served.
pub(super) fn run(family: &Nbd, args: &Args, kept: &[String]) -> Result<()> {
    let usage = || Error::invalid("the keeper is started by attach alone");
    let ([identifier, size, flags, lease], Some(device), Some(address)) = (kept, args.device, &args.uri)
    else {
        return Err(usage());
    };
    let number = |text: &String| text.parse::<u64>().map_err(|_| usage());
    let lease = (!lease.is_empty()).then_some(Path::new(lease));
    let kept = Kept { device, identifier, size: number(size)?, flags: number(flags)?, lease };
    let _ended = Ended(lease);
    // The end of a terminal is none of this process's business.
    let _ = rustix::process::setsid();
    let mut socket =
        std::io::stdin().as_fd().try_clone_to_owned().map_err(|error| Error::os("keep a socket", error))?;
    let patience = Duration::from_secs(args.dead_conn_timeout.unwrap_or_default());
    loop {
        wait_for_end(&socket)?;
        let until = Instant::now() + patience;
        socket = loop {
            if !family.is_attached(device.0)? {
                return Ok(());
            }
            match kept.connect(family, address, &args.export.to_string()) {
                Ok(Some(socket)) => break socket,
                Ok(None) => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Conflict || Instant::now() >= until => {
                    // The kernel fails what waits when its own time is over.
                    return Err(error);
                }
                Err(_) => std::thread::sleep(INTERVAL),
            }
        };
    }
}

/// Waits until the other end of a socket is gone, or the kernel has given it up.
fn wait_for_end(socket: &OwnedFd) -> Result<()> {
    loop {
        match poll(&mut [PollFd::new(socket, PollFlags::RDHUP)], None) {
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(Error::os("wait for the end of a connection", errno.into())),
        }
    }
}

/// What the device was attached to.
struct Kept<'a> {
    device: DeviceName,
    identifier: &'a str,
    size: u64,
    flags: u64,
    lease: Option<&'a Path>,
}

/// Takes the lease away at the end.
struct Ended<'a>(Option<&'a Path>);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        if let Some(lease) = self.0 {
            // Somebody may have done so by force.
            let _ = std::fs::remove_file(lease);
        }
    }
}

impl Kept<'_> {
    /// A new connection for the device; none if it wants no more.
    fn connect(&self, family: &Nbd, address: &Address, export: &str) -> Result<Option<OwnedFd>> {
        let Negotiated { socket, size, flags, .. } = handshake::connect(address, export)?;
        // A volume that has grown is still the one whose first bytes the kernel knows.
        if size < self.size || u64::from(flags) != self.flags {
            return Err(Error::conflict(format!(
                "what is served as {export} now is not what {} was attached to",
                self.device
            ))
            .hint(format!("detach it with: snapvol detach {}", self.device)));
        }
        // From the handshake on the daemon counts a client, so this is late enough.
        if self.lease.is_some_and(|lease| !lease.exists()) {
            return Err(Error::conflict(format!("the volume of {} was taken from it by force", self.device))
                .hint(format!("detach it with: snapvol detach {}", self.device)));
        }
        let taken = family.reconnect(self.device.0, self.identifier, &socket)?;
        Ok(taken.then_some(socket))
    }
}
