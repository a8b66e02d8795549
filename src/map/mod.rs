//! What a volume knows about its blocks: which are in use, which were saved, and where.
//!
//! [`BitMap`] is the one bit map type (meta bit maps, a snapshot's bit map, retained and
//! stale maps).

pub mod bitmap;
pub mod page;

pub use bitmap::BitMap;
pub use page::{PAGE_BITS, PAGE_WORDS, Page, Words};
