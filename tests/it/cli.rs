//! The program as scripts see it: exit codes, stderr, stdout.
#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

use std::path::Path;
use std::process::{Command, Output};

fn snapvol(store: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_snapvol"))
        .args(args)
        .env("SNAPVOL_STORE", store)
        .env_remove("SNAPVOL_LOG")
        .output()
        .unwrap()
}

fn fails(store: &Path, args: &[&str], code: i32) -> String {
    let output = snapvol(store, args);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{args:?}: {stderr}");
    assert!(!stderr.is_empty() && !stderr.contains("panicked"), "{args:?}: {stderr}");
    stderr
}

fn works(store: &Path, args: &[&str]) -> String {
    let output = snapvol(store, args);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{args:?}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}

/// Wrong words are refused with 2, before any store is looked for.
#[test]
fn wrong_usage_is_2() {
    let dir = tempfile::tempdir().unwrap();
    for args in [
        &[][..],
        &["no-such-command"],
        &["create", "db"],
        &["create", "db", "--size", "1X"],
        &["create", "db", "--size", "-1"],
        &["create", "db", "--size", "1.5G"],
        &["create", "db", "--size", "513"],
        &["create", "db", "--size", "0"],
        &["create", "db", "--size", "65T"],
        &["create", "db", "--size", "1G", "--block-size", "3K"],
        &["create", "db", "--size", "1G", "--granularity", "3"],
        &["create", "db", "--size", "1G", "--on-full", "explode"],
        &["create", "_db", "--size", "1G"],
        &["create", "../db", "--size", "1G"],
        &["create", "db@x", "--size", "1G"],
        &["set", "db", "on-full"],
        &["set", "db", "colour=red"],
        &["serve", "--create", "db"],
        &["serve", "--create", "db:513"],
        &["serve", "--io", "magic"],
        &["attach", "db", "/dev/sda"],
        &["attach", "db", "--uri", "http://x"],
        &["detach", "nbd0"],
        &["list", ".."],
        &["resize", "db", "many"],
        &["snapshot"],
        &["snapshot", "db"],
        &["snapshot", "db@_x"],
        &["delete"],
        &["delete", "db", "web"],
        &["delete", "db@a", "web"],
        &["delete", "db@a", "--recursive"],
        &["hold", "db@a"],
        &["hold", "db@a", "a tag"],
        &["rollback", "db"],
        &["diff", "db"],
        &["diff", "db@a", "web@b"],
        &["diff", "db@a", "--json", "--extents"],
        &["promote", "db@a"],
        &["completions", "cobol"],
    ] {
        fails(dir.path(), args, 2);
    }
}

#[test]
fn a_missing_store_is_5_with_a_hint() {
    let dir = tempfile::tempdir().unwrap();
    let none = dir.path().join("none");
    for args in [
        &["create", "db", "--size", "1G"][..],
        &["set", "db", "on-full=freeze"],
        &["list"],
        &["list", "--json"],
        &["resize", "db", "1G"],
        &["snapshot", "db@a"],
        &["delete", "db@a"],
        &["delete", "db"],
        &["hold", "db@a", "tag"],
        &["release", "db@a", "tag"],
        &["rollback", "db@a"],
        &["diff", "db@a"],
        &["promote", "db"],
        &["demote", "db"],
        &["check"],
        &["scrub"],
        &["status"],
    ] {
        let stderr = fails(&none, args, 5);
        let lines: Vec<&str> = stderr.lines().collect();
        assert_eq!(lines.len(), 2, "{stderr}");
        assert!(lines[0].starts_with("snapvol: there is no store in "), "{stderr}");
        assert!(lines[1].starts_with("hint: ") && lines[1].ends_with(" init"), "{stderr}");
    }
    assert!(!none.exists());
}

#[test]
fn the_option_beats_the_environment() {
    let dir = tempfile::tempdir().unwrap();
    let other = dir.path().join("other");
    let stderr = fails(dir.path(), &["list", "--store", other.to_str().unwrap()], 5);
    assert!(stderr.contains("/other"), "{stderr}");
}

#[test]
fn completions_for_every_shell() {
    let dir = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        assert!(works(dir.path(), &["completions", shell]).contains("snapshot"), "{shell}");
    }
}

#[test]
fn manual_pages_for_every_command() {
    let dir = tempfile::tempdir().unwrap();
    let pages = works(dir.path(), &["man"]);
    for command in ["init", "serve", "attach", "send", "receive", "copy", "verify", "rollback", "scrub"] {
        assert!(pages.contains(&format!(".TH snapvol-{command} ")), "{command}");
    }
    works(dir.path(), &["man", "--output", dir.path().to_str().unwrap()]);
    assert!(dir.path().join("snapvol.1").exists() && dir.path().join("snapvol-serve.1").exists());
}

#[test]
fn help_and_version_go_to_stdout() {
    let dir = tempfile::tempdir().unwrap();
    assert!(works(dir.path(), &["--version"]).starts_with("snapvol "));
    assert!(works(dir.path(), &["--help"]).contains("SNAPVOL_STORE"));
    assert!(works(dir.path(), &["create", "--help"]).contains("--on-full"));
}

#[test]
fn a_reader_that_leaves_is_no_failure() {
    let dir = tempfile::tempdir().unwrap();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = Command::new(env!("CARGO_BIN_EXE_snapvol"))
        .arg("man")
        .env("SNAPVOL_STORE", dir.path())
        .stdout(writer)
        .output()
        .unwrap();
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]));
}

/// The rest needs a store.
mod stored {
    use super::*;
    use serde_json::Value;
    use std::io::{BufRead, BufReader};
    use std::process::{Child, ChildStdout, Stdio};

