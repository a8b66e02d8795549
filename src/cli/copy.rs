//! `copy`: ships a snapshot to another store and waits until it is durable there.
//!
//! [`decide`] is the whole of the reasoning: from what both sides hold to the stream
//! that is to be made. Snapshots match by identity, never by name. A copy has
//! succeeded when the far end has said `done`, and at no other time.

use super::progress::Progress;
use super::send::base_name;
use super::shipping::{GOES_ON, Held, PEER_VERSION, Shipping, ToFar, ToNear, far_failure, hear, say};
use crate::delta::{Relay, ResumeToken};
use crate::engine::api::{Received, SendRequest, SnapshotInfo};
use crate::error::{Error, ErrorKind, Result};
use crate::transport::{Destination, Peer, PipeWriter};
use crate::types::{Role, SnapName};
use std::io::{BufRead, Write};
use std::sync::Mutex;
use uuid::Uuid;

/// Ship a snapshot to another store and wait until it is durable there
///
/// Without --from or --full: the delta from the youngest snapshot that both sides have,
/// else the whole. What was interrupted goes on where it stopped.
#[derive(clap::Args)]
pub(super) struct Args {
    /// The snapshot to copy
    #[arg(value_name = "VOL@SNAP")]
    snapshot: SnapName,
    /// Where to: ssh://[user@]host[:port]/STORE/VOL, or /STORE/VOL
    #[arg(value_name = "DEST")]
    destination: Destination,
    /// Send the delta from this snapshot, which both sides must hold
    #[arg(long, value_name = "SNAP", conflicts_with = "full")]
    from: Option<String>,
    /// Send the whole snapshot
    #[arg(long)]
    full: bool,
    /// Compress the data with zstd
    #[arg(long)]
    compress: bool,
    /// The program to run there, as its shell takes it
    #[arg(long, value_name = "COMMAND")]
    remote_command: Option<String>,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Plan {
    /// The far side holds the snapshot.
    Already,
    /// A stream from this base, leaving out what the token says.
    Send { from: Option<String>, resume: Option<String> },
}

/// The base that the user asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Base<'a> {
    Any,
    From(&'a str),
    Full,
}

/// Runs the command.
///
/// # Errors
/// Those of either store and of the connection; `Interrupted` when it broke, and then
/// the same command goes on where it stopped.
pub(super) fn run(store: &dyn Shipping, args: Args) -> Result<()> {
    let from = args.from.as_deref().map(|from| base_name(from, &args.snapshot)).transpose()?;
    let base = match &from {
        Some(from) => Base::From(from),
        None if args.full => Base::Full,
        None => Base::Any,
    };
    let volume = args.snapshot.volume.as_str();
    let info = store.list(Some(volume))?;
    let local = info
        .volumes
        .into_iter()
        .find(|found| found.name == volume)
        .ok_or_else(|| Error::not_found(format!("there is no volume {volume}")))?;
    let target = find(&local.snapshots, &args.snapshot, args.snapshot.snapshot.as_str())?;

    let there = &args.destination;
    let mut peer =
        Peer::start(there, args.remote_command.as_deref(), &["receive", there.volume.as_str(), "--peer"])?;
    let (input, mut output) = (peer.input(), peer.output());
    let near = Near { store, volume, snapshots: &local.snapshots, target, base, compress: args.compress };
    let done = near.converse(peer.place(), input, &mut output);
    drop(output);
    match done {
        Ok(already) => {
            peer.finish()?;
            if already {
                eprintln!("{} is there already", args.snapshot);
            }
            Ok(())
        }
        // A failure without a hint is a connection that ended without a word.
        Err(error) if error.kind() == ErrorKind::Interrupted && error.hint_text().is_none() => match peer
            .finish()
        {
            Err(ended) if ended.kind() != ErrorKind::Interrupted || ended.hint_text().is_some() => Err(ended),
            _ => Err(error.hint(GOES_ON)),
        },
        Err(error) => Err(error),
    }
}

/// The near end of a copy.
struct Near<'a> {
    store: &'a dyn Shipping,
    volume: &'a str,
    /// Of the volume, oldest first.
    snapshots: &'a [SnapshotInfo],
    /// The place of the one to ship.
    target: usize,
    base: Base<'a>,
    compress: bool,
}

