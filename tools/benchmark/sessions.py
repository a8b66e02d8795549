"""What a session costs: writes a second of a volume that another store on the same machine
follows, against the same volume alone; how far behind that store is meanwhile, and how many
bytes are shipped for what was changed.

Both stores and the client share the machine's processors, so the ratio has the receiver's
work in it too."""

import contextlib
import shutil
import threading
import time

from .load import Workload, measure
from .machine import SNAPVOL, control, process, snapvol
from .servers import Served, connects, fill, settle

BLOCK = 4096
TIMEOUT = "1s"
RANDOM = Workload("random write, another store following", [], read=0)
ONCE = Workload("bytes shipped for bytes changed", [], read=0, order="once")


@contextlib.contextmanager
def served(store, *words):
    """A store that is served."""
    path = store / "nbd.sock"
    command = [SNAPVOL, "--store", store, "serve", *words]
    with process(command, lambda: connects(path), orderly=False) as child:
        yield Served(socket=path, pid=child.pid, export="v", store=store)


def session(store):
    """How the only session of a store stands."""
    return control(store, "status")["sessions"][0]


def caught_up(store):
    """Waits until the other store has all that is here; returns the status then."""
    snapvol(store, "cut", "v", "--wait")
    return session(store)


class Watch(threading.Thread):
    """Looks how far behind the other store is."""

    def __init__(self, store):
        super().__init__()
        self.store, self.ended, self.lags, self.sets = store, threading.Event(), [], {}

    def look(self):
        """Takes a note of the lag and of the sets that were shipped."""
        status = session(self.store)
        self.lags.append(status["lag_seconds"])
        self.sets |= {entry["number"]: entry["bytes"] for entry in status["history"] if not entry["whole"]}

    def run(self):
        while not self.ended.wait(0.1):
            self.look()

    def end(self):
        """Nothing more is looked at."""
        self.ended.set()
        self.join()


def alone(directory, size, seconds, seed):
    """A volume that nobody follows."""
    with served(directory / "near", "--create", f"v:{size}") as near:
        fill(near, size)
        settle(directory)
        return [(RANDOM.name, "alone", measure(RANDOM, near, size, seconds, seed))]


def followed(directory, size, seconds, seed):
    """The same with a session that cuts a set as often as its time-out says."""
    near_store, far_store = directory / "near", directory / "far"
    with served(near_store, "--create", f"v:{size}") as near, served(far_store, "--create", "other:1M"):
        fill(near, size)
        snapvol(near_store, "replicate", "v", far_store / "v", "--timeout", TIMEOUT)
        caught_up(near_store)
        settle(directory)
        watch = Watch(near_store)
        watch.start()
        result = measure(RANDOM, near, size, seconds, seed)
        begin = time.monotonic()
        caught_up(near_store)
        behind = time.monotonic() - begin
        watch.end()
        lags = sorted(watch.lags)
        result["lag_p50"], result["lag_max"] = lags[len(lags) // 2], lags[-1]
        result["catch_up_seconds"] = behind
        settle(directory)
        blocks = size // BLOCK // 8
        watch = Watch(near_store)
        watch.look()
        before = dict(watch.sets)
        watch.start()
        measure(ONCE, near, size, None, seed, requests=blocks)
        caught_up(near_store)
        watch.end()
        watch.look()
        shipped = sum(count for number, count in watch.sets.items() if number not in before)
        overhead = shipped / (blocks * BLOCK)
        return [
            (RANDOM.name, "followed", result),
            (ONCE.name, "followed", {"bytes": shipped, "overhead": overhead}),
        ]


def run(directory, size, rounds, seconds, emit):
    """Both in turn, round after round."""
    for number in range(rounds):
        kinds = [alone, followed]
        for kind in kinds[number % 2 :] + kinds[: number % 2]:
            home = directory / f"sessions-{number}-{kind.__name__}"
            home.mkdir()
            try:
                rows = kind(home, size, seconds, number + 1)
            except (RuntimeError, OSError, ValueError) as error:
                rows = [(RANDOM.name, kind.__name__, {"failed": str(error)})]
            for workload, server, result in rows:
                emit({"workload": workload, "server": server, "round": number, **result})
            shutil.rmtree(home, ignore_errors=True)
