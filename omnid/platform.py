"""What differs between Linux and macOS, and where omnid keeps its files.

Standard library only and cheap to import, because the relay and ``omnictl`` find the daemon's socket with it; what
costs time to import is imported where it is used. The macOS branches follow Apple's manual pages and are untested.
"""

import os
import stat
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, cast

if TYPE_CHECKING:
    import socket
    from zoneinfo import ZoneInfo

IS_MACOS = sys.platform == "darwin"

SOCKET_PATH_BYTES_MAX = 103 if IS_MACOS else 107
"""The longest path that fits ``sun_path`` with its closing NUL: unix(7) has 108 bytes, macOS 104."""

FULL_FSYNC = IS_MACOS
"""Whether a sync must ask for more than fsync(2) to reach the disk: on macOS only F_FULLFSYNC empties its cache."""

HELPER_TIMEOUT_S = 5.0
UUID_CHARS = 36
PORT_MAX = 65535
LOCALTIME = "/etc/localtime"


class Paths(NamedTuple):
    """Where the daemon keeps its files and listens; all are absolute."""

    state_dir: str
    socket_path: str


def config_path(environ: Mapping[str, str]) -> str:
    """Gives the path of the config file, which need not exist: ``$OMNID_CONFIG``, else the XDG place of the user."""
    explicit = environ.get("OMNID_CONFIG")
    if explicit:
        return absolute(explicit, environ)
    base = environ.get("XDG_CONFIG_HOME") or os.path.join(_home(environ), ".config")
    return os.path.join(base, "omnid", "config.toml")


def paths(environ: Mapping[str, str], settings: Mapping[str, Any]) -> Paths:
    """Derives the paths from the environment, then from the config as parsed, then from the system's customs.

    The socket lies in the state directory, so that everybody who knows the one finds the other, with a login session
    or without.
    """
    state_dir = environ.get("OMNID_STATE") or environ.get("OMNID_STATE__DIR") or _setting(settings, "state", "dir")
    state_dir = absolute(state_dir, environ) if state_dir else _default_state_dir(environ)
    path = environ.get("OMNID_SOCKET") or environ.get("OMNID_SOCKET__PATH") or _setting(settings, "socket", "path")
    return Paths(state_dir, absolute(path, environ) if path else os.path.join(state_dir, "omnid.sock"))


def read_config(path: str, bytes_max: int = 1 << 20) -> bytes:
    """Reads the config file; raises OSError, and ValueError for what is no regular file or too large.

    A pipe or a device could keep the reader for ever.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError("it is no regular file")
        content = b""
        while len(content) <= bytes_max and (piece := os.read(descriptor, 65536)):
            content += piece
    finally:
        os.close(descriptor)
    if len(content) > bytes_max:
        raise ValueError(f"it has more than {bytes_max} bytes")
    return content


def make_private(path: str) -> None:
    """Makes a directory and those above it that are missing, all of them for this user only; raises OSError."""
    parent = os.path.dirname(path)
    if not os.path.isdir(path):
        if parent != path:
            make_private(parent)
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            if not os.path.isdir(path):
                raise


def locate(environ: Mapping[str, str]) -> Paths:
    """Finds the daemon's paths as a client does: from the environment, and from the config file where there is one.

    A config that can't be read counts as empty: the daemon that runs has not taken it over either, and
    ``omnictl config check`` names its faults.
    """
    try:
        content = read_config(config_path(environ))
        import tomllib

        settings = tomllib.loads(content.decode())
    except (OSError, ValueError):
        settings = {}
    return paths(environ, settings)


def socket_path(environ: Mapping[str, str]) -> str:
    """Finds the daemon's socket; see `locate`."""
    return locate(environ).socket_path


def absolute(path: str, environ: Mapping[str, str]) -> str:
    """Makes a path absolute; a leading ``~`` is the home of the user whose environment is given."""
    if path == "~" or path.startswith("~/"):
        path = _home(environ) + path[1:]
    return os.path.abspath(path)


