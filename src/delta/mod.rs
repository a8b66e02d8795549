//! (layer delta)
