#!/usr/bin/env python3
"""How much faster two shards on two cores train than one stage on one core, pair by pair.

Model: 6 layers, 6 heads, 384 wide, 256 tokens, 256 vocabulary, batch 8 in one microbatch, fp32. The bar is
1.6. Also prints the share of the step in which a shard waits for the other: what of its communication is
exposed.
Usage: bench/tensor_parallel.py [--rounds N] [--steps N]     needs build/release
"""

import argparse
import json
import statistics
import tempfile

from compare_pytorch import finish_troupe, start_troupe


def exposed(metrics, warmup=2):
    lines = metrics.read_text().splitlines()[warmup:]
    return statistics.median(json.loads(line)["time_shards"] for line in lines)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10)
    args = parser.parse_args()
    shape = {"pipeline": 1, "microbatches": 1, "microbatch_size": 8, "steps": args.steps}
    ratios, shares = [], []
    with tempfile.TemporaryDirectory() as folder:
        for round_ in range(args.rounds):
            one = finish_troupe(start_troupe(f"{folder}/one", "0", **shape))
            started = start_troupe(f"{folder}/two", "0,1", tensor=2, **shape)
            two = finish_troupe(started)
            shares.append(exposed(started[1]))
            ratios.append(two / one)
            print(f"round {round_ + 1}: one {one:.0f}, two shards {two:.0f} tokens/s, {two / one:.2f}x, "
                  f"exposed communication {shares[-1]:.1%}", flush=True)
    print(f"median: {statistics.median(ratios):.2f}x (bar 1.6), exposed communication "
          f"{statistics.median(shares):.1%} of the step")


if __name__ == "__main__":
    main()
