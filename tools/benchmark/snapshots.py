"""What snapshots cost: pauses of writers while they are taken and deleted, reads of the
oldest of many, opening a store that has very many, memory."""

import json
import shutil
import statistics
import subprocess
import time

from .machine import NBD_LOAD, SNAPVOL, process, quiet, snapvol
from .servers import connects, ours

BLOCK = 4096


def fresh(directory):
    """An empty directory for one measurement."""
    home = directory / "snapshots"
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir()
    return home


def client(served, *words, export=None):
    """The load generator, started."""
    command = [NBD_LOAD, "--unix", served.socket, "--export", export or served.export, "--pid", served.pid]
    words = [str(word) for word in [*command, *words]]
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True)


def finished(child):
    """What the load generator says."""
    out, _ = child.communicate()
    if child.returncode:
        raise RuntimeError(f"the load failed: {out}")
    return json.loads(out)


def longest(pauses, begin, end):
    """The longest pause that touches a span of time, in seconds."""
    return max((length for at, length in pauses if at < end and at + length > begin), default=0.0)


def quantile(values, share):
    """Of sorted values, the one below which that share lies."""
    values = sorted(values)
    return values[min(len(values) - 1, int(len(values) * share))]


def taking(directory, source, count, emit):
    """Snapshots of a volume under full write load, one every 50 ms."""
    with ours(fresh(directory), source) as served:
        load = client(served, "--read", "0", "--seconds", count * 0.06 + 1)
        start = time.monotonic()
        time.sleep(0.5)
        spans, took = [], []
        for number in range(count):
            begin = time.monotonic()
            snapvol(served.store, "snapshot", f"v@s{number}")
            end = time.monotonic()
            spans.append((begin - start, end - start))
            took.append(end - begin)
            time.sleep(max(0, 0.05 - (end - begin)))
        result = finished(load)
    # The load's clock starts when it is connected, a little after ours.
    pauses = [longest(result["pauses"], begin - 0.05, end + 0.05) for begin, end in spans]
    emit(
        {
            "workload": "taking a snapshot under write load",
            "server": "snapvol",
            "round": 0,
            "snapshots": count,
            "pause_p50": quantile(pauses, 0.5),
            "pause_p99": quantile(pauses, 0.99),
            "command_p50": statistics.median(took),
            "latency_us": result["latency_us"],
        }
    )


def deleting(directory, source, emit):
    """The deletion of a snapshot whose every block is saved, while others are written."""
    with ours(fresh(directory), source, snapshot=True) as served:
        size = source.stat().st_size
        finished(client(served, "--read", "0", "--order", "once"))
        load = client(served, "--read", "0", "--seconds", 4)
        start = time.monotonic()
        time.sleep(1)
        begin = time.monotonic()
        snapvol(served.store, "delete", "v@before")
        end = time.monotonic()
        result = finished(load)
    emit(
        {
            "workload": "deleting a snapshot under write load",
            "server": "snapvol",
            "round": 0,
            "saved_blocks": size // BLOCK,
            "seconds": end - begin,
            "pause_max": longest(result["pauses"], begin - start - 0.05, end - start + 0.5),
            "latency_us": result["latency_us"],
        }
    )


def reading(directory, source, count, rounds, seconds, emit):
    """Random reads of the oldest and of the youngest of many snapshots."""
    with ours(fresh(directory), source) as served:
        for number in range(count):
            snapvol(served.store, "snapshot", f"v@s{number}")
            finished(client(served, "--read", "0", "--requests", 64, "--seed", number))
        for number in range(rounds):
            for which, name in [("oldest", "v@s0"), ("youngest", f"v@s{count - 1}")]:
                result = finished(client(served, "--seconds", seconds, "--seed", number, export=name))
                result.pop("pauses")
                emit({"workload": f"random read of the {which} of {count} snapshots", "server": "snapvol", "round": number, **result})


def opening(directory, volumes, snapshots, emit):
    """How long `serve` takes until it accepts connections to a store with very many snapshots."""
    store = fresh(directory) / "store"
    snapvol(store, "init")
    for volume in range(volumes):
        snapvol(store, "create", f"v{volume}", "--size", "1G")
    path = store / "nbd.sock"
    command = [SNAPVOL, "--store", store, "serve"]
    with process(command, lambda: path.exists() and connects(path)) as child:
        each = snapshots // volumes
        for number in range(each):
            for volume in range(volumes):
                words = [NBD_LOAD, "--unix", path, "--export", f"v{volume}", "--read", "0"]
                quiet(*words, "--requests", 4, "--seed", number * volumes + volume)
            snapvol(store, "snapshot", *[f"v{volume}@s{number}" for volume in range(volumes)])
        child.poll()
    for number in range(3):
        start = time.monotonic()
        with process(command, lambda: path.exists() and connects(path)):
            seconds = time.monotonic() - start
        emit(
            {
                "workload": f"opening {volumes} volumes with {each * volumes} snapshots",
                "server": "snapvol",
                "round": number,
                "seconds": seconds,
            }
        )


def run(directory, source, rounds, seconds, quick, emit):
    """All of it."""
    taking(directory, source, 40 if quick else 300, emit)
    deleting(directory, source, emit)
    reading(directory, source, 100 if quick else 1000, rounds, seconds, emit)
    opening(directory, 10 if quick else 100, 200 if quick else 10_000, emit)
