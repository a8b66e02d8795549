//! The bit map: a persistent page table over [`Page`]s.
//!
//! A clone costs the root (one pointer per 16 million bits) and shares everything below
//! it; the first change on either side copies the node and the page it touches, nothing
//! else. So a frozen meta bit map, a checkpoint's idea of what was written and the live
//! map stand side by side, and [`BitMap::changed_pages`] tells them apart at a cost that
//! follows the change. Invariants: a node that is present holds at least one set bit; a
//! page's stored count is its number of set bits; `Full` and `Empty` pages are always
//! stored as such.

use super::page::{LIST_MAX, PAGE_BITS, PAGE_WORDS, Page, Words, for_masks, index16};
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

/// Pages under one node.
const NODE_PAGES: usize = 512;

/// Bits under one node.
const NODE_BITS: u64 = NODE_PAGES as u64 * PAGE_BITS;

/// A bit map never reaches this bit: 64 TiB in blocks of 512 bytes.
pub const BITS_MAX: u64 = 1 << 37;

/// A page of bits shrinks to a list once it has so few: below [`LIST_MAX`], lest a page
/// at the border change its form at every step.
const SHRINK: u16 = 128;

#[allow(clippy::cast_possible_truncation, reason = "a page has 2^15 bits")]
const FULL: u16 = PAGE_BITS as u16;

#[derive(Clone)]
struct Node {
    pages: [Page; NODE_PAGES],
    counts: [u16; NODE_PAGES],
    count: u32,
}

impl Node {
    fn empty() -> Self {
        Self { pages: [const { Page::Empty }; NODE_PAGES], counts: [0; NODE_PAGES], count: 0 }
    }

    fn full() -> Self {
        Self {
            pages: [const { Page::Full }; NODE_PAGES],
            counts: [FULL; NODE_PAGES],
            #[allow(clippy::cast_possible_truncation, reason = "a node has 2^24 bits")]
            count: NODE_BITS as u32,
        }
    }

    fn is_full(&self) -> bool {
        u64::from(self.count) == NODE_BITS
    }
}

/// Bits 0 to [`BITS_MAX`], most of them clear.
#[derive(Clone, Default)]
pub struct BitMap {
    root: Vec<Option<Arc<Node>>>,
    count: u64,
}

/// Where a bit stands.
struct Place {
    node: usize,
    slot: usize,
    bit: u16,
}

#[allow(clippy::cast_possible_truncation, reason = "saturates far above every root")]
fn node_of(bit: u64) -> usize {
    (bit / NODE_BITS).min(u64::from(u32::MAX)) as usize
}

#[allow(clippy::cast_possible_truncation, reason = "the remainder of a small number")]
fn place(bit: u64) -> Place {
    let slot = (bit / PAGE_BITS % NODE_PAGES as u64) as usize;
    Place { node: node_of(bit), slot, bit: index16(bit % PAGE_BITS) }
}

