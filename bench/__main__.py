"""Runs benches by name, or all of them, one after the other; exit code 1 where one broke off."""

import importlib
import sys
import time
import traceback

from bench.report import Report

NAMES = ("submit", "latency", "throughput", "million", "footprint", "agents", "models", "mcp", "links")


def main(names: list[str]) -> int:
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        sys.stderr.write(f"bench: there is no {unknown[0]}; there are {', '.join(NAMES)}\n")
        return 2
    reports: list[Report] = []
    broken: list[str] = []
    for name in names or NAMES:
        since_s = time.monotonic()
        print(f"{name} ...", end="", flush=True)
        report = Report(name)
        try:
            importlib.import_module(f"bench.{name}").run(report)
        except Exception:  # noqa: BLE001 - the others are still worth their time.
            broken.append(name)
            print(" broke off")
            traceback.print_exc()
        else:
            report.write()
            print(f" {time.monotonic() - since_s:.0f} s")
        reports.append(report)
    for report in reports:
        print(f"\n{report.table()}")
    missed = sum(figure.ok is False for report in reports for figure in report.figures)
    print(f"\n{missed} goals missed" + (f"; broke off: {', '.join(broken)}" if broken else ""))
    return 1 if broken else 0


sys.exit(main(sys.argv[1:]))
