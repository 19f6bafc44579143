#!/usr/bin/env python3
"""How long a job takes to be ready, and what idle ranks hold.

Usage: python3 benches/host/start.py          (after cargo build --release -p ringtree-cli
                                                and cargo build --release --examples -p ringtree-benches)
"""

import json
import pathlib
import subprocess
import time

from common import RINGTREE, end, row

EXAMPLE = pathlib.Path(RINGTREE).parent / "examples/start"


def run(*arguments, launcher=()):
    command = [*launcher, str(EXAMPLE), *arguments]
    output = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=True,
                            text=True, timeout=120)
    return [json.loads(line) for line in output.stdout.splitlines() if line.startswith("{")]


def median(values):
    return sorted(values)[len(values) // 2]


def processes(ranks):
    launcher = [RINGTREE, "run", "--ranks", str(ranks), "--raw", "--"]
    begin = time.monotonic()
    records = run("processes", launcher=launcher)
    return time.monotonic() - begin, records[0]


whole_s, ready_s, memory = [], [], []
for _ in range(5):
    whole, record = processes(64)
    whole_s.append(whole)
    ready_s.append(record["ready_s"])
    memory.append(record["idle_mib_a_rank"])
row("64 processes, ready", median(ready_s), 1.5, "s", "from the first rank's start, five jobs' median")
row("64 processes, from launch to the end", median(whole_s), 2.5, "s")
row("64 idle processes, memory of their own a rank", median(memory), 1.0, "MiB",
    "beside what the program itself holds before it joins")
threads = median([run("threads", "256")[0]["ready_s"] for _ in range(5)])
row("256 ranks as threads, ready", threads, 2.0, "s", "five jobs' median")
end()
