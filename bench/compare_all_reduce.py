#!/usr/bin/env python3
"""troupe's all-reduce between two processes on one machine against Open MPI's, in turns.

In place, over shared memory, each process on a core of its own. The bar is: faster than Open MPI.
Usage: bench/compare_all_reduce.py [--rounds N] [--bytes B]     needs build/release and libopenmpi-dev
"""

import argparse
import os
import statistics
import subprocess
import tempfile

from compare_pytorch import ROOT


def median_us(command, **settings):
    done = subprocess.run(command, check=True, capture_output=True, text=True, **settings)
    return float(done.stdout)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--bytes", type=int, default=16 << 20)
    parser.add_argument("--operations", type=int, default=50)
    args = parser.parse_args()
    sizes = [str(args.bytes), str(args.operations)]
    # Open MPI refuses root unless told otherwise.
    environment = {**os.environ, "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    pairs = []
    with tempfile.TemporaryDirectory() as folder:
        peer = f"{folder}/all_reduce_mpi"
        if subprocess.run(["mpicc", "-O3", "-march=native", "-std=c99", "-o", peer,
                           ROOT / "bench/all_reduce_mpi.c"]).returncode != 0:
            raise SystemExit("the peer is not built; it needs a Debian package: apt-get install libopenmpi-dev")
        for round_ in range(args.rounds):
            ours = median_us([ROOT / "build/release/bench/all_reduce_bench", *sizes, "0", "1"])
            theirs = median_us(["mpirun", "-n", "2", "--bind-to", "core", "--mca", "pml", "ob1",
                                "--mca", "btl", "self,vader", peer, *sizes], env=environment)
            pairs.append((ours, theirs))
            print(f"round {round_ + 1}: troupe {ours:.0f} us, Open MPI {theirs:.0f} us, "
                  f"ratio {theirs / ours:.2f}", flush=True)
    ratio = statistics.median(theirs / ours for ours, theirs in pairs)
    print(f"median of {args.bytes} bytes: troupe {statistics.median(a for a, _ in pairs):.0f} us, "
          f"Open MPI {statistics.median(b for _, b in pairs):.0f} us, {ratio:.2f} times as fast (bar 1)")


if __name__ == "__main__":
    main()
