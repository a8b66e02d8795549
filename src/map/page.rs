//! A page: 32,768 bits of a bit map, in the smallest of four forms.
//!
//! A page is a value that is shared by reference: copying one never copies bits, and
//! [`Page::same`] tells in a few instructions that nothing changed. Invariants: a `List`
//! is strictly ascending, holds 1 to [`LIST_MAX`] bits, all below [`PAGE_BITS`]. A page
//! that was changed bit by bit may be a `Bits` that would fit a list; whoever needs
//! the one form that a content has goes through [`Page::from_words`].

use std::sync::Arc;

/// Bits in a page.
pub const PAGE_BITS: u64 = 32_768;

/// The same, as indices within a page are counted.
const PAGE_LEN: u32 = 32_768;

/// Words of 64 bits in a page.
pub const PAGE_WORDS: usize = 512;

/// The longest list; one more bit and the page is stored as bits.
pub const LIST_MAX: usize = 256;

/// A page as plain bits, bit 0 lowest in word 0.
pub type Words = [u64; PAGE_WORDS];

const _: () = assert!(PAGE_WORDS as u64 * 64 == PAGE_BITS && PAGE_LEN as u64 == PAGE_BITS);

/// The bits of one page.
#[derive(Clone, Debug, Default)]
pub enum Page {
    /// No bit is set.
    #[default]
    Empty,
    /// Every bit is set.
    Full,
    /// The numbers of the few bits that are set, ascending.
    List(Arc<[u16]>),
    /// One bit each.
    Bits(Arc<Words>),
}

/// The number of a bit within a word-indexed page; callers hold `index` below [`PAGE_BITS`].
#[allow(clippy::cast_possible_truncation, reason = "an index within a page has 15 bits")]
pub(crate) fn index16(index: u64) -> u16 {
    debug_assert!(index < PAGE_BITS);
    index as u16
}

/// Applies `change` to every word that `bits` touches, with the mask of the bits in it.
pub(crate) fn for_masks(bits: std::ops::Range<u32>, mut change: impl FnMut(usize, u64)) {
    let mut at = bits.start;
    while at < bits.end {
        let word = at / 64;
        let end = bits.end.min((word + 1) * 64);
        let len = end - at;
        let mask = if len == 64 { u64::MAX } else { ((1 << len) - 1) << (at % 64) };
        change(word as usize, mask);
        at = end;
    }
}

impl Page {
    /// Whether that bit is set.
    #[must_use]
    pub fn get(&self, bit: u16) -> bool {
        match self {
            Self::Empty => false,
            Self::Full => true,
            Self::List(list) => list.binary_search(&bit).is_ok(),
            Self::Bits(words) => words[usize::from(bit) / 64 % PAGE_WORDS] >> (bit % 64) & 1 == 1,
        }
    }

    /// Bits that are set.
    #[must_use]
    pub fn count(&self) -> u32 {
        match self {
            Self::Empty => 0,
            Self::Full => PAGE_LEN,
            #[allow(clippy::cast_possible_truncation, reason = "a list is short")]
            Self::List(list) => list.len() as u32,
            Self::Bits(words) => words.iter().map(|word| word.count_ones()).sum(),
        }
    }

