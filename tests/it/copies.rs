//! Copies between two stores of one machine: there, and the way back.

use crate::support::server::Server;
use crate::support::{fails, have, ok, run, scratch, tool};
use std::path::Path;

fn write(server: &Server, pattern: u8, at: &str) {
    let command = format!("write -P {pattern} {at} 64k");
    run(tool("qemu-io").args(["-f", "raw", &server.uri("v"), "-c", &command, "-c", "flush"]));
}

fn served<T>(store: &Path, work: impl FnOnce(&Server) -> T) -> T {
    let server = Server::start(store, &[]);
    let result = work(&server);
    server.stop();
    result
}

/// After a failover the old primary is rolled back to the common state, which the new
/// primary's delta then starts from: nothing is copied whole.
#[test]
fn a_delta_goes_back_after_a_roll_back() {
    if !have(&["qemu-io", "qemu-img"]) {
        return;
    }
    let dir = scratch();
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    ok(&a, &["init"]);
    ok(&a, &["create", "v", "--size", "64M"]);
    ok(&b, &["init"]);
    served(&a, |server| {
        write(server, 1, "0");
        write(server, 2, "8M");
    });
    ok(&a, &["snapshot", "v@one"]);
    let there = b.join("v").display().to_string();
    let back = a.join("v").display().to_string();
    ok(&a, &["copy", "v@one", &there]);

    // Both sides go on by themselves.
    served(&a, |server| {
        write(server, 3, "0");
        write(server, 4, "16M");
    });
    ok(&b, &["promote", "v"]);
    served(&b, |server| write(server, 5, "8M"));
    ok(&b, &["snapshot", "v@two"]);

    // The old primary has changes of its own: it is refused until they are undone.
    ok(&a, &["demote", "v"]);
    fails(3, &b, &["copy", "v@two", &back]);
    ok(&a, &["promote", "v"]);
    ok(&a, &["rollback", "v@one"]);
    ok(&a, &["demote", "v"]);
    ok(&b, &["copy", "v@two", &back]);
    let a = Server::start(&a, &[]);
    let b = Server::start(&b, &[]);
    let (far, near) = (a.uri("v"), b.uri("v@two"));
    run(tool("qemu-img").args(["compare", "-f", "raw", "-F", "raw", &near, &far]));
}
