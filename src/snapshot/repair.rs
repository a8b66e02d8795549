//! Repair: what is damaged and stands somewhere else too is written again.
//!
//! It works on an open volume, so all that an open mends has been mended before. Nothing is
//! guessed and nothing that only one place has is touched: a before-image that rots stays
//! where it is and answers with an error. Why a crash is safe: a layer gets a new file
//! before the record that names it; a head or a tail of a group is overwritten with what it
//! held, and the group has the other one meanwhile; a checkpoint is one as always.

use super::mend::{GIVEN_UP, is_damage};
use super::seal::pages_only;
use super::volume::Volume;
use crate::error::Result;
use crate::format::state::LayerRecord;
use crate::map::{LayerContents, SealedLayer};
use std::rc::Rc;

impl Volume {
    /// Writes again whatever is damaged and has a second copy.
    ///
    /// # Errors
    /// `Io`, `Full`: what was not reached stays damaged.
    pub async fn repair(self: &Rc<Self>) -> Result<()> {
        self.seal_closed().await?;
        let layers = self.s.borrow().durable.layers.clone();
        for record in layers.iter().filter(|record| record.version != GIVEN_UP) {
            self.repair_layer(record).await?;
        }
        self.write_mended().await?;
        for (number, record) in self.save.records() {
            match self.save.mend(number, record.mark).await {
                // Another segment's file, or one that is gone: there is nothing to write.
                Err(error) if !is_damage(&error) => return Err(error),
                _ => {}
            }
        }
        // Both files in whole, the tail's pages and a new journal.
        self.s.borrow_mut().written = [None, None];
        self.checkpoint().await
    }

    async fn repair_layer(self: &Rc<Self>, record: &LayerRecord) -> Result<()> {
        let path = self.paths.layer(record.first, record.version);
        let whole = async {
            let layer = self.sources().open(&path, record).await?;
            layer.verify()?;
            Ok::<SealedLayer, crate::Error>(layer)
        };
        let layer = match whole.await {
            Ok(layer) => layer,
            Err(error) => {
                if self.s.borrow().mended.contains_key(&record.first) {
                    return Ok(());
                }
                let loaded = self.sources().instead(record, error).await?;
                let mut s = self.s.borrow_mut();
                if s.durable.layers.contains(record) {
                    s.take_in(record, loaded, &self.name());
                }
                return Ok(());
            }
        };
        let second = self.paths.layer_pages(record.first, record.version);
        if record.pages == 0 || self.sources().pages_of(&second, record).await.is_ok() {
            return Ok(());
        }
        let mut meta_pages = std::collections::BTreeMap::new();
        for page in layer.meta_pages() {
            meta_pages.extend(layer.meta_page(page)?.map(|content| (page, content)));
        }
        let contents = LayerContents {
            volume: self.uuid(),
            epochs: record.first..record.end,
            bits: crate::map::BitMap::new(),
            entries: crate::map::BlockMap::new(),
            meta_pages,
        };
        self.write_layer_file(&second, &pages_only(&contents)).await?;
        self.io.sync_dir(&self.paths.snapshots()).await
    }
}
