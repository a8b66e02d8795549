//! `send`: a stream to standard output or into a file.
//!
//! A file appears under its name only when it is complete and durable; until then it
//! is `FILE.partial`.

use super::progress::Progress;
use super::shipping::Shipping;
use crate::delta::Relay;
use crate::engine::api::SendRequest;
use crate::error::{Error, ErrorKind, Result};
use crate::transport::pipe::widen;
use crate::types::SnapName;
use std::fs::{File, OpenOptions};
use std::io::{IsTerminal, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

/// Write a snapshot, or the delta from an older one, as a stream
///
/// The stream goes to standard output, or into a file, but never to a terminal.
#[derive(clap::Args)]
pub(super) struct Args {
    /// The snapshot to send
    #[arg(value_name = "VOL@SNAP")]
    snapshot: SnapName,
    /// Send the delta from this older snapshot
    #[arg(long, value_name = "SNAP")]
    from: Option<String>,
    /// Compress the data with zstd
    #[arg(long)]
    compress: bool,
    /// Leave out what has arrived; 'receive VOL --status' prints the token
    #[arg(long, value_name = "TOKEN")]
    resume: Option<String>,
    /// Write into this file
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// A snapshot's name from `--from`, which may repeat the volume: `A` or `VOL@A`.
///
/// # Errors
/// `Invalid` when it is no name or names another volume.
pub(super) fn base_name(from: &str, snapshot: &SnapName) -> Result<String> {
    if !from.contains('@') {
        return Ok(from.parse::<crate::types::Name>()?.to_string());
    }
    let full: SnapName = from.parse()?;
    if full.volume != snapshot.volume {
        return Err(Error::invalid(format!("{full} is not a snapshot of {}", snapshot.volume)));
    }
    Ok(full.snapshot.to_string())
}

/// Runs the command.
///
/// # Errors
/// Those of the store; `Invalid` for a terminal; those of the file.
pub(super) fn run(store: &dyn Shipping, args: Args) -> Result<()> {
    if args.output.is_none() && std::io::stdout().is_terminal() {
        return Err(Error::invalid("a stream is not for a terminal")
            .hint("redirect it, pipe it into 'snapvol receive', or name a file with -o"));
    }
    if let Some(token) = &args.resume {
        token.parse::<crate::delta::ResumeToken>()?;
    }
    let request = SendRequest {
        volume: args.snapshot.volume.to_string(),
        snapshot: args.snapshot.snapshot.to_string(),
        from: args.from.as_deref().map(|from| base_name(from, &args.snapshot)).transpose()?,
        compress: args.compress,
        resume: args.resume,
    };
    match &args.output {
        None => {
            widen(std::io::stdout());
            // The standard library's own handle looks for the ends of lines.
            let output = std::io::stdout().as_fd().try_clone_to_owned();
            let output = output.map_err(|error| Error::os("can't write to standard output", error))?;
            transfer(store, &request, &mut File::from(output), "standard output")
        }
        Some(path) => to_file(store, &request, path),
    }
}

fn transfer(store: &dyn Shipping, request: &SendRequest, output: &mut dyn Write, place: &str) -> Result<()> {
    let failed = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::BrokenPipe => {
            Error::new(ErrorKind::Interrupted, "the reader of the stream is gone before its end")
        }
        _ => Error::os(format!("can't write the stream to {place}"), error),
    };
    let mut stream = store.send(request)?;
    let mut relay = Relay::new(&mut stream)?;
    let bar = Progress::bytes(&format!("{}@{}", request.volume, request.snapshot), relay.header().data_bytes);
    while let Some(frame) = relay.next_frame()? {
        output.write_all(frame.bytes).map_err(failed)?;
        bar.add(frame.data_bytes);
    }
    output.flush().map_err(failed)?;
    Ok(())
}

fn to_file(store: &dyn Shipping, request: &SendRequest, path: &Path) -> Result<()> {
    let place = path.display().to_string();
    if std::fs::metadata(path).is_ok_and(|meta| !meta.is_file()) {
        let mut file = OpenOptions::new()
            .write(true)
            .open(path)
            .map_err(|error| Error::os(format!("can't open {place}"), error))?;
        return transfer(store, request, &mut file, &place);
    }
    let mut name = path.file_name().ok_or_else(|| Error::invalid(format!("{place} is no file")))?.to_owned();
    name.push(".partial");
    let partial = path.with_file_name(name);
    let os = |what: &str| {
        let text = format!("can't {what} {}", partial.display());
        move |error| Error::os(text, error)
    };
    let mut file = File::create(&partial).map_err(os("create"))?;
    let done = transfer(store, request, &mut file, &place).and_then(|()| {
        file.sync_all().map_err(os("sync"))?;
        std::fs::rename(&partial, path).map_err(os("rename"))?;
        let dir = match path.parent() {
            Some(dir) if !dir.as_os_str().is_empty() => dir,
            _ => Path::new("."),
        };
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(os("sync the directory of"))
    });
    if done.is_err() {
        // An incomplete stream looks like a complete one to everybody but `receive`.
        let _ = std::fs::remove_file(&partial);
    }
    done
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::copy::tests::{Memory, stream};

    fn args(output: &Path) -> Args {
        let snapshot = "db@c".parse().unwrap();
        Args { snapshot, from: None, compress: false, resume: None, output: Some(output.to_owned()) }
    }

    #[test]
    fn a_file_appears_when_it_is_complete() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out.stream");
        let broken = Memory { stream: stream(), break_at: Some(1_500_000), ..Memory::default() };
        assert_eq!(run(&broken, args(&path)).unwrap_err().kind(), ErrorKind::Interrupted);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        let whole = Memory { stream: stream(), ..Memory::default() };
        run(&whole, args(&path)).unwrap();
        assert!(std::fs::read(&path).unwrap() == whole.stream);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        run(&whole, args(Path::new("/dev/null"))).unwrap();
    }

    #[test]
    fn arguments_are_checked_before_the_store_is_asked() {
        let store = Memory::default();
        let with = |from: Option<&str>, resume: Option<&str>| {
            let (from, resume) = (from.map(str::to_owned), resume.map(str::to_owned));
            run(&store, Args { from, resume, ..args(Path::new("/dev/null")) }).unwrap_err().kind()
        };
        assert_eq!(with(Some("web@a"), None), ErrorKind::Invalid);
        assert_eq!(with(Some("../a"), None), ErrorKind::Invalid);
        assert_eq!(with(None, Some("rubbish")), ErrorKind::Invalid);
    }

    #[test]
    fn a_base_may_repeat_the_volume() {
        let snapshot = "db@c".parse().unwrap();
        assert_eq!(base_name("a", &snapshot).unwrap(), "a");
        assert_eq!(base_name("db@a", &snapshot).unwrap(), "a");
    }
}
