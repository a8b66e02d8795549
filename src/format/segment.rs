//! A segment of the save volume: one header sector page, then groups of
//! before-images, each behind a header that lists them.
//!
//! Why the order of writes is what it is: a group is one write, header, images and the
//! tail that repeats the header, and one sync makes it durable. The header's checksum
//! covers the list and each image has its own, so a group that was torn is recognised as a
//! whole and an image that rots is recognised by itself. The tail lies at the other end of
//! the group: what spoils the header seldom spoils it too.

use super::codec::{Fields, Put};
use crate::error::{Error, ErrorKind, Result};
use crate::types::{Block, Epoch};
use uuid::Uuid;

/// Bytes before the first group.
pub const HEADER_SIZE: usize = 4096;
/// Groups start at multiples of this, in bytes.
pub const GROUP_ALIGN: u64 = 4096;
/// Bytes of a group header before its list.
pub const GROUP_FIXED_SIZE: usize = 64;
/// Bytes of one entry of the list.
pub const ENTRY_SIZE: usize = 16;
/// Before-images in a group, at most.
pub const GROUP_COUNT_MAX: usize = 1024;

const MAGIC: &[u8; 8] = b"SVSEGM01";
const GROUP_MAGIC: &[u8; 8] = b"SVGROUP1";
const TAIL_MAGIC: &[u8; 8] = b"SVGTAIL1";
const VERSION: u32 = 1;
const DAMAGED: u32 = 1;

/// Whose segment it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// The volume.
    pub volume: Uuid,
    /// The segment's number.
    pub segment: u32,
    /// Its generation.
    pub generation: u64,
}

impl SegmentHeader {
    /// The header's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Put::default();
        out.0.extend_from_slice(MAGIC);
        out.u32(VERSION);
        out.u32(self.segment);
        out.uuid(self.volume);
        out.u64(self.generation);
        let crc = crc32c::crc32c(&out.0);
        out.u32(crc);
        out.0.resize(HEADER_SIZE, 0);
        out.0
    }

    /// Reads the header.
    ///
    /// # Errors
    /// `Corrupt`; `Unsupported` for a newer version.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let mut fields = Fields(bytes);
        if fields.bytes(8)? != MAGIC {
            return Err(Error::corrupt("this is no segment"));
        }
        let version = fields.u32()?;
        let (segment, volume, generation, crc) =
            (fields.u32()?, fields.uuid()?, fields.u64()?, fields.u32()?);
        if crc32c::crc32c(&bytes[..40]) != crc {
            return Err(Error::corrupt("the segment's header has a wrong checksum"));
        }
        if version != VERSION {
            return Err(Error::new(ErrorKind::Unsupported, format!("the segment has version {version}")));
        }
        Ok(Self { volume, segment, generation })
    }
}

/// One before-image of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupEntry {
    /// The block that it is of.
    pub block: Block,
    /// The checksum (CRC-32C) of the image.
    pub crc: u32,
    /// It could not be read when it was to be saved.
    pub damaged: bool,
}

/// A group's header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupHeader {
    /// The volume.
    pub volume: Uuid,
    /// The segment's number.
    pub segment: u32,
    /// The segment's generation.
    pub generation: u64,
    /// The epoch of the writes that made the saving necessary.
    pub epoch: Epoch,
    /// Bytes of one image.
    pub block_size: u32,
    /// In the order of the images.
    pub entries: Vec<GroupEntry>,
}

/// Bytes from the start of a group with `count` entries to its first image.
#[must_use]
pub fn images_at(count: usize) -> usize {
    (GROUP_FIXED_SIZE + count * ENTRY_SIZE).next_multiple_of(512)
}

/// Bytes of a group's tail: the list and what repeats the header, at the group's end.
#[must_use]
pub fn tail_size(count: usize) -> usize {
    count * ENTRY_SIZE + GROUP_FIXED_SIZE
}

/// Bytes of a whole group, its tail included.
#[must_use]
pub fn group_size(count: usize, block_size: u32) -> u64 {
    ((images_at(count) + count * block_size as usize + tail_size(count)) as u64).next_multiple_of(GROUP_ALIGN)
}

/// What a header is looked for by, before its checksum is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupOf {
    /// The volume.
    pub volume: Uuid,
    /// The segment's number.
    pub segment: u32,
    /// The segment's generation.
    pub generation: u64,
    /// Bytes of one image.
    pub block_size: u32,
}

