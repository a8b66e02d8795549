"""Where a run takes place: the machine, the commit, and how commands are started and ended."""

import contextlib
import http.client
import json
import os
import pathlib
import platform
import shutil
import signal
import socket
import subprocess
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
RELEASE = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release"
SNAPVOL = RELEASE / "snapvol"
EXAMPLES = ["nbd_load", "nbd_memory", "big_volume"]
NBD_LOAD, NBD_MEMORY, BIG_VOLUME = (RELEASE / "examples" / name for name in EXAMPLES)


def build():
    """Builds what is measured, and the client that measures it."""
    examples = [word for name in EXAMPLES for word in ("--example", name)]
    command = ["cargo", "build", "--locked", "--release", "--bin", "snapvol", *examples]
    subprocess.run(command, cwd=ROOT, check=True)


def install():
    """Installs the peers that are missing (Debian)."""
    needed = {
        "nbdkit": "nbdkit",
        "qemu-nbd": "qemu-utils",
        "nbd-server": "nbd-server",
        "fio": "fio",
        "mkfs.btrfs": "btrfs-progs",
        "rsync": "rsync",
        "nbdcopy": "libnbd-bin",
        "taskset": "util-linux",
    }
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    missing = [package for command, package in needed.items() if not shutil.which(command)]
    if subprocess.run(["/usr/bin/python3", "-c", "import nbd"], capture_output=True).returncode:
        missing.append("python3-libnbd")
    if not missing:
        return
    if not shutil.which("apt-get"):
        raise SystemExit(f"tools/bench: missing: {' '.join(missing)}, and there is no apt-get")
    if os.geteuid():
        raise SystemExit(f"tools/bench: missing: {' '.join(missing)}; run this as root")
    print("installing", *missing, flush=True)
    policy = pathlib.Path("/usr/sbin/policy-rc.d")
    ours = not policy.exists()
    if ours:  # A package's daemons are not to be started.
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
    try:
        env = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        subprocess.run(["apt-get", "-q", "update"], env=env, stdout=subprocess.DEVNULL)
        command = ["apt-get", "-q", "-y", "--no-install-recommends", "install", *missing]
        subprocess.run(command, env=env, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    finally:
        if ours:
            policy.unlink()


def describe(directory):
    """What the figures depend on."""
    cpu = next(
        (line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")),
        platform.machine(),
    )
    memory = int(open("/proc/meminfo").readline().split()[1]) // (1 << 20)
    commit = output("git", "-C", ROOT, "rev-parse", "--short=12", "HEAD")
    if output("git", "-C", ROOT, "status", "--porcelain", "--untracked-files=no", "--", "src", "benches", "Cargo.lock"):
        commit += " and changes"
    return {
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": commit,
        "machine": f"{os.cpu_count()} x {cpu}, {memory} GiB",
        "kernel": platform.release().split("-")[0],
        "file system": file_system(directory),
    }


def file_system(directory):
    """The type of the file system, as it was mounted."""
    return output("findmnt", "-n", "-o", "FSTYPE", "-T", directory)


def peers():
    """The versions of what is measured beside us."""
    first = {
        "nbdkit": ["nbdkit", "--version"],
        "qemu-nbd": ["qemu-nbd", "--version"],
        "nbd-server": ["nbd-server", "-V"],
        "fio": ["fio", "--version"],
        "btrfs-progs": ["btrfs", "--version"],
        "rsync": ["rsync", "--version"],
    }
    found = {}
    for name, command in first.items():
        done = subprocess.run(command, capture_output=True, text=True)
        words = (done.stdout + done.stderr).split()
        found[name] = next((word.lstrip("v").rstrip(",") for word in words if word.lstrip("v")[:1].isdigit()), "?")
        if name == "fio":
            found[name] = words[0].removeprefix("fio-")
    return found


def output(*command):
    """What a command prints, without the last line end."""
    words = [str(word) for word in command]
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()


def quiet(*command):
    """Runs a command; what it says is shown when it fails."""
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr or done.stdout}")
    return done.stdout


def snapvol(store, *words):
    """A command of ours on a store."""
    return quiet(SNAPVOL, "--store", store, *words)


class ControlConnection(http.client.HTTPConnection):
    """One request to the control socket of a served store."""

    def __init__(self, path):
        super().__init__("localhost")
        self.path = str(path)

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self.path)


def control(store, operation, **arguments):
    """An operation on a served store, without the start of a program that would take its
    processor time from whoever is measured."""
    connection = ControlConnection(store / "control.sock")
    headers = {"Content-Type": "application/json"}
    connection.request("POST", f"/v1/{operation}", json.dumps(arguments), headers)
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    if answer.status != 200:
        raise RuntimeError(f"{operation}: {body.decode()}")
    return json.loads(body)


def await_ready(ready, alive, words):
    """Waits until a process can be used."""
    deadline = time.monotonic() + 60
    while not ready():
        if not alive() or time.monotonic() > deadline:
            raise RuntimeError(f"{' '.join(words)} did not start")
        time.sleep(0.002)


@contextlib.contextmanager
def process(command, ready, cpu=None, orderly=True, **options):
    """A process of ours: `ready` says when it can be used; it is ended with the block."""
    words = [str(word) for word in command]
    if cpu is not None:
        words = ["taskset", "-c", str(cpu), *words]
    options = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "stdin": subprocess.DEVNULL} | options
    child = subprocess.Popen(words, **options)
    try:
        await_ready(ready, lambda: child.poll() is None, words)
        yield child
    finally:
        if orderly:
            child.terminate()
        else:
            child.kill()
        try:
            child.wait(60)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


@contextlib.contextmanager
def daemon(command, pid_file, ready, cpu=None):
    """The same for a server that leaves its terminal and writes down its number."""
    words = [str(word) for word in command]
    if cpu is not None:
        words = ["taskset", "-c", str(cpu), *words]
    subprocess.run(words, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 20
    while not (pid_file.exists() and pid_file.read_text().strip()):
        if time.monotonic() > deadline:
            raise RuntimeError(f"{' '.join(words)} did not start")
        time.sleep(0.002)
    pid = int(pid_file.read_text())
    alive = pathlib.Path("/proc") / str(pid)
    try:
        await_ready(ready, alive.exists, words)
        yield pid
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        while alive.exists() and time.monotonic() < deadline + 60:
            time.sleep(0.01)
