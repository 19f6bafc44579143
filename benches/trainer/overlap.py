#!/usr/bin/env python3
"""How much of the exchange of gradients is not hidden behind the backward pass, between two hosts over a wire whose
exchange takes as long as the pass: with eight buckets, and with one that cannot leave before the pass is over.

Usage, as root: python3 benches/trainer/overlap.py [DRAWING.svg]
(after cargo build --release -p ringtree-cli and cargo build --release --examples -p ringtree-trainer)

The hosts are network namespaces, the wire is a pair of virtual interfaces, shaped by htb to 1 Gbit/s; each rank
calculates with one thread. The bound is 25 % exposed."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "host"))
from common import RINGTREE, end, row  # noqa: E402
from wires import GBIT_PER_S, htb, measure, two_hosts  # noqa: E402

PROGRAM = [str(pathlib.Path(RINGTREE).parent / "examples/gradient_overlap")]
BOUND_PERCENT = 25


def exposed_percent(found):
    """The share of the exchange that lies behind the backward pass."""
    first, last = found["buckets"][0][0], found["buckets"][-1][1]
    return 100 * found["exposed_ms"] / max(found["busy_ms"], last - first)


def drawing(figures):
    """Both steps as bars over time."""
    width, left, line, top = 900, 150, 26, 40
    steps = [("8 buckets", figures["overlapped"]), ("1 bucket", figures["one_bucket"])]
    whole_ms = max(step["buckets"][-1][1] for _, step in steps)
    scale = (width - left - 20) / whole_ms
    shapes = []

    def bar(y, begin, until, color, text=""):
        shapes.append(f'<rect x="{left + begin * scale:.1f}" y="{y}" width="{(until - begin) * scale:.1f}" '
                      f'height="{line - 6}" fill="{color}" stroke="white"/>')
        shapes.append(f'<text x="{left + begin * scale + 4:.1f}" y="{y + 15}" fill="white">{text}</text>')

    y = top
    for name, step in steps:
        shapes.append(f'<text x="10" y="{y + 15}">{name}: backward</text>')
        bar(y, 0, step["backward_ms"], "#0072b2", f'{step["backward_ms"]:.0f} ms')
        shapes.append(f'<text x="10" y="{y + line + 15}">exchange</text>')
        for number, (begin, until) in enumerate(step["buckets"]):
            bar(y + line, begin, until, "#d55e00", str(number))
        y += 2 * line + 18
    title = (f'{figures["gradient_bytes"] >> 20} MiB of gradients, batch {figures["batch"]}, 2 ranks over 1 Gbit/s: '
             f'{exposed_percent(steps[0][1]):.0f} % exposed, {exposed_percent(steps[1][1]):.0f} % with one bucket')
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{y}" font-family="sans-serif" '
            f'font-size="13"><rect width="100%" height="100%" fill="white"/>'
            f'<text x="10" y="22">{title}</text>{"".join(shapes)}</svg>\n')


with two_hosts(htb(GBIT_PER_S)) as names:
    figures = measure(names, 2, PROGRAM, RAYON_NUM_THREADS="1")[-1]
note = (f'{figures["layers"]} layers of {figures["width"]}, {figures["gradient_bytes"] >> 20} MiB, batch '
        f'{figures["batch"]}: backward {figures["backward_ms"]:.0f} ms, exchange {figures["exchange_ms"]:.0f} ms')
print(note)
row("exposed with 8 buckets", exposed_percent(figures["overlapped"]), BOUND_PERCENT, "%")
print(f'{"exposed with 1 bucket":<44} {exposed_percent(figures["one_bucket"]):>10.1f} %    (all of it, as expected)')
if len(sys.argv) > 1:
    pathlib.Path(sys.argv[1]).write_text(drawing(figures))
    print(f"drawn in {sys.argv[1]}")
end()
