"""What stands before the environment: finding a Python, or saying the one command that brings one."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "python.sh"
OLD = "#!/bin/sh\nexit 1\n"


def run(tmp_path: Path, programs: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    """Runs the script with a PATH that holds these programs, sed, and nothing else."""
    shell, sed = (shutil.which(name) for name in ("sh", "sed"))
    assert shell
    assert sed
    (tmp_path / "sed").symlink_to(sed)
    for name, text in programs.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    environ = {"PATH": str(tmp_path), "HOME": str(tmp_path)}
    return subprocess.run([shell, str(SCRIPT)], capture_output=True, text=True, env=environ, timeout=60, check=False)


def candidate(version: str) -> str:
    return f"#!/bin/sh\necho 'python3:'\necho '  Installed: (none)'\necho '  Candidate: {version}'\n"


def system(name: str) -> str:
    return f"#!/bin/sh\necho {name}\n"


@pytest.mark.parametrize(
    ("programs", "says"),
    [
        ({"apt-cache": candidate("3.11.2-1+b1"), "python3": OLD}, "sudo apt-get install python3 python3-venv"),
        ({"apt-cache": candidate("3.9.2-3"), "python3": OLD, "curl": OLD}, "curl -LsSf https://"),
        ({"apt-cache": candidate("3.10.6-1~22.04"), "wget": OLD}, "wget -qO- https://"),
        ({"apt-cache": candidate("3.9.2-3")}, "curl -LsSf https://"),
        ({}, "curl -LsSf https://"),
        ({"uname": system("Darwin"), "brew": OLD, "python3": OLD}, "brew install python@3.13"),
        ({"uname": system("Darwin"), "curl": OLD}, "curl -LsSf https://"),
    ],
)
def test_where_there_is_no_python_one_command_is_named(tmp_path: Path, programs: dict[str, str], says: str) -> None:
    done = run(tmp_path, {"uname": system("Linux"), **programs})
    assert (done.returncode, done.stdout) == (1, "")
    _, command = done.stderr.splitlines()
    assert says in command


def test_the_first_python_that_fits_is_taken(tmp_path: Path) -> None:
    os.symlink(sys.executable, tmp_path / "python3")
    done = run(tmp_path, {"python3.14": OLD})
    assert done.returncode == 0
    assert Path(done.stdout.strip()).exists()
