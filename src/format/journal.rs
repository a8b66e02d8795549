//! The journal file: a header, then frames of one record each.
//!
//! A frame carries the number of its change, the offset up to which the file was
//! known to be durable when the frame was made, and a checksum over all of it. The
//! offset tells a torn tail from damage: a bad frame below an offset that some later
//! frame vouches for was whole once.

use super::codec::{Fields, Put};
use super::roles::TurnRecord;
use super::state::{
    BookmarkRecord, LayerRecord, ReceiveRecord, SegmentRecord, SnapshotRecord, VolumeState, on_full_code,
    on_full_from, put_layer, put_lineage, put_ranges, put_receive, put_snapshot, role_code, role_from,
    take_layer, take_lineage, take_ranges, take_receive, take_snapshot,
};
use crate::error::{Error, ErrorKind, Result};
use crate::types::{Block, Epoch, OnFull, Role, RoleEpoch, Seq, Standing};
use bytes::Bytes;
use std::collections::BTreeMap;
use uuid::Uuid;

/// Bytes of the file header.
pub const HEADER_SIZE: usize = 64;
/// Bytes of a frame before its payload.
pub const FRAME_SIZE: usize = 40;
/// The largest payload that a reader accepts, in bytes.
pub const PAYLOAD_SIZE_MAX: usize = 64 << 20;

const FILE_MAGIC: &[u8; 8] = b"SVJRNL01";
const FRAME_MAGIC: u32 = u32::from_le_bytes(*b"SVJF");
const VERSION: u32 = 1;

/// One change, or one statement about durability.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// All that is so far; the first record of a file.
    State(Box<VolumeState>),
    /// The volume was opened in that boot; no `Close` follows while it runs.
    Open {
        /// The kernel's identity of the boot.
        boot: [u8; 16],
    },
    /// Everything before is durable and nothing is staged.
    Close,
    /// Granules came into use; their data was written before.
    MetaSet {
        /// The epoch of the writes.
        epoch: Epoch,
        /// Whether old data may lie there, so that it counts only before a barrier.
        guarded: bool,
        /// First granule and count.
        ranges: Vec<(u64, u64)>,
    },
    /// Granules went out of use.
    MetaClear {
        /// The epoch of the trims.
        epoch: Epoch,
        /// First granule and count.
        ranges: Vec<(u64, u64)>,
    },
    /// The data of all `MetaSet` before this change is durable.
    Barrier {
        /// That change.
        up_to: Seq,
    },
    /// Staged writes, so that a flush need not settle them.
    AfterImages(Vec<AfterImage>),
    /// These staged writes are durable in the clone volume.
    Settled {
        /// Their numbers.
        seqs: Vec<Seq>,
    },
    /// A snapshot exists; with `batch`, only if the store committed that batch.
    Take {
        /// It.
        snapshot: SnapshotRecord,
        /// The batch over several volumes that it is part of.
        batch: Option<Uuid>,
        /// It ends the receive under way, whose size and hidden snapshot it settles too.
        received: bool,
    },
    /// The store committed the batch.
    Confirmed {
        /// The batch.
        batch: Uuid,
    },
    /// Snapshots are gone, and what they had passed to older ones.
    Delete {
        /// Them.
        snapshots: Vec<Uuid>,
        /// Layers that are gone, by first epoch.
        removed: Vec<Epoch>,
        /// Layers that stand for what is left of those.
        added: Vec<LayerRecord>,
        /// The end of a restored receive, which its hidden snapshot goes with.
        ends_receive: bool,
        /// Those that are cuts become bookmarks.
        remembered: bool,
    },
    /// A snapshot is held.
    Hold {
        /// It.
        snapshot: Uuid,
        /// The tag.
        tag: String,
    },
    /// A hold is gone.
    Release {
        /// The snapshot.
        snapshot: Uuid,
        /// The tag.
        tag: String,
    },
    /// The volume has a new size.
    Resize {
        /// In bytes.
        size: u64,
    },
    /// All groups before that epoch are in sealed layers.
    Seal {
        /// The new layers.
        layers: Vec<LayerRecord>,
        /// The first epoch that is in none.
        unsealed: Epoch,
    },
    /// A segment begins a life; nothing is appended to it before this is durable.
    Segment {
        /// Its number.
        segment: u32,
        /// Its generation.
        generation: u64,
    },
    /// Groups of a segment below that offset are durable.
    Mark {
        /// The segment.
        segment: u32,
        /// In bytes.
        offset: u64,
        /// Set when no more groups are appended: the youngest group's epoch.
        closed: Option<Epoch>,
    },
    /// A segment's file is gone.
    Freed {
        /// Its number.
        segment: u32,
    },
    /// Production is to become that snapshot.
    RollbackBegin {
        /// It.
        snapshot: Uuid,
    },
    /// Production is that snapshot.
    RollbackEnd {
        /// Its size in bytes.
        size: u64,
    },
    /// A receive begins, goes on, or changes its mind.
    Receive(Option<ReceiveRecord>),
    /// The volume's role.
    Role(Role),
    /// What happens when space runs out.
    Policy(OnFull),
    /// The role epochs that led to the present one.
    Lineage(Vec<RoleEpoch>),
    /// Bookmarks are gone.
    Forget {
        /// Them.
        bookmarks: Vec<Uuid>,
    },
    /// From here on anything may be touched in these regions.
    Active {
        /// First block and count.
        ranges: Vec<(u64, u64)>,
    },
    /// Role, standing, lineage and restart point change together.
    Turn(Box<TurnRecord>),
}

