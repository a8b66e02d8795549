"""The page of results: medians, ratios against what was promised, and the raw rows."""

import json
import statistics

# What must hold: name, workload and server of ours, workload and peers of theirs, the figure,
# how it is compared, and the bound.
GOALS = [
    ("random read, server CPU", "random read", "snapvol", ["nbdkit file"], "server_us_per_request", "less", 4),
    ("random write, server CPU", "random write", "snapvol", ["nbdkit file"], "server_us_per_request", "less", 3),
    ("random read, requests a second", "random read", "snapvol", "peers", "per_second", "more", 3),
    ("random write, requests a second", "random write", "snapvol", "peers", "per_second", "more", 2),
    ("random read one at a time, median latency", "random read, one at a time", "snapvol", ["nbdkit file"], "p50", "less", 1.25),
    ("random write one at a time, median latency", "random write, one at a time", "snapvol", ["nbdkit file"], "p50", "less", 1.25),
    ("sequential read, MB/s", "sequential read", "snapvol", "peers", "mb_per_second", "more", 1.5),
    ("sequential write, MB/s", "sequential write", "snapvol", "peers", "mb_per_second", "more", 1.1),
    ("a flush every 32 writes, requests a second", "random write, a flush every 32", "snapvol", ["nbdkit file"], "per_second", "more", 1.2),
    ("first write, against qcow2 64 KiB", "first write", "snapvol, first writes", ["qcow2 overlay 64 KiB"], "per_second", "more", 5),
    ("first write, against nbdkit cow", "first write", "snapvol, first writes", ["nbdkit cow"], "per_second", "more", 3),
    ("first write, against qcow2 extended L2", "first write", "snapvol, first writes", ["qcow2 extended L2"], "per_second", "more", 2),
    ("first write with flushes, against qcow2 64 KiB", "first write, a flush every 32", "snapvol, first writes", ["qcow2 overlay 64 KiB"], "per_second", "more", 3),
    ("first write with flushes, against qcow2 extended L2", "first write, a flush every 32", "snapvol, first writes", ["qcow2 extended L2"], "per_second", "more", 2),
    ("large first write, MB/s", "large first write", "snapvol, first writes", ["qcow2 overlay 64 KiB", "qcow2 extended L2"], "mb_per_second", "more", 2),
    ("delta of 1 %, against btrfs", "delta of 1 %", "snapvol", ["btrfs send | receive"], "seconds", "less", 4),
    ("delta of 1 %, against a qemu bitmap", "delta of 1 %", "snapvol", ["qemu bitmap, read out only"], "seconds", "less", 1.5),
    ("delta of 1 %, against rsync", "delta of 1 %", "snapvol", ["rsync --inplace"], "seconds", "less", 40),
]


def figure(row, name):
    """A figure of a row; percentiles lie in `latency_us`."""
    if name in ("p50", "p99", "p999", "max"):
        return row.get("latency_us", {}).get(name)
    return row.get(name)


def median(rows, workload, server, name):
    """The median over the rounds, or None."""
    values = [figure(row, name) for row in rows if row["workload"] == workload and row["server"] == server]
    values = [value for value in values if value is not None]
    return statistics.median(values) if values else None


def ratios(rows):
    """Each goal with its ratio: above 1 we are better."""
    for title, workload, server, peers, name, sense, bound in GOALS:
        mine = median(rows, workload, server, name)
        if peers == "peers":
            names = {row["server"] for row in rows if row["workload"] == workload}
            candidates = sorted(other for other in names if not other.startswith("snapvol"))
        else:
            candidates = peers
        theirs = [(median(rows, workload, peer, name), peer) for peer in candidates]
        theirs = [pair for pair in theirs if pair[0] is not None]
        if mine is None or not theirs:
            continue
        best, peer = (max if sense == "more" else min)(theirs)
        yield title, mine, best, peer, mine / best if sense == "more" else best / mine, bound


def number(value):
    """Three digits, with separators."""
    if value is None:
        return "-"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def table(head, lines):
    """A table in Markdown."""
    yield "| " + " | ".join(head) + " |"
    yield "| " + " | ".join("---" for _ in head) + " |"
    for line in lines:
        yield "| " + " | ".join(line) + " |"


def text(machine, rows, plots):
    """The whole page."""
    yield "# Performance"
    yield ""
    yield "Made by `tools/bench`; the rows behind it are in `performance/rows.jsonl`. One run, all"
    yield "servers in turn within each round, medians of the rounds. The machine is shared: ratios"
    yield "within a run mean something, figures of different runs do not."
    yield ""
    yield from table(["what", "value"], [[key.replace("_", " "), str(value)] for key, value in machine.items()])
    yield ""
    yield "## Against the best or the named peer"
    yield ""
    lines = []
    for title, mine, best, peer, ratio, bound in ratios(rows):
        verdict = "yes" if ratio >= bound else "**no**"
        lines.append([title, number(mine), f"{number(best)} ({peer})", f"{ratio:.2f}x", f"{bound}x", verdict])
    yield from table(["figure", "snapvol", "peer", "better by", "goal", "reached"], lines)
    yield ""
    for workload in dict.fromkeys(row["workload"] for row in rows):
        yield f"## {workload[0].upper()}{workload[1:]}"
        yield ""
        mine = [row for row in rows if row["workload"] == workload]
        yield from details(workload, mine)
        yield ""
    for title, name in plots:
        yield f"## {title}"
        yield ""
        yield f"![{title}](performance/{name})"
        yield ""


COLUMNS = [
    ("per second", "per_second"),
    ("MB/s", "mb_per_second"),
    ("p50 us", "p50"),
    ("p99 us", "p99"),
    ("p99.9 us", "p999"),
    ("server us/request", "server_us_per_request"),
    ("client us/request", "client_us_per_request"),
    ("seconds", "seconds"),
    ("bytes", "bytes"),
    ("over changed bytes", "overhead"),
    ("pause p50 s", "pause_p50"),
    ("pause p99 s", "pause_p99"),
    ("longest pause s", "pause_max"),
]


def details(workload, rows):
    """All figures of a workload."""
    servers = list(dict.fromkeys(row["server"] for row in rows))
    timed = any("per_second" in row for row in rows)
    columns = [
        column
        for column in COLUMNS
        if any(figure(row, column[1]) is not None for row in rows) and not (timed and column[1] == "seconds")
    ]
    lines = []
    for server in servers:
        failed = next((row["failed"] for row in rows if row["server"] == server and "failed" in row), None)
        cells = [number(median(rows, workload, server, name)) for _, name in columns]
        lines.append([server, *cells, failed.splitlines()[-1][:80] if failed else ""])
    head = ["server", *[title for title, _ in columns], "failed"]
    if not any(line[-1] for line in lines):
        head, lines = head[:-1], [line[:-1] for line in lines]
    yield from table(head, lines)


def write(directory, machine, rows, plots):
    """The page and the rows."""
    (directory / "performance").mkdir(parents=True, exist_ok=True)
    with open(directory / "performance" / "rows.jsonl", "w", encoding="utf-8") as file:
        file.write(json.dumps({"machine": machine}) + "\n")
        for row in rows:
            file.write(json.dumps(row) + "\n")
    (directory / "performance.md").write_text("\n".join(text(machine, rows, plots)).rstrip() + "\n", encoding="utf-8")
