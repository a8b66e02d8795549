//! The kernel's own nbd driver and file systems, in a guest: what a snapshot of a
//! mounted file system holds is a consistent file system with every synced file.

use std::path::Path;
use std::time::Duration;

use crate::support::server::Server;
use crate::support::vm::{HOST, Vm, have_vm};
use crate::support::{SNAPVOL, in_use, ok, scratch, wait_for};

const MIB: u64 = 1 << 20;

/// How each file system is made, checked without a change, and mounted as a snapshot:
/// read-only, its journal left alone.
struct FileSystem {
    volume: &'static str,
    make: &'static str,
    mount_snapshot: &'static str,
    check: &'static str,
}

const FILE_SYSTEMS: &[FileSystem] = &[
    FileSystem {
        volume: "ext",
        make: "mkfs.ext4 -q -E lazy_itable_init=1,nodiscard",
        mount_snapshot: "mount -t ext4 -o ro,noload",
        check: "e2fsck -fn",
    },
    FileSystem {
        volume: "xfs",
        make: "mkfs.xfs -q -f -K",
        mount_snapshot: "mount -t xfs -o ro,norecovery,nouuid",
        check: "xfs_repair -n",
    },
];

#[test]
fn snapshots_of_mounted_file_systems_are_consistent() {
    if !have_vm() {
        return;
    }
    let dir = scratch();
    let store = dir.path().join("s");
    // XFS wants 300 MiB at least; nothing of that is used up front.
    let server = Server::start_tcp(&store, &["--create", "ext:320M", "--create", "xfs:320M"]);
    let mut vm = Vm::boot_with(&[Path::new(SNAPVOL)]);
    for file_system in FILE_SYSTEMS {
        snapshots_stay_whole(&mut vm, &server, file_system);
    }
    drop(vm);
    server.stop();
    ok(&store, &["check"]);
    ok(&store, &["scrub"]);
}

fn snapshots_stay_whole(vm: &mut Vm, server: &Server, file_system: &FileSystem) {
    let FileSystem { volume, make, mount_snapshot, check } = file_system;
    let store = server.store();
    let port = server.port();
    let snapshot = |name: &str| ok(store, &["snapshot", &format!("{volume}@{name}")]);

    // The program's own attach, by the kernel's netlink interface.
    let device = attach(vm, port, volume);
    vm.ok(&format!("{make} {device}; mount {device} /mnt; mkdir /mnt/a /mnt/b /mnt/c"));

    // A set of files that every later snapshot must hold. Freezing empties the journal,
    // so that they are in place even for a mount that leaves the journal alone; a sync
    // alone would keep their names in it.
    vm.ok(&files("a", 12));
    vm.ok("sync; /sbin/fsfreeze -f /mnt");
    snapshot("quiet");
    vm.ok("/sbin/fsfreeze -u /mnt");

    // A second set is being written, each file synced and then noted in a log, while a
    // snapshot is taken: the noted ones must be there.
    vm.ok("sh -c 'i=0; while [ ! -e /tmp/stop ]; do i=$((i+1)); \
           dd if=/dev/urandom of=/mnt/b/$i bs=40961 count=2 2>/dev/null; sha256sum /mnt/b/$i >> /tmp/noted.new; \
           /sbin/sync /mnt/b/$i /mnt/b; cp /tmp/noted.new /tmp/noted.part; mv /tmp/noted.part /tmp/noted; \
           [ $i -lt 60 ] || break; done; touch /tmp/ended' >/tmp/writer.log 2>&1 &");
    vm.ok("while [ ! -e /tmp/noted ] || [ $(wc -l < /tmp/noted) -lt 5 ]; do [ ! -e /tmp/ended ] || exit 1; sleep 0.05; done");
    vm.ok("cp /tmp/noted /tmp/noted.before");
    snapshot("busy");
    vm.ok("touch /tmp/stop; while [ ! -e /tmp/ended ]; do sleep 0.05; done; cat /tmp/writer.log");

    // Afterwards everything changes: overwritten, removed, added.
    vm.ok("for f in /mnt/a/*; do dd if=/dev/urandom of=$f bs=64k count=1 conv=notrunc 2>/dev/null; done");
    vm.ok(&files("c", 4));
    vm.ok("rm /mnt/b/*; sync; (cd /mnt; sha256sum a/* c/*) > /tmp/final; umount /mnt");
    vm.ok(&format!("{check} {device}"));
    snapshot("clean");

    for name in ["quiet", "busy", "clean"] {
        let device = attach(vm, port, &format!("{volume}@{name}"));
        let read_only = vm.ok(&format!("cat /sys/block/{}/ro", device.trim_start_matches("/dev/")));
        assert_eq!(read_only.trim(), "1", "{volume}@{name}");
        vm.ok(&format!("{mount_snapshot} {device} /mnt"));
        match name {
            "clean" => vm.ok("cd /mnt; sha256sum -c -s /tmp/final"),
            // Without a replay of the journal the newest names may still be in it.
            "busy" => vm.ok("cd /mnt; sha256sum -c -s /tmp/sums.a"),
            _ => vm.ok("cd /mnt; sha256sum -c -s /tmp/sums.a; [ -z \"$(ls b c)\" ] || ls b c"),
        };
        vm.ok("umount /mnt");
        if name == "clean" {
            vm.ok(&format!("{check} {device}"));
        }
        detach(vm, &device);
    }

    // A drill of it replays the journal, is written and trimmed, and leaves the snapshot alone.
    ok(store, &["drill", &format!("{volume}@busy")]);
    let drill = attach(vm, port, &format!("{volume}+drill"));
    vm.ok(&format!("mount {drill} /mnt"));
    vm.ok("cd /mnt; sha256sum -c -s /tmp/sums.a; cd /; sha256sum -c -s /tmp/noted.before");
    vm.ok("rm -r /mnt/a /mnt/b; dd if=/dev/urandom of=/mnt/new bs=1M count=8 2>/dev/null; sync; fstrim /mnt");
    vm.ok(&format!("sha256sum /mnt/new > /tmp/new; umount /mnt; {check} {drill}; mount {drill} /mnt"));
    vm.ok("sha256sum -c -s /tmp/new; umount /mnt");
    detach(vm, &drill);
    wait_for("the drill's client to be gone", Duration::from_secs(10), || {
        let mut command = crate::support::snapvol(store);
        command.args(["drill", volume, "--end"]).output().unwrap().status.success()
    });

    // The journal replayed, on a volume rolled back to the busy snapshot: all that was
    // noted before the take is there, and the file system is whole.
    detach(vm, &device);
    wait_for("the client to be gone", Duration::from_secs(10), || {
        let mut command = crate::support::snapvol(store);
        let output = command.args(["rollback", &format!("{volume}@busy")]).output().unwrap();
        assert!(matches!(output.status.code(), Some(0 | 3)), "{}", crate::support::describe(&output));
        output.status.success()
    });
    let device = attach(vm, port, volume);
    vm.ok(&format!("mount {device} /mnt"));
    vm.ok("cd /mnt; sha256sum -c -s /tmp/sums.a; cd /; sha256sum -c -s /tmp/noted.before");
    vm.ok(&format!("umount /mnt; {check} {device}; mount {device} /mnt"));

    // Space that the file system gives back comes back.
    ok(store, &["delete", &format!("{volume}@quiet"), &format!("{volume}@busy"), &format!("{volume}@clean")]);
    vm.ok("dd if=/dev/urandom of=/mnt/large bs=1M count=16 2>/dev/null; sync");
    let before = in_use(store, volume);
    // XFS frees in the background what an unlinked file had, and trims only what its log
    // has forgotten: both are over after an unmount.
    vm.ok(&format!("rm /mnt/large; sync; umount /mnt; mount {device} /mnt; fstrim -v /mnt"));
    wait_for("the trimmed space", Duration::from_secs(10), || in_use(store, volume) + 12 * MIB < before);
    vm.ok(&format!("umount /mnt; {check} {device}"));
    detach(vm, &device);
    vm.ok("rm -rf /tmp/*");
}

