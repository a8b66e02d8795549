//! Finding the groups of a segment again: after a stop, for a layer whose file is lost, and
//! to see whether they are whole.
//!
//! A walk goes from group to group. Below the mark every group was whole once: one whose
//! head is damaged is read from its tail, and one that has lost both is a gap, behind which
//! the walk goes on at the next whole head. A walk never takes anything for a group whose
//! checksum does not hold.

use super::{SaveVolume, addr};
use crate::error::{Error, Result};
use crate::format::segment::{
    GROUP_ALIGN, GROUP_COUNT_MAX, GROUP_FIXED_SIZE, GroupHeader, GroupOf, HEADER_SIZE, SegmentHeader,
    group_size, images_at, tail_size,
};
use crate::io::FileId;
use crate::types::{Epoch, SaveAddr};
use bytes::Bytes;
use std::ops::Range;

/// A group found in a segment.
pub struct FoundGroup {
    /// Its header.
    pub header: GroupHeader,
    /// Where its first image is.
    pub images: SaveAddr,
    /// Where it begins, in bytes.
    pub at: u64,
}

/// What a walk over a segment saw.
#[derive(Default)]
pub struct Walk {
    /// Whole groups, in the order of the file.
    pub groups: Vec<FoundGroup>,
    /// Where groups below the mark are lost, in bytes.
    pub gaps: Vec<Range<u64>>,
    /// What is damaged and has a second copy that is whole: offset, length, what it is.
    pub spoiled: Vec<(u64, u64, &'static str)>,
    /// Behind the last group.
    pub end: u64,
    /// The length of the file.
    pub size: u64,
    /// Bytes of headers, heads and tails whose checksums hold.
    pub verified: u64,
}

impl SaveVolume {
    /// All whole groups of a segment, oldest first; after it, groups can be appended no
    /// more (a new segment is begun).
    ///
    /// # Errors
    /// `Corrupt` when a group below `mark` is lost, or the file is another one's.
    pub async fn scan(&self, number: u32, mark: u64) -> Result<Vec<FoundGroup>> {
        let walk = self.walk(number, mark, false).await?;
        if let Some(gap) = walk.gaps.first() {
            return Err(Error::corrupt(format!(
                "segment {number:08}: the group at offset {} is damaged, head and tail",
                gap.start
            ))
            .hint("run 'snapvol check --repair' on the store"));
        }
        for (at, _, what) in &walk.spoiled {
            tracing::warn!(
                "{}: {what} at offset {at} is damaged; its second copy is whole",
                self.paths.segment(number).display()
            );
        }
        if walk.end == 0 {
            return Ok(Vec::new());
        }
        if let Some(segment) = self.inner.borrow_mut().segments.get_mut(&number) {
            segment.end = walk.end;
            segment.prefix = walk.end;
            segment.allocated = walk.size.max(walk.end);
            // The last group need not be of the youngest epoch: two are in flight at a time.
            segment.youngest = walk.groups.iter().map(|g| g.header.epoch).fold(segment.youngest, Epoch::max);
        }
        Ok(walk.groups)
    }

    /// Goes over a segment. With `thorough`, the second copies are looked at too.
    ///
    /// A segment that was about to be used again when the process died has no groups, and
    /// its walk ends at 0.
    ///
    /// # Errors
    /// `Corrupt` when the file is not that segment's; `Io`.
    pub async fn walk(&self, number: u32, mark: u64, thorough: bool) -> Result<Walk> {
        let generation = self.inner.borrow().segments.get(&number).map_or(0, |s| s.generation);
        let of = GroupOf { volume: self.volume, segment: number, generation, block_size: self.block_size };
        let file = self.open_file(number).await?;
        let file = file.file;
        let mut walk = Walk { size: self.io.size(file).await?, ..Walk::default() };
        match SegmentHeader::decode(&self.io.read(file, 0, HEADER_SIZE).await?) {
            Ok(header) if (header.volume, header.segment) != (self.volume, number) => {
                return Err(Error::corrupt(format!(
                    "the file holds segment {:08} of volume {}, not {number:08} of {}",
                    header.segment, header.volume, self.volume
                )));
            }
            Ok(header) if header.generation == generation => walk.verified += 44,
            Ok(header) if header.generation == generation + 1 => {
                // It was empty and about to be used again; nothing was appended before the
                // record of that, which there is none of.
                let used = GroupOf { generation: header.generation, ..of };
                return match self.head_at(file, &used, HEADER_SIZE as u64).await? {
                    None => Ok(walk),
                    Some(_) => Err(older_journal(number)),
                };
            }
            Ok(header) if header.generation > generation => return Err(older_journal(number)),
            Ok(_) => {
                return Err(Error::corrupt(format!(
                    "segment {number:08} is older than the journal says: the file is from another copy"
                )));
            }
            Err(error) if error.kind() != crate::ErrorKind::Corrupt => return Err(error),
            Err(_) => walk.spoiled.push((0, 44, "the segment's header")),
        }
        self.walk_groups(file, &of, mark, thorough, &mut walk).await?;
        Ok(walk)
    }

