#!/usr/bin/env python3
"""What checksums (RINGTREE_CHECKSUMS=1) cost an all-reduce of two ranks of one host.

Usage: python3 benches/host/checksums.py      (after cargo build --release -p ringtree-cli)

Times in microseconds, with checksums and without in turn; medians of five rounds. Over shared memory the
time without is that of slots, that of all that links do on their own (they may copy through the kernel), and that
of registered memory, which peers read in place without checksums."""

import statistics

from common import bench

ROUNDS = 5
SIZES = (64 << 10, 1 << 20, 16 << 20)
CHECKED = ("env", "RINGTREE_CHECKSUMS=1")
# Name, transport, kind of memory, environment without checksums.
CASES = (
    ("shm, slots", "shm", "plain", ("env", "RINGTREE_ATTACH=never")),
    ("shm", "shm", "plain", ()),
    ("shm, registered memory", "shm", "registered", ()),
    ("tcp", "tcp", "plain", ()),
)


def time_us(size, transport, memory, prefix):
    arguments = ["--ranks", "2", "--transport", transport, "--memory", memory, "--sizes", str(size),
                 "--time-ms", "100"]
    return bench(arguments, prefix=prefix)["median_us"]


print(f"{'':<24} {'bytes':>9} {'without':>9} {'with':>9}  us, ratio")
for name, transport, memory, plain in CASES:
    for size in SIZES:
        times = [(time_us(size, transport, memory, plain), time_us(size, transport, memory, CHECKED))
                 for _ in range(ROUNDS)]
        without, checked = map(statistics.median, zip(*times))
        print(f"{name:<24} {size:>9} {without:>9.1f} {checked:>9.1f}  {checked / without:.2f}", flush=True)
