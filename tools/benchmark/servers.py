"""The servers, each ready for a client on a unix socket, over the same image.

All images are written in pieces of 4 KiB: large writes fill the page cache with large
folios, in which small writes are dear, and whoever had his image prepared otherwise would
look faster or slower than he is. Overlays share one image, which they only read. All use
the page cache, and a flush is an fdatasync or what the server makes of it. Before the
client starts, everything dirty goes to the disk."""

import contextlib
import dataclasses
import os
import pathlib
import shutil
import subprocess

from .machine import NBD_LOAD, NBD_MEMORY, SNAPVOL, daemon, process, quiet, snapvol


@dataclasses.dataclass
class Served:
    """A running server."""

    socket: pathlib.Path
    pid: int
    export: str = ""
    store: pathlib.Path | None = None


def image(path, size):
    """An image whose blocks are all stamped."""
    if not path.exists() or path.stat().st_size != size:
        quiet(NBD_LOAD, "--image", path, "--range", size)
    return path


def connects(path):
    """Whether somebody listens on a unix socket, without connecting: some servers serve just one
    client."""
    with open("/proc/net/unix") as sockets:
        for line in sockets:
            words = line.split()
            if words[-1] == str(path) and int(words[3], 16) & 0x10000:
                return True
    return False


def copy(source, target):
    """Copies an image as all are written."""
    quiet("dd", f"if={source}", f"of={target}", "bs=4k", "status=none")
    return target


