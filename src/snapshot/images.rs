//! Before-images of many blocks at a time, for bulk writes.
//!
//! What the page cache has is read into one buffer, which the next group uses again; a
//! block that is not there is waited for, many at a time.

use super::volume::Volume;
use crate::error::Result;
use crate::store::save::Image;
use crate::types::{Block, Epoch};
use futures::future::join_all;
use std::rc::Rc;

impl Volume {
    /// Saves the before-images of sorted blocks as one group, and enters them in the open
    /// layer of the epoch.
    pub(super) async fn save_group(self: &Rc<Self>, needed: &[Block], epoch: Epoch) -> Result<()> {
        let images = self.read_images(needed).await?;
        self.append_images(&images, epoch).await
    }

    async fn read_images(&self, needed: &[Block]) -> Result<Vec<Image>> {
        let size = self.geometry().block_size as usize;
        let mut buffer = self.bulk.buffers.borrow_mut().take();
        buffer.clear();
        buffer.reserve(needed.len() * size);
        let mut missing = Vec::new();
        for (index, block) in needed.iter().enumerate() {
            // What can't be read now is read again, and its error told, below.
            let read = self.clone_volume.read_now(block.0 * size as u64, size, &mut buffer);
            if !read.unwrap_or(false) {
                buffer.resize((index + 1) * size, 0);
                missing.push(index);
            }
        }
        let reads = missing.iter().map(|index| self.clone_volume.read(needed[*index], 1));
        let mut failed = Vec::new();
        for (index, read) in missing.iter().zip(join_all(reads).await) {
            match read {
                Ok(data) => buffer[index * size..][..size].copy_from_slice(&data),
                Err(_) => failed.push(*index),
            }
        }
        let data = self.bulk.buffers.borrow_mut().share(buffer);
        let image = |(index, block): (usize, &Block)| {
            let data = data.slice(index * size..(index + 1) * size);
            Image { block: *block, data, damaged: false }
        };
        let mut images: Vec<Image> = needed.iter().enumerate().map(image).collect();
        for index in failed {
            let mut again = Vec::new();
            self.read_one_by_one(needed[index], 1, &mut again).await?;
            images.splice(index..=index, again);
        }
        Ok(images)
    }
}
