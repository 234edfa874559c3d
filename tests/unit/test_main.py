import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import omnid
from omnid.executor.workers import argv_of
from omnid.worker import brainstem, gateway, supervisor


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


@pytest.mark.parametrize("module", [brainstem, gateway])
def test_a_worker_runs_by_its_path_or_as_a_verb_of_the_one_binary(module: ModuleType) -> None:
    name = module.__name__.rpartition(".")[2]
    assert argv_of(module, frozen=False) == (sys.executable, "-I", "-X", "utf8", module.__file__)
    assert argv_of(module, frozen=True) == (sys.executable, "worker", name)


def test_a_supervisor_starts_fast_by_its_path_and_as_a_verb_of_the_one_binary() -> None:
    assert argv_of(supervisor, site=False, frozen=False)[1:-1] == ("-I", "-S", "-X", "utf8")
    assert argv_of(supervisor, site=False, frozen=True) == (sys.executable, "worker", "supervisor")


def test_the_verb_of_the_gateway_s_worker_serves_the_socket_it_is_given(tmp_path: Path) -> None:
    (tmp_path / "litellm.py").write_text("raise ImportError('no litellm here')")
    argv = [sys.executable, "-m", "omnid", "worker", "gateway", str(tmp_path / "g.sock")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(tmp_path), *sys.path))}
    done = subprocess.run(
        argv, capture_output=True, check=False, text=True, timeout=30, stdin=subprocess.DEVNULL, env=environment
    )
    assert (done.returncode, done.stderr.startswith("no litellm here: omnid's extra `models`")) == (1, True)


def test_an_unknown_worker_is_not_understood() -> None:
    assert run("worker", "other")[0] == 2
