"""Notices to people: what happened that they should know, written down together with what caused it.

They wait in a queue of their own for each place, so that a quiet night holds back notices and no answers. What has
gathered is put into words when it is sent: grouped, with away and back as one, and no more often than wished.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple
from zoneinfo import ZoneInfo

from msgspec import structs

from omnid import platform
from omnid.clock import Clock
from omnid.flow.explain import span
from omnid.flow.texts import plain, say
from omnid.link.destination import Destination
from omnid.model import Delivery
from omnid.settings import Config
from omnid.store import outbox
from omnid.store.interface import Tx
from omnid.times import Window, local, next_ms

Kind = Literal["limit", "limit_over", "needs_you", "budget", "failed", "mode", "digest"]

QUEUE = "notice/"
"""What the names of the queues of notices begin with; the name of the place follows."""
BATCH_MAX = 500
LINES_MAX = 10
BESIDE = frozenset(
    {"gateway_back", "repair", "unmended", "unmended_still", "unasked", "asleep", "no_snapshot", "released"}
)
"""What is told of the mode and neither begins nor ends one that people wait for."""
HOUR_MS = 3_600_000
FIELD_CHARS_MAX = 300


def tell(tx: Tx, config: Config, kind: Kind, subject: str, **fields: str) -> None:
    """Writes a notice into the outbox of each place that `notify.to` names, in the transaction of its cause.

    `subject` is what it is about (a task's id, an executor's name); `fields` fill in the notice's text: `until_ms` and
    `said` (limit); `why` with `task`, `title` and `executor`, or `what` and `do`, or `said` (needs_you); `percent`,
    `limit` and `until_ms` (budget); `task`, `title` and `problem` (failed); `mode` (mode); `text` (digest).
    """
    body = {"event": kind, **{name: plain(value)[:FIELD_CHARS_MAX] for name, value in fields.items()}}
    if kind == "digest":
        body["text"] = plain(fields.get("text", ""))
    for place in config.notify.to:
        outbox.put(tx, f"{QUEUE}{place}", "notice", subject, body, rows_max=config.outbox.rows_max)


class Line(NamedTuple):
    """One thing to tell: a notice, or a notice and the one that ended it."""

    at_ms: int
    over: str | None
    """For what began: what it began, which a later line may end."""
    text: str


def compose(batch: Sequence[Delivery], language: str, zone: ZoneInfo) -> str:
    """Puts notices into words, one a line; what was over before anybody heard of it becomes one line."""
    lines: list[Line] = []
    for notice in batch:
        begins, ends = _pair(notice)
        first = next((line for line in lines if ends is not None and line.over == ends), None)
        if first is None:
            lines.append(Line(notice.created_at_ms, begins, _text(notice, language, zone)))
            continue
        lines = [line for line in lines if line.over != ends]
        passed = "mode_passed" if notice.body["event"] == "mode" else "limit_passed"
        lasted = span((notice.created_at_ms - first.at_ms) / 1000)
        lines.append(Line(first.at_ms, None, say(language, passed, subject=notice.subject or "", span=lasted)))
    shown = [line.text for line in lines]
    if len(shown) > LINES_MAX:
        shown[LINES_MAX - 1 :] = [say(language, "more", count=str(len(shown) - LINES_MAX + 1))]
    return "\n".join(shown)


def _pair(notice: Delivery) -> tuple[str | None, str | None]:
    """Gives what a notice says has begun, and what it says is over."""
    event, subject = notice.body["event"], notice.subject
    if event == "mode":
        if notice.body.get("mode") in BESIDE:
            return None, None
        return (None, "mode") if notice.body.get("mode") == "normal" else ("mode", None)
    if event == "limit":
        return f"limit {subject}", None
    return None, f"limit {subject}" if event == "limit_over" else None


def _text(notice: Delivery, language: str, zone: ZoneInfo) -> str:
    fields = {name: str(value) for name, value in notice.body.items() if name != "event"}
    kind = str(notice.body["event"])
    until_ms = fields.pop("until_ms", "")
    if until_ms.isdigit():
        fields["until"] = _clock_time(int(until_ms), notice.created_at_ms, zone)
    if "said" in fields:
        fields["said"] = fields["said"].rstrip(".")
    variant = _variant(kind, fields)
    return say(language, f"{kind}.{variant}", **{"subject": notice.subject or "", **fields})


def _variant(kind: str, fields: Mapping[str, str]) -> str:
    """Gives the variant of a kind that tells most of what is known."""
    match kind:
        case "mode":
            return fields.get("mode", "")
        case "budget":
            return "full" if fields.get("percent") == "100" else ""
        case "needs_you" if "why" in fields:
            return fields["why"]
        case _:
            return next((name for name in ("until", "said", "what") if fields.get(name)), "")


def _clock_time(at_ms: int, now_ms: int, zone: ZoneInfo) -> str:
    at, now = local(at_ms, zone), local(now_ms, zone)
    return f"{at:%H:%M}" if at.date() == now.date() else f"{at:%Y-%m-%d %H:%M}"


class Notices:
    """A place as a destination of notices: it decides when they go, and puts them into words. See `Destination`.

    How many went in the last hour is forgotten with the daemon.
    """

    batch_max = BATCH_MAX
    rings = False

    def __init__(self, destination: Destination, config: Callable[[], Config], clock: Clock) -> None:
        self.destination = destination
        """Where they go; replaced when the config changes it."""
        self._config = config
        self._clock = clock
        self._sent_ms: deque[int] = deque()

    @property
    def timeout_s(self) -> float:
        """See `Destination.timeout_s`."""
        return self.destination.timeout_s

    def due_ms(self, batch: Sequence[Delivery], now_ms: int) -> int:
        """See `Destination.due_ms`: after the time in which more may come, within the hour's number, out of quiet."""
        settings, daemon = self._config().notify, self._config().daemon
        # What is from later than now has waited since before the clock was set back.
        created_ms = batch[0].created_at_ms
        due_ms = created_ms + round(1000 * settings.group_s) if created_ms <= now_ms else now_ms
        while self._sent_ms and not now_ms - HOUR_MS < self._sent_ms[0] <= now_ms:
            self._sent_ms.popleft()
        if len(self._sent_ms) >= settings.per_hour_max:
            due_ms = max(due_ms, self._sent_ms[-settings.per_hour_max] + HOUR_MS)
        if settings.quiet:
            window, zone = Window.parse(settings.quiet), platform.zone(daemon.zone)
            at_ms = max(due_ms, now_ms)
            if window.holds(at_ms, zone):
                due_ms = next_ms(at_ms, window.end, zone)
        return due_ms

    async def send(self, batch: Sequence[Delivery]) -> None:
        """See `Destination.send`: all of them as one, under the id of the last.

        So a batch that is sent again as it was can be dropped, and one that has grown meanwhile can't.
        """
        config = self._config()
        text = compose(batch, config.notify.language, platform.zone(config.daemon.zone))
        events = {notice.body["event"] for notice in batch}
        body = {"event": events.pop() if len(events) == 1 else None, "text": text, "count": len(batch)}
        await self.destination.send([structs.replace(batch[-1], body=body)])
        self._sent_ms.append(self._clock.wall_ms())
