"""Finds the destination of a queue in the config as it is now."""

from collections.abc import Callable

from omnid.clock import Clock
from omnid.flow.notify import QUEUE, Notices
from omnid.link.destination import Destination
from omnid.settings import DESKTOP, Config
from omnid.settings import Destination as Section

Make = Callable[[Section], Destination]


class Places:
    """Gives destinations by the names of their queues; each is made once, and again when its section has changed."""

    def __init__(self, config: Callable[[], Config], clock: Clock, make: Make, desktop: Destination) -> None:
        self._config = config
        self._clock = clock
        self._make = make
        self._desktop = desktop
        self._made: dict[str, tuple[Section, Destination]] = {}
        self._notices: dict[str, Notices] = {}

    def open(self, queue: str) -> Destination | None:
        """Gives the destination of a queue: one of the config, or a place for notices; None where there is none."""
        if not queue.startswith(QUEUE):
            return self._of_config(queue)
        place = queue.removeprefix(QUEUE)
        inner = self._of_config(place) or (self._desktop if place == DESKTOP else None)
        if inner is None:
            return None
        notices = self._notices.setdefault(place, Notices(inner, self._config, self._clock))
        notices.destination = inner
        return notices

    def _of_config(self, name: str) -> Destination | None:
        section = next((one for one in self._config().destination if one.name == name), None)
        if section is None:
            self._made.pop(name, None)
            return None
        made = self._made.get(name)
        if made is None or made[0] != section:
            made = self._made[name] = section, self._make(section)
        return made[1]
