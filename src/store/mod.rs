//! (layer store)
