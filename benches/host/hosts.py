#!/usr/bin/env python3
"""All-reduce between two hosts of two ranks each, over a wire of 1 Gbit/s.

Usage, as root: python3 benches/host/hosts.py      (after cargo build --release -p ringtree-cli)

The hosts are network namespaces; the wire is a pair of virtual interfaces, shaped by htb. The bound is
1.1 times what the wire needs for the bytes that must cross it: the buffer's size each way, with the
headers of TCP, IP and Ethernet. The first row is the same with one rank a host."""

import contextlib
import json
import os
import secrets
import subprocess

from common import RINGTREE, end, row

RATE_BIT_PER_S = 1e9
# 1448 bytes of data in a frame of 1514.
EFFICIENCY = 1448 / 1514
BYTES = 64 << 20


def system(*command):
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@contextlib.contextmanager
def two_hosts():
    """Their names; the first one's address is 10.77.9.1."""
    names = [f"ringtree-{os.getpid()}-{side}" for side in "ab"]
    try:
        for name in names:
            system("ip", "netns", "add", name)
            system("ip", "-n", name, "link", "set", "lo", "up")
        system("ip", "link", "add", "wire", "netns", names[0], "type", "veth",
               "peer", "name", "wire", "netns", names[1])
        for number, name in enumerate(names, 1):
            system("ip", "-n", name, "addr", "add", f"10.77.9.{number}/24", "dev", "wire")
            system("ip", "-n", name, "link", "set", "wire", "up")
            tc = ["tc", "-n", name]
            system(*tc, "qdisc", "add", "dev", "wire", "root", "handle", "1:", "htb", "default", "1")
            system(*tc, "class", "add", "dev", "wire", "parent", "1:", "classid", "1:1", "htb",
                   "rate", f"{RATE_BIT_PER_S:.0f}bit", "burst", "64k", "cburst", "64k")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False)


def measure(names, ranks):
    """The record of an all-reduce of BYTES among `ranks`, half of them on each host."""
    environment = {**os.environ, "RINGTREE_SECRET": secrets.token_hex(16), "RINGTREE_JOB": "hosts"}
    jobs = []
    for number, name in enumerate(names):
        command = [
            "ip", "netns", "exec", name, RINGTREE, "run", "--raw", "--ranks", str(ranks),
            "--nodes", "2", "--node-rank", str(number), "--rendezvous", "10.77.9.1:29400", "--",
            RINGTREE, "bench", "all-reduce", "--in-place", "--jsonl", "--sizes", str(BYTES),
            "-n", "5", "-w", "1",
        ]
        jobs.append(subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL,
                                     stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True))
    output = jobs[0].communicate(timeout=300)[0]
    jobs[1].communicate(timeout=300)
    return json.loads(output.splitlines()[-1])


bound_ms = 1.1 * 8e3 * BYTES / RATE_BIT_PER_S / EFFICIENCY
with two_hosts() as names:
    for ranks in (2, 4):
        record = measure(names, ranks)
        row(f"64 MiB, {ranks} ranks on 2 hosts, {record['algorithm']}", record["median_us"] / 1e3,
            bound_ms, "ms", "every element checked" if record["ok"] else "WRONG")
end()
