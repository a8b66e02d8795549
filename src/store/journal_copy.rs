//! The second copy of what a journal begins with: its header and its state.
//!
//! Everything about a volume hangs on that state, and nothing else has it. The copy is a
//! file of a journal's own form: header, *State*, and a *Close* for each time that the volume
//! was closed in good order, whose frame says up to where the journal was durable then. So it
//! also tells a journal that was cut off, or that is older than the rest, from one that ends
//! where it should. It only ever stands in: a copy of another file number, from a crash
//! between the two, says nothing, and the next checkpoint writes it anew.

use super::paths::VolumePaths;
use crate::error::{Error, Result};
use crate::format::journal::{FileHeader, Found, Frame, HEADER_SIZE, Record, decode_frame, encode_frame};
use crate::io::{Io, OpenHow};
use crate::types::Seq;
use bytes::{Bytes, BytesMut};
use std::path::Path;

/// What a copy says.
pub struct JournalCopy {
    /// Whose journal it is a copy of, and of which file.
    pub header: FileHeader,
    /// The state.
    pub state: (Seq, Record),
    /// Bytes that the state's frame takes.
    pub state_len: usize,
    /// The journal was durable below this offset.
    pub bound: u64,
    /// Something that is no frame follows: an append that a power cut tore, or damage.
    pub torn: bool,
    /// Behind the last frame of the copy.
    end: u64,
}

/// Writes the copy of a journal that is in force and begins with `state`.
///
/// # Errors
/// `Io`, `Full`; what was there stays.
pub async fn write(io: &Io, paths: &VolumePaths, header: FileHeader, state: (Seq, &Record)) -> Result<()> {
    let new = paths.journal_copy_new();
    let file = io.open(&new, OpenHow::CreateEmpty).await?;
    let mut data = vec![Bytes::from(header.encode())];
    data.extend(encode_frame(header.number, Frame { seq: state.0, durable: 0 }, state.1));
    let written = async {
        io.write_all(file, 0, data).await?;
        io.sync(file).await
    };
    let written = written.await;
    io.close(file);
    if let Err(error) = written {
        let _ = io.remove(&new).await;
        return Err(error);
    }
    io.rename(&new, &paths.journal_copy()).await?;
    io.sync_dir(&paths.0).await
}

/// The journal of that number was closed in good order: it is durable below `bound`.
///
/// # Errors
/// `Io`, `Full`.
pub async fn closed(io: &Io, paths: &VolumePaths, number: u64, seq: Seq, bound: u64) -> Result<()> {
    let path = paths.journal_copy();
    let copy = read(io, &path).await?;
    if copy.header.number != number {
        return Ok(());
    }
    let frame = encode_frame(number, Frame { seq, durable: bound }, &Record::Close);
    let file = io.open(&path, OpenHow::Write).await?;
    let written = async {
        io.write_all(file, copy.end, frame).await?;
        io.sync(file).await
    };
    let written = written.await;
    io.close(file);
    written
}

/// Reads whose copy it is.
///
/// # Errors
/// `Corrupt`, `Unsupported`, `Io`.
pub async fn header(io: &Io, path: &Path) -> Result<FileHeader> {
    let file = io.open(path, OpenHow::Read).await?;
    let bytes = io.read(file, 0, HEADER_SIZE).await;
    io.close(file);
    FileHeader::decode(&bytes?)
}

/// Reads a copy.
///
/// # Errors
/// `Corrupt`, `Unsupported`, `Io`.
pub async fn read(io: &Io, path: &Path) -> Result<JournalCopy> {
    let file = io.open(path, OpenHow::Read).await?;
    let whole = async {
        let size = io.size(file).await?;
        let mut bytes = BytesMut::new();
        while (bytes.len() as u64) < size {
            let step = usize::try_from(size - bytes.len() as u64).unwrap_or(usize::MAX).min(4 << 20);
            bytes.extend_from_slice(&io.read(file, bytes.len() as u64, step).await?);
        }
        Ok(bytes.freeze())
    };
    let whole: Result<Bytes> = whole.await;
    io.close(file);
    parse(&whole?).map_err(|e| e.context(path.display().to_string()))
}

fn parse(bytes: &Bytes) -> Result<JournalCopy> {
    let header = FileHeader::decode(bytes)?;
    let frame_at = |at: usize| decode_frame(header.number, &bytes.slice(at.min(bytes.len())..));
    let Found::Frame(first, state @ Record::State(_), state_len) = frame_at(HEADER_SIZE)? else {
        return Err(Error::corrupt("the copy of the journal has no whole state"));
    };
    let (mut at, mut bound) = (HEADER_SIZE + state_len, 0);
    while let Found::Frame(frame, Record::Close, len) = frame_at(at)? {
        bound = frame.durable;
        at += len;
    }
    let torn = at < bytes.len();
    Ok(JournalCopy { header, state: (first.seq, state), state_len, bound, torn, end: at as u64 })
}
