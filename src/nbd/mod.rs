//! (layer nbd)
