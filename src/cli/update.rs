//! `update`: a local copy fetches what is newer from where it came.
//!
//! The far side is asked what it has (`list`), [`decide`] says what is to be fetched, and `send`
//! there makes the stream that is applied here. Snapshots match by identity. What the volume shows
//! is the base where the far side still has it; where it has not, the whole is fetched.

use super::args::parse_time;
use super::output;
use super::progress::Progress;
use super::shipping::Shipping;
use crate::control::Access;
use crate::engine::api::{HalfReceived, Received, SnapshotInfo, StoreInfo, UpdateSource, VolumeInfo};
use crate::error::{Error, ErrorKind, Result};
use crate::transport::{Destination, Peer};
use crate::types::{Name, Role};
use serde::Serialize;
use std::io::Read;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use uuid::Uuid;

/// The longest answer of the far side to `list`, in bytes.
const LIST_MAX: u64 = 64 << 20;

/// Fetch what is newer of a volume that is a copy of one elsewhere
///
/// Of the volume there the youngest snapshot is fetched, or the one named with --to: as a delta
/// where that store still has what this one shows, whole where it has not, and nothing where this
/// one is current. Where from is remembered, so it is said once. An update that was interrupted
/// goes on where it stopped.
#[derive(clap::Args)]
pub(super) struct Args {
    /// The volume here; with --from it is made if it is missing
    #[arg(value_name = "VOL")]
    volume: Name,

    /// Where from: ssh://[user@]host[:port]/STORE/VOL, or /STORE/VOL
    #[arg(long, value_name = "SRC")]
    from: Option<Destination>,

    /// Do nothing if it was updated less than that ago
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    min_interval: Option<u64>,

    /// Fetch this snapshot, not the youngest
    #[arg(long, value_name = "SNAP")]
    to: Option<Name>,

    /// Compress the data with zstd on its way
    #[arg(long)]
    compress: bool,

    /// The program to run there, as its shell takes it
    #[arg(long, value_name = "COMMAND")]
    remote_command: Option<String>,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What came of an update.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Outcome {
    /// It was updated a short while ago.
    NotDue,
    /// There is nothing newer.
    Current,
    /// What changed was fetched.
    Delta,
    /// All of it was fetched.
    Whole,
}

#[derive(Debug, Serialize)]
struct Report {
    volume: String,
    source: String,
    outcome: Outcome,
    snapshot: Option<String>,
    uuid: Option<Uuid>,
    data_bytes: u64,
    discard_bytes: u64,
}

pub(super) fn run(access: &Access, args: &Args) -> Result<()> {
    let volume = args.volume.as_str();
    let known = match access.update_source(volume) {
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        known => Some(known?),
    };
    let source = source(args, known.as_ref())?;
    let now_us = now_us();
    if !is_due(known.as_ref().filter(|known| known.source == source.source), args, now_us) {
        return show(args, &report(args, &source, Outcome::NotDue));
    }
    let from: Destination = source.source.parse()?;
    let program = Some(source.remote_command.as_str()).filter(|command| !command.is_empty());
    let there = far_snapshots(&from, program)?;
    let updated = update(access, args, &source, &Far { from, program, snapshots: there });
    // What failed half-way goes on from there without being told again.
    let goes_on = || matches!(access.receive_status(volume), Ok(Some(_)));
    if updated.is_ok() || goes_on() {
        let checked_us = if updated.is_ok() { now_us } else { 0 };
        access.remember_source(volume, UpdateSource { checked_us, ..source })?;
    }
    show(args, &updated?)
}

fn report(args: &Args, source: &UpdateSource, outcome: Outcome) -> Report {
    Report {
        volume: args.volume.to_string(),
        source: source.source.clone(),
        outcome,
        snapshot: None,
        uuid: None,
        data_bytes: 0,
        discard_bytes: 0,
    }
}

fn show(args: &Args, report: &Report) -> Result<()> {
    if args.json { output::print_json(report) } else { output::print(&text(report)) }
}

fn now_us() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

/// Where from: what is said, else what was said before.
fn source(args: &Args, known: Option<&UpdateSource>) -> Result<UpdateSource> {
    let known = known.cloned().unwrap_or_default();
    let source = match &args.from {
        Some(from) => from.to_string(),
        None if known.source.is_empty() => {
            return Err(Error::not_found(format!("nobody said from where {} is updated", args.volume))
                .hint("say it once with --from ssh://[user@]host[:port]/STORE/VOL"));
        }
        None => known.source,
    };
    let remote_command = args.remote_command.clone().unwrap_or(known.remote_command);
    Ok(UpdateSource { source, remote_command, checked_us: known.checked_us })
}

/// Whether it is to be asked now. A clock that was set back is no reason not to.
fn is_due(known: Option<&UpdateSource>, args: &Args, now_us: u64) -> bool {
    let (Some(known), Some(interval)) = (known, args.min_interval) else { return true };
    let checked = known.checked_us;
    checked == 0 || args.to.is_some() || checked > now_us || now_us - checked >= interval.saturating_mul(1000)
}

/// What is to be done next.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    /// Nothing: that snapshot is here.
    Nothing { at: usize },
    /// What is half received is dropped: the far side can't go on with it.
    Drop,
    /// The snapshot at that place there is fetched.
    Fetch { at: usize, from: Option<String>, resume: Option<String> },
}

