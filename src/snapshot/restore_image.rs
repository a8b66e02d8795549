//! Restoring a damaged before-image from a copy that somebody else has.
//!
//! The map has the checksum that the block had when it was saved. Only bytes with that
//! checksum are written, in place, and only over bytes that do not have it; so whatever crash
//! comes, the image is as damaged as it was, or right. A block that could not even be read
//! when it was to be saved has no checksum that would prove anything, and stays damaged.

use super::reader::SnapshotReader;
use crate::error::Result;
use crate::types::Block;
use bytes::{Bytes, BytesMut};

impl SnapshotReader {
    /// Puts the block at `offset` right with what a copy of the snapshot has there. False:
    /// nothing proves that these are its bytes, and nothing was done.
    ///
    /// # Errors
    /// `OutOfRange`; `Corrupt` when the maps can't be read; `Io`.
    pub async fn restore_block(&self, offset: u64, content: &[u8]) -> Result<bool> {
        self.check_range(offset, content.len() as u64)?;
        let volume = self.volume();
        volume.load_from(self.epoch()).await?;
        let _pin = volume.save.pin();
        let size = volume.geometry().block_size as usize;
        let block = Block(offset / size as u64);
        let found = volume.s.borrow().chain.find(block, self.epoch())?;
        let Some((_, image)) = found.filter(|(_, image)| !image.damaged) else { return Ok(false) };
        // The last block of a volume may be a part of one; zeros were saved behind it.
        let mut whole = BytesMut::from(content);
        whole.resize(size, 0);
        let whole: Bytes = whole.freeze();
        if !offset.is_multiple_of(size as u64) || content.len() > size || crc32c::crc32c(&whole) != image.crc
        {
            return Ok(false);
        }
        if volume.save.read(image.addr, image.crc).await.is_err() {
            volume.save.restore(image.addr, whole).await?;
            // What was written may not be what can be read: then it is an error.
            volume.save.read(image.addr, image.crc).await?;
        }
        Ok(true)
    }
}
