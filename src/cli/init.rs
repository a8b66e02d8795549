//! `init`: an empty store.

use crate::engine::Store;
use crate::error::Result;
use std::path::Path;

/// Make an empty store in DIR, which must be empty or absent
#[derive(clap::Args)]
pub(super) struct Args {}

pub(super) fn run(dir: &Path, _args: &Args) -> Result<()> {
    Store::init(dir)
}
