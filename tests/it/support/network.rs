//! A network of a test's own: two hosts with a router between them, as network namespaces. What the
//! router does not pass on is lost without a word, as behind a cable that was pulled somewhere.
//!
//! The test runs once more as a child in namespaces of its own, so whatever happens to it, nothing of
//! the network is left. The child's own network namespace is the router.

use super::{available, have, run, tool};
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

/// Says to the child that it is one.
const INSIDE: &str = "SNAPVOL_TEST_NETWORK";

/// The hosts: their names, and their addresses in the networks that lead to the router.
pub const HOSTS: [(&str, &str); 2] = [("a", "10.99.1.2"), ("b", "10.99.2.2")];

/// Runs `body` where there is such a network; `test` is the test's whole name. Where namespaces are
/// not allowed the test is skipped as if a tool were missing.
pub fn where_networks_are_private(test: &str, body: impl FnOnce(&Network)) {
    if std::env::var_os(INSIDE).is_some() {
        return body(&Network::new());
    }
    if !have(&["ip", "tc", "nsenter", "unshare"]) {
        return;
    }
    let unshare = || {
        let mut command = Command::new("unshare");
        command.args(["--net", "--mount", "--propagation", "private", "--"]).stdin(Stdio::null());
        command
    };
    let allowed = unshare().args(["ip", "link", "add", "x0", "type", "veth", "peer", "name", "x1"]).output();
    let allowed = allowed.is_ok_and(|output| output.status.success());
    if !available(allowed, "the right to make network namespaces (run the tests as root)") {
        return;
    }
    let mut child = unshare();
    child.arg(std::env::current_exe().unwrap()).args(["--exact", test, "--nocapture"]).env(INSIDE, "1");
    let status = child.status().unwrap();
    assert!(status.success(), "{test}, in a network namespace of its own: {status}");
}

/// The network.
pub struct Network(());

#[track_caller]
fn ip(args: &str) {
    run(tool("ip").args(args.split(' ')));
}

fn router(setting: &str, value: &str) {
    fs::write(Path::new("/proc/sys/net/ipv4").join(setting), value).unwrap();
}

impl Network {
    fn new() -> Self {
        // Names of namespaces are files there; these are seen by nobody else.
        fs::create_dir_all("/run/netns").unwrap();
        run(tool("mount").args(["-t", "tmpfs", "none", "/run/netns"]));
        ip("link set lo up");
        for (number, (name, address)) in (1..).zip(HOSTS) {
            ip(&format!("netns add {name}"));
            ip(&format!("link add to-{name} type veth peer name eth0 netns {name}"));
            ip(&format!("addr add 10.99.{number}.1/24 dev to-{name}"));
            ip(&format!("link set to-{name} up"));
            ip(&format!("-n {name} link set lo up"));
            ip(&format!("-n {name} addr add {address}/24 dev eth0"));
            ip(&format!("-n {name} link set eth0 up"));
            ip(&format!("-n {name} route add default via 10.99.{number}.1"));
        }
        router("ip_forward", "1");
        Self(())
    }

    /// What a command begins with to run on a host.
    pub fn on(host: &str) -> Vec<String> {
        vec!["nsenter".to_owned(), format!("--net=/run/netns/{host}"), "--".to_owned()]
    }

    /// From now on nothing passes, and nobody is told.
    pub fn silence(&self) {
        router("ip_forward", "0");
    }

    /// From now on nothing reaches that host; what it says passes.
    #[track_caller]
    pub fn deafen(&self, host: &str) {
        let (_, address) = HOSTS.iter().find(|(name, _)| *name == host).unwrap();
        ip(&format!("route add blackhole {address}"));
    }

    /// Everything passes, as at the beginning.
    pub fn heal(&self) {
        for (name, address) in HOSTS {
            let _ = tool("ip").args(["route", "del", "blackhole", address]).output();
            let _ = tool("tc").args(["qdisc", "del", "dev", &format!("to-{name}"), "root"]).output();
        }
        router("ip_forward", "1");
    }

    /// From now on at most so many KiB a second reach that host.
    #[track_caller]
    pub fn slow(&self, host: &str, kib: u64) {
        let (rate, dev) = (format!("{}kbit", kib * 8), format!("to-{host}"));
        let args = ["qdisc", "replace", "dev", &dev, "root", "tbf", "rate", &rate, "burst", "16k"];
        run(tool("tc").args(args).args(["latency", "400ms"]));
    }
}
