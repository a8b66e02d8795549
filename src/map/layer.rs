//! The sealed layer: the before-images of some epochs of a volume, in an immutable file.
//!
//! The file is mapped, so the kernel stages it in and out; nothing of it but a bit per
//! page and bucket is in this process's own memory. Header and page tables are checked
//! when it is opened, a page body or a bucket when it is first touched, and whatever does
//! not match its checksum is `Corrupt`. A crash while the file is written is harmless:
//! it is complete and synced, with its directory, before a record names it.

use super::bitmap::BitMap;
use super::block_map::{BlockMap, SavedImage};
use super::page::{PAGE_BITS, PAGE_WORDS, Page, Words};
use crate::error::{Error, Result, ResultExt};
use crate::format::layer::{
    BUCKET_LEN, BUCKET_LOAD, BUCKET_SLOTS, HEADER_LEN, Header, PAGE_ENTRY_LEN, PageEntry, PageKind, SLOT_LEN,
    Slot, check_bucket, close_bucket, home,
};
use crate::io::region::Mapped;
use crate::types::{Block, Epoch, SaveAddr};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use uuid::Uuid;

const _: () = assert!(crate::format::layer::PAGE_BITS as u64 == PAGE_BITS);
const _: () = assert!(crate::format::layer::LIST_MAX as usize == super::page::LIST_MAX);
const _: () = assert!(crate::format::layer::PAGES_MAX * PAGE_BITS == super::bitmap::BITS_MAX);

/// The longest piece that [`encode`] returns, about.
const PIECE: usize = 1 << 20;

/// What goes into a sealed layer.
#[derive(Clone, Debug)]
pub struct LayerContents {
    /// The volume.
    pub volume: Uuid,
    /// The epochs, the last one exclusive.
    pub epochs: Range<Epoch>,
    /// The blocks that have a before-image here.
    pub bits: BitMap,
    /// Their images; the blocks are those of `bits`.
    pub entries: BlockMap,
    /// The meta pages as they were when the snapshot was taken, of those that changed.
    pub meta_pages: BTreeMap<u64, Page>,
}

/// The words of a page as they are stored.
pub(super) fn le_bytes(words: &Words) -> Vec<u8> {
    bytemuck::cast_slice(&words.map(u64::to_le)).to_vec()
}

/// The body of a page in its one stored form, and how that is called.
fn page_body(page: &Page) -> (PageKind, u32, Vec<u8>) {
    let page = match page {
        Page::Bits(words) => &Page::from_words(words),
        _ => page,
    };
    let body = match page {
        Page::Empty => return (PageKind::Empty, 0, Vec::new()),
        Page::Full => return (PageKind::Full, page.count(), Vec::new()),
        Page::List(list) => list.iter().flat_map(|bit| bit.to_le_bytes()).collect(),
        Page::Bits(words) => le_bytes(words),
    };
    let kind = if matches!(page, Page::List(_)) { PageKind::List } else { PageKind::Bits };
    (kind, page.count(), body)
}

