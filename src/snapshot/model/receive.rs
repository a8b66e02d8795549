//! Streams from one volume to another: deltas from the maps of the first, read through its
//! snapshots, applied by a second one that dies, resumes and aborts.

#[cfg(test)]
use super::oracle::Crash;
use super::oracle::Oracle;
use super::script::{Script, geometry};
use super::*;
use crate::io::sim::{Loss, SimOptions};
use crate::snapshot::{Incoming, ReceiveStart, Receiving, Who};
use bytes::Bytes;
use futures::future::join_all;

/// Steps of the volume that sends.
const STEPS: u16 = 20;

/// What a sender would send.
#[derive(Clone)]
struct Stream {
    incoming: Incoming,
    /// Offset and data, or the length of a discard.
    runs: Vec<(u64, Result<Vec<u8>, u64>)>,
    image: Vec<u8>,
}

/// The history of a volume, as streams: a whole one, then deltas.
fn streams(run: &Rc<Run>) -> (Geometry, Vec<Stream>) {
    let geometry = geometry(&mut run.rng(&[1 << 20]));
    let disk = SimDisk::new(SimOptions::seeded(run.varied(&[1]).u64(..)));
    let run = Rc::clone(run);
    let streams = on_sim(&disk, move |io| async move {
        create(&io, Path::new(DIR), geometry, Role::Primary).await;
        let volume = open(&io, Path::new(DIR), geometry.block_size, &BTreeSet::new()).await;
        let oracle = Rc::new(RefCell::new(Oracle::new(usize::try_from(geometry.size).unwrap())));
        let script = Script::new(&io, Rc::clone(&volume), oracle, run, 0);
        for step in 1..=STEPS {
            script.step(step).await;
            script.check().await;
        }
        let mut streams = Vec::new();
        let mut base: Option<(Uuid, String)> = None;
        for record in volume.snapshots() {
            let reader = volume.open_snapshot(&record.name).unwrap();
            let delta =
                volume.delta_between(base.as_ref().map(|(u, _)| *u), Some(record.uuid)).await.unwrap();
            let mut runs = Vec::new();
            for run in delta.runs(0..delta.size) {
                let len = run.bytes.end - run.bytes.start;
                let data = match run.discard {
                    true => Err(len),
                    false => Ok(bytes_of(reader.read(run.bytes.start, len).await.unwrap())),
                };
                runs.push((run.bytes.start, data));
            }
            let image = snapshot(&volume, &record.name).await;
            let incoming = Incoming {
                target: record.uuid,
                name: record.name.clone(),
                created_us: 9,
                size: record.size,
                base: base.replace((record.uuid, record.name.clone())),
                set: record.set,
            };
            streams.push(Stream { incoming, runs, image });
        }
        streams
    });
    (geometry, streams.unwrap())
}

/// Applies a stream, or what is left of it; false if it was broken off by `stop`.
async fn apply(volume: &Rc<Volume>, stream: &Stream, rng: &mut fastrand::Rng, stop: bool) -> bool {
    let (receiving, from) = match volume.receive_begin(&stream.incoming).await.unwrap() {
        ReceiveStart::Already => return true,
        ReceiveStart::Go(receiving, from) => (receiving, from),
    };
    let stop = stop.then(|| rng.usize(0..=stream.runs.len()));
    let step = volume.geometry().block_size as usize * rng.usize(1..=6);
    let mut ahead: Vec<Vec<(u64, Bytes)>> = vec![Vec::new()];
    for (index, (offset, what)) in stream.runs.iter().enumerate() {
        if stop == Some(index) {
            return false;
        }
        match what {
            Ok(data) => {
                let skip = usize::try_from(from.saturating_sub(*offset)).unwrap().min(data.len());
                for (part, piece) in data[skip..].chunks(step).enumerate() {
                    let at = offset + (skip + part * step) as u64;
                    ahead.last_mut().unwrap().push((at, Bytes::copy_from_slice(piece)));
                    match rng.u32(0..8) {
                        0..=1 if ahead.len() < 3 => ahead.push(Vec::new()),
                        2 => hand_over(&receiving, &mut ahead).await,
                        3 => {
                            hand_over(&receiving, &mut ahead).await;
                            receiving.progress(at + piece.len() as u64).await.unwrap();
                        }
                        _ => {}
                    }
                }
            }
            Err(len) if offset + len > from => receiving.discard(*offset, *len).await.unwrap(),
            Err(_) => {}
        }
    }
    if stop.is_some() {
        return false;
    }
    hand_over(&receiving, &mut ahead).await;
    receiving.commit().await.unwrap();
    true
}

/// Applies batches beside each other.
async fn hand_over(receiving: &Receiving, ahead: &mut Vec<Vec<(u64, Bytes)>>) {
    let batches = std::mem::replace(ahead, vec![Vec::new()]);
    join_all(batches.iter().map(|batch| receiving.data(batch))).await.into_iter().for_each(Result::unwrap);
}

