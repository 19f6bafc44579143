#!/usr/bin/env python3
"""What 100 small all-reduces take as a group, beside the same one by one.

Usage: python3 benches/host/groups.py      (after cargo build --release -p ringtree-cli
                                            and cargo build --release --example group -p ringtree-benches)

Tensors of up to 16 KiB are packed and reduced together; that must never take longer (10 % and 20 us are
noise), and for the smallest take a tenth over TCP."""

import json
import os
import pathlib
import subprocess

from common import RINGTREE, end, row

EXAMPLE = str(pathlib.Path(RINGTREE).parent / "examples/group")

for ranks in (2, 4):
    for transport in ("shm", "tcp"):
        environment = {**os.environ, "RINGTREE_TRANSPORT": transport}
        command = [RINGTREE, "run", "--ranks", str(ranks), "--", EXAMPLE]
        run = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=True, text=True,
                             timeout=300, env=environment)
        for line in run.stdout.splitlines():
            found = json.loads(line[line.index("{"):])
            alone, together, size = found["alone_us"], found["together_us"], found["bytes"]
            share = 0.1 if transport == "tcp" and size <= 256 else 1.1
            row(f"{transport}, {ranks} ranks, 100 times {size} B", together, share * alone + 20, "us",
                f"one by one {alone:.1f}, {alone / together:.1f} times as long")
end()