/// Decides, from the snapshots there, what is here, and what is half received here.
fn decide(
    there: &[SnapshotInfo],
    to: Option<&str>,
    here: Option<&VolumeInfo>,
    half: Option<&HalfReceived>,
) -> Result<Step> {
    let named = |name: &str| there.iter().position(|snapshot| snapshot.name == name);
    let with = |uuid: Uuid| there.iter().position(|snapshot| snapshot.uuid == uuid);
    let at = match to {
        Some(name) => named(name),
        None => there.len().checked_sub(1),
    };
    let Some(at) = at else {
        return Err(match to {
            Some(name) => Error::not_found(format!("there is no snapshot {name} at the source")),
            None => Error::not_found("the source has no snapshot")
                .hint("take one there, or have a schedule do it"),
        });
    };
    if let Some(half) = half {
        if half.running {
            return Err(Error::conflict(format!("volume {} is being updated at this moment", half.volume))
                .hint("wait for its end"));
        }
        let from = half.base.map(|base| with(base).map(|base| there[base].name.clone()));
        return Ok(match (with(half.uuid), from) {
            (Some(at), None) => Step::Fetch { at, from: None, resume: Some(half.token.clone()) },
            (Some(at), Some(Some(from))) => {
                Step::Fetch { at, from: Some(from), resume: Some(half.token.clone()) }
            }
            _ => Step::Drop,
        });
    }
    let Some(here) = here else { return Ok(Step::Fetch { at, from: None, resume: None }) };
    if here.snapshots.iter().any(|snapshot| snapshot.uuid == there[at].uuid) {
        return Ok(Step::Nothing { at });
    }
    if here.role == Role::Primary {
        return Err(Error::conflict(format!("volume {} is a primary, which takes no updates", here.name))
            .hint("demote it if its own changes may go, or name another volume"));
    }
    if let Some(twin) = here.snapshots.iter().find(|snapshot| snapshot.name == there[at].name) {
        return Err(Error::conflict(format!("another snapshot has the name {} here", twin.name))
            .hint("delete that one here, or name another one with --to"));
    }
    // Only what it shows can be gone on from; a second name is what it is a name of.
    let shown = here.snapshots.last().map(|snapshot| snapshot.of.unwrap_or(snapshot.uuid));
    let base = shown.and_then(with).filter(|base| *base < at);
    Ok(Step::Fetch { at, from: base.map(|base| there[base].name.clone()), resume: None })
}

/// Where it is fetched from.
struct Far<'a> {
    from: Destination,
    program: Option<&'a str>,
    /// Oldest first.
    snapshots: Vec<SnapshotInfo>,
}

