//! Verification of an open volume: every layer, every group header, every before-image.

use super::volume::Volume;
use crate::error::{Error, Result};
use crate::io::Io;
use crate::map::{LayerRef, SealedLayer};
use crate::store::paths::VolumePaths;
use crate::types::Epoch;
use std::path::PathBuf;
use std::rc::Rc;

/// Something that is not as it should be.
#[derive(Clone, Debug)]
pub struct Found {
    /// The snapshot affected, by name.
    pub snapshot: Option<String>,
    /// The file.
    pub file: PathBuf,
    /// The block affected.
    pub block: Option<u64>,
    /// What is wrong.
    pub problem: String,
}

/// What was looked at.
#[derive(Clone, Debug, Default)]
pub struct Verified {
    /// Files read.
    pub files: u64,
    /// Bytes whose checksum was verified.
    pub bytes: u64,
    /// What is wrong.
    pub found: Vec<Found>,
}

impl Volume {
    /// Verifies all sealed layers; with `images`, also every before-image.
    ///
    /// # Errors
    /// Only what keeps it from looking; damage is reported in the result.
    pub async fn verify(self: &Rc<Self>, images: bool) -> Result<Verified> {
        let mut out = Verified::default();
        self.seal_closed().await?;
        let layers = self.s.borrow().durable.layers.clone();
        for layer in &layers {
            let path = self.paths.layer(layer.first, layer.version);
            let still = |v: &Volume| v.s.borrow().durable.layers.contains(layer);
            match check_layer(&self.io, self, &path, layer.first..layer.end).await {
                Ok(bytes) => out.bytes += bytes,
                Err(error) if still(self) => out.found.push(Found {
                    snapshot: self.owner_name(layer.first),
                    file: path,
                    block: None,
                    problem: error.to_string(),
                }),
                Err(_) => {}
            }
            out.files += 1;
        }
        if images && out.found.is_empty() {
            self.load_from(Epoch(0)).await?;
            self.verify_images(&mut out).await?;
        }
        Ok(out)
    }

    fn owner_name(&self, first: Epoch) -> Option<String> {
        let s = self.s.borrow();
        let owner = s.owner_of(first)?;
        s.durable.snapshots.iter().find(|r| r.epoch == owner).map(|r| r.name.clone())
    }

    async fn verify_images(self: &Rc<Self>, out: &mut Verified) -> Result<()> {
        let size = u64::from(self.geometry().block_size);
        let _pin = self.save.pin();
        let layers: Vec<(Epoch, LayerRef)> = self.s.borrow().chain.layers_from(Epoch(0)).collect();
        for (first, layer) in layers {
            let snapshot = self.owner_name(first);
            if snapshot.is_none() {
                continue;
            }
            let entries = match layer {
                LayerRef::Open(open) => open.borrow().blocks.sorted(),
                LayerRef::Loaded(sealed) => sealed.entries().collect::<Result<Vec<_>>>()?,
                LayerRef::Unloaded(_) | LayerRef::Lost(_) => Vec::new(),
            };
            for (block, image) in entries {
                let problem = if image.damaged {
                    Some("the block could not be read when it was to be saved".to_owned())
                } else {
                    self.save.read(image.addr, image.crc).await.err().map(|e: Error| e.to_string())
                };
                out.bytes += size;
                if let Some(problem) = problem {
                    out.found.push(Found {
                        snapshot: snapshot.clone(),
                        file: self.paths.segment(image.addr.segment),
                        block: Some(block.0),
                        problem,
                    });
                }
            }
        }
        out.files += self.save.numbers().len() as u64;
        Ok(())
    }
}

async fn check_layer(
    io: &Io,
    volume: &Volume,
    path: &std::path::Path,
    epochs: std::ops::Range<Epoch>,
) -> Result<u64> {
    let mapped = io.map(path).await?;
    let bytes = mapped.len() as u64;
    SealedLayer::open(mapped, volume.uuid(), epochs)?.verify()?;
    Ok(bytes)
}

/// The files of a volume that no record names, left by a crash: sealed layers and segments.
///
/// # Errors
/// `Io`.
pub(super) async fn leftovers(io: &Io, paths: &VolumePaths, volume: &Volume) -> Result<Vec<PathBuf>> {
    let (layers, segments, tail) = {
        let s = volume.s.borrow();
        let layers: Vec<PathBuf> = s
            .durable
            .layers
            .iter()
            .flat_map(|l| [paths.layer(l.first, l.version), paths.layer_pages(l.first, l.version)])
            .collect();
        let segments: Vec<PathBuf> = volume.save.numbers().into_iter().map(|n| paths.segment(n)).collect();
        let seq = s.durable.checkpoint.seq.0;
        (layers, segments, [paths.tail_pages(seq), paths.second_tail_pages(seq)])
    };
    let mut left = Vec::new();
    for name in io.list(&paths.snapshots()).await? {
        let path = paths.snapshots().join(name);
        if !tail.contains(&path) && !layers.contains(&path) {
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
