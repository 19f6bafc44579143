"""Records a tiny GPT's parameters, tokens and logits as PyTorch computes them: nanogpt.safetensors.

Modules and names are those of nanoGPT's model.py (https://github.com/karpathy/nanoGPT, MIT licence).
To run again: pip install torch numpy safetensors, then `python nanogpt.py` in this folder.
"""

import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

LAYERS, HEADS, WIDTH, BLOCK, VOCABULARY = 2, 2, 16, 8, 11


class CausalSelfAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.c_attn = nn.Linear(WIDTH, 3 * WIDTH)
        self.c_proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        samples, tokens, width = x.shape
        heads = [part.view(samples, tokens, HEADS, -1).transpose(1, 2) for part in self.c_attn(x).split(width, dim=2)]
        seen = F.scaled_dot_product_attention(*heads, is_causal=True)
        return self.c_proj(seen.transpose(1, 2).reshape(samples, tokens, width))


class MLP(nn.Module):
    def __init__(self):
        super().__init__()
        self.c_fc = nn.Linear(WIDTH, 4 * WIDTH)
        self.gelu = nn.GELU()
        self.c_proj = nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x):
        return self.c_proj(self.gelu(self.c_fc(x)))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.ln_1 = nn.LayerNorm(WIDTH)
        self.attn = CausalSelfAttention()
        self.ln_2 = nn.LayerNorm(WIDTH)
        self.mlp = MLP()

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    def __init__(self):
        super().__init__()
        self.transformer = nn.ModuleDict(dict(
            wte=nn.Embedding(VOCABULARY, WIDTH),
            wpe=nn.Embedding(BLOCK, WIDTH),
            h=nn.ModuleList([Block() for _ in range(LAYERS)]),
            ln_f=nn.LayerNorm(WIDTH),
        ))
        self.lm_head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.transformer.wte.weight = self.lm_head.weight

    def forward(self, tokens):
        positions = torch.arange(tokens.shape[1])
        x = self.transformer.wte(tokens) + self.transformer.wpe(positions)
        for block in self.transformer.h:
            x = block(x)
        return self.lm_head(self.transformer.ln_f(x))


def main():
    torch.manual_seed(0)
    model = GPT().double()
    with torch.no_grad():
        for parameter in model.parameters():
            # Much wider than at the start of a training, so that every part of the model matters.
            parameter.normal_(0, 0.5)
            parameter.copy_(parameter.float())
    tokens = torch.randint(VOCABULARY, (3, BLOCK))
    target = torch.randint(VOCABULARY, (3, BLOCK))
    logits = model(tokens)
    loss = F.cross_entropy(logits.flatten(0, 1), target.flatten())
    loss.backward()
    # In single precision, which holds them exactly, so that the file is small.
    tensors = {name: parameter.detach().float() for name, parameter in model.named_parameters()}
    # The head's weight goes by the name of the embedding, whose it is.
    assert tensors.keys() >= {"transformer.wte.weight"} and "lm_head.weight" not in tensors
    tensors["embedding gradient"] = model.lm_head.weight.grad
    tensors["tokens"], tensors["target"] = tokens.to(torch.uint32), target.to(torch.uint32)
    tensors["logits"], tensors["loss"] = logits.detach().flatten(0, 1), loss.detach()
    save_file(tensors, "nanogpt.safetensors")


main()
