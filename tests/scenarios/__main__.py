"""`make scenarios`: the four ways to be offline on both brokers; each run ends with a line that counts."""

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

from bench.report import Report
from tests.contract.links import KINDS, Kit, started
from tests.scenarios.faults import SCENARIOS, drawn
from tests.scenarios.run import Outcome, run

COMMANDS = 2_000
FAULTS = 20


def _add(report: Report, name: str, outcome: Outcome) -> None:
    count = outcome.counted
    report.add(f"{name}: submitted", count.submitted, "")
    report.add(f"{name}: done", count.done, "", ">=", count.submitted)
    for what, found in (("lost", count.lost), ("done twice", count.twice), ("out of order", count.disordered)):
        report.add(f"{name}: {what}", found, "", "<=", 0)
    report.add(f"{name}: results at once, most", outcome.batch_max, "", ">=", 2 if "client-away" in name else 1)
    report.add(f"{name}: submit, p50", outcome.submit_ms, "ms")
    if outcome.away_ms == outcome.away_ms:
        report.add(f"{name}: submit while the broker is away, p50", outcome.away_ms, "ms")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.scenarios", description=__doc__)
    parser.add_argument("--commands", type=int, default=COMMANDS, help="of each run")
    parser.add_argument("--faults", type=int, default=FAULTS, help="of each run")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1, 10_000), help="of the choices")
    parser.add_argument("--link", choices=KINDS, help="this broker alone")
    parser.add_argument("--scenario", choices=SCENARIOS, help="this scenario alone")
    asked = parser.parse_args()
    print(f"scenarios: seed {asked.seed}", flush=True)
    report = Report("scenarios")
    lines: list[str] = []
    good = True
    for kind in [asked.link] if asked.link else KINDS:
        with tempfile.TemporaryDirectory(prefix="o-", dir="/tmp") as directory:
            broker = started(kind, Path(directory))
            try:
                for scenario in [asked.scenario] if asked.scenario else SCENARIOS:
                    kit = Kit(kind, broker, scenario)
                    began_s = time.monotonic()
                    faults = drawn(scenario, asked.seed, asked.faults)
                    outcome = run(kit, Path(directory) / scenario, faults, asked.seed, asked.commands, _tell)
                    good = good and outcome.counted.good
                    lines.append(f"{kind} {scenario}: {outcome.counted}")
                    _tell(lines[-1])
                    _add(report, f"{kind} {scenario}", outcome)
                    report.add(f"{kind} {scenario}: seed", asked.seed, "")
                    report.add(f"{kind} {scenario}: faults", len(faults), "")
                    report.add(f"{kind} {scenario}: took", (time.monotonic() - began_s) / 60, "min")
            finally:
                broker.close()
    if (asked.commands, asked.faults) == (COMMANDS, FAULTS):
        # A run alone takes the place of its last one, so that the eight may be done one by one.
        report.write(keep=bool(asked.link or asked.scenario))
    if len(lines) > 1:
        print("\n".join(lines))
    return 0 if good else 1


def _tell(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
