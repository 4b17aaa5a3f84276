#!/usr/bin/env python3
"""Runs ranks_bench with 10 to 1,000 ranks and writes bench/results/ranks.md and ranks.svg.

The ranks compute nothing: what is left is what the runtime costs. The bar is that 1,000 ranks start, run 10
steps and stop in 10 s. Usage: bench/ranks.py [--rounds N] [--out FOLDER]     needs build/release
"""

import argparse
import json
import math
import pathlib
import statistics
import subprocess

from compare_pytorch import ROOT

GRIDS = [(1, 10), (1, 30), (1, 100), (1, 300), (1, 1000), (10, 1), (10, 3), (10, 10), (10, 30), (10, 100)]

PAGE = """# A thousand ranks in one process

**Machine.** Two Zen 5 cores of a virtual machine; Debian 12, g++ 12.2, CAF 0.17.6. {load}

    cmake --preset release && cmake --build --preset release --target ranks_bench
    bench/ranks.py --rounds {rounds}

Counting stages compute nothing; 8 microbatches, 1F1B, so 16 passes a rank and step. Each line is a process
that makes the grid, runs 10 steps and takes it down; medians of {rounds}. The bar is 10 s in all for 1,000
ranks.

| replicas x pipeline | ranks | threads | start, s | 10 steps, s | stop, s | in all, s | steps/s | us per pass | peak, MiB |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
{rows}

![steps per second against ranks](ranks.svg)

The line without markers is what a constant cost per pass would give, from the smallest pipeline on. Start
includes the plan. Each rank has a thread for its stream, and with replicas another for its reductions; each
queue keeps 0.2 MiB, which is most of the memory.
"""


def run(data, pipeline, rounds):
    """Returns the medians of what a grid took."""
    command = [ROOT / "build/release/bench/ranks_bench", str(pipeline), str(data)]
    runs = [json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            for _ in range(rounds)]
    result = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
    result["start_s"] += result["plan_s"]
    result["ranks"] = data * pipeline
    result["all_s"] = result["start_s"] + result["steps_s"] + result["stop_s"]
    result["steps_per_s"] = result["steps"] / result["steps_s"]
    passes = 2 * result["microbatches"] * result["ranks"] * result["steps"]
    result["pass_us"] = result["steps_s"] * 1e6 / passes
    return result


def row(r):
    return (f"| {r['data']} x {r['pipeline']} | {r['ranks']} | {r['threads']} | {r['start_s']:.2f} | "
            f"{r['steps_s']:.2f} | {r['stop_s']:.2f} | {r['all_s']:.2f} | {r['steps_per_s']:.1f} | "
            f"{r['pass_us']:.1f} | {r['peak_mib']:.0f} |")


class Plot:
    """Steps/s against ranks, both logarithmic: two decades of ranks by four of steps."""

    WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 640, 400, 70, 20, 620, 350
    X = (1, 3)  # Powers of ten.
    Y = (0, 4)

    def __init__(self):
        self.parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.WIDTH} {self.HEIGHT}" '
            'font-family="sans-serif" font-size="13">',
            f'<rect width="{self.WIDTH}" height="{self.HEIGHT}" fill="white"/>']
        for power in range(self.X[0], self.X[1] + 1):
            self._grid(self._x(power), self.TOP, self._x(power), self.BOTTOM)
            self._text(self._x(power), self.BOTTOM + 20, f"{10 ** power:,}", "middle")
        for power in range(self.Y[0], self.Y[1] + 1):
            self._grid(self.LEFT, self._y(power), self.RIGHT, self._y(power))
            self._text(self.LEFT - 8, self._y(power) + 4, f"{10 ** power:,}", "end")
        self._text((self.LEFT + self.RIGHT) / 2, self.HEIGHT - 8, "ranks", "middle")
        self._text(self.LEFT + 8, self.TOP + 16, "steps/s", "start")

    def line(self, points, color, name, markers=True):
        places = [(self._x(math.log10(x)), self._y(math.log10(y))) for x, y in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        dashes = "" if markers else ' stroke-dasharray="4 4"'
        self.parts.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2"{dashes}/>')
        if not markers:
            return
        for x, y in places:
            self.parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{color}"/>')
        height = self.TOP + 30 + 20 * self._names()
        self.parts.append(f'<circle class="name" cx="{self.RIGHT - 190}" cy="{height - 4}" r="4" fill="{color}"/>')
        self._text(self.RIGHT - 178, height, name, "start")

    def write(self, path):
        path.write_text("\n".join([*self.parts, "</svg>"]) + "\n")

    def _names(self):
        return sum('class="name"' in part for part in self.parts)

    def _x(self, power):
        return self.LEFT + (power - self.X[0]) / (self.X[1] - self.X[0]) * (self.RIGHT - self.LEFT)

    def _y(self, power):
        return self.BOTTOM - (power - self.Y[0]) / (self.Y[1] - self.Y[0]) * (self.BOTTOM - self.TOP)

    def _grid(self, x1, y1, x2, y2):
        self.parts.append(f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="#ddd"/>')

    def _text(self, x, y, text, anchor):
        self.parts.append(f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{text}</text>')


def draw(results, path):
    pipelines = [(r["ranks"], r["steps_per_s"]) for r in results if r["data"] == 1]
    replicated = [(r["ranks"], r["steps_per_s"]) for r in results if r["data"] > 1]
    ranks, rate = pipelines[0]
    plot = Plot()
    plot.line([(r, rate * ranks / r) for r, _ in pipelines], "#888", "", markers=False)
    plot.line(pipelines, "#1f77b4", "one pipeline")
    plot.line(replicated, "#d95f02", "10 replicas")
    plot.write(path)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "bench/results")
    parser.add_argument("--load", default="Otherwise idle.", help="what else ran, for the page")
    args = parser.parse_args()
    results = []
    for data, pipeline in GRIDS:
        results.append(run(data, pipeline, args.rounds))
        print(row(results[-1]), flush=True)
    draw(results, args.out / "ranks.svg")
    rows = "\n".join(row(r) for r in results)
    (args.out / "ranks.md").write_text(PAGE.format(load=args.load, rounds=args.rounds, rows=rows))


if __name__ == "__main__":
    main()
