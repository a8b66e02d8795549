//! What the tests share: scratch directories, the program, outside tools, servers.

#![allow(dead_code, reason = "each test module uses its part")]

pub mod ledger;
pub mod lossy;
pub mod mount;
pub mod network;
pub mod oracle;
pub mod pair;
pub mod server;
pub mod sshd;
pub mod stamper;
pub mod vm;
pub mod writers;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// The program under test.
pub const SNAPVOL: &str = env!("CARGO_BIN_EXE_snapvol");

/// A directory of its own on a disk, gone with the value. The path is short, since
/// stores hold unix sockets and their names are limited to 107 bytes.
pub fn scratch() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("sv").tempdir().unwrap()
}

/// A number that the environment sets.
pub fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Whether all `tools` are there. A test returns early if not, except where
/// `SNAPVOL_TEST_REQUIRE_TOOLS` is set (`tools/test` sets it): there it fails.
pub fn have(tools: &[&str]) -> bool {
    let missing: Vec<_> = tools.iter().filter(|name| find(name).is_none()).collect();
    available(missing.is_empty(), &format!("{missing:?} (tools/install-test-tools brings them)"))
}

/// As [`have`], for whatever else a test cannot do without.
pub fn available(condition: bool, what: &str) -> bool {
    if !condition {
        assert!(std::env::var_os("SNAPVOL_TEST_REQUIRE_TOOLS").is_none(), "missing: {what}");
        eprintln!("skipped, missing: {what}");
    }
    condition
}

/// Where a tool is; administrators' directories count even where PATH lacks them.
pub fn find(name: &str) -> Option<PathBuf> {
    if name.contains('/') {
        return Path::new(name).exists().then(|| name.into());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|dir| dir.join(name))
        .find(|candidate| candidate.is_file())
}

/// An outside tool that is ended if it takes longer than two minutes.
pub fn tool(name: &str) -> Command {
    tool_within(name, Duration::from_secs(120))
}

/// An outside tool with a time limit.
pub fn tool_within(name: &str, limit: Duration) -> Command {
    let mut command = Command::new("timeout");
    command.args(["--kill-after=5", &limit.as_secs().to_string()]);
    command.arg(find(name).unwrap_or_else(|| name.into())).stdin(Stdio::null());
    command
}

/// The system's own Python: the one that has libnbd's module.
pub fn python(script: &str) -> Command {
    let mut command = tool("/usr/bin/python3");
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(script));
    command
}

/// Runs to the end and returns standard output; anything but exit code 0 fails.
#[track_caller]
pub fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}\n{}", describe(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Exit code and both outputs, for messages.
pub fn describe(output: &Output) -> String {
    format!(
        "{}\nstdout: {}\nstderr: {}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// `snapvol --store STORE`, to be given its arguments.
pub fn snapvol(store: &Path) -> Command {
    let mut command = Command::new(SNAPVOL);
    command.arg("--store").arg(store).stdin(Stdio::null());
    command
}

/// Runs a command of the program and returns what it printed; it must succeed.
#[track_caller]
pub fn ok<A: AsRef<OsStr>>(store: &Path, args: &[A]) -> String {
    run(snapvol(store).args(args))
}

/// Runs a command of the program that must end with `code`; returns its message.
#[track_caller]
pub fn fails<A: AsRef<OsStr>>(code: i32, store: &Path, args: &[A]) -> String {
    let mut command = snapvol(store);
    command.args(args);
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(code), "{command:?}\n{}", describe(&output));
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!message.trim().is_empty(), "{command:?} failed without a word");
    assert!(!message.contains("panicked"), "{command:?}: {message}");
    message
}

/// What `list --json` or another command prints, parsed.
#[track_caller]
pub fn json<A: AsRef<OsStr>>(store: &Path, args: &[A]) -> serde_json::Value {
    let text = ok(store, args);
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error} in {text}"))
}

/// The bytes in use of a volume, as `list --json` tells them.
#[track_caller]
pub fn in_use(store: &Path, volume: &str) -> u64 {
    let list = json(store, &["list", volume, "--json"]);
    let volumes = list["volumes"].as_array().unwrap();
    let entry = volumes.iter().find(|entry| entry["name"] == volume).unwrap();
    entry["in_use"].as_u64().unwrap()
}

/// Waits until `condition` holds; fails after `limit`.
#[track_caller]
pub fn wait_for(what: &str, limit: Duration, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < limit, "{what}: not within {limit:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Fills `length` bytes of a new file with bytes that don't compress.
pub fn random_file(path: &Path, length: usize, seed: u64) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut bytes = vec![0; length];
    rng.fill(&mut bytes);
    std::fs::write(path, bytes).unwrap();
}