def host_port(text: str) -> tuple[str, int] | None:
    """Reads ``127.0.0.1:7373``, ``[::1]:7373`` or ``name:7373``; None where it is no address with a port."""
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        return None
    if not colon or not host or not port.isascii() or not port.isdecimal() or int(port) > PORT_MAX:
        return None
    return host, int(port)


def is_loopback(host: str) -> bool:
    """Tells whether an address or name can be reached from this machine alone; a name other than localhost can't."""
    import ipaddress

    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def boot_id() -> str:
    """Names this boot of the machine; another one means that no process of the last boot lives.

    Raises OSError where the system doesn't tell.
    """
    if IS_MACOS:
        # kern.boottime moves when the clock is set; the session's UUID doesn't.
        return _ask("/usr/sbin/sysctl", "-n", "kern.bootsessionuuid")
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()


def process_start(pid: int) -> str | None:
    """Tells when a process started, as text to compare with: a pid alone may belong to a later process by now.

    None where there is no such process. On Linux it is in clock ticks since the boot (proc(5), field 22 of ``stat``).
    """
    if IS_MACOS:
        try:
            return _ask("/bin/ps", "-o", "lstart=", "-p", str(pid)) or None
        except OSError:
            return None
    try:
        with open(f"/proc/{pid}/stat") as file:
            stat = file.read()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name in field 2 may hold spaces and brackets, so the fields are counted from behind it.
    return stat.rpartition(")")[2].split()[19]


def attempt_of(environ: Mapping[str, str]) -> str | None:
    """Gives the attempt that a process belongs to, by the variable that every command carries; None outside of any."""
    attempt = environ.get("OMNID_ATTEMPT", "")
    return attempt if len(attempt) == UUID_CHARS else None


def peer_uid(connection: "socket.socket") -> int:
    """Tells which user is at the other end of a connected Unix socket; raises OSError where it can't be told."""
    import socket
    import struct

    if sys.platform == "darwin":
        # struct xucred of sys/ucred.h: version, uid, and groups that don't matter here; SOL_LOCAL is 0.
        credentials = connection.getsockopt(0, 0x001, 76)
        return int(struct.unpack_from("=II", credentials)[1])
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", credentials)[1])