/// A staged write in the journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AfterImage {
    /// Its place in the order of changes.
    pub seq: Seq,
    /// The block.
    pub block: Block,
    /// The epoch of the write.
    pub epoch: Epoch,
    /// The whole block.
    pub data: Bytes,
}

/// What the first bytes of a journal say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileHeader {
    /// The volume.
    pub volume: Uuid,
    /// Counts the volume's journal files; frames of another one are not this file's.
    pub number: u64,
}

impl FileHeader {
    /// The header's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Put::default();
        out.0.extend_from_slice(FILE_MAGIC);
        out.u32(VERSION);
        out.u32(0);
        out.uuid(self.volume);
        out.u64(self.number);
        out.0.resize(HEADER_SIZE - 4, 0);
        let crc = crc32c::crc32c(&out.0);
        out.u32(crc);
        out.0
    }

    /// Reads the header.
    ///
    /// # Errors
    /// `Corrupt`; `Unsupported` for a newer version.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let Some(header) = bytes.get(..HEADER_SIZE) else {
            return Err(Error::corrupt("the journal is shorter than its header"));
        };
        let (body, sum) = header.split_at(HEADER_SIZE - 4);
        if &body[..8] != FILE_MAGIC {
            return Err(Error::corrupt("this is no journal"));
        }
        if crc32c::crc32c(body).to_le_bytes() != sum {
            return Err(Error::corrupt("the journal's header has a wrong checksum"));
        }
        let mut fields = Fields(&body[8..]);
        let version = fields.u32()?;
        if version != VERSION {
            return Err(Error::new(ErrorKind::Unsupported, format!("the journal has version {version}"))
                .hint("use the version of snapvol that wrote it, or a newer one"));
        }
        fields.u32()?;
        Ok(Self { volume: fields.uuid()?, number: fields.u64()? })
    }
}

/// A frame's fields before its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The number of the change.
    pub seq: Seq,
    /// The file was durable up to here, in bytes.
    pub durable: u64,
}

