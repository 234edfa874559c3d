"""Large libraries are imported by one thread at a time."""

import gc
import subprocess
import sys
import threading
from types import ModuleType

import pytest

from omnid.loading import loading

WAIT_S = 10


def test_the_next_thread_waits_and_the_collector_rests() -> None:
    order: list[str] = []

    def second() -> None:
        with loading():
            order.append("second")

    with loading():
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(0.05)
        order.append("first")
        assert not gc.isenabled()
    thread.join(WAIT_S)
    assert order == ["first", "second"]
    assert gc.isenabled()


def test_nothing_but_what_was_loaded_is_kept_from_the_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    frozen: list[bool] = []
    monkeypatch.setattr(gc, "freeze", lambda: frozen.append(True))
    with loading():
        pass
    assert frozen == []
    with loading():
        monkeypatch.setitem(sys.modules, "loaded_by_a_test", ModuleType("loaded_by_a_test"))
    assert frozen == [True]


def test_an_import_that_fails_holds_up_no_other() -> None:
    for _ in range(2):
        try:
            with loading():
                raise ImportError
        except ImportError:
            assert gc.isenabled()


def test_the_libraries_of_links_are_loaded_by_the_first_dial_only() -> None:
    code = "import sys, omnid.link.redis, omnid.link.rabbitmq; print({'redis', 'aio_pika'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