/// Fetches until nothing is left to be done.
fn update(store: &dyn Shipping, args: &Args, source: &UpdateSource, far: &Far<'_>) -> Result<Report> {
    let volume = args.volume.as_str();
    let mut report = report(args, source, Outcome::Current);
    loop {
        let (here, half) = local(store, volume)?;
        let to = args.to.as_ref().map(Name::as_str);
        match decide(&far.snapshots, to, here.as_ref(), half.as_ref())? {
            Step::Nothing { at } => {
                report.snapshot = Some(far.snapshots[at].name.clone());
                report.uuid = Some(far.snapshots[at].uuid);
                return Ok(report);
            }
            Step::Drop => store.receive_abort(volume)?,
            Step::Fetch { at, from, resume } => {
                let is_whole = from.is_none();
                let received = fetch(store, args, far, &far.snapshots[at], from, resume)?;
                if report.outcome != Outcome::Whole {
                    report.outcome = if is_whole { Outcome::Whole } else { Outcome::Delta };
                }
                report.data_bytes += received.data_bytes;
                report.discard_bytes += received.discard_bytes;
            }
        }
    }
}

/// The volume here, if there is one, and what is half received into it.
fn local(store: &dyn Shipping, volume: &str) -> Result<(Option<VolumeInfo>, Option<HalfReceived>)> {
    match store.list(Some(volume)) {
        Ok(info) => Ok((info.volumes.into_iter().next(), store.receive_status(volume)?)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok((None, None)),
        Err(error) => Err(error),
    }
}

/// The snapshots at the source, oldest first.
fn far_snapshots(from: &Destination, program: Option<&str>) -> Result<Vec<SnapshotInfo>> {
    let mut peer = Peer::start(from, program, &["list", from.volume.as_str(), "--json"])?;
    drop(peer.input());
    let mut text = Vec::new();
    let read = peer.output().take(LIST_MAX).read_to_end(&mut text);
    let place = peer.place().to_owned();
    peer.finish()?;
    read.map_err(|error| Error::os(format!("read what {place} has"), error))?;
    let odd = || Error::invalid(format!("{place} does not say what it has as snapvol does"));
    let info: StoreInfo = serde_json::from_slice(&text).map_err(|_| {
        odd().hint("something there prints text at login, or the two sides are of different versions")
    })?;
    let found = info.volumes.into_iter().find(|found| found.name == from.volume.as_str());
    Ok(found.ok_or_else(odd)?.snapshots)
}

/// Has the far side send a snapshot, and applies it.
fn fetch(
    store: &dyn Shipping,
    args: &Args,
    far: &Far<'_>,
    wanted: &SnapshotInfo,
    base: Option<String>,
    resume: Option<String>,
) -> Result<Received> {
    let name = format!("{}@{}", far.from.volume, wanted.name);
    let mut command = vec!["send", name.as_str()];
    if args.compress {
        command.push("--compress");
    }
    for (option, value) in [("--from", &base), ("--resume", &resume)] {
        if let Some(value) = value {
            command.extend([option, value.as_str()]);
        }
    }
    let mut peer = Peer::start(&far.from, far.program, &command)?;
    drop(peer.input());
    let mut stream = peer.output();
    let bar = Progress::bytes(&name, None);
    let received = store.receive(args.volume.as_str(), &mut bar.reader(&mut stream));
    drop(bar);
    drop(stream);
    let ended = peer.finish();
    match (received, ended) {
        (Ok(received), _) if received.uuid == wanted.uuid => Ok(received),
        (Ok(received), _) => {
            Err(Error::conflict(format!("the source sent another snapshot, {}", received.snapshot)))
        }
        // A stream that ends early is explained by who made it, unless it was this side that left.
        (Err(error), Err(cause)) if early(&error) => {
            Err(cause.hint("run the same command again: it goes on where it stopped"))
        }
        (Err(error), _) if early(&error) => {
            Err(error.hint("run the same command again: it goes on where it stopped"))
        }
        (Err(error), _) => Err(error),
    }
}

/// Whether a stream came to no good end.
fn early(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::Corrupt | ErrorKind::Io)
}

fn text(report: &Report) -> String {
    let Report { volume, source, snapshot, .. } = report;
    let snapshot = snapshot.as_deref().unwrap_or_default();
    let bytes = output::human(report.data_bytes);
    match report.outcome {
        Outcome::NotDue => format!("{volume}: not due yet\n"),
        Outcome::Current => format!("{volume}: current, with {snapshot} of {source}\n"),
        Outcome::Delta => format!("{volume}: now at {snapshot} of {source}, {bytes} fetched\n"),
        Outcome::Whole => format!("{volume}: now at {snapshot} of {source}, {bytes} fetched (whole)\n"),
    }
}

#[cfg(test)]
mod tests;
