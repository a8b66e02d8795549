"""Where a run takes place: the machine, the commit, and how commands are started and ended."""

import contextlib
import os
import pathlib
import platform
import shutil
import subprocess
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
RELEASE = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release"
SNAPVOL = RELEASE / "snapvol"
NBD_LOAD = RELEASE / "examples" / "nbd_load"


def build():
    """Builds what is measured, and the client that measures it."""
    command = ["cargo", "build", "--locked", "--release", "--bin", "snapvol", "--example", "nbd_load"]
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
    }
    path = os.environ["PATH"] + ":/usr/sbin:/sbin"
    missing = [package for command, package in needed.items() if not shutil.which(command, path=path)]
    if subprocess.run(["/usr/bin/python3", "-c", "import matplotlib"], capture_output=True).returncode:
        missing.append("python3-matplotlib")
    if subprocess.run(["/usr/bin/python3", "-c", "import nbd"], capture_output=True).returncode:
        missing.append("python3-libnbd")
    if not missing:
        return
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
    if output("git", "-C", ROOT, "status", "--porcelain", "--untracked-files=no"):
        commit += "+changes"
    return {
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": commit,
        "cpu": f"{os.cpu_count()} x {cpu}",
        "memory_gib": memory,
        "kernel": platform.release(),
        "file_system": output("stat", "-f", "-c", "%T", directory),
    }


def output(*command):
    """What a command prints, without the last line end."""
    words = [str(word) for word in command]
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()


def quiet(*command):
    """Runs a command; what it says is shown when it fails."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{command}: {done.stdout}{done.stderr}")
    return done.stdout


def snapvol(store, *words):
    """A command of ours on a store."""
    return quiet(SNAPVOL, "--store", store, *words)


@contextlib.contextmanager
def process(command, ready, cpu=None, **options):
    """A process of ours: `ready` says when it can be used; it is ended with the block."""
    words = [str(word) for word in command]
    if cpu is not None:
        words = ["taskset", "-c", str(cpu), *words]
    log = open(os.devnull, "w") if "stdout" not in options else options.pop("stdout")
    child = subprocess.Popen(words, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, **options)
    try:
        deadline = time.monotonic() + 20
        while not ready():
            if child.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{words} did not start")
            time.sleep(0.01)
        yield child
    finally:
        child.terminate()
        try:
            child.wait(20)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
