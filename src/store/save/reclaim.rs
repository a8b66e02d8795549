//! Segments that hold nothing any more: which they are, and what becomes of them.

use super::{REUSABLE_MAX, SaveVolume};
use crate::error::Result;
use crate::format::journal::Record;
use crate::store::journal::Journal;
use std::collections::BTreeSet;

impl SaveVolume {
    /// Deletions became durable: finds segments that hold nothing any more.
    pub fn deleted(&self) {
        let mut inner = self.inner.borrow_mut();
        let version = inner.version;
        inner.version += 1;
        let busy: BTreeSet<u32> = inner
            .waiting
            .iter()
            .map(|(_, n)| *n)
            .chain(inner.reusable.iter().copied())
            .chain(inner.active)
            .chain(inner.spares.iter().copied())
            .collect();
        let empty: Vec<u32> = inner
            .segments
            .iter()
            .filter(|(n, s)| s.live == 0 && s.closed && s.prefix >= s.end && !busy.contains(n))
            .map(|(n, _)| *n)
            .collect();
        inner.waiting.extend(empty.into_iter().map(|n| (version, n)));
    }

    /// Frees what no reader can need any more: keeps some segments for reuse, removes
    /// the other files.
    ///
    /// # Errors
    /// `Io`.
    pub async fn reclaim(&self, journal: &Journal) -> Result<()> {
        let free: Vec<u32> = {
            let mut inner = self.inner.borrow_mut();
            let oldest = inner.pins.keys().next().copied().unwrap_or(u64::MAX);
            let (free, keep) =
                std::mem::take(&mut inner.waiting).into_iter().partition(|(version, _)| *version < oldest);
            inner.waiting = keep;
            let free: Vec<(u64, u32)> = free;
            let mut remove = Vec::new();
            for (_, number) in free {
                let sound = inner.segments.get(&number).is_some_and(|s| !s.broken);
                if sound && inner.reusable.len() < REUSABLE_MAX {
                    inner.reusable.insert(number);
                } else {
                    remove.push(number);
                }
            }
            remove
        };
        self.remove(journal, free).await
    }

    /// Gives the space of segments that are kept for reuse back to the file system; false
    /// if there are none.
    ///
    /// # Errors
    /// `Io`.
    pub async fn give_back(&self, journal: &Journal) -> Result<bool> {
        let kept: Vec<u32> = std::mem::take(&mut self.inner.borrow_mut().reusable).into_iter().collect();
        let some = !kept.is_empty();
        self.remove(journal, kept).await?;
        Ok(some)
    }

    async fn remove(&self, journal: &Journal, free: Vec<u32>) -> Result<()> {
        if free.is_empty() {
            return Ok(());
        }
        for number in &free {
            {
                let mut inner = self.inner.borrow_mut();
                inner.segments.remove(number);
                inner.open.remove(number);
            }
            self.push(journal, Record::Freed { segment: *number });
        }
        journal.sync().await?;
        for number in free {
            self.io.remove(&self.paths.segment(number)).await?;
        }
        self.io.sync_dir(&self.paths.save()).await
    }
}
