#!/usr/bin/python3
"""verify.py URI SECONDS SEED: libnbd against an export of which it is the only user.

Two connections, many requests in flight, odd offsets and lengths; every answer is
compared with a model in memory. Ends with 0 and a line of counts, or an assertion.
"""

import random
import sys
import time

import nbd

uri, seconds, seed = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
print("seed", seed)
rng = random.Random(seed)


def connect():
    handle = nbd.NBD()
    handle.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
    handle.connect_uri(uri)
    return handle


a, b = connect(), connect()
size = a.get_size()
assert a.can_multi_conn() and a.can_flush() and a.can_fua() and a.can_trim() and a.can_zero()
span = min(size, 16 << 20)
a.zero(span, 0)
model = bytearray(span)


def somewhere(limit):
    offset = rng.randrange(span)
    return offset, rng.randint(1, min(limit, span - offset))


def check_structured(handle, offset, length, flags):
    """Reads in pieces: all bytes come exactly once, a hole is a hole of zeros."""
    seen = []
    buffer = bytearray(handle.pread_structured(length, offset, lambda data, at, kind, error: seen.append((at, len(data), kind)), flags))
    assert buffer == model[offset : offset + length], (offset, length)
    seen.sort()
    at = offset
    for start, count, kind in seen:
        assert start == at, seen
        at += count
    if flags & nbd.CMD_FLAG_DF:
        assert len(seen) == 1, seen


def check_status(handle, offset, length):
    """What is said to read as zeros does; the extents advance and don't overlap."""
    got = []
    handle.block_status(length, offset, lambda context, at, entries, error: got.append((context, at, list(entries))))
    assert got
    for context, at, entries in got:
        assert context == nbd.CONTEXT_BASE_ALLOCATION and at == offset
        for count, flags in zip(entries[::2], entries[1::2]):
            assert count > 0
            end = min(at + count, offset + length)
            if flags & nbd.STATE_ZERO and at < end:
                assert not any(model[at:end]), (at, end)
            at += count


# What one connection had acknowledged, the other sees, also behind a flush.
for _ in range(8):
    offset, length = somewhere(100_000)
    data = rng.randbytes(length)
    a.pwrite(data, offset, rng.choice([0, nbd.CMD_FLAG_FUA]))
    model[offset : offset + length] = data
    b.flush()
    assert b.pread(length, offset) == data

operations = 0
end = time.monotonic() + seconds
while time.monotonic() < end:
    # A batch in flight at once, no two of it overlapping.
    taken, pending = [], []
    for _ in range(rng.randint(1, 24)):
        offset, length = somewhere(rng.choice([1, 513, 4096, 70_000]))
        if any(offset < other_end and start < offset + length for start, other_end in taken):
            continue
        taken.append((offset, offset + length))
        handle = rng.choice([a, b])
        kind = rng.choice(["write", "write", "write", "zero", "trim", "read", "read"])
        if kind == "write":
            data = rng.randbytes(length)
            cookie = handle.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(data)), offset, flags=rng.choice([0, 0, nbd.CMD_FLAG_FUA]))
            pending.append((handle, cookie, None, offset, length))
            model[offset : offset + length] = data
        elif kind in ("zero", "trim"):
            if kind == "zero":
                cookie = handle.aio_zero(length, offset, flags=rng.choice([0, nbd.CMD_FLAG_NO_HOLE]))
            else:
                cookie = handle.aio_trim(length, offset)
            pending.append((handle, cookie, None, offset, length))
            model[offset : offset + length] = bytes(length)
        else:
            buffer = nbd.Buffer(length)
            cookie = handle.aio_pread(buffer, offset)
            pending.append((handle, cookie, buffer, offset, length))
    while any(handle.aio_in_flight() for handle in (a, b)):
        for handle in (a, b):
            if handle.aio_in_flight():
                handle.poll(1000)
    for handle, cookie, buffer, offset, length in pending:
        assert handle.aio_command_completed(cookie)
        if buffer is not None:
            assert buffer.to_bytearray() == model[offset : offset + length], (offset, length)
    operations += len(pending)
    offset, length = somewhere(200_000)
    check_structured(rng.choice([a, b]), offset, length, rng.choice([0, nbd.CMD_FLAG_DF]))
    check_status(rng.choice([a, b]), offset, length)
    if rng.random() < 0.2:
        rng.choice([a, b]).flush()

a.shutdown()
b.shutdown()
c = connect()
for offset in range(0, span, 1 << 20):
    assert c.pread(min(1 << 20, span - offset), offset) == model[offset : offset + (1 << 20)], offset

# Beyond the end and other wrong requests fail; the connection goes on.
for wrong in (lambda: c.pread(2, size - 1), lambda: c.pwrite(b"xx", size - 1), lambda: c.trim(2, size - 1)):
    c.set_strict_mode(0)
    try:
        wrong()
    except nbd.Error:
        pass
    else:
        raise AssertionError("a request beyond the end was accepted")
assert c.pread(512, 0) == model[:512]
c.shutdown()
print("operations", operations)
