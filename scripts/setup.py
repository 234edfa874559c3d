"""Makes `.venv` what the locks say: ``setup.py runtime`` for omnid alone, ``setup.py dev`` for tests and checks too.

Does nothing when nothing changed, and is safe when several run at once. Standard library only.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
STAMP = VENV / "omnid-setup"
LOCKS = {"runtime": ("requirements.txt", "requirements-build.txt"), "dev": ("requirements-dev.txt",)}
"""What each profile installs: all of it by hash, what builds omnid itself too, so nothing else is ever fetched."""
WAIT_S = 900
STEP_TIMEOUT_S = 900


class SetUpError(Exception):
    """The set-up can't go on; the text says what to do."""


def main() -> None:
    """Sets up the profile that the command line names."""
    profile = sys.argv[1]
    with open(ROOT / ".venv.lock", "w") as lock:
        _take(lock.fileno())
        # An environment for tests holds everything that the runtime needs.
        wanted = [_digest(name) for name in LOCKS if name in (profile, "dev")]
        if _works() and STAMP.exists() and STAMP.read_text() in wanted:
            return
        sys.stderr.write(f"setting up .venv ({profile})\n")
        STAMP.unlink(missing_ok=True)
        if not _works():
            _create()
        _install(profile)
        STAMP.write_text(_digest(profile))


def _take(descriptor: int) -> None:
    until_s = time.monotonic() + WAIT_S
    while not _taken(descriptor):
        if time.monotonic() > until_s:
            raise SetUpError(f"another set-up has held .venv.lock for {WAIT_S} s: end it and try again")
        time.sleep(0.2)


def _taken(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _digest(profile: str) -> str:
    """Names all that the environment depends on."""
    files = [(ROOT / name).read_bytes() for name in (*LOCKS[profile], "pyproject.toml")]
    parts = [*files, str(ROOT).encode(), profile.encode()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def _works() -> bool:
    """Tells whether `.venv` has a Python that starts, of a version that fits, with pip."""
    test = "import sys, pip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))"
    python = VENV / "bin" / "python"
    return python.exists() and _succeeds([str(python), "-c", test])


def _create() -> None:
    """Makes the environment; Debian's Python comes without ensurepip, so there are other ways."""
    shutil.rmtree(VENV, ignore_errors=True)
    if _has("ensurepip"):
        _run([sys.executable, "-m", "venv", str(VENV)])
    elif shutil.which("uv"):
        _run(["uv", "venv", "--quiet", "--seed", "--python", sys.executable, str(VENV)])
    elif _has("virtualenv"):
        _run([sys.executable, "-m", "virtualenv", "--quiet", str(VENV)])
    else:
        package = f"python{sys.version_info.major}.{sys.version_info.minor}-venv"
        _run([str(ROOT / "scripts" / "packages.sh"), package], hint=f"This mends it: sudo apt-get install {package}")
        _run([sys.executable, "-m", "venv", str(VENV)])


def _has(module: str) -> bool:
    # Started anew, because Debian's ensurepip is there in name and fails when it is used.
    return _succeeds([sys.executable, "-m", module, "--version"])


def _succeeds(argv: list[str]) -> bool:
    return subprocess.run(argv, capture_output=True, check=False, timeout=STEP_TIMEOUT_S).returncode == 0


def _install(profile: str) -> None:
    python = str(VENV / "bin" / "python")
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]
    pip += ["--progress-bar", "off"]
    _run([*pip, "--require-hashes", *(part for name in LOCKS[profile] for part in ("-r", str(ROOT / name)))])
    _run([*pip, "--no-deps", "--no-build-isolation", "-e", str(ROOT)])


def _run(argv: list[str], hint: str = "") -> None:
    environ = {
        name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PIP_REQUIRE_VIRTUALENV")
    }
    try:
        subprocess.run(argv, check=True, timeout=STEP_TIMEOUT_S, env=environ, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.SubprocessError) as error:
        raise SetUpError(f"{error}. {hint}".strip()) from error


if __name__ == "__main__":
    try:
        main()
    except SetUpError as problem:
        sys.exit(f"set-up failed: {problem}")
    except KeyboardInterrupt:
        sys.exit(130)