/// Every snapshot that was received is whole; returns how many there are.
async fn check(volume: &Rc<Volume>, streams: &[Stream], least: usize) -> usize {
    let there = volume.snapshots();
    assert!((least..=least + 1).contains(&there.len()), "{} snapshots, not {least}", there.len());
    for (record, stream) in there.iter().zip(streams) {
        assert_eq!((record.uuid, record.size), (stream.incoming.target, stream.incoming.size));
        assert!(snapshot(volume, &record.name).await == stream.image, "{} differs", record.name);
    }
    there.len()
}

pub(super) fn secondary(run: &Rc<Run>, crashes: bool, power: bool) {
    let (geometry, streams) = streams(run);
    let seed = run.varied(&[2]).u64(..);
    let disk = SimDisk::new(SimOptions { seed, inline: seed.is_multiple_of(2), reorder: true });
    let small =
        Geometry::new(geometry.size.min(64 << 10), geometry.block_size, geometry.granularity).unwrap();
    on_sim(&disk, move |io| async move { create(&io, Path::new(DIR), small, Role::Secondary).await });
    disk.crash_process();
    let rng = Rc::new(RefCell::new(run.varied(&[3])));
    let held = Rc::new(Cell::new(0));
    for life in 0..40_u16 {
        if crashes && life < 30 {
            let mut rng = rng.borrow_mut();
            let most = [40, 200, 1500][rng.usize(0..3)];
            disk.crash_after(rng.u64(0..most));
        }
        let (streams, rng_now, count) = (streams.clone(), Rc::clone(&rng), Rc::clone(&held));
        let (machine, run_now) = (disk.clone(), Rc::clone(run));
        let ended = on_sim(&disk, move |io| async move {
            let mut rng = rng_now.borrow().clone();
            let volume = open(&io, Path::new(DIR), geometry.block_size, &BTreeSet::new()).await;
            let mut held = check(&volume, &streams, count.get()).await;
            while let Some(stream) = streams.get(held) {
                count.set(held);
                *rng_now.borrow_mut() = rng.clone();
                if rng.u32(0..3) == 0 && !apply(&volume, stream, &mut rng, true).await {
                    check(&volume, &streams, held).await;
                    if rng.bool() && volume.half_received().is_some() {
                        volume.receive_abort().await.unwrap();
                        let whole = &streams[..held];
                        let before = whole.last().map(|s| s.image.clone());
                        let now = production(&volume).await;
                        let expected = before.unwrap_or_else(|| vec![0; now.len()]);
                        assert!(now == expected, "an abort restores what was before");
                        check(&volume, &streams, held).await;
                    }
                }
                apply(&volume, stream, &mut rng, false).await;
                if !machine.is_dead() {
                    assert_eq!(check(&volume, &streams, held + 1).await, held + 1);
                    run_now.note(Id::life(life + 1), || format!("received {held}"));
                    run_now.count(|counts| {
                        counts.operations += 1;
                        counts.checks += 1;
                    });
                    held += 1;
                    count.set(held);
                } else {
                    std::future::pending::<()>().await;
                }
            }
            let refused = volume.write(Who::Client, 0, Bytes::from_static(b"no"), false).await;
            assert!(refused.is_err());
            volume.close().await.unwrap();
        });
        if ended.is_none() {
            run.count(|counts| counts.crashes += 1);
        }
        if power && rng.borrow_mut().bool() {
            let loss = [Loss::Random, Loss::All, Loss::None, Loss::Torn][rng.borrow_mut().usize(0..4)];
            disk.power_cut(loss);
        } else {
            disk.crash_process();
        }
        if ended.is_some() {
            return;
        }
    }
    panic!("it never ended");
}

#[test]
fn a_secondary_takes_what_is_sent() {
    for seed in rounds(7000, 12) {
        let _seed = Seed(format!("SNAPVOL_SEED={seed} (receive)"));
        secondary(&Rc::new(Run::new(seed)), false, false);
    }
}

#[test]
fn a_receive_is_atomic_whenever_the_process_dies() {
    for seed in rounds(7100, 12) {
        let _seed = Seed(format!("SNAPVOL_SEED={seed} (receive, process crashes)"));
        secondary(&Rc::new(Run::new(seed)), true, false);
    }
}

#[test]
fn a_receive_is_atomic_whenever_the_power_fails() {
    for seed in rounds(7200, 12) {
        let _seed = Seed(format!("SNAPVOL_SEED={seed} (receive, power cuts)"));
        secondary(&Rc::new(Run::new(seed)), true, true);
    }
}

/// The oracle's rule for what a crash leaves is as strict as it says.
#[test]
fn the_oracle_tells_old_from_older() {
    let mut oracle = Oracle::new(4);
    let first = oracle.begin(0, vec![1; 4]);
    oracle.ack(first);
    let flushed = oracle.acked();
    oracle.flushed(&flushed);
    let second = oracle.begin(1, vec![2; 2]);
    assert!(oracle.check_crash(&[1, 2, 1, 1], Crash::Process).is_ok());
    oracle.ack(second);
    assert!(oracle.check_crash(&[1, 2, 1, 1], Crash::Process).is_err());
    assert!(oracle.check_crash(&[1, 2, 1, 1], Crash::Power).is_ok());
    assert!(oracle.check_crash(&[1, 0, 1, 1], Crash::Power).is_err());
}
