#!/usr/bin/env python3
"""How much of the ideal two pipeline stages on two cores reach.

The ideal is the schedule's, 2m / (m + 1) times one stage's speed, times what two independent one-stage
trainings side by side lose to each other on this machine. At 8 microbatches the bar is 97 % in one process,
and 96 % in two, each of which keeps to its core. Everything runs in turns of a few seconds, the others stopped,
because neighbours change a machine's speed from one minute to the next. What they change within a step, for one core
and not for the other, costs 1F1B time, since neither rank can run ahead; the eager one can, by one microbatch.
`troupe compare` tells that from what the runtime costs: of the last steps it books what lies between passes (dispatch,
handing over, the director) and what uneven passes made the other rank wait, in shares of the step.
Usage: bench/pipeline_efficiency.py [--seconds S] [--microbatches M] [--processes 2]     needs build/release
"""

import argparse
import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time

from compare_pytorch import TROUPE, start_troupe, start_troupe_processes

WARMUP_STEPS = 2
WITHOUT_END = 100_000  # Steps.
RECORDED_STEPS = 8
SCHEDULES = ["1f1b", "eager-1f1b"]


class Job:
    """A training that is stopped and goes on."""

    def __init__(self, started):
        self.processes, self.metrics = started

    def steps(self):
        """Returns what each step took that is finished, and its tokens/s."""
        lines = self.metrics.read_text().splitlines() if self.metrics.exists() else []
        return [(step["seconds"], step["tokens_per_second"]) for step in map(json.loads, lines)][WARMUP_STEPS:]

    def send(self, what):
        for process in self.processes:
            process.send_signal(what)
            if process.poll() is not None:
                raise SystemExit(f"troupe ended with {process.returncode}")

    def warm_up(self):
        while not self.steps():
            time.sleep(0.1)
            self.send(0)

    def finish(self):
        """Lets it go on until all steps that it records are undisturbed ones, and write what it writes at its end."""
        last = len(self.steps()) + RECORDED_STEPS + 1
        self.send(signal.SIGCONT)
        while len(self.steps()) < last:
            time.sleep(0.1)
            self.send(0)
        self.processes[0].send_signal(signal.SIGINT)  # The director tells the nodes.
        for process in self.processes:
            process.wait()

    def excesses(self):
        """Returns for each recorded step how much longer than simulated it took, in shares of what it took: for what
        lies between passes, and for uneven passes."""
        folder = self.metrics.parent
        shares = []
        for line in (folder / "steps.jsonl").read_text().splitlines()[1:]:
            said = subprocess.run([TROUPE, "compare", folder, "--step", str(json.loads(line)["step"]), "--json"],
                                  check=True, capture_output=True, text=True)
            compared = json.loads(said.stdout)
            between, uneven = [sum(delay["excess_ns"] for delay in compared["delays"]
                                   if (delay["cause"] in ("computing", "optimizer")) == is_work)
                               for is_work in (False, True)]
            shares.append((between / compared["measured_ns"], uneven / compared["measured_ns"]))
        return shares

    def end(self):
        for process in self.processes:
            process.kill()
            process.wait()


def run_in_turns(teams, seconds, turn):
    """Runs all jobs of a team for a turn, then those of the next, so long for each. Returns the tokens/s of each job of
    each team, without steps that were stopped, and leaves them all stopped."""
    for jobs in teams:
        for job in jobs:
            job.warm_up()
    for job in sum(teams, []):
        job.send(signal.SIGSTOP)
    for _ in range(round(seconds / turn)):
        for jobs in teams:
            for what, pause in ((signal.SIGCONT, turn), (signal.SIGSTOP, 0)):
                for job in jobs:
                    job.send(what)
                time.sleep(pause)
    return [[[rate for took, rate in job.steps() if took < turn] for job in jobs] for jobs in teams]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=150.0, help="for each, the pipeline and the two side by side")
    parser.add_argument("--microbatches", type=int, default=8)
    parser.add_argument("--microbatch-size", type=int, default=1)
    parser.add_argument("--processes", type=int, choices=(1, 2), default=1)
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # So that the trainings end, too.
    m = args.microbatches
    shape = {"microbatches": m, "microbatch_size": args.microbatch_size, "steps": WITHOUT_END}
    start = start_troupe if args.processes == 1 else start_troupe_processes
    cores = "0,1" if args.processes == 1 else "01"
    typical = statistics.median
    sides, pipelines = [], []
    with tempfile.TemporaryDirectory() as folder:
        try:
            for core in "01":
                sides.append(Job(start_troupe(f"{folder}/side{core}", core, pipeline=1, **shape)))
            for name in SCHEDULES:
                pipelines.append(Job(start(f"{folder}/{name}", cores, pipeline=2, schedule=name, **shape)))
            side_by_side, *stages = run_in_turns([sides, *[[job] for job in pipelines]], args.seconds, 4.0)
            gain = 2 * m / (m + 1)  # Two side by side run at `beside` each: what a core is worth while both compute.
            beside = statistics.mean([typical(rates) for rates in side_by_side])
            print(f"side by side {' and '.join(f'{typical(rates):.0f}' for rates in side_by_side)} tokens/s "
                  f"({sum(map(len, side_by_side))} steps); ideal of two stages {beside * gain:.0f}")
            for name, job, (rates,) in zip(SCHEDULES, pipelines, stages):
                job.finish()
                between, uneven = map(typical, zip(*job.excesses()))
                print(f"{name}: {typical(rates):.0f} tokens/s ({len(rates)} steps), "
                      f"reached {typical(rates) / (beside * gain):.1%}; "
                      f"between passes {between:.1%} of a step, in uneven passes {uneven:.1%}", flush=True)
            print(f"The bar is {97 if args.processes == 1 else 96} %.")
        finally:
            for job in [*sides, *pipelines]:
                job.end()


if __name__ == "__main__":
    main()
