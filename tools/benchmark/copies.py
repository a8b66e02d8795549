"""A delta of one block in a hundred: computed, produced, shipped through a pipe and applied
durably, beside the ways in which people do that today."""

import contextlib
import pathlib
import random
import shutil
import subprocess
import time

from .machine import NBD_LOAD, SNAPVOL, output, process, quiet, snapvol
from .servers import connects, copy

BLOCK = 4096


def changed(size, share, seed):
    """The blocks to change, at random."""
    return random.Random(seed).sample(range(size // BLOCK), int(size // BLOCK * share))


def change(path, blocks, seed):
    """Writes other content to those blocks of a file."""
    data = random.Random(seed).randbytes(BLOCK)
    with open(path, "r+b", buffering=0) as file:
        for number in blocks:
            file.seek(number * BLOCK)
            file.write(number.to_bytes(8, "little") + data[8:])


def timed(command, shell=False):
    """How long it takes, with what is dirty before out of the way."""
    subprocess.run(["sync"], check=True)
    start = time.monotonic()
    words = command if shell else [str(word) for word in command]
    subprocess.run(words, shell=shell, check=True, executable="/bin/bash" if shell else None, capture_output=True)
    return time.monotonic() - start


def ours(directory, source, size, seed):
    """`send --from` into `receive`, both with a store of their own."""
    near, far = directory / "near", directory / "far"
    path = near / "nbd.sock"
    command = [SNAPVOL, "--store", near, "serve", "--create", f"v:{size}"]
    with process(command, lambda: path.exists() and connects(path)) as child:
        words = [NBD_LOAD, "--unix", path, "--export", "v", "--read", "0"]
        quiet(*words, "--order", "sequential", "--request", "64K", "--requests", size // (64 << 10))
        snapvol(near, "snapshot", "v@a")
        quiet(*words, "--order", "once", "--requests", int(size // BLOCK * 0.01), "--seed", seed)
        snapvol(near, "snapshot", "v@b")
        snapvol(far, "init")
        pipe = f"{SNAPVOL} --store {near} send v@{{}} | {SNAPVOL} --store {far} receive v"
        timed(f"set -o pipefail; {pipe.format('a')}", shell=True)
        seconds = timed(f"set -o pipefail; {pipe.format('b --from a')}", shell=True)
        diff = timed([SNAPVOL, "--store", near, "diff", "v@a", "v@b", "--extents"])
        stream = output(SNAPVOL, "--store", near, "send", "v@b", "--from", "a", "-o", directory / "stream")
        del stream
        sent = (directory / "stream").stat().st_size
        child.poll()
    blocks = int(size // BLOCK * 0.01)
    return {"seconds": seconds, "diff_seconds": diff, "bytes": sent, "overhead": sent / (blocks * BLOCK)}


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


def btrfs_send(directory, source, size, seed):
    """`btrfs send -p` into `btrfs receive`, and a sync."""
    with btrfs(directory, size) as (near, far):
        quiet("btrfs", "subvolume", "create", near / "v")
        copy(source, near / "v" / "disk")
        quiet("btrfs", "subvolume", "snapshot", "-r", near / "v", near / "a")
        timed(f"set -o pipefail; btrfs send -q {near}/a | btrfs receive -q {far}", shell=True)
        change(near / "v" / "disk", changed(size, 0.01, seed), seed)
        quiet("btrfs", "subvolume", "snapshot", "-r", near / "v", near / "b")
        pipe = f"btrfs send -q -p {near}/a {near}/b | btrfs receive -q {far} && sync -f {far}"
        return {"seconds": timed(f"set -o pipefail; {pipe}", shell=True)}


def rsync(directory, source, size, seed):
    """`rsync --inplace` with blocks of 4 KiB, and a sync."""
    near, far = copy(source, directory / "near"), copy(source, directory / "far")
    change(near, changed(size, 0.01, seed), seed)
    words = f"rsync --inplace --no-whole-file --block-size={BLOCK} {near} {far} && sync {far}"
    return {"seconds": timed(words, shell=True)}


def qemu_bitmap(directory, source, size, seed):
    """Reading out what a dirty bitmap of qcow2 names, through NBD; nothing is applied."""
    disk, path = directory / "disk.qcow2", directory / "sock"
    quiet("qemu-img", "convert", "-f", "raw", "-O", "qcow2", source, disk)
    quiet("qemu-img", "bitmap", "--add", "-g", "4096", disk, "changed")
    command = ["qemu-nbd", "-t", "-f", "qcow2", "--cache=writeback", "-k", path, disk]
    with process(command, lambda: connects(path)):
        blocks = int(size // BLOCK * 0.01)
        words = ["--unix", path, "--read", "0", "--order", "once", "--requests", blocks]
        quiet(NBD_LOAD, *words, "--seed", seed)
    path.unlink(missing_ok=True)
    command = ["qemu-nbd", "-t", "-r", "-f", "qcow2", "-B", "changed", "-k", path, disk]
    with process(command, lambda: connects(path)):
        script = pathlib.Path(__file__).with_name("read_dirty.py")
        start = time.monotonic()
        count = int(output("/usr/bin/python3", script, path))
        return {"seconds": time.monotonic() - start, "bytes": count}


WAYS = {
    "snapvol": ours,
    "btrfs send | receive": btrfs_send,
    "qemu bitmap, read out only": qemu_bitmap,
    "rsync --inplace": rsync,
}


def run(directory, source, size, rounds, emit):
    """Every way, in turn."""
    for number in range(rounds):
        for name, way in WAYS.items():
            home = directory / "copy"
            shutil.rmtree(home, ignore_errors=True)
            home.mkdir()
            try:
                result = way(home, source, size, number + 1)
            except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
                result = {"failed": str(error)}
            finally:
                shutil.rmtree(home, ignore_errors=True)
            emit({"workload": "delta of 1 %", "server": name, "round": number, **result})
