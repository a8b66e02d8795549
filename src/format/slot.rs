//! The stage: a header, a table of slot headers, the slots' data.
//!
//! A slot header is stored after its data and carries both their checksums, so a
//! process that dies while it stores leaves either a whole slot or none. The region
//! means nothing in another boot: its header names the boot it was used in.

use super::codec::{Fields, Put};
use crate::types::{Block, Epoch, Seq};
use uuid::Uuid;

/// Bytes of the region's header.
pub const HEADER_SIZE: usize = 512;
/// Bytes of a slot's header.
pub const SLOT_SIZE: usize = 40;

const MAGIC: &[u8; 8] = b"SVSTAGE1";

/// Whose stage it is, and of which boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StageHeader {
    /// The volume.
    pub volume: Uuid,
    /// The kernel's identity of the boot.
    pub boot: [u8; 16],
    /// How many slots there are.
    pub slots: u32,
    /// Bytes of a slot's data.
    pub block_size: u32,
}

impl StageHeader {
    /// The header's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Put::default();
        out.0.extend_from_slice(MAGIC);
        out.uuid(self.volume);
        out.uuid(Uuid::from_bytes(self.boot));
        out.u32(self.slots);
        out.u32(self.block_size);
        let crc = crc32c::crc32c(&out.0);
        out.u32(crc);
        out.0.resize(HEADER_SIZE, 0);
        out.0
    }

    /// Reads the header; none if it is no whole one.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut fields = Fields(bytes);
        if fields.bytes(8).ok()? != MAGIC {
            return None;
        }
        let (volume, boot) = (fields.uuid().ok()?, *fields.uuid().ok()?.as_bytes());
        let (slots, block_size, crc) = (fields.u32().ok()?, fields.u32().ok()?, fields.u32().ok()?);
        (crc32c::crc32c(&bytes[..48]) == crc).then_some(Self { volume, boot, slots, block_size })
    }
}

/// What a slot holds. An all-zero header is a free slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotHeader {
    /// Its place in the order of changes; never 0.
    pub seq: Seq,
    /// The block.
    pub block: Block,
    /// The epoch of the write.
    pub epoch: Epoch,
    /// The checksum (CRC-32C) of the data.
    pub data_crc: u32,
}

impl SlotHeader {
    /// The header's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; SLOT_SIZE] {
        let mut out = Put::default();
        out.u64(self.seq.0);
        out.u64(self.block.0);
        out.u64(self.epoch.0);
        out.u32(self.data_crc);
        let crc = crc32c::crc32c(&out.0);
        out.u32(crc);
        out.0.resize(SLOT_SIZE, 0);
        let mut bytes = [0; SLOT_SIZE];
        bytes.copy_from_slice(&out.0);
        bytes
    }

    /// Reads the header; none if the slot is free or was left in part.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut fields = Fields(bytes);
        let (seq, block, epoch) = (fields.u64().ok()?, fields.u64().ok()?, fields.u64().ok()?);
        let (data_crc, crc) = (fields.u32().ok()?, fields.u32().ok()?);
        (seq != 0 && crc32c::crc32c(&bytes[..28]) == crc).then_some(Self {
            seq: Seq(seq),
            block: Block(block),
            epoch: Epoch(epoch),
            data_crc,
        })
    }
}

/// The offset of slot `index`'s header in the region.
#[must_use]
pub fn slot_at(index: usize) -> usize {
    HEADER_SIZE + index * SLOT_SIZE
}

/// The offset of slot `index`'s data in a region of `slots` slots.
#[must_use]
pub fn data_at(slots: usize, block_size: u32, index: usize) -> usize {
    (HEADER_SIZE + slots * SLOT_SIZE).next_multiple_of(4096) + index * block_size as usize
}

