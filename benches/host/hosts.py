#!/usr/bin/env python3
"""All-reduce of 64 MiB between two hosts: one rank and two ranks a host over a wire of 1 Gbit/s; the
same while each rank computes for as long; two wires of unequal speed; a wire that gives each connection
a quarter of its speed.

Usage, as root: python3 benches/host/hosts.py      (after cargo build --release -p ringtree-cli and
                                                    cargo build --release --examples -p ringtree-benches)

The hosts are network namespaces; a wire is a pair of virtual interfaces, shaped by htb. The bound is 1.1 times what the wire needs for the bytes that must cross it: the
buffer's size each way, with the headers of TCP, IP and Ethernet. Over two wires it is what 85 % of the
sum of their speeds needs. Beside computing it is 1.15 times the longer of what each takes alone."""

import pathlib

from common import RINGTREE, end, row
from wires import EFFICIENCY, GBIT_PER_S, PORTS, htb, htb_each, measure, two_hosts

BYTES = 64 << 20
BENCH = [RINGTREE, "bench", "all-reduce", "--in-place", "--jsonl", "--sizes", str(BYTES), "-n", "5",
         "-w", "1"]
OVERLAP = [str(pathlib.Path(RINGTREE).parent / "examples/overlap")]


def measure_last(names, ranks, program=BENCH, **settings):
    """What the program prints last."""
    return measure(names, ranks, program, **settings)[-1]


def show(what, record, bit_per_s, share):
    """A row, whose bound is what this share of the speed needs."""
    bound_ms = 8e3 * BYTES / bit_per_s / EFFICIENCY / share
    row(what, record["median_us"] / 1e3, bound_ms, "ms",
        f"{record['algorithm']}, " + ("every element checked" if record["ok"] else "WRONG"))


with two_hosts(htb(GBIT_PER_S)) as names:
    for ranks in (2, 4):
        show(f"1 Gbit/s, {ranks} ranks", measure_last(names, ranks), GBIT_PER_S, 1 / 1.1)
    found = measure_last(names, 2, OVERLAP)
    longer_ms = 1e3 * max(found["alone_s"], found["computing_s"])
    note = f"alone {1e3 * found['alone_s']:.0f}, computing {1e3 * found['computing_s']:.0f}"
    for what, key in (("one call", "together_s"), ("8 calls at once", "parts_s")):
        row(f"1 Gbit/s, 2 ranks that compute, {what}", 1e3 * found[key], 1.15 * longer_ms, "ms", note)
with two_hosts(htb(GBIT_PER_S), htb(GBIT_PER_S / 2)) as names:
    record = measure_last(names, 2, RINGTREE_INTERFACE="wire0,wire1")
    show("1 and 0.5 Gbit/s, 2 ranks", record, 1.5 * GBIT_PER_S, 0.85)
with two_hosts(htb_each(GBIT_PER_S / 4), ports=PORTS) as names:
    show("0.25 Gbit/s a connection, 1 of them", measure_last(names, 2), GBIT_PER_S / 4, 1 / 1.1)
    record = measure_last(names, 2, RINGTREE_SOCKETS="4")
    show("0.25 Gbit/s a connection, 4 of them", record, GBIT_PER_S, 1 / 1.1)
end()
