//! The layer chain: all before-images of a volume, as one thing to ask.
//!
//! The layers stand sorted by their first epoch. Snapshot N, taken at epoch e(N), finds
//! a block in the first layer from e(N) on whose bit is set. Only the youngest one or
//! two layers are open and change; the others are sealed files, loaded when a query from
//! their epoch on is near. A query must not walk thousands of layers, so the sealed ones
//! stand in groups of up to [`GROUP`], and the groups in groups of groups, each with a
//! union of its layers' pages, made page by page when it is asked for, that names the first
//! one with a block. Invariants: a
//! union is of exactly the layers that are in the group now (whatever changes a group
//! drops its unions); the directory of meta pages names exactly the loaded layers.
//!
//! A layer can be *lost*: its file is damaged, and so is what it could be made from again.
//! Whoever must know what it held gets an error. Whoever only has to be careful (must this
//! block be saved? may that one be forgotten?) is told that it held nothing, which makes
//! him save and keep too much, never too little.

mod union;

use super::bitmap::BitMap;
use super::block_map::{BlockMap, SavedImage};
use super::layer::{LayerContents, SealedLayer};
use super::page::{PAGE_BITS, PAGE_WORDS, Page, Words};
use crate::error::{Error, Result};
use crate::types::{Block, Epoch};
use rustc_hash::FxHashMap;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use union::{Parts, Union};
use uuid::Uuid;

/// Layers in a group, and groups under one union, at most.
pub const GROUP: usize = 32;

/// Bytes in the unions that a chain keeps, about, at most.
const UNION_BYTES_MAX: usize = 32 << 20;

/// A layer that still changes, in memory.
#[derive(Debug)]
pub struct OpenLayer {
    /// Its first epoch.
    pub first: Epoch,
    /// The first epoch after it, once there is a layer after it.
    pub end: Option<Epoch>,
    /// The blocks that have a before-image here.
    pub bits: BitMap,
    /// Their images.
    pub blocks: BlockMap,
    /// The meta pages as they were at the take, of those that changed before the next one.
    pub meta_pages: BTreeMap<u64, Page>,
}

impl OpenLayer {
    /// Adds an image unless the block has one; true if it was added.
    pub fn insert(&mut self, block: Block, image: SavedImage) -> bool {
        self.bits.set(block.0);
        self.blocks.insert(block, image)
    }

    /// What to seal once the layer has settled: everything, up to `end`.
    #[must_use]
    pub fn contents(&self, volume: Uuid, end: Epoch) -> LayerContents {
        LayerContents {
            volume,
            epochs: self.first..end,
            bits: self.bits.clone(),
            entries: self.blocks.clone(),
            meta_pages: self.meta_pages.clone(),
        }
    }
}

/// A sealed layer's place in the chain.
#[derive(Debug)]
struct Place {
    first: Epoch,
    end: Epoch,
    layer: Option<Rc<SealedLayer>>,
    /// Why it is lost, if it is.
    lost: Option<Rc<str>>,
}

impl Place {
    fn new(epochs: Range<Epoch>, layer: Option<Rc<SealedLayer>>) -> Self {
        Self { first: epochs.start, end: epochs.end, layer, lost: None }
    }

    fn loaded(&self) -> Result<&SealedLayer> {
        self.layer.as_deref().ok_or_else(|| match &self.lost {
            Some(why) => lost(self.first, self.end, why),
            None => not_loaded(self.first, self.end),
        })
    }

    /// The layer, unless it is lost.
    fn known(&self) -> Result<Option<&SealedLayer>> {
        if self.lost.is_some() { Ok(None) } else { self.loaded().map(Some) }
    }
}

#[derive(Debug, Default)]
struct Group {
    places: Vec<Place>,
    union: Union,
}

impl Group {
    fn first(&self) -> Epoch {
        self.places.first().map_or(Epoch(0), |place| place.first)
    }

    fn last(&self) -> Epoch {
        self.places.last().map_or(Epoch(0), |place| place.first)
    }
}

