//! The plan: which bytes a delta writes and discards, from words of bit maps alone.
//!
//! Pure functions, whole words at a time. One bit is one block; a page is 512 words,
//! so 32,768 blocks. The extents come out ascending, merged and clipped to the size.

use crate::format::stream::{Extent, ExtentKind};
use std::borrow::Borrow;
use std::collections::VecDeque;

/// A page of a bit map.
pub type Words = [u64; 512];
/// Blocks that a page stands for.
pub const PAGE_BLOCKS: u64 = 512 * 64;

/// The delta of one page from L to M: `use_l` and `use_m` say which blocks are in use
/// in each; `changed` has the bits set in any of L..M-1.
pub fn delta_words(use_l: &Words, use_m: &Words, changed: &Words, write: &mut Words, discard: &mut Words) {
    for at in 0..512 {
        write[at] = use_m[at] & (!use_l[at] | changed[at]);
        discard[at] = use_l[at] & !use_m[at];
    }
}

/// Turns pages into extents, merged across words and pages.
#[derive(Clone, Debug)]
pub struct Planner {
    block_size: u64,
    size: u64,
    open: Option<Extent>,
}

impl Planner {
    /// For a volume of `size` bytes in blocks of `block_size` bytes.
    #[must_use]
    pub fn new(block_size: u32, size: u64) -> Self {
        Self { block_size: u64::from(block_size), size, open: None }
    }

    /// Takes the next page that has a bit set; page numbers ascend. A block that is
    /// both written and discarded is written.
    pub fn page(&mut self, number: u64, write: &Words, discard: &Words, out: &mut impl FnMut(Extent)) {
        let first = number.saturating_mul(PAGE_BLOCKS);
        for at in 0..512 {
            let block = first + at as u64 * 64;
            let (data, gone) = (write[at], discard[at] & !write[at]);
            let mut todo = data | gone;
            while todo != 0 {
                let from = todo.trailing_zeros();
                let (kind, word) = if data >> from & 1 == 1 {
                    (ExtentKind::Data, data)
                } else {
                    (ExtentKind::Discard, gone)
                };
                let count = (word >> from).trailing_ones();
                self.run(kind, block + u64::from(from), u64::from(count), out);
                let end = from + count;
                todo = if end >= 64 { 0 } else { todo >> end << end };
            }
        }
    }

    fn run(&mut self, kind: ExtentKind, block: u64, count: u64, out: &mut impl FnMut(Extent)) {
        let offset = block.saturating_mul(self.block_size);
        let end = (block + count).saturating_mul(self.block_size).min(self.size);
        if offset >= end {
            return;
        }
        if let Some(open) = &mut self.open {
            if open.kind == kind && open.end() == offset {
                open.len = end - open.offset;
                return;
            }
            out(*open);
        }
        self.open = Some(Extent { offset, len: end - offset, kind });
    }

    /// Gives the last extent.
    pub fn finish(mut self, out: &mut impl FnMut(Extent)) {
        if let Some(open) = self.open.take() {
            out(open);
        }
    }
}

/// The extents of an iterator of (page number, words to write, words to discard).
pub struct Extents<I> {
    pages: I,
    planner: Option<Planner>,
    ready: VecDeque<Extent>,
}

/// The extents of `pages`, whose numbers ascend; see [`Planner`].
pub fn extents<I, W>(pages: I, block_size: u32, size: u64) -> Extents<I::IntoIter>
where
    I: IntoIterator<Item = (u64, W, W)>,
    W: Borrow<Words>,
{
    Extents {
        pages: pages.into_iter(),
        planner: Some(Planner::new(block_size, size)),
        ready: VecDeque::new(),
    }
}

impl<I, W> Iterator for Extents<I>
where
    I: Iterator<Item = (u64, W, W)>,
    W: Borrow<Words>,
{
    type Item = Extent;

    fn next(&mut self) -> Option<Extent> {
        loop {
            if let Some(extent) = self.ready.pop_front() {
                return Some(extent);
            }
            let ready = &mut self.ready;
            match self.pages.next() {
                Some((number, write, discard)) => {
                    self.planner
                        .as_mut()?
                        .page(number, write.borrow(), discard.borrow(), &mut |e| ready.push_back(e));
                }
                None => self.planner.take()?.finish(&mut |e| ready.push_back(e)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delta_of_every_combination() {
        // Bit i of each input takes all eight combinations.
        let words = |word: u64| [word; 512];
        let (mut write, mut discard) = ([0; 512], [0; 512]);
        delta_words(&words(0b1111_0000), &words(0b1100_1100), &words(0b1010_1010), &mut write, &mut discard);
        assert_eq!(write[17], 0b1000_1100);
        assert_eq!(discard[17], 0b0011_0000);
    }

    /// Against a slow oracle: one block after the other.
    #[test]
    fn extents_match_the_oracle() {
        for seed in 0..60 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let block_size = 512u32 << rng.u32(0..4);
            let density = [1, 2, 8, 64][rng.usize(0..4)];
            let mut numbers: Vec<u64> = (0..rng.u64(1..5)).collect();
            numbers.retain(|_| rng.u8(0..4) > 0);
            let last = numbers.last().copied().unwrap_or(0);
            let size =
                (last * PAGE_BLOCKS + rng.u64(1..=PAGE_BLOCKS)) * u64::from(block_size) - 512 * rng.u64(0..2);
            let size = size.max(512);
            let pages: Vec<(u64, Box<Words>, Box<Words>)> = numbers
                .iter()
                .map(|number| {
                    let mut word = |dense: bool| match (dense, rng.u8(0..4)) {
                        (_, 0) => 0,
                        (_, 1) => u64::MAX,
                        _ => (0..density).fold(u64::MAX, |word, _| word & rng.u64(..)),
                    };
                    let write: Box<Words> = Box::new(std::array::from_fn(|_| word(true)));
                    let discard: Box<Words> = Box::new(std::array::from_fn(|_| word(false)));
                    (*number, write, discard)
                })
                .collect();
            let mut expected: Vec<Extent> = Vec::new();
            for (number, write, discard) in &pages {
                for bit in 0..PAGE_BLOCKS {
                    let (word, shift) = ((bit / 64) as usize, bit % 64);
                    let kind = match (write[word] >> shift & 1, discard[word] >> shift & 1) {
                        (1, _) => ExtentKind::Data,
                        (0, 1) => ExtentKind::Discard,
                        _ => continue,
                    };
                    let offset = (number * PAGE_BLOCKS + bit) * u64::from(block_size);
                    if offset >= size {
                        continue;
                    }
                    let len = u64::from(block_size).min(size - offset);
                    match expected.last_mut() {
                        Some(open) if open.kind == kind && open.end() == offset => open.len += len,
                        _ => expected.push(Extent { offset, len, kind }),
                    }
                }
            }
            let got: Vec<Extent> =
                extents(pages.iter().map(|(n, w, d)| (*n, w.clone(), d.clone())), block_size, size).collect();
            assert_eq!(got, expected, "seed {seed}");
        }
    }
}
