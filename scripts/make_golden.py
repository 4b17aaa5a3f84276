#!/usr/bin/env python3
"""Makes the golden values of tests/stages/golden_test.cpp: trainings of tiny models by PyTorch.

Of each it writes the losses and gradient norms (.json) and every weight afterwards (.safetensors).

Usage: scripts/make_golden.py [folder]     Debian's python3-torch is enough; about ten seconds.

Weights, data and the masks of dropout do not come from PyTorch's generator but from `initial_normal`
(stages/transformer_stage.hpp), `make_batch` (tests/stages/stage_chain.hpp) and `Dropout` (stages/kernels.hpp),
written again here, so that both programs begin with the same bits and drop the same elements. Model, loss and
optimizer are PyTorch's own operations in 32 bits; in fp16 and bf16 the operands of products with weights are rounded
before (`RoundedProduct`), as docs/adr/0024-precision.md says.
"""

import functools
import json
import math
import pathlib
import sys

import numpy
import torch
import torch.nn.functional as F

MASK = (1 << 64) - 1
GOLDEN_RATIO = 0x9E3779B97F4A7C15

MODEL = {"layers": 3, "heads": 4, "hidden": 32, "sequence": 24, "vocabulary": 64}
GPT2 = {"family": "gpt2", **MODEL, "kv_heads": 4, "feed_forward": 128}
LLAMA = {"family": "llama", **MODEL, "kv_heads": 2, "feed_forward": 80}
BERT = {"family": "bert", **MODEL, "kv_heads": 4, "feed_forward": 80, "norm_epsilon": 1e-12,
        "task": "masked", "classes": 0}
CLASSIFIER = {**BERT, "task": "classification", "classes": 3}
# The layer of tests/engine/custom_layers.hpp.
PARALLEL = {"family": "custom", **MODEL, "kv_heads": 4, "feed_forward": 80}
DROPOUT = {"dropout": 0.1, "attention_dropout": 0.2}
TRAIN = {"steps": 20, "seed": 7, "warmup_steps": 5, "microbatches": 2, "microbatch_size": 2,
         "data_seed": 100}
ADAMW = {"optimizer": "adamw", "learning_rate": 0.003, "min_learning_rate": 0.0003, "clip_norm": 1.0,
         "weight_decay": 0.1, "beta1": 0.9, "beta2": 0.95, "epsilon": 1e-8}
ADAM = {**ADAMW, "optimizer": "adam", "weight_decay": 0.01}
# As published: with less, AdamW makes steps of the rounding of gradients that are next to nothing.
BERT_ADAMW = {**ADAMW, "epsilon": 1e-6}
ADAFACTOR = {"optimizer": "adafactor", "learning_rate": 0.02, "min_learning_rate": 0.002, "clip_norm": 1.0,
             "weight_decay": 0.1}
SGD = {"optimizer": "sgd", "learning_rate": 0.1, "min_learning_rate": 0.0, "clip_norm": 0.5,
       "weight_decay": 0.01, "momentum": 0.9}
# What is apart in the last digit falls on other sides of ties: a few steps, before that grows. For fp16 with a
# loss scale that no gradient here overflows or, but for a few, underflows.
HALVES = {"precision": "fp16", "loss_scale": 4096.0, "steps": 5}
BF16 = {"precision": "bf16", "steps": 5}
CASES = {
    "tied_adamw": (GPT2, True, ADAMW),
    "untied_adamw": (GPT2, False, ADAMW),
    "tied_sgd": (GPT2, True, SGD),
    "llama_adamw": (LLAMA, False, ADAMW),
    "tied_llama_sgd": (LLAMA, True, SGD),
    "tied_sgd_fp16": (GPT2, True, {**SGD, **HALVES}),
    "untied_adam": (GPT2, False, ADAM),
    "llama_adafactor": (LLAMA, False, ADAFACTOR),
    "bert_adamw": (BERT, True, BERT_ADAMW),
    "bert_classes_adamw": (CLASSIFIER, False, BERT_ADAMW),
    "dropout_adamw": ({**GPT2, **DROPOUT}, True, ADAMW),
    "llama_dropout_sgd": ({**LLAMA, **DROPOUT}, False, SGD),
    "parallel_block_adamw": (PARALLEL, False, ADAMW),
    "bert_classes_dropout_adamw": ({**CLASSIFIER, **DROPOUT}, False, BERT_ADAMW),
    "tied_sgd_bf16": (GPT2, True, {**SGD, **BF16}),
    "llama_sgd_bf16": (LLAMA, False, {**SGD, **BF16}),
    "bert_sgd_bf16": (BERT, True, {**SGD, **BF16}),
    "bert_classes_sgd_bf16": (CLASSIFIER, False, {**SGD, **BF16}),
}
# What operands of products are rounded to.
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


