//! Comparing: do two stores hold the same bytes of a snapshot? [`compare`] asks both for
//! digests, of chunks first, and of the blocks of those chunks alone that are not equal.
//!
//! What is in use on neither side is neither read nor named by anybody. A block that is damaged
//! on a side is neither equal nor different: nobody knows what it held. Answers are from
//! another machine and are checked for order and progress; what they claim is believed.

use crate::delta::digest::{Answer, CHUNK, Digest, Grain, Span};
use crate::error::{Error, Result};
use std::ops::Range;

/// A side of the comparison. A question may be asked before its answer is wanted.
pub trait Side {
    /// Asks for the digests of a range.
    ///
    /// # Errors
    /// What keeps it from asking.
    fn ask(&mut self, bytes: Range<u64>, by: Grain) -> Result<()>;
    /// The answer to the oldest question without one.
    ///
    /// # Errors
    /// Whatever the side meets.
    fn answer(&mut self) -> Result<Answer>;
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Comparison {
    /// Bytes in the snapshot here and there.
    pub size: (u64, u64),
    /// Bytes in use here and there.
    pub in_use: (u64, u64),
    /// Ranges that differ; sorted, merged, disjoint, as all of these.
    pub differs: Vec<Range<u64>>,
    /// Ranges damaged here.
    pub damaged_here: Vec<Range<u64>>,
    /// Ranges damaged there.
    pub damaged_there: Vec<Range<u64>>,
}

impl Comparison {
    /// Whether every byte is known to be the same.
    #[must_use]
    pub fn is_equal(&self) -> bool {
        self.differs.is_empty() && self.damaged_here.is_empty() && self.damaged_there.is_empty()
    }
}

/// Bytes in a list of ranges.
#[must_use]
pub fn bytes_in(ranges: &[Range<u64>]) -> u64 {
    ranges.iter().map(|range| range.end - range.start).sum()
}

/// Adds a range behind the others, to the last one if that ends where it begins.
pub fn add(ranges: &mut Vec<Range<u64>>, range: Range<u64>) {
    match ranges.last_mut() {
        Some(last) if last.end == range.start => last.end = range.end,
        _ if range.is_empty() => {}
        _ => ranges.push(range),
    }
}

/// Compares a snapshot here with the one there; `progress` hears of bytes in use here that
/// were compared.
///
/// # Errors
/// Those of the sides; `Conflict` when they cut the volume into blocks of different sizes.
pub fn compare(
    here: &mut dyn Side,
    there: &mut dyn Side,
    progress: &mut dyn FnMut(u64),
) -> Result<Comparison> {
    let facts = |side: &mut dyn Side| {
        side.ask(0..0, Grain::Chunk)?;
        side.answer()
    };
    let (near, far) = (facts(here)?, facts(there)?);
    if near.block_size != far.block_size || near.block_size == 0 {
        return Err(Error::conflict(format!(
            "the volume has blocks of {} bytes here and of {} there",
            near.block_size, far.block_size
        )));
    }
    let mut found = Comparison { size: (near.size, far.size), ..Comparison::default() };
    let common = near.size.min(far.size);
    let mut suspect = Vec::new();
    let block = u64::from(near.block_size);
    walk(here, there, 0..common, (Grain::Chunk, CHUNK), &mut |at, near, far| {
        found.in_use.0 += near.map_or(0, |span| span.in_use);
        found.in_use.1 += far.map_or(0, |span| span.in_use);
        progress(near.map_or(0, |span| span.in_use));
        if digest(near).is_none() || digest(near) != digest(far) {
            add(&mut suspect, at..(at + CHUNK).min(common));
        }
    })?;
    for range in suspect {
        walk(here, there, range, (Grain::Block, block), &mut |at, near, far| {
            let range = at..(at + block).min(common);
            let (near, far) = (digest(near), digest(far));
            if near.is_none() {
                add(&mut found.damaged_here, range.clone());
            }
            if far.is_none() {
                add(&mut found.damaged_there, range.clone());
            }
            if near.is_some() && far.is_some() && near != far {
                add(&mut found.differs, range);
            }
        })?;
    }
    add(&mut found.differs, common..near.size.max(far.size));
    Ok(found)
}

/// The digest of a span that may not have been named; none: it is damaged.
fn digest(span: Option<&Span>) -> Option<Digest> {
    span.map_or_else(|| Some(Digest::of_zeros()), |span| span.digest)
}

/// What [`walk`] meets: the first byte of a span, and the span here and there.
type Met<'a> = dyn FnMut(u64, Option<&Span>, Option<&Span>) + 'a;

/// Goes through the spans that either side names, in order; `by` says which, and how many bytes
/// one has. The far side works on the next part while this one reads its own.
fn walk(
    here: &mut dyn Side,
    there: &mut dyn Side,
    bytes: Range<u64>,
    (by, span): (Grain, u64),
    met: &mut Met<'_>,
) -> Result<()> {
    if bytes.is_empty() {
        return Ok(());
    }
    let mut from = bytes.start;
    there.ask(bytes.clone(), by)?;
    while from < bytes.end {
        let far = there.answer()?;
        check(&far, &(from..bytes.end), span)?;
        let reached = far.reached;
        if reached < bytes.end {
            there.ask(reached..bytes.end, by)?;
        }
        let mut near = Vec::new();
        let mut at = from;
        while at < reached {
            here.ask(at..reached, by)?;
            let answer = here.answer()?;
            check(&answer, &(at..reached), span)?;
            at = answer.reached;
            near.extend(answer.spans);
        }
        let (mut near, mut far) = (near.iter().peekable(), far.spans.iter().peekable());
        loop {
            let at = match (near.peek(), far.peek()) {
                (None, None) => break,
                (Some(near), Some(far)) => near.at.min(far.at),
                (Some(span), None) | (None, Some(span)) => span.at,
            };
            met(at, near.next_if(|span| span.at == at), far.next_if(|span| span.at == at));
        }
        from = reached;
    }
    Ok(())
}

/// Checks that an answer is about the first part of `bytes`, and its spans, of so many bytes each,
/// about that.
fn check(answer: &Answer, bytes: &Range<u64>, span: u64) -> Result<()> {
    let is_span = |at: &Span| at.at.is_multiple_of(span) && at.in_use <= span;
    let goes_on = bytes.start < answer.reached && answer.reached <= bytes.end;
    let ascend = answer.spans.windows(2).all(|pair| pair[0].at < pair[1].at);
    let lie_in = answer.spans.iter().all(|at| (bytes.start..answer.reached).contains(&at.at) && is_span(at));
    if goes_on && ascend && lie_in {
        return Ok(());
    }
    Err(Error::invalid("the digests of the other side are not about what was asked")
        .hint("the two sides may be of different versions"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delta::digest::{Found, spans_of};
    use std::collections::{BTreeSet, VecDeque};

    const BLOCK: u64 = 65536;

    /// A copy in memory, by blocks.
    #[derive(Clone, Default)]
    struct Copy {
        size: u64,
        /// First byte of each block, 0 for a block of zeros; none: not in use.
        blocks: Vec<Option<u8>>,
        damaged: BTreeSet<u64>,
        /// Chunks with anything in use in one answer.
        patience: u64,
        asked: VecDeque<(Range<u64>, Grain)>,
        /// Blocks that were read for digests of blocks.
        read: BTreeSet<u64>,
    }

    impl Copy {
        fn contents(&self, block: u64) -> Vec<u8> {
            let len = BLOCK.min(self.size - block * BLOCK);
            let mut bytes = vec![0; usize::try_from(len).unwrap()];
            bytes[0] = self.blocks[usize::try_from(block).unwrap()].unwrap_or(0);
            bytes
        }
    }

    impl Side for Copy {
        fn ask(&mut self, bytes: Range<u64>, by: Grain) -> Result<()> {
            self.asked.push_back((bytes, by));
            Ok(())
        }

        fn answer(&mut self) -> Result<Answer> {
            let (bytes, by) = self.asked.pop_front().unwrap();
            assert!(bytes.start.is_multiple_of(CHUNK));
            let (mut at, mut spans, mut left) = (bytes.start, Vec::new(), self.patience);
            while at < bytes.end.min(self.size) && left > 0 {
                let end = (at + CHUNK).min(bytes.end).min(self.size);
                let (mut in_use, mut found) = (0, Vec::new());
                for block in at / BLOCK..end.div_ceil(BLOCK) {
                    if self.blocks[usize::try_from(block).unwrap()].is_none() {
                        continue;
                    }
                    let bytes = self.contents(block);
                    in_use += bytes.len() as u64;
                    if by == Grain::Block {
                        self.read.insert(block);
                    }
                    found.push(if self.damaged.contains(&block) {
                        Found::Damaged(block * BLOCK)
                    } else {
                        Found::Data(block * BLOCK, bytes.into())
                    });
                }
                left -= u64::from(in_use > 0);
                spans.extend(spans_of(at, in_use, &found, usize::try_from(BLOCK).unwrap(), by));
                at = end;
            }
            let block_size = u32::try_from(BLOCK).unwrap();
            Ok(Answer { name: String::new(), size: self.size, block_size, reached: at, spans })
        }
    }

    /// The same, block by block.
    fn oracle(here: &Copy, there: &Copy) -> Comparison {
        let used = |copy: &Copy| {
            let all =
                (0..copy.blocks.len() as u64).filter(|b| copy.blocks[usize::try_from(*b).unwrap()].is_some());
            all.map(|block| copy.contents(block).len() as u64).sum()
        };
        let mut found = Comparison {
            size: (here.size, there.size),
            in_use: (used(here), used(there)),
            ..Comparison::default()
        };
        for block in 0..here.blocks.len() as u64 {
            let range = block * BLOCK..((block + 1) * BLOCK).min(here.size);
            let damaged = (here.damaged.contains(&block), there.damaged.contains(&block));
            if damaged.0 {
                add(&mut found.damaged_here, range.clone());
            }
            if damaged.1 {
                add(&mut found.damaged_there, range.clone());
            }
            if damaged == (false, false) && here.contents(block) != there.contents(block) {
                add(&mut found.differs, range);
            }
        }
        found
    }

    fn random(rng: &mut fastrand::Rng, size: u64) -> Copy {
        let blocks = size.div_ceil(BLOCK);
        let mut copy = Copy { size, patience: rng.u64(1..4), ..Copy::default() };
        while (copy.blocks.len() as u64) < blocks {
            let value = match rng.u8(0..4) {
                0 => None,
                1 => Some(0),
                _ => Some(rng.u8(..)),
            };
            for _ in 0..rng.u64(1..200).min(blocks - copy.blocks.len() as u64) {
                copy.blocks.push(value);
            }
        }
        copy
    }

    #[test]
    fn what_differs_is_found_and_nothing_else() {
        for seed in 0..60 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let size = rng.u64(1..20 * CHUNK / 512) * 512;
            let mut here = random(&mut rng, size);
            let mut there = Copy { patience: rng.u64(1..4), ..here.clone() };
            for _ in 0..rng.u64(0..6) {
                let at = rng.u64(0..size.div_ceil(BLOCK));
                let place = usize::try_from(at).unwrap();
                match rng.u8(0..5) {
                    0 => there.blocks[place] = Some(rng.u8(..)),
                    1 => there.blocks[place] = None,
                    // Zeros that are stored on one side only are the same bytes.
                    2 => (here.blocks[place], there.blocks[place]) = (Some(0), None),
                    3 if here.blocks[place].is_some() => drop(here.damaged.insert(at)),
                    4 if there.blocks[place].is_some() => drop(there.damaged.insert(at)),
                    _ => {}
                }
            }
            // A block that was damaged may have been taken out of use since.
            here.damaged.retain(|at| here.blocks[usize::try_from(*at).unwrap()].is_some());
            there.damaged.retain(|at| there.blocks[usize::try_from(*at).unwrap()].is_some());
            let expected = oracle(&here, &there);
            let mut seen = 0;
            let found = compare(&mut here, &mut there, &mut |bytes| seen += bytes).unwrap();
            assert_eq!(found, expected, "seed {seed}");
            assert_eq!(seen, expected.in_use.0, "seed {seed}");
            // Blocks are asked for in chunks alone that have something to tell.
            for block in here.read.iter().chain(&there.read) {
                let chunk = block * BLOCK / CHUNK * CHUNK;
                let all = [&expected.differs, &expected.damaged_here, &expected.damaged_there];
                let tells = |range: &Range<u64>| range.start < chunk + CHUNK && range.end > chunk;
                assert!(all.iter().any(|ranges| ranges.iter().any(tells)), "seed {seed}, block {block}");
            }
        }
    }

    #[test]
    fn a_longer_copy_differs_behind_the_shorter_ones_end() {
        let mut rng = fastrand::Rng::with_seed(1);
        let mut here = random(&mut rng, CHUNK + BLOCK);
        let mut there = here.clone();
        there.size += BLOCK;
        there.blocks.push(None);
        let found = compare(&mut here, &mut there, &mut |_| {}).unwrap();
        assert_eq!(found.differs.first(), Some(&(CHUNK + BLOCK..CHUNK + 2 * BLOCK)));
        assert_eq!(bytes_in(&found.differs), BLOCK);
    }

    /// A far side that says anything is refused, and never waited for.
    #[test]
    fn answers_are_checked() {
        let span = |at| Span { at, in_use: 1, digest: None };
        let answer = |reached, spans: &[u64]| Answer {
            name: String::new(),
            size: 4 * CHUNK,
            block_size: 4096,
            reached,
            spans: spans.iter().map(|at| span(*at)).collect(),
        };
        let bytes = CHUNK..3 * CHUNK;
        check(&answer(3 * CHUNK, &[CHUNK, 2 * CHUNK]), &bytes, CHUNK).unwrap();
        let mut boasts = answer(3 * CHUNK, &[CHUNK]);
        boasts.spans[0].in_use = CHUNK + 1;
        for bad in [
            answer(CHUNK, &[]),
            answer(0, &[]),
            answer(3 * CHUNK + 1, &[]),
            answer(3 * CHUNK, &[2 * CHUNK, CHUNK]),
            answer(3 * CHUNK, &[CHUNK, CHUNK]),
            answer(3 * CHUNK, &[0]),
            answer(2 * CHUNK, &[2 * CHUNK]),
            answer(3 * CHUNK, &[CHUNK + 4096]),
            boasts,
        ] {
            assert!(check(&bad, &bytes, CHUNK).is_err(), "{bad:?}");
        }
    }
}
