//! The plainest life of a volume, step by step.

use super::*;
use crate::io::sim::SimOptions;
use crate::snapshot::Who;
use bytes::Bytes;

#[test]
fn a_short_life() {
    for inline in [true, false] {
        let disk = SimDisk::new(SimOptions { seed: 1, inline, reorder: !inline });
        let geometry = Geometry::new(256 << 10, 4096, 1).unwrap();
        on_sim(&disk, |io| async move {
            let dir = Path::new(DIR);
            create(&io, dir, geometry, Role::Primary).await;
            let volume = open(&io, dir, 4096, &BTreeSet::new()).await;
            let first = Bytes::from(vec![1; 10_000]);
            volume.write(Who::Client, 1000, first, false).await.unwrap();
            let before = production(&volume).await;
            assert_eq!(before[1000..11_000], [1; 10_000]);
            volume.take(request("a")).await.unwrap();
            volume.write(Who::Client, 0, Bytes::from(vec![2; 8192]), true).await.unwrap();
            volume.trim(Who::Client, 8192, 4096, false).await.unwrap();
            assert_eq!(snapshot(&volume, "a").await, before);
            let now = production(&volume).await;
            assert_eq!(now[..8192], [2; 8192]);
            assert_eq!(now[8192..], vec![0; now.len() - 8192]);
            volume.take(request("b")).await.unwrap();
            volume.write(Who::Client, 4096, Bytes::from(vec![3; 4096]), false).await.unwrap();
            assert_eq!(snapshot(&volume, "b").await, now);
            let (uuid, _) = volume.can_delete("a").unwrap();
            volume.delete(&[uuid]).await.unwrap();
            assert_eq!(snapshot(&volume, "b").await, now);
            volume.close().await.unwrap();
        });
        disk.crash_process();
        on_sim(&disk, |io| async move {
            let (volume, opened) =
                Volume::open(&io, Path::new(DIR), "vol", tuning(4096), &BTreeSet::new()).await.unwrap();
            assert!(opened.clean);
            let now = production(&volume).await;
            assert_eq!(now[..4096], [2; 4096]);
            assert_eq!(now[4096..8192], [3; 4096]);
            assert_eq!(snapshot(&volume, "b").await[4096..8192], [2; 4096]);
        });
    }
}
