#!/usr/bin/env python3
"""How far the chosen algorithm is behind the best one, before `ringtree tune` and after.

Usage: python3 benches/host/choices.py        (after cargo build --release -p ringtree-cli)
       python3 benches/host/choices.py --ranks 2 --transport shm --collective all-reduce

Each algorithm of each collective is measured at each size, in place and out of place. A choice is lost
where it takes more than 1.1 times as long as the best one and 2 us would. What looks lost is measured
twice more, and the medians count. The best of many noisy figures is better than it is, and a virtual machine
is faster at one time than at another: what still looks lost, is measured against that best one in turns, five
times, and is lost where it is in the median of those. Without options that takes about fifteen minutes."""

import collections
import os
import statistics
import subprocess
import tempfile

from common import RINGTREE, document, end, row, sweep_parser

COLLECTIVES = ["all-reduce", "broadcast", "all-gather", "reduce-scatter", "reduce", "gather", "scatter",
               "all-to-all"]
FLOOR_US = 2.0
MOST = 1.1
REPEATS = 2
TURNS = 5

parser = sweep_parser(__doc__, COLLECTIVES)
parser.add_argument("--sizes", default="8,256,4K,64K,256K,1M,4M,16M")
parser.add_argument("--time-ms", default="40", help="for each row and placement")
parser.add_argument("--seconds", default="20", help="for each `ringtree tune`")
options = parser.parse_args()


def measure(collective, ranks, transport, sizes, environment):
    """The times of each algorithm by call, which is a size and whether it is in place; and the algorithm
    that is chosen for each."""
    arguments = ["--ranks", str(ranks), "--transport", transport, "--algorithm", "all", "--sizes",
                 sizes, "--time-ms", options.time_ms, "-c", "0"]
    found = document(collective, arguments, environment)
    assert found["job"]["tuned"] == ("XDG_CACHE_HOME" in environment), found["job"]
    times_us, chosen = collections.defaultdict(dict), {}
    for line in found["rows"]:
        call = line["bytes"], line["inplace"]
        times_us[call].setdefault(line["algorithm"], []).append(line["median_us"])
        if line["chosen"]:
            chosen[call] = line["algorithm"]
    return times_us, chosen


def judged(times_us, chosen):
    """Of a call: what the choice takes, what it may take, and the best algorithm."""
    medians_us = {name: statistics.median(times) for name, times in times_us.items()}
    best = min(medians_us, key=medians_us.get)
    return medians_us[chosen], MOST * (medians_us[best] + FLOOR_US), best


def sweep(collective, ranks, transport, environment):
    """Each call with what it was judged to be, and the algorithm that is chosen for it."""
    times_us, chosen = measure(collective, ranks, transport, options.sizes, environment)

    def judgements():
        return {call: (*judged(times_us[call], chosen[call]), chosen[call]) for call in chosen}

    slow = {bytes for (bytes, _), found in judgements().items() if found[0] > found[1]}
    for _ in range(REPEATS if slow else 0):
        sizes = ",".join(map(str, sorted(slow)))
        again, _ = measure(collective, ranks, transport, sizes, environment)
        for call, of_algorithms in again.items():
            for name, times in of_algorithms.items():
                times_us[call][name] += times
    return judgements()


def in_turns(collective, ranks, transport, bytes, inplace, algorithms, environment):
    """The times of two algorithms for a call, one after the other each time."""
    arguments = ["--ranks", str(ranks), "--transport", transport, "--sizes", str(bytes), "--time-ms",
                 options.time_ms, "-c", "0"]
    times_us = collections.defaultdict(list)
    for turn in range(TURNS):
        for name in algorithms if turn % 2 == 0 else reversed(algorithms):
            found = document(collective, [*arguments, "--algorithm", name], environment)
            times_us[name] += [line["median_us"] for line in found["rows"] if line["inplace"] == inplace]
    return times_us


def confirmed(collective, ranks, transport, environment, entry):
    """Of a call that looks lost: what it was judged to be in turns with the best algorithm."""
    _, _, best, chosen, bytes, inplace = entry
    times_us = in_turns(collective, ranks, transport, bytes, inplace, [chosen, best], environment)
    bounds_us = [MOST * (time_us + FLOOR_US) for time_us in times_us[best]]
    # The turn in which it is behind by the median share.
    turns = sorted(zip(times_us[chosen], bounds_us), key=lambda turn: turn[0] / turn[1])
    time_us, bound_us = turns[len(turns) // 2]
    return time_us, bound_us, best, chosen, bytes, inplace


counts = collections.Counter()


def show(collective, ranks, transport, when, environment):
    """Prints each lost choice; after tuning the worst one in any case, which must not be lost."""
    calls = sweep(collective, ranks, transport, environment)
    found = [(*judgement, *call) for call, judgement in calls.items()]
    found.sort(key=lambda entry: entry[0] / entry[1], reverse=True)
    looks_lost = [entry for entry in found if entry[0] > entry[1]]
    again = [confirmed(collective, ranks, transport, environment, entry) for entry in looks_lost]
    lost = [entry for entry in again if entry[0] > entry[1]]
    counts[when, "looked lost"] += len(looks_lost)
    counts[when, "calls"] += len(found)
    counts[when, "lost"] += len(lost)
    what = f"{collective}, {transport}, {ranks} ranks, {when}"
    kept = [entry for entry in found if entry not in looks_lost]
    for time_us, bound_us, best, chosen, bytes, inplace in lost or again[:1] or kept[:1]:
        place = "in place" if inplace else "out of place"
        note = f"{bytes} bytes {place}: {chosen}, at best {best}"
        if when == "after":
            row(what, time_us, bound_us, "us", note)
        elif lost:
            # What tuning repairs is no fault.
            print(f"{what:<44} {time_us:>10.1f} us   bound {bound_us:>8.1f}  {note}", flush=True)


def tune(ranks, transport, environment):
    command = [RINGTREE, "tune", "--ranks", str(ranks), "--transport", transport, "--seconds",
               options.seconds]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                   timeout=600, env={**os.environ, **environment})


for transport in options.transport:
    for ranks in options.ranks:
        with tempfile.TemporaryDirectory() as caches:
            tuned = {"XDG_CACHE_HOME": caches, "RINGTREE_TUNING": "kept"}
            tune(ranks, transport, tuned)
            for collective in options.collective:
                show(collective, ranks, transport, "before", {"RINGTREE_TUNING": "off"})
                show(collective, ranks, transport, "after", tuned)
for when in ("before", "after"):
    print(f"{when} tuning {counts[when, 'lost']} of {counts[when, 'calls']} choices are lost; "
          f"{counts[when, 'looked lost']} looked so before they were measured in turns")
end()