    /// Whether no bit is set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Full => false,
            Self::List(list) => list.is_empty(),
            Self::Bits(words) => words.iter().all(|&word| word == 0),
        }
    }

    /// Overwrites `words` with the bits of this page.
    pub fn load(&self, words: &mut Words) {
        match self {
            Self::Empty => words.fill(0),
            Self::Full => words.fill(u64::MAX),
            Self::List(_) => {
                words.fill(0);
                self.or_into(words);
            }
            Self::Bits(bits) => words.copy_from_slice(&bits[..]),
        }
    }

    /// The bits of this page, as words.
    #[must_use]
    pub fn to_words(&self) -> Words {
        let mut words = [0; PAGE_WORDS];
        self.or_into(&mut words);
        words
    }

    /// Sets in `words` the bits that are set here.
    pub fn or_into(&self, words: &mut Words) {
        match self {
            Self::Empty => {}
            Self::Full => words.fill(u64::MAX),
            Self::List(list) => {
                for &bit in &**list {
                    words[usize::from(bit) / 64 % PAGE_WORDS] |= 1 << (bit % 64);
                }
            }
            Self::Bits(bits) => {
                for (word, more) in words.iter_mut().zip(bits.iter()) {
                    *word |= more;
                }
            }
        }
    }

    /// The smallest form for those bits.
    #[must_use]
    pub fn from_words(words: &Words) -> Self {
        let count: usize = words.iter().map(|word| word.count_ones() as usize).sum();
        match count {
            0 => Self::Empty,
            1..=LIST_MAX => Self::List(list_of(words, count)),
            _ if count as u64 == PAGE_BITS => Self::Full,
            _ => Self::Bits(Arc::new(*words)),
        }
    }

    /// Whether the two are the same page without a look at the bits: a cheap
    /// "unchanged". Pages that are not the `same` may still have equal bits.
    #[must_use]
    pub fn same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Empty, Self::Empty) | (Self::Full, Self::Full) => true,
            (Self::List(a), Self::List(b)) => Arc::ptr_eq(a, b),
            (Self::Bits(a), Self::Bits(b)) => Arc::ptr_eq(a, b),
            _ => false,
        }
    }

    /// The first bit at or after `from` that is `value`.
    #[must_use]
    pub fn next(&self, from: u32, value: bool) -> Option<u32> {
        let end = PAGE_LEN;
        if from >= end {
            return None;
        }
        match self {
            Self::Empty => (!value).then_some(from),
            Self::Full => value.then_some(from),
            Self::List(list) => {
                let start = list.partition_point(|&bit| u32::from(bit) < from);
                if value {
                    return list.get(start).map(|&bit| u32::from(bit));
                }
                let mut at = from;
                for &bit in &list[start..] {
                    if u32::from(bit) != at {
                        break;
                    }
                    at += 1;
                }
                (at < end).then_some(at)
            }
            Self::Bits(words) => {
                let flip = if value { 0 } else { u64::MAX };
                let mut index = from as usize / 64;
                let mut word = (words[index] ^ flip) & (u64::MAX << (from % 64));
                while word == 0 {
                    index += 1;
                    word = words.get(index)? ^ flip;
                }
                #[allow(clippy::cast_possible_truncation, reason = "an index within a page")]
                Some(index as u32 * 64 + word.trailing_zeros())
            }
        }
    }
}

/// Two pages are equal when their bits are, whatever their forms.
impl PartialEq for Page {
    fn eq(&self, other: &Self) -> bool {
        self.same(other)
            || match (self, other) {
                (Self::List(a), Self::List(b)) => a == b,
                (Self::Bits(a), Self::Bits(b)) => a == b,
                _ => self.count() == other.count() && self.to_words() == other.to_words(),
            }
    }
}

impl Eq for Page {}

fn list_of(words: &Words, count: usize) -> Arc<[u16]> {
    let mut list = Vec::with_capacity(count);
    for (index, &word) in words.iter().enumerate() {
        let mut rest = word;
        while rest != 0 {
            list.push(index16(index as u64 * 64 + u64::from(rest.trailing_zeros())));
            rest &= rest - 1;
        }
    }
    list.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn forms_agree_with_a_set() {
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        let mut rng = fastrand::Rng::with_seed(seed);
        for count in [0, 1, 2, 255, 256, 257, 4000, 32767, 32768] {
            let mut all: Vec<u16> = (0..=32767).collect();
            rng.shuffle(&mut all);
            let set: BTreeSet<u16> = all[..count].iter().copied().collect();
            let mut words = [0; PAGE_WORDS];
            for &bit in &set {
                words[usize::from(bit) / 64] |= 1 << (bit % 64);
            }
            let page = Page::from_words(&words);
            assert_eq!(page.count() as usize, count);
            assert_eq!(page.is_empty(), count == 0);
            assert_eq!(page.to_words(), words);
            assert_eq!(page, Page::Bits(Arc::new(words)));
            for bit in 0..=32767u16 {
                assert_eq!(page.get(bit), set.contains(&bit));
            }
            for _ in 0..200 {
                let from = rng.u16(0..32768);
                let next = set.range(from..).next().map(|&bit| u32::from(bit));
                assert_eq!(page.next(u32::from(from), true), next);
                let hole = (from..32768).find(|bit| !set.contains(bit)).map(u32::from);
                assert_eq!(page.next(u32::from(from), false), hole);
            }
        }
    }
}
