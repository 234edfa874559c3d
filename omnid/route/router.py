"""Which executor gets a task, and why. Pure: it is given what it decides on, and its reasons are written down."""

from collections.abc import Collection, Iterable, Mapping
from difflib import get_close_matches
from types import MappingProxyType
from zoneinfo import ZoneInfo

from msgspec import Struct, structs

from omnid.errors import Rejected
from omnid.model import Gate, Route, Task, TurnedDown, Work
from omnid.route.rights import UNBOUND, Rights
from omnid.route.rules import COMMANDS, Asked, Matcher, Rules
from omnid.route.ways import Sort, Way
from omnid.settings import COMMAND

WANTED: Mapping[Sort, str] = {"command": "a command (argv)", "mcp": "a tool call (server + tool)", "model": "a prompt"}
DEFAULT = {sort: f"the default for {wanted}" for sort, wanted in WANTED.items()}
BY_NAME = "asked for by name"
BY_HAND = "given to it by hand"
LOCAL = "local"
"""The label of tasks that the built-in rules send to nothing that works in the cloud."""
THOUGH = ", though it "
"""In a reason, what stands before the words why its executor can't be used now."""


class Facts(Struct, frozen=True):
    """What the router decides on, besides the work."""

    ways: Mapping[str, Way]
    """The executors, by name."""
    rules: Rules
    now_ms: int
    zone: ZoneInfo
    closed: Mapping[str, Gate] = MappingProxyType({})
    """Closed gates by what they close. A pause holds tasks back and sends none elsewhere, so it counts as open."""
    rights: Rights = UNBOUND
    """Those of the origin whose work it is."""


Against = tuple[str, str] | None
"""The cause and the words why an executor doesn't get the work; None: it can take it."""

RIGHTS = "rights"
_NEVER = frozenset({"missing", "kind", LOCAL, RIGHTS})
"""Causes for which an executor can't take the work at all."""


def work_sort(work: Work) -> Sort:
    """Gives what kind of work is asked for; raises Rejected(`nothing_to_do`)."""
    is_call = bool(work.tool or work.server)
    count = bool(work.argv) + is_call + bool(work.prompt)
    if count != 1:
        raise Rejected("nothing_to_do", detail="more than one thing" if count else "nothing")
    return "command" if work.argv else "mcp" if is_call else "model"


def says_nothing(work: Work) -> bool:
    """Tells whether the work leaves all to the config of its executor."""
    return not (work.argv or work.tool or work.server or work.prompt)


def choose(asked: Asked, facts: Facts) -> Route:
    """Chooses the executor: the one asked for by name, else the first that can be used of the first rule that fits.

    A rule is passed over where none of its executors is for this kind of work. Raises Rejected(`nothing_to_do`,
    `unknown_executor`, `wrong_executor`, `kind_missing`, `rule_unusable`, `executor_closed`).
    """
    work = asked.work
    if work.executor is not None:
        return _by_name(work, work.executor, facts)
    sort = work_sort(work)
    if sort == "mcp" and work.server is not None:
        return Route(_by_name(work, work.server, facts).executor, DEFAULT["mcp"])
    passed_over: list[TurnedDown] = []
    closed: list[str] = []
    for matcher in facts.rules.of[sort]:
        if matcher.fits(asked, facts.now_ms, facts.zone):
            found = [(name, _against(name, asked, sort, matcher, facts)) for name in matcher.candidates(asked)]
            if any(one is None or one[0] not in _NEVER for _, one in found):
                return _decided(matcher, found, passed_over)
            passed_over += _passed_over(matcher, found)
            closed += [name for name, one in found if one is not None and one[0] == RIGHTS]
    if closed:
        raise executor_closed(closed[0], facts.rights)
    raise _nobody(sort, facts.ways, passed_over)


def _by_name(work: Work, name: str, facts: Facts) -> Route:
    ways, rights = facts.ways, facts.rights
    if name not in ways:
        work_sort(work)
        raise unknown_executor(name, [known for known in ways if rights.opens(known)])
    if not rights.opens(name):
        raise executor_closed(name, rights)
    if says_nothing(work):
        return Route(name, BY_NAME)  # Its config says all there is to do.
    sort = work_sort(work)
    if sort not in ways[name].takes:
        raise Rejected("wrong_executor", executor=name, kind=ways[name].kind, wanted=WANTED[sort])
    return Route(name, BY_NAME)


def executor_closed(name: str, rights: Rights) -> Rejected:
    """Says that an origin may not use an executor, and which it may."""
    known = ", ".join(sorted(rights.executors or ())) or "none"
    return Rejected("executor_closed", origin=rights.origin, executor=name, known=known)