/// The bytes of one frame.
#[must_use]
pub fn encode_frame(number: u64, frame: Frame, record: &Record) -> Vec<Bytes> {
    let mut payload = Put::default();
    let images = put_record(&mut payload, record);
    let len = payload.0.len() + images.iter().map(Bytes::len).sum::<usize>();
    assert!(len <= PAYLOAD_SIZE_MAX, "a record of {len} bytes");
    let mut head = Put::default();
    head.u32(FRAME_MAGIC);
    head.count(len);
    head.u64(frame.seq.0);
    head.u64(frame.durable);
    head.u64(number);
    let mut crc = crc32c::crc32c(&head.0);
    crc = crc32c::crc32c_append(crc, &payload.0);
    for image in &images {
        crc = crc32c::crc32c_append(crc, image);
    }
    head.u32(crc);
    head.u32(0);
    head.0.extend_from_slice(&payload.0);
    let mut all = vec![Bytes::from(head.0)];
    all.extend(images);
    all
}

/// Bytes that the frame of a record takes.
#[must_use]
pub fn frame_size(record: &Record) -> u64 {
    let mut payload = Put::default();
    let images = put_record(&mut payload, record);
    (FRAME_SIZE + payload.0.len() + images.iter().map(Bytes::len).sum::<usize>()) as u64
}

/// What stands at one place of a journal.
#[derive(Debug)]
pub enum Found {
    /// A whole frame: its fields, its record, and the bytes it takes.
    Frame(Frame, Record, usize),
    /// No whole frame of this file.
    Nothing,
}

/// Reads the frame at the front of `bytes`.
///
/// # Errors
/// `Corrupt` when the checksum holds and the record makes no sense all the same.
pub fn decode_frame(number: u64, bytes: &Bytes) -> Result<Found> {
    let Some((frame, len)) = frame_at(number, bytes) else { return Ok(Found::Nothing) };
    let payload = bytes.slice(FRAME_SIZE..FRAME_SIZE + len);
    let record = take_record(&payload).map_err(|e| e.context(format!("journal record {}", frame.seq)))?;
    Ok(Found::Frame(frame, record, FRAME_SIZE + len))
}

/// The frame at the front of `bytes` and the size of its payload, if it is whole.
#[must_use]
pub fn frame_at(number: u64, bytes: &[u8]) -> Option<(Frame, usize)> {
    let mut fields = Fields(bytes.get(..FRAME_SIZE)?);
    if fields.u32().ok()? != FRAME_MAGIC {
        return None;
    }
    let len = fields.u32().ok()? as usize;
    let frame = Frame { seq: Seq(fields.u64().ok()?), durable: fields.u64().ok()? };
    let of = fields.u64().ok()?;
    let (crc, reserved) = (fields.u32().ok()?, fields.u32().ok()?);
    if of != number || len > PAYLOAD_SIZE_MAX || reserved != 0 {
        return None;
    }
    let payload = bytes.get(FRAME_SIZE..FRAME_SIZE + len)?;
    let sum = crc32c::crc32c_append(crc32c::crc32c(&bytes[..32]), payload);
    (sum == crc).then_some((frame, len))
}

