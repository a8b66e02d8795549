//! Before-images of a whole group at a time.
//!
//! What the page cache has is read into one buffer, which the next group uses again; what is
//! not there is waited for, all of it at once.

use super::settle::runs;
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
        let runs = runs(needed);
        let mut absent = Vec::new();
        if needed.len() >= self.tuning.beside_blocks_min {
            (buffer, absent) = self.clone_volume.read_runs(&runs, buffer).await?;
        } else {
            for (number, (first, count)) in runs.iter().enumerate() {
                let len = usize::try_from(*count).unwrap_or(usize::MAX) * size;
                // What can't be read now is read again, and its error told, below.
                let read = self.clone_volume.read_now(first.0 * size as u64, len, &mut buffer);
                if !read.unwrap_or(false) {
                    buffer.resize(buffer.len() + len, 0);
                    absent.push(number);
                }
            }
        }
        let mut at = 0;
        let mut missing = Vec::new();
        for (number, (first, count)) in runs.into_iter().enumerate() {
            if absent.binary_search(&number).is_ok() {
                missing.push((at, first, count));
            }
            at += usize::try_from(count).unwrap_or(usize::MAX) * size;
        }
        let reads = missing.iter().map(|(_, first, count)| self.clone_volume.read(*first, *count));
        let mut failed = Vec::new();
        for ((at, first, count), read) in missing.iter().zip(join_all(reads).await) {
            match read {
                Ok(data) => buffer[*at..][..data.len()].copy_from_slice(&data),
                Err(_) => failed.push((at / size, *first, *count)),
            }
        }
        let data = self.bulk.buffers.borrow_mut().share(buffer);
        let image = |(index, block): (usize, &Block)| {
            let data = data.slice(index * size..(index + 1) * size);
            Image { block: *block, data, damaged: false }
        };
        let mut images: Vec<Image> = needed.iter().enumerate().map(image).collect();
        for (index, first, count) in failed {
            let mut again = Vec::new();
            self.read_one_by_one(first, count, &mut again).await?;
            let place = index..index + again.len();
            images.splice(place, again);
        }
        Ok(images)
    }
}