/// The file, in pieces that follow each other.
///
/// # Panics
/// If `bits` and `entries` do not count the same.
#[must_use]
pub fn encode(contents: &LayerContents) -> Vec<Bytes> {
    assert_eq!(contents.bits.count(), contents.entries.len() as u64, "each bit has its entry");
    let entries = contents.entries.sorted();
    let bit_pages: Vec<(u64, Page)> = contents.bits.pages().collect();
    let tables_len = (bit_pages.len() + contents.meta_pages.len()) * PAGE_ENTRY_LEN;
    let mut tables = Vec::with_capacity(tables_len);
    let mut offset = (HEADER_LEN + tables_len) as u64;
    let (mut pieces, mut piece) = (Vec::new(), Vec::new());
    let meta = contents.meta_pages.iter().map(|(number, page)| (*number, page));
    for (number, page) in bit_pages.iter().map(|(number, page)| (*number, page)).chain(meta) {
        let (kind, count, body) = page_body(page);
        let (crc, at) = if body.is_empty() { (0, 0) } else { (crc32c::crc32c(&body), offset) };
        tables.extend_from_slice(&PageEntry { page: number, kind, count, crc, offset: at }.encode());
        offset += body.len() as u64;
        piece.extend_from_slice(&body);
        if piece.len() >= PIECE {
            pieces.push(Bytes::from(std::mem::take(&mut piece)));
        }
    }
    let hash_offset = offset.next_multiple_of(BUCKET_LEN as u64);
    piece.extend(std::iter::repeat_n(0u8, usize::try_from(hash_offset - offset).unwrap_or(0)));
    pieces.push(Bytes::from(piece));

    let buckets = u32::try_from(entries.len() as u64 / BUCKET_LOAD + 1).unwrap_or(u32::MAX);
    let buckets = if (entries.len() as u64).is_multiple_of(BUCKET_LOAD) { buckets - 1 } else { buckets };
    let hash = Bytes::from(hash_table(&entries, buckets));
    for start in (0..hash.len()).step_by(PIECE) {
        pieces.push(hash.slice(start..hash.len().min(start + PIECE)));
    }

    #[allow(clippy::cast_possible_truncation, reason = "page numbers have 22 bits")]
    let header = Header {
        volume: contents.volume,
        epochs: contents.epochs.clone(),
        entries: entries.len() as u64,
        bit_pages: bit_pages.len() as u32,
        meta_pages: contents.meta_pages.len() as u32,
        buckets,
        hash_offset,
        tables_crc: crc32c::crc32c(&tables),
    };
    let mut front = header.encode().to_vec();
    front.extend_from_slice(&tables);
    pieces.insert(0, Bytes::from(front));
    pieces.retain(|piece| !piece.is_empty());
    pieces
}

fn hash_table(entries: &[(Block, SavedImage)], buckets: u32) -> Vec<u8> {
    let mut table = vec![0; buckets as usize * BUCKET_LEN];
    for (block, image) in entries {
        let slot =
            Slot { block: block.0, addr: image.addr.to_word(), crc: image.crc, damaged: image.damaged };
        for (bucket, index) in probe(block.0, buckets) {
            let at = bucket as usize * BUCKET_LEN + index * SLOT_LEN;
            if Slot::decode(&table[at..at + SLOT_LEN]).is_none() {
                table[at..at + SLOT_LEN].copy_from_slice(&slot.encode());
                break;
            }
        }
    }
    for (number, bucket) in (0u32..).zip(table.chunks_exact_mut(BUCKET_LEN)) {
        close_bucket(bucket, number);
    }
    table
}

/// All slots of the table in the order in which a block is looked for.
fn probe(block: u64, buckets: u32) -> impl Iterator<Item = (u32, usize)> {
    let (first, slot) = home(block, buckets);
    (0..buckets).flat_map(move |step| {
        let start = if step == 0 { slot } else { 0 };
        #[allow(clippy::cast_possible_truncation, reason = "a remainder of a u32")]
        let bucket = ((u64::from(first) + u64::from(step)) % u64::from(buckets)) as u32;
        (0..BUCKET_SLOTS).map(move |index| (bucket, (start + index) % BUCKET_SLOTS))
    })
}

/// One bit for each part that was found whole. Threads may race: the check is repeated
/// at worst.
#[derive(Debug)]
struct Checked(Box<[AtomicU64]>);

impl Checked {
    fn new(parts: usize) -> Self {
        Self((0..parts.div_ceil(64)).map(|_| AtomicU64::new(0)).collect())
    }

    fn has(&self, part: usize) -> bool {
        self.0[part / 64].load(Ordering::Relaxed) >> (part % 64) & 1 == 1
    }

    fn mark(&self, part: usize) {
        self.0[part / 64].fetch_or(1 << (part % 64), Ordering::Relaxed);
    }
}

/// Which of the two page tables.
#[derive(Clone, Copy, PartialEq)]
enum Table {
    Bits,
    Meta,
}

