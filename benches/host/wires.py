"""Two hosts made of network namespaces, and wires between them that are shaped by htb."""

import contextlib
import json
import os
import secrets
import subprocess

from common import RINGTREE

GBIT_PER_S = 1e9
# 1448 bytes of data in a frame of 1514.
EFFICIENCY = 1448 / 1514
# So few that there can be a class of tc for each.
PORTS = (40000, 40031)


def system(*command):
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                   stderr=subprocess.DEVNULL)


def htb(rate, burst="64k"):
    """Commands of tc for both ends of a wire, that limit it to a rate. So much passes at once after a
    rest."""
    return 2 * [[["qdisc", "add", "root", "handle", "1:", "htb", "default", "1"],
                 ["class", "add", "parent", "1:", "classid", "1:1", "htb", "rate",
                  f"{rate:.0f}bit", "burst", burst, "cburst", burst]]]


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
def two_hosts(*shapes, ports=None):
    """Their names. The first one's addresses are 10.77.0.1, 10.77.1.1 and so on, one for each wire. Dialers
    get these ports, the first and the last, if any are named."""
    names = [f"ringtree-{os.getpid()}-{side}" for side in "ab"]
    try:
        for name in names:
            system("ip", "netns", "add", name)
            system("ip", "-n", name, "link", "set", "lo", "up")
            if ports:
                system("ip", "netns", "exec", name, "sysctl", "-w",
                       "net.ipv4.ip_local_port_range={} {}".format(*ports))
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


def measure(names, ranks, program, **settings):
    """The records that the program prints, run by so many ranks, half of them on each host."""
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
    if any(job.returncode for job in jobs):
        raise RuntimeError(f"a job of {ranks} ranks has failed")
    return [json.loads(line) for line in output.splitlines()]
