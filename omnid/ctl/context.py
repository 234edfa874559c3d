"""What a verb works with: what was given, the daemon, the screen and the time."""

import json
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TextIO

from omnid.ctl.options import Given
from omnid.ctl.render import Screen, clean
from omnid.errors import OmnidError, Retryable

if TYPE_CHECKING:
    from omnid.api.spawn import Holder

JSON_VERSION = 1
"""``v`` of every JSON answer; it changes when something that scripts may rely on goes or changes its meaning."""

ANSWER_S = 30.0
"""How long one answer may take, besides what the daemon is asked to wait."""


class Caller(Protocol):
    """The part of `omnid.api.client.Client` that the verbs use."""

    def call(self, method: str, params: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        """Asks the daemon; raises the errors of `omnid.errors`, `daemon_down` where there is none."""
        ...


class World(NamedTuple):
    """Everything outside: handed in, so that tests can own it."""

    environ: Mapping[str, str]
    stdin: TextIO
    stdout: TextIO
    stderr: TextIO
    connect: Callable[[], Caller]
    now_ms: Callable[[], int]
    monotonic_s: Callable[[], float]
    sleep_s: Callable[[float], None]


class Context:
    """One run of one verb."""

    def __init__(self, given: Given, world: World) -> None:
        self.given = given
        self.world = world
        self.screen = Screen(world.stdout, world.stderr, world.environ)
        self.json = given.flag("json")
        self.answer_s = ANSWER_S
        self._caller: Caller | None = None

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Asks the daemon; parameters that are None are left out."""
        if self._caller is None:
            self._caller = self.world.connect()
        given = {key: value for key, value in params.items() if value is not None}
        try:
            return self._caller.call(f"omnid/{method}", given, self.answer_s + float(given.get("wait_s", 0)))
        except OmnidError as error:
            if error.code != "daemon_down":
                raise
            raise self._down(error) from error

    def _down(self, error: OmnidError) -> OmnidError:
        """Says more of why nobody answers, where more is known."""
        daemon = self.unheard()
        if daemon is not None:
            return Retryable("daemon_unheard", pid=daemon.pid, path=daemon.socket)
        from omnid import platform
        from omnid.api.spawn import last_error

        places = platform.locate(self.world.environ)
        said = last_error(places.state_dir)
        if said is None:
            return error
        return Retryable("daemon_down", path=places.socket_path, detail=f"The last daemon ended with an error. {said}")

    def unheard(self) -> "Holder | None":
        """Gives the daemon that lives although nobody answers at its socket; None where there is none."""
        # Only here: it costs time, and is needed when something is wrong.
        from omnid import platform
        from omnid.api.spawn import holder

        places = platform.locate(self.world.environ)
        daemon = holder(places.state_dir)
        # One that listens elsewhere is not the one that was asked.
        return daemon if daemon is not None and daemon.socket == places.socket_path else None

    def give_json(self, result: Mapping[str, Any]) -> None:
        """Writes a result in its envelope, one line."""
        self._give({"v": JSON_VERSION, "result": result})

    def give_error(self, error: OmnidError) -> None:
        """Writes an error in its envelope, one line."""
        self._give({"v": JSON_VERSION, "error": error.as_dict()})

    def _give(self, envelope: Mapping[str, Any]) -> None:
        # A line at a time, so that whoever reads what `logs --follow` writes needn't wait for a full buffer.
        self.screen.put(json.dumps(envelope))
        self.world.stdout.flush()

    def give(self, result: Mapping[str, Any], lines: Iterable[str]) -> None:
        """Writes the result as JSON where that is asked for, else the lines."""
        if self.json:
            self.give_json(result)
            return
        for line in lines:
            self.screen.put(line)

    def asks(self, question: str) -> bool:
        """Asks a person to agree; only to be called where `interactive`."""
        self.screen.stderr.write(f"{clean(question)} [y/N] ")
        self.screen.stderr.flush()
        return self.world.stdin.readline().strip().lower() in ("y", "yes")

    @property
    def interactive(self) -> bool:
        """Whether a person is there to answer."""
        return self.world.stdin.isatty() and self.world.stderr.isatty()