/// Attaches an export in the guest; the device it got.
pub(crate) fn attach(vm: &mut Vm, port: u16, export: &str) -> String {
    let output = vm.ok(&format!("snapvol attach {export} --uri nbd://{HOST}:{port}"));
    let device = output.lines().find(|line| line.starts_with("/dev/nbd"));
    device.unwrap_or_else(|| panic!("no device in {output}")).trim().to_owned()
}

pub(crate) fn detach(vm: &mut Vm, device: &str) {
    vm.ok(&format!("snapvol detach {device}"));
}

/// Makes `count` files of odd sizes in `/mnt/DIR`, their sums in `/tmp/sums.DIR`.
fn files(dir: &str, count: u32) -> String {
    format!(
        "for i in $(seq {count}); do head -c $((i * 70001)) /dev/urandom > /mnt/{dir}/$i; done; \
         (cd /mnt; sha256sum {dir}/*) > /tmp/sums.{dir}"
    )
}

/// Needs no server of ours: tells whether the guest itself is in order.
#[test]
#[ignore = "a check of the harness, for when the other test fails"]
fn the_guest_works_with_another_server() {
    if !have_vm() {
        return;
    }
    let dir = scratch();
    let image = dir.path().join("image");
    std::fs::File::create(&image).unwrap().set_len(320 * MIB).unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let server = std::process::Command::new("qemu-nbd")
        .args([
            "-f",
            "raw",
            "-t",
            "-e",
            "4",
            "--discard=unmap",
            "-b",
            "127.0.0.1",
            "-x",
            "v",
            "-p",
            &port.to_string(),
        ])
        .arg(&image)
        .spawn()
        .unwrap();
    // Ends with the test, however that ends.
    let _server = Killed(server);
    let mut vm = Vm::boot_with(&[Path::new(SNAPVOL)]);
    vm.ok("test -x /host/snapvol; snapvol --version || true");
    assert_eq!(vm.run("echo out; echo err >&2; exit 7"), (7, "out\nerr".to_owned()));
    vm.ok(&format!("nbd-client {HOST} {port} /dev/nbd0 -N v"));
    for file_system in FILE_SYSTEMS {
        let FileSystem { make, check, mount_snapshot, .. } = file_system;
        vm.ok(&format!("{make} /dev/nbd0; mount /dev/nbd0 /mnt; mkdir /mnt/a"));
        vm.ok(&files("a", 12));
        vm.ok(&format!("sync; /sbin/sync /mnt/a/1 /mnt/a; fstrim /mnt; umount /mnt; {check} /dev/nbd0"));
        vm.ok(&format!(
            "{mount_snapshot} /dev/nbd0 /mnt; cd /mnt; sha256sum -c -s /tmp/sums.a; cd /; umount /mnt"
        ));
    }
    vm.ok("nbd-client -d /dev/nbd0");
}

struct Killed(std::process::Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
