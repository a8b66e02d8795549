//! One test for each rule that closes a hole: an order of events in which the volume would
//! lose data or show old data without it. Each was seen to fail with its rule broken.

mod bookmarks;
mod layers;
mod receive;
mod recovery;
mod snapshots;

use super::*;
use crate::ErrorKind;
use crate::io::sim::{Loss, SimOptions};
use crate::snapshot::Who;
use bytes::Bytes;
use futures::future::join;

const BLOCK: u64 = 4096;
const SIZE: u64 = 24 * BLOCK;
/// Bytes in a block.
const BYTES: usize = 4096;

/// A machine with a new volume.
fn machine(seed: u64, granularity: u32, role: Role) -> SimDisk {
    let disk = SimDisk::new(SimOptions { seed, inline: seed.is_multiple_of(2), reorder: true });
    let geometry = Geometry::new(SIZE, 4096, granularity).unwrap();
    on_sim(&disk, move |io| async move { create(&io, Path::new(DIR), geometry, role).await });
    disk.crash_process();
    disk
}

/// One life of a process with the volume open; `None` if it was cut short.
fn live<T: 'static, F: Future<Output = T> + 'static>(
    disk: &SimDisk,
    task: impl FnOnce(Rc<Volume>) -> F + 'static,
) -> Option<T> {
    on_sim(disk, |io| async move {
        let volume = open(&io, Path::new(DIR), 4096, &BTreeSet::new()).await;
        task(volume).await
    })
}

async fn put(volume: &Rc<Volume>, at: u64, len: u64, byte: u8) {
    let data = Bytes::from(vec![byte; usize::try_from(len).unwrap()]);
    volume.write(Who::Client, at, data, false).await.unwrap();
}

async fn trim(volume: &Rc<Volume>, at: u64, len: u64) {
    volume.trim(Who::Client, at, len, false).await.unwrap();
}

async fn take(volume: &Rc<Volume>, name: &str) {
    volume.take(request(name)).await.unwrap();
}

async fn delete(volume: &Rc<Volume>, name: &str) {
    let (uuid, _) = volume.can_delete(name).unwrap();
    volume.delete(&[uuid]).await.unwrap();
}

/// The first byte of every block of production.
async fn now(volume: &Rc<Volume>) -> Vec<u8> {
    production(volume).await.into_iter().step_by(4096).collect()
}

/// The first byte of every block of a snapshot.
async fn then(volume: &Rc<Volume>, name: &str) -> Vec<u8> {
    snapshot(volume, name).await.into_iter().step_by(4096).collect()
}
