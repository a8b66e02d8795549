#!/usr/bin/python3
"""delta.py URI SNAP: prints `offset length flags` of the context snapvol:delta:SNAP."""

import sys

import nbd

uri, context = sys.argv[1], "snapvol:delta:" + sys.argv[2]
handle = nbd.NBD()
handle.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
handle.add_meta_context(context)
handle.connect_uri(uri)
assert handle.can_meta_context(context), "the server has no " + context
assert handle.can_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
size, at, merged = handle.get_size(), 0, []
while at < size:
    answer = {}
    handle.block_status(min(size - at, 1 << 30), at, lambda name, offset, entries, error: answer.update({name: list(entries)}))
    assert set(answer) == {context, nbd.CONTEXT_BASE_ALLOCATION}, answer
    for length, flags in zip(answer[context][::2], answer[context][1::2]):
        length = min(length, size - at)
        if merged and merged[-1][2] == flags:
            merged[-1][1] += length
        else:
            merged.append([at, length, flags])
        at += length
for entry in merged:
    print(*entry)
handle.shutdown()
