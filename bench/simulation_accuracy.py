#!/usr/bin/env python3
"""How far a simulated step is from a measured one: two stages on two cores, over schedules, numbers of
microbatches and partitions, with what `troupe profile` measured a little earlier.

The bar is a median of at most 3 %. Nothing else should run meanwhile.
Usage: bench/simulation_accuracy.py [--steps N] [--seconds S]     needs build/release
"""

import argparse
import json
import statistics
import subprocess
import tempfile

from compare_pytorch import ROOT

TROUPE = ROOT / "build/release/cli/troupe"
SCHEDULES = [("1f1b", False), ("gpipe", False), ("zb-h1", False), ("zb-v", False), ("auto", False), ("1f1b", True)]
MICROBATCHES = [4, 8]
PARTITIONS = ["3,3", "4,2"]  # Even, and one stage with twice the layers.
CONFIG = """
[model]
layers = 6
heads = 6
hidden = 384
sequence = 256
tie_embeddings = true
[parallel]
pipeline = 2
[schedule]
microbatch_size = 2
[train]
validation_interval = 0
[data]
text = "{corpus}"
"""


def troupe(*words):
    return subprocess.run([TROUPE, *words], check=True, capture_output=True, text=True).stdout


def cases():
    for name, split in SCHEDULES:
        for microbatches in MICROBATCHES:
            for layers in PARTITIONS:
                if name == "zb-v":  # Two stages on each rank.
                    layers = "2,1,1,2" if layers == "3,3" else "3,1,1,1"
                yield name, split, microbatches, layers


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=10.0)
    args = parser.parse_args()
    errors = []
    with tempfile.TemporaryDirectory() as folder:
        config = f"{folder}/config.toml"
        corpus = f"{folder}/corpus.txt"
        with open(corpus, "w") as text:
            text.write("In the beginning was the word. " * 4000)
        with open(config, "w") as text:
            text.write(CONFIG.format(corpus=corpus))
        last = None
        for name, split, microbatches, layers in cases():
            if name != last:  # A machine's speed drifts.
                troupe("profile", config, "--seconds", str(args.seconds), "--out", f"{folder}/profile.json")
                last = name
            settings = ["--set", f"schedule.name={name}", f"schedule.split_backward={str(split).lower()}",
                        f"schedule.microbatches={microbatches}", f"schedule.layers_per_stage=[{layers}]",
                        f"schedule.profile={folder}/profile.json",
                        f"schedule.chunks={2 if name == 'zb-v' else 1}"]
            simulated = json.loads(troupe("simulate", config, *settings, "--profile", f"{folder}/profile.json",
                                          "--json"))["makespan"]
            troupe("train", config, *settings, f"train.steps={args.steps}", f"run.output={folder}/run")
            with open(f"{folder}/run/metrics.jsonl") as metrics:
                seconds = [json.loads(line)["seconds"] for line in metrics][2:]
            measured = 1e3 * statistics.median(seconds)
            errors.append(abs(simulated - measured) / measured)
            print(f"{name}{' split' if split else ''}, {microbatches} microbatches, layers {layers}: "
                  f"measured {measured:.1f} ms, simulated {simulated:.1f} ms, {simulated / measured - 1:+.1%}",
                  flush=True)
    print(f"median of {len(errors)}: {statistics.median(errors):.1%} (bar 3 %), worst {max(errors):.1%}")


if __name__ == "__main__":
    main()
