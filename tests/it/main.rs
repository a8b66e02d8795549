//! The integration tests: one binary, a module per subject.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod badargs;
mod bookmarks;
mod cli;
mod clients;
mod copies;
mod damage;
mod death;
mod failures;
mod follow;
mod full;
mod hostile;
mod layers;
mod measuring;
mod power;
mod readme;
mod reconnect;
mod seeds;
mod ssh;
mod support;
mod verify;
mod vm;