impl BitMap {
    /// A map without set bits.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn node(&self, index: usize) -> Option<&Arc<Node>> {
        self.root.get(index)?.as_ref()
    }

    fn page_ref(&self, bit: u64) -> &Page {
        let at = place(bit);
        self.node(at.node).map_or(&Page::Empty, |node| &node.pages[at.slot])
    }

    /// Whether the bit is set.
    #[must_use]
    pub fn get(&self, bit: u64) -> bool {
        let at = place(bit);
        self.node(at.node).is_some_and(|node| node.pages[at.slot].get(at.bit))
    }

    /// Bits that are set.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Whether no bit is set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The node for changes; made when it is not there, unshared when it is shared.
    fn node_mut(&mut self, index: usize) -> &mut Node {
        assert!((index as u64) < BITS_MAX / NODE_BITS, "a bit beyond every volume");
        if self.root.len() <= index {
            self.root.resize(index + 1, None);
        }
        Arc::make_mut(self.root[index].get_or_insert_with(|| Arc::new(Node::empty())))
    }

    /// Replaces a page whose number of set bits is known.
    fn put(&mut self, node_index: usize, slot: usize, page: Page, count: u16) {
        let node = self.node_mut(node_index);
        let old = node.counts[slot];
        node.pages[slot] = page;
        self.recount(node_index, slot, old, count);
    }

    /// Takes note that a page went from `old` to `new` set bits.
    fn recount(&mut self, node_index: usize, slot: usize, old: u16, new: u16) {
        let node = self.node_mut(node_index);
        node.counts[slot] = new;
        node.count = node.count - u32::from(old) + u32::from(new);
        let empty = node.count == 0;
        self.count = self.count - u64::from(old) + u64::from(new);
        if empty {
            self.root[node_index] = None;
            while self.root.last().is_some_and(Option::is_none) {
                self.root.pop();
            }
        }
    }

    /// Sets one bit; true if it was clear.
    pub fn set(&mut self, bit: u64) -> bool {
        if self.get(bit) {
            return false;
        }
        let at = place(bit);
        let node = self.node_mut(at.node);
        let old = node.counts[at.slot];
        let page = &mut node.pages[at.slot];
        let next = match page {
            Page::Bits(_) if old + 1 == FULL => Some(Page::Full),
            Page::Bits(words) => {
                Arc::make_mut(words)[usize::from(at.bit) / 64] |= 1 << (at.bit % 64);
                None
            }
            Page::List(list) if list.len() < LIST_MAX => {
                let cut = list.partition_point(|&other| other < at.bit);
                let (low, high) = list.split_at(cut);
                let bits = low.iter().chain(std::iter::once(&at.bit)).chain(high);
                let mut longer = Vec::with_capacity(list.len() + 1);
                longer.extend(bits);
                Some(Page::List(longer.into()))
            }
            Page::List(_) => {
                let mut words = page.to_words();
                words[usize::from(at.bit) / 64] |= 1 << (at.bit % 64);
                Some(Page::Bits(Arc::new(words)))
            }
            Page::Empty => Some(Page::List(Arc::new([at.bit]))),
            Page::Full => None,
        };
        if let Some(next) = next {
            node.pages[at.slot] = next;
        }
        node.counts[at.slot] = old + 1;
        node.count += 1;
        self.count += 1;
        true
    }

    /// Clears one bit; true if it was set.
    pub fn clear(&mut self, bit: u64) -> bool {
        if !self.get(bit) {
            return false;
        }
        let at = place(bit);
        let node = self.node_mut(at.node);
        let old = node.counts[at.slot];
        let page = &mut node.pages[at.slot];
        if old == 1 {
            *page = Page::Empty;
        } else if let Page::Bits(words) = page {
            Arc::make_mut(words)[usize::from(at.bit) / 64] &= !(1 << (at.bit % 64));
            if old - 1 <= SHRINK {
                *page = Page::from_words(words);
            }
        } else if let Page::List(list) = page {
            let rest: Vec<u16> = list.iter().copied().filter(|&other| other != at.bit).collect();
            *page = Page::List(rest.into());
        } else {
            let mut words = page.to_words();
            words[usize::from(at.bit) / 64] &= !(1 << (at.bit % 64));
            *page = Page::from_words(&words);
        }
        self.recount(at.node, at.slot, old, old - 1);
        true
    }

    /// Sets every bit of the range; returns how many were clear.
    pub fn set_range(&mut self, bits: Range<u64>) -> u64 {
        self.change_range(bits, true)
    }

    /// Clears every bit of the range; returns how many were set.
    pub fn clear_range(&mut self, bits: Range<u64>) -> u64 {
        self.change_range(bits, false)
    }

    fn change_range(&mut self, bits: Range<u64>, value: bool) -> u64 {
        let before = self.count;
        let mut at = bits.start;
        while at < bits.end {
            // What has the value already is skipped, shared or not, in long steps.
            at = self.next_with(at, bits.end, !value);
            if at >= bits.end {
                break;
            }
            let node_end = (at / NODE_BITS + 1) * NODE_BITS;
            let page_end = (at / PAGE_BITS + 1) * PAGE_BITS;
            if at.is_multiple_of(NODE_BITS) && node_end <= bits.end {
                self.replace_node(node_of(at), value);
                at = node_end;
            } else if at.is_multiple_of(PAGE_BITS) && page_end <= bits.end {
                let Place { node, slot, .. } = place(at);
                let (page, count) = if value { (Page::Full, FULL) } else { (Page::Empty, 0) };
                self.put(node, slot, page, count);
                at = page_end;
            } else {
                let end = bits.end.min(page_end);
                self.change_within(at, end - at, value);
                at = end;
            }
        }
        self.count.abs_diff(before)
    }

    fn replace_node(&mut self, index: usize, full: bool) {
        let old = self.node(index).map_or(0, |node| u64::from(node.count));
        if full {
            self.node_mut(index);
            self.root[index] = Some(Arc::new(Node::full()));
            self.count += NODE_BITS - old;
        } else if old > 0 {
            self.root[index] = None;
            self.count -= old;
        }
    }

    /// Changes `len` bits of one page.
    fn change_within(&mut self, first: u64, len: u64, value: bool) {
        let at = place(first);
        #[allow(clippy::cast_possible_truncation, reason = "a length within a page")]
        let bits = u32::from(at.bit)..u32::from(at.bit) + len as u32;
        if bits.len() == 1 {
            if value {
                self.set(first)
            } else {
                self.clear(first)
            };
            return;
        }
        let node = self.node_mut(at.node);
        let old = node.counts[at.slot];
        let page = &mut node.pages[at.slot];
        let mut count = old;
        let mut change = |words: &mut Words| {
            for_masks(bits.clone(), |word, mask| {
                let changed = if value { !words[word] & mask } else { words[word] & mask };
                words[word] ^= changed;
                #[allow(clippy::cast_possible_truncation, reason = "at most 64")]
                let ones = changed.count_ones() as u16;
                count = if value { count + ones } else { count - ones };
            });
        };
        if let Page::Bits(words) = page {
            change(Arc::make_mut(words));
            if count == FULL || count <= SHRINK {
                *page = Page::from_words(words);
            }
        } else {
            let mut words = page.to_words();
            change(&mut words);
            *page = Page::from_words(&words);
        }
        self.recount(at.node, at.slot, old, count);
    }

    /// The page of that number; empty beyond the end.
    #[must_use]
    pub fn page(&self, page: u64) -> Page {
        page.checked_mul(PAGE_BITS).map_or(Page::Empty, |bit| self.page_ref(bit).clone())
    }

    /// Replaces a whole page.
    ///
    /// # Panics
    /// If the page is beyond [`BITS_MAX`].
    pub fn set_page(&mut self, page: u64, content: Page) {
        assert!(page < BITS_MAX / PAGE_BITS, "a page beyond every volume");
        let at = place(page * PAGE_BITS);
        if content.same(self.page_ref(page * PAGE_BITS)) {
            return;
        }
        #[allow(clippy::cast_possible_truncation, reason = "at most 2^15")]
        let count = content.count() as u16;
        let content = match count {
            0 => Page::Empty,
            FULL => Page::Full,
            _ => content,
        };
        if content.same(self.page_ref(page * PAGE_BITS)) {
            return;
        }
        self.put(at.node, at.slot, content, count);
    }

    /// How many pages have set bits.
    #[must_use]
    pub fn page_count(&self) -> u64 {
        let in_node = |node: &Arc<Node>| node.counts.iter().filter(|count| **count > 0).count() as u64;
        self.root.iter().flatten().map(in_node).sum()
    }

    /// The pages that have set bits, ascending.
    pub fn pages(&self) -> impl Iterator<Item = (u64, Page)> + '_ {
        self.pages_from(0)
    }

    /// The pages from that number on that have set bits, ascending.
    pub fn pages_from(&self, first: u64) -> impl Iterator<Item = (u64, Page)> + '_ {
        let skip = node_of(first.saturating_mul(PAGE_BITS));
        let nodes = self.root.iter().enumerate().skip(skip);
        nodes
            .filter_map(|(index, node)| Some((index, node.as_ref()?)))
            .flat_map(|(index, node)| {
                let base = index as u64 * NODE_PAGES as u64;
                node.pages.iter().enumerate().map(move |(slot, page)| (base + slot as u64, page))
            })
            .filter(move |(number, page)| *number >= first && !matches!(page, Page::Empty))
            .map(|(number, page)| (number, page.clone()))
    }

    /// The numbers of the pages that are not the same in both, ascending: every page
    /// that differs, and perhaps some that were changed and changed back.
    pub fn changed_pages<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = u64> + 'a {
        let len = self.root.len().max(other.root.len());
        (0..len)
            .map(|index| (index, self.node(index), other.node(index)))
            .filter(|(_, a, b)| match (a, b) {
                (Some(a), Some(b)) => !Arc::ptr_eq(a, b),
                (None, None) => false,
                _ => true,
            })
            .flat_map(|(index, a, b)| {
                let base = index as u64 * NODE_PAGES as u64;
                (0..NODE_PAGES).filter_map(move |slot| {
                    let left = a.map_or(&Page::Empty, |node| &node.pages[slot]);
                    let right = b.map_or(&Page::Empty, |node| &node.pages[slot]);
                    (!left.same(right)).then_some(base + slot as u64)
                })
            })
    }

    /// The first bit in `from..end` that is `value`; `end` if there is none.
    fn next_with(&self, from: u64, end: u64, value: bool) -> u64 {
        let mut at = from;
        while at < end {
            let place = place(at);
            let next_node = (at / NODE_BITS + 1).saturating_mul(NODE_BITS);
            let Some(node) = self.node(place.node) else {
                if !value {
                    return at;
                }
                // Beyond the root there is nothing but clear bits.
                at = if place.node >= self.root.len() { end } else { next_node };
                continue;
            };
            if node.is_full() {
                if value {
                    return at;
                }
                at = next_node;
                continue;
            }
            if let Some(bit) = node.pages[place.slot].next(u32::from(place.bit), value) {
                return end.min(at / PAGE_BITS * PAGE_BITS + u64::from(bit));
            }
            at = (at / PAGE_BITS + 1) * PAGE_BITS;
        }
        end
    }

    /// The range, cut into the longest runs of equal bits.
    pub fn runs(&self, bits: Range<u64>) -> impl Iterator<Item = (Range<u64>, bool)> + '_ {
        let mut at = bits.start;
        std::iter::from_fn(move || {
            if at >= bits.end {
                return None;
            }
            let (start, value) = (at, self.get(at));
            at = self.next_with(start, bits.end, !value);
            Some((start..at, value))
        })
    }

    /// The first set bit at or after `from`.
    #[must_use]
    pub fn next_set(&self, from: u64) -> Option<u64> {
        let end = self.root.len() as u64 * NODE_BITS;
        let bit = self.next_with(from, end, true);
        (from < end && bit < end).then_some(bit)
    }

    /// The set bits of the range, ascending.
    pub fn iter_set(&self, bits: Range<u64>) -> impl Iterator<Item = u64> + '_ {
        self.runs(bits).filter(|(_, value)| *value).flat_map(|(run, _)| run)
    }
}

/// Two maps are equal when their bits are.
impl PartialEq for BitMap {
    fn eq(&self, other: &Self) -> bool {
        self.count == other.count && self.changed_pages(other).all(|page| self.page(page) == other.page(page))
    }
}

impl Eq for BitMap {}

impl FromIterator<u64> for BitMap {
    fn from_iter<T: IntoIterator<Item = u64>>(bits: T) -> Self {
        let mut map = Self::new();
        map.extend(bits);
        map
    }
}

impl Extend<u64> for BitMap {
    fn extend<T: IntoIterator<Item = u64>>(&mut self, bits: T) {
        for bit in bits {
            self.set(bit);
        }
    }
}

impl fmt::Debug for BitMap {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "BitMap({} bits set)", self.count)
    }
}

const _: () = assert!(PAGE_WORDS * 64 == FULL as usize);

#[cfg(test)]
mod tests;