# -- numbers that both programs make ---------------------------------------------------------------

def finalise(z):
    """The finaliser of SplitMix64."""
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


class Random:
    """SplitMix64, as engine/random.hpp."""

    def __init__(self, seed):
        self.state = seed & MASK

    def next(self):
        self.state = (self.state + GOLDEN_RATIO) & MASK
        return finalise(self.state)

    def below(self, bound):
        return self.next() % bound


def initial_normal(seed, name, index):
    """Element `index` of parameter `name`, standard normal."""
    key = 0xCBF29CE484222325
    for byte in name.encode():
        key = ((key ^ byte) * 0x100000001B3) & MASK
    random = Random(Random(seed ^ key).next() + (index & ~1) * GOLDEN_RATIO)
    uniforms = [((random.next() >> 11) + 0.5) * 2.0**-53 for _ in range(2)]
    radius = math.sqrt(-2.0 * math.log(uniforms[0]))
    angle = 2.0 * math.pi * uniforms[1]
    return radius * (math.cos(angle) if index % 2 == 0 else math.sin(angle))


def threefry(counter, key):
    """Threefry4x32-20 (Salmon et al. 2011) of four arrays of counters, as four arrays."""
    rotations = ((10, 26), (11, 21), (13, 27), (23, 5), (6, 20), (17, 11), (25, 10), (18, 20))
    keys = [numpy.uint32(word) for word in (*key, 0x1BD11BDA ^ key[0] ^ key[1] ^ key[2] ^ key[3])]
    x = [words + k for words, k in zip(counter, keys)]
    for number in range(20):
        for a, bits in zip((0, 2), rotations[number % 8]):
            b = (a + 1 if number % 2 == 0 else 3 - a)
            x[a] = x[a] + x[b]
            x[b] = (x[b] << numpy.uint32(bits) | x[b] >> numpy.uint32(32 - bits)) ^ x[a]
        if number % 4 == 3:
            turn = number // 4 + 1
            x = [words + keys[(turn + i) % 5] for i, words in enumerate(x)]
            x[3] = x[3] + numpy.uint32(turn)
    return x


