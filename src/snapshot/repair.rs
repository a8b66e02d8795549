//! Repair: what is damaged and stands somewhere else too is written again.
//!
//! It works on an open volume, so all that an open mends has been mended before. Nothing is
//! guessed and nothing that only one place has is touched: a before-image that rots stays
//! where it is and answers with an error. Why a crash is safe: a layer gets a new file
//! before the record that names it; a head or a tail of a group is overwritten with what it
//! held, and the group has the other one meanwhile; a checkpoint is one as always.

use super::mend::{GIVEN_UP, is_damage};
use super::recover;
use super::seal::pages_only;
use super::volume::Volume;
use crate::error::Result;
use crate::format::journal::{Frame, Record, encode_frame};
use crate::format::state::LayerRecord;
use crate::io::{Io, OpenHow};
use crate::map::{LayerContents, SealedLayer};
use crate::store::paths::VolumePaths;
use crate::store::replay;
use std::rc::Rc;

/// Gives up what was staged, where a closed volume can't be opened for want of it: the
/// volume goes on with what was flushed, as after a power cut. The stage is kept under another
/// name. Nothing is done to a volume whose stage is whole, or means nothing.
///
/// # Errors
/// `Io`, `Corrupt`.
pub async fn give_up_stage(io: &Io, paths: &VolumePaths) -> Result<()> {
    let replay = replay::read(io, &paths.journal()).await?;
    let Some(error) = recover::stage_lost(io, paths, &replay).await? else { return Ok(()) };
    tracing::error!("{error}; what was not flushed is given up");
    // A boot that never was: the stage means nothing, and the journal stands for it.
    let seq = replay.records.last().map(|(seq, _)| seq.next()).unwrap_or_default();
    let frame =
        encode_frame(replay.header.number, Frame { seq, durable: 0 }, &Record::Open { boot: [0; 16] });
    let file = io.open(&paths.journal(), OpenHow::Write).await?;
    let written = async {
        io.write_all(file, replay.end, frame).await?;
        io.sync(file).await
    };
    let written = written.await;
    io.close(file);
    written?;
    match io.rename(&paths.stage(), &paths.stage().with_extension("damaged")).await {
        Err(error) if !is_damage(&error) => return Err(error),
        _ => {}
    }
    io.sync_dir(&paths.0).await
}

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
        self.write_layer_file(&second, crate::map::layer::encode(&pages_only(&contents))).await?;
        self.io.sync_dir(&self.paths.snapshots()).await
    }
}
