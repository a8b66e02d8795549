//! What a volume knows about its blocks: which are in use, which were saved, and where.
//!
//! [`BitMap`] is the one bit map type (meta bit maps, a snapshot's bit map, retained and
//! stale maps). [`SealedLayer`] is the before-images of some epochs as a file,
//! [`LayerChain`] all layers of a volume as one thing to ask.

pub mod bitmap;
pub mod block_map;
pub mod chain;
pub mod checkpoint;
pub mod layer;
pub mod page;

pub use bitmap::BitMap;
pub use block_map::{BlockMap, SavedImage};
pub use chain::{LayerChain, LayerRef, OpenLayer};
pub use checkpoint::Checkpoint;
pub use layer::{LayerContents, SealedLayer};
pub use page::{PAGE_BITS, PAGE_WORDS, Page, Words};
