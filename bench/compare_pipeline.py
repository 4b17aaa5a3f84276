#!/usr/bin/env python3
"""troupe against PyTorch with a pipeline of two processes, one stage, thread and core each, pair by pair.

Same model halves, 1F1B over the same microbatches, fp32; PyTorch's transfers run over gloo. The bar is 1.15.
PyTorch gets, as in compare_pytorch.py, OpenBLAS, without presets and with one thread in
each process, and an allocator that keeps what it has been given. With the reference BLAS, which is what
python3-torch comes with, it reaches 100 tokens/s and the comparison ends with a sentence.
Usage: bench/compare_pipeline.py [--rounds N] [--microbatches M]
Needs build/release and Debian's python3-torch and libopenblas0-openmp.
"""

import argparse
import pathlib
import statistics
import subprocess
import tempfile

from compare_pytorch import ROOT, corpus, environment_of_pytorch, finish_troupe, start_troupe_processes


def run_pytorch(folder, cores, **settings):
    meeting = pathlib.Path(folder) / "meeting"
    words = [word for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    variables = {**environment_of_pytorch(), "GLOO_SOCKET_IFNAME": "lo"}
    processes = [
        subprocess.Popen(["taskset", "-c", core, "/usr/bin/python3", ROOT / "bench/pipeline_pytorch.py",
                          "--rank", str(rank), "--meeting", meeting, "--text", corpus(), *words],
                         env=variables, stdout=subprocess.PIPE, text=True)
        for rank, core in enumerate(cores)
    ]
    outputs = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        raise SystemExit("PyTorch failed")
    return float(outputs[0])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--microbatches", type=int, default=8)
    parser.add_argument("--microbatch-size", type=int, default=4)
    args = parser.parse_args()
    shape = {"microbatches": args.microbatches, "microbatch_size": args.microbatch_size, "steps": args.steps}
    pairs = []
    for round_ in range(args.rounds):
        with tempfile.TemporaryDirectory() as folder:
            ours = finish_troupe(start_troupe_processes(folder, "01", pipeline=2, **shape))
            theirs = run_pytorch(folder, "01", **shape)
        pairs.append((ours, theirs))
        print(f"round {round_ + 1}: troupe {ours:.0f}, PyTorch {theirs:.0f} tokens/s, ratio {ours / theirs:.3f}",
              flush=True)
    ratio = statistics.median(a / b for a, b in pairs)
    print(f"median: troupe {statistics.median(a for a, _ in pairs):.0f}, "
          f"PyTorch {statistics.median(b for _, b in pairs):.0f} tokens/s, ratio {ratio:.3f} (bar 1.15)")


if __name__ == "__main__":
    main()