/// An open sealed layer.
#[derive(Debug)]
pub struct SealedLayer {
    file: Mapped,
    header: Header,
    /// Bit pages first, then meta pages.
    pages_checked: Checked,
    buckets_checked: Checked,
    /// A page or a bucket was found damaged.
    damaged: AtomicBool,
    /// Set when that happens.
    alarm: OnceLock<Arc<AtomicBool>>,
}

#[allow(clippy::cast_possible_truncation, reason = "offsets were checked against the length of the mapping")]
fn within(file: &[u8], range: Range<u64>) -> &[u8] {
    file.get(range.start as usize..range.end as usize).unwrap_or(&[])
}

fn word_of(body: &[u8], index: usize) -> u64 {
    let mut raw = [0; 8];
    raw.copy_from_slice(&body[index * 8..index * 8 + 8]);
    u64::from_le_bytes(raw)
}

fn list_of(body: &[u8]) -> impl Iterator<Item = u16> + '_ {
    body.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]]))
}

impl SealedLayer {
    /// Checks the file's header and tables and that it is the layer it should be.
    ///
    /// # Errors
    /// `Unsupported` for a newer version, `Corrupt` for damage or another layer's file.
    pub fn open(mapped: Mapped, volume: Uuid, epochs: Range<Epoch>) -> Result<Self> {
        let header = Header::decode(&mapped)?;
        if header.volume != volume || header.epochs != epochs {
            return Err(Error::corrupt(format!(
                "the file holds the layer of epochs {} to {} of volume {}, not of {} to {} of {volume}",
                header.epochs.start, header.epochs.end, header.volume, epochs.start, epochs.end
            )));
        }
        let tables = within(&mapped, header.bit_table().start..header.meta_table().end);
        if crc32c::crc32c(tables) != header.tables_crc {
            return Err(Error::corrupt("the checksum of the layer's page tables does not match"));
        }
        let bodies = header.bodies();
        let mut last: Option<u64> = None;
        let mut count = 0;
        for (index, bytes) in tables.chunks_exact(PAGE_ENTRY_LEN).enumerate() {
            let entry = PageEntry::decode(bytes, &bodies)?;
            let is_bits = index < header.bit_pages as usize;
            if index == header.bit_pages as usize {
                last = None;
            }
            if last.is_some_and(|last| last >= entry.page) || is_bits && entry.kind == PageKind::Empty {
                return Err(Error::corrupt(format!("page {} is out of place in its table", entry.page)));
            }
            last = Some(entry.page);
            count += if is_bits { u64::from(entry.count) } else { 0 };
        }
        if count != header.entries {
            return Err(Error::corrupt("the layer's pages do not add up to its entries"));
        }
        let pages = tables.len() / PAGE_ENTRY_LEN;
        let buckets = header.buckets as usize;
        Ok(Self {
            file: mapped,
            header,
            pages_checked: Checked::new(pages),
            buckets_checked: Checked::new(buckets),
            damaged: AtomicBool::new(false),
            alarm: OnceLock::new(),
        })
    }

    /// From now on `alarm` is set when a page or a bucket is found damaged.
    pub fn watch(&self, alarm: &Arc<AtomicBool>) {
        // Watched by two, the first one hears of it: a layer is in one chain.
        let _ = self.alarm.set(Arc::clone(alarm));
    }

    /// Whether a page or a bucket was found damaged.
    #[must_use]
    pub fn is_damaged(&self) -> bool {
        self.damaged.load(Ordering::Relaxed)
    }

    fn hurt(&self) {
        self.damaged.store(true, Ordering::Relaxed);
        if let Some(alarm) = self.alarm.get() {
            alarm.store(true, Ordering::Relaxed);
        }
    }

    /// The epochs whose before-images are here.
    #[must_use]
    pub fn epochs(&self) -> Range<Epoch> {
        self.header.epochs.clone()
    }

    /// The volume.
    #[must_use]
    pub fn volume(&self) -> Uuid {
        self.header.volume
    }