/// Appends kind and fields; what is returned follows them.
fn put_record(out: &mut Put, record: &Record) -> Vec<Bytes> {
    match record {
        Record::State(state) => {
            out.u8(1);
            state.put(out);
        }
        Record::Open { boot } => {
            out.u8(2);
            out.uuid(Uuid::from_bytes(*boot));
        }
        Record::Close => out.u8(3),
        Record::MetaSet { epoch, guarded, ranges } => {
            out.u8(4);
            out.u64(epoch.0);
            out.u8(u8::from(*guarded));
            put_ranges(out, ranges);
        }
        Record::MetaClear { epoch, ranges } => {
            out.u8(5);
            out.u64(epoch.0);
            put_ranges(out, ranges);
        }
        Record::Barrier { up_to } => {
            out.u8(6);
            out.u64(up_to.0);
        }
        Record::AfterImages(images) => {
            out.u8(7);
            out.count(images.len());
            for image in images {
                out.u64(image.seq.0);
                out.u64(image.block.0);
                out.u64(image.epoch.0);
                out.count(image.data.len());
            }
            return images.iter().map(|i| i.data.clone()).collect();
        }
        Record::Settled { seqs } => {
            out.u8(8);
            out.count(seqs.len());
            for seq in seqs {
                out.u64(seq.0);
            }
        }
        Record::Take { snapshot, batch, received } => {
            out.u8(9);
            put_snapshot(out, snapshot);
            out.maybe_uuid(*batch);
            out.u8(u8::from(*received));
        }
        Record::Confirmed { batch } => {
            out.u8(10);
            out.uuid(*batch);
        }
        Record::Delete { snapshots, removed, added, ends_receive, remembered } => {
            out.u8(12);
            out.count(snapshots.len());
            for uuid in snapshots {
                out.uuid(*uuid);
            }
            out.count(removed.len());
            for first in removed {
                out.u64(first.0);
            }
            out.count(added.len());
            for layer in added {
                put_layer(out, layer);
            }
            out.u8(u8::from(*ends_receive));
            out.u8(u8::from(*remembered));
        }
        Record::Hold { snapshot, tag } => {
            out.u8(13);
            out.uuid(*snapshot);
            out.text(tag);
        }
        Record::Release { snapshot, tag } => {
            out.u8(14);
            out.uuid(*snapshot);
            out.text(tag);
        }
        Record::Resize { size } => {
            out.u8(15);
            out.u64(*size);
        }
        Record::Seal { layers, unsealed } => {
            out.u8(16);
            out.count(layers.len());
            for layer in layers {
                put_layer(out, layer);
            }
            out.u64(unsealed.0);
        }
        Record::Segment { segment, generation } => {
            out.u8(17);
            out.u32(*segment);
            out.u64(*generation);
        }
        Record::Mark { segment, offset, closed } => {
            out.u8(18);
            out.u32(*segment);
            out.u64(*offset);
            out.u8(u8::from(closed.is_some()));
            out.u64(closed.unwrap_or_default().0);
        }
        Record::Freed { segment } => {
            out.u8(19);
            out.u32(*segment);
        }
        Record::RollbackBegin { snapshot } => {
            out.u8(20);
            out.uuid(*snapshot);
        }
        Record::RollbackEnd { size } => {
            out.u8(21);
            out.u64(*size);
        }
        Record::Receive(receive) => {
            out.u8(22);
            out.u8(u8::from(receive.is_some()));
            if let Some(receive) = receive {
                put_receive(out, receive);
            }
        }
        Record::Role(role) => {
            out.u8(23);
            out.u8(role_code(*role));
        }
        Record::Policy(policy) => {
            out.u8(24);
            out.u8(on_full_code(*policy));
        }
        Record::Lineage(lineage) => {
            out.u8(25);
            put_lineage(out, lineage);
        }
        Record::Forget { bookmarks } => {
            out.u8(27);
            out.count(bookmarks.len());
            for bookmark in bookmarks {
                out.uuid(*bookmark);
            }
        }
        Record::Active { ranges } => {
            out.u8(28);
            put_ranges(out, ranges);
        }
        Record::Turn(turn) => {
            out.u8(11);
            turn.put(out);
        }
    }
    Vec::new()
}

