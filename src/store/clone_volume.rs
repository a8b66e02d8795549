//! The clone volume: the file that holds production data, each block in its place.

use super::event::Syncer;
use crate::error::{Error, Result};
use crate::io::{FileId, Io, Shown};
use crate::types::{Block, Geometry};
use bytes::{Bytes, BytesMut};
use std::cell::Cell;

/// An open clone volume.
pub struct CloneVolume {
    io: Io,
    file: FileId,
    block_size: u64,
    /// Its syncs.
    pub syncer: Syncer,
    /// Bytes of the file: the size of the volume or of its largest snapshot, whole blocks.
    len: Cell<u64>,
}

impl CloneVolume {
    /// Over an open file of `len` bytes.
    #[must_use]
    pub fn new(io: Io, file: FileId, geometry: Geometry, len: u64) -> Self {
        let syncer = Syncer::new(io.clone(), file);
        Self { io, file, block_size: u64::from(geometry.block_size), syncer, len: Cell::new(len) }
    }

    /// Bytes that the file of a volume of that size has: whole blocks.
    #[must_use]
    pub fn file_len(geometry: Geometry, size: u64) -> u64 {
        size.next_multiple_of(u64::from(geometry.block_size))
    }

    /// Makes the file at least so long.
    ///
    /// # Errors
    /// `Unsupported` when the file system has no files of that size.
    pub async fn grow(&self, len: u64) -> Result<()> {
        if len > self.len.get() {
            self.io.truncate(self.file, len).await.map_err(too_long)?;
            self.syncer.wrote();
            self.len.set(len);
        }
        Ok(())
    }

    /// Reads `count` blocks.
    ///
    /// # Errors
    /// `Io`, naming the block.
    pub async fn read(&self, block: Block, count: u64) -> Result<BytesMut> {
        let len =
            usize::try_from(count * self.block_size).map_err(|_| Error::invalid("a read is too long"))?;
        self.io
            .read(self.file, block.0 * self.block_size, len)
            .await
            .map_err(|e| e.context(format!("clone volume, block {block}")))
    }

    /// Appends runs of blocks to `into` beside this thread; returns it, and the numbers of the
    /// runs that were not at hand: zeros are in their places.
    ///
    /// # Errors
    /// `Io`.
    pub async fn read_runs(&self, runs: &[(Block, u64)], into: BytesMut) -> Result<(BytesMut, Vec<usize>)> {
        let bytes = |count: u64| usize::try_from(count * self.block_size).unwrap_or(usize::MAX);
        let pieces = runs.iter().map(|(first, count)| (first.0 * self.block_size, bytes(*count))).collect();
        self.io.read_each(self.file, pieces, into).await.map_err(|e| e.context("clone volume"))
    }

    /// Appends bytes to `buffer` if they are at hand (true); else it stays as it was.
    ///
    /// # Errors
    /// `Io`, naming the block.
    pub fn read_now(&self, offset: u64, len: usize, buffer: &mut BytesMut) -> Result<bool> {
        let read = self.io.read_now(self.file, offset, len, buffer);
        read.map_err(|e| e.context(format!("clone volume, block {}", offset / self.block_size)))
    }

    /// Bytes to be sent as they are then, if they are at hand.
    pub fn show(&self, offset: u64, len: usize) -> Option<Shown> {
        self.io.show(self.file, offset, len)
    }

    /// Writes whole blocks if that is done at once; `None` when it has to be waited for.
    pub fn write_now(&self, block: Block, data: &Bytes) -> Option<Result<()>> {
        let written = self.io.write_now(self.file, block.0 * self.block_size, data)?;
        self.syncer.wrote();
        Some(written.map_err(|e| e.context(format!("clone volume, block {block}"))))
    }

    /// Writes whole blocks.
    ///
    /// # Errors
    /// `Io`, `Full`, naming the block.
    pub async fn write(&self, block: Block, data: Vec<Bytes>) -> Result<()> {
        let result = self.io.write_all(self.file, block.0 * self.block_size, data).await;
        // A write that failed may have changed something all the same.
        self.syncer.wrote();
        result.map_err(|e| e.context(format!("clone volume, block {block}")))
    }

    /// Writes runs of whole blocks, disjoint, beside this thread.
    ///
    /// # Errors
    /// `Io`, `Full`: any of them may have been written.
    pub async fn write_runs(&self, runs: impl Iterator<Item = (Block, Bytes)>) -> Result<()> {
        let pieces = runs.map(|(first, data)| (first.0 * self.block_size, data)).collect();
        let result = self.io.write_each(self.file, pieces).await;
        // Some may have been written all the same.
        self.syncer.wrote();
        result.map_err(|e| e.context("clone volume"))
    }

    /// Allocates space for blocks; what they hold stays.
    ///
    /// # Errors
    /// `Full`, `Io`, naming the block.
    pub async fn allocate(&self, block: Block, count: u64) -> Result<()> {
        let result = self.io.allocate(self.file, block.0 * self.block_size, count * self.block_size).await;
        self.syncer.wrote();
        result.map_err(|e| e.context(format!("clone volume, block {block}")))
    }

    /// Gives the space of blocks back to the file system.
    ///
    /// # Errors
    /// `Io`.
    pub async fn punch(&self, block: Block, count: u64) -> Result<()> {
        let result = self.io.punch(self.file, block.0 * self.block_size, count * self.block_size).await;
        self.syncer.wrote();
        result
    }

    /// Bytes of the file system that it occupies.
    ///
    /// # Errors
    /// `Io`.
    pub async fn allocated(&self) -> Result<u64> {
        self.io.allocated(self.file).await
    }
}

impl Drop for CloneVolume {
    fn drop(&mut self) {
        self.io.close(self.file);
    }
}

/// Says what a person can do when a file can't have that size.
#[must_use]
pub fn too_long(error: Error) -> Error {
    error.context("the file system takes no file of that size").hint(
        "ext4 ends at 16T a file; use a smaller size, or a store on a file system with larger files such as XFS",
    )
}
