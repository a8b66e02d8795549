//! Streams from one machine to the other: whole or a delta, cut anywhere, altered, resumed,
//! given up. A stream is what the encoder makes of a snapshot while its volume is in use;
//! it reaches the other machine when that is up.

use super::clients::bytes_of;
use super::commands::{claim, idle_snapshot, release};
use super::machine::Process;
use super::oracle::{Arrival, Fate, Snap, Vol};
use super::restart;
use crate::delta::FrameMaker;
use crate::engine::api::SendRequest;
use crate::engine::export;
use crate::error::{ErrorKind, Result};
use crate::types::Role;
use std::rc::Rc;

/// Streams that wait for a machine.
const WAITING_MAX: usize = 4;

/// A stream on its way.
#[derive(Clone)]
pub(super) struct Transfer {
    /// The volume that is to take it.
    volume: String,
    /// The snapshot and its content.
    snapshot: String,
    image: Vec<u8>,
    base: Option<String>,
    bytes: Vec<u8>,
    /// It ended too early.
    cut: bool,
    /// It leaves out what came before.
    resumes: bool,
}

/// What is known of a volume that receives.
#[derive(Clone, Debug, Default)]
pub(super) struct News {
    /// The newest snapshot that it received.
    newest: Option<String>,
    /// The snapshot that it has half, its base, and the token to go on with.
    half: Option<(String, Option<String>, String)>,
}

impl News {
    pub fn is_newest(&self, snapshot: &str) -> bool {
        self.newest.as_deref() == Some(snapshot)
    }
}

/// What a receive is to answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expected {
    Received,
    Already,
    Conflict,
}

/// The volume that takes the streams of another one, and the other way round.
pub(super) fn partner(volume: &str) -> String {
    match volume.strip_prefix("r-") {
        Some(origin) => origin.to_owned(),
        None => format!("r-{volume}"),
    }
}

/// Makes a stream of a snapshot.
pub(super) async fn send(process: &Rc<Process>) {
    if process.shared.wire[1 - process.index].borrow().len() >= WAITING_MAX {
        return;
    }
    let often = !process.shared.chance(5);
    let wanted = |vol: &Vol| !vol.snaps.is_empty() && !vol.half && (vol.role == Role::Primary || !often);
    let Some(volume) = claim(process, wanted) else { return };
    let youngest = process.oracle.borrow().volumes[&volume].snaps.last().map(|snap| snap.name.clone());
    let Some(snapshot) = youngest.filter(|_| often).or_else(|| idle_snapshot(process, &volume, true)) else {
        return release(process, &volume);
    };
    let news = process.shared.news.borrow().get(&partner(&volume)).cloned().unwrap_or_default();
    let half = news.half.filter(|_| !process.shared.chance(3));
    let snapshot = half.as_ref().map_or(snapshot, |(name, _, _)| name.clone());
    if !is_idle(process, &volume, &snapshot) {
        return release(process, &volume);
    }
    restart::snapshot(process, &volume, &snapshot).await;
    let mut base = choose_base(process, &volume, &snapshot, news.newest);
    let mut resume = None;
    if let Some((_, of, token)) = half {
        (base, resume) = (of, Some(token));
    }
    if base.as_ref().is_some_and(|base| !is_idle(process, &volume, base)) {
        return release(process, &volume);
    }
    let image = {
        let mut oracle = process.oracle.borrow_mut();
        let vol = oracle.vol(&volume);
        for name in base.iter().chain([&snapshot]) {
            vol.snap(name).busy = true;
        }
        vol.snap(&snapshot).image.clone()
    };
    // Only its snapshots are in use from here on.
    release(process, &volume);
    let mut transfer = Transfer {
        volume: partner(&volume),
        snapshot: snapshot.clone(),
        image,
        base: base.clone(),
        bytes: Vec::new(),
        cut: process.shared.chance(4),
        resumes: resume.is_some(),
    };
    let compress = process.shared.chance(2);
    let request = SendRequest { volume: volume.clone(), snapshot, from: base, compress, resume };
    let made = make(process, &request, &mut transfer).await;
    process.alive().await;
    made.expect("a stream");
    {
        let mut oracle = process.oracle.borrow_mut();
        for name in request.from.iter().chain([&request.snapshot]) {
            oracle.vol(&volume).snap(name).busy = false;
        }
    }
    process.shared.wire[1 - process.index].borrow_mut().push(transfer);
}

