#!/usr/bin/env python3
"""How long queueing an all-reduce of a GPU's buffer keeps the caller, without the driver's own time: on the stand-in for
the CUDA driver, which tells that.

Usage: python3 benches/host/queueing.py       (after cargo build --release -p ringtree-cuda-standin
                                               and cargo build --release --examples -p ringtree-benches)
"""

import json
import os
import pathlib
import subprocess

from common import RINGTREE, end, row

FOLDER = pathlib.Path(RINGTREE).parent
COMMAND = [str(FOLDER / "examples/queueing"), str(FOLDER / "libringtree_cuda_standin.so")]
NOTES = {
    "queued": "behind other work of the stream",
    "one_by_one": "each when the one before is done, which wakes threads",
}

runs = []
for _ in range(5):
    run = subprocess.run(COMMAND, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=True, text=True,
                         timeout=120, env={**os.environ, "RINGTREE_STANDIN_SCHEDULE": "prompt"})
    runs.append(json.loads(run.stdout))
for kind, note in NOTES.items():
    def median(part):
        return sorted(run[kind][part] for run in runs)[len(runs) // 2]
    note = f"{note}; {median('whole_us'):.1f} in all, {median('driver_us'):.1f} of them the stand-in's"
    row(f"queueing an all-reduce, {kind.replace('_', ' ')}", median("rest_us"), 20, "us", note)
end()
