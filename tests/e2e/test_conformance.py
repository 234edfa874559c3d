"""The public conformance suite of MCP against `/mcp` of a daemon: all of it, in both eras."""

import pytest

from tests.conformance.__main__ import SUITE, run_all


@pytest.mark.timeout(420)
def test_the_public_suite_finds_no_fault() -> None:
    assert SUITE.is_file(), "`make suite` installs it"
    runs = run_all()
    faults = {name: [line for line in run.lines if "✗" in line] for name, run in runs.items() if run.failed}
    assert faults == {}
    # A run that has tried nothing has found nothing either.
    assert min(run.passed for run in runs.values()) > 50
