//! The way to another store: a destination, and a program running there with its
//! standard input and output in our hands.
//!
//! [`ssh`] and [`local`] say which command to run; [`Peer`] runs it and explains how
//! it ended; [`pipe`] marks the end of a byte stream within a longer conversation.
//! Nothing here knows what is being said.

pub mod destination;
pub mod local;
pub mod pipe;
pub mod ssh;

pub use destination::{Destination, Host};
pub use pipe::{PipeReader, PipeWriter};

use crate::error::{Error, ErrorKind, Result};
use std::io::{BufReader, Read};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Bytes of the far side's standard error that are kept, the last ones.
const STDERR_KEPT: usize = 4096;
/// How long a far side may take to end after its input was closed.
const END_WAIT: Duration = Duration::from_secs(5);

/// The far program, running.
pub struct Peer {
    child: Child,
    /// `host.example` or `/srv/store`, for messages.
    place: String,
    over_ssh: bool,
    input: Option<ChildStdin>,
    output: Option<BufReader<ChildStdout>>,
    stderr: Arc<Mutex<Tail>>,
}

#[derive(Default)]
struct Tail {
    bytes: Vec<u8>,
    ended: bool,
}

impl Peer {
    /// Starts `snapvol --store STORE ARGS...` at the destination. `program` replaces
    /// `snapvol`, as shell text: `/opt/bin/snapvol`, `sudo snapvol`.
    ///
    /// # Errors
    /// `Io` when ssh or the local program can't be started.
    pub fn start(destination: &Destination, program: Option<&str>, args: &[&str]) -> Result<Self> {
        let mut full = vec!["--store", destination.store.as_str()];
        full.extend_from_slice(args);
        let (command, place) = match &destination.host {
            Some(host) => (ssh::command(host, program, &full), host.name.clone()),
            None => (local::command(program, &full)?, destination.store.clone()),
        };
        Self::run(command, place, destination.host.is_some())
    }

