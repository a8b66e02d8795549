//! The short way: requests that need no wait are done in one step, without a task.
//!
//! Each function looks at everything that could make it wait; if anything does, it changes
//! nothing and the caller goes the long way, which is always right. As nothing else runs
//! between its first look and its last word, it needs no locks and no admission.

use super::volume::Volume;
use crate::error::Result;
use crate::types::Block;
use bytes::BytesMut;
use std::rc::Rc;

impl Volume {
    /// Appends a range of production to `buffer` if it lies in the page cache in one piece
    /// (true); else the buffer stays as it was.
    ///
    /// # Errors
    /// `OutOfRange`, `Io`; the buffer stays as it was.
    pub fn read_now(self: &Rc<Self>, offset: u64, len: usize, buffer: &mut BytesMut) -> Result<bool> {
        self.in_range(offset, len as u64)?;
        {
            let s = self.s.borrow();
            let blocks = s.durable.geometry.blocks_touching(offset, len as u64);
            let granules = s.granules(&blocks);
            let whole = s.production.runs(granules.clone()).next() == Some((granules, true));
            if !whole || (!s.slots.is_empty() && blocks.into_iter().any(|block| s.slots.has(Block(block)))) {
                return Ok(false);
            }
        }
        self.clone_volume.read_now(offset, len, buffer).map_err(|error| self.named(error))
    }
}