fn take_record(payload: &Bytes) -> Result<Record> {
    let mut from = Fields(payload);
    let record = match from.u8()? {
        1 => Record::State(Box::new(VolumeState::take(&mut from)?)),
        2 => Record::Open { boot: *from.uuid()?.as_bytes() },
        3 => Record::Close,
        4 => Record::MetaSet {
            epoch: Epoch(from.u64()?),
            guarded: from.flag()?,
            ranges: take_ranges(&mut from)?,
        },
        5 => Record::MetaClear { epoch: Epoch(from.u64()?), ranges: take_ranges(&mut from)? },
        6 => Record::Barrier { up_to: Seq(from.u64()?) },
        7 => {
            let heads = (0..from.count(28)?)
                .map(|_| Ok((Seq(from.u64()?), Block(from.u64()?), Epoch(from.u64()?), from.u32()? as usize)))
                .collect::<Result<Vec<_>>>()?;
            let mut images = Vec::with_capacity(heads.len());
            for (seq, block, epoch, len) in heads {
                let data = payload.slice_ref(from.bytes(len)?);
                images.push(AfterImage { seq, block, epoch, data });
            }
            Record::AfterImages(images)
        }
        8 => Record::Settled {
            seqs: (0..from.count(8)?).map(|_| Ok(Seq(from.u64()?))).collect::<Result<_>>()?,
        },
        9 => Record::Take {
            snapshot: take_snapshot(&mut from)?,
            batch: from.maybe_uuid()?,
            received: from.flag()?,
        },
        10 => Record::Confirmed { batch: from.uuid()? },
        11 => Record::Turn(Box::new(TurnRecord::take(&mut from)?)),
        12 => Record::Delete {
            snapshots: (0..from.count(16)?).map(|_| from.uuid()).collect::<Result<_>>()?,
            removed: (0..from.count(8)?).map(|_| Ok(Epoch(from.u64()?))).collect::<Result<_>>()?,
            added: (0..from.count(40)?).map(|_| take_layer(&mut from)).collect::<Result<_>>()?,
            ends_receive: from.flag()?,
            remembered: from.flag()?,
        },
        13 => Record::Hold { snapshot: from.uuid()?, tag: from.text()? },
        14 => Record::Release { snapshot: from.uuid()?, tag: from.text()? },
        15 => Record::Resize { size: from.u64()? },
        16 => Record::Seal {
            layers: (0..from.count(40)?).map(|_| take_layer(&mut from)).collect::<Result<_>>()?,
            unsealed: Epoch(from.u64()?),
        },
        17 => Record::Segment { segment: from.u32()?, generation: from.u64()? },
        18 => {
            let (segment, offset, closed, epoch) = (from.u32()?, from.u64()?, from.flag()?, from.u64()?);
            Record::Mark { segment, offset, closed: closed.then_some(Epoch(epoch)) }
        }
        19 => Record::Freed { segment: from.u32()? },
        20 => Record::RollbackBegin { snapshot: from.uuid()? },
        21 => Record::RollbackEnd { size: from.u64()? },
        22 => Record::Receive(if from.flag()? { Some(take_receive(&mut from)?) } else { None }),
        23 => Record::Role(role_from(from.u8()?)?),
        24 => Record::Policy(on_full_from(from.u8()?)?),
        25 => Record::Lineage(take_lineage(&mut from)?),
        27 => Record::Forget { bookmarks: (0..from.count(16)?).map(|_| from.uuid()).collect::<Result<_>>()? },
        28 => Record::Active { ranges: take_ranges(&mut from)? },
        other => return Err(Error::corrupt(format!("record kind {other} is unknown"))),
    };
    from.end()?;
    Ok(record)
}

/// Applies one record to what is known of the segments.
pub fn apply_to_segments(segments: &mut BTreeMap<u32, SegmentRecord>, record: &Record) {
    match record {
        Record::Segment { segment, generation } => {
            let new = SegmentRecord { generation: *generation, mark: 0, closed: None };
            segments.insert(*segment, new);
        }
        Record::Mark { segment, offset, closed } => {
            if let Some(found) = segments.get_mut(segment) {
                found.mark = found.mark.max(*offset);
                found.closed = closed.or(found.closed);
            }
        }
        Record::Freed { segment } => {
            segments.remove(segment);
        }
        _ => {}
    }
}