    fn run(mut command: Command, place: String, over_ssh: bool) -> Result<Self> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|error| {
            let program = command.get_program().to_string_lossy().into_owned();
            Error::os(format!("can't start {program}"), error)
        })?;
        let stderr = Arc::new(Mutex::new(Tail::default()));
        if let Some(pipe) = child.stderr.take() {
            let tail = Arc::clone(&stderr);
            std::thread::spawn(move || keep_tail(pipe, &tail));
        }
        Ok(Self {
            input: child.stdin.take().inspect(|input| pipe::widen(input)),
            output: child.stdout.take().map(BufReader::new),
            child,
            place,
            over_ssh,
            stderr,
        })
    }

    /// The far program's standard input; once.
    ///
    /// # Panics
    /// When it was taken before.
    pub fn input(&mut self) -> ChildStdin {
        self.input.take().expect("the input is taken once")
    }

    /// The far program's standard output; once.
    ///
    /// # Panics
    /// When it was taken before.
    pub fn output(&mut self) -> BufReader<ChildStdout> {
        self.output.take().expect("the output is taken once")
    }

    /// Where it runs, for messages.
    #[must_use]
    pub fn place(&self) -> &str {
        &self.place
    }

    /// Ends the far program's way here at once: whoever reads from it or writes to it is told.
    pub fn kill(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
    }

    /// Waits for the far program, whose input must be closed, and says how it ended.
    ///
    /// # Errors
    /// Why it failed, with what it wrote to its standard error.
    pub fn finish(mut self) -> Result<()> {
        drop((self.input.take(), self.output.take()));
        let Some(status) = self.wait() else {
            return Err(Error::new(
                ErrorKind::Interrupted,
                format!("{}: the far side does not end", self.place),
            ));
        };
        if status.success() {
            return Ok(());
        }
        Err(explain(&self.place, self.over_ssh, status, &self.stderr_text()))
    }

    fn wait(&mut self) -> Option<ExitStatus> {
        let start = Instant::now();
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => return Some(status),
                Ok(None) if start.elapsed() < END_WAIT => std::thread::sleep(Duration::from_millis(10)),
                _ => return None,
            }
        }
    }

    /// What it wrote to its standard error, the last of it. The pipe may stay open after its end (a shared ssh connection in
    /// the background keeps it), so the wait for more is short.
    fn stderr_text(&self) -> String {
        let start = Instant::now();
        while !self.stderr.lock().is_ok_and(|tail| tail.ended) && start.elapsed() < Duration::from_millis(300)
        {
            std::thread::sleep(Duration::from_millis(5));
        }
        let bytes = self.stderr.lock().map(|tail| tail.bytes.clone()).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        drop((self.input.take(), self.output.take()));
        if self.wait().is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn keep_tail(mut pipe: impl Read, tail: &Mutex<Tail>) {
    let mut buffer = [0; 1024];
    loop {
        let count = match pipe.read(&mut buffer) {
            Ok(count) => count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(_) => 0,
        };
        let Ok(mut tail) = tail.lock() else { return };
        tail.bytes.extend_from_slice(&buffer[..count]);
        let excess = tail.bytes.len().saturating_sub(STDERR_KEPT);
        tail.bytes.drain(..excess);
        if count == 0 {
            tail.ended = true;
            return;
        }
    }
}

/// The last few lines of a text from elsewhere, fit for a message.
#[must_use]
pub fn one_line(text: &str) -> String {
    let lines: Vec<String> = text
        .lines()
        .map(|line| line.chars().filter(|c| !c.is_control()).collect::<String>().trim().to_owned())
        .filter(|line| !line.is_empty())
        .collect();
    lines[lines.len().saturating_sub(4)..].join("; ")
}

/// One sentence for an exit status and what was said on standard error.
fn explain(place: &str, over_ssh: bool, status: ExitStatus, said: &str) -> Error {
    let (said, hint) = words(said);
    let error = explain_said(place, over_ssh, status, &said);
    match hint {
        Some(hint) if error.hint_text().is_none() => error.hint(format!("at {place}: {hint}")),
        _ => error,
    }
}

/// The sentence and the hint in what a snapvol, or another program, wrote.
fn words(said: &str) -> (String, Option<String>) {
    let (hints, lines): (Vec<&str>, Vec<&str>) = said.lines().partition(|line| line.starts_with("hint: "));
    let lines: Vec<&str> = lines.iter().map(|line| line.strip_prefix("snapvol: ").unwrap_or(line)).collect();
    let hint = hints.last().map(|hint| one_line(hint.trim_start_matches("hint: ")));
    (one_line(&lines.join("\n")), hint)
}

fn explain_said(place: &str, over_ssh: bool, status: ExitStatus, said: &str) -> Error {
    let tail = if said.is_empty() { String::new() } else { format!(": {said}") };
    match status.code() {
        Some(255) if over_ssh => {
            Error::new(ErrorKind::Interrupted, format!("{place}: the ssh connection failed{tail}"))
                .hint(format!("try 'ssh {place}' by hand"))
        }
        Some(126 | 127) => Error::new(ErrorKind::Io, format!("{place}: snapvol can't be run there{tail}"))
            .hint("install it there, or say with --remote-command where it is"),
        Some(code) => {
            let kind = match code {
                2 => ErrorKind::Invalid,
                3 => ErrorKind::Conflict,
                4 => ErrorKind::Corrupt,
                5 => ErrorKind::NotFound,
                _ if said.is_empty() => ErrorKind::Interrupted,
                _ => ErrorKind::Io,
            };
            let said = if said.is_empty() {
                format!("the far side failed with exit code {code}")
            } else {
                said.to_owned()
            };
            Error::new(kind, format!("{place}: {said}"))
        }
        None => Error::new(ErrorKind::Interrupted, format!("{place}: the far side was killed{tail}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn shell(script: &str) -> Peer {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Peer::run(command, "there".to_owned(), true).unwrap()
    }

    #[test]
    fn a_conversation_and_its_end() {
        let mut peer = shell("cat; echo noise >&2");
        let mut input = peer.input();
        input.write_all(b"hello").unwrap();
        drop(input);
        let mut text = String::new();
        peer.output().read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
        peer.finish().unwrap();
    }

    #[test]
    fn failures_are_one_sentence() {
        for (script, kind, text) in [
            (
                "echo 'Connection \x1b[31mrefused' >&2; exit 255",
                ErrorKind::Interrupted,
                "there: the ssh connection failed: Connection [31mrefused",
            ),
            ("exit 127", ErrorKind::Io, "there: snapvol can't be run there"),
            (
                "echo 'snapvol: no such store' >&2; echo 'hint: init' >&2; exit 5",
                ErrorKind::NotFound,
                "there: no such store",
            ),
            ("exit 3", ErrorKind::Conflict, "there: the far side failed with exit code 3"),
            ("kill -9 $$", ErrorKind::Interrupted, "there: the far side was killed"),
        ] {
            let error = shell(script).finish().unwrap_err();
            assert_eq!((error.kind(), error.to_string().as_str()), (kind, text));
        }
    }

    /// A connection shared in the background keeps standard error open.
    #[test]
    fn an_open_stderr_does_not_hold_us() {
        let start = Instant::now();
        assert!(shell("sleep 3 & echo why >&2; exit 1").finish().unwrap_err().to_string().contains("why"));
        assert!(start.elapsed() < Duration::from_secs(2));
    }
}
