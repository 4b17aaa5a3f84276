#!/usr/bin/env python3
"""troupe's simulator against the dry run of PyTorch's pipelining, on the same 1F1B schedules, in turns.

PyTorch's `_simulate_comms_compute` counts steps: every pass, send and receive is one. Only its own time is
taken, not that of making the schedule or of adding sends and receives; troupe's is that of `simulate` with all
entries, as simulator_bench tells it. Both are times of the processor.
Usage: bench/compare_simulator.py [--rounds N]
Needs build/release and a PyTorch of 2.5 or later, for torch.distributed.pipelining; ends with a sentence where
there is none.
"""

import argparse
import pathlib
import statistics
import subprocess
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
SIZES = [(4, 16), (16, 64), (64, 128)]


def pipelining():
    try:
        from torch.distributed.pipelining import schedules
        return schedules
    except ImportError:
        raise SystemExit("compare_simulator: torch.distributed.pipelining is not installed; it comes with "
                         "PyTorch 2.5 and later")


def one_forward_one_backward(ranks, microbatches):
    """Rows of the actions' text forms."""
    rows = []
    for rank in range(ranks):
        ahead = min(ranks - 1 - rank, microbatches)
        row = [f"{rank}F{m}" for m in range(ahead)]
        for m in range(microbatches):
            if m + ahead < microbatches:
                row.append(f"{rank}F{m + ahead}")
            row.append(f"{rank}B{m}")
        rows.append(row)
    return rows


def time_pytorch(schedules, rows):
    actions = {rank: [schedules._Action.from_str(cell) for cell in row] for rank, row in enumerate(rows)}
    with_comms = schedules._add_send_recv(actions, lambda stage: stage, len(rows))
    begin = time.process_time()
    schedules._simulate_comms_compute(with_comms, lambda stage: stage, len(rows))
    return time.process_time() - begin


def time_troupe(rows):
    with tempfile.NamedTemporaryFile("w", suffix=".csv") as file:
        file.write("".join(",".join(row) + "\n" for row in rows))
        file.flush()
        command = [ROOT / "build/release/bench/simulator_bench", file.name]
        return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    schedules = pipelining()
    print("| ranks | microbatches | passes | PyTorch, ms | troupe, ms | ratio |")
    print("| --- | --- | --- | --- | --- | --- |")
    for ranks, microbatches in SIZES:
        rows = one_forward_one_backward(ranks, microbatches)
        pairs = [(time_pytorch(schedules, rows), time_troupe(rows)) for _ in range(rounds)]
        theirs, ours = (statistics.median(times) for times in zip(*pairs))
        print(f"| {ranks} | {microbatches} | {2 * ranks * microbatches:,} | {theirs * 1e3:,.1f} | "
              f"{ours * 1e3:.3f} | {theirs / ours:,.0f}x |")


if __name__ == "__main__":
    main()
