"""What clients see of the router: the rules in force, and what it would decide."""

from omnid.api.shapes_routing import RouteExplain, RouteExplained, RuleView
from omnid.flow.caller import Caller
from omnid.flow.context import Context
from omnid.flow.intake import needs_approval
from omnid.model import Work
from omnid.route.router import choose, said
from omnid.route.rules import Asked, Matcher


class Routing:
    """Explains the router with the facts of the running daemon; nothing is written."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def explain(self, caller: Caller, params: RouteExplain) -> RouteExplained:
        """Gives the rules, and where a task is described the decision; raises Rejected as a submit would."""
        rules = [self._rule(matcher) for matcher in self._context.rules.every]
        work = Work(
            argv=params.argv or None,
            stdin=params.stdin,
            server=params.server,
            tool=params.tool,
            arguments=params.arguments,
            prompt=params.prompt,
            executor=params.executor,
        )
        if work == Work():
            return RouteExplained(rules)
        context = self._context
        route = choose(Asked(work, params.kind, params.labels, params.lane), context.facts())
        context.executors[route.executor].accepts(work)
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
