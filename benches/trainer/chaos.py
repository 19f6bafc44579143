#!/usr/bin/env python3
"""Trains while ranks are killed and stopped and links cut at random, and compares with a run that nobody disturbs.

    cargo build --release -p ringtree-trainer --bin ringtree-train
    python3 benches/trainer/chaos.py                    # 5 minutes; --seconds 60 for less, --seed for another course

Every ten seconds a rank of four is killed (SIGKILL), stopped (SIGSTOP), two are killed at once, or the connection between
two is cut (by `ss -K`, as root; not with --transport shm); the launcher starts others in their place. Prints what happened, how long each took until steps were made again, and beside their bounds: how
far losses are from the undisturbed run's, whether each step is there once, and how fast steps are outside of the
windows. Ends with status 1 where a bound is missed or anything is left behind.
"""

import argparse
import json
import os
import pathlib
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
LOSS_BOUND = 1e-4
SPEED_BOUND = 0.95

# More than a run writes between two looks.
TAIL_BYTES = 100_000


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--every", type=float, default=10, help="seconds between two disturbances")
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--transport", choices=["tcp", "shm"], default="tcp")
    parser.add_argument("--program", type=lambda text: pathlib.Path(text).resolve(),
                        default=REPOSITORY / "target/release/ringtree-train")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ringtree-chaos-") as folder:
        sys.exit(0 if compare(options, pathlib.Path(folder).resolve()) else 1)


def compare(options, folder):
    step_ms = Run(options, folder, "probe", 300).undisturbed()
    steps = int(options.seconds * 1000 / step_ms)
    print(f"{options.ranks} ranks, {steps} steps of about {step_ms:.2f} ms over {options.transport}, "
          f"seed {options.seed}", flush=True)
    calm, wild = Run(options, folder, "calm", steps), Run(options, folder, "wild", steps)
    calm.undisturbed()
    windows = wild.disturbed()
    print("\nwindows, in s from the disturbance to the next step of all ranks:")
    for at, what, length in windows:
        print(f"  {at:7.1f} s  {what:32} {length:6.2f}")

    mine, theirs = wild.losses(), calm.losses()
    apart = max((abs(mine[step] - loss) / abs(loss) for step, loss in theirs.items() if step in mine), default=1)
    missing = len(set(theirs) - set(mine))
    speed = calm.typical_ms() / wild.typical_ms()
    left = processes_in(folder)
    rows = [
        ("losses apart, largest", f"{apart:.1e}", f"at most {LOSS_BOUND:.0e}", apart <= LOSS_BOUND),
        ("steps lost", missing, "0", missing == 0),
        ("steps doubled", wild.doubled, "0", wild.doubled == 0),
        ("speed outside the windows", f"{speed:.3f}", f"at least {SPEED_BOUND}", speed >= SPEED_BOUND),
        ("processes left behind", len(left), "0", not left),
    ]
    lengths = [length for _, _, length in windows]
    print(f"\n{len(windows)} disturbances; windows: median {statistics.median(lengths):.2f} s, longest {max(lengths):.2f} s")
    for what, figure, bound, kept in rows:
        print(f"{what:28} {figure!s:>9}   {bound}{'' if kept else '   MISSED'}")
    return all(kept for *_, kept in rows)


