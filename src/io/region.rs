//! Mapped memory: files mapped for reading, and the region that stages writes.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

/// A whole file, mapped for reading and never changed afterwards.
#[derive(Clone)]
pub struct Mapped(Arc<dyn AsRef<[u8]> + Send + Sync>);

impl Mapped {
    /// Wraps whatever holds the bytes.
    #[must_use]
    pub fn new(bytes: Arc<dyn AsRef<[u8]> + Send + Sync>) -> Self {
        Self(bytes)
    }
}

impl Deref for Mapped {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        (*self.0).as_ref()
    }
}

impl fmt::Debug for Mapped {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Mapped({} bytes)", self.len())
    }
}

/// Memory that outlives the process but not the boot.
///
/// One thread uses it. Stores reach the memory in program order, so a process that
/// dies leaves a prefix of them; a single store of many bytes may be left in part.
pub trait Region: fmt::Debug {
    /// Bytes in it.
    fn len(&self) -> usize;

    /// Whether it has no bytes.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Copies `data` to `offset`.
    ///
    /// # Panics
    /// If that is outside the region.
    fn write(&self, offset: usize, data: &[u8]);

    /// Copies from `offset` into `data`.
    ///
    /// # Panics
    /// If that is outside the region.
    fn read(&self, offset: usize, data: &mut [u8]);
}
