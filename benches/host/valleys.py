#!/usr/bin/env python3
"""Whether a size takes longer than a larger one: all sizes from 1 byte to 128 MiB in steps of the square
root of 2.

Usage: python3 benches/host/valleys.py        (after cargo build --release -p ringtree-cli)
       python3 benches/host/valleys.py --ranks 2 --transport shm --collective all-reduce

The bound of a size is 1.15 times what the fastest larger one takes. Sizes above their bounds are measured
again up to four times, with those that they are compared with, and the medians count. The row of a
collective is its worst size, and each other one that is above its bound has a row, too. Calls are out of
place, of bytes, and chosen by what `ringtree tune` keeps if it keeps something. Without options that
takes about five minutes."""

import collections
import statistics

from common import document, end, row, sweep_parser

COLLECTIVES = ["all-reduce", "all-gather", "reduce-scatter", "broadcast", "all-to-all"]
OF_BLOCKS = {"all-gather", "reduce-scatter", "all-to-all"}
MOST = 1.15
REPEATS = 4

parser = sweep_parser(__doc__, COLLECTIVES)
parser.add_argument("--last-bytes", type=int, default=128 << 20, help="the largest size")
parser.add_argument("--time-ms", default="40", help="for each size")
options = parser.parse_args()


def sizes(collective, ranks):
    """The sizes, with a whole block for each rank where there are blocks."""
    unit = ranks if collective in OF_BLOCKS else 1
    steps = range(2 * options.last_bytes.bit_length())
    whole = {max(round(2 ** (step / 2)) // unit, 1) * unit for step in steps}
    return sorted(size for size in whole if size <= options.last_bytes)


def measure(collective, ranks, transport, sizes_bytes, times_us):
    arguments = ["--ranks", str(ranks), "--transport", transport, "-d", "uint8", "--out-of-place",
                 "--time-ms", options.time_ms, "-c", "0", "--sizes", ",".join(map(str, sizes_bytes))]
    for line in document(collective, arguments)["rows"]:
        times_us[line["bytes"]].append(line["median_us"])


def judged(times_us):
    """Each size with its time, the shortest of the larger ones, and which of them that is."""
    medians_us = {size: statistics.median(times) for size, times in sorted(times_us.items())}
    found, best = [], None
    for size in reversed(medians_us):
        if best is not None:
            found.append((medians_us[size], medians_us[best], size, best))
        if best is None or medians_us[size] < medians_us[best]:
            best = size
    return found


def sweep(collective, ranks, transport):
    times_us = collections.defaultdict(list)
    measure(collective, ranks, transport, sizes(collective, ranks), times_us)
    for _ in range(REPEATS):
        slow = [found for found in judged(times_us) if found[0] > MOST * found[1]]
        if not slow:
            break
        again = {size for *_, size, larger in slow for size in (size, larger)}
        measure(collective, ranks, transport, sorted(again), times_us)
    return sorted(judged(times_us), key=lambda found: found[0] / found[1], reverse=True)


for transport in options.transport:
    for ranks in options.ranks:
        for collective in options.collective:
            worst, *others = sweep(collective, ranks, transport)
            for time_us, larger_us, size, larger in [
                    worst, *(found for found in others if found[0] > MOST * found[1])]:
                row(f"{collective}, {transport}, {ranks} ranks", time_us, MOST * larger_us, "us",
                    f"{size} bytes beside {larger}")
end()
