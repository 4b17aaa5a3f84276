#!/usr/bin/env python3
"""Trains a BERT that classifies in PyTorch and prints accuracy and loss as JSON: the peer of bench/compare_classifier.py.

The configuration is that of a run of troupe, and the texts held out are those that troupe holds out. The model is
written anew with PyTorch's layers: learned positions, norms behind the parts of a layer, exact GELU, a pooler on the
first token; every matrix normal with deviation 0.02, every bias zero, AdamW with the decay on matrices alone, clipping
by the global norm. The order of the texts and the initial weights are PyTorch's own, from the same seed. One process.
"""

import argparse
import collections
import json
import math
import tomllib

import torch
from torch import nn
from torch.nn import functional as F

MASK = (1 << 64) - 1
FIRST_TOKEN = 256
SEGMENTS = 2


# -- the texts, as storage/src/labelled_corpus.cpp divides them ------------------------------------

def split_mix(state):
    """The first number of SplitMix64."""
    z = (state + 0x9E3779B97F4A7C15) & MASK
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & MASK
    return z ^ (z >> 31)


def mixed(a, b):
    return split_mix(split_mix(a) ^ b)


def permuted(index, count, key):
    """Where `index` goes in a permutation of `count` that `key` draws: a Feistel network of four rounds."""
    half = max(1, ((count - 1).bit_length() + 1) // 2)
    low = (1 << half) - 1
    while True:
        left, right = index >> half, index & low
        for turn in range(4):
            left, right = right, left ^ (mixed((key + turn) & MASK, right) & low)
        index = left << half | right
        if index < count:
            return index


def read_texts(path, fraction, seed):
    """Returns the class names, and (text, class) of those to train on and of those held out."""
    with open(path, "rb") as file:
        header, *rows = (line.split(b"\t") for line in file.read().splitlines())
    at = {name.decode(): i for i, name in enumerate(header)}
    names = sorted({row[at["label"]] for row in rows})
    groups = collections.defaultdict(list)
    for i, row in enumerate(rows):
        groups[row[at["group"]] if "group" in at else i].append(i)
    groups = list(groups.values())
    held_out = set()
    turn = 0
    while len(held_out) < math.floor(len(rows) * fraction):
        held_out.update(groups[permuted(turn, len(groups), mixed(~seed & MASK, 0))])
        turn += 1
    samples = [(row[at["text"]], names.index(row[at["label"]])) for row in rows]
    return ([name.decode() for name in names], [s for i, s in enumerate(samples) if i not in held_out],
            [s for i, s in enumerate(samples) if i in held_out])


def batch_of(samples, sequence):
    tokens = torch.zeros(len(samples), sequence, dtype=torch.long)
    lengths = torch.zeros(len(samples), dtype=torch.long)
    for row, (text, _) in enumerate(samples):
        words = [FIRST_TOKEN, *text[: sequence - 1]]
        tokens[row, : len(words)] = torch.tensor(words)
        lengths[row] = len(words)
    return tokens, lengths, torch.tensor([label for _, label in samples])


# -- the model -------------------------------------------------------------------------------------

class Layer(nn.Module):
    def __init__(self, hidden, heads, epsilon):
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.dense = (nn.Linear(hidden, hidden) for _ in range(4))
        self.attention_norm = nn.LayerNorm(hidden, epsilon)
        self.wide = nn.Linear(hidden, 4 * hidden)
        self.narrow = nn.Linear(4 * hidden, hidden)
        self.norm = nn.LayerNorm(hidden, epsilon)

    def forward(self, x, padding):
        batch, length, hidden = x.shape
        q, k, v = (of(x).view(batch, length, self.heads, -1).transpose(1, 2)
                   for of in (self.query, self.key, self.value))
        scores = q @ k.transpose(-2, -1) / math.sqrt(hidden // self.heads)
        y = F.softmax(scores.masked_fill(padding[:, None, None, :], float("-inf")), dim=-1) @ v
        x = self.attention_norm(x + self.dense(y.transpose(1, 2).reshape(batch, length, hidden)))
        return self.norm(x + self.narrow(F.gelu(self.wide(x))))


class Classifier(nn.Module):
    def __init__(self, model):
        super().__init__()
        hidden, epsilon = model["hidden"], model["norm_epsilon"]
        self.words = nn.Embedding(model["vocabulary"], hidden)
        self.positions = nn.Embedding(model["sequence"], hidden)
        self.segments = nn.Embedding(SEGMENTS, hidden)
        self.norm = nn.LayerNorm(hidden, epsilon)
        self.layers = nn.ModuleList(Layer(hidden, model["heads"], epsilon) for _ in range(model["layers"]))
        self.pooler = nn.Linear(hidden, hidden)
        self.head = nn.Linear(hidden, model["classes"])
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def forward(self, tokens, lengths):
        length = tokens.shape[1]
        x = self.norm(self.words(tokens) + self.positions.weight[:length] + self.segments.weight[0])
        padding = torch.arange(length) >= lengths[:, None]
        for layer in self.layers:
            x = layer(x, padding)
        return self.head(torch.tanh(self.pooler(x[:, 0])))


def learning_rate_at(train, step):
    """Linear in both directions."""
    warmup, steps = train["warmup_steps"], train["steps"]
    if step <= warmup:
        return train["learning_rate"] * step / warmup
    least = train["min_learning_rate"]
    return least + (train["learning_rate"] - least) * (steps - step) / (steps - warmup)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="config.toml of a run, which has every key written out")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    with open(args.config, "rb") as file:
        config = tomllib.load(file)
    model, train, data = config["model"], config["train"], config["data"]
    if train["learning_rate_schedule"] != "linear" or train["optimizer"] != "adamw":
        parser.error("knows train.learning_rate_schedule = \"linear\" and train.optimizer = \"adamw\" alone")

    torch.set_num_threads(args.threads)
    torch.manual_seed(train["seed"])
    names, training, held_out = read_texts(data["text"], data["validation_fraction"], train["seed"])
    per_step = config["parallel"]["data"] * config["schedule"]["microbatches"] * config["schedule"]["microbatch_size"]
    classifier = Classifier(model)
    matrices = [p for p in classifier.parameters() if p.dim() > 1]
    vectors = [p for p in classifier.parameters() if p.dim() == 1]
    optimizer = torch.optim.AdamW([{"params": matrices, "weight_decay": train["weight_decay"]},
                                   {"params": vectors, "weight_decay": 0.0}],
                                  betas=(train["beta1"], train["beta2"]), eps=train["epsilon"])
    order = []
    for step in range(1, train["steps"] + 1):
        while len(order) < per_step:
            order += torch.randperm(len(training)).tolist()
        tokens, lengths, labels = batch_of([training[i] for i in order[:per_step]], model["sequence"])
        order = order[per_step:]
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(train, step)
        optimizer.zero_grad(set_to_none=True)
        loss = F.cross_entropy(classifier(tokens, lengths), labels)
        loss.backward()
        nn.utils.clip_grad_norm_(classifier.parameters(), train["clip_norm"])
        optimizer.step()

    hits = total_loss = 0.0
    support = [0] * len(names)
    with torch.no_grad():
        for begin in range(0, len(held_out), per_step):
            samples = held_out[begin : begin + per_step]
            tokens, lengths, labels = batch_of(samples, model["sequence"])
            logits = classifier(tokens, lengths)
            total_loss += F.cross_entropy(logits, labels, reduction="sum").item()
            hits += (logits.argmax(dim=1) == labels).sum().item()
            for _, label in samples:
                support[label] += 1
    print(json.dumps({"accuracy": hits / len(held_out), "loss": total_loss / len(held_out),
                      "support": dict(zip(names, support))}))


if __name__ == "__main__":
    main()
