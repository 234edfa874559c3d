"""``omnictl links``."""

from collections.abc import Mapping, Sequence
from typing import Any

from omnid.ctl.context import Context
from omnid.ctl.options import Verb
from omnid.ctl.render import Cell

_STYLES = {"up": "green", "degraded": "yellow", "down": "red"}
_BEATS = {None: " ", "down": "_", "degraded": "\u2584", "up": "\u2588"}
"""What a beat is drawn as: the height of a bar, which also shows where there are no colours."""


def _links(context: Context) -> int:
    found = context.call("link.list")
    if context.json:
        context.give_json(found)
        return 0
    for one in found["links"]:
        _show(context, one)
    hours = len(found["links"][0]["beats"]) * found["beat_s"] / 3600
    minutes = found["beat_s"] / 60
    context.screen.put(Cell(f"{hours:g} hours, {minutes:g} minutes a beat, now at the right", "dim"))
    return 0


def _show(context: Context, one: Mapping[str, Any]) -> None:
    quality = one["quality"]
    name = one["name"] if one["kind"] != "broker" else f"link {one['name']}"
    context.screen.put(
        Cell(f"{name[:20]:20}", "bold"),
        "|",
        *_bar(one["beats"]),
        "| ",
        Cell(quality or "unused", _STYLES.get(quality, "dim")),
    )
    said = ", ".join(_figures(one))
    if said:
        context.screen.put("  ", Cell(said, "dim"))
    if one["why"]:
        context.screen.paragraph("", one["why"], 2)


def _bar(beats: Sequence[str | None]) -> list[Cell]:
    return [Cell(_BEATS[beat], _STYLES.get(beat or "", "")) for beat in beats]


def _figures(one: Mapping[str, Any]) -> list[str]:
    found: list[str] = []
    if one["kind"] == "clients":
        found.append(f"{one['waiting']} connected")
    if one["latency_s"] is not None:
        found.append(f"latency {1000 * one['latency_s']:.1f} ms")
    if one["loss"]:
        found.append(f"{one['loss'] * 100:.0f} % lost")
    if one["kind"] == "broker" and one["waiting"]:
        found.append(f"{one['waiting']} waiting")
    return found


VERBS = {
    "links": Verb(
        _links,
        "Shows the links to clients, brokers and the internet: how they are, and their last day.",
        "",
        (),
        ("omnictl links",),
    ),
}
