//! Metadata contexts: which ones an export has, and which of them a query names.
//!
//! `base:allocation` is on every export; `snapvol:delta:SNAP` marks what changed since
//! SNAP, for each snapshot that the export can be compared with. While listing, a query
//! that ends in a colon (`base:`, `snapvol:`, `snapvol:delta:`) stands for everything
//! below it; while selecting, only whole names count (NBD protocol, "Metadata
//! querying").

use std::collections::HashSet;
use std::fmt;

/// The prefix of the contexts that say what changed.
pub const DELTA_PREFIX: &str = "snapvol:delta:";
/// The context that says what is stored.
pub const ALLOCATION: &str = "base:allocation";

/// A metadata context.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Context {
    /// `base:allocation`.
    Allocation,
    /// `snapvol:delta:SNAP`.
    Delta(String),
}

impl fmt::Display for Context {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Allocation => out.write_str(ALLOCATION),
            Self::Delta(snapshot) => write!(out, "{DELTA_PREFIX}{snapshot}"),
        }
    }
}

/// A context that a client chose, and its number on this connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selected {
    /// The number that replies carry.
    pub id: u32,
    /// The context.
    pub context: Context,
}

/// Contexts found by queries, each once, in the order in which they were found.
#[derive(Debug, Default)]
pub struct Matches {
    in_order: Vec<Context>,
    seen: HashSet<Context>,
}

impl Matches {
    /// Adds what `query` finds while listing.
    pub fn list(&mut self, query: &str, delta_bases: &[String]) {
        if query == "base:" {
            self.add(Context::Allocation);
        } else if query == "snapvol:" || query == DELTA_PREFIX {
            // One pass is enough: a repeated wildcard finds nothing new.
            if self.in_order.len() <= delta_bases.len() {
                delta_bases.iter().for_each(|snapshot| self.add(Context::Delta(snapshot.clone())));
            }
        } else {
            self.select(query, delta_bases);
        }
    }

    /// Adds the context that `query` selects, if there is one.
    pub fn select(&mut self, query: &str, delta_bases: &[String]) {
        if query == ALLOCATION {
            self.add(Context::Allocation);
        } else if let Some(snapshot) = query.strip_prefix(DELTA_PREFIX)
            && delta_bases.iter().any(|base| base == snapshot)
        {
            self.add(Context::Delta(snapshot.to_owned()));
        }
    }

    /// What was found.
    #[must_use]
    pub fn into_vec(self) -> Vec<Context> {
        self.in_order
    }

    fn add(&mut self, context: Context) {
        if self.seen.insert(context.clone()) {
            self.in_order.push(context);
        }
    }
}

/// All contexts of an export.
#[must_use]
pub fn all(delta_bases: &[String]) -> Vec<Context> {
    let deltas = delta_bases.iter().map(|snapshot| Context::Delta(snapshot.clone()));
    std::iter::once(Context::Allocation).chain(deltas).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(found: Matches) -> Vec<String> {
        found.into_vec().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn wildcards_only_while_listing() {
        let bases = ["a".to_owned(), "b".to_owned()];
        let mut found = Matches::default();
        for query in ["base:", "base:allocation", "snapvol:delta:b", "snapvol:", "snapvol:delta:"] {
            found.list(query, &bases);
        }
        assert_eq!(names(found), ["base:allocation", "snapvol:delta:b", "snapvol:delta:a"]);

        let mut found = Matches::default();
        for query in ["base:", "snapvol:delta:", "snapvol:delta:c", "qemu:dirty-bitmap:x", "base:other", ""] {
            found.select(query, &bases);
        }
        found.select("snapvol:delta:a", &bases);
        found.select("base:allocation", &bases);
        assert_eq!(names(found), ["snapvol:delta:a", "base:allocation"]);
    }
}
