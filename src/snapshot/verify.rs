//! Verification of an open volume: what its files hold is read again, while it goes on.

use super::inspect::{Inspector, Verified};
use super::volume::Volume;
use crate::error::Result;
use crate::format::journal::Record;
use crate::format::state::VolumeState;
use crate::io::Io;
use crate::map::{LayerRef, SavedImage};
use crate::store::paths::VolumePaths;
use crate::types::{Block, Epoch};
use std::path::PathBuf;
use std::rc::Rc;

impl Volume {
    /// Verifies journal, checkpoint, sealed layers and segments; with `images`, also every
    /// before-image. What a deletion or a seal replaces meanwhile is no finding.
    ///
    /// # Errors
    /// Only what keeps it from looking; damage is reported in the result.
    pub async fn verify(self: &Rc<Self>, images: bool) -> Result<Verified> {
        self.seal_closed().await?;
        // No segment that is live now is used again meanwhile.
        let _pin = self.save.pin();
        let state = self.state_now();
        let mut look = Inspector {
            sources: self.sources(),
            state: &state,
            images,
            clean: false,
            out: Verified::default(),
        };
        self.verify_journal(&mut look).await?;
        for record in &state.layers {
            let before = look.out.found.len();
            look.layer(record).await?;
            if !self.s.borrow().durable.layers.contains(record) {
                look.out.found.truncate(before);
            }
            self.io.step_aside().await;
        }
        // Images of groups that are in no sealed layer: those that the open layers name.
        look.images = false;
        for (number, record) in &state.segments {
            let before = look.out.found.len();
            look.segment(*number, record, look.is_live(*number)).await;
            let now = self.save.records();
            if now.get(number).is_none_or(|now| now.generation != record.generation) {
                look.out.found.truncate(before);
            }
            self.io.step_aside().await;
        }
        if images {
            for (epoch, block, image) in self.open_images() {
                look.image(epoch, block, image).await;
            }
        }
        Ok(look.out)
    }

    /// The small state with the segments as they are now.
    fn state_now(&self) -> VolumeState {
        let mut state = self.s.borrow().durable.clone();
        state.segments = self.save.records();
        state
    }

    /// The before-images that the open layers name, those that some snapshot has.
    fn open_images(&self) -> Vec<(Epoch, Block, SavedImage)> {
        let s = self.s.borrow();
        let mut all = Vec::new();
        for (first, layer) in s.chain.layers_from(Epoch(0)) {
            if let (LayerRef::Open(open), Some(_)) = (layer, s.owner_of(first)) {
                let images = open.borrow().blocks.sorted();
                all.extend(images.into_iter().map(|(block, image)| (first, block, image)));
            }
        }
        all
    }

    /// The journal in force, and the checkpoint that it starts from; no other one is made
    /// meanwhile.
    async fn verify_journal(self: &Rc<Self>, look: &mut Inspector<'_>) -> Result<()> {
        while self.checkpointing.replace(true) {
            self.changed.wait().await;
        }
        let result = self.verify_journal_now(look).await;
        self.checkpointing.set(false);
        self.changed.notify();
        result
    }

    async fn verify_journal_now(&self, look: &mut Inspector<'_>) -> Result<()> {
        look.out.files += 1;
        match self.journal.verify().await {
            Ok(replay) => {
                look.out.bytes += replay.end;
                match replay.records.first() {
                    Some((_, Record::State(first))) => self.verify_checkpoint(look, first).await,
                    _ => Ok(()),
                }
            }
            Err(error) if super::mend::is_damage(&error) => {
                let advice =
                    "the next checkpoint begins a new file: close the store in good order, and check it";
                look.out.file(self.paths.journal(), &error, advice);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Both files of the checkpoint. One that is damaged is written anew as a whole by the
    /// next one.
    async fn verify_checkpoint(&self, look: &mut Inspector<'_>, first: &VolumeState) -> Result<()> {
        look.clean = self.s.borrow().written.iter().all(Option::is_some);
        let before = look.out.found.len();
        look.checkpoint(first).await?;
        for record in &first.touched {
            let path = self.paths.touched(record.mark, record.file);
            if look.out.found[before..].iter().any(|found| found.file == path) {
                self.s.borrow_mut().touched.distrust(record.mark);
            }
        }
        for file in 1..=2 {
            let path = self.paths.checkpoint(file);
            if look.out.found[before..].iter().any(|found| found.file == path) {
                self.s.borrow_mut().written[usize::from(file - 1)] = None;
            }
        }
        Ok(())
    }
}

/// The files of a volume that no record names, left by a crash: sealed layers and segments.
///
/// # Errors
/// `Io`.
pub(super) async fn leftovers(io: &Io, paths: &VolumePaths, volume: &Volume) -> Result<Vec<PathBuf>> {
    let (layers, segments, tail, touched) = {
        let s = volume.s.borrow();
        let layers: Vec<PathBuf> = s
            .durable
            .layers
            .iter()
            .flat_map(|l| [paths.layer(l.first, l.version), paths.layer_pages(l.first, l.version)])
            .collect();
        let segments: Vec<PathBuf> = volume.save.numbers().into_iter().map(|n| paths.segment(n)).collect();
        let seq = s.durable.checkpoint.seq.0;
        let touched = volume.touched_files(&s.durable.touched);
        (layers, segments, [paths.tail_pages(seq), paths.second_tail_pages(seq)], touched)
    };
    let mut left = Vec::new();
    for name in io.list(&paths.snapshots()).await? {
        let path = paths.snapshots().join(name);
        if !tail.contains(&path) && !touched.contains(&path) && !layers.contains(&path) {
            left.push(path);
        }
    }
    for name in io.list(&paths.save()).await? {
        let path = paths.save().join(name);
        if !segments.contains(&path) {
            left.push(path);
        }
    }
    Ok(left)
}
