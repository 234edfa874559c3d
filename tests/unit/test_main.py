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


@pytest.mark.parametrize("arguments", [(), ("status",), ("mcp", "--fast")])
def test_what_is_not_understood_is_a_usage_error(arguments: tuple[str, ...]) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert "omnid run" in err
    assert not arguments or f"there is no `{' '.join(arguments)}`" in err


def test_the_relay_imports_the_standard_library_alone() -> None:
    look = "import sys, omnid.relay, omnid.__main__; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-I", "-c", look], capture_output=True, text=True, timeout=30, check=True)
    assert {"anyio", "msgspec", "mcp", "structlog", "apsw", "subprocess", "uuid"}.isdisjoint(done.stdout.split())
