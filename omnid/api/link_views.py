"""What clients see of the links: to clients, to brokers, to the internet."""

from collections.abc import Iterable, Sequence

from omnid.api.host import Host
from omnid.api.shapes import Empty, Finding
from omnid.api.shapes_links import LinkList, LinkView
from omnid.flow.caller import Caller
from omnid.flow.context import Context
from omnid.flow.fleet import queue_of
from omnid.flow.gates import LINK
from omnid.flow.mode import CLOUD
from omnid.flow.presence import CLIENT
from omnid.link.beats import BEAT_MS, Beats, Quality, mark, place_of
from omnid.links import is_exposed
from omnid.model import Problem
from omnid.settings_links import Link as Section
from omnid.store.interface import Reader

CELLS = 48
DAY_MS = 86_400_000
OUTAGES_MAX = 1_000

Outage = tuple[str, str, int, int | None]
"""Cause, subject, begin and end (Unix milliseconds; None: it goes on)."""


class LinkViews:
    """Shows how links are, and their last day."""

    def __init__(self, context: Context, host: Host) -> None:
        self._context = context
        self._host = host

    async def list(self, _caller: Caller, _params: Empty) -> LinkList:
        """Gives the links and their last day, in beats of half an hour."""
        return await self._context.store.read(self._all)

    def findings(self) -> Sequence[Finding]:
        """Gives how the links to brokers are, as findings of `doctor`."""
        return [self._finding(section) for section in self._context.config.link]

    def _finding(self, section: Section) -> Finding:
        name, connection = f"link {section.name}", self._context.fleet.connection(section.name)
        trouble = None if connection is None else connection.trouble
        if trouble is not None:
            return Finding(name, ok=False, detail=trouble.what, do=trouble.do or None)
        if is_exposed(section):
            detail = "whoever can write to its broker can have commands run: nothing on it is signed"
            return Finding(name, ok=False, detail=detail, do="Give it a key at both ends, and take unsigned out.")
        return Finding(name, ok=True, detail="it is up" if connection else "no [[remote]] of the config uses it")

    def _all(self, reader: Reader) -> LinkList:
        now_ms = self._context.clock.wall_ms()
        outages: list[Outage] = [
            (row[0], row[1], row[2], row[3]) for row in reader.all("outages_after", now_ms - DAY_MS, OUTAGES_MAX)
        ]
        views = [self._clients(outages, now_ms), *self._brokers(reader, outages, now_ms)]
        views.append(self._internet(outages, now_ms))
        return LinkList(views, DAY_MS / CELLS / 1000, now_ms)

    def _clients(self, outages: Sequence[Outage], now_ms: int) -> LinkView:
        away = sorted(subject for cause, subject, _, end_ms in outages if cause == CLIENT and end_ms is None)
        count = self._host.clients()
        beats = Beats()
        for minute in range(max(self._host.started_at_ms, now_ms - DAY_MS), now_ms, BEAT_MS):
            beats.look(minute, "up")
        return LinkView(
            kind="clients",
            name="clients",
            quality="degraded" if away else "up",
            why=f"away while their work goes on: {', '.join(away)}" if away else "",
            latency_s=None,
            loss=None,
            waiting=count,
            beats=_cells(beats, (one for one in outages if one[0] == CLIENT), now_ms, "degraded"),
        )

    def _brokers(self, reader: Reader, outages: Sequence[Outage], now_ms: int) -> Iterable[LinkView]:
        fleet = self._context.fleet
        for section in self._context.config.link:
            connection = fleet.connection(section.name)
            peers = fleet.on_link(section.name)
            rows = (reader.one("outbox_count", queue_of(peer.name)) for peer in peers)
            own = (one for one in outages if one[:2] == (LINK, section.name))
            trouble = None if connection is None else connection.trouble
            yield LinkView(
                kind="broker",
                name=section.name,
                quality=None if connection is None else connection.quality,
                why="no [[remote]] of the config uses it" if connection is None else _why(connection.beats, trouble),
                latency_s=None if connection is None else connection.beats.latency_s,
                loss=None if connection is None else connection.beats.loss,
                waiting=sum(row[0] for row in rows if row is not None),
                beats=_cells(Beats() if connection is None else connection.beats, own, now_ms, "down"),
            )

    def _internet(self, outages: Sequence[Outage], now_ms: int) -> LinkView:
        modes = self._context.modes
        watched = any(not channel.local for channel in self._context.config.channel)
        quality: Quality | None = None
        why = "no channel of the config needs it"
        if watched:
            away = sorted(modes.away())
            quality = "down" if modes.cloud.is_gone else "degraded" if away else "up"
            why = {"down": "none of the channels answers", "degraded": f"no answer: {', '.join(away)}"}.get(quality, "")
        return LinkView(
            kind="internet",
            name="internet",
            quality=quality,
            why=why,
            latency_s=modes.beats.latency_s,
            loss=modes.beats.loss,
            waiting=0,
            beats=_cells(modes.beats, (one for one in outages if one[0] == CLOUD), now_ms, "down"),
        )


def _cells(beats: Beats, outages: Iterable[Outage], now_ms: int, quality: Quality) -> list[Quality | None]:
    """Gives the last day: what was seen, and over it what the journal knows, also of the time before the start."""
    since_ms = now_ms - DAY_MS
    # One more than the present minute, in which it was looked at just now.
    cells = beats.cells(since_ms, now_ms + 1, CELLS)
    for _, _, began_ms, ended_ms in outages:
        first, last = (place_of(at_ms, since_ms, now_ms + 1, CELLS) for at_ms in (began_ms, ended_ms or now_ms))
        for place in range(first, last + 1):
            mark(cells, place, quality)
    return cells


def _why(beats: Beats, trouble: Problem | None) -> str:
    if trouble is not None:
        return trouble.what
    if beats.is_slow:
        return "its broker answers late"
    return f"{100 * (beats.loss or 0):.0f} % of the last pings got no answer" if beats.is_lossy else ""