/// A layer, as the chain hands it out.
#[derive(Clone, Debug)]
pub enum LayerRef {
    /// On disk, not loaded.
    Unloaded(Range<Epoch>),
    /// Its file is damaged and can't be made again.
    Lost(Range<Epoch>),
    /// On disk, mapped.
    Loaded(Rc<SealedLayer>),
    /// In memory, still changing.
    Open(Rc<RefCell<OpenLayer>>),
}

/// All layers of a volume.
#[derive(Debug, Default)]
pub struct LayerChain {
    groups: Vec<Group>,
    /// One union for each [`GROUP`] groups.
    supers: Vec<Union>,
    open: Vec<(Epoch, Rc<RefCell<OpenLayer>>)>,
    /// Meta page → the first epochs of the loaded layers that hold it, ascending.
    meta: FxHashMap<u64, Vec<Epoch>>,
    /// The epochs of the sealed layers that are not loaded: first → end.
    missing: BTreeMap<Epoch, Epoch>,
    /// First epochs of the lost layers that held meta pages.
    lost: BTreeSet<Epoch>,
    /// A loaded layer was found damaged since that was last asked.
    alarm: Arc<AtomicBool>,
    /// Bytes in all unions, see [`cost`].
    kept: Cell<usize>,
}

impl LayerChain {
    /// A chain without layers.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Layers in the chain.
    #[must_use]
    pub fn len(&self) -> usize {
        self.open.len() + self.groups.iter().map(|group| group.places.len()).sum::<usize>()
    }

