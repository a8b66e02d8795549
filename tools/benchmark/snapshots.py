"""What snapshots cost: pauses of writers while they are taken and deleted, reads of the
oldest of many, opening a store that has very many, memory, and the scan of large maps.

Pauses are seen from outside, as stretches of time in which a client with 32 writes under
way gets no reply at all. A shared machine makes some by itself; so the same is measured
over stretches of the same run in which nothing was asked of the store, and both are told."""

import contextlib
import json
import pathlib
import random
import shutil
import statistics
import subprocess
import tempfile
import time

from .machine import BIG_VOLUME, NBD_LOAD, SNAPVOL, control, process, quiet, snapvol
from .servers import Served, connects, fill, ours, settle, snapshot

BLOCK = 4096
GIB = 1 << 30


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


def finished(child, until=0.0):
    """What the load generator says; it must have run until then."""
    out, _ = child.communicate()
    if child.returncode:
        raise RuntimeError(f"the load failed: {out[:1000]}")
    result = json.loads(out)
    if result.pop("began") + result["seconds"] < until:
        raise RuntimeError("the load ended before what it was to be measured beside")
    return result


def longest(pauses, begin, end):
    """The longest pause that touches a span of time, in seconds."""
    return max((length for at, length in pauses if at < end and at + length > begin), default=0.0)


def quantile(values, share):
    """Of these values, the one below which that share lies."""
    values = sorted(values)
    return values[min(len(values) - 1, int(len(values) * share))]


def within(pauses, spans):
    """All pauses that touch one of these spans."""
    return [length for at, length in pauses if any(at < end and at + length > begin for begin, end in spans)]


def size_of(count):
    """Bytes in words."""
    return f"{count / (1 << 40):g} TiB" if count >= 1 << 40 else f"{count / GIB:g} GiB"


@contextlib.contextmanager
def served_large(directory, size, written):
    """A volume of that size, all of it in use, whose first `written` bytes are really there."""
    store = directory / "store"
    large(store, size)
    path = store / "nbd.sock"
    with process([SNAPVOL, "--store", store, "serve"], lambda: connects(path), orderly=False) as child:
        served = Served(socket=path, pid=child.pid, export="v", store=store)
        fill(served, written)
        yield served


def taking(directory, source, size, lasting, number, emit):
    """Snapshots of a volume under full write load, one every 60 ms. Each has its longest
    pause; the stretch of the same length half-way to the next one is what the machine does
    by itself. In a volume larger than the image the writes go to the part that is written."""
    written = source.stat().st_size
    home = fresh(directory)
    with ours(home, source) if size == written else served_large(home, size, written) as served:
        settle(directory)
        load = client(served, "--read", "0", "--range", written, "--seconds", lasting, "--pauses-from", 50)
        start = time.monotonic()
        time.sleep(0.5)
        spans, rest = [], []
        while time.monotonic() < start + lasting - 1:
            begin = time.monotonic()
            control(served.store, "snapshot", names=[f"v@s{len(spans)}"])
            end = time.monotonic()
            spans.append((begin, end))
            time.sleep(0.03)
            rest.append((time.monotonic(), time.monotonic() + end - begin))
            time.sleep(max(0.03, end - begin))
        result = finished(load)
    # What the load did not last for does not count.
    ended = max(at for at, _ in result["pauses"])
    spans = [span for span in spans if span[1] < ended]
    rest = [span for span in rest if span[1] < ended]
    pauses = result["pauses"]
    at_takes = [longest(pauses, *span) for span in spans]
    at_rest = [longest(pauses, *span) for span in rest]
    emit(
        {
            "workload": "taking a snapshot" + (" of a large volume" if size > written else "") + " under write load",
            "server": "snapvol",
            "round": number,
            "setup": f"{len(spans)} snapshots of {size_of(size)}, 32 random writes to {size_of(written)} of it under way",
            "pause_p50": quantile(at_takes, 0.5),
            "pause_p99": quantile(at_takes, 0.99),
            "pause_max": max(at_takes),
            "rest_p50": quantile(at_rest, 0.5),
            "rest_p99": quantile(at_rest, 0.99),
            "rest_max": max(at_rest),
            "command_p50": statistics.median(end - begin for begin, end in spans),
            "latency_us": result["latency_us"],
        }
    )


