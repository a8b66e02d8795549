#!/usr/bin/python3
"""reconnect.py URI SECONDS SEED: libnbd against a server that dies and comes back.

Many writes, zeroings and trims in flight, no two of a batch overlapping. When the
connection is lost a new one is opened and what was not answered is asked again, so that
everything is compared with one model in memory. Ends with 0 and a line of counts.
"""

import random
import sys
import time

import nbd

uri, seconds, seed = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
rng = random.Random(seed)
connections = 0
operations = 0


def connect():
    global connections
    until = time.monotonic() + 60
    while True:
        handle = nbd.NBD()
        try:
            handle.connect_uri(uri)
            connections += 1
            return handle
        except nbd.Error:
            if time.monotonic() > until:
                raise
            time.sleep(0.02)


handle = connect()
span = min(handle.get_size(), 16 << 20)
model = bytearray(span)


def start(request):
    kind, offset, data = request
    if kind == "write":
        return handle.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(data)), offset)
    if kind == "zero":
        return handle.aio_zero(len(data), offset)
    return handle.aio_trim(len(data), offset)


def carry_out(requests):
    """All of them, over as many connections as it takes."""
    global handle
    left = list(requests)
    while left:
        pending = []
        try:
            pending = [(request, start(request)) for request in left]
            while handle.aio_in_flight():
                handle.poll(1000)
        except nbd.Error:
            pass
        done = []
        for request, cookie in pending:
            try:
                if handle.aio_command_completed(cookie):
                    done.append(request)
            except nbd.Error:
                pass
        left = [request for request in left if request not in done]
        if left:
            handle = connect()


def read(offset, length):
    global handle
    while True:
        try:
            return handle.pread(length, offset)
        except nbd.Error:
            handle = connect()


end = time.monotonic() + seconds
while time.monotonic() < end:
    batch, taken = [], []
    for _ in range(rng.randint(1, 24)):
        offset = rng.randrange(span)
        length = rng.randint(1, min(rng.choice([1, 513, 4096, 70_000]), span - offset))
        if any(offset < other_end and other < offset + length for other, other_end in taken):
            continue
        taken.append((offset, offset + length))
        kind = rng.choice(["write", "write", "write", "zero", "trim"])
        data = rng.randbytes(length) if kind == "write" else bytes(length)
        batch.append((kind, offset, data))
        model[offset : offset + length] = data
    carry_out(batch)
    operations += len(batch)
    offset, length = rng.choice(taken)[0], 4096
    length = min(length, span - offset)
    assert read(offset, length) == model[offset : offset + length], offset

for offset in range(0, span, 1 << 20):
    assert read(offset, 1 << 20) == model[offset : offset + (1 << 20)], offset
print("operations", operations, "connections", connections)