    /// Whether there is no layer.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.open.is_empty() && self.groups.is_empty()
    }

    /// Adds an open layer after all others; the open one before it ends there.
    ///
    /// # Panics
    /// If a layer starts at that epoch or later.
    pub fn push_open(&mut self, first: Epoch) -> Rc<RefCell<OpenLayer>> {
        let sealed = self.groups.last().map(Group::last);
        let last = self.open.last().map(|(first, _)| *first).max(sealed);
        assert!(last.is_none_or(|last| last < first), "layers are opened in the order of epochs");
        if let Some((_, before)) = self.open.last() {
            before.borrow_mut().end.get_or_insert(first);
        }
        let layer = Rc::new(RefCell::new(OpenLayer {
            first,
            end: None,
            bits: BitMap::new(),
            blocks: BlockMap::new(),
            meta_pages: BTreeMap::new(),
        }));
        self.open.push((first, Rc::clone(&layer)));
        layer
    }

    /// Adds a sealed layer that is not loaded yet.
    ///
    /// # Panics
    /// If there is a layer of that first epoch.
    pub fn insert_unloaded(&mut self, epochs: Range<Epoch>) {
        self.insert(Place::new(epochs.clone(), None));
        self.missing.insert(epochs.start, epochs.end);
    }

    /// Adds a sealed layer.
    ///
    /// # Panics
    /// If there is a layer of that first epoch.
    pub fn insert_loaded(&mut self, layer: Rc<SealedLayer>) {
        self.note(&layer);
        self.insert(Place::new(layer.epochs(), Some(layer)));
    }

    fn note(&mut self, layer: &SealedLayer) {
        layer.watch(&self.alarm);
        let first = layer.epochs().start;
        for page in layer.meta_pages() {
            let holders = self.meta.entry(page).or_default();
            if let Err(at) = holders.binary_search(&first) {
                holders.insert(at, first);
            }
        }
    }

    /// The group in which a layer of that first epoch is or would be.
    fn group_of(&self, first: Epoch) -> usize {
        self.groups.partition_point(|group| group.first() <= first).saturating_sub(1)
    }

    fn insert(&mut self, place: Place) {
        assert!(!self.open.iter().any(|(first, _)| *first == place.first), "one layer per first epoch");
        let index = self.group_of(place.first);
        let appends = self.groups.last().is_none_or(|group| group.last() < place.first);
        if appends && self.groups.last().is_none_or(|group| group.places.len() >= GROUP) {
            self.groups.push(Group { places: vec![place], ..Group::default() });
            return self.changed(self.groups.len() - 1..self.groups.len());
        }
        let places = &mut self.groups[index].places;
        let at = places.partition_point(|other| other.first < place.first);
        assert!(places.get(at).is_none_or(|other| other.first != place.first), "one layer per first epoch");
        places.insert(at, place);
        if places.len() > GROUP {
            let high = places.split_off(GROUP / 2);
            self.groups.insert(index + 1, Group { places: high, ..Group::default() });
            return self.changed(index..self.groups.len());
        }
        self.changed(index..index + 1);
    }

    /// Drops the unions of groups that changed (the first of them) or moved (the rest).
    fn changed(&mut self, groups: Range<usize>) {
        if let Some(group) = self.groups.get(groups.start) {
            group.union.forget(&self.kept);
        }
        let covering = groups.start / GROUP..groups.end.div_ceil(GROUP);
        for union in self.supers.iter().take(covering.end).skip(covering.start) {
            union.forget(&self.kept);
        }
        let want = self.groups.len().div_ceil(GROUP);
        for gone in self.supers.iter().skip(want) {
            gone.forget(&self.kept);
        }
        self.supers.resize_with(want, Union::default);
    }

    fn place_mut(&mut self, first: Epoch) -> Option<&mut Place> {
        let index = self.group_of(first);
        self.groups.get_mut(index)?.places.iter_mut().find(|place| place.first == first)
    }

    /// Gives the layer of that first epoch its file.
    ///
    /// # Panics
    /// If there is no such sealed layer, or `layer` is of other epochs.
    pub fn load(&mut self, first: Epoch, layer: Rc<SealedLayer>) {
        self.note(&layer);
        let epochs = layer.epochs();
        let place = self.place_mut(first);
        assert!(
            place.as_ref().is_some_and(|place| (place.first..place.end) == epochs),
            "a layer is loaded into its own place"
        );
        if let Some(place) = place {
            place.layer = Some(layer);
        }
        self.missing.remove(&first);
        // It may stand for one that was found damaged: what was asked of that is forgotten.
        let group = self.group_of(first);
        if self.groups.get(group).is_some_and(|group| !group.union.is_empty()) {
            self.changed(group..group + 1);
        }
    }

    /// The layer of that first epoch is lost, and why; `pages` if it held meta pages.
    pub fn lose(&mut self, first: Epoch, pages: bool, why: &str) {
        self.forget_meta(first);
        if let Some(place) = self.place_mut(first) {
            place.layer = None;
            place.lost = Some(why.into());
            if pages {
                self.lost.insert(first);
            }
        }
        self.missing.remove(&first);
        let group = self.group_of(first);
        self.changed(group..group + 1);
    }

    /// Whether no layer is lost whose first epoch is in `firsts`.
    ///
    /// # Errors
    /// `Corrupt`, saying which.
    pub fn whole(&self, firsts: Range<Epoch>) -> Result<()> {
        let lost = self.places_in(firsts).find(|place| place.lost.is_some());
        lost.map_or(Ok(()), |place| place.loaded().map(drop))
    }

    /// The first epoch of the youngest lost layer.
    #[must_use]
    pub fn youngest_lost(&self) -> Option<Epoch> {
        self.places_from(Epoch(0)).filter(|place| place.lost.is_some()).map(|place| place.first).last()
    }

    /// Whether no layer that held meta pages is lost whose first epoch is in `firsts`.
    ///
    /// # Errors
    /// `Corrupt`, saying which.
    pub fn pages_whole(&self, firsts: Range<Epoch>) -> Result<()> {
        match self.lost.range(firsts).next() {
            Some(first) => self.whole(*first..first.next()),
            None => Ok(()),
        }
    }

    /// The loaded layers that were found damaged in part since this was last asked.
    #[must_use]
    pub fn take_damaged(&self) -> Vec<Range<Epoch>> {
        if !self.alarm.swap(false, Ordering::Relaxed) {
            return Vec::new();
        }
        let places = self.groups.iter().flat_map(|group| &group.places);
        let damaged = places.filter(|place| place.layer.as_ref().is_some_and(|layer| layer.is_damaged()));
        damaged.map(|place| place.first..place.end).collect()
    }

    /// Whether [`Self::take_damaged`] has something to say.
    #[must_use]
    pub fn is_alarmed(&self) -> bool {
        self.alarm.load(Ordering::Relaxed)
    }

    /// The layers that must be loaded before a query from that epoch on.
    #[must_use]
    pub fn unloaded(&self, from: Epoch) -> Vec<Range<Epoch>> {
        self.missing.range(from..).map(|(&first, &end)| first..end).collect()
    }

    /// Whether just these epochs are a sealed layer's that is not loaded.
    #[must_use]
    pub fn is_unloaded(&self, epochs: &Range<Epoch>) -> bool {
        self.missing.get(&epochs.start) == Some(&epochs.end)
    }

    fn places_from(&self, from: Epoch) -> impl Iterator<Item = &Place> + '_ {
        let places = self.groups[self.group_of(from).min(self.groups.len())..].iter();
        places.flat_map(|group| &group.places).skip_while(move |place| place.first < from)
    }

    fn places_in(&self, firsts: Range<Epoch>) -> impl Iterator<Item = &Place> + '_ {
        self.places_from(firsts.start).take_while(move |place| place.first < firsts.end)
    }

    fn open_in(&self, firsts: Range<Epoch>) -> impl Iterator<Item = &Rc<RefCell<OpenLayer>>> + '_ {
        self.open.iter().filter(move |(first, _)| firsts.contains(first)).map(|(_, layer)| layer)
    }

    /// Removes the layer of that first epoch, sealed or open; false if there is none.
    pub fn remove(&mut self, first: Epoch) -> bool {
        if let Some(at) = self.open.iter().position(|(other, _)| *other == first) {
            self.open.remove(at);
            return true;
        }
        let index = self.group_of(first);
        let Some(group) = self.groups.get_mut(index) else { return false };
        let Some(at) = group.places.iter().position(|place| place.first == first) else { return false };
        self.forget_meta(first);
        self.groups[index].places.remove(at);
        self.missing.remove(&first);
        self.lost.remove(&first);
        self.shrink(index);
        true
    }

    /// The layer of that first epoch holds no meta pages any more.
    fn forget_meta(&mut self, first: Epoch) {
        let Some(layer) = self.place_mut(first).and_then(|place| place.layer.clone()) else { return };
        for page in layer.meta_pages() {
            if let Some(holders) = self.meta.get_mut(&page) {
                holders.retain(|holder| *holder != first);
                if holders.is_empty() {
                    self.meta.remove(&page);
                }
            }
        }
    }

    /// After a removal: joins a group that got small with the one after it.
    fn shrink(&mut self, index: usize) {
        let len = |at: usize| self.groups.get(at).map(|group| group.places.len());
        let small = len(index) == Some(0);
        let joins = len(index).zip(len(index + 1)).is_some_and(|(a, b)| a + b <= GROUP / 2);
        if !small && !joins {
            return self.changed(index..index + 1);
        }
        let end = self.groups.len();
        let gone = self.groups.remove(index);
        gone.union.forget(&self.kept);
        if let Some(next) = self.groups.get_mut(index) {
            next.places.splice(0..0, gone.places);
        }
        self.changed(index..end);
    }

    /// Replaces the layers whose first epoch is in `firsts` by those layers.
    ///
    /// # Panics
    /// If a new layer has the first epoch of one that stays.
    pub fn replace(&mut self, firsts: Range<Epoch>, layers: impl IntoIterator<Item = Rc<SealedLayer>>) {
        let mut gone: Vec<Epoch> = self.places_in(firsts.clone()).map(|place| place.first).collect();
        gone.extend(self.open.iter().map(|(first, _)| *first).filter(|first| firsts.contains(first)));
        for first in gone {
            self.remove(first);
        }
        for layer in layers {
            self.insert_loaded(layer);
        }
    }

    /// The open layer that groups of an epoch go to: the youngest that does not begin later.
    #[must_use]
    pub fn open_for(&self, epoch: Epoch) -> Option<&Rc<RefCell<OpenLayer>>> {
        self.open.iter().rev().find(|(first, _)| *first <= epoch).map(|(_, layer)| layer)
    }

    /// The epochs of the oldest open layer, if another one follows it.
    #[must_use]
    pub fn oldest_closed(&self) -> Option<Range<Epoch>> {
        match self.open[..] {
            [(first, _), (next, _), ..] => Some(first..next),
            _ => None,
        }
    }

    /// Before-images in the open layers.
    #[must_use]
    pub fn open_entries(&self) -> u64 {
        self.open.iter().map(|(_, layer)| layer.borrow().blocks.len() as u64).sum()
    }

    /// The layer of that first epoch.
    #[must_use]
    pub fn get(&self, first: Epoch) -> Option<LayerRef> {
        self.layers_from(first).next().filter(|(found, _)| *found == first).map(|(_, layer)| layer)
    }

    /// The layers from that first epoch on, ascending.
    pub fn layers_from(&self, from: Epoch) -> impl Iterator<Item = (Epoch, LayerRef)> + '_ {
        let mut sealed = self.places_from(from).peekable();
        let mut open = self.open.iter().filter(move |(first, _)| *first >= from).peekable();
        std::iter::from_fn(move || match (sealed.peek(), open.peek()) {
            (Some(place), Some((first, _))) if place.first > *first => open.next().map(open_ref),
            (Some(_), _) => sealed.next().map(|place| {
                let layer = place.layer.clone();
                let epochs = place.first..place.end;
                let other = || match place.lost {
                    Some(_) => LayerRef::Lost(epochs.clone()),
                    None => LayerRef::Unloaded(epochs.clone()),
                };
                (place.first, layer.map_or_else(other, LayerRef::Loaded))
            }),
            (None, _) => open.next().map(open_ref),
        })
    }

    /// The place in a group of the first layer that may have the block.
    fn first_in_group(&self, group: &Group, block: Block) -> Result<Option<usize>> {
        let parts = |parts: &mut Parts| parts_of_group(group, block.0 / PAGE_BITS, parts);
        group.union.first(block.0, &self.kept, parts)
    }

    /// The first of the groups under a union that may have the block, counted from its first.
    fn first_in_super(&self, index: usize, block: Block) -> Result<Option<usize>> {
        let Some(union) = self.supers.get(index) else { return Ok(Some(0)) };
        let number = block.0 / PAGE_BITS;
        union.first(block.0, &self.kept, |parts| {
            let groups = self.groups.iter().skip(index * GROUP).take(GROUP);
            for (at, group) in (0u8..).zip(groups) {
                let mut words: Words = [0; PAGE_WORDS];
                let layers = |parts: &mut Parts| parts_of_group(group, number, parts);
                group.union.add_page(number, &mut words, &self.kept, layers)?;
                parts.add(at, &words);
            }
            Ok(())
        })
    }

    /// The first sealed layer from an epoch on that has the block. A lost layer that comes
    /// before it is an error, unless `careful`.
    fn find_sealed(&self, block: Block, from: Epoch, careful: bool) -> Result<Option<&Place>> {
        if self.kept.get() > UNION_BYTES_MAX {
            let groups = self.groups.iter().map(|group| &group.union);
            groups.chain(&self.supers).for_each(|union| union.forget(&self.kept));
        }
        let mut index = self.group_of(from);
        while let Some(group) = self.groups.get(index) {
            // A union counts only where all below it is known: the layers before `from` need
            // not be loaded.
            let whole = group.first() >= from;
            if whole && index.is_multiple_of(GROUP) && index + 1 < self.groups.len() {
                match self.first_in_super(index / GROUP, block)? {
                    None => {
                        index += GROUP;
                        continue;
                    }
                    Some(0) => {}
                    Some(ahead) => {
                        index += ahead;
                        continue;
                    }
                }
            }
            let known = whole || self.missing.range(group.first()..from).next().is_none();
            let start = group.places.partition_point(|place| place.first < from);
            let at = if known { self.first_in_group(group, block)? } else { Some(start) };
            // Of a layer before `from` that has it the union does not tell which one is next.
            if let Some(at) = at {
                for place in &group.places[at.max(start)..] {
                    let layer = if careful { place.known()? } else { Some(place.loaded()?) };
                    if let Some(layer) = layer
                        && layer.bit(block)?
                    {
                        return Ok(Some(place));
                    }
                }
            }
            index += 1;
        }
        Ok(None)
    }

    /// The before-image that a snapshot taken at `from` sees: of the first layer from
    /// there on that has the block. Also the first epoch of that layer.
    ///
    /// # Errors
    /// `Corrupt` for damage; `Conflict` if a layer is not loaded (see [`Self::unloaded`]).
    pub fn find(&self, block: Block, from: Epoch) -> Result<Option<(Epoch, SavedImage)>> {
        let sealed = self.find_sealed(block, from, false)?;
        if let Some((first, layer)) = self.find_open(block, from, sealed) {
            let image = layer.borrow().blocks.get(block);
            return image.map(|image| Some((first, image))).ok_or_else(|| no_image(block, first));
        }
        let Some(place) = sealed else { return Ok(None) };
        let image = place.loaded()?.image(block)?.ok_or_else(|| no_image(block, place.first))?;
        Ok(Some((place.first, image)))
    }

    /// The first open layer with the block that stands before `sealed`.
    fn find_open(
        &self,
        block: Block,
        from: Epoch,
        sealed: Option<&Place>,
    ) -> Option<(Epoch, &RefCell<OpenLayer>)> {
        let before = |first: Epoch| sealed.is_none_or(|place| first < place.first);
        self.open
            .iter()
            .filter(|(first, _)| *first >= from && before(*first))
            .map(|(first, layer)| (*first, &**layer))
            .find(|(_, layer)| layer.borrow().bits.get(block.0))
    }

    /// Whether a layer from that epoch on has the block, for somebody careful: what is lost
    /// counts as without it.
    ///
    /// # Errors
    /// As for [`Self::find`].
    pub fn has_bit(&self, block: Block, from: Epoch) -> Result<bool> {
        if self.find_open(block, from, None).is_some() {
            return Ok(true);
        }
        Ok(self.find_sealed(block, from, true)?.is_some())
    }

    /// Adds to `words` the bits of a page of all layers whose first epoch is in `firsts`,
    /// for somebody careful: what is lost counts as without any.
    ///
    /// # Errors
    /// As for [`Self::find`].
    pub fn union_bits(&self, page: u64, firsts: Range<Epoch>, words: &mut Words) -> Result<()> {
        for place in self.places_in(firsts.clone()) {
            if let Some(layer) = place.known()? {
                layer.add_bits(page, words)?;
            }
        }
        for layer in self.open_in(firsts) {
            layer.borrow().bits.page(page).or_into(words);
        }
        Ok(())
    }

    /// The same for several pages, ascending, each into its own words: far cheaper than one by
    /// one where many layers have many pages.
    ///
    /// # Errors
    /// As for [`Self::find`].
    pub fn union_pages(&self, pages: &[u64], firsts: Range<Epoch>, words: &mut [Words]) -> Result<()> {
        for place in self.places_in(firsts.clone()) {
            if let Some(layer) = place.known()? {
                layer.add_pages(pages, words)?;
            }
        }
        for layer in self.open_in(firsts) {
            let layer = layer.borrow();
            for (page, words) in pages.iter().zip(words.iter_mut()) {
                layer.bits.page(*page).or_into(words);
            }
        }
        Ok(())
    }

    /// The meta page of a snapshot taken at `from`, if a layer from there on holds it;
    /// else it is the tail's.
    ///
    /// # Errors
    /// As for [`Self::find`].
    pub fn meta_page(&self, page: u64, from: Epoch) -> Result<Option<Page>> {
        if let Some((first, end)) = self.missing.range(from..).next() {
            return Err(not_loaded(*first, *end));
        }
        let sealed =
            self.meta.get(&page).and_then(|holders| holders.get(holders.partition_point(|h| *h < from)));
        // What a lost layer before it held is not known.
        self.pages_whole(from..sealed.copied().unwrap_or(Epoch(u64::MAX)))?;
        for (first, layer) in &self.open {
            if *first >= from
                && sealed.is_none_or(|sealed| first < sealed)
                && let Some(page) = layer.borrow().meta_pages.get(&page)
            {
                return Ok(Some(page.clone()));
            }
        }
        let Some(first) = sealed else { return Ok(None) };
        let group = self.groups.get(self.group_of(*first));
        match group.and_then(|group| group.places.iter().find(|place| place.first == *first)) {
            Some(place) => place.loaded()?.meta_page(page),
            None => Ok(None),
        }
    }

    /// The numbers of the bit pages with a set bit in any layer whose first epoch is in
    /// `firsts`, ascending.
    ///
    /// # Errors
    /// As for [`Self::find`].
    pub fn touched_pages(&self, firsts: Range<Epoch>) -> Result<Vec<u64>> {
        let mut touched = PageSet::default();
        for place in self.places_in(firsts.clone()) {
            if let Some(layer) = place.known()? {
                touched.add(layer.bit_pages());
            }
        }
        for layer in self.open_in(firsts) {
            touched.add(layer.borrow().bits.pages().map(|(page, _)| page));
        }
        Ok(touched.numbers())
    }

    /// The numbers of the meta pages that any layer whose first epoch is in `firsts`
    /// holds, ascending.
    ///
    /// # Errors
    /// As for [`Self::find`].
    pub fn touched_meta_pages(&self, firsts: Range<Epoch>) -> Result<Vec<u64>> {
        let mut touched = PageSet::default();
        for place in self.places_in(firsts.clone()) {
            if let Some(layer) = place.known()? {
                touched.add(layer.meta_pages());
            }
        }
        for layer in self.open_in(firsts) {
            touched.add(layer.borrow().meta_pages.keys().copied());
        }
        Ok(touched.numbers())
    }
}

