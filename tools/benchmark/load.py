"""The data plane: requests a second, latency and processor time, each server in turn."""

import dataclasses
import json
import subprocess

from .machine import NBD_LOAD
from .servers import serve, settle, snapshot

OURS = ["snapvol", "snapvol, plain engine"]
FILES = [*OURS, "nbdkit file", "qemu-nbd raw", "nbd-server"]
STEADY = [*FILES, "snapvol's protocol over memory", "qemu-nbd raw, io_uring"]
FIRST = [
    *OURS,
    "nbdkit cow",
    "qcow2 overlay 64 KiB",
    "qcow2 extended L2",
    "qcow2 internal snapshot",
    "nbd-server copyonwrite",
]
READ_BACK = 500


@dataclasses.dataclass
class Workload:
    """What the client does, and to whom."""

    name: str
    servers: list
    request: str = "4K"
    depth: int = 32
    read: int = 100
    order: str = "random"
    flush_every: int = 0
    apart: bool = False  # server and client each on a processor of its own
    first: bool = False  # every block at most once, on a server that has seen no write


WORKLOADS = [
    Workload("random read", STEADY),
    Workload("random write", STEADY, read=0),
    Workload("random read, one at a time", FILES, depth=1, apart=True),
    Workload("random write, one at a time", FILES, depth=1, read=0, apart=True),
    Workload("sequential read", FILES, request="128K", depth=16, order="sequential"),
    Workload("sequential write", FILES, request="128K", depth=16, order="sequential", read=0),
    Workload("random write, a flush every 32", FILES, read=0, flush_every=32),
    Workload("first write", FIRST, read=0, order="once", first=True),
    Workload("first write, a flush every 32", FIRST, read=0, order="once", flush_every=32, first=True),
    Workload("large first write", FIRST, request="128K", depth=16, read=0, order="once", first=True),
]
# The whole image once: what a server sets up at the first touch of a page, and a processor
# cache has, is there before steady reads are measured.
WARM_UP = Workload("warm-up", [], request="128K", depth=16, order="sequential")
# What our own volume does before the snapshot whose first writes are measured; their
# latency is compared with it.
STEADY_BEFORE = Workload("random write before the snapshot", OURS, read=0)


def measure(workload, served, size, seconds, seed, connections=1, requests=None):
    """One run of the load generator: so many seconds, or so many requests."""
    words = [NBD_LOAD, "--unix", served.socket, "--export", served.export, "--pid", served.pid]
    words += ["--request", workload.request, "--depth", workload.depth, "--read", workload.read]
    words += ["--order", workload.order, "--flush-every", workload.flush_every, "--range", size]
    words += ["--requests", requests] if requests else ["--seconds", seconds]
    words += ["--seed", seed, "--connections", connections, "--read-back", READ_BACK]
    command = [str(word) for word in words]
    if workload.apart:
        command = ["taskset", "-c", "1", *command]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return {"failed": done.stderr.strip() or done.stdout.strip()}
    result = json.loads(done.stdout)
    result.pop("began")
    result["longest_pause"] = max((length for _, length in result.pop("pauses")), default=0)
    return result


def one(workload, server, directory, image, seconds, seed):
    """The rows of one server at one workload."""
    size = image.stat().st_size
    with serve(server, directory, image, 0 if workload.apart else None) as served:
        if not workload.first:
            if workload.read:
                measure(WARM_UP, served, size, None, seed, requests=size // (128 << 10))
            measure(workload, served, size, seconds / 5, seed + 10_000)
            settle(directory)
        elif served.store:
            if workload.name == "first write":
                yield STEADY_BEFORE.name, measure(STEADY_BEFORE, served, size, seconds, seed + 10_000)
            snapshot(served, "before")
        yield workload.name, measure(workload, served, size, seconds, seed)


def run(directory, steady, first, rounds, seconds, only, emit):
    """All workloads, round after round, the servers in turn within each; `steady` and `first`
    are the images."""
    for number in range(rounds):
        for workload in WORKLOADS:
            if only and only not in workload.name:
                continue
            image = first if workload.first else steady
            # Whoever comes first meets another machine than whoever comes last.
            shift = number % len(workload.servers)
            for server in workload.servers[shift:] + workload.servers[:shift]:
                try:
                    rows = list(one(workload, server, directory, image, seconds, number + 1))
                except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
                    rows = [(workload.name, {"failed": str(error)})]
                for name, result in rows:
                    emit({"workload": name, "server": server, "round": number, **result})
