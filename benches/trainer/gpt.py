#!/usr/bin/env python3
"""Trains the default GPT on one play with `ringtree-train` on 2 ranks and with PyTorch: the same starting parameters,
samples, rates, clipping and steps. Prints both validation losses, which may differ by 2 %, and both times.

Usage: bash benches/trainer/setup.sh; python3 benches/trainer/gpt.py [--ranks N] [SETTING=VALUE ...]
(after cargo build --release -p ringtree-trainer --bins --examples; PEERS_DIR is the folder of setup.sh)

Settings are those of the program (`steps=100`). PyTorch runs in one process, with as many threads as there are
ranks; it computes the steps that the ranks make together."""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
import tomllib

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benches/host"))
from common import end, row  # noqa: E402

RELEASE = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release"
PEERS = pathlib.Path(os.environ.get("PEERS_DIR", "/tmp/peers"))
BOUND_LOSS_PERCENT = 2
BOUND_S = 600
# Its threads otherwise spin while they wait for one another, which takes it several times as long on a busy machine.
PASSIVE = {"OMP_WAIT_POLICY": "passive"}


def train(folder, ranks, settings):
    """Runs the program; its seconds, start and all included."""
    command = [RELEASE / "ringtree-train", "--model", "gpt", "--data", PEERS / "play.txt", "--ranks", str(ranks),
               "--out", folder]
    for setting in settings:
        command += ["--set", setting]
    began = time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - began


def metrics(folder, kind):
    lines = map(json.loads, (folder / "metrics.jsonl").open())
    return [line for line in lines if line["kind"] == kind]


def peer(folder, ranks, config):
    """Runs the same steps in PyTorch."""
    characters = (PEERS / "play.txt").stat().st_size
    block = config["data_settings"]["block"]
    samples = characters - characters // 10 - block
    batches = subprocess.run(
        [RELEASE / "examples/batches", *map(str, (samples, ranks * config["batch"], config["seed"], config["steps"]))],
        check=True, capture_output=True,
    )
    (folder / "batches.txt").write_bytes(batches.stdout)
    start = folder / "start/checkpoints/step-0000000000/parameters.safetensors"
    settings = {**config, "block": block, "start": str(start), "batches": str(folder / "batches.txt")}
    (folder / "peer.json").write_text(json.dumps(settings))
    command = [PEERS / "gloo-venv/bin/python", ROOT / "benches/trainer/peer.py", "train", folder / "peer.json"]
    run = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True,
                         env={**os.environ, **PASSIVE, "OMP_NUM_THREADS": str(ranks)})
    return json.loads(run.stdout)


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--ranks", type=int, default=2)
parser.add_argument("settings", nargs="*")
arguments = parser.parse_args()
with tempfile.TemporaryDirectory() as folder:
    folder = pathlib.Path(folder)
    train(folder / "start", arguments.ranks, [*arguments.settings, "steps=0"])
    seconds = train(folder / "run", arguments.ranks, arguments.settings)
    config = tomllib.loads((folder / "run/config.toml").read_text())
    found = peer(folder, arguments.ranks, config)
    step_lines, validations = (metrics(folder / "run", kind) for kind in ("step", "validation"))

tokens = config["steps"] * arguments.ranks * config["batch"] * config["data_settings"]["block"]
print(f"{config['steps']} steps, {tokens:,} characters; PyTorch {found['torch']}; validation loss:")
for line in validations:
    print(f"  after step {line['step']:>5}  ringtree {line['loss']:.4f}  PyTorch {found['losses'][str(line['step'])]:.4f}")
ours, theirs = validations[-1]["loss"], found["losses"][str(config["steps"])]
row("difference of the last loss", 100 * abs(ours / theirs - 1), BOUND_LOSS_PERCENT, "%")
row(f"time of {arguments.ranks} ranks", seconds, BOUND_S, "s", f"PyTorch {found['seconds']:.1f} s")
end()
