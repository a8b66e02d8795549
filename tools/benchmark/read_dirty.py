"""Reads every dirty extent of an export with a bitmap; prints how many bytes that were, and how
many seconds it took from the connection on."""

import sys
import time

import nbd

begin = time.monotonic()
client = nbd.NBD()
client.add_meta_context("qemu:dirty-bitmap:changed")
client.connect_unix(sys.argv[1])
size = client.get_size()
total = 0
inflight = []


def dirty(offset):
    """The dirty ranges from an offset on, and where the answer ends."""
    found = []

    def extent(_context, start, entries, _error):
        at = start
        for length, flags in zip(entries[::2], entries[1::2]):
            if flags & 1:
                found.append((at, length))
            at += length
        found.append((at, 0))

    client.block_status(min(size - offset, 1 << 30), offset, extent)
    return found


def reap(limit):
    """Waits until at most that many reads are under way."""
    while len(inflight) > limit:
        client.poll(-1)
        inflight[:] = [cookie for cookie in inflight if not client.aio_command_completed(cookie)]


offset = 0
while offset < size:
    for start, length in dirty(offset):
        offset = start + length
        while length:
            part = min(length, 1 << 20)
            inflight.append(client.aio_pread(nbd.Buffer(part), start))
            total += part
            start += part
            length -= part
            reap(31)
reap(0)
print(total, time.monotonic() - begin)
