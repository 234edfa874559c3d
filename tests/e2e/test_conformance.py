"""The public conformance suite of MCP against `/mcp` of a daemon: all of it, in both eras."""

import json

import pytest

from bench.report import RESULTS
from tests.conformance.__main__ import PASSED_MIN, SUITE, run_all


@pytest.mark.timeout(420)
def test_the_public_suite_finds_no_fault() -> None:
    assert SUITE.is_file(), "`make suite` installs it"
    runs = run_all()
    faults = {name: [line for line in run.lines if "✗" in line] for name, run in runs.items() if run.failed}
    assert faults == {}
    assert {name: run.passed for name, run in runs.items() if run.passed < PASSED_MIN[name]} == {}
    rows = json.loads((RESULTS / "conformance.json").read_text())
    assert {*rows[0]} == {"name", "value", "unit", "goal", "op", "ok"}
    assert len(rows) == 2 * len(runs)
    assert all(row["ok"] for row in rows)
