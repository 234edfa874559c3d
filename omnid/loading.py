"""Imports large libraries in threads, where they don't hold up the loop."""

import gc
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager

# As there is one table of modules: two threads that come to a library's circles from two sides each get half a module.
_LOCK = threading.Lock()


@contextmanager
def loading() -> Generator[None]:
    """Lets one thread at a time import, while the collector rests; it takes most of a second, so the loop never waits.

    A full collection would hold up the loop for 50 ms, as often as one falls into that time, and find next to nothing:
    what was loaded stays for good, and is not looked at again.
    """
    with _LOCK:
        known = len(sys.modules)
        gc.disable()
        try:
            yield
        finally:
            if len(sys.modules) > known:
                # Only then, because what else there is would stay for good too.
                gc.freeze()
            gc.enable()