    /// Bytes of the file.
    #[must_use]
    #[allow(clippy::len_without_is_empty, reason = "it has a header")]
    pub fn len(&self) -> u64 {
        self.file.len() as u64
    }

    /// Before-images in the layer.
    #[must_use]
    pub fn entry_count(&self) -> u64 {
        self.header.entries
    }

    fn table(&self, table: Table) -> &[u8] {
        within(
            &self.file,
            match table {
                Table::Bits => self.header.bit_table(),
                Table::Meta => self.header.meta_table(),
            },
        )
    }

    /// Where in a table a page is or would be.
    fn place_of(table: &[u8], page: u64) -> usize {
        let number = |index: usize| word_of(&table[index * PAGE_ENTRY_LEN..], 0);
        let len = table.len() / PAGE_ENTRY_LEN;
        let (mut low, mut high) = (0, len);
        if len > 0 {
            // The numbers rise, so the page is at most as far from the front as its number is;
            // in a table without many gaps just there.
            let far = usize::try_from(page.saturating_sub(number(0))).unwrap_or(usize::MAX).min(len - 1);
            if number(far) <= page {
                low = far;
            } else {
                high = far;
            }
        }
        while low < high {
            let middle = usize::midpoint(low, high);
            if number(middle) < page { low = middle + 1 } else { high = middle }
        }
        low
    }

    /// The entry of a page and its place among all pages of the layer.
    fn entry(&self, table: Table, page: u64) -> Result<Option<(usize, PageEntry)>> {
        let bytes = self.table(table);
        let low = Self::place_of(bytes, page);
        if low == bytes.len() / PAGE_ENTRY_LEN || word_of(&bytes[low * PAGE_ENTRY_LEN..], 0) != page {
            return Ok(None);
        }
        let entry = PageEntry::decode(&bytes[low * PAGE_ENTRY_LEN..], &self.header.bodies())?;
        let before = if table == Table::Meta { self.header.bit_pages as usize } else { 0 };
        Ok(Some((before + low, entry)))
    }

    /// The body of a page, checked when it is touched for the first time.
    fn body(&self, index: usize, entry: &PageEntry) -> Result<&[u8]> {
        let body = within(&self.file, entry.offset..entry.offset + entry.body_len() as u64);
        if entry.body_len() == 0 || self.pages_checked.has(index) {
            return Ok(body);
        }
        let sound = crc32c::crc32c(body) == entry.crc
            && match entry.kind {
                PageKind::List => {
                    list_of(body).is_sorted_by(|a, b| a < b)
                        && list_of(body).all(|bit| u64::from(bit) < PAGE_BITS)
                }
                _ => body.iter().map(|byte| byte.count_ones()).sum::<u32>() == entry.count,
            };
        if !sound {
            self.hurt();
            return Err(Error::corrupt(format!("the checksum of page {} does not match", entry.page)))
                .context(|| self.name());
        }
        self.pages_checked.mark(index);
        Ok(body)
    }

    fn name(&self) -> String {
        format!("layer of epochs {} to {}", self.header.epochs.start, self.header.epochs.end)
    }

    fn read_page(&self, table: Table, page: u64) -> Result<Option<Page>> {
        let Some((index, entry)) = self.entry(table, page)? else { return Ok(None) };
        let body = self.body(index, &entry)?;
        Ok(Some(match entry.kind {
            PageKind::Empty => Page::Empty,
            PageKind::Full => Page::Full,
            PageKind::List => Page::List(list_of(body).collect()),
            PageKind::Bits => {
                let mut words: Words = [0; PAGE_WORDS];
                for (index, word) in words.iter_mut().enumerate() {
                    *word = word_of(body, index);
                }
                Page::Bits(Arc::new(words))
            }
        }))
    }

