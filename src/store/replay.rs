//! Reading a journal back: its records in order, and where it ends.
//!
//! The end is the first place without a whole frame. If a later frame vouches that the
//! file had been durable beyond that place, the frame there was whole once: that is
//! damage, and nothing is believed. Otherwise it is the torn tail of the last writes,
//! which nobody was promised.

use crate::error::{Error, Result};
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
}

/// Reads a whole journal.
///
/// # Errors
/// `Corrupt` for damage, naming the file and the offset.
pub async fn read(io: &Io, path: &Path) -> Result<Replay> {
    let file = io.open(path, OpenHow::Read).await?;
    let result = async {
        let size = io.size(file).await?;
        read_below(io, file, size).await
    };
    let result = result.await;
    io.close(file);
    result.map_err(|e| e.context(path.display().to_string()))
}

/// Reads the part of an open journal below an offset.
///
/// # Errors
/// As for [`read`].
pub async fn read_below(io: &Io, file: FileId, size: u64) -> Result<Replay> {
    let mut bytes = BytesMut::new();
    while (bytes.len() as u64) < size {
        let step = usize::try_from(size - bytes.len() as u64).unwrap_or(usize::MAX).min(4 << 20);
        bytes.extend_from_slice(&io.read(file, bytes.len() as u64, step).await?);
    }
    parse(&bytes.freeze())
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
    let header = FileHeader::decode(bytes)?;
    let mut at = HEADER_SIZE;
    let mut records: Vec<(Seq, Record)> = Vec::new();
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
    let clean = matches!(records.last(), Some((_, Record::Close)));
    Ok(Replay { header, records, end: at as u64, clean })
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
