"""Steps of several libraries that take turns, so that a ratio holds on a machine that others use too."""

import dataclasses
import gc
import statistics
import time

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
SLOW = 2.0  # a step of so many seconds is taken once, whatever the number of rounds


@dataclasses.dataclass(frozen=True)
class Plan:
    """How often all take a turn, the seconds of each, the clock (``cpu``: of the process), what is measured."""

    rounds: int = 9
    slot: float = 0.15
    clock: str = "wall"
    quick: bool = False
    title: str = ""
    languages: tuple[str, ...] = ("torch", "jax")

    def chosen(self, workloads):
        return [each for each in workloads if (each.quick or not self.quick) and self.title in each.title]

    def seconds(self, step, repeats=1):
        """Seconds of a step, from so many of them."""
        clock = CLOCKS[self.clock]
        start = clock()
        for _ in range(repeats):
            step()
        return (clock() - start) / repeats


def take_turns(steps, plan):
    """Of each step, which has run before, the seconds that it takes in each round."""
    first = {name: plan.seconds(step) for name, step in steps.items()}
    repeats = {name: max(1, round(plan.slot / max(seconds, 1e-6))) for name, seconds in first.items()}
    times = {name: [seconds] if seconds > SLOW else [] for name, seconds in first.items()}
    gc.collect()
    gc.disable()
    try:
        for _ in range(plan.rounds):
            for name, step in steps.items():
                if first[name] <= SLOW:
                    if repeats[name] > 1:
                        step()  # what the one before had in the caches is gone
                    times[name].append(plan.seconds(step, repeats[name]))
            gc.collect()
    finally:
        gc.enable()
    return times


def ratio(these, those):
    """The median over the rounds of these / those, and the range of the rounds: without its ends if there are five."""
    ratios = sorted(a / b for a, b in zip(these, those, strict=False))
    cut = 1 if len(ratios) >= 5 else 0
    return statistics.median(ratios), ratios[cut], ratios[-1 - cut]


def ratio_cell(these, those):
    middle, low, high = ratio(these, those)
    digits = 2 if middle < 10 else 0
    text = f"{middle:.{digits}f}"
    return text if len(these) < 2 or len(those) < 2 else f"{text} ({low:.{digits}f}-{high:.{digits}f})"


def milliseconds(times):
    return f"{1e3 * statistics.median(times):.3g} ms"
