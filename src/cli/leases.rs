//! Leases: what of a store the kernel's nbd driver is attached to.
//!
//! An attached device outlasts a restart of the daemon, and what is mounted on it goes on
//! as if nothing had been. So nothing may put other content under it meanwhile, also
//! while no daemon runs that would know of its clients. A lease is a file
//! `attached-IDENTITY-EXPORT` in the store's directory, locked by the keeper of the device
//! for as long as that lives; a file that nobody has locked is a dead keeper's. A command
//! that changes what an export is refuses while there is one, or takes it away by force
//! *before* it changes anything; a keeper makes sure of its lease after each handshake
//! and before the kernel gets the connection. From then on the daemon counts a client.

use super::args::{ExportName, Target};
use crate::error::{Error, Result};
use rustix::fs::{FlockOperation, flock};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use uuid::Uuid;

const PREFIX: &str = "attached-";
const IDENTITY_LEN: usize = 36;
/// How long the keeper of a device that was just detached may take to end.
const PATIENCE: Duration = Duration::from_secs(2);
const INTERVAL: Duration = Duration::from_millis(50);

/// A lease, held while the file is open.
pub(super) struct Lease {
    /// Where it is.
    pub path: PathBuf,
    /// The open file, locked.
    pub file: File,
}

impl Lease {
    /// Takes a lease of an export; the directory is that of its store.
    ///
    /// # Errors
    /// `Io`.
    pub fn take(dir: &Path, export: &ExportName) -> Result<Self> {
        let path = super::absolute(dir)?.join(format!("{PREFIX}{}-{export}", Uuid::new_v4()));
        let failed = |error| Error::os(format!("make {}", path.display()), error);
        // For the store's owner to see, whoever attaches; the directory is closed to others.
        let file = OpenOptions::new().write(true).create_new(true).mode(0o644).open(&path).map_err(failed)?;
        flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|errno| failed(errno.into()))?;
        Ok(Self { path, file })
    }
}

/// Makes sure that nothing is attached of what `touches` says, or by force that it will
/// not be connected again.
///
/// # Errors
/// `Conflict` for what is attached; `Io`.
pub(super) fn end(dir: &Path, force: bool, touches: impl Fn(&Target) -> bool) -> Result<()> {
    end_exports(dir, force, |export| matches!(export, ExportName::Target(target) if touches(target)))
}

/// The same, of any export.
///
/// # Errors
/// As there.
pub(super) fn end_exports(dir: &Path, force: bool, touches: impl Fn(&ExportName) -> bool) -> Result<()> {
    // Without a directory there is nothing; whoever opens the store says so.
    let Ok(entries) = std::fs::read_dir(dir) else { return Ok(()) };
    let until = Instant::now() + PATIENCE;
    for entry in entries.flatten() {
        let name = entry.file_name();
        let export = name
            .to_str()
            .and_then(|name| name.strip_prefix(PREFIX)?.get(IDENTITY_LEN + 1..))
            .and_then(|export| export.parse::<ExportName>().ok());
        let Some(export) = export.filter(|export| touches(export)) else { continue };
        let path = entry.path();
        while !force && is_held(&path)? {
            if Instant::now() >= until {
                return Err(Error::conflict(format!("{export} is attached to the kernel's nbd driver"))
                    .hint("unmount it, and let go of it with: snapvol detach /dev/nbdN"));
            }
            std::thread::sleep(INTERVAL);
        }
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::os(format!("remove {}", path.display()), error));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Whether a keeper lives that has locked the file.
fn is_held(path: &Path) -> Result<bool> {
    let failed = |error| Error::os(format!("look at {}", path.display()), error);
    let file = match File::open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        other => other.map_err(failed)?,
    };
    match flock(&file, FlockOperation::NonBlockingLockShared) {
        Ok(()) => Ok(false),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(true),
        Err(errno) => Err(failed(errno.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_attached_is_kept_from_changes() {
        let dir = tempfile::tempdir().unwrap();
        let target = |text: &str| text.parse::<Target>().unwrap();
        let export = |text: &str| text.parse::<ExportName>().unwrap();
        let volume = |name: &'static str| move |export: &Target| export.volume.as_str() == name;
        let lease = Lease::take(dir.path(), &export("db")).unwrap();
        let snapshot = Lease::take(dir.path(), &export("web@one-1")).unwrap();
        assert!(end(dir.path(), false, volume("db")).unwrap_err().to_string().contains("attached"));
        assert!(end(dir.path(), false, |export| *export == target("web@one-1")).is_err());
        assert!(end(dir.path(), false, volume("other")).is_ok());
        assert!(end(dir.path(), false, |export| *export == target("web")).is_ok());
        // By force it is gone, though its holder lives.
        end(dir.path(), true, volume("db")).unwrap();
        assert!(!lease.path.exists());
        // A dead holder's counts for nothing.
        let path = snapshot.path.clone();
        drop(snapshot);
        end(dir.path(), false, volume("web")).unwrap();
        assert!(!path.exists());
        // A drill is no part of its volume.
        let drill = Lease::take(dir.path(), &export("db+try")).unwrap();
        assert!(end(dir.path(), false, volume("db")).is_ok());
        assert!(end_exports(dir.path(), false, |there| *there == export("db+try")).is_err());
        end_exports(dir.path(), true, |there| *there == export("db+try")).unwrap();
        assert!(!drill.path.exists());
        assert!(end(&dir.path().join("none"), false, volume("db")).is_ok());
    }
}
