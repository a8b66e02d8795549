#!/usr/bin/python3
"""Stands between a session and its far program, and turns over one bit in a run.

    flip.py --log FILE --runs N --seed N -- PROGRAM ARGUMENT...

Each of the first N runs turns over one bit of what passes, in one direction, at a place
that the seed and the number of the run decide; later runs pass everything on as it is.
FILE gets a line `direction byte` for each bit that was turned over.
"""

import argparse
import os
import random
import subprocess
import threading

parser = argparse.ArgumentParser()
parser.add_argument("--log", required=True)
parser.add_argument("--runs", type=int, required=True)
parser.add_argument("--seed", type=int, required=True)
parser.add_argument("command", nargs="+")
arguments = parser.parse_args()

begun = os.open(arguments.log + ".runs", os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
os.write(begun, b".")
run = os.fstat(begun).st_size
chance = random.Random(arguments.seed * 1000 + run)
direction = chance.choice(["down", "down", "up"])
# Small things pass first: greetings and openings; then data, in thousands of bytes.
place = chance.choice([chance.randrange(700), chance.randrange(5000), chance.randrange(200000)])
if run > arguments.runs:
    direction = None
if direction == "up":
    place %= 1500

child = subprocess.Popen(arguments.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def pass_on(source, target, here):
    seen = 0
    while data := bytearray(os.read(source, 65536)):
        if here and seen <= place < seen + len(data):
            data[place - seen] ^= 1 << chance.randrange(8)
            log = os.open(arguments.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            os.write(log, b"%s %d\n" % (direction.encode(), place))
        seen += len(data)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(target, view) :]
        except BrokenPipeError:
            break
    os.close(target)


down = (0, os.dup(child.stdin.fileno()), direction == "down")
child.stdin.close()
threading.Thread(target=pass_on, args=down, daemon=True).start()
pass_on(child.stdout.fileno(), 1, direction == "up")
code = child.wait()
os._exit(code if code >= 0 else 255)