class Dropout:
    """That of one training step."""

    # Which dropout of the model: its embedding's, its classifier's; and three of each layer.
    EMBEDDED, POOLED, FIRST_OF_LAYERS = 0, 1, 2
    PROBABILITIES, ATTENDED, FED_FORWARD = 0, 1, 2

    def __init__(self, model, step):
        self.model, self.step = model, step

    def of_layer(self, layer, part, x):
        rate = self.model.get("attention_dropout" if part == self.PROBABILITIES else "dropout", 0.0)
        return self.drop(self.FIRST_OF_LAYERS + 3 * layer + part, rate, x)

    def of_model(self, site, x):
        return self.drop(site, self.model.get("dropout", 0.0), x)

    def drop(self, site, rate, x):
        """x is [samples, columns], [samples, rows, columns] or [samples, heads, rows, columns]."""
        if rate == 0.0:
            return x
        samples, columns = x.shape[0], x.shape[-1]
        rows = x.shape[-2] if x.dim() > 2 else 1
        heads = x.shape[1] if x.dim() > 3 else 1
        kept = numpy.empty((samples, heads, rows, columns), bool)
        head, row, column = numpy.indices(kept.shape[1:], numpy.uint32)
        counter = (column // 64 * 16 + column % 16, row, numpy.full_like(row, site), head)
        for sample in range(samples):
            words = threefry(counter, (TRAIN["seed"] & 0xFFFFFFFF, TRAIN["seed"] >> 32, self.step, sample))
            kept[sample] = numpy.choose(column // 16 % 4, words) >= int(rate * 2.0**32)
        return x * torch.from_numpy(kept).reshape(x.shape) * (1.0 / (1.0 - rate))


def make_batch(model, step):
    """What the model sees, by name, and its targets. Tokens are [microbatches * microbatch_size,
    sequence]."""
    random = Random(TRAIN["data_seed"] + step)
    seen, targets = {}, []
    for _ in range(TRAIN["microbatches"] * TRAIN["microbatch_size"]):
        row = [random.below(MODEL["vocabulary"])]
        for _ in range(MODEL["sequence"]):
            row.append((5 * row[-1] + 3 + random.below(4)) % MODEL["vocabulary"])
        one = {"tokens": row[:-1]}
        if model["family"] == "bert":
            targets.append(see_as_bert(model, random, one))
        else:
            targets.append(row[1:])
        for name, value in one.items():
            seen.setdefault(name, []).append(value)
    return {name: torch.tensor(values) for name, values in seen.items()}, torch.tensor(targets)


def see_as_bert(model, random, one):
    """Adds what a BERT sees besides the tokens, hides some of them, and returns the targets."""
    tokens, sequence = one["tokens"], model["sequence"]
    classifies = model["task"] == "classification"
    length = sequence - random.below(sequence // 2)
    first_segment = random.below(length + 1)
    targets = tokens[0] % model["classes"] if classifies else [-1] * sequence
    for i in range(sequence):
        is_told = not classifies and i < length and (i == 0 or random.below(4) == 0)
        if is_told:
            targets[i] = tokens[i]
        if is_told or i >= length:
            tokens[i] = 0
    one["lengths"] = length
    one["segments"] = [1 if first_segment <= i < length else 0 for i in range(sequence)]
    return targets


# -- the models ------------------------------------------------------------------------------------

DEVIATION = 0.02
RESIDUAL_DEVIATION = 0.02 / math.sqrt(2 * MODEL["layers"])
ONES, ZEROS = None, 0.0


def gpt2_shapes(tie):
    """By name, in model order: the shape, and the standard deviation that a parameter begins with.
    Matrices multiply from the right, [in, out]."""
    hidden, wide = GPT2["hidden"], GPT2["feed_forward"]
    shapes = {"wte.weight": ((GPT2["vocabulary"], hidden), DEVIATION),
              "wpe.weight": ((GPT2["sequence"], hidden), DEVIATION)}
    for i in range(GPT2["layers"]):
        for name, shape, deviation in (("attn.c_attn", (hidden, 3 * hidden), DEVIATION),
                                       ("attn.c_proj", (hidden, hidden), RESIDUAL_DEVIATION),
                                       ("mlp.c_fc", (hidden, wide), DEVIATION),
                                       ("mlp.c_proj", (wide, hidden), RESIDUAL_DEVIATION)):
            if name in ("attn.c_attn", "mlp.c_fc"):
                norm = f"h.{i}." + ("ln_1" if name == "attn.c_attn" else "ln_2")
                shapes[norm + ".weight"] = ((hidden,), ONES)
                shapes[norm + ".bias"] = ((hidden,), ZEROS)
            shapes[f"h.{i}.{name}.weight"] = (shape, deviation)
            shapes[f"h.{i}.{name}.bias"] = ((shape[1],), ZEROS)
    shapes["ln_f.weight"] = ((hidden,), ONES)
    shapes["ln_f.bias"] = ((hidden,), ZEROS)
    if not tie:
        shapes["lm_head.weight"] = ((GPT2["vocabulary"], hidden), DEVIATION)
    return shapes


def llama_shapes(tie):
    """As gpt2_shapes; matrices are [out, in]."""
    hidden, wide = LLAMA["hidden"], LLAMA["feed_forward"]
    kv = LLAMA["kv_heads"] * hidden // LLAMA["heads"]
    shapes = {"model.embed_tokens.weight": ((LLAMA["vocabulary"], hidden), DEVIATION)}
    for i in range(LLAMA["layers"]):
        layer = f"model.layers.{i}."
        shapes[layer + "input_layernorm.weight"] = ((hidden,), ONES)
        for name, out in (("q", hidden), ("k", kv), ("v", kv)):
            shapes[f"{layer}self_attn.{name}_proj.weight"] = ((out, hidden), DEVIATION)
        shapes[layer + "self_attn.o_proj.weight"] = ((hidden, hidden), RESIDUAL_DEVIATION)
        shapes[layer + "post_attention_layernorm.weight"] = ((hidden,), ONES)
        shapes[layer + "mlp.gate_proj.weight"] = ((wide, hidden), DEVIATION)
        shapes[layer + "mlp.up_proj.weight"] = ((wide, hidden), DEVIATION)
        shapes[layer + "mlp.down_proj.weight"] = ((hidden, wide), RESIDUAL_DEVIATION)
    shapes["model.norm.weight"] = ((hidden,), ONES)
    if not tie:
        shapes["lm_head.weight"] = ((LLAMA["vocabulary"], hidden), DEVIATION)
    return shapes


def parallel_shapes(tie):
    """As llama_shapes."""
    hidden, wide = PARALLEL["hidden"], PARALLEL["feed_forward"]
    shapes = {"wte.weight": ((PARALLEL["vocabulary"], hidden), DEVIATION)}
    for i in range(PARALLEL["layers"]):
        layer = f"h.{i}."
        shapes[layer + "ln.weight"] = ((hidden,), ONES)
        shapes[layer + "ln.bias"] = ((hidden,), ZEROS)
        shapes[layer + "attn.qkv.weight"] = ((3 * hidden, hidden), DEVIATION)
        shapes[layer + "mlp.up.weight"] = ((wide, hidden), DEVIATION)
        shapes[layer + "mlp.act.gain"] = ((wide,), ONES)
        shapes[layer + "mlp.act.bias"] = ((wide,), ZEROS)
        shapes[layer + "attn.out.weight"] = ((hidden, hidden), RESIDUAL_DEVIATION)
        shapes[layer + "mlp.down.weight"] = ((hidden, wide), RESIDUAL_DEVIATION)
    shapes["ln_f.weight"] = ((hidden,), ONES)
    if not tie:
        shapes["lm_head.weight"] = ((PARALLEL["vocabulary"], hidden), DEVIATION)
    return shapes


def bert_shapes(tie, model=BERT):
    """As llama_shapes."""
    hidden, wide = BERT["hidden"], BERT["feed_forward"]
    shapes = {}

    def norm(name):
        shapes[name + ".weight"] = ((hidden,), ONES)
        shapes[name + ".bias"] = ((hidden,), ZEROS)

    def linear(name, out, width):
        shapes[name + ".weight"] = ((out, width), DEVIATION)
        shapes[name + ".bias"] = ((out,), ZEROS)

    for name, rows in (("word", BERT["vocabulary"]), ("position", BERT["sequence"]), ("token_type", 2)):
        shapes[f"bert.embeddings.{name}_embeddings.weight"] = ((rows, hidden), DEVIATION)
    norm("bert.embeddings.LayerNorm")
    for i in range(BERT["layers"]):
        layer = f"bert.encoder.layer.{i}."
        for name in ("query", "key", "value"):
            linear(f"{layer}attention.self.{name}", hidden, hidden)
        linear(layer + "attention.output.dense", hidden, hidden)
        norm(layer + "attention.output.LayerNorm")
        linear(layer + "intermediate.dense", wide, hidden)
        linear(layer + "output.dense", hidden, wide)
        norm(layer + "output.LayerNorm")
    if model["task"] == "classification":
        linear("bert.pooler.dense", hidden, hidden)
        linear("classifier", model["classes"], hidden)
        return shapes
    linear("cls.predictions.transform.dense", hidden, hidden)
    norm("cls.predictions.transform.LayerNorm")
    shapes["cls.predictions.bias"] = ((BERT["vocabulary"],), ZEROS)
    if not tie:
        shapes["cls.predictions.decoder.weight"] = ((BERT["vocabulary"], hidden), DEVIATION)
    return shapes


def classifier_shapes(tie):
    return bert_shapes(tie, CLASSIFIER)


def make_parameters(shapes):
    parameters = {}
    for name, (shape, deviation) in shapes.items():
        if deviation is ONES:
            value = torch.ones(shape)
        elif deviation == ZEROS:
            value = torch.zeros(shape)
        else:
            normals = [initial_normal(TRAIN["seed"], name, i) for i in range(math.prod(shape))]
            value = (torch.tensor(normals, dtype=torch.float32)
                     * torch.tensor(deviation, dtype=torch.float32)).reshape(shape)
        parameters[name] = value.requires_grad_()
    return parameters


class RoundedProduct(torch.autograd.Function):
    """x [..., in] times w [in, out]: the operands of it and of its backward pass are rounded to `dtype`; they add
    up in 32 bits, as tensor cores do."""

    @staticmethod
    def forward(context, x, w, dtype):
        context.save_for_backward(x, w)
        context.dtype = dtype
        return x.to(dtype).float() @ w.to(dtype).float()

    @staticmethod
    def backward(context, dy):
        x, w, dy = (operand.to(context.dtype).float() for operand in (*context.saved_tensors, dy))
        return dy @ w.T, x.flatten(0, -2).T @ dy.flatten(0, -2), None


def make_product(precision):
    """x [..., in] times w [in, out], plus bias [out]."""
    if precision == "fp32":
        return lambda x, w, bias=None: F.linear(x, w.T, bias)
    return lambda x, w, bias=0.0: RoundedProduct.apply(x, w, DTYPES[precision]) + bias


def attend(q, k, v, drop, hidden_keys=None):
    """Each [batch, heads, sequence, head_size]; returns [batch, sequence, hidden]. Later keys are
    hidden, or those marked in [batch, sequence]. `drop` is applied to the probabilities."""
    batch, _, sequence, size = q.shape
    scores = q @ k.transpose(-1, -2) / math.sqrt(size)
    if hidden_keys is None:
        scores = scores + torch.full((sequence, sequence), float("-inf")).triu(1)
    else:
        scores = scores.masked_fill(hidden_keys[:, None, None, :], float("-inf"))
    return (drop(scores.softmax(-1)) @ v).transpose(1, 2).reshape(batch, sequence, -1)


def dropouts_of(dropout, layer):
    """The three of a layer, as functions."""
    return (functools.partial(dropout.of_layer, layer, part)
            for part in (dropout.PROBABILITIES, dropout.ATTENDED, dropout.FED_FORWARD))


def by_heads(x, heads):
    """[batch, sequence, heads * size] as [batch, heads, sequence, size]."""
    return x.reshape(*x.shape[:2], heads, -1).transpose(1, 2)


def turn(x):
    """By rotary positions; [batch, heads, sequence, head_size]."""
    size = x.shape[-1]
    wavelengths = 10000.0 ** (torch.arange(0, size, 2) / size)
    angles = (torch.arange(x.shape[-2])[:, None] / wavelengths).repeat(1, 2)
    first, second = x.chunk(2, -1)
    return x * angles.cos() + torch.cat((-second, first), -1) * angles.sin()


def rms_norm(x, gain):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * gain


def gpt2_forward(p, dropout, product, tokens):
    """Logits [batch, sequence, vocabulary]."""
    def norm(x, name):
        return F.layer_norm(x, x.shape[-1:], p[name + ".weight"], p[name + ".bias"], 1e-5)

    def linear(x, name):
        return product(x, p[name + ".weight"]) + p[name + ".bias"]

    x = dropout.of_model(dropout.EMBEDDED, p["wte.weight"][tokens] + p["wpe.weight"][:tokens.shape[1]])
    for i in range(GPT2["layers"]):
        h = f"h.{i}."
        probabilities, attended, fed_forward = dropouts_of(dropout, i)
        qkv = linear(norm(x, h + "ln_1"), h + "attn.c_attn").split(GPT2["hidden"], -1)
        y = attend(*(by_heads(t, GPT2["heads"]) for t in qkv), probabilities)
        x = x + attended(linear(y, h + "attn.c_proj"))
        wide = F.gelu(linear(norm(x, h + "ln_2"), h + "mlp.c_fc"), approximate="tanh")
        x = x + fed_forward(linear(wide, h + "mlp.c_proj"))
    return product(norm(x, "ln_f"), p.get("lm_head.weight", p["wte.weight"]).T)


def llama_forward(p, dropout, product, tokens):
    """Logits [batch, sequence, vocabulary]."""
    def norm(x, name):
        return rms_norm(x, p[name + ".weight"])

    def linear(x, name):
        return product(x, p[name + ".weight"].T)

    group = LLAMA["heads"] // LLAMA["kv_heads"]
    x = dropout.of_model(dropout.EMBEDDED, p["model.embed_tokens.weight"][tokens])
    for i in range(LLAMA["layers"]):
        layer = f"model.layers.{i}."
        probabilities, attended, fed_forward = dropouts_of(dropout, i)
        normal = norm(x, layer + "input_layernorm")
        q = by_heads(linear(normal, layer + "self_attn.q_proj"), LLAMA["heads"])
        k, v = (by_heads(linear(normal, f"{layer}self_attn.{name}_proj"), LLAMA["kv_heads"])
                .repeat_interleave(group, 1) for name in "kv")
        x = x + attended(linear(attend(turn(q), turn(k), v, probabilities), layer + "self_attn.o_proj"))
        normal = norm(x, layer + "post_attention_layernorm")
        wide = F.silu(linear(normal, layer + "mlp.gate_proj")) * linear(normal, layer + "mlp.up_proj")
        x = x + fed_forward(linear(wide, layer + "mlp.down_proj"))
    head = p.get("lm_head.weight", p["model.embed_tokens.weight"])
    return product(norm(x, "model.norm"), head.T)


def parallel_forward(p, dropout, product, tokens):
    """Logits [batch, sequence, vocabulary]."""
    def linear(x, name):
        return product(x, p[name + ".weight"].T)

    x = dropout.of_model(dropout.EMBEDDED, p["wte.weight"][tokens])
    for i in range(PARALLEL["layers"]):
        layer = f"h.{i}."
        probabilities, attended, fed_forward = dropouts_of(dropout, i)
        normal = F.layer_norm(x, x.shape[-1:], p[layer + "ln.weight"], p[layer + "ln.bias"], 1e-5)
        q, k, v = (by_heads(t, PARALLEL["heads"])
                   for t in linear(normal, layer + "attn.qkv").split(PARALLEL["hidden"], -1))
        y = linear(attend(turn(q), turn(k), v, probabilities), layer + "attn.out")
        square = p[layer + "mlp.act.gain"] * linear(normal, layer + "mlp.up") ** 2 + p[layer + "mlp.act.bias"]
        x = x + attended(y) + fed_forward(linear(square, layer + "mlp.down"))
    return product(rms_norm(x, p["ln_f.weight"]), p.get("lm_head.weight", p["wte.weight"]).T)


def bert_hidden(p, dropout, product, tokens, segments, lengths):
    """What the last layer says, [batch, sequence, hidden]; and the two operations for heads."""
    def norm(x, name):
        return F.layer_norm(x, x.shape[-1:], p[name + ".weight"], p[name + ".bias"], BERT["norm_epsilon"])

    def linear(x, name):
        return product(x, p[name + ".weight"].T, p[name + ".bias"])

    words, positions, kinds = (p[f"bert.embeddings.{name}_embeddings.weight"]
                               for name in ("word", "position", "token_type"))
    x = norm(words[tokens] + positions[:tokens.shape[1]] + kinds[segments], "bert.embeddings.LayerNorm")
    x = dropout.of_model(dropout.EMBEDDED, x)
    padding = torch.arange(tokens.shape[1]) >= lengths[:, None]
    for i in range(BERT["layers"]):
        layer = f"bert.encoder.layer.{i}."
        probabilities, attended, fed_forward = dropouts_of(dropout, i)
        q, k, v = (by_heads(linear(x, f"{layer}attention.self.{name}"), BERT["heads"])
                   for name in ("query", "key", "value"))
        y = attend(q, k, v, probabilities, padding)
        x = norm(x + attended(linear(y, layer + "attention.output.dense")), layer + "attention.output.LayerNorm")
        wide = F.gelu(linear(x, layer + "intermediate.dense"))
        x = norm(x + fed_forward(linear(wide, layer + "output.dense")), layer + "output.LayerNorm")
    return x, norm, linear


def bert_forward(p, dropout, product, tokens, segments, lengths):
    """Logits [batch, sequence, vocabulary]."""
    x, norm, linear = bert_hidden(p, dropout, product, tokens, segments, lengths)
    name = "cls.predictions."
    x = norm(F.gelu(linear(x, name + "transform.dense")), name + "transform.LayerNorm")
    decoder = p.get(name + "decoder.weight", p["bert.embeddings.word_embeddings.weight"])
    return product(x, decoder.T, p[name + "bias"])


def classifier_forward(p, dropout, product, tokens, segments, lengths):
    """Logits [batch, classes]."""
    x, _, linear = bert_hidden(p, dropout, product, tokens, segments, lengths)
    pooled = torch.tanh(linear(x[:, 0], "bert.pooler.dense"))
    return linear(dropout.of_model(dropout.POOLED, pooled), "classifier")


FAMILIES = {"gpt2": (gpt2_shapes, gpt2_forward), "llama": (llama_shapes, llama_forward),
            "bert": (bert_shapes, bert_forward), "custom": (parallel_shapes, parallel_forward)}


# -- the training ----------------------------------------------------------------------------------

def learning_rate_at(train, step):
    """As engine/config.hpp, `step` counted from 1."""
    peak, least, warmup = train["learning_rate"], train["min_learning_rate"], train["warmup_steps"]
    if step <= warmup:
        return peak * step / warmup
    share = (step - warmup) / (train["steps"] - warmup)
    return least + 0.5 * (peak - least) * (1.0 + math.cos(math.pi * share))


class Adafactor(torch.optim.Optimizer):
    """Shazeer and Stern 2018, algorithms 4 and 5 without momentum, steps relative to the weights."""

    def __init__(self, groups):
        super().__init__(groups, {"lr": 0.0, "weight_decay": 0.0})
        self.time = 0

    @torch.no_grad()
    def step(self):
        self.time += 1
        keep = 1.0 - self.time ** -0.8
        for group in self.param_groups:
            for w in group["params"]:
                square = (w.grad ** 2 + 1e-30).reshape(-1, w.shape[-1])  # A vector is one row.
                state = self.state[w]
                rows, columns = square.sum(1), square.sum(0)
                state["rows"] = keep * state.get("rows", 0.0) + (1.0 - keep) * rows
                state["columns"] = keep * state.get("columns", 0.0) + (1.0 - keep) * columns
                variance = torch.outer(state["rows"], state["columns"]) / state["rows"].sum()
                u = w.grad / variance.sqrt().reshape(w.shape)
                rate = group["lr"] * max(1e-3, w.pow(2).mean().sqrt())
                w.mul_(1.0 - group["lr"] * group["weight_decay"])
                w.sub_(rate * u / max(1.0, u.pow(2).mean().sqrt()))


def make_optimizer(parameters, train):
    groups = [{"params": [p for p in parameters.values() if p.dim() == 2],
               "weight_decay": train["weight_decay"]},
              {"params": [p for p in parameters.values() if p.dim() == 1], "weight_decay": 0.0}]
    if train["optimizer"] == "sgd":
        return torch.optim.SGD(groups, lr=0.0, momentum=train["momentum"])
    if train["optimizer"] == "adafactor":
        return Adafactor(groups)
    make = torch.optim.Adam if train["optimizer"] == "adam" else torch.optim.AdamW
    return make(groups, lr=0.0, betas=(train["beta1"], train["beta2"]),
                eps=train["epsilon"])


def to_safetensors(tensors):
    """The bytes of a safetensors file: the header's size, the header in JSON, the elements."""
    header, elements = {}, b""
    for name, value in tensors.items():
        data = value.detach().numpy().astype("<f4").tobytes()
        header[name] = {"dtype": "F32", "shape": list(value.shape),
                        "data_offsets": [len(elements), len(elements) + len(data)]}
        elements += data
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + elements


def run(model, tie, train):
    """What the training was and what it measured; and the weights after it, by name."""
    train = {**TRAIN, **train}
    shapes_of, forward = FAMILIES[model["family"]]
    if model.get("task") == "classification":
        shapes_of, forward = classifier_shapes, classifier_forward
    parameters = make_parameters(shapes_of(tie))
    optimizer = make_optimizer(parameters, train)
    product = make_product(train.get("precision", "fp32"))
    scale = train.get("loss_scale", 1.0)
    losses, norms = [], []
    for step in range(1, train["steps"] + 1):
        seen, targets = make_batch(model, step - 1)
        logits = forward(parameters, Dropout(model, step), product, **seen)
        loss = F.cross_entropy(logits.flatten(0, -2), targets.flatten(), ignore_index=-1)
        optimizer.zero_grad()
        (scale * loss).backward()
        for p in parameters.values():
            p.grad /= scale
        norms.append(torch.nn.utils.clip_grad_norm_(parameters.values(), train["clip_norm"]).item())
        losses.append(loss.item())
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(train, step)
        optimizer.step()
    return {"model": {**model, "tie_embeddings": tie}, "train": train,
            "losses": losses, "gradient_norms": norms}, parameters


def main():
    default = pathlib.Path(__file__).resolve().parent.parent / "tests" / "stages" / "golden"
    folder = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else default
    torch.set_num_threads(1)
    for name, (model, tie, train) in CASES.items():
        measured, weights = run(model, tie, train)
        (folder / f"{name}.json").write_text(json.dumps(measured, indent=1) + "\n")
        (folder / f"{name}.safetensors").write_bytes(to_safetensors(weights))
        print(folder / name)


if __name__ == "__main__":
    main()
