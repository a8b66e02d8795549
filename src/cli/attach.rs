//! `attach`: the kernel's nbd driver becomes a client of a served export.
//!
//! The handshake happens here; then the socket is given to the kernel, which keeps it
//! when this process ends. A process of its own stays, the keeper, which connects again
//! when the daemon was restarted.

#[doc(hidden)]
pub mod handshake;
mod keeper;
pub(super) mod netlink;

use super::args::{ExportName, Target};
use super::leases::Lease;
use super::output;
use crate::control::Access;
use crate::error::{Error, ErrorKind, Result};
use crate::nbd::proto::flag;
use handshake::{Address, Negotiated};
use netlink::Nbd;
use std::path::Path;
use std::str::FromStr;
use std::time::{Duration, Instant};

/// How long requests wait for a daemon that is being restarted, in seconds.
const RESTART_SECONDS: u64 = 60;

/// Attach an export to the kernel's nbd driver, and print the device
///
/// Needs root and the nbd module (modprobe nbd). The store must be served. The device
/// outlasts a restart of the daemon: requests wait, a process that stays in the background
/// connects again, and what is mounted goes on.
#[derive(clap::Args)]
pub(super) struct Args {
    /// The volume, snapshot or drill
    #[arg(value_name = "VOL[@SNAP|+N]")]
    export: ExportName,

    /// The device, such as /dev/nbd0; a free one unless named
    #[arg(value_name = "/dev/nbdN")]
    device: Option<DeviceName>,

    /// Where the export is served: nbd+unix:///?socket=PATH or nbd://ADDR:PORT; unless said,
    /// where the store's own daemon serves it
    #[arg(long)]
    uri: Option<Address>,

    /// Seconds after which the kernel takes the connection of an unanswered request for
    /// dead; 0: never
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    timeout: u64,

    /// Seconds for which requests wait for a new connection when this one is lost, before
    /// they fail; 60 unless said, 0 with --uri and for a secondary
    ///
    /// Requests that were under way are made again, half a minute after the loss unless
    /// --timeout is shorter. With --uri give it only if what is served there can't become
    /// something else meanwhile: by a roll-back, or by a power loss, after which what was
    /// acknowledged and not flushed is gone and a client that goes on does not notice.
    #[arg(long, value_name = "SECONDS")]
    dead_conn_timeout: Option<u64>,

    /// Be the keeper of a device whose socket is standard input
    #[arg(long, hide = true, value_names = ["IDENTIFIER", "SIZE", "FLAGS", "LEASE"], num_args = 4, requires = "uri")]
    keep: Option<Vec<String>>,
}

/// `/dev/nbdN`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DeviceName(pub(super) u32);

impl FromStr for DeviceName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let digits = text.strip_prefix("/dev/nbd").unwrap_or_default();
        let number = digits.parse().ok().filter(|_| digits.bytes().all(|b| b.is_ascii_digit()));
        number
            .map(Self)
            .ok_or_else(|| Error::invalid(format!("'{}' is no device /dev/nbdN", text.escape_debug())))
    }
}

impl std::fmt::Display for DeviceName {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "/dev/nbd{}", self.0)
    }
}

pub(super) fn run(dir: &Path, args: &Args) -> Result<()> {
    let family = Nbd::open()?;
    if let Some(kept) = &args.keep {
        return keeper::run(&family, args, kept);
    }
    let (address, lease) = match &args.uri {
        Some(address) => (address.clone(), None),
        // Before it is looked at, so that it stays what it is from here on.
        None => (served_address(dir)?, Some(Lease::take(dir, &args.export)?)),
    };
    let attached = attach(&family, args, &address, lease.as_ref());
    if let (Err(_), Some(lease)) = (&attached, &lease) {
        // The first error is the one to tell.
        let _ = std::fs::remove_file(&lease.path);
    }
    let device = attached?;
    wait_for(device);
    output::print(&format!("{device}\n"))
}

fn attach(family: &Nbd, args: &Args, address: &Address, lease: Option<&Lease>) -> Result<DeviceName> {
    let Negotiated { socket, size, flags, block_size } =
        handshake::connect(address, &args.export.to_string())?;
    // A volume that is read-only is another snapshot whenever somebody connects.
    let moves = flags & flag::READ_ONLY != 0
        && matches!(args.export, ExportName::Target(Target { snapshot: None, .. }));
    let usual = if lease.is_some() && !moves { RESTART_SECONDS } else { 0 };
    let patience = args.dead_conn_timeout.unwrap_or(usual);
    let request = netlink::Connect {
        index: args.device.map(|device| device.0),
        size,
        block_size: kernel_block_size(size, block_size),
        server_flags: u64::from(flags),
        timeout: args.timeout,
        dead_conn_timeout: patience,
        identifier: format!("snapvol {}", uuid::Uuid::new_v4()),
    };
    let device = DeviceName(family.connect(&request, &socket)?);
    if patience > 0
        && let Err(error) = keeper::start(device, args, address, lease, &request, socket)
    {
        // Half of what was asked for is worse than nothing.
        family.disconnect(device.0)?;
        return Err(error);
    }
    if patience == 0
        && let Some(lease) = lease
    {
        // It ends with its connection, of which the daemon knows.
        let _ = std::fs::remove_file(&lease.path);
    }
    Ok(device)
}

/// The first address of the daemon that serves the store; unix before TCP.
fn served_address(dir: &Path) -> Result<Address> {
    let access = Access::open(dir)?;
    let served = access.is_served();
    let status = access.status();
    access.close()?;
    let status = status?;
    if !served {
        return Err(Error::conflict(format!("the store in {} is not served", dir.display()))
            .hint("start it with: snapvol serve"));
    }
    let addresses = status.listening.iter().filter_map(|text| text.parse::<Address>().ok());
    addresses.min_by_key(|address| !matches!(address, Address::Unix(_))).ok_or_else(|| {
        Error::new(ErrorKind::Unsupported, "the daemon listens nowhere that this program can reach")
            .hint("say where with --uri")
    })
}

/// What the kernel takes: from a sector to a page, and the size a multiple of it (the
/// kernel rounds the size down to whole blocks otherwise, and the end is lost).
fn kernel_block_size(size: u64, preferred: u32) -> u64 {
    let mut block_size = u64::from(preferred.clamp(512, 4096));
    while block_size > 512 && !size.is_multiple_of(block_size) {
        block_size /= 2;
    }
    block_size
}

/// Waits a moment until the device shows its size, so that whoever reads its name can
/// use it at once.
fn wait_for(device: DeviceName) {
    let until = Instant::now() + Duration::from_secs(2);
    let path = format!("/sys/block/nbd{}/size", device.0);
    while Instant::now() < until {
        match std::fs::read_to_string(&path) {
            Ok(size) if size.trim() != "0" => return,
            _ => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices() {
        assert_eq!("/dev/nbd12".parse::<DeviceName>().unwrap(), DeviceName(12));
        for bad in ["", "nbd0", "/dev/nbd", "/dev/nbd0p1", "/dev/nbd+1", "/dev/sda"] {
            assert!(bad.parse::<DeviceName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_kernel_sees_the_last_byte() {
        assert_eq!(kernel_block_size(1 << 30, 4096), 4096);
        assert_eq!(kernel_block_size(1 << 30, 65536), 4096);
        assert_eq!(kernel_block_size((1 << 30) + 1024, 4096), 1024);
        assert_eq!(kernel_block_size(512, 1), 512);
    }
}