class Run:
    def __init__(self, options, folder, name, steps):
        self.options, self.folder, self.steps = options, folder, steps
        self.out = folder / name
        self.doubled = 0

    def command(self, *more):
        options = self.options
        sizes = ["--set", "model.hidden=[512,256]", "--batch", "32"]
        return [options.program, "--model", "mlp", "--data", "digits", "--ranks", str(options.ranks), *sizes,
                "--steps", str(self.steps), "--seed", "1", "--out", self.out,
                "--set", f"validate_every={self.steps}", *more]

    def start(self, *more):
        # A stopped rank is known to be stopped after so many seconds.
        environment = dict(os.environ, RINGTREE_TIMEOUT="3", RINGTREE_TRANSPORT=self.options.transport)
        log = open(self.folder / f"{self.out.name}.log", "w")
        return subprocess.Popen(self.command(*more), cwd=self.folder, env=environment, stdout=log,
                                stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)

    def undisturbed(self):
        if self.start().wait() != 0:
            sys.exit((self.folder / f"{self.out.name}.log").read_text()[-2000:])
        return self.typical_ms()

    def disturbed(self):
        chance = random.Random(self.options.seed)
        program = self.start("--restart", "100000")
        watch = Watch(self.out / "metrics.jsonl", program)
        began, windows = time.monotonic(), []
        watch.wait_beyond(50)
        while program.poll() is None:
            what, disturb = self.choose(chance)
            at, step = time.monotonic(), watch.step
            disturb()
            if not watch.wait_for_change(step):
                break
            windows.append((at - began, what, time.monotonic() - at))
            print(f"{at - began:7.1f} s  {what}", flush=True)
            rest = self.options.every - (time.monotonic() - at)
            try:
                program.wait(max(rest, 1))
            except subprocess.TimeoutExpired:
                pass
        if program.wait() != 0:
            sys.exit((self.folder / f"{self.out.name}.log").read_text()[-3000:])
        return windows

    def choose(self, chance):
        first, second = chance.sample(range(self.options.ranks), 2)
        kinds = ["kill", "stop", "both"] + ["cut"] * (self.options.transport == "tcp")
        match chance.choice(kinds):
            case "kill":
                return f"rank {first} killed", lambda: signal_ranks(self.folder, [first], signal.SIGKILL)
            case "stop":
                return f"rank {first} stopped", lambda: signal_ranks(self.folder, [first], signal.SIGSTOP)
            case "both":
                both = [first, second]
                return f"ranks {first} and {second} killed", lambda: signal_ranks(self.folder, both, signal.SIGKILL)
            case _:
                return f"ranks {first} and {second} cut off", lambda: cut(self.folder, first, second)

    def lines(self):
        with open(self.out / "metrics.jsonl") as file:
            return [json.loads(line) for line in file]

    def losses(self):
        losses, self.doubled = {}, 0
        for line in self.lines():
            if line["kind"] == "step":
                self.doubled += line["step"] in losses
                losses[line["step"]] = line["loss"]
        return losses

    def typical_ms(self):
        """Mean of the steps that no change of the ranks is near."""
        lines = self.lines()
        changes = [line["step"] for line in lines if line["kind"] == "event"]
        near = {step + offset for step in changes for offset in range(0, 6)}
        times = [line["step_ms"] for line in lines if line["kind"] == "step" and line["step"] not in near]
        return statistics.fmean(times[5:])


class Watch:
    """Follows a run's metrics while it writes them."""

    def __init__(self, path, program):
        self.path, self.program = path, program
        self.step, self.events = 0, 0
        self.changed = threading.Condition()
        threading.Thread(target=self.follow, daemon=True).start()

    def follow(self):
        while self.program.poll() is None:
            # Another file when ranks have changed. Its end is enough, and costs the ranks little.
            try:
                with open(self.path, "rb") as file:
                    file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL_BYTES))
                    lines = file.read().decode(errors="replace").splitlines()
            except FileNotFoundError:
                lines = []
            steps, events = 0, 0
            for line in lines:
                try:
                    line = json.loads(line)
                except json.JSONDecodeError:
                    continue
                if line["kind"] == "step":
                    steps = max(steps, line["step"])
                elif line["kind"] == "event":
                    events = max(events, line["step"])
            with self.changed:
                self.step, self.events = max(self.step, steps), max(self.events, events)
                self.changed.notify_all()
            time.sleep(0.05)
        with self.changed:
            self.changed.notify_all()

    def wait_beyond(self, step):
        with self.changed:
            self.changed.wait_for(lambda: self.step > step or self.program.poll() is not None, 120)

    def wait_for_change(self, before):
        """Until ranks have changed behind that step, and have made another since; false where the run has ended instead."""
        with self.changed:
            done = lambda: self.events >= before and self.step > self.events or self.program.poll() is not None
            if not self.changed.wait_for(done, 120):
                sys.exit(f"two minutes later the ranks have not changed; the last step is {self.step}")
            return self.program.poll() is None


def processes_in(folder):
    """Number and environment of each process that works in the folder."""
    found = []
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if pathlib.Path(os.readlink(entry / "cwd")) == folder:
                    found.append((int(entry.name), (entry / "environ").read_bytes().split(b"\0")))
            except OSError:
                pass
    return found


def processes_of(folder, rank):
    name = f"RINGTREE_RANK={rank}".encode()
    return [pid for pid, environment in processes_in(folder) if name in environment]


def signal_ranks(folder, ranks, number):
    for pid in [pid for rank in ranks for pid in processes_of(folder, rank)]:
        os.kill(pid, number)


def cut(folder, first, second):
    """Ends each connection between two ranks."""
    mine, theirs = (local_ends(processes_of(folder, rank)) for rank in (first, second))
    between = [(end, peer) for end, peer in mine.items() if peer in theirs]
    if not between:
        sys.exit(f"ranks {first} and {second} have no connection to cut")
    for end, peer in between:
        subprocess.run(["ss", "-K", "src", end, "dst", peer], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    left = local_ends(processes_of(folder, first))
    if any(left.get(end) == peer for end, peer in between):
        sys.exit("ss -K cuts no connection here: it needs root, and a kernel with CONFIG_INET_DIAG_DESTROY")


def local_ends(pids):
    """The other end of each connection that one of these processes has, by its own."""
    lines = subprocess.run(["ss", "-Htnp"], check=True, capture_output=True, text=True).stdout.splitlines()
    ours = [line.split() for line in lines if any(f"pid={pid}," in line for pid in pids)]
    return {line[3]: line[4] for line in ours}



if __name__ == "__main__":
    main()
