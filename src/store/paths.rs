//! Where the files of a store lie.

use crate::types::Epoch;
use std::path::{Path, PathBuf};

/// The directory of one volume.
#[derive(Clone, Debug)]
pub struct VolumePaths(pub PathBuf);

impl VolumePaths {
    /// Production data.
    #[must_use]
    pub fn clone_volume(&self) -> PathBuf {
        self.0.join("clone")
    }

    /// The journal.
    #[must_use]
    pub fn journal(&self) -> PathBuf {
        self.0.join("journal")
    }

    /// The second copy of what the journal begins with.
    #[must_use]
    pub fn journal_copy(&self) -> PathBuf {
        self.0.join("journal.copy")
    }

    /// The same, not in force yet.
    #[must_use]
    pub fn journal_copy_new(&self) -> PathBuf {
        self.0.join("journal.copy.new")
    }

    /// A journal that is not in force yet.
    #[must_use]
    pub fn journal_new(&self) -> PathBuf {
        self.0.join("journal.new")
    }

    /// The reserve.
    #[must_use]
    pub fn reserve(&self) -> PathBuf {
        self.0.join("reserve")
    }

    /// The stage.
    #[must_use]
    pub fn stage(&self) -> PathBuf {
        self.0.join("stage")
    }

    /// The directory of segments.
    #[must_use]
    pub fn save(&self) -> PathBuf {
        self.0.join("save")
    }

    /// One segment.
    #[must_use]
    pub fn segment(&self, number: u32) -> PathBuf {
        self.save().join(format!("{number:08}"))
    }

    /// The directory of sealed layers.
    #[must_use]
    pub fn snapshots(&self) -> PathBuf {
        self.0.join("snapshots")
    }

    /// A sealed layer.
    #[must_use]
    pub fn layer(&self, first: Epoch, version: u64) -> PathBuf {
        self.snapshots().join(format!("{:012}-{version}", first.0))
    }

    /// The before-pages of a sealed layer once more.
    #[must_use]
    pub fn layer_pages(&self, first: Epoch, version: u64) -> PathBuf {
        self.snapshots().join(format!("{:012}-{version}.pages", first.0))
    }

    /// The tail's meta before-pages of a checkpoint.
    #[must_use]
    pub fn tail_pages(&self, seq: u64) -> PathBuf {
        self.snapshots().join(format!("tail-{seq}"))
    }

    /// The same once more.
    #[must_use]
    pub fn second_tail_pages(&self, seq: u64) -> PathBuf {
        self.snapshots().join(format!("tail-{seq}.copy"))
    }

    /// What was touched since the mark of that epoch, up to a checkpoint.
    #[must_use]
    pub fn touched(&self, mark: Epoch, seq: u64) -> PathBuf {
        self.snapshots().join(format!("touched-{:012}-{seq}", mark.0))
    }

    /// A checkpoint of the meta bit map: 1 is A, 2 is B.
    #[must_use]
    pub fn checkpoint(&self, file: u8) -> PathBuf {
        self.0.join(if file == 1 { "meta-A" } else { "meta-B" })
    }
}

/// The file with the store's identity.
#[must_use]
pub fn store_file(store: &Path) -> PathBuf {
    store.join("store")
}

/// The file that the owning process locks.
#[must_use]
pub fn lock_file(store: &Path) -> PathBuf {
    store.join("lock")
}

/// The directory of volumes.
#[must_use]
pub fn volumes(store: &Path) -> PathBuf {
    store.join("volumes")
}

/// The batches that the store committed.
#[must_use]
pub fn batches(store: &Path) -> PathBuf {
    store.join("batches")
}
