//! Finding the groups of a segment again after a stop.

use super::{FoundGroup, SaveVolume, addr};
use crate::error::{Error, Result};
use crate::format::segment::{
    GROUP_FIXED_SIZE, GroupHeader, HEADER_SIZE, SegmentHeader, group_size, images_at,
};
use crate::io::FileId;
use crate::types::Epoch;

impl SaveVolume {
    /// All whole groups of a segment, oldest first; after it, groups can be appended no
    /// more (a new segment is begun).
    ///
    /// # Errors
    /// `Corrupt` when a group below `mark` is not whole, or the file is another one's.
    pub async fn scan(&self, number: u32, mark: u64) -> Result<Vec<FoundGroup>> {
        let generation = self.inner.borrow().segments.get(&number).map_or(0, |s| s.generation);
        let file = self.open_file(number).await?;
        let size = self.io.size(file.file).await?;
        let header = SegmentHeader::decode(&self.io.read(file.file, 0, HEADER_SIZE).await?)
            .map_err(|e| e.context(format!("segment {number:08}")))?;
        let same = (header.volume, header.segment) == (self.volume, number);
        if same && header.generation > generation {
            // It was empty and about to be used again; nothing was appended before the
            // record of that, which there is none of.
            return Ok(Vec::new());
        }
        if !same || header.generation != generation {
            return Err(Error::corrupt(format!("segment {number:08} is another segment's file")));
        }
        let mut groups = Vec::new();
        let mut at = HEADER_SIZE as u64;
        while at + GROUP_FIXED_SIZE as u64 <= size {
            let Some(group) = self.group_at(file.file, number, generation, at, mark).await? else { break };
            let next = at + group_size(group.header.entries.len(), self.block_size);
            groups.push(group);
            at = next;
        }
        if at < mark {
            return Err(Error::corrupt(format!("segment {number:08}: the group at offset {at} is damaged"))
                .hint("run 'snapvol check --repair' on the store"));
        }
        if let Some(segment) = self.inner.borrow_mut().segments.get_mut(&number) {
            segment.end = at;
            segment.prefix = at;
            segment.allocated = size.max(at);
            // The last group need not be of the youngest epoch: two are in flight at a time.
            segment.youngest = groups.iter().map(|g| g.header.epoch).fold(segment.youngest, Epoch::max);
        }
        Ok(groups)
    }

    async fn group_at(
        &self,
        file: FileId,
        number: u32,
        generation: u64,
        at: u64,
        mark: u64,
    ) -> Result<Option<FoundGroup>> {
        let fixed = self.io.read(file, at, GROUP_FIXED_SIZE).await?;
        let Some(count) = GroupHeader::peek(&fixed, number, generation, self.block_size) else {
            return Ok(None);
        };
        let Ok(header) = GroupHeader::decode(&self.io.read(file, at, images_at(count)).await?) else {
            return Ok(None);
        };
        let first = at + images_at(count) as u64;
        if at >= mark {
            // Nobody was promised this group: it counts only if all of it is there.
            for (index, entry) in header.entries.iter().enumerate() {
                let offset = first + index as u64 * u64::from(self.block_size);
                let image = self.io.read(file, offset, self.block_size as usize).await?;
                if crc32c::crc32c(&image) != entry.crc {
                    return Ok(None);
                }
            }
        }
        Ok(Some(FoundGroup { header, images: addr(number, first) }))
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
