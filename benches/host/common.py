"""What the measurements in this folder share: the program, a row of a table, the end's verdict."""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

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


def document(collective, arguments, environment=None):
    """Runs `ringtree bench` of a collective; what --json writes."""
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        command = [RINGTREE, "bench", collective, "--json", file.name, *arguments]
        run = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                             stderr=subprocess.PIPE, timeout=3600, text=True,
                             env={**os.environ, **(environment or {})})
        if run.returncode:
            sys.exit(f"{' '.join(command)}: {run.stderr}")
        return json.load(file)


def sweep_parser(description, collectives):
    """The options of a sweep: which part of it to run."""
    parser = argparse.ArgumentParser(description=description,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--collective", nargs="+", default=collectives, choices=collectives)
    parser.add_argument("--ranks", nargs="+", type=int, default=[2, 3, 4])
    parser.add_argument("--transport", nargs="+", default=["shm", "tcp"], choices=["shm", "tcp"])
    return parser


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
