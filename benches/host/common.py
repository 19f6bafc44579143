"""What the measurements in this folder share: the program, a row of a table, the end's verdict."""

import json
import os
import pathlib
import subprocess
import sys

RINGTREE = os.environ.get(
    "RINGTREE", str(pathlib.Path(__file__).resolve().parents[2] / "target/release/ringtree")
)

failed = []


def bench(arguments, prefix=(), preexec=None):
    """Runs `ringtree bench all-reduce` in place; the last row's record."""
    command = [*prefix, RINGTREE, "bench", "all-reduce", "--in-place", "--jsonl", *arguments]
    run = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, preexec_fn=preexec, check=True,
        text=True, timeout=300,
    )
    return json.loads(run.stdout.splitlines()[-1])


def row(what, figure, bound, unit, note=""):
    """Prints a figure beside its bound, and remembers whether it is kept."""
    kept = figure <= bound
    if not kept:
        failed.append(what)
    verdict = "" if kept else "  ABOVE THE BOUND"
    print(f"{what:<44} {figure:>10.1f} {unit:<4} bound {bound:>8.1f}  {note}{verdict}", flush=True)


def end():
    """The exit status says whether every bound was kept."""
    sys.exit(1 if failed else 0)
