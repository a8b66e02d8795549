//! The integration tests: one binary, a module per subject.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod backlog;
mod badargs;
mod bookmarks;
mod cli;
mod clients;
mod copies;
mod damage;
mod death;
mod drill;
mod failures;
mod follow;
mod full;
mod groups;
mod hostile;
mod layers;
mod measuring;
mod metrics;
mod power;
mod readme;
mod reconnect;
mod restricted;
mod roles;
mod schedule;
mod seeds;
mod ssh;
mod support;
mod update;
mod verify;
mod vm;
