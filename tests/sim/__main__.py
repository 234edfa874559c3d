"""`python -m tests.sim --seeds 1000` runs many seeds; `--seed n` runs one, twice, and prints what happened.

`--paid` is for the prompts that cost money, which the many come to last.
"""

import argparse
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

from tests.sim import paid
from tests.sim.run import Outcome, run

Run = Callable[..., Outcome]


def replay(run: Run, seed: int) -> int:
    """Runs one seed twice, and prints its trace."""
    first, second = run(seed, keep_trace=True), run(seed)
    print("\n".join(first.trace))
    print(f"trace {first.digest}, again {second.digest}")
    report(run, first)
    return int(bool(first.violations) or first.digest != second.digest)


def report(run: Run, outcome: Outcome) -> None:
    which = "-m tests.sim --paid --seed" if run is paid.run else "-m tests.sim --seed"
    for violation in outcome.violations:
        print(f"seed {outcome.seed}: {violation}\n  replay it with: .venv/bin/python {which} {outcome.seed}")


def many(run: Run, seeds: range) -> int:
    """Runs seeds on all cores, and prints what was broken."""
    since_s = time.monotonic()
    steps = tasks = crashes = broken = 0
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(os.cpu_count(), spawn) as pool:
        for outcome in pool.map(run, seeds, chunksize=10):
            steps += outcome.steps
            tasks += outcome.tasks
            crashes += outcome.crashes
            broken += bool(outcome.violations)
            report(run, outcome)
    print(f"in {time.monotonic() - since_s:.0f} s")
    print(f"{len(seeds)} seeds, {steps} steps, {tasks} tasks, {crashes} crashes, {broken} violations")
    return int(broken > 0)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1000, help="how many seeds")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--seed", type=int, help="replay this one")
    parser.add_argument("--paid", action="store_true", help="only the prompts that cost money")
    asked = parser.parse_args()
    if asked.seed is not None:
        return replay(paid.run if asked.paid else run, asked.seed)
    runs = (paid.run,) if asked.paid else (run, paid.run)
    return max([many(one, range(asked.first, asked.first + asked.seeds)) for one in runs])


if __name__ == "__main__":
    sys.exit(main())
