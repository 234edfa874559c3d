"""How bad the world is in one run. Each seed draws its own mix, so that faults are met alone and together."""

import random
from typing import NamedTuple


class Weather(NamedTuple):
    """Probabilities, unless the name says otherwise."""

    kill_steps: int
    """Scheduler steps between two kills of the daemon, on average; 0: it is never killed between two awaits."""
    kill_at_commit: float
    disk_full: float
    disk_broken: float
    read_busy: float
    slow_store: float
    executor_down: float
    limits: float
    """An attempt runs into a limit, and so does its whole executor for a while."""
    probe_hangs: float
    fails: float
    rejects: float
    raises: float
    hangs: float
    supervisor_dies: float
    deaf_to_cancel: float
    repeats: float
    """A result that was given comes again, late."""
    answer_lost: float
    clock_jumps: float


def draw(chance: random.Random) -> Weather:
    """Draws the weather of a run; each fault is left out of about half of them."""

    def some(high: float) -> float:
        return chance.uniform(0, high) if chance.random() < 0.5 else 0.0

    return Weather(
        kill_steps=chance.choice((0, 150, 400, 1200)),
        kill_at_commit=some(0.02),
        disk_full=some(0.1),
        disk_broken=some(0.01),
        read_busy=some(0.03),
        slow_store=some(0.3),
        executor_down=some(0.2),
        limits=some(0.15),
        probe_hangs=some(0.3),
        fails=some(0.3),
        rejects=some(0.1),
        raises=some(0.15),
        hangs=some(0.1),
        supervisor_dies=some(0.2),
        deaf_to_cancel=some(0.5),
        repeats=some(0.5),
        answer_lost=some(0.2),
        clock_jumps=some(0.5),
    )


CALM = Weather(*(0 for _ in Weather._fields))
"""Nothing goes wrong any more."""
