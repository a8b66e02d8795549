"""The servers, each over a fresh copy of the same image, ready for a client on a unix socket."""

import contextlib
import dataclasses
import pathlib
import shutil
import subprocess

from .machine import NBD_LOAD, SNAPVOL, process, quiet, snapvol


@dataclasses.dataclass
class Served:
    """A running server."""

    socket: pathlib.Path
    pid: int
    export: str = ""
    store: pathlib.Path | None = None


def image(path, size):
    """An image whose blocks are all stamped, written in small pieces."""
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
    """Copies an image in pieces of 64 KiB, as every image here is written: large writes fill the
    page cache with large folios, in which small writes are dear."""
    with open(source, "rb") as reader, open(target, "wb", buffering=0) as writer:
        while piece := reader.read(64 << 10):
            writer.write(piece)
    return target


@contextlib.contextmanager
def started(command, path, cpu, **served):
    """A server that is not a daemon, once its socket answers."""
    with process(command, lambda: connects(path), cpu=cpu) as child:
        yield Served(socket=path, pid=child.pid, **served)


@contextlib.contextmanager
def ours(directory, source, cpu=None, io="auto", snapshot=False):
    """snapvol, with the image written to it as a client does."""
    store = directory / "store"
    path = store / "nbd.sock"
    size = source.stat().st_size
    command = [SNAPVOL, "--store", store, "serve", "--create", f"v:{size}", "--io", io]
    with process(command, lambda: path.exists() and connects(path), cpu=cpu) as child:
        served = Served(socket=path, pid=child.pid, export="v", store=store)
        words = ["--unix", path, "--export", "v", "--order", "sequential", "--request", "64K"]
        quiet(NBD_LOAD, *words, "--read", "0", "--requests", size // (64 << 10), "--depth", "4")
        if snapshot:
            snapvol(store, "snapshot", "v@before")
        yield served


def plain(directory, source, cpu=None, **_):
    """snapvol without io_uring."""
    return ours(directory, source, cpu, io="plain")


def after_snapshot(directory, source, cpu=None, **_):
    """snapvol, every block needed by a snapshot."""
    return ours(directory, source, cpu, snapshot=True)


def nbdkit(directory, source, cpu=None, filters=()):
    """nbdkit with its file plug-in."""
    disk = copy(source, directory / "disk")
    path = directory / "sock"
    options = [f"--filter={name}" for name in filters]
    return started(["nbdkit", "-f", "-U", path, *options, "file", disk], path, cpu)


def nbdkit_cow(directory, source, cpu=None):
    """nbdkit with its copy-on-write filter."""
    return nbdkit(directory, source, cpu, filters=["cow"])


def qemu(disk, kind, directory, cpu):
    """qemu-nbd on an image of that kind."""
    path = directory / "sock"
    command = ["qemu-nbd", "-t", "-f", kind, "--cache=writeback", "-e", "8", "-k", path, disk]
    return started(command, path, cpu)


def qemu_raw(directory, source, cpu=None):
    """qemu-nbd on a raw image."""
    return qemu(copy(source, directory / "disk"), "raw", directory, cpu)


def overlay(directory, source, cpu, options):
    """qemu-nbd on a qcow2 overlay over a raw image."""
    disk = copy(source, directory / "disk")
    top = directory / "top.qcow2"
    quiet("qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", disk, "-o", options, top)
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


def nbd_server(directory, source, cpu=None, extra=""):
    """The NBD project's own server."""
    disk = copy(source, directory / "disk")
    path = directory / "sock"
    config = directory / "config"
    config.write_text(
        f"[generic]\nallowlist = true\nunixsock = {path}\nmax_threads = 16\n"
        f"[disk]\nexportname = {disk}\nflush = true\n{extra}"
    )
    command = ["nbd-server", "-d", "-C", config]
    return started(command, path, cpu, export="disk")


def nbd_server_cow(directory, source, cpu=None):
    """The same with its copy on write."""
    return nbd_server(directory, source, cpu, extra="copyonwrite = true\n")


SERVERS = {
    "snapvol": ours,
    "snapvol plain": plain,
    "snapvol, first writes": after_snapshot,
    "nbdkit file": nbdkit,
    "nbdkit cow": nbdkit_cow,
    "qemu-nbd raw": qemu_raw,
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
    subprocess.run(["sync", "-f", str(home)], check=True)
    try:
        with SERVERS[name](home, source, cpu) as served:
            yield served
    finally:
        shutil.rmtree(home, ignore_errors=True)
