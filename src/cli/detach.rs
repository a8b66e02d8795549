//! `detach`: the kernel lets go of an export.

use super::attach::DeviceName;
use super::attach::netlink;
use crate::error::{Error, ErrorKind, Result};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Detach a device of the kernel's nbd driver
#[derive(clap::Args)]
pub(super) struct Args {
    /// The device; unmount it first
    #[arg(value_name = "/dev/nbdN")]
    device: DeviceName,
}

pub(super) fn run(args: &Args) -> Result<()> {
    netlink::Nbd::open()?.disconnect(args.device.0)?;
    // The kernel has the pid file for as long as the device is connected.
    let connected = PathBuf::from(format!("/sys/block/nbd{}/pid", args.device.0));
    let until = Instant::now() + Duration::from_secs(10);
    while connected.exists() {
        if Instant::now() >= until {
            return Err(Error::new(
                ErrorKind::Interrupted,
                format!("{} is still being detached", args.device),
            )
            .hint("something has it open; unmount it"));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
