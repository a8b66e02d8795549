//! Bytes to structs and back, nothing else: every structure on disk has its codec here.

pub mod checkpoint;
pub mod layer;

#[cfg(test)]
mod page_test;
