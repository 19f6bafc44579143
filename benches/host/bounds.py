#!/usr/bin/env python3
"""How near each collective comes to what the machine can do.

Usage: python3 benches/host/bounds.py
       (after cargo build --release -p ringtree-cli -p ringtree-benches --bins --examples)

The bound of shared memory: the bytes that all ranks must receive together, at the speed at which all
processors together copy buffers of that size, each its own. Of TCP over loopback: the same bytes, as fast as
threads that do nothing else send them, one way or both ways at once, whichever is more. Both are yardsticks: pieces
of a pipeline may stay in caches that a whole buffer runs through. Between hosts the wire is the bound:
`hosts.py` and `sim.py`. An all-reduce receives what it adds and then the result. Limits and times alternate;
the medians of the rounds count. A table in Markdown: the time in microseconds, and the part of it that the
bound is, in percent."""

import argparse
import json
import pathlib
import statistics
import subprocess

from common import RINGTREE, document

# Bytes that all `n` ranks receive together, of buffers of one byte.
RECEIVED = {
    "all-reduce": lambda n: 2 * (n - 1),
    "reduce-scatter": lambda n: n - 1,
    "all-gather": lambda n: n - 1,
    "broadcast": lambda n: n - 1,
    "reduce": lambda n: n - 1,
    "gather": lambda n: (n - 1) / n,
    "scatter": lambda n: (n - 1) / n,
    "all-to-all": lambda n: n - 1,
    "send-receive": lambda n: n,
    "all-gather-v": lambda n: n - 1,
    "reduce-scatter-v": lambda n: n - 1,
    "gather-v": lambda n: (n - 1) / n,
    "scatter-v": lambda n: (n - 1) / n,
    "all-to-all-v": lambda n: n - 1,
}
SIZES = {"64K": 64 << 10, "1M": 1 << 20, "16M": 16 << 20}

parser = argparse.ArgumentParser(description=__doc__,
                                 formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--collective", nargs="+", default=list(RECEIVED), choices=RECEIVED)
parser.add_argument("--ranks", nargs="+", type=int, default=[2, 4])
parser.add_argument("--transport", nargs="+", default=["shm", "tcp"], choices=["shm", "tcp"])
parser.add_argument("--rounds", type=int, default=3)
options = parser.parse_args()


def limits():
    program = pathlib.Path(RINGTREE).parent / "examples/limits"
    return json.loads(subprocess.run([program], stdout=subprocess.PIPE, check=True, timeout=60).stdout)


def times_us(collective, ranks, transport):
    """The shorter time of each size, in place or not."""
    arguments = ["--ranks", str(ranks), "--transport", transport, "--sizes", ",".join(SIZES),
                 "--time-ms", "40", "-c", "0"]
    found = {}
    for row in document(collective, arguments)["rows"]:
        size = min(SIZES.values(), key=lambda size: abs(size - row["bytes"]))
        found[size] = min(found.get(size, float("inf")), row["median_us"])
    return found


for transport in options.transport:
    for ranks in options.ranks:
        print(f"\n| {transport}, {ranks} ranks | " + " | ".join(SIZES) + " |")
        print("| --- |" + " --- |" * len(SIZES))
        for collective in options.collective:
            times, parts = {size: [] for size in SIZES.values()}, {size: [] for size in SIZES.values()}
            for _ in range(options.rounds):
                limit = limits()
                for size, time_us in times_us(collective, ranks, transport).items():
                    speed = (limit["copy_bytes_per_s"][str(size)] if transport == "shm"
                             else limit["loopback_bytes_per_s"])
                    bound_us = RECEIVED[collective](ranks) * size / speed * 1e6
                    times[size].append(time_us)
                    parts[size].append(bound_us / time_us)
            cells = [f"{statistics.median(times[size]):.0f} ({statistics.median(parts[size]):.0%})"
                     for size in SIZES.values()]
            print(f"| {collective} | " + " | ".join(cells) + " |", flush=True)
