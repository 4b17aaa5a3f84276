#!/usr/bin/env python3
"""troupe against PyTorch on the accuracy of a classifier: the same configuration, texts and held-out texts.

Prints for each seed the accuracy and loss of both on all that is held out, and at the end the means and their
difference with its standard error. A seed also draws which texts are held out. With --same-start PyTorch begins with
troupe's initial weights and takes the texts in its order: what is left to differ is rounding and what grows from it.
Usage: bench/compare_classifier.py [--seeds N ...] [--cores C,D] [--same-start] [--set key=value ...]
The two of a seed run side by side, each on a core; what troupe leaves is kept in runs/.
Needs build/release, kjv-parts.tsv (scripts/kjv_parts.py), and Debian's python3-torch and libopenblas0-openmp.
"""

import argparse
import json
import math
import pathlib
import statistics
import subprocess
import tempfile
import time

from compare_pytorch import ROOT, TROUPE, environment, environment_of_pytorch

CONFIG = ROOT / "examples/classes.toml"


def start_troupe(core, folder, seed, settings):
    command = ["taskset", "-c", core, TROUPE, "train", CONFIG, "--set", f"train.seed={seed}",
               f"data.text={ROOT / 'kjv-parts.tsv'}", f"run.output={folder}", *settings]
    return subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL)


def initial_weights(core, folder, seed, settings):
    """The weights after a step that changes nothing."""
    still = ["train.steps=1", "train.learning_rate=0.0", "train.warmup_steps=0", "train.validation_interval=0"]
    if start_troupe(core, folder, seed, [*settings, *still]).wait():
        raise SystemExit("troupe failed")
    return folder / "weights.safetensors"


def start_pytorch(core, config, weights):
    command = ["taskset", "-c", core, "/usr/bin/python3", ROOT / "bench/classifier_pytorch.py", config]
    command += ["--weights", weights] if weights else []
    return subprocess.Popen(command, env=environment_of_pytorch(), stdout=subprocess.PIPE, text=True)


def wait_for(path):
    while not path.exists():
        time.sleep(0.1)
    return path


def compare(seed, cores, root, settings, same_start):
    """Returns the reports of both."""
    weights = initial_weights(cores[0], root / f"{seed}-initial", seed, settings) if same_start else None
    folder = root / str(seed)
    ours = start_troupe(cores[0], folder, seed, settings)
    theirs = start_pytorch(cores[-1], wait_for(folder / "config.toml"), weights)
    said = theirs.communicate()[0]
    if ours.wait() or theirs.returncode:
        raise SystemExit("a training failed")
    return json.loads((folder / "classes.json").read_text()), json.loads(said)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--cores", default="0,1")
    parser.add_argument("--same-start", action="store_true")
    parser.add_argument("--set", nargs="+", default=[], metavar="key=value")
    args = parser.parse_args()
    pairs = []
    (ROOT / "runs").mkdir(exist_ok=True)
    root = pathlib.Path(tempfile.mkdtemp(prefix="compare-classifier-", dir=ROOT / "runs"))
    for seed in args.seeds:
        ours, theirs = compare(seed, args.cores.split(","), root, args.set, args.same_start)
        support = {row["name"]: row["support"] for row in ours["classes"]}
        if support != theirs["support"]:
            raise SystemExit(f"the texts held out differ: {support} and {theirs['support']}")
        pairs.append((ours["accuracy"], theirs["accuracy"]))
        most = max(support.values()) / ours["texts"]
        print(f"seed {seed}: troupe {ours['accuracy']:.4f} (loss {ours['loss']:.4f}), PyTorch "
              f"{theirs['accuracy']:.4f} (loss {theirs['loss']:.4f}), the commonest class {most:.4f}", flush=True)
    differences = [a - b for a, b in pairs]
    error = f" +- {statistics.stdev(differences) / math.sqrt(len(pairs)):.4f}" if len(pairs) > 1 else ""
    ours, theirs = (statistics.mean(of) for of in zip(*pairs))
    print(f"mean: troupe {ours:.4f}, PyTorch {theirs:.4f}, difference {statistics.mean(differences):+.4f}{error}; "
          f"the runs are in {root}")


if __name__ == "__main__":
    main()
