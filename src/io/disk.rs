//! System calls on files, each retried when a signal interrupts it and continued when
//! the kernel did only a part.

use super::helpers::{Finished, Job};
use bytes::Bytes;
use rustix::fs::{FallocateFlags, Mode, OFlags, SeekFrom};
use rustix::io::{Errno, ReadWriteFlags};
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::AsFd;
use std::path::Path;

/// Zeros are written in pieces of at most so many bytes where holes can't be made.
const ZEROS: &[u8] = &[0; 64 * 1024];

/// Buffers in one system call (the kernel's `IOV_MAX`).
pub(super) const BUFFERS_MAX: usize = 1024;

/// Repeats a system call for as long as signals interrupt it.
pub(super) fn retry<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> rustix::io::Result<T> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            other => return other,
        }
    }
}

/// How much of a read the page cache answered.
pub(super) enum Cached {
    /// All of it, or the file ended.
    All,
    /// So many bytes.
    Until(usize),
}

/// Reads what is in the page cache into `buffer`, which holds zeros.
pub(super) fn read_cached(handle: &impl AsFd, offset: u64, buffer: &mut [u8]) -> io::Result<Cached> {
    let mut filled = 0;
    while filled < buffer.len() {
        let rest = &mut [IoSliceMut::new(&mut buffer[filled..])];
        match rustix::io::preadv2(handle, rest, offset + filled as u64, ReadWriteFlags::NOWAIT) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN | Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS) => {
                return Ok(Cached::Until(filled));
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(Cached::All)
}

/// Reads the rest of `buffer`, which holds zeros from `filled` on.
pub(super) fn read_rest(
    handle: &impl AsFd,
    offset: u64,
    buffer: &mut [u8],
    mut filled: usize,
) -> io::Result<()> {
    while filled < buffer.len() {
        match retry(|| rustix::io::pread(handle, &mut buffer[filled..], offset + filled as u64))? {
            0 => break,
            read => filled += read,
        }
    }
    Ok(())
}

/// The buffers without their first `skip` bytes, as many as one system call takes.
pub(super) fn slices(data: &[Bytes], mut skip: usize) -> Vec<IoSlice<'_>> {
    let mut slices = Vec::with_capacity(data.len().min(BUFFERS_MAX));
    for buffer in data {
        if skip >= buffer.len() {
            skip -= buffer.len();
        } else {
            slices.push(IoSlice::new(&buffer[skip..]));
            skip = 0;
            if slices.len() == BUFFERS_MAX {
                break;
            }
        }
    }
    slices
}

/// Writes all buffers but their first `skip` bytes; `offset` is where those would go.
pub(super) fn write_all(handle: &impl AsFd, offset: u64, data: &[Bytes], mut skip: usize) -> io::Result<()> {
    let len: usize = data.iter().map(Bytes::len).sum();
    while skip < len {
        match retry(|| rustix::io::pwritev(handle, &slices(data, skip), offset + skip as u64))? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            written => skip += written,
        }
    }
    Ok(())
}

/// Writes one buffer.
pub(super) fn write_one(handle: &impl AsFd, mut offset: u64, mut data: &[u8]) -> io::Result<()> {
    while !data.is_empty() {
        match retry(|| rustix::io::pwrite(handle, data, offset))? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            written => {
                data = &data[written..];
                offset += written as u64;
            }
        }
    }
    Ok(())
}

/// Makes data durable, and the metadata needed to read it back.
pub(super) fn sync(handle: &impl AsFd) -> io::Result<()> {
    Ok(retry(|| rustix::fs::fdatasync(handle))?)
}

/// The size in bytes.
pub(super) fn size(handle: &impl AsFd) -> io::Result<u64> {
    Ok(rustix::fs::fstat(handle)?.st_size.cast_unsigned())
}

/// Bytes that the file occupies.
pub(super) fn allocated(handle: &impl AsFd) -> io::Result<u64> {
    Ok(rustix::fs::fstat(handle)?.st_blocks.cast_unsigned() * 512)
}

/// Bytes free for an ordinary user in the file system of `path`.
pub(super) fn free(path: &Path) -> io::Result<u64> {
    Ok(file_system(path)?.0)
}

/// Bytes free for an ordinary user in the file system of `path`, and its size in bytes.
///
/// # Errors
/// What the kernel says.
pub fn file_system(path: &Path) -> io::Result<(u64, u64)> {
    let stat = retry(|| rustix::fs::statvfs(path))?;
    Ok((stat.f_bavail * stat.f_frsize, stat.f_blocks * stat.f_frsize))
}

/// Whether the file system can't do this with `fallocate`.
pub(super) fn is_unsupported(error: Errno) -> bool {
    matches!(error, Errno::OPNOTSUPP | Errno::NOSYS)
}

