#!/usr/bin/env python3
"""Trains GPT-2 in PyTorch and prints tokens/s: the peer of bench/compare_pytorch.py.

The model and the step are those of troupe: learned positions, pre-norm blocks, tanh GELU, a tied head,
fused attention kernels as PyTorch has them, AdamW, clipping by the global norm. One process.
"""

import argparse
import math
import time

import torch
from torch import nn
from torch.nn import functional as F


def require_fast_products():
    """Ends the program if matrices would be multiplied by the reference BLAS, some thirty times slower."""
    with open("/proc/self/maps") as maps:
        libraries = maps.read()
    if not any(name in libraries for name in ("openblas", "mkl_", "blis", "atlas")):
        raise SystemExit("PyTorch multiplies with the reference BLAS here, which is no peer: "
                         "apt-get install libopenblas0-openmp")


class Block(nn.Module):
    def __init__(self, hidden, heads, sequence):
        super().__init__()
        self.heads = heads
        self.ln_1 = nn.LayerNorm(hidden)
        self.qkv = nn.Linear(hidden, 3 * hidden)
        self.proj = nn.Linear(hidden, hidden)
        self.ln_2 = nn.LayerNorm(hidden)
        self.fc = nn.Linear(hidden, 4 * hidden)
        self.fc_proj = nn.Linear(4 * hidden, hidden)
        mask = torch.full((sequence, sequence), float("-inf")).triu(1)
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x):
        batch, length, hidden = x.shape
        q, k, v = self.qkv(self.ln_1(x)).split(hidden, dim=2)
        q, k, v = (t.view(batch, length, self.heads, -1).transpose(1, 2) for t in (q, k, v))
        scores = q @ k.transpose(-2, -1) / math.sqrt(hidden // self.heads)
        y = F.softmax(scores + self.mask[:length, :length], dim=-1) @ v
        x = x + self.proj(y.transpose(1, 2).reshape(batch, length, hidden))
        return x + self.fc_proj(F.gelu(self.fc(self.ln_2(x)), approximate="tanh"))


class Gpt(nn.Module):
    def __init__(self, layers, heads, hidden, sequence, vocabulary):
        super().__init__()
        self.wte = nn.Embedding(vocabulary, hidden)
        self.wpe = nn.Embedding(sequence, hidden)
        self.blocks = nn.ModuleList(Block(hidden, heads, sequence) for _ in range(layers))
        self.ln_f = nn.LayerNorm(hidden)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, tokens, targets):
        x = self.wte(tokens) + self.wpe.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        logits = self.ln_f(x) @ self.wte.weight.T
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--heads", type=int, default=6)
    parser.add_argument("--hidden", type=int, default=384)
    parser.add_argument("--sequence", type=int, default=256)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--text", default="kjv.txt")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    args = parser.parse_args()

    require_fast_products()
    torch.set_num_threads(args.threads)
    torch.manual_seed(1)
    text = torch.frombuffer(bytearray(open(args.text, "rb").read()), dtype=torch.uint8).long()
    model = Gpt(args.layers, args.heads, args.hidden, args.sequence, 256)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    seconds = []
    for _ in range(args.steps):
        begin = time.perf_counter()
        starts = torch.randint(len(text) - args.sequence - 1, (args.batch,))
        rows = torch.stack([text[s : s + args.sequence + 1] for s in starts])
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=args.precision == "bf16"):
            loss = model(rows[:, :-1], rows[:, 1:])
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        seconds.append(time.perf_counter() - begin)
    median = sorted(seconds[2:])[len(seconds[2:]) // 2]
    print(f"{args.batch * args.sequence / median:.0f}")


if __name__ == "__main__":
    main()