def watchful(dead_after_s: float) -> list[Any]:
    """Gives socket options by which the kernel finds out that the other side is gone, while that may take its time.

    Source: tcp(7). Without them a call on a pulled cable would wait for as long as its deadline lets it.
    """
    import socket

    idle_s = max(1, round(dead_after_s / 2))
    options: list[Any] = [(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1), (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
    if sys.platform == "linux":
        options += [
            (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, idle_s),
            (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, max(1, idle_s // 3)),
            (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
            (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(1000 * dead_after_s)),
        ]
    elif sys.platform == "darwin":
        options += [(socket.IPPROTO_TCP, socket.TCP_KEEPALIVE, idle_s)]
    return options


def zone(name: str, environ: Mapping[str, str] = os.environ, localtime: str = LOCALTIME) -> "ZoneInfo":
    """Gives a time zone by its IANA name; ``""`` is the machine's: ``$TZ``, else where /etc/localtime leads, else UTC.

    Raises ValueError for a name that this system doesn't know.
    """
    import contextlib
    import io
    import struct
    from zoneinfo import ZoneInfo

    if name:
        return _zone(name)
    _, _, linked = os.path.realpath(localtime).rpartition("/zoneinfo/")
    for found in (environ.get("TZ", "").removeprefix(":").rpartition("/zoneinfo/")[2], linked, "UTC"):
        with contextlib.suppress(ValueError):
            return _zone(found)
    # A system without any zones still knows this one: RFC 9636, a file of version 1 with a single local time type.
    content = b"TZif" + bytes(16) + struct.pack(">6L", 0, 0, 0, 0, 1, 4) + struct.pack(">lBB", 0, 0, 0) + b"UTC\0"
    return ZoneInfo.from_file(io.BytesIO(content), key="UTC")


def zones() -> list[str]:
    """Gives the names of all time zones that this system knows."""
    from zoneinfo import available_timezones

    return sorted(available_timezones())


def _zone(name: str) -> "ZoneInfo":
    from zoneinfo import ZoneInfo

    try:
        return ZoneInfo(name)
    except (OSError, KeyError, ValueError) as error:
        # What is a directory there, leads out of it or isn't there at all; zoneinfo tells each in another way.
        raise ValueError(f"there is no time zone {name}") from error


def free_bytes(path: str) -> int:
    """Tells how many bytes an ordinary user can still write under the path; raises OSError where there is no path."""
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize


def available_memory_bytes(proc: str = "/proc", cgroups: str = "/sys/fs/cgroup") -> int:
    """Tells how much memory a new process can have before the system must swap or end something; raises OSError.

    On Linux ``MemAvailable`` of proc(5), or less where a control group (version 2) above this process has a limit; on
    macOS what vm_stat(1) counts as free or easily freed.
    """
    if IS_MACOS:
        return vm_stat_bytes(_ask("/usr/bin/vm_stat"))
    with open(f"{proc}/meminfo") as file:
        lines = dict(line.split(":", 1) for line in file if ":" in line)
    free = int(lines["MemAvailable"].split()[0]) * 1024
    return min([free, *_cgroup_rooms(proc, cgroups)])


def vm_stat_bytes(text: str) -> int:
    """Reads what vm_stat(1) prints; raises OSError where that can't be read."""
    import re

    page = re.search(r"page size of (\d+) bytes", text)
    pages = {name: int(count) for name, count in re.findall(r"^Pages ([a-z ]+): +(\d+)\.$", text, re.MULTILINE)}
    if page is None or "free" not in pages:
        raise OSError("vm_stat says something unknown")
    return int(page[1]) * sum(pages.get(name, 0) for name in ("free", "inactive", "speculative", "purgeable"))


def resident_bytes(pid: int) -> int | None:
    """Tells how much memory a process holds; None where there is no such process, or nobody tells."""
    try:
        if IS_MACOS:
            return int(_ask("/bin/ps", "-o", "rss=", "-p", str(pid))) * 1024
        with open(f"/proc/{pid}/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return None


def _cgroup_rooms(proc: str, cgroups: str) -> "list[int]":
    """Gives what the control groups of this process leave of their limits; file pages count as room."""
    try:
        with open(f"{proc}/self/cgroup") as file:
            own = next((line.strip()[3:] for line in file if line.startswith("0::")), None)
    except OSError:
        own = None
    rooms: list[int] = []
    while own is not None:
        place = cgroups + own.rstrip("/")
        try:
            limit = _first_line(f"{place}/memory.max")
            if limit.isdecimal():
                with open(f"{place}/memory.stat") as file:
                    kept = next((int(line.split()[1]) for line in file if line.startswith("inactive_file ")), 0)
                rooms.append(max(0, int(limit) - int(_first_line(f"{place}/memory.current")) + kept))
        except (OSError, ValueError):
            pass  # The root has no limit, and a namespace may hide the groups above.
        own = own.rpartition("/")[0] if own.strip("/") else None
    return rooms


def _first_line(path: str) -> str:
    with open(path) as file:
        return file.readline().strip()


def _default_state_dir(environ: Mapping[str, str]) -> str:
    if IS_MACOS:
        return os.path.join(_home(environ), "Library", "Application Support", "omnid")
    base = environ.get("XDG_STATE_HOME") or os.path.join(_home(environ), ".local", "state")
    return os.path.join(base, "omnid")


def _home(environ: Mapping[str, str]) -> str:
    return environ.get("HOME") or os.path.expanduser("~")


def _setting(settings: Mapping[str, Any], section: str, key: str) -> str:
    """Looks into a config that nobody has checked yet: whatever isn't text counts as not set."""
    table = settings.get(section)
    value = cast(Mapping[str, Any], table).get(key) if isinstance(table, Mapping) else None
    return value if isinstance(value, str) else ""


def _ask(*argv: str) -> str:
    """Runs a small program of the system and gives what it printed; raises OSError where it fails."""
    import subprocess

    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=HELPER_TIMEOUT_S)
    except subprocess.SubprocessError as error:
        raise OSError(f"{argv[0]}: {error}") from error
    return done.stdout.strip()
