//! Clients that connect again go on: the daemon dies without a warning and is started
//! anew, and whoever uses a volume sees a pause and no error.

use crate::support::server::Server;
use crate::support::vm::{HOST, Vm, have_vm};
use crate::support::{SNAPVOL, have, ok, python, run, scratch, tool};
use std::io::Write as _;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

/// A set of files, each synced and then noted, is written to `/mnt` of a guest while the
/// daemon dies as often as the test likes; all noted ones must be there, and whole.
const WRITER: &str = "rm -f /tmp/noted /tmp/stop /tmp/ended; (i=0; while [ ! -e /tmp/stop ]; do i=$((i+1)); \
     dd if=/dev/urandom of=/mnt/$i bs=30011 count=3 2>/dev/null && /sbin/sync /mnt/$i /mnt && \
     sha256sum /mnt/$i >> /tmp/noted || { echo failed at $i; break; }; \
     [ $i -lt 400 ] || break; done; touch /tmp/ended) >/tmp/writer.log 2>&1 &";

/// Whether a keeper runs in the guest.
const KEEPER: &str =
    "cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' ' | grep -q -e 'attach [^ ]* [^ ]* --uri'";

/// Ends the writer: it must not have met an error, and everything must be there, on the
/// file system as it stands and after it was mounted anew.
fn all_is_there(vm: &mut Vm, device: &str) {
    vm.ok("touch /tmp/stop; while [ ! -e /tmp/ended ]; do sleep 0.1; done; cat /tmp/writer.log; [ ! -s /tmp/writer.log ]");
    vm.ok("sha256sum -c -s /tmp/noted");
    vm.ok(&format!(
        "umount /mnt; e2fsck -fn {device}; mount {device} /mnt; sha256sum -c -s /tmp/noted; umount /mnt"
    ));
}

fn noted(vm: &mut Vm) -> usize {
    vm.ok("cat /tmp/noted 2>/dev/null | wc -l").trim().parse().unwrap()
}

/// Waits until the writer has written more, so that it was not just lucky.
fn wait_for_more(vm: &mut Vm) {
    let before = noted(vm);
    vm.ok(&format!(
        "for i in $(seq 600); do [ $(cat /tmp/noted 2>/dev/null | wc -l) -gt {} ] && exit 0; \
         [ -e /tmp/ended ] && {{ cat /tmp/writer.log; exit 1; }}; sleep 0.1; done; exit 1",
        before + 3
    ));
}

/// The program's own attach, with what it does unless told otherwise.
#[test]
fn an_attached_device_outlasts_the_daemon() {
    if !have_vm() {
        return;
    }
    let mut vm = Vm::boot_with(&[Path::new(SNAPVOL)]);
    let no_keeper = format!("for i in $(seq 100); do {KEEPER} || exit 0; sleep 0.1; done; exit 1");
    let serve = "(snapvol --store /tmp/s serve --create v:48M >/tmp/log 2>/tmp/err & echo $! > /tmp/pid); \
                 while ! grep -q ready /tmp/log; do sleep 0.05; done";
    vm.ok(serve);
    // Else the kernel asks again only after half a minute.
    let device = vm.ok("snapvol --store /tmp/s attach v --timeout 2").trim().to_owned();
    assert_eq!(device, "/dev/nbd0");
    vm.ok(KEEPER);
    vm.ok(&format!("mkfs.ext4 -q {device}; mount {device} /mnt; {WRITER}"));
    for away in [0, 1, 3] {
        wait_for_more(&mut vm);
        vm.ok(&format!("kill -9 $(cat /tmp/pid); rm /tmp/log; sleep {away}; {serve}"));
        wait_for_more(&mut vm);
    }
    all_is_there(&mut vm, &device);

    // Nobody keeps what was detached, and what is not served any more fails in the end.
    vm.ok(&format!("snapvol detach {device}"));
    vm.ok(&no_keeper);
    let device = vm.ok("snapvol --store /tmp/s attach v --timeout 1 --dead-conn-timeout 2").trim().to_owned();
    vm.ok("kill -9 $(cat /tmp/pid)");
    let read = format!("[ $(dd if={device} bs=4k count=1 skip=77 iflag=direct 2>/dev/null | wc -c) = 4096 ]");
    assert_ne!(vm.run(&read).0, 0);
    vm.ok(&no_keeper);
    vm.ok(&format!("snapvol detach {device}"));
    assert_eq!(vm.run(&format!("snapvol detach {device}")).0, 5);
    vm.ok(&format!("rm /tmp/log; {serve}"));

    // Nothing puts other content under a device while no daemon knows of it; what was done
    // by force ends it.
    vm.ok("snapvol --store /tmp/s snapshot v@one");
    let attach = "snapvol --store /tmp/s attach v --timeout 1 --dead-conn-timeout 9";
    vm.ok(attach);
    vm.ok("kill -9 $(cat /tmp/pid)");
    for refused in ["rollback v@one", "delete v --recursive", "demote v"] {
        let (code, said) = vm.run(&format!("snapvol --store /tmp/s {refused}"));
        assert!(code == 3 && said.contains("attached"), "{refused}: {code} {said}");
    }
    vm.ok(&format!("snapvol --store /tmp/s rollback --force v@one; rm /tmp/log; {serve}"));
    vm.ok(&no_keeper);
    assert_ne!(vm.run(&read).0, 0);
    vm.ok(&format!("snapvol detach {device}"));

    // A volume of that name that is another one is not taken for it.
    vm.ok(attach);
    vm.ok("kill -9 $(cat /tmp/pid); rm -r /tmp/s /tmp/log");
    vm.ok(&serve.replace("48M", "32M"));
    vm.ok(&no_keeper);
    assert_ne!(vm.run(&read).0, 0);
}

