"""What things cost as something grows: rows of series, and a plot for each figure."""

import json
import pathlib
import shutil
import statistics
import subprocess
import time

from . import svg
from .load import Workload, measure
from .machine import BIG_VOLUME, NBD_LOAD, SNAPVOL, control, process, quiet, snapvol
from .servers import Served, connects, ours, serve, settle

BLOCK = 4096
GIB, TIB = 1 << 30, 1 << 40
SIDES = ["snapvol", "nbdkit file"]


def row(series, what, x, figure, value):
    """One point of one curve."""
    return {"workload": f"growth, {series}", "series": series, "server": what, "x": x, "figure": figure, "y": value}


def fresh(directory):
    """An empty directory."""
    home = directory / "growth"
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir()
    return home


def by_load(directory, source, quick, seconds, emit):
    """Requests a second and latency by queue depth, and by connections of depth 8."""
    depths = [1, 32, 128] if quick else [1, 2, 4, 8, 16, 32, 64, 128]
    connections = [1, 16] if quick else [1, 2, 4, 8, 16]
    size = source.stat().st_size
    points = [("queue depth", depth, 1, depth) for depth in depths]
    points += [("connections", count, count, 8) for count in connections]
    points = [(kind, read, point) for kind, read in [("reads", 100), ("writes", 0)] for point in points]
    (one, other), results = SIDES, {}
    with serve(one, directory / "one", source) as first, serve(other, directory / "other", source) as second:
        for repetition in range(1 if quick else 3):
            for kind, read, (series, x, count, depth) in points:
                for server, served in [(one, first), (other, second)]:
                    load = Workload("", [], depth=depth, read=read)
                    result = measure(load, served, size, seconds / 4, x + 1000 * repetition, connections=count)
                    if "failed" in result:
                        raise RuntimeError(result["failed"])
                    figures = [("rate", result["per_second"]), ("p99", result["latency_us"]["p99"])]
                    for figure, value in figures:
                        results.setdefault((series, f"{server}, {kind}", x, figure), []).append(value)
    for (series, what, x, figure), values in results.items():
        emit(row(series, what, x, figure, statistics.median(values)))


def started(store):
    """The store served, and how long that took."""
    path = store / "nbd.sock"
    start = time.monotonic()
    server = process([SNAPVOL, "--store", store, "serve"], lambda: connects(path))
    return server, start, path


def taken(store, prefix, count=5):
    """The median time of a take."""
    times = []
    for number in range(count):
        start = time.monotonic()
        control(store, "snapshot", names=[f"v@{prefix}{number}"])
        times.append(time.monotonic() - start)
    return statistics.median(times)


def by_size(directory, _source, quick, _seconds, emit):
    """Volumes of all sizes that are all in use, with 100,000 blocks changed between two
    snapshots: opening, a take, a first write."""
    # The largest file of ext4 is a block short of 16 TiB.
    sizes = [GIB, TIB] if quick else [GIB, 16 * GIB, 128 * GIB, TIB, 4 * TIB, 16 * TIB - BLOCK]
    for size in sizes:
        store = fresh(directory) / "store"
        snapvol(store, "init")
        snapvol(store, "create", "v", "--size", size)
        quiet(BIG_VOLUME, "make", store / "volumes" / "v", "--snapshots", 2, "--changed", 100_000)
        settle(directory)
        server, start, path = started(store)
        with server as child:
            emit(row("volume size", "open", size, "seconds", time.monotonic() - start))
            emit(row("volume size", "take", size, "seconds", taken(store, "t")))
            served = Served(socket=path, pid=child.pid, export="v", store=store)
            result = measure(Workload("", [], read=0), served, size, None, 1, requests=8000)
            if "failed" in result:
                raise RuntimeError(result["failed"])
            emit(row("volume size", "first write, server CPU", size, "cpu", result["server_us_per_request"]))
        seconds_of_scan = json.loads(quiet(BIG_VOLUME, "scan", store / "volumes" / "v"))["seconds"]
        emit(row("volume size", "delta scan", size, "seconds", seconds_of_scan))


def by_snapshots(directory, source, quick, seconds, emit):
    """A volume with ever more snapshots, each with 64 blocks of its own: opening, a take,
    reads of the oldest and of the volume itself."""
    counts = [1, 50] if quick else [1, 10, 100, 300, 1000, 3000]
    size = source.stat().st_size
    home = fresh(directory)
    there = 0
    store = home / "store"
    with ours(home, source) as served:
        pass
    for count in counts:
        server, start, path = started(store)
        with server as child:
            served = Served(socket=path, pid=child.pid, export="v", store=store)
            words = ["--unix", path, "--export", "v", "--read", "0", "--requests", "64"]
            while there < count:
                control(store, "snapshot", names=[f"v@s{there}"])
                quiet(NBD_LOAD, *words, "--seed", there)
                there += 1
            settle(directory)
            emit(row("snapshots", "take", count, "seconds", taken(store, f"t{count}-", 3)))
            for what, export in [("of the oldest snapshot", "v@s0"), ("of the volume", "v")]:
                served.export = export
                measure(Workload("", []), served, size, seconds / 4, count + 1)
                result = measure(Workload("", []), served, size, seconds / 2, count)
                if "failed" in result:
                    raise RuntimeError(result["failed"])
                emit(row("snapshots", f"reads {what}", count, "rate", result["per_second"]))
        server, start, path = started(store)
        with server:
            emit(row("snapshots", "open", count, "seconds", time.monotonic() - start))
        there += 3