impl VolumeState {
    /// Applies one record to the small state; what records mean for the bit maps is not
    /// decided here. Returns the number of the batch that a conditional take waits for.
    pub fn apply(&mut self, record: &Record) {
        match record {
            Record::State(state) => *self = (**state).clone(),
            Record::Take { snapshot, received, .. } => {
                self.epoch = self.epoch.max(snapshot.epoch);
                self.last_cut = self.last_cut.max(snapshot.set.map_or(0, |set| set.number));
                self.snapshots.push(snapshot.clone());
                if *received {
                    self.end_receive(snapshot.size);
                }
            }
            Record::Delete { snapshots, removed, added, ends_receive, remembered } => {
                if *remembered {
                    let gone = self.snapshots.iter().filter(|s| snapshots.contains(&s.uuid));
                    let bookmarks: Vec<BookmarkRecord> = gone.filter_map(BookmarkRecord::of).collect();
                    self.bookmarks.extend(bookmarks);
                    self.bookmarks.sort_by_key(|b| b.epoch);
                }
                self.snapshots.retain(|s| !snapshots.contains(&s.uuid));
                self.replace_layers(removed, added);
                if *ends_receive {
                    self.receive = None;
                }
            }
            Record::Hold { snapshot, tag } => {
                if let Some(found) = self.snapshots.iter_mut().find(|s| s.uuid == *snapshot) {
                    found.holds.push(tag.clone());
                }
            }
            Record::Release { snapshot, tag } => {
                if let Some(found) = self.snapshots.iter_mut().find(|s| s.uuid == *snapshot) {
                    found.holds.retain(|t| t != tag);
                }
            }
            Record::Resize { size } => self.geometry.size = *size,
            Record::Seal { layers, unsealed } => {
                self.replace_layers(&[], layers);
                self.unsealed = *unsealed;
                self.epoch = self.epoch.max(*unsealed);
            }
            Record::Segment { .. } | Record::Mark { .. } | Record::Freed { .. } => {
                apply_to_segments(&mut self.segments, record);
            }
            Record::RollbackBegin { snapshot } => self.rollback = Some(*snapshot),
            Record::RollbackEnd { size } => {
                self.rollback = None;
                self.geometry.size = *size;
            }
            Record::Receive(receive) => self.receive.clone_from(receive),
            Record::Role(role) => {
                self.role = *role;
                self.roles.standing = Standing::Open;
            }
            Record::Policy(policy) => self.on_full = *policy,
            Record::Lineage(lineage) => self.lineage.clone_from(lineage),
            Record::Forget { bookmarks } => self.bookmarks.retain(|b| !bookmarks.contains(&b.uuid)),
            Record::Active { ranges } => self.active.extend_from_slice(ranges),
            Record::Turn(turn) => {
                self.role = turn.role;
                self.lineage.clone_from(&turn.lineage);
                self.rollback = turn.rollback.or(self.rollback);
                self.roles.turn(turn);
            }
            Record::MetaSet { epoch, .. } | Record::MetaClear { epoch, .. } => {
                self.epoch = self.epoch.max(*epoch)
            }
            Record::AfterImages(_)
            | Record::Settled { .. }
            | Record::Open { .. }
            | Record::Close
            | Record::Barrier { .. }
            | Record::Confirmed { .. } => {}
        }
    }

    /// A set that a resync waited for also brings the line that it belongs to.
    fn end_receive(&mut self, size: u64) {
        self.geometry.size = size;
        if let Some(receive) = self.receive.take() {
            self.roles.received_us = receive.begun_us;
            if let Some(resync) = self.roles.resync.take_if(|_| receive.set.is_some()) {
                self.lineage = resync.lineage;
                self.roles.standing = Standing::Open;
            }
        }
    }

    fn replace_layers(&mut self, removed: &[Epoch], added: &[LayerRecord]) {
        self.layers.retain(|l| !removed.contains(&l.first));
        self.layers.extend_from_slice(added);
        self.layers.sort_by_key(|l| l.first);
    }
}

#[cfg(test)]
mod damage;
#[cfg(test)]
mod tests;
