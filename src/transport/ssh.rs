//! The command that runs a program on another host: the system's own ssh, with the
//! user's `~/.ssh/config`, keys and agent.

use super::Host;
use std::ffi::OsString;
use std::io::IsTerminal;
use std::process::Command;

/// What to run instead of `ssh`; for tests and for wrappers.
pub const SSH_ENV: &str = "SNAPVOL_SSH";

/// `ssh HOST 'snapvol ARGS...'`. `program` is shell text that replaces `snapvol`;
/// the arguments are quoted for the shell there.
#[must_use]
pub fn command(host: &Host, program: Option<&str>, args: &[&str]) -> Command {
    let ssh = std::env::var_os(SSH_ENV).filter(|value| !value.is_empty());
    let mut command = Command::new(ssh.unwrap_or_else(|| OsString::from("ssh")));
    // A peer that is gone without a word is noticed within a minute.
    command.args(["-T", "-e", "none"]);
    command.args(["-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=3", "-o", "ConnectTimeout=30"]);
    if !std::io::stdin().is_terminal() && std::env::var_os("SSH_ASKPASS").is_none() {
        command.args(["-o", "BatchMode=yes"]);
    }
    if let Some(port) = host.port {
        command.arg("-p").arg(port.to_string());
    }
    if let Some(user) = &host.user {
        command.arg("-l").arg(user);
    }
    command.arg("--").arg(&host.name).arg(shell_line(program, args));
    command
}

/// The line for the shell there.
fn shell_line(program: Option<&str>, args: &[&str]) -> String {
    let mut line = program.unwrap_or("snapvol").to_owned();
    for arg in args {
        line.push(' ');
        line.push_str(&quote(arg));
    }
    line
}

/// One word for a POSIX shell, whatever is in it.
fn quote(word: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"/._-".contains(&b);
    if !word.is_empty() && word.bytes().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shell_sees_the_same_words() {
        let words = ["--store", "/a b/$(id)/'x'\"`\\!*", "", "é;rm", "a\nb"];
        let output =
            Command::new("sh").arg("-c").arg(shell_line(Some("printf '%s|'"), &words)).output().unwrap();
        let expected: String = words.iter().map(|word| format!("{word}|")).collect();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), expected);
    }

    #[test]
    fn the_host_follows_the_end_of_options() {
        let host = Host { user: Some("me".to_owned()), name: "::1".to_owned(), port: Some(22) };
        let command = command(&host, None, &["receive", "db"]);
        let args: Vec<_> = command.get_args().map(|arg| arg.to_str().unwrap()).collect();
        assert!(args.ends_with(&["-p", "22", "-l", "me", "--", "::1", "snapvol receive db"]), "{args:?}");
    }
}
