"""A config that keeps the daemon from its start is looked at without one: that is when one needs to know most."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

OMNICTL = [sys.executable, "-c", "import sys; from omnid.ctl.main import main; sys.exit(main())"]


def omnictl(home: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    environ = {"HOME": str(home), "OMNID_STATE": str(home / "state"), "OMNID_CONFIG": str(home / "config.toml")}
    environ["PYTHONPATH"] = str(Path(__file__).parents[2])
    return subprocess.run([*OMNICTL, *argv], env=environ, capture_output=True, text=True, timeout=30, check=False)


def test_check_names_what_is_wrong_though_no_daemon_runs(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("[daemon]\nslots_mx = 3\n[socket]\nclients_max = 0\n")
    ran = omnictl(tmp_path, "config", "check")
    assert ran.returncode == 1
    assert "daemon.slots_mx" in ran.stdout + ran.stderr
    assert "socket.clients_max" in ran.stdout + ran.stderr
    problems = json.loads(omnictl(tmp_path, "config", "check", "--json").stdout)["result"]["problems"]
    assert [problem["code"] for problem in problems] == ["config_unknown_key", "config_bad_value"]
    ran = omnictl(tmp_path, "config", "show")
    assert ran.returncode == 1
    assert "slots_mx" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_a_good_config_is_shown_though_no_daemon_runs(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("[daemon]\nslots_max = 3\n")
    assert omnictl(tmp_path, "config", "check").returncode == 0
    rows = json.loads(omnictl(tmp_path, "config", "show", "--json").stdout)["result"]["rows"]
    assert {"key": "daemon.slots_max", "value": 3, "origin": "file"} in rows


@pytest.mark.parametrize("argv", [("config",), ("config", "reload"), ("config", "check", "more")])
def test_omnid_config_takes_check_and_show_only(argv: tuple[str, ...]) -> None:
    ran = subprocess.run([sys.executable, "-m", "omnid", *argv], capture_output=True, timeout=30, check=False)
    assert ran.returncode == 2
