#!/usr/bin/env python3
"""How far a simulated step is from a measured one: two stages on two cores, over schedules, numbers of
microbatches, partitions and links, or two replicas, or two copies of the model, with the profile that is measured in
turns with the steps of ten configurations, since a machine's speed drifts. Beside the time the peak memory of a
training: what `troupe plan` announces against what the kernel has counted.

Over two processes a configuration is trained in turns of seconds with one process, and what two take more than one is
compared: profiles are not taken in those turns.

The bars are medians of at most 3 %. Nothing else should run meanwhile. Takes 6 GiB of memory.
Usage: bench/simulation_accuracy.py [--seconds S] [--only SCHEDULE] [--replicas] [--processes 2]   needs build/release
"""

import argparse
import json
import os
import pathlib
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time

from compare_pytorch import ROOT

TROUPE = ROOT / "build/release/cli/troupe"
PREDICTION_BENCH = ROOT / "build/release/bench/prediction_bench"
SCHEDULES = [("1f1b", False), ("gpipe", False), ("zb-h1", False), ("zb-v", False), ("auto", False), ("1f1b", True)]
MICROBATCHES = [4, 8]
PARTITIONS = ["3,3", "4,2"]  # Even, and one stage with twice the layers.
PARTITIONS_OF_V = ["2,1,1,2", "3,1,1,1"]  # Two stages on each rank.
SHARDINGS = ["none", "zero1", "zero2"]
MICROBATCHES_OF_REPLICAS = [1, 4]
TOGETHER = 10  # Configurations.
SLOW_LINK_US = 28_000  # About 80 % of a forward pass.
SCHEDULES_OVER_SLOW_LINKS = [("1f1b", False), ("gpipe", False), ("zb-h1", False)]
PROCESSES = ["--processes", "2"]
WARMUP_STEPS = 2  # Of a training that has just begun.
LONG = ["train.steps=100000"]
TURN = 4.0  # Seconds.
UNIT_BYTES = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
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


def signal_all(run, what):
    """Sends a signal to the processes of a training."""
    started = subprocess.run(["pgrep", "--parent", str(run.pid)], capture_output=True, text=True).stdout.split()
    for process in [run.pid, *map(int, started)]:
        os.kill(process, what)


class Laboratory:
    """A configuration in a folder of its own, and what can be asked about it."""

    def __init__(self, folder):
        self.folder = folder
        self.config = f"{folder}/config.toml"
        with open(f"{folder}/corpus.txt", "w") as text:
            text.write("In the beginning was the word. " * 4000)
        with open(self.config, "w") as text:
            text.write(CONFIG.format(corpus=f"{folder}/corpus.txt"))

    def troupe(self, command, *words):
        return subprocess.run([TROUPE, command, self.config, *words], check=True, capture_output=True, text=True).stdout

    def profile(self, seconds):
        self.troupe("profile", "--seconds", str(seconds), "--out", f"{self.folder}/profile.json")

    def settings(self, name, split, microbatches, layers, delay_us=0):
        return ["--set", f"schedule.name={name}", f"schedule.split_backward={str(split).lower()}",
                f"schedule.microbatches={microbatches}", f"schedule.layers_per_stage=[{layers}]",
                f"schedule.profile={self.folder}/profile.json", f"schedule.chunks={2 if name == 'zb-v' else 1}",
                f"run.link_delay_us={delay_us}"]

    def settings_of_replicas(self, sharding, microbatches):
        return ["--set", "parallel.data=2", "parallel.pipeline=1", f"train.optimizer_sharding={sharding}",
                f"schedule.microbatches={microbatches}"]

    def simulated_ms(self, settings):
        simulated = self.troupe("simulate", *settings, "--profile", f"{self.folder}/profile.json", "--json")
        return json.loads(simulated)["makespan"]

    def predictions(self, seconds, *variants):
        """Trains the variants, each given by its settings, in turns for so many seconds. Returns for each what a
        step took, `measured`, and what the simulator says, `simulated`, and would say if all passes of a kind took
        the same, `even`, in milliseconds."""
        words = [word for settings in variants for word in ["--", *settings[1:]]][1:]
        run = subprocess.run([PREDICTION_BENCH, self.config, str(seconds), *words], check=True, capture_output=True,
                             text=True)
        return json.loads(run.stdout)

    def predictions_over_processes(self, seconds, *variants):
        """The same over two processes, which is trained in turns with one: `simulated` is what one process took, times
        what two take of that by the simulator."""
        self.profile(10.0)
        return [self.prediction_over_processes(seconds, settings) for settings in variants]

    def prediction_over_processes(self, seconds, settings):
        spreads = [[], PROCESSES]
        uneven, even = [], []
        for spread in spreads:
            words = ["--profile", f"{self.folder}/profile.json", "--json", *spread]
            said = json.loads(self.troupe("simulate", *settings, *words))
            uneven.append(said["uneven_steps"]["mean"])
            even.append(said["makespan"])
        runs = []
        try:
            for spread in spreads:
                folder = f"{self.folder}/of{len(runs)}"
                shutil.rmtree(folder, ignore_errors=True)  # Of the variant before.
                runs.append(self.start(settings, f"run.output={folder}", *LONG, *spread, "--heartbeat", "60"))
                while len(self.steps_ms(len(runs) - 1)) < WARMUP_STEPS:
                    time.sleep(0.1)
                signal_all(runs[-1], signal.SIGSTOP)
            begun = [len(self.steps_ms(i)) + 1 for i in range(2)]  # The last was stopped for as long as the other took to start.
            for _ in range(round(seconds / TURN)):
                for run in runs:
                    signal_all(run, signal.SIGCONT)
                    time.sleep(TURN)
                    signal_all(run, signal.SIGSTOP)
            steps = [self.steps_ms(i)[begun[i]:] for i in range(2)]
            one, two = (statistics.mean(ms for ms in of_run if ms < 1000 * TURN) for of_run in steps)
        finally:
            for run in runs:
                signal_all(run, signal.SIGKILL)
                run.wait()
        return {"measured": two, "simulated": one * uneven[1] / uneven[0], "even": one * even[1] / even[0]}

    def steps_ms(self, run):
        """Returns what each step took that is finished: more than a turn, if it was stopped for one."""
        metrics = pathlib.Path(self.folder, f"of{run}/metrics.jsonl")
        lines = metrics.read_text().splitlines() if metrics.exists() else []
        return [1000 * json.loads(line)["seconds"] for line in lines]

    def announced_bytes(self, settings, *words):
        said = self.troupe("plan", *settings, *words)
        number, unit = re.search(r"for the runtime: (?:at most )?([\d.]+) (\w+)", said).groups()
        return float(number) * UNIT_BYTES[unit]

    def start(self, settings, *words):
        """Starts a training."""
        training = [TROUPE, "train", self.config, *settings, *words]
        return subprocess.Popen(training, stdout=subprocess.DEVNULL)

    @staticmethod
    def peak_bytes_of(run):
        """Waits for a training. Returns the most memory that it had, or one of its processes."""
        _, status, usage = os.wait4(run.pid, 0)
        run.returncode = os.waitstatus_to_exitcode(status)
        if run.returncode != 0:
            raise RuntimeError(f"troupe train ended with {run.returncode}")
        return 1024 * usage.ru_maxrss


