//! Reading a journal back: its records in order, and where it ends.
//!
//! The end is the first place without a whole frame. If a later frame vouches that the
//! file had been durable beyond that place, the frame there was whole once: that is
//! damage, and nothing is believed. Otherwise it is the torn tail of the last writes,
//! which nobody was promised.

use super::journal_copy::{self, JournalCopy};
use crate::error::{Error, ErrorKind, Result};
use crate::format::journal::{FileHeader, Found, HEADER_SIZE, Record, decode_frame, frame_at};
use crate::io::{FileId, Io, OpenHow};
use crate::types::Seq;
use bytes::{Bytes, BytesMut};
use std::path::Path;
use uuid::Uuid;

/// A journal's content.
pub struct Replay {
    /// Whose journal it is.
    pub header: FileHeader,
    /// In order.
    pub records: Vec<(Seq, Record)>,
    /// The offset after the last whole frame.
    pub end: u64,
    /// Whether the last record says that the volume was closed in good order.
    pub clean: bool,
    /// What was damaged and taken from the second copy. A new file must be begun then.
    pub mended: Option<String>,
}

/// Reads a whole journal.
///
/// # Errors
/// `Corrupt` for damage, naming the file and the offset.
pub async fn read(io: &Io, path: &Path) -> Result<Replay> {
    let file = io.open(path, OpenHow::Read).await?;
    let result = async {
        let size = io.size(file).await?;
        bytes_below(io, file, size).await
    };
    let result = result.await;
    io.close(file);
    let copy = journal_copy::read(io, &path.with_extension("copy")).await;
    // A copy that is damaged says nothing; a check tells of it.
    parse_with(&result?, copy.ok().as_ref()).map_err(|e| e.context(path.display().to_string()))
}

/// Reads the part of an open journal below an offset.
///
/// # Errors
/// As for [`read`].
pub async fn read_below(io: &Io, file: FileId, size: u64) -> Result<Replay> {
    parse(&bytes_below(io, file, size).await?)
}

/// Memory asked for at once for a journal, in bytes: its size may be anything.
const CAPACITY_MAX: u64 = 128 << 20;

async fn bytes_below(io: &Io, file: FileId, size: u64) -> Result<Bytes> {
    let mut bytes = BytesMut::with_capacity(usize::try_from(size.min(CAPACITY_MAX)).unwrap_or(0));
    while (bytes.len() as u64) < size {
        let (at, left) = (bytes.len() as u64, size - bytes.len() as u64);
        let step = usize::try_from(left).unwrap_or(usize::MAX).min(4 << 20);
        // Mostly the page cache has it, and then it is copied once.
        if !io.read_now(file, at, step, &mut bytes)? {
            bytes.extend_from_slice(&io.read(file, at, step).await?);
        }
    }
    Ok(bytes.freeze())
}

/// Whose journal it is.
///
/// # Errors
/// As for [`read`].
pub async fn identity(io: &Io, path: &Path) -> Result<Uuid> {
    let file = io.open(path, OpenHow::Read).await?;
    let bytes = io.read(file, 0, HEADER_SIZE).await;
    io.close(file);
    FileHeader::decode(&bytes?).map(|header| header.volume)
}

/// Reads a journal's bytes.
///
/// # Errors
/// `Corrupt`, `Unsupported`.
pub fn parse(bytes: &Bytes) -> Result<Replay> {
    parse_with(bytes, None)
}

/// The same, with the second copy of what it begins with.
///
/// # Errors
/// `Corrupt`, also when the two are of different volumes or times; `Unsupported`.
pub fn parse_with(bytes: &Bytes, copy: Option<&JournalCopy>) -> Result<Replay> {
    let mut mended = None;
    let header = match FileHeader::decode(bytes) {
        Ok(header) => header,
        Err(error) if error.kind() == ErrorKind::Corrupt => match copy {
            // With the header of another file no frame would be found.
            Some(copy)
                if frame_at(copy.header.number, bytes.get(HEADER_SIZE..).unwrap_or_default()).is_some() =>
            {
                mended = Some(error.to_string());
                copy.header
            }
            _ => return Err(error),
        },
        Err(error) => return Err(error),
    };
    if let Some(copy) = copy {
        agree(header, copy.header)?;
    }
    let copy = copy.filter(|copy| copy.header.number == header.number);
    let mut at = HEADER_SIZE;
    let mut records: Vec<(Seq, Record)> = Vec::new();
    let first = decode_frame(header.number, &bytes.slice(at.min(bytes.len())..));
    if let (Some(copy), Ok(Found::Nothing) | Err(_)) = (copy, &first) {
        mended = Some("the journal does not begin with a whole state".to_owned());
        records.push(copy.state.clone());
        at += copy.state_len;
    } else {
        first?;
    }
    while let Found::Frame(frame, record, len) =
        decode_frame(header.number, &bytes.slice(at.min(bytes.len())..))?
    {
        if records.last().is_some_and(|(seq, _)| *seq >= frame.seq) {
            return Err(Error::corrupt(format!("the record at offset {at} is out of order")));
        }
        at += len;
        records.push((frame.seq, record));
    }
    if !matches!(records.first(), Some((_, Record::State(_)))) {
        return Err(Error::corrupt("the journal does not begin with a whole state"));
    }
    check_tail(header.number, bytes, at)?;
    if let Some(copy) = copy
        && (at as u64) < copy.bound
    {
        return Err(Error::corrupt(format!(
            "the journal ends at offset {at}, and was durable up to {}: it is damaged there, cut off, or older \
             than the rest",
            copy.bound
        ))
        .hint("restore the volume's directory from one copy"));
    }
    let clean = matches!(records.last(), Some((_, Record::Close)));
    Ok(Replay { header, records, end: at as u64, clean, mended })
}

/// Whether a journal and its copy can stand beside each other.
fn agree(journal: FileHeader, copy: FileHeader) -> Result<()> {
    if journal.volume != copy.volume {
        return Err(Error::corrupt(format!(
            "the journal is volume {}'s, and its second copy volume {}'s: one of them is another volume's file",
            journal.volume, copy.volume
        ))
        .hint("put the volume's own files back"));
    }
    if journal.number < copy.number {
        return Err(Error::corrupt(format!(
            "the journal is file number {}, and its second copy is of {}: the journal is older than the rest",
            journal.number, copy.number
        ))
        .hint("the volume's files are of two copies; restore all of its directory from one"));
    }
    Ok(())
}

/// Tells a torn tail from damage.
fn check_tail(number: u64, bytes: &[u8], end: usize) -> Result<()> {
    let magic = *b"SVJF";
    let mut at = end;
    while let Some(found) = bytes.get(at..).and_then(|rest| find(rest, magic)) {
        at += found;
        if let Some((frame, _)) = frame_at(number, &bytes[at..])
            && frame.durable > end as u64
        {
            return Err(Error::corrupt(format!("the record at offset {end} is damaged: it was whole once"))
                .hint("run 'snapvol check' on the store"));
        }
        at += 1;
    }
    Ok(())
}

fn find(bytes: &[u8], magic: [u8; 4]) -> Option<usize> {
    let mut from = 0;
    while let Some(at) = bytes[from..].iter().position(|b| *b == magic[0]) {
        if bytes[from + at..].starts_with(&magic) {
            return Some(from + at);
        }
        from += at + 1;
    }
    None
}

#[cfg(test)]
mod tests;
