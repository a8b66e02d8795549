//! A running `snapvol serve`.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

const READY_WITHIN: Duration = Duration::from_secs(30);
const STOPPED_WITHIN: Duration = Duration::from_secs(30);

/// The daemon over one store. Dropping it asks it to stop and waits for that.
pub struct Server {
    child: Child,
    store: PathBuf,
    /// The first TCP address of its `ready` lines.
    address: Option<String>,
}

impl Server {
    /// Serves `store` on its own socket: `Server::start(&store, &["--create", "v:64M"])`.
    /// There must be a volume, else no `ready` line says that it began.
    #[track_caller]
    pub fn start(store: &Path, args: &[&str]) -> Self {
        let mut command = super::snapvol(store);
        command.arg("serve").args(args).stdout(Stdio::piped());
        Self::spawn(command, store)
    }

    /// As [`Server::start`], with variables in its environment.
    #[track_caller]
    pub fn start_with(store: &Path, args: &[&str], variables: &[(&str, &Path)]) -> Self {
        let mut command = super::snapvol(store);
        command.arg("serve").args(args).envs(variables.iter().copied()).stdout(Stdio::piped());
        Self::spawn(command, store)
    }

    /// As [`Server::start_with`], by a command that begins with these words.
    #[track_caller]
    pub fn start_by(before: &[String], store: &Path, args: &[&str], variables: &[(&str, &Path)]) -> Self {
        let mut command = Command::new(&before[0]);
        command.args(&before[1..]).arg(super::SNAPVOL).arg("--store").arg(store).arg("serve").args(args);
        command.envs(variables.iter().copied()).stdin(Stdio::null()).stdout(Stdio::piped());
        Self::spawn(command, store)
    }

    /// As [`Server::start`], within a limit that `prlimit` sets.
    #[track_caller]
    pub fn start_limited(store: &Path, limit: &str, args: &[&str]) -> Self {
        let mut command = Command::new("prlimit");
        command.arg(limit).arg(super::SNAPVOL).arg("--store").arg(store).arg("serve").args(args);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        Self::spawn(command, store)
    }

    /// As [`Server::start`], and on a port of 127.0.0.1 as well.
    #[track_caller]
    pub fn start_tcp(store: &Path, args: &[&str]) -> Self {
        let mut all = vec!["--listen", "127.0.0.1:0"];
        all.extend(args);
        let socket = store.join("nbd.sock");
        if !args.contains(&"--unix") {
            all.extend(["--unix", socket.to_str().unwrap()]);
        }
        let server = Self::start(store, &all);
        assert!(server.address.is_some(), "no `ready nbd://` line");
        server
    }

    #[track_caller]
    fn spawn(mut command: Command, store: &Path) -> Self {
        let wants_tcp = command.get_args().any(|arg| arg == "--listen");
        let mut child = command.spawn().unwrap();
        let lines = lines_of(&mut child);
        let start = Instant::now();
        let (mut address, mut unix) = (None, false);
        while !unix || (wants_tcp && address.is_none()) {
            match lines.recv_timeout(READY_WITHIN.saturating_sub(start.elapsed())) {
                Ok(line) => {
                    if let Some(rest) = line.strip_prefix("ready nbd://") {
                        address = rest.split('/').next().map(str::to_owned);
                    }
                    unix |= line.starts_with("ready nbd+unix://");
                }
                Err(problem) => {
                    let _ = child.kill();
                    let status = child.wait();
                    let why = match problem {
                        RecvTimeoutError::Timeout => "is not ready in time",
                        RecvTimeoutError::Disconnected => "ended",
                    };
                    panic!("serve {why}: {status:?}");
                }
            }
        }
        // Keeps reading, so that the server never meets a closed pipe.
        std::thread::spawn(move || lines.iter().for_each(drop));
        Self { child, store: store.to_owned(), address }
    }

    /// The address of an export on the store's own socket; `VOL` or `VOL@SNAP`.
    pub fn uri(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.socket().display())
    }

    /// The default socket.
    pub fn socket(&self) -> PathBuf {
        self.store.join("nbd.sock")
    }

    /// The address of an export over TCP.
    pub fn tcp_uri(&self, export: &str) -> String {
        format!("nbd://{}/{export}", self.address.as_ref().unwrap())
    }

    /// The port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.address.as_ref().unwrap().rsplit(':').next().unwrap().parse().unwrap()
    }

    /// The store it serves.
    pub fn store(&self) -> &Path {
        &self.store
    }

    /// The process, while it runs.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends it without a warning, as a crash would.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Ends it in order; it must say that all went well.
    #[track_caller]
    pub fn stop(mut self) {
        let status = terminate(&mut self.child, STOPPED_WITHIN);
        assert!(status.is_some_and(|status| status.success()), "serve ended with {status:?}");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        terminate(&mut self.child, STOPPED_WITHIN);
    }
}

/// Asks a child of ours to stop, then insists. The status, if it stopped by itself.
pub fn terminate(child: &mut Child, limit: Duration) -> Option<std::process::ExitStatus> {
    if let Ok(Some(status)) = child.try_wait() {
        return Some(status);
    }
    let pid = rustix::process::Pid::from_child(child);
    let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
    let start = Instant::now();
    while start.elapsed() < limit {
        if let Ok(Some(status)) = child.try_wait() {
            return Some(status);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let _ = child.kill();
    let _ = child.wait();
    None
}

/// The lines of a child's standard output, as they come.
pub fn lines_of(child: &mut Child) -> Receiver<String> {
    let (sender, receiver) = channel();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    std::thread::spawn(move || {
        let mut line = Vec::new();
        while output.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
            let text = String::from_utf8_lossy(&line).trim_end_matches(['\n', '\r']).to_owned();
            if sender.send(text).is_err() {
                return;
            }
            line.clear();
        }
    });
    receiver
}
