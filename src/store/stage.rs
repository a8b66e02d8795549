//! The stage: slots of whole blocks in memory that outlives the process.
//!
//! Owns the region and its free list. A slot is whole from the moment its header is
//! stored; a newer slot of a block is stored before the older one is released, so a
//! process may die between any two stores and lose nothing it acknowledged.

use crate::error::{Error, Result};
use crate::format::slot::{HEADER_SIZE, SLOT_SIZE, SlotHeader, StageHeader, data_at, region_size, slot_at};
use crate::io::{Io, OpenHow, Region};
use crate::types::{Block, Epoch, Seq};
use bytes::Bytes;
use std::path::Path;
use std::rc::Rc;
use uuid::Uuid;

/// An open stage.
pub struct Stage {
    region: Rc<dyn Region>,
    slots: usize,
    block_size: u32,
    free: Vec<usize>,
}

/// What a look at a stage that a dead process of this boot must have left finds.
pub enum Seen {
    /// There is no file.
    Missing,
    /// It is not this volume's, not of this boot, or damaged.
    Unfit(String),
    /// It has so many slots; those of the list are damaged. Where the header of one is whole,
    /// it says what the slot held.
    Fit(usize, Vec<(usize, Option<SlotHeader>)>),
}

/// Looks at a stage; nothing in it is changed.
///
/// # Errors
/// `Io`.
pub async fn look(io: &Io, path: &Path, volume: Uuid, block_size: u32) -> Result<Seen> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else { return Ok(Seen::Missing) };
    if !io.list(dir).await?.iter().any(|there| name == there.as_str()) {
        return Ok(Seen::Missing);
    }
    let file = io.open(path, OpenHow::Read).await?;
    let size = io.size(file).await;
    io.close(file);
    let size = usize::try_from(size?).unwrap_or(usize::MAX);
    if size < HEADER_SIZE {
        return Ok(Seen::Unfit("it is too short".to_owned()));
    }
    let region = io.map_region(path, size as u64).await?;
    let mut bytes = [0; HEADER_SIZE];
    region.read(0, &mut bytes);
    let Some(header) = StageHeader::decode(&bytes) else {
        return Ok(Seen::Unfit("its header is damaged".to_owned()));
    };
    if header.volume != volume {
        return Ok(Seen::Unfit(format!("it is volume {}'s", header.volume)));
    }
    if header.boot != io.boot_id() {
        return Ok(Seen::Unfit("it is of another boot of the machine".to_owned()));
    }
    let slots = header.slots as usize;
    if header.block_size != block_size || slots > 1 << 20 || region_size(slots, block_size) != size {
        return Ok(Seen::Unfit("its length is not what its header says".to_owned()));
    }
    let mut bad = Vec::new();
    for index in 0..slots {
        let mut bytes = [0; SLOT_SIZE];
        region.read(slot_at(index), &mut bytes);
        if bytes[..8] != [0; 8] && read_slot(&*region, slots, block_size, index).is_none() {
            bad.push((index, SlotHeader::decode(&bytes)));
        }
    }
    Ok(Seen::Fit(slots, bad))
}

/// What an earlier process of this boot left in a slot.
pub struct Left {
    /// The slot.
    pub index: usize,
    /// What it holds.
    pub header: SlotHeader,
}

impl Stage {
    /// How many slots a stage of that many bytes has.
    #[must_use]
    pub fn slots_of(bytes: u64, block_size: u32) -> usize {
        usize::try_from(bytes / u64::from(block_size)).unwrap_or(usize::MAX).clamp(8, 1 << 20)
    }