    /// Whether the layer has the before-image of that block.
    ///
    /// # Errors
    /// `Corrupt` if the page is damaged.
    pub fn bit(&self, block: Block) -> Result<bool> {
        let Some((index, entry)) = self.entry(Table::Bits, block.0 / PAGE_BITS)? else { return Ok(false) };
        let body = self.body(index, &entry)?;
        let bit = super::page::index16(block.0 % PAGE_BITS);
        Ok(match entry.kind {
            PageKind::Empty => false,
            PageKind::Full => true,
            PageKind::List => {
                let (pairs, _) = body.as_chunks::<2>();
                pairs.binary_search_by_key(&bit, |pair| u16::from_le_bytes(*pair)).is_ok()
            }
            PageKind::Bits => body[usize::from(bit) / 8] >> (bit % 8) & 1 == 1,
        })
    }

    /// A page of the bit map.
    ///
    /// # Errors
    /// `Corrupt` if the page is damaged.
    pub fn bits_page(&self, page: u64) -> Result<Page> {
        Ok(self.read_page(Table::Bits, page)?.unwrap_or_default())
    }

    /// Sets in `words` the bits of a page.
    ///
    /// # Errors
    /// `Corrupt` if the page is damaged.
    pub fn add_bits(&self, page: u64, words: &mut Words) -> Result<()> {
        match self.entry(Table::Bits, page)? {
            Some((index, entry)) => self.add_body(index, &entry, words),
            None => Ok(()),
        }
    }

    /// The same for several pages, ascending, each into its own words: one walk along the
    /// table.
    ///
    /// # Errors
    /// `Corrupt` if a page is damaged.
    pub fn add_pages(&self, pages: &[u64], words: &mut [Words]) -> Result<()> {
        let table = self.table(Table::Bits);
        let Some(first) = pages.first() else { return Ok(()) };
        let mut at = Self::place_of(table, *first);
        for (page, words) in pages.iter().zip(words) {
            let mut rest = table[at * PAGE_ENTRY_LEN..].chunks_exact(PAGE_ENTRY_LEN);
            let skipped = rest.by_ref().position(|entry| word_of(entry, 0) >= *page);
            let Some(skipped) = skipped else { return Ok(()) };
            at += skipped;
            let bytes = &table[at * PAGE_ENTRY_LEN..];
            if word_of(bytes, 0) == *page {
                self.add_body(at, &PageEntry::decode(bytes, &self.header.bodies())?, words)?;
            }
        }
        Ok(())
    }

    fn add_body(&self, index: usize, entry: &PageEntry, words: &mut Words) -> Result<()> {
        let body = self.body(index, entry)?;
        match entry.kind {
            PageKind::Empty => {}
            PageKind::Full => words.fill(u64::MAX),
            PageKind::List => {
                for bit in list_of(body) {
                    words[usize::from(bit) / 64 % PAGE_WORDS] |= 1 << (bit % 64);
                }
            }
            PageKind::Bits => {
                for (index, word) in words.iter_mut().enumerate() {
                    *word |= word_of(body, index);
                }
            }
        }
        Ok(())
    }

    /// The meta page as it was at the take of the layer's snapshot, if it changed before
    /// the next one.
    ///
    /// # Errors
    /// `Corrupt` if the page is damaged.
    pub fn meta_page(&self, page: u64) -> Result<Option<Page>> {
        self.read_page(Table::Meta, page)
    }

