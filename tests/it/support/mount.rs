//! Small file systems of a test's own, mounted where nobody else sees them.
//!
//! A test that mounts runs once more as a child in a mount namespace of its own, so that
//! whatever happens to it, the mounts go with it.

use super::{available, run, tool};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Says to the child that it is one.
const INSIDE: &str = "SNAPVOL_TEST_MOUNTS";

/// Runs `body` where it may mount; `test` is the test's whole name. Where mounting is not
/// allowed the test is skipped as if a tool were missing.
pub fn where_mounts_are_private(test: &str, body: impl FnOnce()) {
    if std::env::var_os(INSIDE).is_some() {
        return body();
    }
    let unshare = || {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "--"]).stdin(Stdio::null());
        command
    };
    let allowed = unshare().args(["mount", "-t", "tmpfs", "none", "/mnt"]).output();
    let allowed = allowed.is_ok_and(|output| output.status.success());
    if !available(allowed, "the right to mount file systems (run the tests as root)") {
        return;
    }
    let mut child = unshare();
    child.arg(std::env::current_exe().unwrap()).args(["--exact", test, "--nocapture"]).env(INSIDE, "1");
    let status = child.status().unwrap();
    assert!(status.success(), "{test}, in a mount namespace of its own: {status}");
}

/// Which file system.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// In memory.
    Tmpfs,
    /// On an image in a file.
    Ext4,
}

/// A mounted file system, gone with the value.
pub struct Mounted {
    _home: tempfile::TempDir,
    dir: PathBuf,
}

impl Mounted {
    /// Makes and mounts one of about so many MiB.
    #[track_caller]
    pub fn new(kind: Kind, mib: u64) -> Self {
        let home = super::scratch();
        let dir = home.path().join("m");
        std::fs::create_dir(&dir).unwrap();
        match kind {
            Kind::Tmpfs => {
                let size = format!("size={mib}M");
                run(tool("mount").args(["-t", "tmpfs", "-o", &size, "none"]).arg(&dir));
            }
            Kind::Ext4 => {
                let image = home.path().join("image");
                std::fs::File::create(&image).unwrap().set_len(mib << 20).unwrap();
                run(tool("mkfs.ext4").args(["-q", "-m", "0", "-E", "nodiscard"]).arg(&image));
                run(tool("mount").args(["-o", "loop"]).arg(&image).arg(&dir));
            }
        }
        Self { _home: home, dir }
    }

    /// Where it is mounted.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Mounts it anew with other options, such as `ro`.
    #[track_caller]
    pub fn remount(&self, options: &str) {
        run(tool("mount").args(["-o", &format!("remount,{options}")]).arg(&self.dir));
    }

    /// The file system gives up, as after an error of its disk.
    #[track_caller]
    pub fn abort(&self) {
        self.remount("abort");
    }

    /// Bytes that are free.
    pub fn free(&self) -> u64 {
        let stat = rustix::fs::statvfs(&self.dir).unwrap();
        stat.f_bavail * stat.f_frsize
    }

    /// Takes all space but about so many bytes; what it returns gives it back.
    #[track_caller]
    pub fn fill(&self, bytes_left: u64) -> Filler {
        let path = self.dir.join("filler");
        let file = std::fs::OpenOptions::new().create(true).append(true).open(&path).unwrap();
        let zeros = rustix::fs::FallocateFlags::empty();
        let mut step = 64 << 20;
        while step >= 4096 {
            let free = self.free();
            let len = file.metadata().unwrap().len();
            if free < bytes_left + step || rustix::fs::fallocate(&file, zeros, len, step).is_err() {
                step /= 2;
            }
        }
        Filler(path)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = tool("umount").arg("--lazy").arg(&self.dir).status();
    }
}

/// A file that takes the space.
pub struct Filler(PathBuf);

impl Filler {
    /// The space is free again.
    pub fn remove(self) {}
}

impl Drop for Filler {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}
