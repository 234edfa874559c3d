"""What clients see of the router: the rules in force, and what it would decide."""

from msgspec import structs

from omnid.api.shapes_routing import RouteExplain, RouteExplained, RuleView
from omnid.flow.caller import Caller
from omnid.flow.context import Context
from omnid.flow.intake import needs_approval, route_of, work_of
from omnid.model import Submit, Work
from omnid.route.router import said
from omnid.route.rules import Matcher


class Routing:
    """Explains the router with the facts of the running daemon; nothing is written."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def explain(self, caller: Caller, params: RouteExplain) -> RouteExplained:
        """Gives the rules, and where a task is described the decision; raises Rejected as a submit would."""
        rules = [self._rule(matcher) for matcher in self._context.rules.every]
        asked = Submit(**structs.asdict(params))
        work = work_of(asked)
        if work == Work():
            return RouteExplained(rules)
        context = self._context
        route = route_of(context, caller, asked, work, context.facts())
        text = said(route, "goes") or f"It goes to {route.executor}: {route.reason}."
        return RouteExplained(rules, route, text, needs_approval(caller.role, route.executor, work, context.config))

    def _rule(self, matcher: Matcher) -> RuleView:
        rule = matcher.rule
        return RuleView(
            name=rule.name,
            built_in=matcher.built_in,
            takes=matcher.sorts,
            executors=rule.executor,
            missing=tuple(name for name in rule.executor if name not in self._context.ways),
            kind=rule.kind,
            labels=rule.labels,
            text=rule.text,
            bytes_min=rule.bytes_min,
            bytes_max=rule.bytes_max,
            lane=rule.lane,
            hours=rule.hours,
        )
