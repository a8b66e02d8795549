//! The union of some layers' pages: which blocks any of them has, and the first one that does.
//!
//! A union is made page by page when a page is asked for, and is of up to 256 parts: the
//! layers of a group, or groups. With it a search needs no walk: it finds the group, and
//! in it the layer, at once. Invariant: whoever changes one of the parts forgets the union.

use crate::error::Result;
use crate::map::page::{PAGE_BITS, PAGE_WORDS, Page, Words, index16};
use rustc_hash::FxHashMap;
use std::cell::{Cell, RefCell};

/// Bits up to which a page is a list of them. A longer list would take more than plain bits.
const LIST_MAX: usize = 1024;

/// Bytes that a page costs beside its content, about.
const PLACE_BYTES: usize = 96;

/// One page of a union.
#[derive(Debug)]
enum Index {
    /// The bits, ascending, and for each the first part that has it.
    List(Box<[u16]>, Box<[u8]>),
    /// Plain bits, the number of them before each word, and for each the first part.
    Bits(Box<Words>, Box<[u16]>, Box<[u8]>),
}

/// The bits of the parts while an [`Index`] is made.
pub(super) struct Parts {
    words: Box<Words>,
    firsts: Box<[u8]>,
}

impl Parts {
    fn new() -> Self {
        Self { words: Box::new([0; PAGE_WORDS]), firsts: vec![0; PAGE_WORDS * 64].into() }
    }

    /// Adds the next part, of that number.
    pub fn add(&mut self, part: u8, bits: &Words) {
        for (index, more) in bits.iter().enumerate() {
            let mut new = more & !self.words[index];
            self.words[index] |= new;
            while new != 0 {
                self.firsts[index * 64 + new.trailing_zeros() as usize] = part;
                new &= new - 1;
            }
        }
    }

    fn index(self) -> Index {
        let count: usize = self.words.iter().map(|word| word.count_ones() as usize).sum();
        let page = Page::Bits((*self.words).into());
        let mut set = Vec::with_capacity(count);
        let mut from = 0;
        while let Some(bit) = page.next(from, true) {
            set.push(index16(u64::from(bit)));
            from = bit + 1;
        }
        let firsts = set.iter().map(|bit| self.firsts[usize::from(*bit)]).collect();
        if count <= LIST_MAX {
            return Index::List(set.into(), firsts);
        }
        let mut before = 0;
        let ranks = self.words.iter().map(|word| {
            let rank = before;
            #[allow(clippy::cast_possible_truncation, reason = "at most 64")]
            let ones = word.count_ones() as u16;
            before += ones;
            rank
        });
        let ranks = ranks.collect();
        Index::Bits(self.words, ranks, firsts)
    }
}

impl Index {
    /// The first part that has the bit.
    fn first(&self, bit: u16) -> Option<usize> {
        let (rank, firsts) = match self {
            Self::List(bits, firsts) => (bits.binary_search(&bit).ok()?, firsts),
            Self::Bits(words, ranks, firsts) => {
                let (index, below) = (usize::from(bit / 64), bit % 64);
                let word = words[index % PAGE_WORDS];
                if word >> below & 1 == 0 {
                    return None;
                }
                let in_word = (word & ((1 << below) - 1)).count_ones() as usize;
                (usize::from(ranks[index]) + in_word, firsts)
            }
        };
        Some(usize::from(firsts[rank]))
    }

    fn bytes(&self) -> usize {
        PLACE_BYTES
            + match self {
                Self::List(bits, _) => bits.len() * 3,
                Self::Bits(_, ranks, firsts) => PAGE_WORDS * 8 + ranks.len() * 2 + firsts.len(),
            }
    }

    fn add_to(&self, words: &mut Words) {
        match self {
            Self::List(bits, _) => {
                for bit in bits {
                    words[usize::from(bit / 64) % PAGE_WORDS] |= 1 << (bit % 64);
                }
            }
            Self::Bits(bits, ..) => {
                for (word, more) in words.iter_mut().zip(bits.iter()) {
                    *word |= more;
                }
            }
        }
    }
}

