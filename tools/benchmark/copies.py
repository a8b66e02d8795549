"""A delta of one block in a hundred: computed, produced, shipped through a pipe and applied
durably, beside the ways in which people do that today. Once for each way what arrived is
compared with what was sent."""

import contextlib
import filecmp
import pathlib
import random
import shutil
import subprocess
import time

from .machine import NBD_LOAD, SNAPVOL, output, process, quiet, snapvol
from .servers import Served, connects, copy, fill

BLOCK = 4096
SHARE = 0.01


def changed(size):
    """How many blocks are changed."""
    return int(size // BLOCK * SHARE)


def change(path, size, seed):
    """Writes other content to so many blocks of a file, at random."""
    source = random.Random(seed)
    data = source.randbytes(BLOCK)
    with open(path, "r+b", buffering=0) as file:
        for number in source.sample(range(size // BLOCK), changed(size)):
            file.seek(number * BLOCK)
            file.write(number.to_bytes(8, "little") + data[8:])


def timed(command):
    """How long a shell's command takes, with what is dirty before out of the way."""
    subprocess.run(["sync"], check=True)
    start = time.monotonic()
    done = subprocess.run(["/bin/bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True)
    seconds = time.monotonic() - start
    if done.returncode:
        raise RuntimeError(f"{command}: {done.stderr}")
    return seconds


def same(way, equal):
    """Fails if what arrived is not what was sent."""
    if not equal:
        raise RuntimeError(f"{way}: what arrived differs from what was sent")


@contextlib.contextmanager
def served(store, *create):
    """A store of ours, served."""
    path = store / "nbd.sock"
    with process([SNAPVOL, "--store", store, "serve", *create], lambda: connects(path)) as child:
        yield Served(socket=path, pid=child.pid, export="v", store=store)


def ours(directory, source, size, seed, verify):
    """`send --from` into `receive`, both with a store of their own; the near one is served."""
    near, far = directory / "near", directory / "far"
    with served(near, "--create", f"v:{size}") as server:
        fill(server, size)
        snapvol(near, "snapshot", "v@a")
        words = ["--unix", server.socket, "--export", "v", "--read", "0", "--order", "once"]
        quiet(NBD_LOAD, *words, "--requests", changed(size), "--seed", seed)
        snapvol(near, "snapshot", "v@b")
        snapvol(far, "init")
        ship = f"{SNAPVOL} --store {near} send v@{{}} | {SNAPVOL} --store {far} receive v"
        timed(ship.format("a"))
        seconds = timed(ship.format("b --from a"))
        diff = timed(f"{SNAPVOL} --store {near} diff v@a v@b --extents > /dev/null")
        quiet(SNAPVOL, "--store", near, "send", "v@b", "--from", "a", "-o", directory / "stream")
        sent = (directory / "stream").stat().st_size
        if verify:
            with served(far) as other:
                uris = (f"nbd+unix:///v@b?socket={path}" for path in (server.socket, other.socket))
                near_side, far_side = (f"<(nbdcopy '{uri}' -)" for uri in uris)
                same("snapvol", not subprocess.run(["/bin/bash", "-c", f"cmp {near_side} {far_side}"]).returncode)
    return {"seconds": seconds, "diff_seconds": diff, "bytes": sent, "overhead": sent / (changed(size) * BLOCK)}


@contextlib.contextmanager
def btrfs(directory, size):
    """Two btrfs file systems in files."""
    mounts = []
    try:
        for name in ["near", "far"]:
            disk, mount = directory / f"{name}.img", directory / f"{name}.mnt"
            with open(disk, "wb") as file:
                file.truncate(size * 2 + (1 << 30))
            mount.mkdir()
            quiet("mkfs.btrfs", "-q", disk)
            quiet("mount", "-o", "loop", disk, mount)
            mounts.append(mount)
        yield mounts
    finally:
        for mount in mounts:
            quiet("umount", mount)


def btrfs_send(directory, source, size, seed, verify):
    """`btrfs send -p` into `btrfs receive`, and a sync."""
    with btrfs(directory, size) as (near, far):
        quiet("btrfs", "subvolume", "create", near / "v")
        copy(source, near / "v" / "disk")
        quiet("btrfs", "subvolume", "snapshot", "-r", near / "v", near / "a")
        timed(f"btrfs send -q {near}/a | btrfs receive -q {far}")
        change(near / "v" / "disk", size, seed)
        quiet("btrfs", "subvolume", "snapshot", "-r", near / "v", near / "b")
        pipe = f"btrfs send -q -p {near}/a {near}/b | btrfs receive -q {far} && sync -f {far}"
        seconds = timed(pipe)
        if verify:
            same("btrfs", filecmp.cmp(near / "b" / "disk", far / "b" / "disk", shallow=False))
        return {"seconds": seconds}


def rsync(directory, source, size, seed, verify):
    """`rsync --inplace` with blocks of 4 KiB, and a sync."""
    near, far = copy(source, directory / "near"), copy(source, directory / "far")
    change(near, size, seed)
    words = f"rsync --inplace --ignore-times --no-whole-file --block-size={BLOCK} {near} {far} && sync {far}"
    seconds = timed(words)
    if verify:
        same("rsync", filecmp.cmp(near, far, shallow=False))
    return {"seconds": seconds}


def qemu_bitmap(directory, source, size, seed, verify):
    """Reading out what a dirty bitmap of qcow2 names, through NBD; nothing is applied."""
    disk, path = directory / "disk.qcow2", directory / "sock"
    quiet("qemu-img", "convert", "-f", "raw", "-O", "qcow2", source, disk)
    quiet("qemu-img", "bitmap", "--add", "-g", "4096", disk, "changed")
    command = ["qemu-nbd", "-t", "-f", "qcow2", "--cache=writeback", "-k", path, disk]
    with process(command, lambda: connects(path)):
        words = ["--unix", path, "--read", "0", "--order", "once", "--requests", changed(size)]
        quiet(NBD_LOAD, *words, "--seed", seed)
    path.unlink(missing_ok=True)
    subprocess.run(["sync"], check=True)
    command = ["qemu-nbd", "-t", "-r", "-f", "qcow2", "--cache=writeback", "-B", "changed", "-k", path, disk]
    with process(command, lambda: connects(path)):
        script = pathlib.Path(__file__).with_name("read_dirty.py")
        count, seconds = output("/usr/bin/python3", script, path).split()
        if verify:
            same("qemu bitmap", int(count) == changed(size) * BLOCK)
        return {"seconds": float(seconds), "bytes": int(count)}


WAYS = {
    "snapvol": ours,
    "btrfs send | receive": btrfs_send,
    "qemu bitmap, read out only": qemu_bitmap,
    "rsync --inplace": rsync,
}


def run(directory, source, size, rounds, emit):
    """Every way, in turn."""
    for number in range(rounds):
        ways = list(WAYS.items())
        shift = number % len(ways)
        for name, way in ways[shift:] + ways[:shift]:
            home = directory / "copy"
            shutil.rmtree(home, ignore_errors=True)
            home.mkdir()
            try:
                result = way(home, source, size, number + 1, number == 0)
            except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
                result = {"failed": str(error)}
            finally:
                shutil.rmtree(home, ignore_errors=True)
            setup = f"1 % of {size / (1 << 30):g} GiB in random blocks of 4 KiB"
            emit({"workload": "delta", "server": name, "round": number, "setup": setup, **result})