    /// Maps the stage and looks at what an earlier process left. The slots of another
    /// boot or another shape are forgotten.
    ///
    /// # Errors
    /// `Io`, `Full`; `Corrupt` when it is another volume's, which may need it.
    pub async fn open(
        io: &Io,
        path: &Path,
        volume: Uuid,
        slots: usize,
        block_size: u32,
    ) -> Result<(Self, Vec<Left>)> {
        not_another_s(io, path, volume).await?;
        let region = io.map_region(path, region_size(slots, block_size) as u64).await?;
        let header = StageHeader {
            volume,
            boot: io.boot_id(),
            slots: u32::try_from(slots).unwrap_or(u32::MAX),
            block_size,
        };
        let mut bytes = [0; HEADER_SIZE];
        region.read(0, &mut bytes);
        let mut left = Vec::new();
        if StageHeader::decode(&bytes) == Some(header) {
            for index in 0..slots {
                if let Some(header) = read_slot(&*region, slots, block_size, index) {
                    left.push(Left { index, header });
                }
            }
            left.sort_by_key(|l| l.header.seq);
        } else {
            // The header comes last, so a death in between forgets again.
            region.write(0, &[0; HEADER_SIZE]);
            for index in 0..slots {
                region.write(slot_at(index), &[0; SLOT_SIZE]);
            }
            region.write(0, &header.encode());
        }
        let mut used = vec![false; slots];
        for slot in &left {
            used[slot.index] = true;
        }
        let free = (0..slots).rev().filter(|i| !used[*i]).collect();
        Ok((Self { region, slots, block_size, free }, left))
    }

    /// Slots in it.
    #[must_use]
    pub fn len(&self) -> usize {
        self.slots
    }

    /// Whether nothing is staged.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.free.len() == self.slots
    }

    /// Slots that are free.
    #[must_use]
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// Stores one block; none when no slot is free.
    pub fn put(&mut self, seq: Seq, block: Block, epoch: Epoch, data: &[u8]) -> Option<usize> {
        debug_assert_eq!(data.len(), self.block_size as usize);
        let index = self.free.pop()?;
        self.region.write(data_at(self.slots, self.block_size, index), data);
        let header = SlotHeader { seq, block, epoch, data_crc: crc32c::crc32c(data) };
        // The number comes last and alone: stores of eight bytes are never left in part, so a
        // slot that has a number and a wrong checksum is damaged, not half stored.
        let header = header.encode();
        self.region.write(slot_at(index) + 8, &header[8..]);
        self.region.write(slot_at(index), &header[..8]);
        Some(index)
    }

    /// The block in a slot.
    #[must_use]
    pub fn data(&self, index: usize) -> Bytes {
        let mut data = vec![0; self.block_size as usize];
        self.read(index, &mut data);
        Bytes::from(data)
    }

    /// Copies the block in a slot into a buffer as long as a block.
    pub fn read(&self, index: usize, data: &mut [u8]) {
        self.region.read(data_at(self.slots, self.block_size, index), data);
    }

    /// Makes the slot mean nothing to a later process; its data stays until it is freed.
    pub fn disown(&self, index: usize) {
        self.region.write(slot_at(index), &[0; 8]);
    }

    /// Frees a slot.
    pub fn release(&mut self, index: usize) {
        self.disown(index);
        self.free.push(index);
    }
}

/// Refuses another volume's stage.
async fn not_another_s(io: &Io, path: &Path, volume: Uuid) -> Result<()> {
    let Ok(file) = io.open(path, OpenHow::Read).await else { return Ok(()) };
    let bytes = io.read(file, 0, HEADER_SIZE).await;
    io.close(file);
    match StageHeader::decode(&bytes?) {
        Some(header) if header.volume != volume => {
            Err(Error::corrupt(format!("{} is volume {}'s", path.display(), header.volume))
                .hint("put it back where it belongs: its volume may need what is staged there"))
        }
        _ => Ok(()),
    }
}

fn read_slot(region: &dyn Region, slots: usize, block_size: u32, index: usize) -> Option<SlotHeader> {
    let mut bytes = [0; SLOT_SIZE];
    region.read(slot_at(index), &mut bytes);
    let header = SlotHeader::decode(&bytes)?;
    let mut data = vec![0; block_size as usize];
    region.read(data_at(slots, block_size, index), &mut data);
    (crc32c::crc32c(&data) == header.data_crc).then_some(header)
}
