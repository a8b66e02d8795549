//! `receive`: applies a stream from standard input or a file; says what is half
//! received, or drops it. With the hidden `--peer` it is the far end of a `copy`.

use super::progress::Progress;
use super::shipping::{Held, PEER_VERSION, Shipping, ToFar, ToNear, hear, say};
use crate::engine::api::HalfReceived;
use crate::error::{Error, ErrorKind, Result};
use crate::transport::{PipeReader, pipe};
use crate::types::Name;
use std::fs::File;
use std::io::{BufRead, BufReader, IsTerminal, Read, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::{Condvar, Mutex};
use std::time::Duration;

/// How often the far end of a copy says how far it is.
const PROGRESS_EVERY: Duration = Duration::from_secs(2);

/// Apply a stream to a volume, whole or not at all; or see and drop what is half received
///
/// A whole stream makes the volume if it is missing. One that is held already is no error.
#[derive(clap::Args)]
pub(super) struct Args {
    /// The volume that takes the stream
    #[arg(value_name = "VOL")]
    volume: Name,
    /// Read the stream from this file
    #[arg(short, long, value_name = "FILE", conflicts_with_all = ["status", "abort"])]
    input: Option<PathBuf>,
    /// Say what is half received, and the token to resume it with
    #[arg(long, conflicts_with = "abort")]
    status: bool,
    /// Print the status as JSON
    #[arg(long, requires = "status")]
    json: bool,
    /// Drop what is half received
    #[arg(long)]
    abort: bool,
    /// Be the far end of a copy
    #[arg(long, hide = true, conflicts_with_all = ["input", "status", "abort"])]
    peer: bool,
}

/// Runs the command.
///
/// # Errors
/// Those of the store and of the stream; `Invalid` for a terminal.
pub(super) fn run(store: &dyn Shipping, args: Args) -> Result<()> {
    let volume = args.volume.as_str();
    if args.abort {
        return store.receive_abort(volume);
    }
    if args.status {
        let text = status_text(volume, store.receive_status(volume)?.as_ref(), args.json)?;
        return std::io::stdout()
            .write_all(text.as_bytes())
            .map_err(|error| Error::os("can't write the status", error));
    }
    if args.peer {
        return far_end(store, volume, BufReader::new(stdin()?), std::io::stdout());
    }
    let (mut input, total) = match &args.input {
        Some(path) => {
            let place = path.display();
            let file = File::open(path).map_err(|error| Error::os(format!("can't open {place}"), error))?;
            let total = file.metadata().ok().filter(std::fs::Metadata::is_file).map(|meta| meta.len());
            (file, total)
        }
        None if std::io::stdin().is_terminal() => {
            return Err(Error::invalid("a stream does not come from a terminal")
                .hint("pipe 'snapvol send' into it, or name a file with -i"));
        }
        None => (stdin()?, None),
    };
    let bar = Progress::bytes(volume, total);
    let received = store.receive(volume, &mut bar.reader(&mut input))?;
    drop(bar);
    if received.already {
        eprintln!("{volume}@{} is there already", received.snapshot);
    }
    Ok(())
}

/// Standard input without the standard library's buffer and lock.
fn stdin() -> Result<File> {
    pipe::widen(std::io::stdin());
    let fd = std::io::stdin().as_fd().try_clone_to_owned();
    fd.map(File::from).map_err(|error| Error::os("can't read standard input", error))
}

fn status_text(volume: &str, half: Option<&HalfReceived>, json: bool) -> Result<String> {
    if json {
        let text =
            serde_json::to_string(&half).map_err(|error| Error::os("can't write JSON", error.into()))?;
        return Ok(text + "\n");
    }
    let Some(half) = half else { return Ok(format!("{volume}: nothing is half received\n")) };
    let base = half.base.map_or_else(|| "whole".to_owned(), |base| format!("from the snapshot {base}"));
    let state = if half.running { "being received" } else { "interrupted" };
    Ok(format!(
        "{volume}@{} ({}), {base}: {state}\ndurable below byte {}\nresume token: {}\n",
        half.snapshot, half.uuid, half.durable, half.token
    ))
}

/// The far end of a copy. A failure goes to the near end; here it is said again for
/// who looks at the exit code.
///
/// # Errors
/// Those of the store, of the stream and of the conversation.
pub fn far_end(
    store: &dyn Shipping,
    volume: &str,
    mut input: impl BufRead + Send,
    output: impl Write + Send,
) -> Result<()> {
    let output = Mutex::new(output);
    let done = converse(store, volume, &mut input, &output);
    if let Err(error) = &done {
        // The near end may be gone, and then nobody needs to know.
        let _ = tell(&output, &ToNear::failure(error));
    }
    done
}

fn tell(output: &Mutex<impl Write>, message: &ToNear) -> Result<()> {
    let gone = || Error::new(ErrorKind::Interrupted, "the sending side is gone");
    say(&mut *output.lock().map_err(|_| gone())?, message).map_err(|_| gone())
}

fn converse(
    store: &dyn Shipping,
    volume: &str,
    input: &mut (impl BufRead + Send),
    output: &Mutex<impl Write + Send>,
) -> Result<()> {
    match hear::<ToFar>(input)? {
        Some(ToFar::Hello { version: PEER_VERSION, .. }) => {}
        Some(ToFar::Hello { version, .. }) => {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("the sending side speaks version {version} of the protocol, this one version {PEER_VERSION}"),
            )
            .hint("use the same release of snapvol on both sides"));
        }
        _ => return Err(Error::invalid("the other side does not begin with a hello")),
    }
    tell(output, &ToNear::Held(held(store, volume)?))?;
    match hear::<ToFar>(input)? {
        // It has seen all it wanted to know.
        None => return Ok(()),
        Some(ToFar::Start) => {}
        Some(ToFar::Hello { .. }) => return Err(Error::invalid("the other side says hello twice")),
    }
    let (ended, signal) = (Mutex::new(false), Condvar::new());
    let received = std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut last = 0;
            let Ok(mut guard) = ended.lock() else { return };
            while !*guard {
                guard = match signal.wait_timeout(guard, PROGRESS_EVERY) {
                    Ok((guard, timeout)) if timeout.timed_out() => guard,
                    Ok((guard, _)) => {
                        if *guard {
                            return;
                        }
                        guard
                    }
                    Err(_) => return,
                };
                drop(guard);
                if let Ok(Some(half)) = store.receive_status(volume)
                    && half.durable != last
                {
                    last = half.durable;
                    if tell(output, &ToNear::Progress { durable: last }).is_err() {
                        return;
                    }
                }
                guard = match ended.lock() {
                    Ok(guard) => guard,
                    Err(_) => return,
                };
            }
        });
        let mut stream = PipeReader::new(input);
        let received = store.receive(volume, &mut stream as &mut (dyn Read + Send));
        if let Ok(mut ended) = ended.lock() {
            *ended = true;
        }
        signal.notify_all();
        received
    })?;
    tell(output, &ToNear::Done(received))
}

