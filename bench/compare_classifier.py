#!/usr/bin/env python3
"""troupe against PyTorch on the accuracy of a classifier: the same configuration, texts and held-out texts, seed by seed.

Prints for each seed the accuracy and loss of both on all that is held out, and at the end the means and their
difference with its standard error. A seed also draws which texts are held out.
Usage: bench/compare_classifier.py [--seeds N] [--core C] [--set key=value ...]
Needs build/release, kjv-parts.tsv (scripts/kjv_parts.py), and Debian's python3-torch and libopenblas0-openmp.
"""

import argparse
import json
import math
import pathlib
import statistics
import subprocess
import tempfile

from compare_pytorch import ROOT, TROUPE, environment, environment_of_pytorch

CONFIG = ROOT / "examples/classes.toml"


def run_troupe(core, folder, seed, settings):
    """Returns the report of a run, whose configuration lies beside it in the folder."""
    command = ["taskset", "-c", core, TROUPE, "train", CONFIG, "--set", f"train.seed={seed}",
               f"data.text={ROOT / 'kjv-parts.tsv'}", f"run.output={folder}", *settings]
    subprocess.run(command, env=environment(), check=True, stdout=subprocess.DEVNULL)
    return json.loads((folder / "classes.json").read_text())


def run_pytorch(core, folder):
    command = ["taskset", "-c", core, "/usr/bin/python3", ROOT / "bench/classifier_pytorch.py",
               folder / "config.toml"]
    return json.loads(subprocess.run(command, env=environment_of_pytorch(), check=True, stdout=subprocess.PIPE,
                                     text=True).stdout)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--core", default="0")
    parser.add_argument("--set", nargs="+", default=[], metavar="key=value")
    args = parser.parse_args()
    pairs = []
    with tempfile.TemporaryDirectory() as root:
        for seed in range(1, args.seeds + 1):
            folder = pathlib.Path(root) / str(seed)
            ours = run_troupe(args.core, folder, seed, args.set)
            theirs = run_pytorch(args.core, folder)
            support = {row["name"]: row["support"] for row in ours["classes"]}
            if support != theirs["support"]:
                raise SystemExit(f"the texts held out differ: {support} and {theirs['support']}")
            pairs.append((ours["accuracy"], theirs["accuracy"]))
            most = max(support.values()) / ours["texts"]
            print(f"seed {seed}: troupe {ours['accuracy']:.4f} (loss {ours['loss']:.4f}), PyTorch "
                  f"{theirs['accuracy']:.4f} (loss {theirs['loss']:.4f}), the commonest class {most:.4f}", flush=True)
    differences = [a - b for a, b in pairs]
    error = statistics.stdev(differences) / math.sqrt(len(pairs)) if len(pairs) > 1 else math.nan
    print(f"mean: troupe {statistics.mean(a for a, _ in pairs):.4f}, PyTorch {statistics.mean(b for _, b in pairs):.4f}, "
          f"difference {statistics.mean(differences):+.4f} +- {error:.4f}")


if __name__ == "__main__":
    main()