    async fn walk_groups(
        &self,
        file: FileId,
        of: &GroupOf,
        mark: u64,
        thorough: bool,
        walk: &mut Walk,
    ) -> Result<()> {
        let mut at = HEADER_SIZE as u64;
        while at < mark || at + GROUP_FIXED_SIZE as u64 <= walk.size {
            let found = match self.head_at(file, of, at).await? {
                Some(header) if at < mark || self.is_complete(file, of, &header, at).await? => {
                    let count = header.entries.len();
                    if thorough && self.tail_at(file, of, at, count).await?.is_none() {
                        let end = at + group_size(count, self.block_size);
                        let len = tail_size(count) as u64;
                        walk.spoiled.push((end - len, len, "the tail of a group"));
                    }
                    header
                }
                _ if at >= mark => break,
                _ => match self.find_tail(file, of, at, mark).await? {
                    Some(header) => {
                        let len = (images_at(header.entries.len())) as u64;
                        walk.spoiled.push((at, len, "the head of a group"));
                        header
                    }
                    None => {
                        let next = self.next_head(file, of, at + GROUP_ALIGN, mark).await?;
                        walk.gaps.push(at..next);
                        at = next;
                        continue;
                    }
                },
            };
            let count = found.entries.len();
            walk.verified += (GROUP_FIXED_SIZE * 2 + (tail_size(count) - GROUP_FIXED_SIZE) * 2) as u64;
            let images = addr(of.segment, at + images_at(count) as u64);
            walk.groups.push(FoundGroup { header: found, images, at });
            at += group_size(count, self.block_size);
        }
        walk.end = at;
        Ok(())
    }

    /// Writes again the header, and heads and tails of groups, that are damaged and whose
    /// other copy is whole.
    ///
    /// # Errors
    /// As for [`Self::walk`].
    pub async fn mend(&self, number: u32, mark: u64) -> Result<()> {
        let walk = self.walk(number, mark, true).await?;
        if walk.spoiled.is_empty() {
            return Ok(());
        }
        let generation = self.inner.borrow().segments.get(&number).map_or(0, |s| s.generation);
        let open = self.open_file(number).await?;
        for (at, len, what) in &walk.spoiled {
            let found = walk.groups.iter().find(|g| (g.at..g.at + self.size_of(g)).contains(at));
            let bytes = match found {
                None => SegmentHeader { volume: self.volume, segment: number, generation }.encode(),
                Some(group) if group.at == *at => group.header.encode(),
                Some(group) => group.header.encode_tail(),
            };
            debug_assert!(bytes.len() as u64 >= *len, "all of it is written again");
            self.io.write(open.file, *at, Bytes::from(bytes)).await?;
            tracing::warn!(
                "{}: {what} at offset {at} was written again",
                self.paths.segment(number).display()
            );
        }
        open.syncer.wrote();
        open.syncer.sync().await
    }

    fn size_of(&self, group: &FoundGroup) -> u64 {
        group_size(group.header.entries.len(), self.block_size)
    }

    /// The head of the group that begins there, if it is whole.
    async fn head_at(&self, file: FileId, of: &GroupOf, at: u64) -> Result<Option<GroupHeader>> {
        let fixed = self.io.read(file, at, GROUP_FIXED_SIZE).await?;
        let Some(count) = GroupHeader::peek(&fixed, of) else { return Ok(None) };
        Ok(GroupHeader::decode(&self.io.read(file, at, images_at(count)).await?).ok())
    }

    /// The tail of the group of `count` entries that begins there, if it is whole.
    async fn tail_at(
        &self,
        file: FileId,
        of: &GroupOf,
        at: u64,
        count: usize,
    ) -> Result<Option<GroupHeader>> {
        let end = at + group_size(count, self.block_size);
        let len = tail_size(count);
        let bytes = self.io.read(file, end - len as u64, len).await?;
        let same = GroupHeader::peek_tail(&bytes[len - GROUP_FIXED_SIZE..], of) == Some(count);
        Ok(GroupHeader::decode_tail(&bytes).ok().filter(|_| same))
    }

    /// The group that begins at `at`, by a tail that says so.
    async fn find_tail(&self, file: FileId, of: &GroupOf, at: u64, mark: u64) -> Result<Option<GroupHeader>> {
        let longest = group_size(GROUP_COUNT_MAX, self.block_size);
        let mut end = at + GROUP_ALIGN;
        while end <= mark && end - at <= longest {
            let fixed = self.io.read(file, end - GROUP_FIXED_SIZE as u64, GROUP_FIXED_SIZE).await?;
            if let Some(count) = GroupHeader::peek_tail(&fixed, of)
                && group_size(count, self.block_size) == end - at
                && let Some(header) = self.tail_at(file, of, at, count).await?
            {
                return Ok(Some(header));
            }
            end += GROUP_ALIGN;
        }
        Ok(None)
    }

    /// The first place from `at` on with a whole head; the mark if there is none below it.
    async fn next_head(&self, file: FileId, of: &GroupOf, mut at: u64, mark: u64) -> Result<u64> {
        while at < mark {
            if self.head_at(file, of, at).await?.is_some() {
                return Ok(at);
            }
            at += GROUP_ALIGN;
        }
        Ok(mark)
    }

    /// Whether all of a group that nobody was promised is there: it may be under way, or torn.
    async fn is_complete(&self, file: FileId, of: &GroupOf, header: &GroupHeader, at: u64) -> Result<bool> {
        if self.tail_at(file, of, at, header.entries.len()).await?.as_ref() != Some(header) {
            return Ok(false);
        }
        let first = at + images_at(header.entries.len()) as u64;
        for (index, entry) in header.entries.iter().enumerate() {
            let offset = first + index as u64 * u64::from(self.block_size);
            let image = self.io.read(file, offset, self.block_size as usize).await?;
            if crc32c::crc32c(&image) != entry.crc {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Syncs a segment after an unclean stop, before anything in it is believed.
    ///
    /// # Errors
    /// `Io`.
    pub async fn sync_segment(&self, number: u32) -> Result<()> {
        let file = self.open_file(number).await?;
        file.syncer.wrote();
        file.syncer.sync().await
    }
}

fn older_journal(number: u32) -> Error {
    Error::corrupt(format!(
        "segment {number:08} was used again later than the journal knows: the journal is older than the rest"
    ))
    .hint("the volume's files are of two copies; restore all of its directory from one")
}
