//! `set`: a volume's policy, changed later.

use crate::control::Access;
use crate::error::{Error, Result};
use crate::types::{Name, OnFull};
use std::str::FromStr;

/// Change a volume's policy
#[derive(clap::Args)]
pub(super) struct Args {
    /// The volume
    volume: Name,

    /// on-full=freeze, on-full=readonly or on-full=drop-oldest
    #[arg(value_name = "on-full=POLICY")]
    setting: Setting,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Setting {
    OnFull(OnFull),
}

impl FromStr for Setting {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text.split_once('=') {
            Some(("on-full", value)) => Ok(Self::OnFull(value.parse()?)),
            _ => Err(Error::invalid(format!(
                "'{}' is no setting; there is on-full=POLICY",
                text.escape_debug()
            ))),
        }
    }
}

pub(super) fn run(access: &Access, args: &Args) -> Result<()> {
    match args.setting {
        Setting::OnFull(on_full) => access.set_on_full(args.volume.as_str(), on_full),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings() {
        assert_eq!("on-full=readonly".parse::<Setting>().unwrap(), Setting::OnFull(OnFull::Readonly));
        for bad in ["", "on-full", "on-full=", "on-full=x", "size=1G"] {
            assert!(bad.parse::<Setting>().is_err(), "{bad}");
        }
    }
}