/// Whether a volume has that snapshot and no command works with it.
fn is_idle(process: &Process, volume: &str, snapshot: &str) -> bool {
    let oracle = process.oracle.borrow();
    oracle.volumes[volume].snaps.iter().any(|snap| snap.name == *snapshot && !snap.busy)
}

/// Often the newest snapshot that the other side has, sometimes any older one or none.
fn choose_base(process: &Process, volume: &str, snapshot: &str, newest: Option<String>) -> Option<String> {
    let older: Vec<String> = {
        let oracle = process.oracle.borrow();
        let snaps = oracle.volumes[volume].snaps.iter();
        snaps.take_while(|snap| snap.name != *snapshot).map(|snap| snap.name.clone()).collect()
    };
    match newest.filter(|newest| older.contains(newest)) {
        Some(newest) if !process.shared.chance(8) => Some(newest),
        // Mostly a whole stream, sometimes a base that does not fit.
        _ => process.shared.pick(older).filter(|_| process.shared.chance(4)),
    }
}

/// Makes the frames, or some of them.
async fn make(process: &Rc<Process>, request: &SendRequest, transfer: &mut Transfer) -> Result<()> {
    let source = process.core().source(request).await?;
    let mut frames = FrameMaker::new(Box::new(source))?;
    while let Some(frame) = frames.next_frame().await? {
        transfer.bytes.extend(frame);
        process.pause().await;
    }
    if transfer.cut {
        let len = process.shared.rng.borrow_mut().usize(0..transfer.bytes.len());
        transfer.bytes.truncate(len);
    }
    Ok(())
}

/// Takes a stream that waits for this machine.
pub(super) async fn receive(process: &Rc<Process>) {
    let waiting: Vec<usize> = {
        let (wire, oracle) = (process.shared.wire[process.index].borrow(), process.oracle.borrow());
        let is_idle = |t: &Transfer| {
            oracle.volumes.get(&t.volume).is_none_or(|vol| !vol.busy && vol.fate == Fate::Must)
        };
        (0..wire.len()).filter(|i| is_idle(&wire[*i])).collect()
    };
    let Some(chosen) = process.shared.pick(waiting) else { return };
    let mut transfer = process.shared.wire[process.index].borrow()[chosen].clone();
    if !process.shared.chance(4) {
        // Else it comes once more.
        process.shared.wire[process.index].borrow_mut().remove(chosen);
    }
    let altered = process.shared.chance(6) && !transfer.bytes.is_empty();
    if altered {
        let mut rng = process.shared.rng.borrow_mut();
        let at = rng.usize(0..transfer.bytes.len());
        transfer.bytes[at] ^= 1 << rng.u32(0..8);
    }
    apply(process, &transfer, altered).await;
}

/// What a whole and good stream meets.
fn expected(vol: &Vol, transfer: &Transfer) -> Expected {
    if vol.has(&transfer.snapshot) {
        return Expected::Already;
    }
    let base = transfer.base.as_ref().map(|base| vol.snaps.iter().find(|snap| snap.name == *base));
    let fits = match base {
        None => true,
        Some(None) => false,
        // Production must equal the base, unless this goes on with what it was equal for.
        Some(Some(base)) => vol.half || base.image == vol.live,
    };
    let arrives =
        vol.half_of.as_ref().is_none_or(|half| *half == (transfer.snapshot.clone(), transfer.base.clone()));
    if vol.role == Role::Primary || !fits || !arrives {
        return Expected::Conflict;
    }
    Expected::Received
}