def unknown_executor(name: str, known: Collection[str]) -> Rejected:
    """Says that there is no executor of that name, which is nearest to it, and which there are."""
    near = get_close_matches(name, known, 1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    return Rejected("unknown_executor", executor=name, hint=hint, known=", ".join(sorted(known)))


def _against(name: str, asked: Asked, sort: Sort, matcher: Matcher, facts: Facts) -> Against:
    """Gives why an executor doesn't get the work: what never changes comes first."""
    way = facts.ways.get(name)
    if way is None:
        return "missing", "isn't in the config"
    if sort not in way.takes:
        return "kind", f"doesn't take {WANTED[sort]}"
    if sort == "command" and way.profile is not None and way.profile != asked.agent:
        return "kind", f"runs nothing but the agent {way.profile}"
    if not facts.rights.opens(name):
        return RIGHTS, f"isn't open to {facts.rights.origin}"
    if not way.local and matcher.built_in and LOCAL in asked.labels:
        return LOCAL, "works in the cloud, and the task is labelled local"
    return _shut(name, way, facts.closed) if facts.closed else None


def shut(facts: Facts) -> list[str]:
    """Gives the executors that can't be used now, and whose tasks may go elsewhere therefore."""
    return [name for name, way in facts.ways.items() if facts.closed and _shut(name, way, facts.closed)]


def _shut(name: str, way: Way, closed: Mapping[str, Gate]) -> Against:
    """Gives why an executor can't take the work now."""
    gate = closed.get(name)
    if gate is not None and gate.cause == "hours":
        return gate.cause, f"works within {way.only} only"
    if gate is not None and gate.cause != "paused":
        return gate.cause, f"can't be used now ({gate.problem.what.rstrip('.') if gate.problem else gate.cause})"
    if not way.local and any(one.cause == "cloud" for one in closed.values()):
        return "cloud", "needs the cloud, which is gone"
    return None


def _decided(matcher: Matcher, found: list[tuple[str, Against]], passed_over: list[TurnedDown]) -> Route:
    """Takes the first that can be used now; where none can, the first that can be used at all."""
    rule = matcher.rule.name
    usable = [(name, one) for name, one in found if one is None or one[0] not in _NEVER]
    executor, against = next(((name, one) for name, one in usable if one is None), usable[0])
    others = [(name, one) for name, one in found if name != executor]
    after = ("order", f"comes after {executor}")
    turned_down = (*passed_over, *(TurnedDown(name, *(one or after), rule) for name, one in others))
    if matcher.built_in and rule == COMMANDS:
        return Route(executor, DEFAULT["command"], None, turned_down)
    reason = f"rule {rule}" if against is None else f"rule {rule}{THOUGH}{against[1]}"
    return Route(executor, reason, rule, turned_down)


def _passed_over(matcher: Matcher, found: list[tuple[str, Against]]) -> list[TurnedDown]:
    """Gives what is worth telling of a rule that leads to nobody.

    Raises Rejected(`rule_unusable`) where the rule is the config's and might be meant for this work.
    """
    told = [TurnedDown(name, *one, matcher.rule.name) for name, one in found if one is not None]
    if matcher.built_in:
        return told
    missing = [one for one in told if one.cause == "missing"]
    if missing:
        raise Rejected("rule_unusable", rule=matcher.rule.name, detail=_each(missing))
    return []


def _each(turned_down: Iterable[TurnedDown]) -> str:
    """Names what was turned down, each once."""
    return ", ".join(dict.fromkeys(f"{one.executor} {one.why}" for one in turned_down))


def _nobody(sort: Sort, ways: Mapping[str, Way], turned_down: list[TurnedDown]) -> Rejected:
    """Says which executor is missing, and what could be used instead."""
    if sort == "mcp":
        servers = ", ".join(sorted(name for name, way in ways.items() if way.kind == "mcp")) or "none yet"
        why = f"A tool call names its server; the config has: {servers}."
        return Rejected("kind_missing", kind=sort, why=why, remedy="Name the server (`--server`).")
    why = f"The rules for {WANTED[sort].removeprefix('a ')}s lead nowhere: {_each(turned_down)}."
    remedy = "Add one of them to the config (docs/routing.md), or wrap the prompt in a command (argv)."
    return Rejected("kind_missing", kind=sort, why=why, remedy=remedy)


def written(task: Task, runner: str | None = None) -> Route:
    """Gives the route of a task as its attempt keeps it: what was decided, or why there was nothing to decide.

    `runner` is the one on another host that gets it.
    """
    route = task.route or _undecided(task)
    return route if runner is None else structs.replace(route, runner=runner)


def _undecided(task: Task) -> Route:
    work = task.work
    if task.executor == work.executor or says_nothing(work):
        return Route(task.executor, BY_NAME)
    default = COMMAND if work.argv else work.server
    return Route(task.executor, DEFAULT[work_sort(work)] if task.executor == default else BY_HAND)


def said(route: Route, went: str = "went") -> str:
    """Says in words why the executor got the task and what was turned down; empty where there was no choice.

    What kept it from its start then is left out: `why` tells what keeps it now.
    """
    passed_over = [one for one in route.turned_down if one.cause != "order"]
    if route.rule is None and not passed_over:
        return ""
    text = f"It {went} to {route.executor} by {route.reason.partition(THOUGH)[0]}"
    return f"{text}; turned down: {_each(passed_over)}." if passed_over else f"{text}."