def deleting(directory, size, number, emit):
    """The deletion of a snapshot that has a before-image of every block, twice: its images
    pass on to an older snapshot; and then that one, which none is older than. The volume is
    written meanwhile. All pauses while the deletion runs count."""
    home = fresh(directory)
    store = home / "store"
    path = store / "nbd.sock"
    command = [SNAPVOL, "--store", store, "serve", "--create", f"v:{size}"]
    with process(command, lambda: connects(path)) as child:
        served = Served(socket=path, pid=child.pid, export="v", store=store)
        fill(served, size)
        for name in ["older", "full"]:
            snapshot(served, name)
        quiet(NBD_LOAD, "--unix", path, "--export", "v", "--read", "0", "--order", "once")
        snapshot(served, "younger")
        for name, what in [("full", "its images pass on"), ("older", "its images go")]:
            load = client(served, "--read", "0", "--seconds", 4, "--pauses-from", 0)
            time.sleep(1)
            begin = time.monotonic()
            control(store, "delete-snapshots", names=[f"v@{name}"])
            end = time.monotonic()
            result = finished(load, end)
            during = within(result["pauses"], [(begin, end)])
            before = within(result["pauses"], [(begin - 0.9, begin)])
            emit(
                {
                    "workload": f"deleting a snapshot under write load, {what}",
                    "server": "snapvol",
                    "round": number,
                    "setup": f"{size // BLOCK:,} before-images, 32 random writes under way",
                    "seconds": end - begin,
                    "pause_p50": quantile(during, 0.5),
                    "pause_p99": quantile(during, 0.99),
                    "pause_max": max(during),
                    "rest_p50": quantile(before, 0.5),
                    "rest_p99": quantile(before, 0.99),
                    "rest_max": max(before),
                    "latency_us": result["latency_us"],
                }
            )
            settle(home)


def reading(directory, source, count, rounds, seconds, emit):
    """Random reads of the oldest and of the youngest of many snapshots."""
    with ours(fresh(directory), source) as served:
        for number in range(count):
            control(served.store, "snapshot", names=[f"v@s{number}"])
            finished(client(served, "--read", "0", "--requests", 64, "--seed", number))
        settle(directory)
        for number in range(rounds):
            for which, name in [("oldest", "v@s0"), ("youngest", f"v@s{count - 1}")]:
                finished(client(served, "--seconds", seconds / 5, "--seed", 1000 + number, export=name))
                result = finished(client(served, "--seconds", seconds, "--seed", number, export=name))
                result.pop("pauses")
                row = {"workload": f"random read of the {which} snapshot", "server": "snapvol", "round": number}
                emit({**row, "setup": f"{count} snapshots of {size_of(source.stat().st_size)}", **result})