/// Bytes of a region of `slots` slots.
#[must_use]
pub fn region_size(slots: usize, block_size: u32) -> usize {
    data_at(slots, block_size, slots).next_multiple_of(4096)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::page_test::compare;

    #[test]
    fn the_page_tells_the_header() {
        let header = StageHeader {
            volume: Uuid::from_u128(0x0102_0304),
            boot: *b"0123456789abcdef",
            slots: 0x11,
            block_size: 512,
        };
        let bytes = header.encode();
        compare("### Header of a stage", &bytes, |field| match field {
            "volume identity" => header.volume.as_bytes().to_vec(),
            "boot identity" => header.boot.to_vec(),
            "slots" => 0x11_u32.to_le_bytes().to_vec(),
            "block size in bytes" => 512_u32.to_le_bytes().to_vec(),
            other => panic!("{other}"),
        });
        assert_eq!(StageHeader::decode(&bytes), Some(header));
        for at in 0..52 {
            let mut bad = bytes.clone();
            bad[at] ^= 1;
            assert_eq!(StageHeader::decode(&bad), None, "byte {at}");
        }
    }

    #[test]
    fn the_page_tells_slots() {
        let slot = SlotHeader { seq: Seq(1), block: Block(2), epoch: Epoch(3), data_crc: 0x0a0b_0c0d };
        let bytes = slot.encode();
        compare("### Header of a slot", &bytes, |field| match field {
            "sequence number" => 1_u64.to_le_bytes().to_vec(),
            "block" => 2_u64.to_le_bytes().to_vec(),
            "epoch of the write" => 3_u64.to_le_bytes().to_vec(),
            "checksum of the data" => 0x0a0b_0c0d_u32.to_le_bytes().to_vec(),
            other => panic!("{other}"),
        });
        assert_eq!(SlotHeader::decode(&bytes), Some(slot));
        for at in 0..32 {
            let mut bad = bytes;
            bad[at] ^= 1;
            assert_eq!(SlotHeader::decode(&bad), None, "byte {at}");
        }
        assert_eq!(SlotHeader::decode(&[0; SLOT_SIZE]), None);
        assert_eq!((slot_at(2), data_at(100, 4096, 1)), (592, 8192 + 4096));
    }
}

#[cfg(test)]
mod damage {
    use super::*;

    #[test]
    fn a_header_comes_back_and_its_neighbours_do_not() {
        let header = StageHeader { volume: Uuid::from_u128(1), boot: [2; 16], slots: 3, block_size: 4096 };
        let bytes = header.encode();
        assert_eq!((bytes.len(), StageHeader::decode(&bytes)), (HEADER_SIZE, Some(header)));
        for bit in 0..52 * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(StageHeader::decode(&bad), None, "bit {bit}");
        }
        for len in 0..52 {
            assert_eq!(StageHeader::decode(&bytes[..len]), None, "{len} bytes");
        }
    }

    #[test]
    fn a_slot_comes_back_whole_or_not_at_all() {
        let slot = SlotHeader { seq: Seq(9), block: Block(1 << 36), epoch: Epoch(3), data_crc: 0xdead_beef };
        let bytes = slot.encode();
        assert_eq!(SlotHeader::decode(&bytes), Some(slot));
        for bit in 0..32 * 8 {
            let mut bad = bytes;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(SlotHeader::decode(&bad), None, "bit {bit}");
        }
        for len in 0..32 {
            assert_eq!(SlotHeader::decode(&bytes[..len]), None, "{len} bytes");
        }
        assert_eq!(SlotHeader::decode(&[0; SLOT_SIZE]), None, "a free slot");
        assert_eq!(
            SlotHeader::decode(&SlotHeader { seq: Seq(0), ..slot }.encode()),
            None,
            "number 0 is no change"
        );
    }

    #[test]
    fn places_in_the_region_do_not_overlap() {
        for (slots, block_size) in [(1, 512), (7, 4096), (16384, 4096), (64, 1 << 20)] {
            assert!(slot_at(slots) <= data_at(slots, block_size, 0));
            assert_eq!(data_at(slots, block_size, 1) - data_at(slots, block_size, 0), block_size as usize);
            assert!(region_size(slots, block_size) >= data_at(slots, block_size, slots));
        }
    }
}