fn held(store: &dyn Shipping, volume: &str) -> Result<Held> {
    let mut held = Held { version: PEER_VERSION, ..Held::default() };
    match store.list(Some(volume)) {
        Ok(info) => {
            for found in info.volumes.into_iter().filter(|found| found.name == volume) {
                held.role = Some(found.role);
                held.snapshots = found.snapshots.into_iter().map(|snap| (snap.name, snap.uuid)).collect();
            }
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    match store.receive_status(volume) {
        Ok(half) => held.half = half,
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    Ok(held)
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    #[test]
    fn the_status_for_people_and_for_scripts() {
        let half = HalfReceived {
            volume: "db".to_owned(),
            snapshot: "c".to_owned(),
            uuid: Uuid::from_u128(3),
            base: None,
            durable: 4096,
            token: "sv1-00".to_owned(),
            running: false,
        };
        let text = status_text("db", Some(&half), false).unwrap();
        assert!(
            text.contains("db@c") && text.contains("4096") && text.ends_with("resume token: sv1-00\n"),
            "{text}"
        );
        let json: serde_json::Value =
            serde_json::from_str(&status_text("db", Some(&half), true).unwrap()).unwrap();
        assert_eq!(json["token"], "sv1-00");
        assert_eq!(status_text("db", None, true).unwrap(), "null\n");
    }
}