/// The usual client of the kernel's driver, over TCP, with the daemon on the host. Newer
/// kernels tell it nothing of a lost connection, so it ends in spite of `-persist` and is
/// started again; what was under way meets an error and is asked again by who wrote it.
#[test]
fn an_nbd_client_that_is_started_again_goes_on() {
    if !have_vm() {
        return;
    }
    let dir = scratch();
    let store = dir.path().join("s");
    let mut server = Server::start_tcp(&store, &["--create", "v:48M"]);
    let port = server.port();
    let mut vm = Vm::boot();
    vm.ok(&format!(
        "(while [ ! -e /tmp/over ]; do nbd-client {HOST} {port} /dev/nbd0 -N v -nonetlink -persist -nofork; \
         echo ended >> /tmp/clients; sleep 0.1; done) >/tmp/client 2>&1 & \
         while ! nbd-client -c /dev/nbd0; do sleep 0.1; done"
    ));
    let write = "rm -f /tmp/stop /tmp/ended /tmp/noted; (i=0; while [ ! -e /tmp/stop ] && [ $i -lt 700 ]; do i=$((i+1)); \
         head -c 65536 /dev/urandom > /tmp/part; \
         until dd if=/tmp/part of=/dev/nbd0 bs=64k count=1 seek=$i oflag=direct conv=notrunc 2>/dev/null; \
         do echo again >> /tmp/again; sleep 0.1; done; \
         sum=$(sha256sum < /tmp/part); echo $i $sum >> /tmp/noted; done; touch /tmp/ended) >/tmp/writer.log 2>&1 &";
    vm.ok(write);
    for _ in 0..3 {
        wait_for_more(&mut vm);
        server.kill();
        server = Server::start(&store, &["--listen", &format!("127.0.0.1:{port}")]);
        let connected = "nbd-client -c /dev/nbd0";
        vm.ok(&format!(
            "for i in $(seq 300); do {connected} && exit 0; sleep 0.1; done; cat /tmp/client; exit 1"
        ));
        wait_for_more(&mut vm);
    }
    vm.ok("touch /tmp/stop; while [ ! -e /tmp/ended ]; do sleep 0.1; done");
    vm.ok("blockdev --flushbufs /dev/nbd0; while read i sum dash; do \
           now=$(dd if=/dev/nbd0 bs=64k count=1 skip=$i iflag=direct 2>/dev/null | sha256sum); \
           [ \"$now\" = \"$sum  $dash\" ] || { echo $i holds $now instead of $sum; exit 1; }; done < /tmp/noted");
    assert!(vm.ok("cat /tmp/clients").lines().count() >= 3);
    vm.ok("touch /tmp/over; nbd-client -d /dev/nbd0");
    drop(vm);
    server.stop();
    ok(&store, &["check"]);
    ok(&store, &["scrub"]);
}

/// QEMU's own client, told to wait for a new connection.
#[test]
fn qemu_reconnects() {
    if !have(&["qemu-io"]) {
        return;
    }
    let dir = scratch();
    let store = dir.path().join("s");
    let mut server = Server::start(&store, &["--create", "v:64M"]);
    let options = format!(
        "driver=raw,file.driver=nbd,file.server.type=unix,file.server.path={},file.export=v,file.reconnect-delay=60",
        server.socket().display()
    );
    let mut command = tool("qemu-io");
    command
        .args(["--image-opts", &options])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    for life in 1..=3 {
        writeln!(input, "write -P {life} {life}M 1M\nread -P {life} {life}M 1M").unwrap();
        std::thread::sleep(Duration::from_millis(300));
        server.kill();
        // Meets nobody, and waits.
        writeln!(input, "write -P {} {}M 1M", life + 16, life + 16).unwrap();
        std::thread::sleep(Duration::from_millis(100));
        server = Server::start(&store, &[]);
    }
    for life in 1..=3 {
        writeln!(input, "read -P {life} {life}M 1M\nread -P {} {}M 1M", life + 16, life + 16).unwrap();
    }
    writeln!(input, "flush\nquit").unwrap();
    drop(input);
    let output = child.wait_with_output().unwrap();
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(!said.contains("failed") && !said.contains("rror"), "{said}");
    assert_eq!(said.matches("read 1048576/1048576").count(), 9, "{said}");
    server.stop();
    ok(&store, &["check"]);
}

/// libnbd with what its users write around it: open again, ask again what was not answered.
#[test]
fn libnbd_goes_on_in_a_new_connection() {
    let python_has_libnbd =
        tool("/usr/bin/python3").args(["-c", "import nbd"]).status().is_ok_and(|s| s.success());
    if !crate::support::available(python_has_libnbd, "Python's nbd module") {
        return;
    }
    let dir = scratch();
    let store = dir.path().join("s");
    let mut server = Server::start(&store, &["--create", "v:64M"]);
    let mut command = python("clients/reconnect.py");
    command.args([&server.uri("v"), "6", "1"]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut client = command.spawn().unwrap();
    for time in [700, 900, 800, 1000] {
        std::thread::sleep(Duration::from_millis(time));
        assert!(client.try_wait().unwrap().is_none(), "it ended too early");
        server.kill();
        server = Server::start(&store, &[]);
    }
    let output = client.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", crate::support::describe(&output));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains("connections 5"), "{said}");
    server.stop();
    run(crate::support::snapvol(&store).arg("scrub"));
}
