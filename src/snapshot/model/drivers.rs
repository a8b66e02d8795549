//! The same script on the kernel's drivers, in a directory of the real disk, and on a
//! volume whose maps have more than a page.

use super::oracle::Oracle;
use super::script::{Script, geometry};
use super::*;
use crate::io::DriverKind;
use crate::io::sim::SimOptions;

fn script(io: &Io, volume: Rc<Volume>, oracle: &Rc<RefCell<Oracle>>, seed: u64, life: u16) -> Script {
    Script::new(io, volume, Rc::clone(oracle), Rc::new(Run::new(seed)), life)
}

fn on_kernel(kind: DriverKind, seed: u64) {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("v");
    let geometry = geometry(&mut fastrand::Rng::with_seed(seed));
    let oracle = Rc::new(RefCell::new(Oracle::new(usize::try_from(geometry.size).unwrap())));
    for life in 0..3 {
        let (dir, oracle) = (dir.clone(), Rc::clone(&oracle));
        drive(
            crate::io::driver(kind).unwrap(),
            || false,
            || (),
            move |io| async move {
                if life == 0 {
                    create(&io, &dir, geometry, Role::Primary).await;
                }
                let committed = oracle.borrow().committed.clone();
                let volume = open(&io, &dir, geometry.block_size, &committed).await;
                let script = script(&io, volume, &oracle, seed, life);
                script.check().await;
                for step in 1..=8 {
                    script.step(step).await;
                    script.check().await;
                }
                // The second life ends as a dead process does.
                if life != 1 {
                    script.volume.close().await.unwrap();
                }
            },
        );
    }
}

#[test]
fn on_plain_system_calls() {
    for seed in rounds(8000, 4) {
        let _seed = Seed(format!("SNAPVOL_SEED={seed} (plain)"));
        on_kernel(DriverKind::Plain, seed);
    }
}

#[test]
fn on_io_uring() {
    if crate::io::driver(DriverKind::Uring).is_err() {
        eprintln!("io_uring is not allowed here");
        return;
    }
    for seed in rounds(8100, 4) {
        let _seed = Seed(format!("SNAPVOL_SEED={seed} (io_uring)"));
        on_kernel(DriverKind::Uring, seed);
    }
}

#[test]
fn maps_of_more_than_a_page() {
    for seed in rounds(8200, 2) {
        let _seed = Seed(format!("SNAPVOL_SEED={seed} (pages)"));
        let disk = SimDisk::new(SimOptions { seed, inline: true, reorder: true });
        let size = 20 << 20;
        let oracle = Rc::new(RefCell::new(Oracle::new(size)));
        let granularity = if seed.is_multiple_of(2) { 1 } else { 4 };
        let geometry = Geometry::new(size as u64, 512, granularity).unwrap();
        for life in 0..2 {
            let oracle = Rc::clone(&oracle);
            on_sim(&disk, move |io| async move {
                if life == 0 {
                    create(&io, Path::new(DIR), geometry, Role::Primary).await;
                }
                let committed = oracle.borrow().committed.clone();
                let volume = open(&io, Path::new(DIR), 512, &committed).await;
                let script = script(&io, volume, &oracle, seed, life);
                for step in 1..=5 {
                    script.step(step).await;
                    script.check().await;
                }
                script.volume.close().await.unwrap();
            });
            disk.crash_process();
        }
    }
}
