#!/usr/bin/env python3
"""Trains GPT-2 in PyTorch as a pipeline of two processes: the peer of bench/compare_pipeline.py.

Each process holds half of the blocks of gpt_pytorch.py and runs 1F1B, written by hand: the first stage is
one forward pass ahead of the second. Receives are posted before they are needed and sends are not waited
for until the step's end, so transfers run beside the passes. The token embedding is tied to the head: both
stages have a copy and add up the two gradients. Clips by the global norm. Rank 0 prints tokens/s.
"""

import argparse
import time

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F

from gpt_pytorch import Block, require_fast_products


class FirstHalf(nn.Module):
    def __init__(self, args):
        super().__init__()
        self.wte = nn.Embedding(256, args.hidden)
        self.wpe = nn.Embedding(args.sequence, args.hidden)
        self.blocks = nn.Sequential(*(Block(args.hidden, args.heads, args.sequence) for _ in range(args.layers // 2)))

    def forward(self, tokens):
        return self.blocks(self.wte(tokens) + self.wpe.weight[: tokens.shape[1]])


class SecondHalf(nn.Module):
    def __init__(self, args):
        super().__init__()
        self.blocks = nn.Sequential(
            *(Block(args.hidden, args.heads, args.sequence) for _ in range(args.layers - args.layers // 2)))
        self.ln_f = nn.LayerNorm(args.hidden)
        self.wte = nn.Embedding(256, args.hidden)  # The head's copy.

    def forward(self, x, targets):
        logits = self.ln_f(self.blocks(x)) @ self.wte.weight.T
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def run_first(model, inputs, gradients):
    """F0, then F(m+1) B(m) until there are no more. Gradients land in buffers posted from the start."""
    count = len(inputs)
    arrivals = [dist.irecv(gradient, src=1, tag=i) for i, gradient in enumerate(gradients)]
    sends = []
    outputs = []

    def forward(i):
        outputs.append(model(inputs[i]))
        sends.append(dist.isend(outputs[i].detach(), dst=1, tag=i))

    forward(0)
    for i in range(count):
        if i + 1 < count:
            forward(i + 1)
        arrivals[i].wait()
        outputs[i].backward(gradients[i])
        sends[i].wait()
        outputs[i] = None


def run_second(model, targets, activations):
    """F(m) B(m) in turns. Activations land in buffers posted from the start."""
    count = len(targets)
    arrivals = [dist.irecv(activation, src=0, tag=i) for i, activation in enumerate(activations)]
    sends = []
    for i in range(count):
        arrivals[i].wait()
        x = activations[i].detach().requires_grad_()
        (model(x, targets[i]) / count).backward()
        sends.append(dist.isend(x.grad, dst=0, tag=i))
    for send in sends:
        send.wait()


def clip(model, rank, bound):
    """Clips by the norm over both stages; the tied gradient counts once."""
    parameters = [p for p in model.parameters() if not (rank == 1 and p is model.wte.weight)]
    squares = torch.stack([p.grad.square().sum() for p in parameters]).sum()
    dist.all_reduce(squares)
    scale = min(1.0, bound / (squares.sqrt().item() + 1e-6))
    if scale < 1.0:
        torch._foreach_mul_([p.grad for p in model.parameters()], scale)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("--meeting", required=True, help="a file that does not exist yet, the same for both")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--heads", type=int, default=6)
    parser.add_argument("--hidden", type=int, default=384)
    parser.add_argument("--sequence", type=int, default=256)
    parser.add_argument("--microbatches", type=int, default=8)
    parser.add_argument("--microbatch-size", type=int, default=4)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--text", default="kjv.txt")
    args = parser.parse_args()

    require_fast_products()
    torch.set_num_threads(1)
    torch.manual_seed(1)
    dist.init_process_group("gloo", init_method=f"file://{args.meeting}", rank=args.rank, world_size=2)
    text = torch.frombuffer(bytearray(open(args.text, "rb").read()), dtype=torch.uint8).long()
    model = FirstHalf(args) if args.rank == 0 else SecondHalf(args)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.02)
    dist.broadcast(model.wte.weight.data, src=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    draw = torch.Generator().manual_seed(2)  # Both stages draw the same batch.
    batch = args.microbatches * args.microbatch_size
    shape = (args.microbatch_size, args.sequence, args.hidden)
    arriving = [torch.empty(shape) for _ in range(args.microbatches)]
    seconds = []
    for _ in range(args.steps):
        begin = time.perf_counter()
        starts = torch.randint(len(text) - args.sequence - 1, (batch,), generator=draw)
        rows = torch.stack([text[s : s + args.sequence + 1] for s in starts]).split(args.microbatch_size)
        optimizer.zero_grad(set_to_none=True)
        if args.rank == 0:
            run_first(model, [r[:, :-1] for r in rows], arriving)
        else:
            run_second(model, [r[:, 1:] for r in rows], arriving)
        dist.all_reduce(model.wte.weight.grad)
        clip(model, args.rank, 1.0)
        optimizer.step()
        seconds.append(time.perf_counter() - begin)
    if args.rank == 0:
        median = sorted(seconds[2:])[len(seconds[2:]) // 2]
        print(f"{batch * args.sequence / median:.0f}")


if __name__ == "__main__":
    main()
