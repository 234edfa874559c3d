"""What happened while nobody looked, in one line: done, parked, needs you, money, limits that were waited out."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple
from zoneinfo import ZoneInfo

from omnid import times
from omnid.flow.explain import span
from omnid.model import Gate
from omnid.store.interface import Reader

OUTAGES_MAX = 1_000
PARKED_MAX = 10_000
LIMITS = frozenset({"rate_limit", "login"})
"""Causes of outages that count as limits which were waited out."""

ENDS = ("completed", "failed", "cancelled")
"""The states of the query `ended_since`, in its order."""

Language = Literal["en", "zh-TW"]


class Parked(NamedTuple):
    """Tasks that one closed gate holds back."""

    cause: str
    subject: str
    tasks: int
    wake_at_ms: int | None


class Money(NamedTuple):
    """What was spent in a window, in US dollars, and its cap."""

    spent_usd: float
    cap_usd: float | None
    unknown_usd: float
    """What calls of unknown cost may have cost."""


class Digest(NamedTuple):
    """The facts of one digest."""

    since_ms: int
    until_ms: int
    ended: Mapping[str, int]
    """Tasks that ended, by state."""
    parked: tuple[Parked, ...]
    needs_you: int
    money: Money | None
    limits: int
    """Limits that began and lifted."""
    limits_s: float
    """How long these lasted in all."""


def gather(
    reader: Reader, since_ms: int, now_ms: int, gates: Sequence[Gate], needs_you: int, money: Money | None
) -> Digest:
    """Reads what happened since a time; bounded work, whatever the number of tasks."""
    outages = reader.all("outages_since", since_ms, OUTAGES_MAX)
    counts = reader.one("ended_since", since_ms) or (0, 0, 0)
    spans = [(row[2], row[3]) for row in outages if row[0] in LIMITS and row[3] is not None]
    return Digest(
        since_ms=since_ms,
        until_ms=now_ms,
        ended={state: count for state, count in zip(ENDS, counts, strict=True) if count},
        parked=tuple(parked_tasks(reader, gates)),
        needs_you=needs_you,
        money=money,
        limits=len(spans),
        limits_s=_covered_ms(spans) / 1000,
    )


def parked_tasks(reader: Reader, gates: Sequence[Gate]) -> Iterable[Parked]:
    """Counts the tasks behind each closed gate, up to a limit."""
    for gate in gates:
        if gate.subject == "*":
            continue
        row = reader.one("count_ready", gate.subject, PARKED_MAX)
        if row and row[0]:
            yield Parked(gate.cause, gate.subject, row[0], gate.wake_at_ms)


def _covered_ms(spans: Iterable[tuple[int, int]]) -> int:
    """Gives how much time the spans cover together: two limits at the same time are waited for once."""
    total_ms, end_ms = 0, 0
    for began, ended in sorted(spans):
        total_ms += max(0, ended - max(began, end_ms))
        end_ms = max(end_ms, ended)
    return total_ms


class _Words(NamedTuple):
    done: str
    failed: str
    cancelled: str
    parked: str
    until: str
    needs_you: str
    need_you: str
    nothing: str
    money: str
    of: str
    unknown: str
    limit: str
    limits: str
    reply: str
    comma: str
    semicolon: str
    stop: str


_WORDS: Mapping[Language, _Words] = {
    "en": _Words(
        done="{n} done",
        failed="{n} failed",
        cancelled="{n} cancelled",
        parked="{n} parked",
        until=" until {at}",
        needs_you="{n} needs you",
        need_you="{n} need you",
        nothing="nothing happened",
        money="${spent}",
        of=" of ${cap}",
        unknown=" and up to ${most} unknown",
        limit="{n} limit waited out ({span})",
        limits="{n} limits waited out ({span})",
        reply=" Reply: 1 approve, 2 again, 3 drop",
        comma=", ",
        semicolon="; ",
        stop=".",
    ),
    "zh-TW": _Words(
        done="完成 {n} 件",
        failed="失敗 {n} 件",
        cancelled="取消 {n} 件",
        parked="掛起 {n} 件",
        until="（至 {at}）",
        needs_you="{n} 件需要您處理",
        need_you="{n} 件需要您處理",
        nothing="沒有新的動靜",
        money="花費 ${spent}",
        of="／上限 ${cap}",
        unknown="，另有至多 ${most} 費用未知",
        limit="等過 {n} 次額度限制（{span}）",
        limits="等過 {n} 次額度限制（{span}）",
        reply=" 回覆：1 核准、2 重試、3 放棄",
        comma="，",
        semicolon="；",
        stop="。",
    ),
}


def text(digest: Digest, zone: ZoneInfo, language: Language = "en") -> str:
    """Says the digest in one line; times are local to the zone."""
    words = _WORDS[language]
    counts = [
        form.format(n=digest.ended[state])
        for state, form in (("completed", words.done), ("failed", words.failed), ("cancelled", words.cancelled))
        if digest.ended.get(state)
    ]
    counts += [_parked_text(parked, zone, words) for parked in digest.parked]
    if digest.needs_you:
        counts.append((words.needs_you if digest.needs_you == 1 else words.need_you).format(n=digest.needs_you))
    parts = [words.comma.join(counts) or words.nothing]
    if digest.money is not None:
        parts.append(_money_text(digest.money, words))
    if digest.limits:
        form = words.limit if digest.limits == 1 else words.limits
        parts.append(form.format(n=digest.limits, span=span(digest.limits_s)))
    line = words.semicolon.join(parts) + words.stop
    return line + words.reply if digest.needs_you else line


def _parked_text(parked: Parked, zone: ZoneInfo, words: _Words) -> str:
    until = ""
    if parked.wake_at_ms is not None:
        until = words.until.format(at=times.local(parked.wake_at_ms, zone).strftime("%H:%M"))
    return words.parked.format(n=parked.tasks) + until


def _money_text(money: Money, words: _Words) -> str:
    line = words.money.format(spent=f"{money.spent_usd:.2f}")
    if money.cap_usd:
        line += words.of.format(cap=f"{money.cap_usd:.2f}")
    return line + (words.unknown.format(most=f"{money.unknown_usd:.2f}") if money.unknown_usd else "")