def by_change(directory, source, quick, _seconds, emit):
    """Deltas of ever more blocks: the scan of maps of 1 TiB over ten snapshots, and a delta with
    its data, sent to nobody."""
    for changed in [1000, 100_000] if quick else [1000, 10_000, 100_000, 1_000_000, 10_000_000]:
        store = fresh(directory) / "store"
        snapvol(store, "init")
        snapvol(store, "create", "v", "--size", TIB)
        quiet(BIG_VOLUME, "make", store / "volumes" / "v", "--snapshots", 11, "--changed", changed)
        times = [json.loads(quiet(BIG_VOLUME, "scan", store / "volumes" / "v"))["seconds"] for _ in range(3)]
        emit(row("changed blocks", "scan of maps, 1 TiB", changed, "seconds", statistics.median(times)))
    blocks = source.stat().st_size // BLOCK
    with ours(fresh(directory), source) as served:
        words = ["--unix", served.socket, "--export", "v", "--read", "0", "--order", "once"]
        for number, share in enumerate([0.01, 0.1] if quick else [0.001, 0.01, 0.1, 0.5]):
            control(served.store, "snapshot", names=[f"v@a{number}"])
            quiet(NBD_LOAD, *words, "--requests", int(blocks * share), "--seed", number)
            control(served.store, "snapshot", names=[f"v@b{number}"])
            settle(directory)
            start = time.monotonic()
            with open("/dev/null", "wb") as nobody:
                command = [SNAPVOL, "--store", served.store, "send", f"v@b{number}", "--from", f"a{number}"]
                subprocess.run([str(word) for word in command], stdout=nobody, check=True)
            emit(row("changed blocks", "send", int(blocks * share), "seconds", time.monotonic() - start))


def run(directory, source, quick, seconds, emit):
    """All of it. What fails leaves its plots short, and does not keep the rest from being
    measured."""
    for series in [by_load, by_size, by_snapshots, by_change]:
        try:
            series(directory, source, quick, seconds, emit)
        except (RuntimeError, OSError, ValueError, subprocess.CalledProcessError) as error:
            emit({"workload": f"growth, {series.__name__}", "server": "snapvol", "round": 0, "failed": str(error)})
    shutil.rmtree(directory / "growth", ignore_errors=True)


SIZES = {GIB: "1 GiB", 16 * GIB: "16 GiB", 64 * GIB: "64 GiB", 128 * GIB: "128 GiB", TIB: "1 TiB", 4 * TIB: "4 TiB", 16 * TIB - BLOCK: "16 TiB"}
# Name of the file, series, figure, title, x axis, y axis, names on the x axis.
PLOTS = [
    ("depth-rate", "queue depth", "rate", "4 KiB requests by queue depth", "requests under way", "requests a second", "x"),
    ("depth-p99", "queue depth", "p99", "99th percentile of latency by queue depth", "requests under way", "microseconds", "x"),
    ("connections-rate", "connections", "rate", "4 KiB requests by connections", "connections, 8 requests under way on each", "requests a second", "x"),
    ("connections-p99", "connections", "p99", "99th percentile of latency by connections", "connections, 8 requests under way on each", "microseconds", "x"),
    ("size-time", "volume size", "seconds", "Time by volume size, all in use, 100,000 blocks changed", "volume size", "seconds", SIZES),
    ("size-cpu", "volume size", "cpu", "A first write by volume size", "volume size", "microseconds of server CPU", SIZES),
    ("snapshots-time", "snapshots", "seconds", "Time by number of snapshots", "snapshots of the volume", "seconds", None),
    ("snapshots-rate", "snapshots", "rate", "4 KiB random reads by number of snapshots", "snapshots of the volume", "requests a second", None),
    ("change-time", "changed blocks", "seconds", "A delta by changed blocks", "changed blocks", "seconds", None),
]


def plots(directory, rows):
    """Draws what there are rows for; titles and names of the files."""
    drawn = []
    for name, series, figure, title, x_title, y_title, names in PLOTS:
        lines = {}
        for point in rows:
            if point.get("series") == series and point["figure"] == figure:
                lines.setdefault(point["server"], []).append((point["x"], point["y"]))
        if not lines:
            continue
        present = sorted({x for points in lines.values() for x, _ in points})
        if names == "x":
            names = {x: str(x) for x in present}
        elif names:
            names = {x: label for x, label in names.items() if x in present}
        path = pathlib.Path(directory) / f"{name}.svg"
        svg.plot(path, title, x_title, y_title, lines, names)
        drawn.append((title, path.name))
    return drawn
