#!/usr/bin/env python3
"""Eight bytes among more ranks than processors, and where others want the processors, too.

Usage: python3 benches/host/waiting.py        (after cargo build --release -p ringtree-cli)

Each row: the median of the slowest rank's times, its bound, and the mean time of calls in a row.
The first rows are the measure for the others, whose bound is three times what the same share of the
processors' time allows. Their own bounds were made for a machine with 2 processors."""

import contextlib
import os
import pathlib
import subprocess

from common import bench, end, row

BOUNDS_US = {("shm", 8): 10, ("shm", 16): 30, ("tcp", 8): 100, ("tcp", 16): 300}
RANKS = tuple(map(int, os.environ.get("RANKS", "2 4 8 16").split()))


def measure(transport, ranks, **how):
    iterations = 20000 if ranks <= 4 else 5000
    arguments = ["--ranks", str(ranks), "--transport", transport, "--sizes", "8"]
    return bench([*arguments, "-n", str(iterations), "-c", "0"], **how)


def show(name, transport, ranks, bound_us, record):
    mean = f"mean of calls in a row {record['loop_us']:.1f} us"
    row(f"{name}, {transport}, {ranks} ranks", record["median_us"], bound_us, "us", mean)


@contextlib.contextmanager
def neighbours(count):
    """Processes that never rest, one bound to each processor."""
    busy = []
    try:
        for processor in sorted(os.sched_getaffinity(0))[:count]:
            command = ["taskset", "-c", str(processor), "sh", "-c", "while :; do :; done"]
            busy.append(subprocess.Popen(command))
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


@contextlib.contextmanager
def quota_of_one_processor():
    """How to enter a control group that gets one processor's time; None if that is not allowed."""
    name = f"ringtree-waiting-{os.getpid()}"
    root = pathlib.Path("/sys/fs/cgroup")
    if (root / "cgroup.controllers").exists():
        folder, settings = root / name, {"cpu.max": "100000 100000"}
    else:
        folder = root / "cpu" / name
        settings = {"cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "100000"}
    try:
        folder.mkdir()
    except OSError:
        yield None
        return
    try:
        for file, value in settings.items():
            (folder / file).write_text(value)
    except OSError:
        enter = None
    else:
        enter = lambda: (folder / "cgroup.procs").write_text(str(os.getpid()))
    try:
        yield enter
    finally:
        folder.rmdir()


processors = len(os.sched_getaffinity(0))
free_us = {}
for transport in ("shm", "tcp"):
    for ranks in RANKS:
        record = measure(transport, ranks)
        free_us[transport, ranks] = record["median_us"]
        bound_us = BOUNDS_US.get((transport, ranks), float("inf"))
        show("free", transport, ranks, bound_us, record)

for transport in ("shm", "tcp"):
    for ranks in RANKS:
        first = str(min(os.sched_getaffinity(0)))
        record = measure(transport, ranks, prefix=["taskset", "-c", first])
        # Ranks that spin beside each other with a processor each are no measure for this.
        base_us = max(free_us[transport, ranks], free_us[transport, 4] / 2)
        show("all on one processor", transport, ranks, 3 * processors * base_us, record)

with neighbours(processors):
    for transport in ("shm", "tcp"):
        for ranks in RANKS:
            share = max(ranks / processors, 1)
            bound_us = 3 * free_us[transport, ranks] * (share + 1) / share
            show("busy neighbours", transport, ranks, bound_us, measure(transport, ranks))

with quota_of_one_processor() as enter:
    if enter is None:
        print("quota of one processor: not measured, as making a control group is not allowed here")
    else:
        for transport in ("shm", "tcp"):
            for ranks in RANKS:
                record = measure(transport, ranks, preexec=enter)
                base_us = max(free_us[transport, ranks], free_us[transport, 4] / 2)
                show("quota of one processor", transport, ranks, 3 * processors * base_us, record)
end()
