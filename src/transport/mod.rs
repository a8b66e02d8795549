//! (layer transport)