def opening(directory, volumes, snapshots, rounds, emit):
    """How long `serve` takes until it accepts connections to a store with very many snapshots,
    each with four blocks of its own: after an orderly end, and after a kill."""
    import nbd

    store = fresh(directory) / "store"
    snapvol(store, "init")
    path = store / "nbd.sock"
    command = [SNAPVOL, "--store", store, "serve"]
    chance = random.Random(1)
    each = snapshots // volumes
    with process(command, lambda: connects(path)):
        clients = []
        for volume in range(volumes):
            options = {"size": GIB, "block_size": BLOCK, "granularity": 1, "on_full": "freeze"}
            control(store, "create", volume=f"v{volume}", options=options)
            client = nbd.NBD()
            client.connect_uri(f"nbd+unix:///v{volume}?socket={path}")
            clients.append(client)
        for number in range(each):
            for client in clients:
                for _ in range(4):
                    client.pwrite(chance.randbytes(BLOCK), chance.randrange(GIB // BLOCK) * BLOCK)
            control(store, "snapshot", names=[f"v{volume}@s{number}" for volume in range(volumes)])
        for client in clients:
            client.shutdown()
    for number in range(rounds):
        for how in ["an orderly end", "a kill"]:
            start = time.monotonic()
            with process(command, lambda: connects(path)) as child:
                seconds = time.monotonic() - start
                resident = memory(child.pid)["VmRSS"]
                # What the next one finds.
                if how == "an orderly end":
                    child.kill()
                    child.wait()
            emit(
                {
                    "workload": f"opening a store after {how}",
                    "server": "snapvol",
                    "round": number,
                    "setup": f"{volumes} volumes with {each * volumes:,} snapshots",
                    "seconds": seconds,
                    "resident_mib": resident,
                }
            )


def memory(pid):
    """Memory of a process in MiB."""
    found = {}
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name in ("VmRSS", "RssAnon", "RssFile", "RssShmem", "VmHWM"):
            found[name] = int(rest.split()[0]) / 1024
    return found


def large(store, size, *words):
    """A volume of that size in a new store, all of it in use, its data a hole."""
    snapvol(store, "init")
    snapvol(store, "create", "v", "--size", size)
    quiet(BIG_VOLUME, "make", store / "volumes" / "v", *words)


def resident(_directory, size, emit):
    """Memory of a server whose volume is all in use, after one block in a hundred was written
    since a snapshot. The store lies in memory, and what the writes store is punched out of
    the files as they go: nobody reads it, and no disk need hold it."""
    with tempfile.TemporaryDirectory(prefix="snapvol-bench-", dir="/dev/shm") as home:
        store = pathlib.Path(home) / "store"
        large(store, size)
        path = store / "nbd.sock"
        with process([SNAPVOL, "--store", store, "serve"], lambda: connects(path), orderly=False) as child:
            control(store, "snapshot", names=["v@before"])
            served = Served(socket=path, pid=child.pid, export="v", store=store)
            left, part, seed = size // BLOCK // 100, 100_000, 0
            while left:
                seed += 1
                finished(client(served, "--read", "0", "--requests", min(left, part), "--seed", seed))
                left -= min(left, part)
                punch(store / "volumes" / "v")
            time.sleep(2)
            now = memory(child.pid)
    emit(
        {
            "workload": "memory of a server",
            "server": "snapvol",
            "round": 0,
            "setup": f"{size_of(size)} in use, 1 % of the blocks written at random since the snapshot",
            "resident_mib": now["VmHWM"],
            "resident_last_mib": now["VmRSS"],
            "anonymous_mib": now["RssAnon"],
            "mapped_mib": now["RssFile"] + now["RssShmem"],
        }
    )


def punch(volume):
    """Gives the data in the files of a volume back to the disk."""
    for path in [volume / "clone", *sorted((volume / "save").iterdir())[:-1]]:
        quiet("fallocate", "--punch-hole", "--offset", "0", "--length", path.stat().st_size, path)


def scanning(directory, size, snapshots, rounds, emit):
    """The delta from the oldest to the youngest of many snapshots, between which one block in a
    hundred was changed, from the maps alone."""
    store = fresh(directory) / "store"
    changed = size // BLOCK // 100
    large(store, size, "--snapshots", snapshots + 1, "--changed", changed)
    for number in range(rounds):
        result = json.loads(quiet(BIG_VOLUME, "scan", store / "volumes" / "v"))
        blocks = result["changed_bytes"] // BLOCK
        emit(
            {
                "workload": "delta scan of maps",
                "server": "snapvol",
                "round": number,
                "setup": f"{size_of(size)}, {changed:,} blocks changed at random over {snapshots} snapshots",
                "seconds": result["seconds"],
                "resident_mib": result["resident_after"] / (1 << 20),
                "anonymous_mib": result["anonymous_after"] / (1 << 20),
                "bytes_per_block": (result["anonymous_after"] - result["anonymous_before"]) / blocks,
            }
        )


def run(directory, source, rounds, seconds, quick, emit):
    """All of it. What fails is told in the page, and does not keep the rest from being
    measured."""

    def attempt(measurement, *words):
        try:
            measurement(directory, *words, emit)
        except (RuntimeError, OSError, ValueError, subprocess.CalledProcessError) as error:
            emit({"workload": f"{measurement.__name__} of snapshots", "server": "snapvol", "round": 0, "failed": str(error)})

    for number in range(rounds):
        for size in [source.stat().st_size, 1 << 40]:
            attempt(taking, source, size, 4 if quick else 25, number)
    for number in range(rounds):
        attempt(deleting, GIB // 4 if quick else 4 * GIB, number)
    attempt(reading, source, 100 if quick else 1000, 3 if quick else 2 * rounds, seconds / 2)
    attempt(opening, 10 if quick else 100, 200 if quick else 10_000, rounds)
    attempt(resident, 64 * GIB if quick else 1 << 40)
    # The largest file of ext4 is a block short of 16 TiB.
    attempt(scanning, 1 << 40 if quick else (16 << 40) - BLOCK, 100, rounds)
    shutil.rmtree(directory / "snapshots", ignore_errors=True)