/// The bits of a page, of all layers of a group.
fn parts_of_group(group: &Group, page: u64, parts: &mut Parts) -> Result<()> {
    for (at, place) in (0u8..).zip(&group.places) {
        let mut words: Words = [0; PAGE_WORDS];
        match place.known()? {
            Some(layer) => layer.add_bits(page, &mut words)?,
            // It may have any block.
            None => words = [u64::MAX; PAGE_WORDS],
        }
        parts.add(at, &words);
    }
    Ok(())
}

/// Numbers of pages, of which there may be many in many layers: a bit each.
#[derive(Default)]
struct PageSet(Vec<u64>);

impl PageSet {
    fn add(&mut self, pages: impl Iterator<Item = u64>) {
        for page in pages {
            // At most 2^22 pages, so this is no large vector.
            let word = usize::try_from(page / 64).unwrap_or(usize::MAX);
            if word >= self.0.len() {
                self.0.resize(word + 1, 0);
            }
            self.0[word] |= 1 << (page % 64);
        }
    }

    /// Them all, ascending.
    fn numbers(&self) -> Vec<u64> {
        let mut numbers = Vec::new();
        for (index, word) in (0u64..).zip(&self.0) {
            let mut left = *word;
            while left != 0 {
                numbers.push(index * 64 + u64::from(left.trailing_zeros()));
                left &= left - 1;
            }
        }
        numbers
    }
}

fn open_ref((first, layer): &(Epoch, Rc<RefCell<OpenLayer>>)) -> (Epoch, LayerRef) {
    (*first, LayerRef::Open(Rc::clone(layer)))
}

fn not_loaded(first: Epoch, end: Epoch) -> Error {
    Error::conflict(format!("the layer of epochs {first} to {end} is not loaded"))
}

fn lost(first: Epoch, end: Epoch, why: &str) -> Error {
    Error::corrupt(format!("the map of epochs {first} to {end} is lost: {why}"))
        .hint("restore the snapshot from a copy; younger snapshots and the volume itself are not affected")
}

fn no_image(block: Block, first: Epoch) -> Error {
    Error::corrupt(format!("block {block} is marked as saved in the layer of epoch {first} but has no image"))
}

#[cfg(test)]
mod tests;