/// Makes the range read as zeros, as a hole where the file system has holes.
pub(super) fn punch(handle: &impl AsFd, offset: u64, len: u64) -> io::Result<()> {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    match retry(|| rustix::fs::fallocate(handle, flags, offset, len)) {
        Err(error) if is_unsupported(error) => {
            let end = (offset + len).min(size(handle)?);
            write_zeros(handle, offset, end)
        }
        other => Ok(other?),
    }
}

/// Allocates space for the range; the data in it stays.
pub(super) fn allocate(handle: &impl AsFd, offset: u64, len: u64) -> io::Result<()> {
    match retry(|| rustix::fs::fallocate(handle, FallocateFlags::empty(), offset, len)) {
        Err(error) if is_unsupported(error) => fill_holes(handle, offset, offset + len),
        other => Ok(other?),
    }
}

/// Writes zeros wherever the range is a hole or past the end of the file.
///
/// A write to the same hole at the same time may be lost, as with `posix_fallocate`:
/// nobody writes to a range before its allocation has completed.
fn fill_holes(handle: &impl AsFd, mut offset: u64, end: u64) -> io::Result<()> {
    let size = size(handle)?;
    while offset < end.min(size) {
        // Where holes can't be found the kernel reports one at the end of the file.
        let hole = rustix::fs::seek(handle, SeekFrom::Hole(offset))?.min(end);
        let data = match rustix::fs::seek(handle, SeekFrom::Data(hole)) {
            Ok(data) => data.min(end),
            Err(Errno::NXIO) => end,
            Err(error) => return Err(error.into()),
        };
        write_zeros(handle, hole, data)?;
        offset = data;
    }
    write_zeros(handle, offset.max(size), end)
}

fn write_zeros(handle: &impl AsFd, mut offset: u64, end: u64) -> io::Result<()> {
    while offset < end {
        let len = usize::try_from(end - offset).unwrap_or(usize::MAX).min(ZEROS.len());
        write_all(handle, offset, &[Bytes::from_static(&ZEROS[..len])], 0)?;
        offset += len as u64;
    }
    Ok(())
}

/// Makes a directory for this user alone.
pub(super) fn make_dir(path: &Path) -> io::Result<()> {
    Ok(retry(|| rustix::fs::mkdir(path, Mode::RWXU))?)
}

/// Makes the names in a directory durable.
pub(super) fn sync_dir(path: &Path) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = retry(|| rustix::fs::open(path, flags, Mode::empty()))?;
    Ok(retry(|| rustix::fs::fsync(&directory))?)
}

/// The names in a directory, sorted.
pub(super) fn list(path: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(path)? {
        let name = entry?.file_name().into_string().map_err(|name| {
            io::Error::new(io::ErrorKind::InvalidData, format!("the name {name:?} is not UTF-8"))
        })?;
        names.push(name);
    }
    names.sort_unstable();
    Ok(names)
}

/// A job that gives nothing but its success.
pub(super) fn job(work: impl FnOnce() -> io::Result<()> + Send + 'static) -> Job {
    Box::new(move || work().map(|()| Finished::None))
}

/// Which boot of the machine this is.
pub(super) fn boot_id() -> io::Result<[u8; 16]> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let id = uuid::Uuid::parse_str(text.trim()).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
    Ok(id.into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_are_filled_where_nothing_else_allocates() {
        let file = tempfile::tempfile().unwrap();
        let write = |offset, data| write_all(&file, offset, &[Bytes::from_static(data)], 0).unwrap();
        write(8192, b"in the middle");
        write(300_000, b"at the end");
        fill_holes(&file, 100, 400_000).unwrap();
        assert_eq!(size(&file).unwrap(), 400_000);
        assert!(allocated(&file).unwrap() >= 400_000);
        let mut bytes = vec![0; 400_000];
        read_rest(&file, 0, &mut bytes, 0).unwrap();
        assert_eq!(&bytes[8192..8205], b"in the middle");
        assert_eq!(&bytes[300_000..300_010], b"at the end");
        assert_eq!(bytes.iter().filter(|byte| **byte != 0).count(), 23);
        fill_holes(&file, 0, 400_000).unwrap();
        write_zeros(&file, 8194, 300_001).unwrap();
        read_rest(&file, 0, &mut bytes, 0).unwrap();
        assert_eq!((&bytes[8192..8195], &bytes[300_000..300_002]), (&b"in\0"[..], &b"\0t"[..]));
    }

    #[test]
    fn buffers_are_cut_where_the_kernel_stopped() {
        let all = ["", "ab", "", "cdef", "g"].map(|part| Bytes::from_static(part.as_bytes()));
        for count in 0..=7 {
            let slices: Vec<u8> = slices(&all, count).iter().flat_map(|slice| slice.to_vec()).collect();
            assert_eq!(slices, b"abcdefg"[count..]);
        }
    }
}
