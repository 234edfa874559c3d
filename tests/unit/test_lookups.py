"""Names that nobody resolves hold up neither other names nor the end of the process."""

import socket
import threading
from collections.abc import Iterator
from typing import Any

import anyio
import pytest

from omnid import lookups
from omnid.lookups import Lookups, new_loop

WAIT_S = 10


@pytest.fixture
def answered(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Until this is set, no name is found but `here`."""
    event, real = threading.Event(), socket.getaddrinfo

    def look(host: Any, *args: Any, **more: Any) -> Any:
        if host not in ("here", b"here"):
            event.wait(WAIT_S)
        return real("127.0.0.1", *args, **more)

    monkeypatch.setattr(socket, "getaddrinfo", look)
    yield event
    event.set()


def test_what_hangs_is_given_up_holds_up_no_other_and_not_the_end(answered: threading.Event) -> None:
    async def main() -> None:
        async with anyio.create_task_group() as group:
            for number in range(lookups.LOOKUPS_MAX - 1):
                group.start_soon(anyio.getaddrinfo, f"away-{number}", 1)
            await anyio.wait_all_tasks_blocked()
            with anyio.fail_after(WAIT_S / 2):
                assert (await anyio.getaddrinfo("here", 7))[0][4] == ("127.0.0.1", 7)
            group.cancel_scope.cancel()

    anyio.run(main, backend_options={"loop_factory": new_loop})
    assert not answered.is_set()
    assert sum(thread.name == "lookup" for thread in threading.enumerate()) == lookups.LOOKUPS_MAX - 1


def test_beyond_a_number_of_names_the_next_is_not_found(answered: threading.Event) -> None:
    pool = Lookups()
    open_ = [pool.submit(socket.getaddrinfo, "away", 1) for _ in range(lookups.LOOKUPS_MAX)]
    with pytest.raises(socket.gaierror, match="64 names are being looked up"):
        pool.submit(socket.getaddrinfo, "here", 1).result(0)
    answered.set()
    assert all(one.result(WAIT_S) for one in open_)


def test_where_no_thread_is_left_the_next_names_are_looked_up_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    pool = Lookups()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        for _ in range(lookups.LOOKUPS_MAX):
            with pytest.raises(socket.gaierror, match="can't start new thread"):
                pool.submit(int).result(0)
    assert pool.submit(int).result(WAIT_S) == 0


def test_an_error_is_raised_where_the_name_is_waited_for() -> None:
    def fail() -> None:
        raise socket.gaierror(socket.EAI_NONAME, "no such name")

    with pytest.raises(socket.gaierror, match="no such name"):
        Lookups().submit(fail).result(WAIT_S)