    fn list(store: &Path) -> Value {
        serde_json::from_str(&works(store, &["list", "--json"])).unwrap()
    }

    /// What any command does, served or not.
    fn life_of_a_volume(store: &Path) {
        works(store, &["create", "db", "--size", "64M", "--block-size", "4K", "--on-full", "readonly"]);
        fails(store, &["create", "db", "--size", "64M"], 3);
        fails(store, &["list", "web"], 5);
        works(store, &["snapshot", "db@a"]);
        fails(store, &["snapshot", "db@a"], 3);
        fails(store, &["snapshot", "db@c", "web@c"], 5);
        works(store, &["snapshot", "db@b"]);
        let info = list(store);
        let volume = &info["volumes"][0];
        assert_eq!(info["store"].as_str().map(Path::new), Some(store));
        assert_eq!((&volume["name"], &volume["role"]), (&"db".into(), &"primary".into()));
        assert_eq!((&volume["size"], &volume["block_size"]), (&(64 << 20).into(), &4096.into()));
        let names: Vec<_> =
            volume["snapshots"].as_array().unwrap().iter().map(|snapshot| snapshot["name"].clone()).collect();
        assert_eq!(names, ["a", "b"], "oldest first, and nothing of the failed one");
        assert!(works(store, &["list"]).contains("  @b"));
        let diff: Value = serde_json::from_str(&works(store, &["diff", "db@a", "db@b", "--json"])).unwrap();
        assert_eq!((&diff["from"], &diff["to"], &diff["data_bytes"]), (&"a".into(), &"b".into(), &0.into()));
        assert_eq!(works(store, &["diff", "db@a", "db", "--extents"]), "");
        fails(store, &["diff", "db@b", "db@a"], 2);
        works(store, &["hold", "db@a", "tape"]);
        fails(store, &["delete", "db@a", "db@b"], 3);
        works(store, &["release", "db@a", "tape"]);
        works(store, &["rollback", "db@a"]);
        works(store, &["set", "db", "on-full=freeze"]);
        works(store, &["resize", "db", "128M"]);
        fails(store, &["resize", "db", "64M"], 3);
        works(store, &["resize", "db", "64M", "--force"]);
        works(store, &["demote", "db"]);
        works(store, &["promote", "db"]);
        works(store, &["check"]);
        works(store, &["scrub"]);
        fails(store, &["delete", "db"], 3);
        works(store, &["delete", "db@b"]);
        works(store, &["delete", "db", "--recursive"]);
        assert_eq!(list(store)["volumes"], Value::Array(vec![]));
    }

    #[test]
    fn init_wants_an_empty_directory() {
        let dir = tempfile::tempdir().unwrap();
        let store = dir.path().join("store");
        works(&store, &["init"]);
        assert_eq!(list(&store)["volumes"], Value::Array(vec![]));
        fails(&store, &["init"], 3);
    }

    #[test]
    fn without_a_daemon() {
        let dir = tempfile::tempdir().unwrap();
        let store = dir.path().join("store");
        works(&store, &["init"]);
        let status: Value = serde_json::from_str(&works(&store, &["status", "--json"])).unwrap();
        assert_eq!(status["running"], false);
        life_of_a_volume(&store);
        works(&store, &["check", "--repair"]);
    }

    /// A daemon, killed if the test fails.
    struct Daemon {
        child: Child,
        stdout: BufReader<ChildStdout>,
    }

    impl Daemon {
        fn start(store: &Path, args: &[&str]) -> Self {
            let mut child = Command::new(env!("CARGO_BIN_EXE_snapvol"))
                .arg("serve")
                .args(args)
                .env("SNAPVOL_STORE", store)
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let stdout = BufReader::new(child.stdout.take().unwrap());
            Self { child, stdout }
        }

        fn line(&mut self) -> String {
            let mut line = String::new();
            self.stdout.read_line(&mut line).unwrap();
            line
        }

        fn terminate(mut self) -> Option<i32> {
            let pid = rustix::process::Pid::from_child(&self.child);
            rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
            self.child.wait().unwrap().code()
        }
    }

    impl Drop for Daemon {
        fn drop(&mut self) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }

    #[test]
    fn with_a_daemon() {
        let dir = tempfile::tempdir().unwrap();
        let store = dir.path().join("store");
        let mut daemon = Daemon::start(&store, &["--create", "web:1M", "--listen", "127.0.0.1:0"]);
        let socket = store.join("nbd.sock");
        assert_eq!(daemon.line(), format!("ready nbd+unix:///web?socket={}\n", socket.display()));
        assert!(daemon.line().starts_with("ready nbd://127.0.0.1:"));
        let status: Value = serde_json::from_str(&works(&store, &["status", "--json"])).unwrap();
        assert_eq!((&status["running"], &status["pid"]), (&true.into(), &daemon.child.id().into()));
        fails(&store, &["check", "--repair"], 3);
        works(&store, &["delete", "web"]);
        life_of_a_volume(&store);
        assert_eq!(daemon.terminate(), Some(0));
        assert!(!socket.exists() && !store.join("control.sock").exists());
        works(&store, &["list"]);
    }

    #[test]
    fn a_daemon_that_was_killed_is_not_asked() {
        let dir = tempfile::tempdir().unwrap();
        let store = dir.path().join("store");
        let mut daemon = Daemon::start(&store, &["--create", "web:1M"]);
        assert!(daemon.line().starts_with("ready "));
        drop(daemon);
        assert!(store.join("control.sock").exists());
        assert_eq!(list(&store)["volumes"][0]["name"], "web");
    }
}
