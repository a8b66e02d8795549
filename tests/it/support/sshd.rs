//! A real ssh server on loopback, with keys and configuration of its own.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use super::network::Network;
use super::server::terminate;

/// Nothing of the user's own ssh is read or written. Dropping it stops the server.
pub struct Sshd {
    child: Child,
    dir: tempfile::TempDir,
    address: String,
    port: u16,
}

/// How a relay between the program and ssh disturbs what is sent.
#[derive(Default)]
pub struct Relay {
    /// Ends the connection once so many bytes went out.
    pub cut_after: Option<u64>,
    /// Lets at most so many bytes a second out.
    pub bytes_per_second: Option<u64>,
}

/// Whether an ssh server can run here (see [`super::have`]).
pub fn have_sshd() -> bool {
    super::have(&["sshd", "ssh", "ssh-keygen", "/usr/bin/python3"])
        && super::available(Path::new("/run/sshd").is_dir(), "/run/sshd, sshd's empty directory")
}

impl Sshd {
    /// Starts it on a free port of 127.0.0.1; the current user may log in.
    #[track_caller]
    pub fn start() -> Self {
        // Another process may take the port in between; then the next one does.
        for _ in 0..5 {
            let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            if let Some(sshd) = Self::try_start("127.0.0.1", port, &[]) {
                return sshd;
            }
        }
        panic!("sshd does not start");
    }

    /// The same on a host of a network of the test's own.
    #[track_caller]
    pub fn start_on(host: &str, address: &str) -> Self {
        Self::try_start(address, 22, &Network::on(host)).expect("an sshd that starts")
    }

    fn try_start(address: &str, port: u16, before: &[String]) -> Option<Self> {
        let dir = super::scratch();
        let path = |name: &str| dir.path().join(name);
        for key in ["host_key", "client_key"] {
            super::run(
                super::tool("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(path(key)),
            );
        }
        fs::copy(path("client_key.pub"), path("authorized_keys")).unwrap();
        let host_key = fs::read_to_string(path("host_key.pub")).unwrap();
        let here = dir.path().display();
        fs::write(
            path("sshd_config"),
            format!(
                "ListenAddress {address}\nPort {port}\nHostKey {here}/host_key\n\
                 AuthorizedKeysFile {here}/authorized_keys\nPidFile {here}/sshd.pid\n\
                 StrictModes no\nUsePAM no\nPermitRootLogin prohibit-password\n\
                 PasswordAuthentication no\nKbdInteractiveAuthentication no\n\
                 MaxStartups 100\nLogLevel ERROR\n"
            ),
        )
        .unwrap();
        // The default port stands there without its number.
        let known = if port == 22 { address.to_owned() } else { format!("[{address}]:{port}") };
        fs::write(path("known_hosts"), format!("{known} {host_key}")).unwrap();
        fs::write(
            path("ssh_config"),
            format!(
                "Host *\n  IdentityFile {here}/client_key\n  IdentitiesOnly yes\n  IdentityAgent none\n  \
                 UserKnownHostsFile {here}/known_hosts\n  GlobalKnownHostsFile /dev/null\n  \
                 StrictHostKeyChecking yes\n  BatchMode yes\n  ControlPath none\n  LogLevel ERROR\n"
            ),
        )
        .unwrap();
        // sshd wants to be called by its whole path, since it starts itself again.
        let mut words: Vec<_> = before.iter().map(std::ffi::OsString::from).collect();
        words.push(super::find("sshd").unwrap().into());
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).args(["-D", "-e", "-f"]).arg(path("sshd_config"));
        let mut child = command.spawn().unwrap();
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(10) && child.try_wait().unwrap().is_none() {
            // It is written when the port is listened on.
            if path("sshd.pid").exists() {
                return Some(Self { child, dir, address: address.to_owned(), port });
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        terminate(&mut child, Duration::from_secs(5));
        None
    }

    /// The destination of a copy: `volume` in the store at `store`.
    pub fn url(&self, store: &Path, volume: &str) -> String {
        assert!(store.is_absolute());
        format!("ssh://{}@{}:{}{}/{volume}", user(), self.address, self.port, store.display())
    }

    /// From now on the key may run this command alone.
    pub fn restrict(&self, command: &str) {
        let key = fs::read_to_string(self.dir.path().join("client_key.pub")).unwrap();
        fs::write(self.dir.path().join("authorized_keys"), format!("command=\"{command}\",restrict {key}"))
            .unwrap();
    }

    /// A program to be called instead of ssh (`SNAPVOL_SSH`): ssh with our
    /// configuration.
    pub fn ssh(&self) -> PathBuf {
        self.wrapper("ssh", &format!("exec ssh -F {}/ssh_config \"$@\"", self.dir.path().display()))
    }

    /// As [`Sshd::ssh`], counting and disturbing what passes. The second value is the
    /// file that [`sent`] reads.
    pub fn relayed_ssh(&self, name: &str, relay: &Relay) -> (PathBuf, PathBuf) {
        let count = self.dir.path().join(format!("{name}.count"));
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/ssh/relay.py");
        let line = format!(
            "exec /usr/bin/python3 {} --count {} --cut {} --rate {} -- {} \"$@\"",
            script.display(),
            count.display(),
            relay.cut_after.unwrap_or(0),
            relay.bytes_per_second.unwrap_or(0),
            self.ssh().display(),
        );
        (self.wrapper(name, &line), count)
    }

    /// As [`Sshd::ssh`], with what comes back slowed down.
    pub fn slowed_ssh(&self, name: &str, bytes_per_second: u64) -> PathBuf {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/ssh/slow.py");
        let (ssh, script) = (self.ssh(), script.display().to_string());
        self.wrapper(
            name,
            &format!("{} \"$@\" | /usr/bin/python3 {script} {bytes_per_second}", ssh.display()),
        )
    }

    fn wrapper(&self, name: &str, line: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        // Written beside and renamed: an executable that is open for writing does not run.
        let part = self.dir.path().join(format!("{name}.part"));
        fs::write(&part, format!("#!/bin/sh\n{line}\n")).unwrap();
        fs::set_permissions(&part, fs::Permissions::from_mode(0o755)).unwrap();
        fs::rename(&part, &path).unwrap();
        path
    }

    /// A command that runs `ssh 127.0.0.1 ...` itself.
    pub fn command(&self) -> Command {
        let mut command = super::tool(self.ssh().to_str().unwrap());
        command.args(["-p", &self.port.to_string(), &format!("{}@{}", user(), self.address)]);
        command
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        terminate(&mut self.child, Duration::from_secs(5));
    }
}

/// The bytes that went out through a relay, over all its runs so far.
pub fn sent(count: &Path) -> u64 {
    let text = fs::read_to_string(count).unwrap_or_default();
    let mut runs = std::collections::HashMap::new();
    for line in text.lines() {
        if let Some((run, bytes)) = line.split_once(' ') {
            runs.insert(run.to_owned(), bytes.parse::<u64>().unwrap_or(0));
        }
    }
    runs.values().sum()
}

fn user() -> String {
    super::run(Command::new("id").arg("-un")).trim().to_owned()
}