impl Near<'_> {
    /// Talks with the far end at `place` until the snapshot is there; true: it was.
    fn converse(
        &self,
        place: &str,
        mut input: impl Write,
        output: &mut (impl BufRead + Send),
    ) -> Result<bool> {
        let wanted = &self.snapshots[self.target];
        // If the far side is gone already, its end explains it better than this write.
        let _ = say(&mut input, &ToFar::Hello { version: PEER_VERSION, target: wanted.uuid });
        let ToNear::Held(held) = answer(place, output)? else {
            return Err(Error::invalid(format!("{place}: an answer out of order")));
        };
        if held.version != PEER_VERSION {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("{place} speaks version {} of the protocol, this side {PEER_VERSION}", held.version),
            )
            .hint("use the same release of snapvol on both sides"));
        }
        let plan =
            decide(self.snapshots, self.target, &held, self.base).map_err(|error| error.context(place))?;
        let Plan::Send { from, resume } = plan else { return Ok(true) };
        let request = SendRequest {
            volume: self.volume.to_owned(),
            snapshot: wanted.name.clone(),
            from,
            compress: self.compress,
            resume,
        };
        let received = ship(self.store, &request, place, input, output)?;
        if received.uuid != wanted.uuid {
            return Err(Error::invalid(format!("{place}: confirms another snapshot")));
        }
        Ok(received.already)
    }
}

/// The place of a snapshot in the queue.
fn find(snapshots: &[SnapshotInfo], name: &SnapName, snapshot: &str) -> Result<usize> {
    snapshots
        .iter()
        .position(|found| found.name == snapshot)
        .ok_or_else(|| Error::not_found(format!("there is no snapshot {}@{snapshot}", name.volume)))
}

/// What to send, from what both sides hold; `snapshots` are the local ones, oldest
/// first, and `target` is the place of the one to ship.
fn decide(snapshots: &[SnapshotInfo], target: usize, held: &Held, base: Base<'_>) -> Result<Plan> {
    let wanted = &snapshots[target];
    let is_held = |uuid: Uuid| held.snapshots.iter().any(|(_, there)| *there == uuid);
    if is_held(wanted.uuid) {
        return Ok(Plan::Already);
    }
    if held.snapshots.iter().any(|(name, _)| *name == wanted.name) {
        return Err(Error::conflict(format!("another snapshot has the name {} there", wanted.name))
            .hint("delete that one there, or take one under another name here"));
    }
    if held.role == Some(Role::Primary) {
        return Err(Error::conflict("the volume there is a primary, which takes no copies")
            .hint("demote it there if its own changes may go"));
    }
    let asked = match base {
        Base::From(name) => {
            let at = snapshots.iter().position(|snap| snap.name == name);
            let at = at.ok_or_else(|| Error::not_found(format!("there is no snapshot {name} here")))?;
            if at >= target {
                return Err(Error::invalid(format!("{name} is not older than {}", wanted.name)));
            }
            Some(&snapshots[at])
        }
        Base::Any | Base::Full => None,
    };
    if let Some(half) = &held.half {
        let abort = "finish that one first, or drop it there with 'receive VOL --abort'";
        if half.running {
            return Err(Error::conflict(format!(
                "the volume there is receiving {} at this moment",
                half.snapshot
            ))
            .hint("wait for its end"));
        }
        if half.uuid != wanted.uuid {
            return Err(Error::conflict(format!(
                "another snapshot, {}, is half received there",
                half.snapshot
            ))
            .hint(abort));
        }
        let fits = match base {
            Base::Any => true,
            Base::Full => half.base.is_none(),
            Base::From(_) => half.base == asked.map(|snap| snap.uuid),
        };
        if !fits {
            return Err(Error::conflict("the snapshot is half received there from another base").hint(abort));
        }
        let from = match half.base {
            None => None,
            Some(uuid) => {
                let found = snapshots[..target].iter().find(|snap| snap.uuid == uuid);
                let gone =
                    || Error::conflict("it is half received there from a base that is gone here").hint(abort);
                Some(found.ok_or_else(gone)?.name.clone())
            }
        };
        // It comes from the far side: it may say how much to leave out, and nothing else.
        half.token.parse::<ResumeToken>()?.check(wanted.uuid, half.base)?;
        return Ok(Plan::Send { from, resume: Some(half.token.clone()) });
    }
    let from = match (base, asked) {
        (Base::From(name), Some(asked)) => {
            if !is_held(asked.uuid) {
                return Err(Error::conflict(format!("the snapshot {name} is not held there"))
                    .hint("leave out --from, and the youngest common one is taken"));
            }
            Some(asked)
        }
        (Base::Full, _) => None,
        _ => snapshots[..target].iter().rev().find(|snap| is_held(snap.uuid)),
    };
    Ok(Plan::Send { from: from.map(|snap| snap.name.clone()), resume: None })
}

