//! (layer format)
