"""What must hold, and whether it does."""

import dataclasses
import statistics

FIRST, PEERS = "first write", "peers"
QCOW2, EXTENDED = "qcow2 overlay 64 KiB", "qcow2 extended L2"


@dataclasses.dataclass
class Goal:
    """One figure of ours against a peer's, against another of ours, or against a limit."""

    title: str
    workload: str
    figure: str
    how: str  # "more": ours by theirs, at least; "less": theirs by ours, at least; "share": ours by theirs, at most; "limit": ours, at most
    bound: float
    theirs: object = PEERS  # servers, or (workload, server)
    unit: str = ""

    def sign(self):
        """Whether more is better."""
        return self.how in ("more", "less")


GOALS = [
    Goal("4 KiB random read: server CPU a request", "random read", "server_us_per_request", "less", 4, ["nbdkit file"], "us"),
    Goal("4 KiB random write: server CPU a request", "random write", "server_us_per_request", "less", 3, ["nbdkit file"], "us"),
    Goal("4 KiB random read: requests a second", "random read", "per_second", "more", 3),
    Goal("4 KiB random write: requests a second", "random write", "per_second", "more", 2),
    Goal("random read one at a time: median latency", "random read, one at a time", "p50", "share", 0.8, ["nbdkit file"], "us"),
    Goal("random write one at a time: median latency", "random write, one at a time", "p50", "share", 0.8, ["nbdkit file"], "us"),
    Goal("128 KiB sequential read", "sequential read", "mb_per_second", "more", 1.5, PEERS, "MB/s"),
    Goal("128 KiB sequential write", "sequential write", "mb_per_second", "more", 1.1, PEERS, "MB/s"),
    Goal("random write, a flush every 32: requests a second", "random write, a flush every 32", "per_second", "more", 1.2, ["nbdkit file"]),
    Goal("first write: requests a second", FIRST, "per_second", "more", 5, [QCOW2]),
    Goal("first write: requests a second", FIRST, "per_second", "more", 3, ["nbdkit cow"]),
    Goal("first write: requests a second", FIRST, "per_second", "more", 2, [EXTENDED]),
    Goal("first write: 99th percentile of latency", FIRST, "p99", "share", 3, ("random write before the snapshot", "snapvol"), "us"),
    Goal("first write, a flush every 32: requests a second", "first write, a flush every 32", "per_second", "more", 3, [QCOW2]),
    Goal("first write, a flush every 32: requests a second", "first write, a flush every 32", "per_second", "more", 2, [EXTENDED]),
    Goal("128 KiB first write", "large first write", "mb_per_second", "more", 2, [QCOW2, EXTENDED], "MB/s"),
    Goal("random read of the oldest snapshot: requests a second", "random read of the oldest snapshot", "per_second", "more", 0.8, ("random read of the youngest snapshot", "snapvol")),
    Goal("taking a snapshot: pause of writers, 99th percentile", "taking a snapshot under write load", "pause_p99", "limit", 0.001, None, "s"),
    Goal("the same of 1 TiB", "taking a snapshot of a large volume under write load", "pause_p99", "limit", 0.001, None, "s"),
    Goal("deleting a snapshot: pause of writers, 99th percentile", "deleting a snapshot under write load, its images pass on", "pause_p99", "limit", 0.001, None, "s"),
    Goal("deleting the last snapshot: pause of writers, 99th percentile", "deleting a snapshot under write load, its images go", "pause_p99", "limit", 0.001, None, "s"),
    Goal("delta: elapsed", "delta", "seconds", "less", 4, ["btrfs send | receive"], "s"),
    Goal("delta: elapsed", "delta", "seconds", "less", 1.5, ["qemu bitmap, read out only"], "s"),
    Goal("delta: elapsed", "delta", "seconds", "less", 40, ["rsync --inplace"], "s"),
    Goal("delta: bytes of the stream by changed bytes", "delta", "overhead", "limit", 1.02, None, "x"),
    Goal("delta scan of maps", "delta scan of maps", "seconds", "limit", 2, None, "s"),
    Goal("opening a store", "opening a store after an orderly end", "seconds", "limit", 0.5, None, "s"),
    Goal("resident memory of a server", "memory of a server", "resident_mib", "limit", 128, None, "MiB"),
]


def figure(row, name):
    """A figure of a row; percentiles lie in `latency_us`."""
    if name in ("p50", "p99", "p999", "max"):
        return row.get("latency_us", {}).get(name)
    return row.get(name)


def values(rows, workload, server, name):
    """The figure by round."""
    chosen = [row for row in rows if row["workload"] == workload and row["server"] == server]
    return {row["round"]: figure(row, name) for row in chosen if figure(row, name) is not None}


def median(rows, workload, server, name):
    """The median over the rounds, or None."""
    found = values(rows, workload, server, name)
    return statistics.median(found.values()) if found else None


@dataclasses.dataclass
class Verdict:
    """How a goal was met."""

    goal: Goal
    mine: float
    theirs: float | None
    name: str
    ratio: float
    low: float
    high: float

    def reached(self):
        """Whether the goal is reached by the medians."""
        return self.ratio >= self.goal.bound if self.goal.sign() else self.ratio <= self.goal.bound


def verdicts(rows, server="snapvol"):
    """Every goal for which there are rows. The ratio is that of the medians; the range is that
    of the rounds, each for itself."""
    for goal in GOALS:
        mine = values(rows, goal.workload, server, goal.figure)
        if not mine:
            continue
        middle = statistics.median(mine.values())
        if goal.how == "limit":
            yield Verdict(goal, middle, None, "", middle, min(mine.values()), max(mine.values()))
            continue
        if isinstance(goal.theirs, tuple):
            candidates = [goal.theirs]
        else:
            names = {row["server"] for row in rows if row["workload"] == goal.workload}
            names = sorted(name for name in names if not name.startswith("snapvol")) if goal.theirs == PEERS else goal.theirs
            candidates = [(goal.workload, name) for name in names]
        found = [(median(rows, *pair, goal.figure), pair) for pair in candidates]
        found = [entry for entry in found if entry[0] is not None]
        if not found:
            continue
        best, pair = (max if goal.how == "more" else min)(found)
        theirs = values(rows, *pair, goal.figure)
        compare = (lambda a, b: b / a) if goal.how == "less" else (lambda a, b: a / b)
        each = [compare(mine[number], theirs[number]) for number in mine if number in theirs]
        name = pair[0] if pair[1] == server else pair[1]
        ratio = compare(middle, best)
        yield Verdict(goal, middle, best, name, ratio, min(each, default=ratio), max(each, default=ratio))
