//! Bytes to structs and back, nothing else: it opens nothing and decides nothing.

pub mod stream;