async fn apply(process: &Rc<Process>, transfer: &Transfer, altered: bool) {
    let volume = &transfer.volume;
    let is_new = !process.oracle.borrow().volumes.contains_key(volume);
    // What the comparison with the base sees is what users see: nothing that is open.
    if !is_new {
        process.oracle.borrow_mut().vol(volume).busy = true;
        if let Some(base) =
            transfer.base.as_ref().filter(|base| process.oracle.borrow_mut().vol(volume).has(base))
        {
            restart::snapshot(process, volume, base).await;
        }
    }
    let good = !transfer.cut && !altered;
    let expected = {
        let mut oracle = process.oracle.borrow_mut();
        if is_new {
            let mut vol = Vol::new(transfer.image.len(), Role::Secondary);
            vol.busy = true;
            oracle.volumes.insert(volume.clone(), vol);
        }
        let vol = oracle.vol(volume);
        let (name, image) = (transfer.snapshot.clone(), transfer.image.clone());
        let expected = match is_new && transfer.base.is_some() {
            true => Expected::Conflict,
            false => expected(vol, transfer),
        };
        if expected == Expected::Received {
            vol.arrival = Some(Arrival { name, image, complete: good });
            vol.half_of = Some((transfer.snapshot.clone(), transfer.base.clone()));
        }
        expected
    };
    let result = process.core().receive(volume, &mut &transfer.bytes[..]).await;
    process.alive().await;
    match (&result, expected) {
        (Ok(received), Expected::Received) => {
            assert!(good, "{volume}@{}: a bad stream was received", transfer.snapshot);
            assert!(!received.already);
        }
        (Ok(received), Expected::Already) => assert!(received.already),
        (Ok(_), Expected::Conflict) => panic!("{volume}@{} was received", transfer.snapshot),
        (Err(error), Expected::Conflict) => {
            assert!(!good || error.kind() == ErrorKind::Conflict, "{error:?}");
        }
        // What it leaves out may have been given up since.
        (Err(error), Expected::Received) if transfer.resumes && error.kind() == ErrorKind::Conflict => {}
        (Err(error), _) => assert!(!good, "{volume}@{}: {error:?}", transfer.snapshot),
    }
    process.shared.count(|counts| match result.is_ok() {
        true => {
            counts.received += 1;
            counts.deltas += u64::from(transfer.base.is_some());
            counts.resumed += u64::from(transfer.resumes);
        }
        false => counts.refused += 1,
    });
    if is_new && !process.core().has_volume(volume) {
        process.oracle.borrow_mut().volumes.remove(volume);
        return;
    }
    {
        let mut oracle = process.oracle.borrow_mut();
        let vol = oracle.vol(volume);
        vol.fate = Fate::Must;
        vol.arrival = None;
        if result.is_ok() && expected == Expected::Received {
            vol.adopt(transfer.image.clone());
            vol.snaps.push(Snap::received(transfer.snapshot.clone(), transfer.image.clone()));
        }
    }
    restart::half(process, volume).await;
    tell(process, volume).await;
    look_at_secondary(process, volume).await;
    release(process, volume);
}

/// Tells the other side what this volume has.
async fn tell(process: &Rc<Process>, volume: &str) {
    let half = process.core().receive_status(volume).await;
    process.alive().await;
    let half = half.expect("a status");
    let mut oracle = process.oracle.borrow_mut();
    let vol = oracle.vol(volume);
    let half = half.zip(vol.half_of.clone());
    let half = half.map(|(status, (snapshot, base))| (snapshot, base, status.token));
    let newest = vol.snaps.last().map(|snap| snap.name.clone());
    process.shared.news.borrow_mut().insert(volume.to_owned(), News { newest, half });
}

/// Gives a receive up: the volume is as before.
pub(super) async fn abort(process: &Rc<Process>) {
    let Some(volume) = claim(process, |vol| vol.half) else { return };
    let result = process.core().receive_abort(&volume).await;
    process.alive().await;
    result.expect("a receive that is given up");
    {
        let mut oracle = process.oracle.borrow_mut();
        let vol = oracle.vol(&volume);
        vol.half = false;
    }
    restart::half(process, &volume).await;
    restart::production(process, &volume, true).await;
    process.shared.count(|counts| counts.aborted += 1);
    release(process, &volume);
}

/// The export of a secondary shows its newest snapshot, whatever is half received.
pub(super) async fn look_at_secondary(process: &Rc<Process>, volume: &str) {
    let shown = {
        let mut oracle = process.oracle.borrow_mut();
        let vol = oracle.vol(volume);
        if vol.role == Role::Primary || vol.snaps.iter().any(|snap| snap.busy) {
            return;
        }
        vol.snaps.last().map(|snap| snap.name.clone())
    };
    if let Some(name) = &shown {
        restart::snapshot(process, volume, name).await;
    }
    let (engine, _) = process.open_volume(volume);
    let device = export::device(&engine, volume, None, "reader".to_owned()).expect("an export");
    assert!(device.read_only(), "{volume} is a secondary");
    let found = process.on(&engine, async move { device.read(0, device.size()).await }).await;
    let found = bytes_of(found.expect("what a secondary shows"));
    let mut oracle = process.oracle.borrow_mut();
    let vol = oracle.vol(volume);
    match shown {
        Some(name) => assert!(found == vol.snap(&name).image, "{volume} shows something else than {name}"),
        None => assert!(found.iter().all(|byte| *byte == 0), "{volume} shows what nobody sent"),
    }
}
