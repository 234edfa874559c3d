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


MEMINFO = "MemTotal:       16000000 kB\nMemFree:          200000 kB\nMemAvailable:    8000000 kB\n"
VM_STAT = """\
Mach Virtual Memory Statistics: (page size of 16384 bytes)
Pages free:                                5000.
Pages active:                            220000.
Pages inactive:                          100000.
Pages speculative:                         1000.
Pages throttled:                              0.
Pages wired down:                        110000.
Pages purgeable:                           2000.
"Translation faults":                1234567890.
Pages stored in compressor:              300000.
"""


def plant(root: Path, own: str, groups: dict[str, dict[str, str]]) -> tuple[str, str]:
    """Writes what Linux shows of memory and of control groups."""
    proc, cgroups = root / "proc", root / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text(MEMINFO)
    (proc / "self" / "cgroup").write_text(f"1:name=systemd:/x\n0::{own}\n")
    for name, files in groups.items():
        (cgroups / name.strip("/")).mkdir(parents=True, exist_ok=True)
        for file, text in files.items():
            (cgroups / name.strip("/") / file).write_text(text)
    return str(proc), str(cgroups)


def test_the_memory_that_is_free_is_what_the_system_says(tmp_path: Path) -> None:
    assert platform.available_memory_bytes() > 0
    proc, cgroups = plant(tmp_path, "/", {})
    assert platform.available_memory_bytes(proc, cgroups) == 8_000_000 * 1024
    (tmp_path / "proc" / "self" / "cgroup").unlink()
    assert platform.available_memory_bytes(proc, cgroups) == 8_000_000 * 1024


def test_a_control_group_may_leave_less(tmp_path: Path) -> None:
    inner = {"memory.max": "max\n", "memory.current": "1000\n", "memory.stat": "anon 1\n"}
    outer = {
        "memory.max": "5000000000\n",
        "memory.current": "4000000000\n",
        "memory.stat": "anon 7\ninactive_file 500000000\n",
    }
    proc, cgroups = plant(tmp_path, "/user.slice/omnid", {"/user.slice": outer, "/user.slice/omnid": inner})
    assert platform.available_memory_bytes(proc, cgroups) == 1_500_000_000
    (tmp_path / "cgroup" / "user.slice" / "omnid" / "memory.max").write_text("1000000\n")
    assert platform.available_memory_bytes(proc, cgroups) == 999_000


def test_what_vm_stat_prints_is_read() -> None:
    assert platform.vm_stat_bytes(VM_STAT) == 108_000 * 16384
    with pytest.raises(OSError, match="unknown"):
        platform.vm_stat_bytes("vm_stat: no such luck\n")


def test_a_process_holds_memory_until_it_is_gone() -> None:
    assert (platform.resident_bytes(os.getpid()) or 0) > 1 << 20
    assert platform.resident_bytes(1 << 22) is None


def test_on_macos_ps_and_vm_stat_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    said = {"/bin/ps": "  2048", "/usr/bin/vm_stat": VM_STAT}
    monkeypatch.setattr(platform, "IS_MACOS", True)
    monkeypatch.setattr(platform, "_ask", lambda *argv: said[argv[0]])
    assert platform.resident_bytes(7) == 2048 * 1024
    assert platform.available_memory_bytes() == 108_000 * 16384