impl GroupHeader {
    /// The header's bytes, up to the first image.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let (mut out, list) = self.parts(GROUP_MAGIC);
        out.extend_from_slice(&list);
        out.resize(images_at(self.entries.len()), 0);
        out
    }

    /// The tail's bytes, which end where the group ends.
    #[must_use]
    pub fn encode_tail(&self) -> Vec<u8> {
        let (fixed, mut out) = self.parts(TAIL_MAGIC);
        out.extend_from_slice(&fixed);
        out
    }

    /// The fields with their checksum, and the list.
    fn parts(&self, magic: &[u8; 8]) -> (Vec<u8>, Vec<u8>) {
        let mut out = Put::default();
        out.0.extend_from_slice(magic);
        out.u32(self.segment);
        out.u32(self.block_size);
        out.u64(self.generation);
        out.u64(self.epoch.0);
        out.count(self.entries.len());
        out.uuid(self.volume);
        out.0.resize(GROUP_FIXED_SIZE - 4, 0);
        let mut list = Put::default();
        for entry in &self.entries {
            list.u64(entry.block.0);
            list.u32(entry.crc);
            list.u32(if entry.damaged { DAMAGED } else { 0 });
        }
        let crc = crc32c::crc32c_append(crc32c::crc32c(&out.0), &list.0);
        out.u32(crc);
        (out.0, list.0)
    }

    /// How many entries the header that starts with `fixed` lists, if it is one of those
    /// asked for; its checksum is not looked at yet.
    #[must_use]
    pub fn peek(fixed: &[u8], of: &GroupOf) -> Option<usize> {
        Self::peek_as(GROUP_MAGIC, fixed, of)
    }

    /// The same for the last [`GROUP_FIXED_SIZE`] bytes of a group.
    #[must_use]
    pub fn peek_tail(fixed: &[u8], of: &GroupOf) -> Option<usize> {
        Self::peek_as(TAIL_MAGIC, fixed, of)
    }

    fn peek_as(magic: &[u8; 8], fixed: &[u8], of: &GroupOf) -> Option<usize> {
        let (header, count, _) = Self::fixed(magic, fixed.get(..GROUP_FIXED_SIZE)?).ok()?;
        let found = GroupOf {
            volume: header.volume,
            segment: header.segment,
            generation: header.generation,
            block_size: header.block_size,
        };
        (found == *of && (1..=GROUP_COUNT_MAX).contains(&count)).then_some(count)
    }

    /// Reads a header; `bytes` reach at least to the first image.
    ///
    /// # Errors
    /// `Corrupt`.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let list = bytes.get(GROUP_FIXED_SIZE..).unwrap_or_default();
        Self::decode_as(GROUP_MAGIC, bytes, list)
    }

    /// Reads a tail; `bytes` end where the group ends.
    ///
    /// # Errors
    /// `Corrupt`.
    pub fn decode_tail(bytes: &[u8]) -> Result<Self> {
        let short = || Error::corrupt("a group's tail is too short");
        let (list, fixed) =
            bytes.split_at_checked(bytes.len().saturating_sub(GROUP_FIXED_SIZE)).ok_or_else(short)?;
        let (_, count, _) = Self::fixed(TAIL_MAGIC, fixed)?;
        let from = count.checked_mul(ENTRY_SIZE).and_then(|len| list.len().checked_sub(len));
        Self::decode_as(TAIL_MAGIC, fixed, &list[from.ok_or_else(short)?..])
    }

    /// The fields before the list: a header without entries, their number, the checksum.
    fn fixed(magic: &[u8; 8], fixed: &[u8]) -> Result<(Self, usize, u32)> {
        let mut fields = Fields(fixed);
        if fields.bytes(8)? != magic {
            return Err(Error::corrupt("this is no group"));
        }
        let (segment, block_size, generation) = (fields.u32()?, fields.u32()?, fields.u64()?);
        let (epoch, count) = (Epoch(fields.u64()?), fields.u32()? as usize);
        let volume = fields.uuid()?;
        fields.bytes(8)?;
        let crc = fields.u32()?;
        Ok((Self { volume, segment, generation, epoch, block_size, entries: Vec::new() }, count, crc))
    }

    fn decode_as(magic: &[u8; 8], fixed: &[u8], list: &[u8]) -> Result<Self> {
        let (header, count, crc) = Self::fixed(magic, fixed)?;
        if count > GROUP_COUNT_MAX {
            return Err(Error::corrupt("a group lists too many images"));
        }
        let list = Fields(list).bytes(count * ENTRY_SIZE)?;
        if crc32c::crc32c_append(crc32c::crc32c(&fixed[..GROUP_FIXED_SIZE - 4]), list) != crc {
            return Err(Error::corrupt("a group's header has a wrong checksum"));
        }
        let mut from = Fields(list);
        let entries = (0..count)
            .map(|_| {
                let (block, crc, flags) = (Block(from.u64()?), from.u32()?, from.u32()?);
                Ok(GroupEntry { block, crc, damaged: flags & DAMAGED != 0 })
            })
            .collect::<Result<_>>()?;
        Ok(Self { entries, ..header })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::page_test::{compare, text};

    fn le32(number: u32) -> Vec<u8> {
        number.to_le_bytes().to_vec()
    }

    fn le64(number: u64) -> Vec<u8> {
        number.to_le_bytes().to_vec()
    }

    #[test]
    fn the_page_tells_the_header() {
        let header = SegmentHeader { volume: Uuid::from_u128(0x0102_0304), segment: 0x55, generation: 0x66 };
        compare("### Header of a segment", &header.encode(), |field| match field {
            "version" => le32(VERSION),
            "segment number" => le32(0x55),
            "volume identity" => header.volume.as_bytes().to_vec(),
            "generation" => le64(0x66),
            other => panic!("{other}"),
        });
    }

    #[test]
    fn the_page_tells_groups() {
        let header = GroupHeader {
            volume: Uuid::from_u128(0x99),
            segment: 0x11,
            generation: 0x22,
            epoch: Epoch(0x33),
            block_size: 512,
            entries: vec![GroupEntry { block: Block(1 << 33), crc: 0x0a0b_0c0d, damaged: true }; 30],
        };
        let bytes = header.encode();
        let list = &bytes[GROUP_FIXED_SIZE..GROUP_FIXED_SIZE + 30 * ENTRY_SIZE];
        let sum = crc32c::crc32c_append(crc32c::crc32c(&bytes[..GROUP_FIXED_SIZE - 4]), list);
        let fields = |sum: u32| {
            move |field: &str| match field {
                "segment number" => le32(0x11),
                "block size in bytes" => le32(512),
                "generation" => le64(0x22),
                "epoch of the writes that made the saving necessary" => le64(0x33),
                "entries" => le32(30),
                "volume identity" => Uuid::from_u128(0x99).as_bytes().to_vec(),
                "list checksum" => le32(sum),
                other => panic!("{other}"),
            }
        };
        compare("### Head of a group", &bytes[..GROUP_FIXED_SIZE], fields(sum));
        let tail = header.encode_tail();
        assert_eq!((tail.len(), &tail[..30 * ENTRY_SIZE]), (tail_size(30), list));
        let fixed = &tail[30 * ENTRY_SIZE..];
        let sum = crc32c::crc32c_append(crc32c::crc32c(&fixed[..GROUP_FIXED_SIZE - 4]), list);
        assert_eq!(fixed, [&b"SVGTAIL1"[..], &bytes[8..60], &sum.to_le_bytes()].concat());
        assert!(text().contains("`SVGTAIL1`"));
        compare("### Entry of a group", &list[..ENTRY_SIZE], |field| match field {
            "block" => le64(1 << 33),
            "image checksum" => le32(0x0a0b_0c0d),
            "flags" => le32(1),
            other => panic!("{other}"),
        });
        assert_eq!((images_at(30), images_at(28), group_size(30, 512)), (1024, 512, 20480));
        for fact in [
            format!("entries: 1 to {GROUP_COUNT_MAX}"),
            format!("multiples of {GROUP_ALIGN}, the first at {HEADER_SIZE}"),
            "up to a multiple of 512".to_owned(),
        ] {
            assert!(text().contains(&fact), "{fact}");
        }
    }

    #[test]
    fn group_round_trip() {
        let of = GroupOf { volume: Uuid::from_u128(7), segment: 3, generation: 9, block_size: 4096 };
        let header = GroupHeader {
            volume: of.volume,
            segment: 3,
            generation: 9,
            epoch: Epoch(5),
            block_size: 4096,
            entries: vec![
                GroupEntry { block: Block(7), crc: 1, damaged: false },
                GroupEntry { block: Block(1), crc: 2, damaged: true },
            ],
        };
        let bytes = header.encode();
        assert_eq!(bytes.len(), images_at(2));
        assert_eq!(GroupHeader::decode(&bytes).unwrap(), header);
        assert_eq!(GroupHeader::peek(&bytes, &of), Some(2));
        assert_eq!(GroupHeader::peek(&bytes, &GroupOf { generation: 8, ..of }), None);
        assert_eq!(GroupHeader::peek(&bytes, &GroupOf { volume: Uuid::nil(), ..of }), None);
        let tail = header.encode_tail();
        let fixed = &tail[tail.len() - GROUP_FIXED_SIZE..];
        assert_eq!(GroupHeader::decode_tail(&tail).unwrap(), header);
        assert_eq!((GroupHeader::peek_tail(fixed, &of), GroupHeader::peek(fixed, &of)), (Some(2), None));
        for at in 0..tail.len() {
            let mut bad = tail.clone();
            bad[at] ^= 1;
            assert!(GroupHeader::decode_tail(&bad).is_err(), "byte {at} of the tail");
        }
        assert!(GroupHeader::decode_tail(&[]).is_err());
        for at in 0..GROUP_FIXED_SIZE + 2 * ENTRY_SIZE {
            let mut bad = bytes.clone();
            bad[at] ^= 1;
            assert!(GroupHeader::decode(&bad).is_err(), "byte {at}");
        }
    }

    #[test]
    fn segment_round_trip() {
        let header = SegmentHeader { volume: Uuid::new_v4(), segment: 1, generation: 2 };
        assert_eq!(SegmentHeader::decode(&header.encode()).unwrap(), header);
        assert!(SegmentHeader::decode(&[0; 4096]).is_err());
        assert!(SegmentHeader::decode(&[]).is_err());
    }
}
