"""The same data plane through fio's own NBD client, for whoever trusts it more; it costs
8 to 10 microseconds a request and hides what a server can do."""

import json
import subprocess

from .servers import serve

SERVERS = ["snapvol", "snapvol, plain engine", "nbdkit file", "qemu-nbd raw"]


def run(directory, source, rounds, seconds, emit):
    """4 KiB random reads and writes, 32 at a time."""
    for number in range(rounds):
        for kind in ["randread", "randwrite"]:
            shift = number % len(SERVERS)
            for server in SERVERS[shift:] + SERVERS[:shift]:
                row = {"workload": f"fio's client, {kind}", "server": server, "round": number}
                with serve(server, directory, source) as served:
                    uri = f"nbd+unix:///{served.export}?socket={served.socket}"
                    command = ["fio", "--name=x", "--ioengine=nbd", f"--uri={uri}", f"--rw={kind}", "--bs=4k"]
                    command += ["--iodepth=32", "--time_based", f"--runtime={seconds}", "--output-format=json"]
                    done = subprocess.run(command, capture_output=True, text=True, cwd=directory)
                if done.returncode:
                    emit({**row, "failed": done.stderr.strip()})
                    continue
                job = json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0]
                side = job["read" if kind == "randread" else "write"]
                percentile = side["clat_ns"]["percentile"]
                names = {"p50": "50.000000", "p99": "99.000000", "p999": "99.900000"}
                latency = {name: percentile[key] / 1e3 for name, key in names.items()}
                emit({**row, "per_second": side["iops"], "latency_us": latency})
