//! (layer map)
