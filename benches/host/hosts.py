#!/usr/bin/env python3
"""All-reduce of 64 MiB between two hosts: one rank and two ranks a host over a wire of 1 Gbit/s; the
same while each rank computes for as long; two wires of unequal speed; a wire that gives each connection
a quarter of its speed.

Usage, as root: python3 benches/host/hosts.py      (after cargo build --release -p ringtree-cli and
                                                    cargo build --release --examples -p ringtree-benches)

The hosts are network namespaces; a wire is a pair of virtual interfaces, shaped by htb. The bound is 1.1 times what the wire needs for the bytes that must cross it: the
buffer's size each way, with the headers of TCP, IP and Ethernet. Over two wires it is what 85 % of the
sum of their speeds needs. Beside computing it is 1.15 times the longer of what each takes alone."""

import contextlib
import json
import os
import pathlib
import secrets
import subprocess

from common import RINGTREE, end, row

GBIT_PER_S = 1e9
# 1448 bytes of data in a frame of 1514.
EFFICIENCY = 1448 / 1514
BYTES = 64 << 20
# Dialers get these ports, so that a class of tc for each is few.
PORTS = (40000, 40031)


def system(*command):
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                   stderr=subprocess.DEVNULL)


def htb(rate):
    """Commands of tc for both ends of a wire, that limit it to a rate."""
    return 2 * [[["qdisc", "add", "root", "handle", "1:", "htb", "default", "1"],
                 ["class", "add", "parent", "1:", "classid", "1:1", "htb", "rate",
                  f"{rate:.0f}bit", "burst", "64k", "cburst", "64k"]]]


def htb_each(rate):
    """Commands of tc for both ends of a wire, that limit each of its connections to a rate: by the
    port of its dialer, which is the first host. The other's port is of the same range, and the same
    for all of them."""
    return [htb_each_by(side, rate) for side in ("sport", "dport")]


def htb_each_by(side, rate):
    """Commands of tc for one end."""
    commands = [["qdisc", "add", "root", "handle", "1:", "htb", "default", "fff"],
                ["class", "add", "parent", "1:", "classid", "1:fff", "htb", "rate", "1gbit"]]
    for port in range(PORTS[0], PORTS[1] + 1):
        name = f"1:{port - PORTS[0] + 1:x}"
        commands.append(["class", "add", "parent", "1:", "classid", name, "htb",
                         "rate", f"{rate:.0f}bit", "burst", "64k", "cburst", "64k"])
        commands.append(["filter", "add", "parent", "1:", "protocol", "ip", "u32", "match", "ip",
                         side, str(port), "0xffff", "flowid", name])
    return commands


@contextlib.contextmanager
def two_hosts(*shapes):
    """Their names. The first one's addresses are 10.77.0.1, 10.77.1.1 and so on, one for each wire."""
    names = [f"ringtree-{os.getpid()}-{side}" for side in "ab"]
    try:
        for name in names:
            system("ip", "netns", "add", name)
            system("ip", "-n", name, "link", "set", "lo", "up")
            system("ip", "netns", "exec", name, "sysctl", "-w",
                   "net.ipv4.ip_local_port_range={} {}".format(*PORTS))
        for number, ends in enumerate(shapes):
            wire = f"wire{number}"
            system("ip", "link", "add", wire, "netns", names[0], "type", "veth",
                   "peer", "name", wire, "netns", names[1])
            for host, (name, shape) in enumerate(zip(names, ends, strict=True), 1):
                address = f"10.77.{number}.{host}/24"
                system("ip", "-n", name, "addr", "add", address, "dev", wire)
                system("ip", "-n", name, "link", "set", wire, "up")
                lines = [" ".join([what, verb, "dev", wire, *rest]) for what, verb, *rest in shape]
                subprocess.run(["tc", "-n", name, "-batch", "-"], input="\n".join(lines), check=True,
                               text=True, stderr=subprocess.DEVNULL)
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False)


BENCH = [RINGTREE, "bench", "all-reduce", "--in-place", "--jsonl", "--sizes", str(BYTES), "-n", "5",
         "-w", "1"]
OVERLAP = [str(pathlib.Path(RINGTREE).parent / "examples/overlap")]


def measure(names, ranks, program=BENCH, **settings):
    """What the program prints last, run by so many ranks, half of them on each host."""
    environment = {**os.environ, "RINGTREE_SECRET": secrets.token_hex(16), "RINGTREE_JOB": "hosts",
                   **settings}
    jobs = []
    for number, name in enumerate(names):
        command = [
            "ip", "netns", "exec", name, RINGTREE, "run", "--raw", "--ranks", str(ranks),
            "--nodes", "2", "--node-rank", str(number), "--rendezvous", "10.77.0.1:29400", "--",
            *program,
        ]
        jobs.append(subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL,
                                     stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True))
    output = jobs[0].communicate(timeout=300)[0]
    jobs[1].communicate(timeout=300)
    return json.loads(output.splitlines()[-1])


def show(what, record, bit_per_s, share):
    """A row, whose bound is what this share of the speed needs."""
    bound_ms = 8e3 * BYTES / bit_per_s / EFFICIENCY / share
    row(what, record["median_us"] / 1e3, bound_ms, "ms",
        f"{record['algorithm']}, " + ("every element checked" if record["ok"] else "WRONG"))


with two_hosts(htb(GBIT_PER_S)) as names:
    for ranks in (2, 4):
        show(f"1 Gbit/s, {ranks} ranks", measure(names, ranks), GBIT_PER_S, 1 / 1.1)
    found = measure(names, 2, OVERLAP)
    longer_ms = 1e3 * max(found["alone_s"], found["computing_s"])
    note = f"alone {1e3 * found['alone_s']:.0f}, computing {1e3 * found['computing_s']:.0f}"
    for what, key in (("one call", "together_s"), ("8 calls at once", "parts_s")):
        row(f"1 Gbit/s, 2 ranks that compute, {what}", 1e3 * found[key], 1.15 * longer_ms, "ms", note)
with two_hosts(htb(GBIT_PER_S), htb(GBIT_PER_S / 2)) as names:
    record = measure(names, 2, RINGTREE_INTERFACE="wire0,wire1")
    show("1 and 0.5 Gbit/s, 2 ranks", record, 1.5 * GBIT_PER_S, 0.85)
with two_hosts(htb_each(GBIT_PER_S / 4)) as names:
    show("0.25 Gbit/s a connection, 1 of them", measure(names, 2), GBIT_PER_S / 4, 1 / 1.1)
    record = measure(names, 2, RINGTREE_SOCKETS="4")
    show("0.25 Gbit/s a connection, 4 of them", record, GBIT_PER_S, 1 / 1.1)
end()
