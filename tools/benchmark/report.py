"""The page of results: medians, ratios against what was promised, and the raw rows.

A part that was measured keeps its rows in a file of its own until it is measured again, so
that parts measured one by one make one page."""

import json

from . import goals

PARTS = ["load", "fio", "copies", "snapshots", "sessions", "growth"]


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
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |"


def times(value):
    """A ratio."""
    return f"{value:.2f}x" if value < 10 else f"{value:.0f}x"


def goals_table(rows):
    """The goals, and whether they are reached."""
    lines = []
    for verdict in goals.verdicts(rows):
        goal = verdict.goal
        unit = f" {goal.unit}" if goal.unit else ""
        most = "at least" if goal.sign() else "at most"
        limit = goal.how == "limit"
        show = (number if goal.unit != "x" else "{:.3f}".format) if limit else times
        lines.append(
            [
                goal.title,
                show(verdict.mine) + unit if limit else number(verdict.mine) + unit,
                "" if limit else f"{number(verdict.theirs)}{unit}, {verdict.name}",
                "" if limit else times(verdict.ratio),
                f"{show(verdict.low)} to {show(verdict.high)}",
                f"{most} {number(goal.bound)}{unit if limit else 'x'}",
                "yes" if verdict.reached() else "**no**",
            ]
        )
    head = ["work", "snapvol", "against", "ratio", "rounds", "goal", "reached"]
    yield from table(head, lines)


COLUMNS = [
    ("per second", "per_second"),
    ("MB/s", "mb_per_second"),
    ("p50 us", "p50"),
    ("p99 us", "p99"),
    ("p99.9 us", "p999"),
    ("server us/request", "server_us_per_request"),
    ("client us/request", "client_us_per_request"),
    ("seconds", "seconds"),
    ("of it diff", "diff_seconds"),
    ("bytes", "bytes"),
    ("by changed bytes", "overhead"),
    ("pause p50 s", "pause_p50"),
    ("pause p99 s", "pause_p99"),
    ("longest pause s", "pause_max"),
    ("at rest p50 s", "rest_p50"),
    ("at rest p99 s", "rest_p99"),
    ("at rest longest s", "rest_max"),
    ("command s", "command_p50"),
    ("behind p50 s", "lag_p50"),
    ("behind at most s", "lag_max"),
    ("then caught up in s", "catch_up_seconds"),
    ("resident MiB, highest", "resident_mib"),
    ("at the end", "resident_last_mib"),
    ("anonymous MiB", "anonymous_mib"),
    ("mapped MiB", "mapped_mib"),
    ("memory by changed block, bytes", "bytes_per_block"),
]


def details(workload, rows):
    """All figures of a workload."""
    servers = list(dict.fromkeys(row["server"] for row in rows))
    timed = any("per_second" in row for row in rows)
    columns = [
        column
        for column in COLUMNS
        if any(goals.figure(row, column[1]) is not None for row in rows) and not (timed and column[1] == "seconds")
    ]
    lines = []
    for server in servers:
        failed = next((row["failed"] for row in rows if row["server"] == server and "failed" in row), None)
        cells = [number(goals.median(rows, workload, server, name)) for _, name in columns]
        lines.append([server, *cells, failed.splitlines()[-1][:80] if failed else ""])
    head = ["server", *[title for title, _ in columns], "failed"]
    if not any(line[-1] for line in lines):
        head, lines = head[:-1], [line[:-1] for line in lines]
    yield from table(head, lines)


def text(runs, plots):
    """The whole page, of what the parts' files hold."""
    rows = [row for _, part in runs.values() for row in part if "series" not in row]
    yield "# Performance"
    yield ""
    yield "Made by `tools/bench` from the rows in `performance/`; [measuring.md](measuring.md) says how"
    yield "everything was measured, what the words mean and what limits what. Figures are medians of"
    yield "the rounds, in which all servers have their turn one after the other. The machine is a"
    yield "shared one whose speed drifts: the ratios mean something, a figure alone does not."
    yield ""
    head = ["part", "date", "commit", "machine", "kernel", "file system", "run", "minutes", "rounds"]
    lines = []
    for part, (about, part_rows) in runs.items():
        count = 1 + max((row.get("round", 0) for row in part_rows), default=0)
        lines.append([part, *[str(about.get(key, "")) for key in head[1:-1]], str(count)])
    yield from table(head, lines)
    yield ""
    if any(about.get("run") == "quick" for about, _ in runs.values()):
        yield "A quick part has small sizes, short runs and one round: it shows that everything works, and"
        yield "only roughly how fast it is."
        yield ""
    peers = next((about["peers"] for about, _ in runs.values() if "peers" in about), {})
    yield "Peers: " + ", ".join(f"{name} {version}" for name, version in peers.items()) + "."
    yield ""
    yield "## The goals"
    yield ""
    yield "Ratios of the medians; \"rounds\" is the range of the ratio, or of the figure, round by round."
    yield ""
    yield from goals_table(rows)
    yield ""
    for workload in dict.fromkeys(row["workload"] for row in rows):
        yield f"## {workload[0].upper()}{workload[1:]}"
        yield ""
        mine = [row for row in rows if row["workload"] == workload]
        setup = next((row["setup"] for row in mine if "setup" in row), None)
        if setup:
            yield f"{setup[0].upper()}{setup[1:]}."
            yield ""
        yield from details(workload, mine)
        yield ""
    if plots:
        yield "## Growth"
        yield ""
        yield "What things cost as something grows; both axes are logarithmic unless they begin at 0."
        yield ""
    for title, name in plots:
        yield f"![{title}](performance/{name})"
        yield ""


def rows_file(directory, part):
    """Where a part's rows lie."""
    return directory / "performance" / f"{part}.jsonl"


def keep(directory, part, about, rows):
    """Keeps the rows of one part."""
    path = rows_file(directory, part)
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"about": about}), *[json.dumps(rounded(row)) for row in rows]]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def rounded(value):
    """Five digits are more than a machine repeats."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: rounded(inner) for key, inner in value.items()}
    return value


def kept(directory):
    """What the parts' files hold."""
    runs = {}
    for part in PARTS:
        path = rows_file(directory, part)
        if path.exists():
            first, *rest = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            runs[part] = (first["about"], rest)
    return runs


def write(directory, runs, plots):
    """The page."""
    path = directory / "performance.md"
    path.write_text("\n".join(text(runs, plots)).rstrip() + "\n", encoding="utf-8")