/// The next message of the far end that is not a failure.
fn answer(place: &str, output: &mut impl BufRead) -> Result<ToNear> {
    match hear::<ToNear>(output)? {
        Some(ToNear::Error { kind, message, hint }) => {
            Err(far_failure(place, &kind, &message, hint.as_deref()))
        }
        Some(message) => Ok(message),
        None => Err(Error::new(ErrorKind::Interrupted, format!("{place}: the connection ended"))),
    }
}

/// Sends the stream while a second thread listens; returns what the far end confirms.
fn ship(
    store: &dyn Shipping,
    request: &SendRequest,
    place: &str,
    mut input: impl Write,
    output: &mut (impl BufRead + Send),
) -> Result<Received> {
    let mut stream = store.send(request)?;
    let mut relay = Relay::new(&mut stream)?;
    let bar = Progress::bytes(&format!("{}@{}", request.volume, request.snapshot), relay.header().data_bytes);
    let heard: Mutex<Option<Result<Received>>> = Mutex::new(None);
    let mut ours = false;
    let sent = std::thread::scope(|scope| {
        scope.spawn(|| {
            let last = loop {
                match answer(place, output) {
                    Ok(ToNear::Progress { .. }) => {}
                    Ok(ToNear::Done(received)) => break Ok(received),
                    Ok(ToNear::Held(_)) => {
                        break Err(Error::invalid(format!("{place}: an answer out of order")));
                    }
                    Err(error) => break Err(error),
                    Ok(ToNear::Error { .. }) => unreachable!("an answer is no failure"),
                }
            };
            if let Ok(mut heard) = heard.lock() {
                *heard = Some(last);
            }
        });
        let gone = |_| Error::new(ErrorKind::Interrupted, format!("{place}: the connection broke"));
        let mut work = || {
            say(&mut input, &ToFar::Start).map_err(gone)?;
            let mut pipe = PipeWriter::new(&mut input);
            while let Some(frame) = relay.next_frame().inspect_err(|_| ours = true)? {
                if heard.lock().is_ok_and(|heard| heard.is_some()) {
                    return Err(gone(std::io::ErrorKind::BrokenPipe.into()));
                }
                pipe.piece(frame.bytes).map_err(gone)?;
                bar.add(frame.data_bytes);
            }
            pipe.finish().map_err(gone).map(drop)
        };
        let sent = work();
        // With its input closed the far end comes to its end, and so does the listener.
        drop(input);
        sent
    });
    drop(bar);
    let heard = heard.into_inner().ok().flatten();
    match (sent, heard) {
        (Ok(()), Some(heard)) => heard,
        // Our own failure is the cause of whatever the far end says then.
        (Err(error), _) if ours => Err(error),
        (Err(_), Some(Err(error))) => Err(error),
        (Err(error), _) => Err(error),
        (Ok(()), None) => Err(Error::new(ErrorKind::Interrupted, format!("{place}: no confirmation"))),
    }
}

#[cfg(test)]
pub(super) mod tests;
