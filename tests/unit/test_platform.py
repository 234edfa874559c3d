"""Where files lie, and what the system is asked."""

import os
import socket
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest

from omnid import platform
from omnid.config import load


def test_the_paths_follow_the_environment() -> None:
    home = {"HOME": "/home/u"}
    assert platform.config_path(home) == "/home/u/.config/omnid/config.toml"
    assert platform.config_path(home | {"XDG_CONFIG_HOME": "/etc/x"}) == "/etc/x/omnid/config.toml"
    assert platform.config_path(home | {"OMNID_CONFIG": "~/o.toml"}) == "/home/u/o.toml"
    assert platform.paths(home | {"XDG_STATE_HOME": "/var/x"}, {}).state_dir.endswith("/omnid")
    assert platform.paths(home | {"OMNID_STATE": "/s"}, {}) == ("/s", "/s/omnid.sock")
    assert platform.paths(home | {"OMNID_STATE": "/s", "OMNID_SOCKET": "/t/o"}, {}) == ("/s", "/t/o")


def test_on_macos_the_state_lies_in_application_support(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "IS_MACOS", True)
    assert platform.paths({"HOME": "/Users/u"}, {}).state_dir == "/Users/u/Library/Application Support/omnid"


@pytest.mark.parametrize(
    "text", ["", "[state]\ndir = '~/a'", "[socket]\npath = '~/b.sock'", "[state]\ndir = '/c'\n[socket]\npath = '/d'"]
)
@pytest.mark.parametrize("more", [{}, {"OMNID_STATE": "/e"}, {"OMNID_SOCKET__PATH": "/f"}, {"OMNID_SOCKET": "/g"}])
def test_clients_and_the_daemon_find_the_same_paths(tmp_path: Path, text: str, more: dict[str, str]) -> None:
    path = tmp_path / "omnid.toml"
    path.write_text(text)
    environ = {"HOME": str(tmp_path), "OMNID_CONFIG": str(path), **more}
    config = load(environ).config
    assert platform.locate(environ) == (config.state.dir, config.socket.path)
    assert platform.socket_path(environ) == config.socket.path


@pytest.mark.parametrize("text", ["[", "state = 3", "[state]\ndir = 3", "[socket]\npath = []"])
def test_a_client_with_a_broken_config_goes_where_the_daemon_runs(tmp_path: Path, text: str) -> None:
    path = tmp_path / "omnid.toml"
    path.write_text(text)
    environ = {"HOME": str(tmp_path), "OMNID_CONFIG": str(path)}
    assert platform.locate(environ) == platform.paths(environ, {})


def test_the_boot_has_one_name() -> None:
    assert platform.boot_id() == platform.boot_id() != ""


def test_a_process_has_one_start_and_none_when_it_is_gone() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        start = platform.process_start(child.pid)
        assert start is not None
        assert start == platform.process_start(child.pid) != platform.process_start(os.getpid())
        child.communicate(b"\n", timeout=10)
        assert platform.process_start(child.pid) is None


def test_the_start_is_found_behind_any_name(tmp_path: Path) -> None:
    """A name with brackets and spaces shifts the fields of proc(5) for whoever counts from the left."""
    program = tmp_path / "a ) 1 (b"
    program.symlink_to(sys.executable)
    code = "import pathlib; print(pathlib.Path('/proc/self/stat').read_text()); input()"
    with subprocess.Popen([program, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        stat = child.stdout.readline().decode()
        assert platform.process_start(child.pid) == stat.rsplit(") ", 1)[1].split()[19]
        child.communicate(b"\n", timeout=10)


def test_the_user_at_the_other_end_is_known() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    with ours, theirs:
        assert platform.peer_uid(ours) == os.getuid()


def test_the_longest_path_can_be_bound_and_a_longer_one_cannot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as fits, socket.socket(socket.AF_UNIX) as too_long:
        fits.bind("s" * platform.SOCKET_PATH_BYTES_MAX)
        with pytest.raises(OSError, match="too long"):
            too_long.bind("s" * (platform.SOCKET_PATH_BYTES_MAX + 2))


def test_free_space_is_counted(tmp_path: Path) -> None:
    assert platform.free_bytes(str(tmp_path)) > 0
    with pytest.raises(OSError, match="No such file"):
        platform.free_bytes(str(tmp_path / "none"))


def test_a_helper_that_fails_is_an_os_error() -> None:
    assert platform._ask("/bin/echo", "x") == "x"
    with pytest.raises(OSError, match="exit status 1"):
        platform._ask("/bin/sh", "-c", "exit 1")


def test_a_zone_is_found_by_its_name_and_else_by_the_machine(tmp_path: Path) -> None:
    linked = tmp_path / "localtime"
    (tmp_path / "zoneinfo" / "Asia").mkdir(parents=True)
    (tmp_path / "zoneinfo" / "Asia" / "Taipei").touch()
    linked.symlink_to(tmp_path / "zoneinfo" / "Asia" / "Taipei")
    none = str(tmp_path / "none")
    assert platform.zone("America/New_York", {"TZ": "Asia/Tokyo"}, str(linked)).key == "America/New_York"
    assert platform.zone("", {"TZ": ":Asia/Tokyo"}, str(linked)).key == "Asia/Tokyo"
    assert platform.zone("", {"TZ": "/usr/share/zoneinfo/Asia/Tokyo"}, str(linked)).key == "Asia/Tokyo"
    assert platform.zone("", {"TZ": "CET-1CEST"}, str(linked)).key == "Asia/Taipei"
    assert platform.zone("", {}, str(linked)).key == "Asia/Taipei"
    assert platform.zone("", {}, none).key == "UTC"


@pytest.mark.parametrize("name", ["Europe/Belin", "Europe", "../passwd", "/etc/passwd", "a\0b", "C" * 300])
def test_a_zone_that_nobody_knows_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="there is no time zone"):
        platform.zone(name)


def test_a_system_without_zones_still_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(name: str) -> None:
        raise ValueError(name)

    monkeypatch.setattr(platform, "_zone", none)
    zone = platform.zone("", {}, "/none")
    moment = datetime(2026, 7, 1, 12, tzinfo=zone)
    assert (zone.key, zone.tzname(moment), moment.timestamp()) == ("UTC", "UTC", 1_782_907_200)
