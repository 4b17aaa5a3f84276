#!/usr/bin/env python3
"""What `bench/pipeline_efficiency.py` says a runtime that costs nothing would reach: the ideal where cores are equally
fast, be it at every moment another speed, and less where they are not.

Usage: pipeline_efficiency_test.py ROOT
"""

import pathlib
import random
import sys
import unittest

ROOT = pathlib.Path(sys.argv.pop(1) if len(sys.argv) > 1 else ".").resolve()
sys.path.insert(0, str(ROOT / "bench"))
import pipeline_efficiency  # noqa: E402

MICROBATCHES = 8
WORK_NS = {"F": 47e6, "B": 93e6, "optimize": 11e6}
ORDER_1F1B = [
    [f"0{action}" for action in "F0 F1 B0 F2 B1 F3 B2 F4 B3 F5 B4 F6 B5 F7 B6 B7".split()],
    [f"1{kind}{microbatch}" for microbatch in range(MICROBATCHES) for kind in "FB"],
]


class Training(pipeline_efficiency.Run):
    """One that was never run, of one stage on a core of a given speed, by nanosecond."""

    def __init__(self, speed):
        self.order = [[f"0{kind}{microbatch}" for microbatch in range(MICROBATCHES) for kind in "FB"]]
        self.tokens_per_step = 2048
        self.steps = []
        begin_of_step = 0.0
        for _ in range(pipeline_efficiency.RECORDED_STEPS):
            trace, at = [], 0.0
            for action in [*self.order[0], "0 optimize"]:
                begin, at = at, at + WORK_NS[pipeline_efficiency.kind_of(action)] / speed(begin_of_step + at)
                trace.append((action, begin, at))
            self.steps.append((at, [trace]))
            begin_of_step += at
        self.rate = self.tokens_per_step * len(self.steps) / (begin_of_step / 1e9)


def uneven(seed, lasts_ns):
    """A speed that is drawn anew every so many nanoseconds."""
    return lambda ns: max(0.3, random.Random(1000 * seed + ns // lasts_ns).gauss(1.0, 0.2))


class RateAtBest(unittest.TestCase):
    def share_of_ideal(self, *speeds):
        sides = [Training(speed) for speed in speeds]
        pipeline = Training(speeds[0])
        pipeline.order = ORDER_1F1B
        ideal = sum(side.rate for side in sides) / 2 * 2 * MICROBATCHES / (MICROBATCHES + 1)
        return pipeline_efficiency.rate_at_best(sides, pipeline) / ideal

    def test_equal_cores_reach_the_ideal(self):
        self.assertAlmostEqual(self.share_of_ideal(lambda _: 1.0, lambda _: 1.0), 1.0, delta=0.005)

    def test_so_do_cores_that_are_disturbed_together(self):
        for lasts_ns in (1e8, 2e9):
            speed = uneven(1, lasts_ns)
            self.assertAlmostEqual(self.share_of_ideal(speed, speed), 1.0, delta=0.01)

    def test_a_pipeline_is_as_fast_as_its_slower_core(self):
        # 0.8 of one core, where the ideal has 0.9 of both.
        self.assertAlmostEqual(self.share_of_ideal(lambda _: 1.0, lambda _: 0.8), 0.8 / 0.9, delta=0.03)

    def test_cores_that_are_disturbed_one_by_one_wait_for_each_other(self):
        for lasts_ns in (1e8, 2e9):
            share = self.share_of_ideal(uneven(1, lasts_ns), uneven(2, lasts_ns))
            self.assertLess(share, 0.95)
            self.assertGreater(share, 0.8)


if __name__ == "__main__":
    unittest.main()
