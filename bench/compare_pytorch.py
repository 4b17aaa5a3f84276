#!/usr/bin/env python3
"""troupe against PyTorch on one stage and one thread, pair by pair: prints both medians and their ratio.

Model: 6 layers, 6 heads, 384 wide, 256 tokens, 256 vocabulary, batch 8. The bar is 1.15, in fp32 and in bf16, which
PyTorch computes by autocast.
PyTorch gets OpenBLAS, without presets and with one thread, and an allocator that keeps
what it has been given.
Usage: bench/compare_pytorch.py [--rounds N] [--core C] [--precision fp32|bf16]
Needs build/release and Debian's python3-torch and libopenblas0-openmp.
"""

import argparse
import functools
import json
import os
import pathlib
import secrets
import shutil
import socket
import statistics
import subprocess
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
TROUPE = ROOT / "build/release/cli/troupe"

CONFIG = """
[model]
family = "gpt2"
layers = 6
heads = 6
hidden = 384
sequence = 256
tie_embeddings = true
[parallel]
data = 1
tensor = {tensor}
pipeline = {pipeline}
[schedule]
name = "{schedule}"
microbatches = {microbatches}
microbatch_size = {microbatch_size}
[train]
steps = {steps}
seed = 1
optimizer = "adamw"
learning_rate = 1e-3
warmup_steps = 20
clip_norm = 1.0
precision = "{precision}"
validation_interval = 0
[data]
text = "{text}"
tokenizer = "bytes"
[run]
device = "cpu"
threads_per_stage = 1
output = "{output}"
"""


def environment():
    """Without the presets that halve OpenBLAS, which PyTorch uses."""
    return {k: v for k, v in os.environ.items() if not k.startswith("OPENBLAS_")}


@functools.cache
def kernels_of_openblas():
    """On a processor younger than itself OpenBLAS takes its oldest kernels, which are no peer: names better ones."""
    words = ["/usr/bin/python3", "-c", "import torch; torch.ones(64, 64) @ torch.ones(64, 64)"]
    said = subprocess.run(words, env={**environment(), "OPENBLAS_VERBOSE": "2"}, capture_output=True, text=True)
    flags = pathlib.Path("/proc/cpuinfo").read_text().split()
    if "Prescott" not in said.stderr + said.stdout or "avx2" not in flags:
        return {}
    return {"OPENBLAS_CORETYPE": "SkylakeX" if "avx512dq" in flags else "Haswell"}


def environment_of_pytorch():
    """Also with one thread on its one core, and memory that is kept from step to step."""
    return {**environment(), **kernels_of_openblas(), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1",
            "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "100000000000"}


def corpus():
    path = ROOT / "kjv.txt"
    if not path.exists():
        if shutil.which("bible") is None:
            raise SystemExit("the text to train on comes from a Debian package: apt-get install bible-kjv")
        path.write_bytes(subprocess.run(["bible", "-f", "gen1:1-rev22:21"], stdin=subprocess.DEVNULL,
                                        stdout=subprocess.PIPE, check=True).stdout)
    return path


def write_config(folder, tensor=1, precision="fp32", schedule="1f1b", **settings):
    """Returns the paths of a configuration and of the metrics that its run will write."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "run.toml"
    config.write_text(CONFIG.format(text=corpus(), output=folder / "out", tensor=tensor,
                                    precision=precision, schedule=schedule, **settings))
    return config, folder / "out/metrics.jsonl"


def start_pinned(cores, *words):
    command = ["taskset", "-c", cores, TROUPE, *words]
    return subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL)


def start_troupe(folder, cores, **settings):
    """Starts a training in one process; `finish_troupe` waits for it."""
    config, metrics = write_config(folder, **settings)
    return [start_pinned(cores, "train", config)], metrics


def start_troupe_processes(folder, cores, **settings):
    """Starts a training with a process on each of `cores`, and a director that only leads. It may be stopped for less
    than a minute."""
    config, metrics = write_config(folder, **settings)
    secret = config.with_name("secret")
    with open(os.open(secret, os.O_WRONLY | os.O_CREAT, 0o600), "w") as out:
        out.write(secrets.token_hex(32))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{free.getsockname()[1]}"
    patience = ["--heartbeat", "60"]
    director = start_pinned(",".join(cores), "train", config, "--nodes", str(len(cores)), "--listen", place,
                            "--secret", secret, *patience)
    nodes = [start_pinned(core, "node", "--join", place, "--secret", secret, *patience) for core in cores]
    return [director, *nodes], metrics


def rates_of(started, warmup=2):
    """Returns the tokens/s of the steps after the warm-up."""
    processes, metrics = started
    if any([process.wait() for process in processes]):
        raise SystemExit("troupe failed")
    rates = [json.loads(line)["tokens_per_second"] for line in metrics.read_text().splitlines()]
    return rates[warmup:]


def finish_troupe(started):
    """Returns the median tokens/s of the steps after the warm-up."""
    return statistics.median(rates_of(started))


def run_pytorch(core, steps, precision):
    command = ["taskset", "-c", core, "/usr/bin/python3", ROOT / "bench/gpt_pytorch.py",
               "--steps", str(steps), "--text", corpus(), "--precision", precision]
    return float(subprocess.run(command, env=environment_of_pytorch(), check=True, stdout=subprocess.PIPE,
                                text=True).stdout)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=14)
    parser.add_argument("--core", default="0")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    args = parser.parse_args()
    pairs = []
    with tempfile.TemporaryDirectory() as folder:
        for round_ in range(args.rounds):
            ours = finish_troupe(start_troupe(folder, args.core, pipeline=1, microbatches=1,
                                              microbatch_size=8, steps=args.steps, precision=args.precision))
            theirs = run_pytorch(args.core, args.steps, args.precision)
            pairs.append((ours, theirs))
            print(f"round {round_ + 1}: troupe {ours:.0f}, PyTorch {theirs:.0f} tokens/s, "
                  f"ratio {ours / theirs:.3f}", flush=True)
    ratio = statistics.median(a / b for a, b in pairs)
    print(f"median: troupe {statistics.median(a for a, _ in pairs):.0f}, "
          f"PyTorch {statistics.median(b for _, b in pairs):.0f} tokens/s, ratio {ratio:.3f} (bar 1.15)")


if __name__ == "__main__":
    main()
