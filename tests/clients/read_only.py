#!/usr/bin/python3
"""read_only.py URI: the export says that it is read-only, and every change fails."""

import sys

import nbd

handle = nbd.NBD()
handle.connect_uri(sys.argv[1])
assert handle.is_read_only()
handle.set_strict_mode(0)
before = handle.pread(4096, 0)
for change in (lambda: handle.pwrite(b"x" * 4096, 0), lambda: handle.trim(4096, 0), lambda: handle.zero(4096, 0)):
    try:
        change()
    except nbd.Error:
        continue
    raise AssertionError("a read-only export was changed")
assert handle.pread(4096, 0) == before
handle.shutdown()
