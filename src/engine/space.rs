//! The file system of a store: how much of it is free, and who is told when that is
//! little.
//!
//! A mark is told once when it is passed, and again only after there was clearly more:
//! space that goes up and down around a mark fills no log.

use super::api::{SpaceInfo, SpaceLevel};
use super::store::Store;
use super::volumes::dir_of;
use crate::error::{Error, Result};
use crate::io;
use futures::executor::block_on;
use std::fs;
use std::os::unix::fs::MetadataExt;

/// Free bytes below which space is critical whatever the size of the file system: the steps
/// in which one volume takes it.
const CRITICAL_BYTES: u64 = 64 << 20;
/// By how much of the file system a mark must be passed before it counts as left, in
/// hundredths.
const HYSTERESIS: u64 = 2;

impl SpaceLevel {
    /// The level at so many free bytes of `total`.
    fn of(free: u64, total: u64) -> Self {
        let below = |percent: u64| u128::from(free) * 100 < u128::from(total) * u128::from(percent);
        // A small file system may be meant to be small.
        if below(5) || free < CRITICAL_BYTES.min(total / 10) {
            Self::Critical
        } else if below(10) {
            Self::VeryLow
        } else if below(20) {
            Self::Low
        } else {
            Self::Ok
        }
    }
}

/// What was told of a file system last.
#[derive(Debug, Default)]
pub struct Watch {
    told: SpaceLevel,
    /// The store's directory is gone, and that was said.
    lost: bool,
}

/// What is to be said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Say {
    /// It is worse than what was told last.
    Less(SpaceLevel),
    /// It is well again.
    Enough,
}

impl Watch {
    fn see(&mut self, free: u64, total: u64) -> Option<Say> {
        let level = SpaceLevel::of(free, total);
        if level > self.told {
            self.told = level;
            return Some(Say::Less(level));
        }
        // As if there were a little less: a mark that was just passed still counts.
        let cautious = SpaceLevel::of(free.saturating_sub(total / 100 * HYSTERESIS), total);
        if cautious < self.told {
            self.told = cautious;
            return (cautious == SpaceLevel::Ok).then_some(Say::Enough);
        }
        None
    }
}

impl Store {
    /// The file system of the store; `reserved` are the bytes that its volumes keep back.
    pub(super) fn space(&self, reserved: u64) -> SpaceInfo {
        let (free, total) = io::file_system(self.dir()).unwrap_or_default();
        SpaceInfo { free, total, reserved, level: SpaceLevel::of(free, total) }
    }

    /// Looks at the file system and says in the log what is worth saying; to be called every
    /// few seconds. Where the directory of the store is gone, its volumes take no more
    /// writes: nobody would find them again.
    pub fn watch(&self, watch: &mut Watch) {
        if let Err(error) = self.is_in_place() {
            if !std::mem::replace(&mut watch.lost, true) {
                tracing::error!("{error}");
                self.fail_all(&error);
            }
            return;
        }
        self.watch_volumes();
        let Ok((free, total)) = io::file_system(self.dir()) else { return };
        let mib = free >> 20;
        let percent = free.saturating_mul(100) / total.max(1);
        match watch.see(free, total) {
            Some(Say::Less(SpaceLevel::Critical)) => {
                tracing::error!(
                    "{mib} MiB ({percent} %) are free for the store; delete snapshots or other files"
                );
            }
            Some(Say::Less(_)) => tracing::warn!("only {mib} MiB ({percent} %) are free for the store"),
            Some(Say::Enough) => {
                tracing::info!("{mib} MiB ({percent} %) are free for the store, enough again")
            }
            None => {}
        }
    }

    /// A volume whose files are gone takes no more writes either.
    fn watch_volumes(&self) {
        let names: Vec<String> = self.core.names();
        for name in names {
            let dir = dir_of(self.dir(), &name);
            let gone = fs::metadata(dir.join("journal"))
                .is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound);
            let Ok(handle) = self.core.engine_of(&name) else { continue };
            if !gone {
                continue;
            }
            let problem = format!("the files in {} were removed while they are served", dir.display());
            let failed = handle.call(move |engine| async move {
                // It may have been deleted in good order since.
                if let Ok(volume) = engine.volume(&name) {
                    volume.fail(Error::new(crate::ErrorKind::Io, problem));
                }
                Ok(())
            });
            if let Err(error) = block_on(failed) {
                tracing::error!("{error}");
            }
        }
    }

    /// Whether the store's directory still is the one that was opened.
    fn is_in_place(&self) -> Result<()> {
        let gone = |what: &str| {
            Error::new(crate::ErrorKind::Io, format!("the store {} {what}", self.dir().display()))
                .hint("stop the daemon; what it still holds can be read until then")
        };
        let there = fs::metadata(crate::store::paths::lock_file(self.dir()));
        match (there, self.locked()) {
            (Ok(there), Some((dev, ino))) if (there.dev(), there.ino()) != (dev, ino) => {
                Err(gone("was replaced while it is served"))
            }
            (Err(error), _) if error.kind() == std::io::ErrorKind::NotFound => {
                Err(gone("was removed while it is served"))
            }
            _ => Ok(()),
        }
    }

    fn fail_all(&self, error: &Error) {
        for handle in &self.core.handles {
            let error = error.duplicate();
            let failed = handle.call(move |engine| async move {
                for volume in engine.volumes.borrow().values() {
                    volume.fail(error.duplicate());
                }
                Ok(())
            });
            if let Err(error) = block_on(failed) {
                tracing::error!("{error}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn a_mark_is_told_once() {
        let mut watch = Watch::default();
        let mut see = |free| watch.see(free * GIB, 100 * GIB);
        assert_eq!(see(50), None);
        assert_eq!(see(19), Some(Say::Less(SpaceLevel::Low)));
        for free in [18, 20, 21, 19, 20] {
            assert_eq!(see(free), None, "{free}");
        }
        assert_eq!(see(9), Some(Say::Less(SpaceLevel::VeryLow)));
        assert_eq!(see(3), Some(Say::Less(SpaceLevel::Critical)));
        assert_eq!(see(6), None);
        assert_eq!(see(4), None);
        // Better, but not yet well.
        assert_eq!(see(15), None);
        assert_eq!(see(4), Some(Say::Less(SpaceLevel::Critical)));
        assert_eq!(see(30), Some(Say::Enough));
        assert_eq!(see(30), None);
    }

    #[test]
    fn little_is_little_on_large_file_systems_too() {
        assert_eq!(SpaceLevel::of(GIB, GIB), SpaceLevel::Ok);
        assert_eq!(SpaceLevel::of(50 << 20, 100 << 20), SpaceLevel::Ok);
        assert_eq!(SpaceLevel::of(50 << 20, 640 << 20), SpaceLevel::Critical);
        assert_eq!(SpaceLevel::of(0, 0), SpaceLevel::Ok);
    }
}
