//! Whole servers on sockets, with the client of this crate at the other end.
