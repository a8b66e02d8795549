//! (layer control)
