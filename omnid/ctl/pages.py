"""Lists that come page by page: every verb that shows one has the same options, words and JSON."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from omnid.ctl.context import Context
from omnid.ctl.options import Option
from omnid.ctl.render import Cell

ALL = Option("all", None, "All pages")
CURSOR = Option("cursor", "CURSOR", "Go on where the page before ended")


class Listing(NamedTuple):
    """A list of the daemon's, and how it looks."""

    method: str
    rows: str
    """The field of an answer that holds the rows of a page; in `next` it says where the next one begins."""
    header: Sequence[str]
    row: Callable[[Mapping[str, Any], int], Sequence[Cell]]
    """Gives the cells of a row at a time (Unix milliseconds)."""
    none: str
    """What is said where there is nothing."""
    start: str = "cursor"
    """The parameter that says where a page begins."""
    option: str = "cursor"
    """The option for it."""
    page_max: int = 500


def show(context: Context, listing: Listing, search: Mapping[str, Any]) -> int:
    """Shows one page, or all where that is asked for: as tables, or a page a line as JSON."""
    given = context.given
    every = given.flag("all")
    limit = listing.page_max if every and not given.flag("limit") else given.whole("limit")
    shown, begins = 0, None
    for page in pages(context, listing, {**search, "limit": limit}, every=every):
        begins = page["next"]
        if context.json:
            context.give_json(page)
            continue
        now_ms = context.world.now_ms()
        rows = [listing.row(one, now_ms) for one in page[listing.rows]]
        shown += len(rows)
        if rows:
            context.screen.table(listing.header, rows)
    if context.json:
        return 0
    if not shown:
        context.screen.tell(listing.none)
    if begins is not None:
        context.screen.tell(f"There are more: the same with --{listing.option} {begins}, or with --all")
    return 0


def pages(
    context: Context, listing: Listing, search: Mapping[str, Any], *, every: bool = True
) -> Iterator[dict[str, Any]]:
    """Gives the pages of a list as the daemon answers them; with `every` up to the last."""
    params = dict(search)
    while True:
        page = context.call(listing.method, **params)
        yield page
        params[listing.start] = page["next"]
        if page["next"] is None or not every:
            return
