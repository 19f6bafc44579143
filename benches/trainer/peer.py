"""The trainer's models and steps in PyTorch; gpt.py and ddp.py run it with the Python that has PyTorch.

    peer.py train SETTINGS.json                 trains the GPT, and prints its validation losses as JSON
    peer.py steps gpt|mlp SAMPLES_A_RANK STEPS   times steps, under torchrun's variables, as
                                                 trainer/examples/scaling.rs does"""

import json
import math
import os
import pathlib
import sys
import time
from contextlib import nullcontext
from statistics import median

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel


class Layer(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.ln_1 = nn.LayerNorm(width)
        self.attn = nn.ModuleDict({"c_attn": nn.Linear(width, 3 * width), "c_proj": nn.Linear(width, width)})
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width)})

    def attention(self, x):
        samples, tokens, width = x.shape
        parts = self.attn.c_attn(x).split(width, dim=2)
        queries, keys, values = (p.view(samples, tokens, self.heads, -1).transpose(1, 2) for p in parts)
        seen = functional.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        return self.attn.c_proj(seen.transpose(1, 2).reshape(x.shape))

    def forward(self, x):
        x = x + self.attention(self.ln_1(x))
        return x + self.mlp.c_proj(functional.gelu(self.mlp.c_fc(self.ln_2(x))))


class Gpt(nn.Module):
    """That of trainer/src/models/gpt.rs, parameter by parameter."""

    def __init__(self, vocabulary, block, layers=4, heads=4, width=128):
        super().__init__()
        self.transformer = nn.ModuleDict({
            "wte": nn.Embedding(vocabulary, width),
            "wpe": nn.Embedding(block, width),
            "h": nn.ModuleList(Layer(width, heads) for _ in range(layers)),
            "ln_f": nn.LayerNorm(width),
        })

    def forward(self, tokens):
        parts = self.transformer
        x = parts.wte(tokens) + parts.wpe.weight[: tokens.shape[1]]
        for layer in parts.h:
            x = layer(x)
        return functional.linear(parts.ln_f(x), parts.wte.weight)


def mlp():
    sizes = [28 * 28] + [1024] * 8
    hidden = [part for pair in zip(sizes, sizes[1:]) for part in (nn.Linear(*pair), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(1024, 10))


def adamw(model, learning_rate, betas, eps, weight_decay):
    """With weight decay for matrices only, and PyTorch's fastest loop."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, eps=eps, fused=True)


def loss_of(model, tokens, target):
    return functional.cross_entropy(model(tokens).flatten(0, -2), target.flatten())


def train(settings):
    """The steps of `ringtree-train`: the same start, samples, rates and clipping; all ranks' samples in one process."""
    from safetensors.torch import load_file

    text = pathlib.Path(settings["data"]).read_text()
    block, optimiser, schedule = settings["block"], settings["optimiser"], settings["schedule"]
    vocabulary = sorted(set(text))
    numbers = {character: number for number, character in enumerate(vocabulary)}
    tokens = torch.tensor([numbers[character] for character in text])
    train_characters = len(text) - len(text) // 10
    model = Gpt(len(vocabulary), block)
    model.load_state_dict(load_file(settings["start"]))
    optimizer = adamw(model, settings["learning_rate"], (optimiser["beta1"], optimiser["beta2"]),
                      optimiser["epsilon"], optimiser["weight_decay"])
    steps, warm_up, last = settings["steps"], schedule["warm_up_steps"], schedule["final_fraction"]
    batches = [list(map(int, line.split())) for line in pathlib.Path(settings["batches"]).open()]
    losses, began = {}, time.monotonic()
    for step, indices in enumerate(batches, 1):
        fallen = (step - warm_up) / max(steps - warm_up, 1)
        cosine = last + (1 - last) * 0.5 * (1 + math.cos(math.pi * min(fallen, 1)))
        for group in optimizer.param_groups:
            group["lr"] = settings["learning_rate"] * (step / warm_up if step < warm_up else cosine)
        places = torch.tensor(indices)[:, None] + torch.arange(block)
        optimizer.zero_grad()
        loss_of(model, tokens[places], tokens[places + 1]).backward()
        nn.utils.clip_grad_norm_(model.parameters(), settings["max_gradient_norm"])
        optimizer.step()
        if step % settings["validate_every"] == 0 or step == steps:
            losses[step] = validation_loss(model, tokens[train_characters:], block)
    print(json.dumps({"losses": losses, "seconds": time.monotonic() - began, "torch": torch.__version__}))


@torch.no_grad()
def validation_loss(model, tokens, block):
    samples = (len(tokens) - 1) // block
    blocks = lambda first: tokens[first : first + samples * block].view(samples, block)
    return loss_of(model, blocks(0), blocks(1)).item()


ROW = 6  # as in scaling.rs
EXCHANGES = 9


def steps(kind, samples, count):
    """Steps with the exchange and without (DDP's no_sync), in rows by turns; then the exchange alone."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    ranks = dist.get_world_size()
    torch.manual_seed(1)
    if kind == "gpt":
        module = Gpt(65, 64)
        batch = torch.randint(65, (samples, 64)), torch.randint(65, (samples, 64))
    else:
        module = mlp()
        batch = torch.rand(samples, 1, 28, 28), torch.randint(10, (samples,))
    # One rank alone would not use DDP.
    model = DistributedDataParallel(module, gradient_as_bucket_view=True) if ranks > 1 else module
    optimizer = adamw(model, 1e-3, (0.9, 0.99), 1e-8, 0.1)

    def row(context):
        dist.barrier()
        times_ms = []
        for _ in range(ROW):
            began = time.perf_counter()
            optimizer.zero_grad()
            with context():
                loss_of(model, *batch).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            times_ms.append(1e3 * (time.perf_counter() - began))
        return times_ms[1:]

    found = {"exchanging": [], "lonely": []}
    for number in range(1 + math.ceil(count / (ROW - 1))):
        rows = {"exchanging": row(nullcontext), "lonely": row(model.no_sync if ranks > 1 else nullcontext)}
        if number > 0:
            for name, times_ms in rows.items():
                found[name] += times_ms
    elements = sum(p.numel() for p in model.parameters())
    buckets = [4 * elements]
    if ranks > 1:
        sizes = model._get_ddp_logging_data()["rebuilt_bucket_sizes"]
        buckets = [int(size) for size in str(sizes).split(",")]
    memory = [torch.zeros(size // 4) for size in buckets]
    exchanges_ms = []
    for _ in range(EXCHANGES):
        dist.barrier()
        began = time.perf_counter()
        for work in [dist.all_reduce(bucket, async_op=True) for bucket in memory]:
            work.wait()
        exchanges_ms.append(1e3 * (time.perf_counter() - began))
    # In one write, so that ranks' lines do not mix.
    os.write(1, (json.dumps({
        "parameters": elements, "bucket_bytes": buckets, "step_ms": median(found["exchanging"]),
        "without_exchange_ms": median(found["lonely"]), "exchange_ms": median(exchanges_ms),
    }) + "\n").encode())
    dist.destroy_process_group()


if sys.argv[1] == "train":
    train(json.loads(pathlib.Path(sys.argv[2]).read_text()))
else:
    steps(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
