//! `create`: a new volume.

use super::args::parse_block_size;
use super::with_store;
use crate::engine::api::CreateOptions;
use crate::error::Result;
use crate::types::{Geometry, Name, OnFull, parse_size};
use std::path::Path;

/// Make a new, sparse volume
#[derive(clap::Args)]
pub(super) struct Args {
    /// The volume's name
    volume: Name,

    /// What clients see, in bytes; a multiple of 512, at most 64T
    #[arg(long, value_parser = parse_size)]
    size: u64,

    /// The unit of copying, in bytes: a power of two from 512 to 64K
    #[arg(long, value_name = "SIZE", default_value = "4K", value_parser = parse_block_size)]
    block_size: u32,

    /// How many blocks one bit of the map of blocks in use stands for: a power of two up to 32768
    #[arg(long, value_name = "N", default_value_t = 1)]
    granularity: u32,

    /// When space runs out: writers wait (freeze), fail (readonly), or the oldest snapshot
    /// that nobody needs goes (drop-oldest)
    #[arg(long, value_name = "POLICY", default_value = "freeze")]
    on_full: OnFull,
}

pub(super) fn run(dir: &Path, args: &Args) -> Result<()> {
    let options = options(args.size, args.block_size, args.granularity, args.on_full)?;
    with_store(dir, |access| access.create(args.volume.as_str(), &options))
}

/// The options of a volume, checked before any store is opened.
pub(super) fn options(
    size: u64,
    block_size: u32,
    granularity: u32,
    on_full: OnFull,
) -> Result<CreateOptions> {
    Geometry::new(size, block_size, granularity)?;
    Ok(CreateOptions { size, block_size, granularity, on_full })
}
