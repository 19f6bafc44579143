#!/usr/bin/env python3
"""What encryption costs an all-reduce of two ranks over TCP.

Usage: python3 benches/host/encryption.py      (after cargo build --release -p ringtree-cli
                                                and cargo build --release --example seal -p ringtree-benches)

Each byte is sealed, sent and opened, by the thread that does everything else too: at best one after the
other. The bound is 0.8 of 1 / (1 / plain + 1 / seal + 1 / open), all of the same run; medians of five
rounds."""

import json
import pathlib
import statistics
import subprocess

from common import RINGTREE, bench, end, row

ROUNDS = 5
SIZES = (1 << 20, 16 << 20, 128 << 20)


def rates():
    example = pathlib.Path(RINGTREE).parent / "examples/seal"
    output = subprocess.run([str(example)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                            check=True, text=True, timeout=60).stdout
    found = json.loads(output)
    return found["seal_bytes_per_s"] / 1e9, found["open_bytes_per_s"] / 1e9


def link(size, *options):
    arguments = ["--ranks", "2", "--transport", "tcp", "--sizes", str(size), "--time-ms", "200"]
    return bench([*arguments, *options])["busbw_GBps"]


for size in SIZES:
    figures = [(link(size), link(size, "--encrypt"), *rates()) for _ in range(ROUNDS)]
    plain, encrypted, seal, opened = map(statistics.median, zip(*figures))
    least = 0.8 / (1 / plain + 1 / seal + 1 / opened)
    # Times, so that the figure is to be below its bound: of a GB on the bus.
    row(f"{size >> 20} MiB, encrypted: a GB in", 1e3 / encrypted, 1e3 / least, "ms",
        f"plain {plain:.2f}, seal {seal:.2f}, open {opened:.2f}, encrypted {encrypted:.2f} GB/s")
end()
