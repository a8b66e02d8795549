//! Two stores beside each other: A, where things come from, and B, where they go.

use std::path::PathBuf;

use super::{ok, scratch};

/// Two stores in a directory that goes with them.
pub struct Pair {
    pub dir: tempfile::TempDir,
}

impl Pair {
    /// B is an empty store, A is not there yet.
    pub fn without_a() -> Self {
        let pair = Self { dir: scratch() };
        ok(&pair.b(), &["init"]);
        pair
    }

    /// A has an empty volume `v`, B nothing.
    pub fn new(size: &str) -> Self {
        let pair = Self::without_a();
        ok(&pair.a(), &["init"]);
        ok(&pair.a(), &["create", "v", "--size", size]);
        pair
    }

    pub fn a(&self) -> PathBuf {
        self.dir.path().join("a")
    }

    pub fn b(&self) -> PathBuf {
        self.dir.path().join("b")
    }

    /// `v` in B, as a destination on this machine.
    pub fn there(&self) -> String {
        self.b().join("v").to_str().unwrap().to_owned()
    }
}
