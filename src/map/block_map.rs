//! The block map: block → its before-image, hashed and in memory.
//!
//! The first image of a block wins ([`BlockMap::insert`] keeps what is there): a later
//! one was taken of data that no snapshot of this map ever saw.

use crate::types::{Block, SaveAddr};
use rustc_hash::FxHashMap;
use std::sync::Arc;

/// Where a before-image is, and what it must look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SavedImage {
    /// Its place in the save volume.
    pub addr: SaveAddr,
    /// crc32c of the image.
    pub crc: u32,
    /// The image could not be read when it was to be saved: reading it gives `Corrupt`.
    pub damaged: bool,
}

/// The images of some blocks. A copy shares them until one side changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BlockMap(Arc<FxHashMap<u64, SavedImage>>);

impl BlockMap {
    /// A map without images.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The image of that block.
    #[must_use]
    pub fn get(&self, block: Block) -> Option<SavedImage> {
        self.0.get(&block.0).copied()
    }

    /// Adds an image unless the block has one; true if it was added.
    pub fn insert(&mut self, block: Block, image: SavedImage) -> bool {
        match Arc::make_mut(&mut self.0).entry(block.0) {
            std::collections::hash_map::Entry::Occupied(_) => false,
            std::collections::hash_map::Entry::Vacant(slot) => {
                slot.insert(image);
                true
            }
        }
    }

    /// Forgets the image of that block and returns it.
    pub fn remove(&mut self, block: Block) -> Option<SavedImage> {
        Arc::make_mut(&mut self.0).remove(&block.0)
    }

    /// Images in the map.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is no image.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All images, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (Block, SavedImage)> + '_ {
        self.0.iter().map(|(&block, &image)| (Block(block), image))
    }

    /// All images, by block.
    #[must_use]
    pub fn sorted(&self) -> Vec<(Block, SavedImage)> {
        let mut entries: Vec<_> = self.iter().collect();
        entries.sort_unstable_by_key(|(block, _)| *block);
        entries
    }
}

impl FromIterator<(Block, SavedImage)> for BlockMap {
    fn from_iter<T: IntoIterator<Item = (Block, SavedImage)>>(entries: T) -> Self {
        let mut map = Self::new();
        for (block, image) in entries {
            map.insert(block, image);
        }
        map
    }
}
