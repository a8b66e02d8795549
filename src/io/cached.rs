#![allow(
    unsafe_code,
    reason = "what is read lands in memory that nothing zeroed first; one call has no safe form"
)]
//! Reads that only the page cache answers, appended to a buffer that its owner fills; and
//! the beginning of what brings the page cache to the disk.

use super::disk::retry;
use super::files::Handle;
use bytes::BytesMut;
use rustix::io::Errno;
use std::io;
use std::os::fd::AsRawFd;

/// Appends exactly `len` bytes from `offset` on if the page cache has them all; else the
/// buffer is as it was. False also at the end of the file and where the kernel can't say.
pub(super) fn read_appending(
    handle: &Handle,
    offset: u64,
    len: usize,
    buffer: &mut BytesMut,
) -> io::Result<bool> {
    buffer.reserve(len);
    let spare = &mut buffer.spare_capacity_mut()[..len];
    let target = libc::iovec { iov_base: spare.as_mut_ptr().cast(), iov_len: len };
    let Ok(offset) = libc::off64_t::try_from(offset) else { return Ok(false) };
    let read = retry(|| {
        // SAFETY: the vector names `len` bytes of the buffer's own spare memory, which nobody
        // else can reach while it is borrowed here, and the kernel writes no more than that.
        let result =
            unsafe { libc::preadv2(handle.as_raw_fd(), &raw const target, 1, offset, libc::RWF_NOWAIT) };
        usize::try_from(result)
            .map_err(|_| Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO))
    });
    match read {
        Ok(read) if read == len => {
            // SAFETY: the kernel has just filled these `len` bytes behind the buffer's end.
            unsafe { buffer.set_len(buffer.len() + len) };
            Ok(true)
        }
        Ok(_) | Err(Errno::AGAIN | Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Appends pieces, offset and length, as far as the page cache has them; returns the numbers
/// of the others, in whose places there are zeros.
pub(super) fn read_each(handle: &Handle, pieces: &[(u64, usize)], buffer: &mut BytesMut) -> Vec<usize> {
    let mut missing = Vec::new();
    for (number, (offset, len)) in pieces.iter().enumerate() {
        // What fails here is read again by whoever asked, who hears the error then.
        if !read_appending(handle, *offset, *len, buffer).unwrap_or(false) {
            buffer.resize(buffer.len() + len, 0);
            missing.push(number);
        }
    }
    missing
}

/// Has the kernel begin to write what is dirty.
pub(super) fn write_back(handle: &Handle) -> io::Result<()> {
    // SAFETY: the call takes numbers only.
    let result = unsafe { libc::sync_file_range(handle.as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::super::FileId;
    use super::super::files::Files;
    use super::*;

    #[test]
    fn only_whole_answers_are_appended() {
        let mut file = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut file, &[7; 5000]).unwrap();
        let mut files = Files::default();
        let id: FileId = files.adopt(file.into()).unwrap();
        let handle = files.handle(id).unwrap();
        let mut buffer = BytesMut::from(&b"head"[..]);
        // On some file systems the kernel never says what is cached.
        if read_appending(handle, 1000, 4000, &mut buffer).unwrap() {
            assert_eq!(&buffer[..4], b"head");
            assert_eq!(&buffer[4..], &[7; 4000][..]);
        }
        let before = buffer.clone();
        assert!(!read_appending(handle, 4999, 2, &mut buffer).unwrap(), "the file ends");
        assert_eq!(buffer, before);
    }
}
