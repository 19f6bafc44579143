#!/usr/bin/env python3
"""Data-parallel steps beside PyTorch's DistributedDataParallel with Gloo: how much slower a step becomes from 1 rank
to 2, and what of that is the exchange of gradients. The same models, samples a rank, AdamW, bucket sizes, and one
thread a rank; everything in turns, several rounds, medians.

Usage: bash benches/trainer/setup.sh; python3 benches/trainer/ddp.py [--rounds N] [--json FILE]
(after cargo build --release -p ringtree-trainer --examples; PEERS_DIR is the folder of setup.sh)

"alone" is a step of one rank on a free machine. Of 2 ranks, rows of steps with the exchange and rows without take turns
in one process: PyTorch's without are `no_sync`, Ringtree's are those of a communicator of one. Their difference is
what is exposed of the exchange. "exchange" is that of all buckets when nothing else is done."""

import argparse
import json
import os
import pathlib
import secrets
import socket
import subprocess
import sys
from collections import defaultdict
from statistics import median

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benches/host"))
from common import end, row  # noqa: E402

RELEASE = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release"
PEERS = pathlib.Path(os.environ.get("PEERS_DIR", "/tmp/peers"))
OURS = [RELEASE / "examples/scaling"]
# As ringtree-train starts its ranks.
KEEP_MEMORY = {"MIMALLOC_PURGE_DELAY": "-1"}
CANDIDATES = {
    "ringtree": (OURS, KEEP_MEMORY),
    "ringtree, tcp": (OURS, {**KEEP_MEMORY, "RINGTREE_TRANSPORT": "tcp"}),
    "PyTorch, Gloo": ([PEERS / "gloo-venv/bin/python", ROOT / "benches/trainer/peer.py", "steps"], {}),
}
# Samples a rank, steps a run.
MODELS = {"gpt": (12, 20), "mlp": (32, 20)}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run(candidate, model, ranks):
    """What the slowest rank found."""
    program, settings = CANDIDATES[candidate]
    address, port = "127.0.0.1", str(free_port())
    environment = {
        **os.environ, **settings, "OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1",
        "MASTER_ADDR": address, "MASTER_PORT": port, "WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks),
        "RINGTREE_RANKS": str(ranks), "RINGTREE_RENDEZVOUS": f"{address}:{port}",
        "RINGTREE_SECRET": secrets.token_hex(16),
    }
    jobs = []
    for rank in map(str, range(ranks)):
        own = {"RANK": rank, "LOCAL_RANK": rank, "RINGTREE_RANK": rank, "RINGTREE_LOCAL_RANK": rank}
        jobs.append(subprocess.Popen([*program, model, *map(str, MODELS[model])], env={**environment, **own},
                                     stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True))
    found = [json.loads(job.communicate(timeout=300)[0]) for job in jobs]
    return max(found, key=lambda one: one["step_ms"])


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--rounds", type=int, default=5)
parser.add_argument("--json", type=pathlib.Path, help="a file for what each run found")
arguments = parser.parse_args()

records = []
for number in range(arguments.rounds):
    for model in MODELS:
        for candidate in CANDIDATES:
            for ranks in (1, 2):
                record = run(candidate, model, ranks)
                records.append({"round": number, "model": model, "candidate": candidate, "ranks": ranks, **record})
                if arguments.json:
                    arguments.json.write_text("".join(json.dumps(record) + "\n" for record in records))

times_ms = defaultdict(list)
for record in records:
    for name in ("step_ms", "without_exchange_ms", "exchange_ms"):
        times_ms[record["model"], record["candidate"], record["ranks"], name].append(record[name])
ours, theirs = "ringtree", "PyTorch, Gloo"
for model, (samples, _) in MODELS.items():
    parameters = next(record["parameters"] for record in records if record["model"] == model)
    print(f"\n{model}: {parameters:,} parameters, {samples} samples a rank; times in ms")
    print("|  | alone | 2 ranks | without exchange | exposed | exchange | efficiency | exposed of step |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    efficiency, exposed_percent = {}, {}
    for candidate in CANDIDATES:
        get = lambda ranks, name: median(times_ms[model, candidate, ranks, name])
        alone, step, without = get(1, "step_ms"), get(2, "step_ms"), get(2, "without_exchange_ms")
        efficiency[candidate], exposed_percent[candidate] = alone / step, 100 * (step - without) / step
        print(f"| {candidate} | {alone:.1f} | {step:.1f} | {without:.1f} | {step - without:.1f} | "
              f"{get(2, 'exchange_ms'):.1f} | {100 * alone / step:.0f} % | {exposed_percent[candidate]:.1f} % |")
    print()
    row(f"{model}: slower from 1 rank to 2", 100 / efficiency[ours] - 100, 100 / efficiency[theirs] - 100, "%")
    row(f"{model}: exposed of the step", exposed_percent[ours], exposed_percent[theirs], "%")
    step = median(times_ms[model, ours, 2, "step_ms"])
    row(f"{model}: a step of 2 ranks", step, median(times_ms[model, theirs, 2, "step_ms"]), "ms")
end()
