#!/usr/bin/env python3
"""How much of the ideal two pipeline stages on two cores reach.

The ideal is the schedule's, 2m / (m + 1) times one stage's speed, times what two independent one-stage
trainings side by side lose to each other on this machine. At 8 microbatches the bar is 97 % in one process,
and 96 % in two, each of which keeps to its core.

On a machine that neighbours disturb, no runtime reaches the ideal: while one core is slowed for some passes, the rank on
the other waits for it. What could have been reached at best is computed from the same two trainings side by side: how
long each of their passes took says how fast each core was from moment to moment, and the schedule is performed on cores
of such speeds by a runtime that costs nothing. A round takes everything in turn, some ten seconds each.
Usage: bench/pipeline_efficiency.py [--rounds R] [--microbatches M] [--processes 2]     needs build/release
"""

import argparse
import json
import math
import signal
import statistics
import sys
import tempfile

from compare_pytorch import start_troupe, start_troupe_processes

WARMUP_STEPS = 2
RECORDED_STEPS = 8  # That a run keeps of its last steps.
SCHEDULES = ["1f1b", "eager-1f1b"]


def kind_of(action):
    """`B` of `0B3`, and `0 optimize` is `optimize`."""
    return action.strip("0123456789 ")


class Run:
    """A training that has ended."""

    def __init__(self, started):
        processes, metrics = started
        try:
            if any([process.wait() for process in processes]):
                raise SystemExit("troupe failed")
        finally:
            for process in processes:
                process.kill()
        last = [json.loads(line) for line in metrics.read_text().splitlines()][-RECORDED_STEPS:]
        self.tokens_per_step = statistics.mean(step["tokens_per_second"] * step["seconds"] for step in last)
        self.rate = self.tokens_per_step * len(last) / sum(step["seconds"] for step in last)
        header, *steps = map(json.loads, (metrics.parent / "steps.jsonl").read_text().splitlines())
        self.order = [[action for action in row.split(",") if action] for row in header["csv"].split()]
        self.steps = [(step["duration_ns"], [rank["trace"] for rank in step["ranks"]]) for step in steps]

    def durations(self):
        """Returns how long passes of each kind took, of all ranks, in ns."""
        found = {}
        for _, traces in self.steps:
            for action, begin, end in sum(traces, []):
                found.setdefault(kind_of(action), []).append(end - begin)
        return found


class Core:
    """How fast a core was, from moment to moment, in a training that had it alone: 1 where a pass took what such passes
    take on the mean of both cores."""

    def __init__(self, run, mean_ns):
        self.pieces = []
        begin_of_step = 0
        for duration, (trace,) in run.steps:
            for action, begin, end in trace:
                self.pieces.append((begin_of_step + end, mean_ns[kind_of(action)] / (end - begin)))
            begin_of_step += duration

    def end_of(self, begin, work_ns):
        """Returns when work is done that takes so long at a speed of 1; infinity beyond what is known."""
        for end, speed in self.pieces:
            if end <= begin:
                continue
            if work_ns <= (end - begin) * speed:
                return begin + work_ns / speed
            work_ns -= (end - begin) * speed
            begin = end
        return math.inf


def end_of_step(order, cores, mean_ns, begin):
    """Performs a step of two stages, each on a core of its own and with half of every pass's work, as soon as its
    inputs are there. Returns when it ends."""
    free, done = [begin, begin], {}
    left = [list(actions) for actions in order]
    while any(left):
        for stage, actions in enumerate(left):
            if not actions:
                continue
            kind, microbatch = actions[0][1], actions[0][2:]
            needed = {"F": (stage - 1, kind, microbatch), "B": (stage + 1, kind, microbatch)}[kind]
            if 0 <= needed[0] < 2 and needed not in done:
                continue
            ready = max(free[stage], done.get(needed, begin))
            free[stage] = done[stage, kind, microbatch] = cores[stage].end_of(ready, mean_ns[kind] / 2)
            del actions[0]
    summed = max(free)  # The norm of the gradients is that of both stages.
    return max(core.end_of(summed, mean_ns["optimize"] / 2) for core in cores)


def rate_at_best(sides, pipeline):
    """Returns the tokens/s of the pipeline's schedule on the cores of `sides` by a runtime that costs nothing."""
    together = [side.durations() for side in sides]
    mean_ns = {kind: statistics.mean(durations + together[1][kind]) for kind, durations in together[0].items()}
    cores = [Core(side, mean_ns) for side in sides]
    ends = [0.0]
    while ends[-1] < math.inf:
        ends.append(end_of_step(pipeline.order, cores, mean_ns, ends[-1]))
    steps = len(ends) - 2  # The last goes beyond what is known.
    return pipeline.tokens_per_step * steps / (ends[steps] / 1e9)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--microbatches", type=int, default=8)
    parser.add_argument("--microbatch-size", type=int, default=1)
    parser.add_argument("--processes", type=int, choices=(1, 2), default=1)
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # So that the trainings end, too.
    m = args.microbatches
    shape = {"microbatches": m, "microbatch_size": args.microbatch_size, "steps": WARMUP_STEPS + RECORDED_STEPS}
    start = start_troupe if args.processes == 1 else start_troupe_processes
    cores = "0,1" if args.processes == 1 else "01"
    print("| side by side, tokens/s | ideal | schedule | tokens/s | of the ideal | at best | of that | passes longer by |\n"
          "| --- | --- | --- | --- | --- | --- | --- | --- |")
    found = {name: [] for name in SCHEDULES}
    for _ in range(args.rounds):
        with tempfile.TemporaryDirectory() as folder:
            started = [start_troupe(f"{folder}/side{core}", core, pipeline=1, **shape) for core in "01"]
            sides = [Run(side) for side in started]
            ideal = statistics.mean(side.rate for side in sides) * 2 * m / (m + 1)
            alone_ns = statistics.mean(sum(sum(durations) for durations in side.durations().values()) for side in sides)
            for name in SCHEDULES:
                pipeline = Run(start(f"{folder}/{name}", cores, pipeline=2, schedule=name, **shape))
                best = rate_at_best(sides, pipeline)
                longer = sum(sum(durations) for durations in pipeline.durations().values()) / alone_ns - 1
                found[name].append((pipeline.rate / ideal, best / ideal, pipeline.rate / best))
                print(f"| {' and '.join(f'{side.rate:.0f}' for side in sides)} | {ideal:.0f} | {name} "
                      f"| {pipeline.rate:.0f} | {pipeline.rate / ideal:.1%} | {best:.0f} | {pipeline.rate / best:.1%} "
                      f"| {longer:+.1%} |", flush=True)
    for name, shares in found.items():
        reached, possible, of_possible = map(statistics.median, zip(*shares))
        print(f"{name}, medians of {args.rounds}: {reached:.1%} of the ideal (bar {97 if args.processes == 1 else 96} %), "
              f"at best {possible:.1%}, reached {of_possible:.1%} of that")


if __name__ == "__main__":
    main()