    fn numbers(&self, table: Table) -> impl Iterator<Item = u64> + '_ {
        self.table(table).chunks_exact(PAGE_ENTRY_LEN).map(|entry| word_of(entry, 0))
    }

    /// The numbers of the bit pages with a set bit, ascending.
    pub fn bit_pages(&self) -> impl Iterator<Item = u64> + '_ {
        self.numbers(Table::Bits)
    }

    /// The numbers of the meta pages that are here, ascending.
    pub fn meta_pages(&self) -> impl Iterator<Item = u64> + '_ {
        self.numbers(Table::Meta)
    }

    /// A bucket, checked when it is touched for the first time.
    fn bucket(&self, number: u32) -> Result<&[u8]> {
        let start = self.header.hash_offset + u64::from(number) * BUCKET_LEN as u64;
        let bucket = within(&self.file, start..start + BUCKET_LEN as u64);
        if !self.buckets_checked.has(number as usize) {
            check_bucket(bucket, number).inspect_err(|_| self.hurt()).context(|| self.name())?;
            self.buckets_checked.mark(number as usize);
        }
        Ok(bucket)
    }

    fn lookup(&self, block: Block) -> Result<Option<((u32, usize), Slot)>> {
        let mut current: Option<(u32, &[u8])> = None;
        for (number, index) in probe(block.0, self.header.buckets) {
            let bucket = match current {
                Some((open, bucket)) if open == number => bucket,
                _ => self.bucket(number)?,
            };
            current = Some((number, bucket));
            match Slot::decode(&bucket[index * SLOT_LEN..]) {
                None => return Ok(None),
                Some(slot) if slot.block == block.0 => return Ok(Some(((number, index), slot))),
                Some(_) => {}
            }
        }
        Ok(None)
    }

    /// The before-image of that block, if it is here.
    ///
    /// # Errors
    /// `Corrupt` if the bucket is damaged.
    pub fn image(&self, block: Block) -> Result<Option<SavedImage>> {
        Ok(self.lookup(block)?.map(|(_, slot)| image_of(&slot).1))
    }

    fn slots(&self) -> impl Iterator<Item = Result<((u32, usize), Slot)>> + '_ {
        (0..self.header.buckets).flat_map(move |number| {
            let (bucket, error) = match self.bucket(number) {
                Ok(bucket) => (bucket, None),
                Err(error) => (&[][..], Some(Err(error))),
            };
            let slots = bucket.chunks_exact(SLOT_LEN).take(BUCKET_SLOTS).enumerate();
            error.into_iter().chain(
                slots.filter_map(move |(index, bytes)| Some(Ok(((number, index), Slot::decode(bytes)?)))),
            )
        })
    }

    /// All before-images, in the order of the file; a damaged bucket is one error.
    pub fn entries(&self) -> impl Iterator<Item = Result<(Block, SavedImage)>> + '_ {
        self.slots().map(|slot| slot.map(|(_, slot)| image_of(&slot)))
    }

    /// Reads everything: every checksum, and that bits and entries are the same blocks.
    ///
    /// # Errors
    /// `Corrupt`, naming the first thing that is wrong.
    pub fn verify(&self) -> Result<()> {
        for page in self.bit_pages() {
            self.bits_page(page)?;
        }
        for page in self.meta_pages() {
            self.meta_page(page)?;
        }
        let bodies = self.header.bodies();
        let tables = within(&self.file, self.header.bit_table().start..self.header.meta_table().end);
        let mut filled = bodies.start;
        for bytes in tables.chunks_exact(PAGE_ENTRY_LEN) {
            let entry = PageEntry::decode(bytes, &bodies)?;
            if entry.body_len() > 0 {
                filled = filled.max(entry.offset + entry.body_len() as u64);
            }
        }
        if within(&self.file, filled..bodies.end).iter().any(|byte| *byte != 0) {
            return Err(Error::corrupt("there is something between the pages and the block map"))
                .context(|| self.name());
        }
        let mut count = 0;
        for slot in self.slots() {
            let (place, slot) = slot?;
            let block = Block(slot.block);
            // Found where it stands, so no block stands there twice.
            if !self.bit(block)? || self.lookup(block)?.map(|(found, _)| found) != Some(place) {
                return Err(Error::corrupt(format!(
                    "the entry of block {block} has no bit or no right place"
                )))
                .context(|| self.name());
            }
            count += 1;
        }
        if count != self.header.entries {
            return Err(Error::corrupt(format!("{count} entries for {} bits", self.header.entries)))
                .context(|| self.name());
        }
        Ok(())
    }
}

fn image_of(slot: &Slot) -> (Block, SavedImage) {
    let image = SavedImage { addr: SaveAddr::from_word(slot.addr), crc: slot.crc, damaged: slot.damaged };
    (Block(slot.block), image)
}

#[cfg(test)]
mod tests;
