//! The integration tests: one binary, a module per subject.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod badargs;
mod cli;
mod clients;
mod damage;
mod layers;
<<<<<<< HEAD
mod readme;
=======
mod seeds;
>>>>>>> hostile
mod ssh;
mod support;
mod vm;
