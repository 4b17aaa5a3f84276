#!/usr/bin/env python3
"""How much of the ideal two pipeline stages on two cores reach, in one process, pair by pair.

The ideal is the schedule's, 2m / (m + 1) times one stage's speed, times what two independent one-stage
trainings side by side lose to each other on this machine. The bar is 97 % at 8 microbatches.
Usage: bench/pipeline_efficiency.py [--rounds N] [--microbatches M]     needs build/release
"""

import argparse
import statistics
import tempfile

from compare_pytorch import finish_troupe, start_troupe


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--microbatches", type=int, default=8)
    parser.add_argument("--microbatch-size", type=int, default=4)
    args = parser.parse_args()
    m = args.microbatches
    shape = {"microbatches": m, "microbatch_size": args.microbatch_size, "steps": args.steps}
    shares = []
    with tempfile.TemporaryDirectory() as folder:
        for round_ in range(args.rounds):
            alone = finish_troupe(start_troupe(f"{folder}/alone", "0", pipeline=1, **shape))
            both = [start_troupe(f"{folder}/side{core}", core, pipeline=1, **shape) for core in "01"]
            beside = statistics.mean([finish_troupe(started) for started in both])
            pipeline = finish_troupe(start_troupe(f"{folder}/pipeline", "0,1", pipeline=2, **shape))
            # Two side by side run at `beside` each: that is what a core is worth while both compute.
            ideal = beside * 2 * m / (m + 1)
            shares.append(pipeline / ideal)
            print(f"round {round_ + 1}: alone {alone:.0f}, side by side {beside:.0f} each, two stages "
                  f"{pipeline:.0f} tokens/s; ideal {ideal:.0f}, reached {pipeline / ideal:.1%}", flush=True)
    print(f"median: {statistics.median(shares):.1%} of the ideal at {m} microbatches (bar 97 %)")


if __name__ == "__main__":
    main()
