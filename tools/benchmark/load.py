"""The data plane: requests a second, latency and processor time, each server in turn."""

import dataclasses
import json
import subprocess

from .machine import NBD_LOAD
from .servers import serve

STEADY = ["snapvol", "snapvol plain", "nbdkit file", "qemu-nbd raw", "nbd-server"]
FIRST = [
    "snapvol, first writes",
    "nbdkit cow",
    "qcow2 overlay 64 KiB",
    "qcow2 extended L2",
    "qcow2 internal snapshot",
    "nbd-server copyonwrite",
]


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
    slow: float = 1.0  # share of the usual time


WORKLOADS = [
    Workload("random read", STEADY),
    Workload("random write", STEADY, read=0),
    Workload("random read, one at a time", STEADY, depth=1, apart=True),
    Workload("random write, one at a time", STEADY, depth=1, read=0, apart=True),
    Workload("sequential read", STEADY, request="128K", depth=16, order="sequential"),
    Workload("sequential write", STEADY, request="128K", depth=16, order="sequential", read=0),
    Workload("random write, a flush every 32", STEADY, read=0, flush_every=32),
    Workload("first write", FIRST, read=0, order="once", first=True),
    Workload("first write, a flush every 32", FIRST, read=0, order="once", flush_every=32, first=True),
    Workload("large first write", FIRST, request="128K", depth=16, read=0, order="once", first=True),
]


def arguments(workload, served, seconds, seed):
    """The load generator's words."""
    words = [NBD_LOAD, "--unix", served.socket, "--export", served.export, "--pid", served.pid]
    words += ["--request", workload.request, "--depth", workload.depth, "--read", workload.read]
    words += ["--order", workload.order, "--flush-every", workload.flush_every]
    return [str(word) for word in [*words, "--seconds", seconds, "--seed", seed]]


def measure(workload, served, seconds, seed):
    """One run of the load generator."""
    command = arguments(workload, served, seconds, seed)
    if workload.apart:
        command = ["taskset", "-c", "1", *command]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return {"failed": done.stderr.strip() or done.stdout.strip()}
    result = json.loads(done.stdout)
    result["longest_pause"] = max((length for _, length in result.pop("pauses")), default=0)
    return result


def run(directory, source, rounds, seconds, only, emit):
    """All workloads, round after round, the servers in turn within each."""
    for number in range(rounds):
        for workload in WORKLOADS:
            if only and only not in workload.name:
                continue
            # Whoever comes first meets another machine than whoever comes last.
            shift = number % len(workload.servers)
            for server in workload.servers[shift:] + workload.servers[:shift]:
                try:
                    with serve(server, directory, source, 0 if workload.apart else None) as served:
                        if not workload.first:
                            measure(workload, served, seconds / 5, 10_000 + number)
                        result = measure(workload, served, seconds, number + 1)
                except (RuntimeError, OSError) as error:
                    result = {"failed": str(error)}
                emit({"workload": workload.name, "server": server, "round": number, **result})
