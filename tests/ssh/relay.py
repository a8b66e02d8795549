#!/usr/bin/python3
"""Stands between a program and its ssh: counts what is sent, slows it, cuts it.

    relay.py --count FILE --cut BYTES --rate BYTES_PER_SECOND -- SSH ARGUMENT...

Standard input goes to SSH's, SSH's output comes back untouched. FILE gets lines
`pid bytes`, the last of a pid being its total. 0 means no limit.
"""

import argparse
import os
import subprocess
import sys
import threading
import time

parser = argparse.ArgumentParser()
parser.add_argument("--count", required=True)
parser.add_argument("--cut", type=int, default=0)
parser.add_argument("--rate", type=int, default=0)
parser.add_argument("command", nargs="+")
arguments = parser.parse_args()

child = subprocess.Popen(arguments.command, stdin=subprocess.PIPE)
log = os.open(arguments.count, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)


def relay():
    sent = 0
    start = time.monotonic()
    piece = 65536 if not arguments.rate else min(65536, max(1024, arguments.rate // 50))
    while data := os.read(0, piece):
        if arguments.cut:
            data = data[: arguments.cut - sent]
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(child.stdin.fileno(), view) :]
        except BrokenPipeError:
            break
        sent += len(data)
        os.write(log, b"%d %d\n" % (os.getpid(), sent))
        if arguments.cut and sent >= arguments.cut:
            child.kill()
            return
        if arguments.rate:
            time.sleep(max(0, sent / arguments.rate - (time.monotonic() - start)))
    try:
        child.stdin.close()
    except BrokenPipeError:
        pass


threading.Thread(target=relay, daemon=True).start()
code = child.wait()
os._exit(code if code >= 0 else 255)
