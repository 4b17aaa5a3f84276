#!/usr/bin/env python3
"""How much of the gain that the simulator promises a better schedule really brings: plain 1F1B against the
schedules of the laboratory, two even stages on two cores, 4 microbatches, in turns
with each other and with the profile.

The best is the schedule that the simulator says is fastest, before anything is run. The bar is that it brings at
least 80 % of the promise. Nothing else should run meanwhile.
Usage: bench/schedule_gain.py [--rounds N] [--seconds S]     needs build/release
"""

import argparse
import statistics
import tempfile

from simulation_accuracy import Laboratory

MICROBATCHES = 4
CANDIDATES = [("zb-h1", "3,3"), ("zb-h2", "3,3"), ("auto", "3,3"), ("zb-v", "2,1,1,2")]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=30.0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        laboratory = Laboratory(folder)
        shares = []
        for number in range(1, args.rounds + 1):
            laboratory.profile(10.0)
            plain = laboratory.settings("1f1b", False, MICROBATCHES, "3,3")
            promised = {name: laboratory.settings(name, False, MICROBATCHES, layers) for name, layers in CANDIDATES}
            name = min(promised, key=lambda name: laboratory.simulated_ms(promised[name]))
            before, after = laboratory.predictions(args.seconds, plain, promised[name])
            measured, simulated = [[before[what], after[what]] for what in ("measured", "simulated")]
            gains = [slow / fast - 1 for slow, fast in (measured, simulated)]
            shares.append(gains[0] / gains[1])
            print(f"round {number}: 1f1b {measured[0]:.1f} ms, {name} {measured[1]:.1f} ms, {gains[0]:.1%} faster; "
                  f"simulated {simulated[0]:.1f} and {simulated[1]:.1f} ms, {gains[1]:.1%}; {shares[-1]:.0%} of it",
                  flush=True)
    print(f"median of {len(shares)}: {statistics.median(shares):.0%} of the promised gain (bar 80 %)")


if __name__ == "__main__":
    main()
