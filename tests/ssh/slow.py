#!/usr/bin/python3
"""slow.py BYTES_PER_SECOND: copies standard input to standard output, not faster than that."""

import os
import sys
import time

rate = int(sys.argv[1])
start, sent = time.monotonic(), 0
while data := os.read(0, 65536):
    view = memoryview(data)
    while view:
        view = view[os.write(1, view) :]
    sent += len(data)
    time.sleep(max(0, sent / rate - (time.monotonic() - start)))
