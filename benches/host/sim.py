#!/usr/bin/env python3
"""What `ringtree sim` says beside what is measured: all-reduce of 64 KiB to 64 MiB among 2, 4 and 8 ranks on
two hosts with a wire of 1 Gbit/s between them, by the algorithm that the library chooses.

Usage, as root: python3 benches/host/sim.py      (after cargo build --release -p ringtree-cli)

The hosts are network namespaces; the wire is a pair of virtual interfaces, shaped by htb. The prediction
knows what TCP can use of the wire, and a latency: what an exchange of 8 bytes between two ranks takes
beyond what is predicted without one. The ranks run before all other processes (SCHED_RR), so that it
does not matter what else the machine does. A time is the median of all calls, the least of three rounds.
The prediction may be a fifth off, either way."""

import json
import os
import subprocess

from common import RINGTREE, end, failed
from wires import EFFICIENCY, GBIT_PER_S, htb, measure, two_hosts

SIZES = [64 << 10, 256 << 10, 1 << 20, 4 << 20, 16 << 20, 64 << 20]
ROUNDS = 3
MOST_ERROR = 0.2


def predicted_us(ranks, size, algorithm, latency_us):
    """What the simulator says of one algorithm."""
    command = [
        RINGTREE, "sim", "all-reduce", "--ranks", str(ranks), "--hosts", "2", "--bytes", str(size),
        "--latency-us", f"{latency_us:.3f}", "--bandwidth", f"{GBIT_PER_S / 8 * EFFICIENCY:.0f}",
        "--algorithm", algorithm, "--json",
    ]
    output = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True, timeout=60)
    return json.loads(output.stdout)[0]["rows"][0]["time_us"]


def measured(names, ranks, sizes):
    """Of each size, the round with the least median."""
    program = [RINGTREE, "bench", "all-reduce", "--in-place", "--jsonl", "--time-ms", "200",
               "--sizes", ",".join(map(str, sizes))]
    rounds = [measure(names, ranks, program) for _ in range(ROUNDS)]
    return [min(records, key=lambda record: record["median_us"]) for records in zip(*rounds, strict=True)]


os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
# With a longer burst short messages would pass as if there were no limit.
with two_hosts(htb(GBIT_PER_S, burst="8k")) as names:
    exchange = measured(names, 2, [8])[0]
    without_us = predicted_us(2, 8, exchange["algorithm"], 0)
    latency_us = max(exchange["median_us"] - without_us, 0)
    print(f"latency {latency_us:.1f} us\n{'ranks':>5} {'bytes':>9}  {'algorithm':<17} {'measured':>10} "
          f"{'predicted':>10} {'ratio':>6}   (us)")
    for ranks in (2, 4, 8):
        for record in measured(names, ranks, SIZES):
            size, algorithm, median_us = record["bytes"], record["algorithm"], record["median_us"]
            forecast_us = predicted_us(ranks, size, algorithm, latency_us)
            kept = abs(forecast_us / median_us - 1) <= MOST_ERROR and record["ok"]
            if not kept:
                failed.append((ranks, size))
            print(f"{ranks:>5} {size:>9}  {algorithm:<17} {median_us:>10.0f} {forecast_us:>10.0f} "
                  f"{forecast_us / median_us:>6.2f}{'' if kept else '  OUT OF BOUNDS'}", flush=True)
end()
