//! What the store does with directories that somebody else has changed.

use super::*;
use crate::ErrorKind;
use crate::types::OnFull;

fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        if entry.path().is_dir() {
            copy_dir(&entry.path(), &to.join(entry.file_name()));
        } else {
            std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}

#[test]
fn a_copied_directory_is_no_second_volume() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("store");
    Store::init(&dir).unwrap();
    let options = CreateOptions { size: 1 << 20, block_size: 4096, granularity: 1, on_full: OnFull::Freeze };
    let store = Store::open(&dir, OpenOptions::default()).unwrap();
    store.create("db", &options).unwrap();
    store.close().unwrap();
    let volumes = paths::volumes(&dir);
    copy_dir(&volumes.join("db"), &volumes.join("db-copy"));
    std::fs::write(volumes.join("notes"), "no directory").unwrap();

    let store = Store::open(&dir, OpenOptions::default()).unwrap();
    assert_eq!(store.list(Some("db")).unwrap().volumes[0].state, "ok");
    let error = store.list(Some("db-copy")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert!(error.to_string().contains("copy of volume db"), "{error}");
    assert_eq!(store.list(None).unwrap().volumes.len(), 2, "a file is no volume");
    store.close().unwrap();
    let findings = Store::check(&dir, false).unwrap().findings;
    assert!(findings.iter().any(|found| found.volume.as_deref() == Some("db-copy")), "{findings:?}");
    assert!(findings.iter().all(|found| found.volume.as_deref() != Some("db")), "{findings:?}");
}