/// The pages of a union that were asked for.
#[derive(Debug, Default)]
pub(super) struct Union(RefCell<FxHashMap<u64, Index>>);

impl Union {
    /// Makes a page known; `parts` gives the parts' bits if it is not.
    fn know(
        &self,
        page: u64,
        kept: &Cell<usize>,
        parts: impl FnOnce(&mut Parts) -> Result<()>,
    ) -> Result<()> {
        if !self.0.borrow().contains_key(&page) {
            let mut made = Parts::new();
            parts(&mut made)?;
            let index = made.index();
            kept.set(kept.get() + index.bytes());
            self.0.borrow_mut().insert(page, index);
        }
        Ok(())
    }

    /// The first part that has a block.
    pub fn first(
        &self,
        block: u64,
        kept: &Cell<usize>,
        parts: impl FnOnce(&mut Parts) -> Result<()>,
    ) -> Result<Option<usize>> {
        let (page, bit) = (block / PAGE_BITS, index16(block % PAGE_BITS));
        if let Some(index) = self.0.borrow().get(&page) {
            return Ok(index.first(bit));
        }
        self.know(page, kept, parts)?;
        Ok(self.0.borrow().get(&page).and_then(|index| index.first(bit)))
    }

    /// Sets in `words` the bits of a page.
    pub fn add_page(
        &self,
        page: u64,
        words: &mut Words,
        kept: &Cell<usize>,
        parts: impl FnOnce(&mut Parts) -> Result<()>,
    ) -> Result<()> {
        self.know(page, kept, parts)?;
        if let Some(index) = self.0.borrow().get(&page) {
            index.add_to(words);
        }
        Ok(())
    }

    /// Whether no page is known.
    pub fn is_empty(&self) -> bool {
        self.0.borrow().is_empty()
    }

    /// Bytes that it takes, about.
    pub fn bytes(&self) -> usize {
        self.0.borrow().values().map(Index::bytes).sum()
    }

    /// Drops all pages; they are made again when they are asked for.
    pub fn forget(&self, kept: &Cell<usize>) {
        kept.set(kept.get() - self.bytes());
        self.0.borrow_mut().clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_part_with_a_block_is_found_in_lists_and_in_bits() {
        let mut rng = fastrand::Rng::with_seed(7);
        for count in [0, 1, 300, 1024, 1025, 9000, 32_768] {
            let mut owner = vec![None; PAGE_WORDS * 64];
            let union = Union::default();
            let kept = Cell::new(0);
            let mut parts: Vec<Words> = Vec::new();
            for part in 0..5usize {
                let mut words = [0; PAGE_WORDS];
                for n in 0..count / 2 + 1 {
                    let bit = if count == 32_768 { n * 2 + part % 2 } else { rng.usize(0..PAGE_WORDS * 64) };
                    let bit = bit % (PAGE_WORDS * 64);
                    words[bit / 64] |= 1 << (bit % 64);
                    owner[bit] = owner[bit].or(Some(part));
                }
                parts.push(words);
            }
            let fill = |made: &mut Parts| {
                for (number, part) in (0..).zip(&parts) {
                    made.add(number, part);
                }
                Ok(())
            };
            for (bit, owner) in (0u64..).zip(&owner) {
                let found = union.first(3 * PAGE_BITS + bit, &kept, fill).unwrap();
                assert_eq!(found, *owner, "bit {bit} of {count}");
            }
            let mut all = [0; PAGE_WORDS];
            union.add_page(3, &mut all, &kept, |_| unreachable!("it is known")).unwrap();
            let expected = owner.iter().filter(|owner| owner.is_some()).count();
            assert_eq!(all.iter().map(|word| word.count_ones() as usize).sum::<usize>(), expected);
            assert!(kept.get() > 0);
            union.forget(&kept);
            assert_eq!(kept.get(), 0);
            assert!(union.is_empty());
        }
    }
}
