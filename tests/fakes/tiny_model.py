"""The demo's tiny model for tests, made in a process of its own: one that used MLX in a thread may abort at its end."""

import subprocess
import sys
from pathlib import Path

from omnid.ctl import demo_tiny_model

MAKE_S = 60


def make(directory: Path) -> Path:
    """Writes the files of a model as a hub has them."""
    subprocess.run([sys.executable, "-I", demo_tiny_model.__file__, str(directory)], check=True, timeout=MAKE_S)
    return directory
