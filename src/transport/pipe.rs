//! A byte stream within a conversation: pieces with their length before them, and a
//! length of zero at the end, so that an end is never taken for a break.

use std::io::{Error, ErrorKind, Read, Result, Write};
use std::os::fd::AsFd;

/// What a pipe that carries a stream should hold, in bytes.
const CAPACITY: usize = 1 << 20;

/// Has a pipe hold a whole chunk of a stream, so that its two ends wait for each other less
/// often. What is no pipe, or may not be larger, stays as it is.
pub fn widen(pipe: impl AsFd) {
    let _ = rustix::pipe::fcntl_setpipe_size(pipe, CAPACITY);
}

/// The longest piece, in bytes; a reader takes no longer one.
const PIECE_MAX: usize = 1 << 24;

/// Writes the pieces.
pub struct PipeWriter<W> {
    output: W,
}

impl<W: Write> PipeWriter<W> {
    /// Pieces go to `output` as they come.
    pub fn new(output: W) -> Self {
        Self { output }
    }

    /// One piece, or several if it is long.
    ///
    /// # Errors
    /// Those of the output.
    pub fn piece(&mut self, bytes: &[u8]) -> Result<()> {
        for part in bytes.chunks(PIECE_MAX) {
            // At most `PIECE_MAX`.
            let len = u32::try_from(part.len()).map_err(Error::other)?;
            self.output.write_all(&len.to_le_bytes())?;
            self.output.write_all(part)?;
        }
        Ok(())
    }

    /// The end mark; gives the output back.
    ///
    /// # Errors
    /// Those of the output.
    pub fn finish(mut self) -> Result<W> {
        self.output.write_all(&[0; 4])?;
        self.output.flush()?;
        Ok(self.output)
    }
}

fn broken(_: Error) -> Error {
    let text = "the stream ends too early, the other side is gone";
    Error::other(crate::Error::new(crate::ErrorKind::Interrupted, text))
}

/// Reads the pieces as one stream, up to the end mark.
pub struct PipeReader<R> {
    input: R,
    left: usize,
    ended: bool,
}

impl<R: Read> PipeReader<R> {
    /// The stream in `input`.
    pub fn new(input: R) -> Self {
        Self { input, left: 0, ended: false }
    }
}

impl<R: Read> Read for PipeReader<R> {
    /// An input that ends without the mark, or breaks, is this crate's `Interrupted` inside
    /// an I/O error, so that it stays one wherever the stream is read.
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        if self.ended || buffer.is_empty() {
            return Ok(0);
        }
        if self.left == 0 {
            let mut len = [0; 4];
            self.input.read_exact(&mut len).map_err(broken)?;
            self.left = u32::from_le_bytes(len) as usize;
            if self.left > PIECE_MAX {
                return Err(Error::new(ErrorKind::InvalidData, "a piece of impossible length"));
            }
            self.ended = self.left == 0;
            if self.ended {
                return Ok(0);
            }
        }
        let want = buffer.len().min(self.left);
        let count = match self.input.read(&mut buffer[..want]) {
            Err(error) if error.kind() == ErrorKind::Interrupted => return Err(error),
            Ok(0) => return Err(broken(ErrorKind::UnexpectedEof.into())),
            read => read.map_err(broken)?,
        };
        self.left -= count;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wide_pipe_takes_a_chunk_that_nobody_reads_yet() {
        let (mut reader, mut writer) = std::io::pipe().unwrap();
        widen(&writer);
        let held = rustix::pipe::fcntl_getpipe_size(&reader).unwrap();
        // Less where the system allows no more.
        writer.write_all(&vec![7; held]).unwrap();
        drop(writer);
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes.len(), held);
        widen(tempfile::tempfile().unwrap());
    }

    #[test]
    fn an_end_is_no_break() {
        let mut writer = PipeWriter::new(Vec::new());
        writer.piece(b"one").unwrap();
        writer.piece(b"").unwrap();
        writer.piece(b"two").unwrap();
        let mut bytes = writer.finish().unwrap();
        bytes.extend_from_slice(b"after");
        let (mut text, mut rest) = (String::new(), bytes.as_slice());
        PipeReader::new(&mut rest).read_to_string(&mut text).unwrap();
        assert_eq!((text.as_str(), rest), ("onetwo", &b"after"[..]));
        for end in 0..bytes.len() - 5 {
            let error = PipeReader::new(&bytes[..end]).read_to_end(&mut Vec::new()).unwrap_err();
            let error = error.downcast::<crate::Error>().unwrap();
            assert_eq!(error.kind(), crate::ErrorKind::Interrupted, "{end}");
        }
    }
}
