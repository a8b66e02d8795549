//! Reading production: the stage, then the meta bit map, then the clone volume.

use super::volume::Volume;
use crate::error::Result;
use crate::types::Block;
use bytes::Bytes;
use futures::future::join_all;
use std::ops::Range;
use std::rc::Rc;

/// A piece of what a read found, in order of offset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// These bytes.
    Data(Bytes),
    /// So many zeros where nothing is stored.
    Hole(u64),
}

impl Piece {
    /// Bytes in it.
    #[must_use]
    pub fn len(&self) -> u64 {
        match self {
            Self::Data(data) => data.len() as u64,
            Self::Hole(len) => *len,
        }
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Where the blocks of a run are found.
#[derive(Clone, Debug)]
pub(super) enum Source {
    /// Nowhere: zeros.
    Hole(Range<u64>),
    /// In the clone volume.
    Clone(Range<u64>),
    /// Here already.
    Data(u64, Bytes),
}

/// Adds blocks to the last source where they continue it.
pub(super) fn add_source(sources: &mut Vec<Source>, next: Source) {
    match (sources.last_mut(), &next) {
        (Some(Source::Hole(last)), Source::Hole(more)) | (Some(Source::Clone(last)), Source::Clone(more))
            if last.end == more.start =>
        {
            last.end = more.end;
        }
        _ => sources.push(next),
    }
}

/// Cuts whole blocks down to the bytes that were asked for.
pub(super) fn clip(pieces: Vec<Piece>, mut skip: u64, mut want: u64) -> Vec<Piece> {
    let mut out: Vec<Piece> = Vec::with_capacity(pieces.len());
    for piece in pieces {
        let len = piece.len();
        if skip >= len {
            skip -= len;
            continue;
        }
        let take = (len - skip).min(want);
        if take == 0 {
            break;
        }
        match (piece, out.last_mut()) {
            (Piece::Hole(_), Some(Piece::Hole(last))) => *last += take,
            (Piece::Hole(_), _) => out.push(Piece::Hole(take)),
            (Piece::Data(data), _) => {
                let from = usize::try_from(skip).unwrap_or(0);
                let upto = usize::try_from(skip + take).unwrap_or(0);
                out.push(Piece::Data(data.slice(from..upto)));
            }
        }
        skip = 0;
        want -= take;
    }
    out
}

impl Volume {
    /// Reads a range of production.
    ///
    /// # Errors
    /// `OutOfRange`, `Io`.
    pub async fn read(self: &Rc<Self>, offset: u64, len: u64) -> Result<Vec<Piece>> {
        self.in_range(offset, len).map_err(|e| self.named(e))?;
        let geometry = self.geometry();
        let blocks = geometry.blocks_touching(offset, len);
        let sources = self.production_sources(&blocks);
        let size = u64::from(geometry.block_size);
        let reads = sources.into_iter().map(|source| async move {
            match source {
                Source::Hole(run) => self.unused(run).await,
                Source::Data(_, data) => Ok(vec![Piece::Data(data)]),
                Source::Clone(run) => {
                    let data = self.clone_volume.read(Block(run.start), run.end - run.start).await?;
                    Ok(vec![Piece::Data(data.freeze())])
                }
            }
        });
        let pieces = join_all(reads).await.into_iter().collect::<Result<Vec<_>>>();
        let pieces = pieces.map_err(|e| self.named(e))?.into_iter().flatten().collect();
        Ok(clip(pieces, offset - blocks.start * size, len))
    }

    fn production_sources(&self, blocks: &Range<u64>) -> Vec<Source> {
        let s = self.s.borrow();
        let mut sources = Vec::new();
        for (run, used) in s.production.runs(s.granules(blocks)) {
            let run = s.blocks(&run);
            let run = run.start.max(blocks.start)..run.end.min(blocks.end);
            let source = |run| if used { Source::Clone(run) } else { Source::Hole(run) };
            if s.slots.is_empty() {
                add_source(&mut sources, source(run));
                continue;
            }
            for block in run {
                match s.slots.production(Block(block)) {
                    Some(data) => sources.push(Source::Data(block, data)),
                    None => add_source(&mut sources, source(block..block + 1)),
                }
            }
        }
        sources
    }

    /// Runs of a range that are in use in production or not: length in bytes, in use.
    ///
    /// # Errors
    /// `OutOfRange`.
    pub fn allocation(&self, offset: u64, len: u64) -> Result<Vec<(u64, bool)>> {
        self.in_range(offset, len)?;
        let s = self.s.borrow();
        let blocks = s.durable.geometry.blocks_touching(offset, len);
        let size = u64::from(s.durable.geometry.block_size);
        let mut runs: Vec<(u64, bool)> = Vec::new();
        for (run, used) in s.production.runs(s.granules(&blocks)) {
            let run = s.blocks(&run);
            let from = (run.start * size).max(offset);
            let upto = (run.end * size).min(offset + len);
            push_run(&mut runs, upto - from, used);
        }
        Ok(runs)
    }
}

/// Adds a run, merged with the last one if it says the same.
pub(super) fn push_run<T: PartialEq>(runs: &mut Vec<(u64, T)>, len: u64, what: T) {
    if len == 0 {
        return;
    }
    match runs.last_mut() {
        Some((last, same)) if *same == what => *last += len,
        _ => runs.push((len, what)),
    }
}