def fill(served, size):
    """Writes every block of a served volume, a block a request, and waits until it is on the
    disk."""
    words = ["--unix", served.socket, "--export", served.export, "--read", "0", "--order", "sequential"]
    quiet(NBD_LOAD, *words, "--requests", size // 4096, "--flush-every", size // 4096, "--range", size)


@contextlib.contextmanager
def started(command, path, cpu, **served):
    """A server that is not a daemon, once its socket answers. It is killed in the end: what
    it would still tidy up is thrown away."""
    with process(command, lambda: connects(path), cpu=cpu, orderly=False) as child:
        yield Served(socket=path, pid=child.pid, **served)


@contextlib.contextmanager
def ours(directory, source, cpu=None, io="auto"):
    """snapvol, with the image written to it as a client does."""
    store = directory / "store"
    path = store / "nbd.sock"
    size = source.stat().st_size
    command = [SNAPVOL, "--store", store, "serve", "--create", f"v:{size}", "--io", io]
    with process(command, lambda: connects(path), cpu=cpu, orderly=False) as child:
        served = Served(socket=path, pid=child.pid, export="v", store=store)
        fill(served, size)
        yield served


def plain(directory, source, cpu=None):
    """snapvol without io_uring."""
    return ours(directory, source, cpu, io="plain")


@contextlib.contextmanager
def memory(directory, source, cpu=None):
    """Our protocol over blocks in memory: what socket and protocol alone cost."""
    path = directory / "sock"
    size = source.stat().st_size
    command = [NBD_MEMORY, path]
    with process(command, lambda: connects(path), cpu=cpu, stdin=subprocess.PIPE) as child:
        served = Served(socket=path, pid=child.pid, export="disk")
        fill(served, size)
        yield served


def nbdkit(directory, source, cpu=None, filters=()):
    """nbdkit with its file plug-in."""
    disk = source if filters else copy(source, directory / "disk")
    path = directory / "sock"
    options = [f"--filter={name}" for name in filters]
    # Its overlay lies where temporary files do.
    os.environ["TMPDIR"] = str(directory)
    return started(["nbdkit", "-f", "-U", path, *options, "file", disk], path, cpu)


def nbdkit_cow(directory, source, cpu=None):
    """nbdkit with its copy-on-write filter."""
    return nbdkit(directory, source, cpu, filters=["cow"])


def qemu(disk, kind, directory, cpu, *options):
    """qemu-nbd on an image of that kind."""
    path = directory / "sock"
    command = ["qemu-nbd", "-t", "-f", kind, "--cache=writeback", *options, "-e", "8", "-k", path, disk]
    return started(command, path, cpu)


def qemu_raw(directory, source, cpu=None):
    """qemu-nbd on a raw image."""
    return qemu(copy(source, directory / "disk"), "raw", directory, cpu)


def qemu_uring(directory, source, cpu=None):
    """The same on io_uring."""
    return qemu(copy(source, directory / "disk"), "raw", directory, cpu, "--aio=io_uring")


def overlay(directory, source, cpu, options):
    """qemu-nbd on a qcow2 overlay over a raw image."""
    top = directory / "top.qcow2"
    quiet("qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", source, "-o", options, top)
    return qemu(top, "qcow2", directory, cpu)


def qcow2_64k(directory, source, cpu=None):
    """A qcow2 overlay with clusters of 64 KiB."""
    return overlay(directory, source, cpu, "cluster_size=64K")


def qcow2_extended(directory, source, cpu=None):
    """A qcow2 overlay with subclusters of 4 KiB."""
    return overlay(directory, source, cpu, "cluster_size=128K,extended_l2=on")


def qcow2_internal(directory, source, cpu=None):
    """A qcow2 image with a snapshot inside."""
    disk = directory / "disk.qcow2"
    quiet("qemu-img", "convert", "-f", "raw", "-O", "qcow2", source, disk)
    quiet("qemu-img", "snapshot", "-c", "before", disk)
    return qemu(disk, "qcow2", directory, cpu)


@contextlib.contextmanager
def nbd_server(directory, source, cpu=None, extra="", threads=16):
    """The NBD project's own server."""
    disk = directory / "disk"
    if extra:  # Its overlay lies beside the image, which it only reads.
        os.link(source, disk)
    else:
        copy(source, disk)
    path, config, pid_file = directory / "sock", directory / "config", directory / "pid"
    config.write_text(
        f"[generic]\nallowlist = true\nunixsock = {path}\nmax_threads = {threads}\n"
        f"[disk]\nexportname = {disk}\nflush = true\n{extra}"
    )
    command = ["nbd-server", "-C", config, "-p", pid_file]
    with daemon(command, pid_file, lambda: connects(path), cpu=cpu) as pid:
        yield Served(socket=path, pid=pid, export="disk")


def nbd_server_cow(directory, source, cpu=None):
    """The same with its copy on write, on one thread: with several it answers with other data
    than was written."""
    return nbd_server(directory, source, cpu, extra="copyonwrite = true\n", threads=1)


SERVERS = {
    "snapvol": ours,
    "snapvol, plain engine": plain,
    "snapvol's protocol over memory": memory,
    "nbdkit file": nbdkit,
    "nbdkit cow": nbdkit_cow,
    "qemu-nbd raw": qemu_raw,
    "qemu-nbd raw, io_uring": qemu_uring,
    "qcow2 overlay 64 KiB": qcow2_64k,
    "qcow2 extended L2": qcow2_extended,
    "qcow2 internal snapshot": qcow2_internal,
    "nbd-server": nbd_server,
    "nbd-server copyonwrite": nbd_server_cow,
}


@contextlib.contextmanager
def serve(name, directory, source, cpu=None):
    """One of the servers, in a directory of its own that goes with it."""
    home = directory / "server"
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    try:
        with SERVERS[name](home, source, cpu) as served:
            settle(home)
            yield served
    finally:
        shutil.rmtree(home, ignore_errors=True)
        # What is removed is discarded on the disk with the next commit: not in the next one's time.
        subprocess.run(["sync", "-f", str(directory)], check=True)


def settle(directory):
    """What is dirty in the files of a directory goes to the disk."""
    for path in [path for path in directory.rglob("*") if path.is_file()]:
        # A server may remove a file of its own at any time.
        with contextlib.suppress(FileNotFoundError):
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)


def snapshot(served, name):
    """A snapshot of our volume, and what follows it on the disk."""
    snapvol(served.store, "snapshot", f"v@{name}")
    settle(served.store)