def cases(laboratory):
    """What a case is called, in columns, and its settings."""
    def case(name, split, microbatches, layers, delay_us):
        return ([f"{name}{' split' if split else ''}", microbatches, layers, f"{delay_us / 1000:.0f}"],
                laboratory.settings(name, split, microbatches, layers, delay_us))

    for name, split in SCHEDULES:
        for microbatches in MICROBATCHES:
            for layers in PARTITIONS_OF_V if name == "zb-v" else PARTITIONS:
                yield case(name, split, microbatches, layers, 0)
    for name, split in SCHEDULES_OVER_SLOW_LINKS:
        for microbatches in MICROBATCHES:
            yield case(name, split, microbatches, PARTITIONS[0], SLOW_LINK_US)


def cases_of_replicas(laboratory):
    """The same for two replicas of the whole model, and for two copies of it in one, each on both ranks."""
    for sharding in SHARDINGS:
        for microbatches in MICROBATCHES_OF_REPLICAS:
            yield ([f"{sharding} replicas", microbatches, "6", "0"],
                   laboratory.settings_of_replicas(sharding, microbatches))
    for microbatches in MICROBATCHES:
        yield (["dualpipe", microbatches, "3,3", "0"], laboratory.settings("dualpipe", False, microbatches, "3,3"))


def print_median(what, errors):
    print(f"{what}: median of {len(errors)}: {statistics.median(errors):.1%} (bar 3 %), worst {max(errors):.1%}")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=600.0, help="for ten configurations together")
    parser.add_argument("--only", help="the cases of one schedule")
    parser.add_argument("--replicas", action="store_true", help="two replicas instead of two stages")
    parser.add_argument("--processes", type=int, choices=(1, 2), default=1, help="with 2, `--seconds` are for each number of processes")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # So that the trainings end, too.
    time_errors, even_errors, memory_errors = [], [], []
    print("| schedule | microbatches | layers | link, ms | measured, ms | simulated, ms | | even, ms | peak, MiB "
          "| announced, MiB | |\n| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        laboratory = Laboratory(folder)
        all_cases = (cases_of_replicas if args.replicas else cases)(laboratory)
        wanted = [case for case in all_cases if args.only in (None, case[0][0].split()[0])]
        for first in range(0, len(wanted), TOGETHER):
            together = wanted[first:first + TOGETHER]
            laboratory.profile(5.0)  # For schedules that are searched for.
            predict = laboratory.predictions if args.processes == 1 else laboratory.predictions_over_processes
            predictions = predict(args.seconds, *[settings for _, settings in together])
            for (columns, of_case), prediction in zip(together, predictions):
                measured, simulated, even = map(prediction.get, ("measured", "simulated", "even"))
                profiled = ["--profile", f"{folder}/profile.json", *PROCESSES]
                announced = laboratory.announced_bytes(of_case, *(profiled if args.processes == 2 else []))
                run = laboratory.start(of_case, f"run.output={folder}/run", "train.steps=3", *(PROCESSES if args.processes == 2 else []))
                peak = laboratory.peak_bytes_of(run)
                time_errors.append(abs(simulated / measured - 1))
                even_errors.append(abs(even / measured - 1))
                memory_errors.append(abs(announced / peak - 1))
                print(f"| {' | '.join(map(str, columns))} | {measured:.1f} | {simulated:.1f} | "
                      f"{simulated / measured - 1:+.1%} | {even:.1f} | "
                      f"{peak / 2**20:.0f} | {announced / 2**20:.0f} | {announced / peak - 1:+.1%} |", flush=True)
    print_median("step time", time_errors)
    print_median("step time, as if passes were even", even_errors)
    print_median("peak memory", memory_errors)


if __name__ == "__main__":
    main()
