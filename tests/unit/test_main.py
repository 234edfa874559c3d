import subprocess
import sys

import pytest

import omnid


def run(*arguments: str) -> tuple[int, str, str]:
    argv = [sys.executable, "-m", "omnid", *arguments]
    done = subprocess.run(argv, capture_output=True, check=False, text=True, timeout=30)
    return done.returncode, done.stdout, done.stderr


def test_the_version() -> None:
    assert run("--version") == (0, f"omnid {omnid.__version__}\n", "")


def test_help_goes_to_stdout() -> None:
    code, out, err = run("--help")
    assert (code, err) == (0, "")
    assert "omnid mcp" in out


@pytest.mark.parametrize("arguments", [(), ("status",)])
def test_what_is_not_understood_is_a_usage_error(arguments: tuple[str, ...]) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert "omnid run" in err
    assert not arguments or f"there is no `{' '.join(arguments)}`" in err


def test_the_relay_says_which_arguments_it_takes() -> None:
    code, out, err = run("mcp", "--fast")
    assert (code, out) == (2, "")
    assert "--readonly, --origin NAME and --expose" in err
