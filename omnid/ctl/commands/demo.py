"""``omnictl demo``: stories that a real daemon tells, which is killed in the middle of them."""

from collections.abc import Callable, Mapping
from functools import partial

from omnid.ctl import demo_day, demo_links, demo_night, demo_outage
from omnid.ctl.context import Context
from omnid.ctl.demo import End, Interrupted, Signals
from omnid.ctl.demo_broker import BROKERS
from omnid.ctl.options import Option, Verb
from omnid.errors import OmnidError, Retryable

_SCENARIOS: Mapping[str, Callable[[Context, Signals], End]] = {
    "day": demo_day.run,
    "night": demo_night.run,
    "outage": demo_outage.run,
    **{name: partial(demo_links.run, name) for name in demo_links.SCENARIOS},
}


def _demo(context: Context) -> int:
    name = context.given.text("scenario") or "day"
    if name not in _SCENARIOS:
        context.given.misuse(f"--scenario is one of {', '.join(_SCENARIOS)}, not {name!r}")
    link = context.given.text("link")
    if link is not None and name not in demo_links.SCENARIOS:
        context.given.misuse(f"--link goes with --scenario {', '.join(demo_links.SCENARIOS)}")
    if link is not None and link not in BROKERS:
        context.given.misuse(f"--link is one of {', '.join(BROKERS)}, not {link!r}")
    with Signals() as signals:
        try:
            end = _told(context, signals, _SCENARIOS[name])
            # What happened while all of it was ended counts too.
            signals.check()
        except Interrupted as interrupted:
            context.screen.tell("The demo was interrupted; nothing of it is left behind.")
            return 128 + interrupted.number
    context.give(end.facts, ["", end.line])
    return 0 if end.good else 1


def _told(context: Context, signals: Signals, run: Callable[[Context, Signals], End]) -> End:
    try:
        return run(context, signals)
    except OmnidError as error:
        if error.code in ("demo_failed", "demo_needs"):
            raise
        # Its advice is about the daemon of whoever reads it, and not about this one.
        raise Retryable("demo_failed", detail=f"{error.what.rstrip('.')} ({error.why.rstrip('.')})") from error


VERBS = {
    "demo": Verb(
        _demo,
        "Shows omnid losing nothing: tasks, a daemon that is killed while they run, and a count at the end. It takes "
        "a few seconds, happens in a temporary directory, and leaves nothing there.",
        "",
        (
            Option(
                "scenario",
                "NAME",
                "day: twelve commands (the default); night: nine tasks of an agent that meets a limit, a power cut and "
                "a lid on money; outage: twelve prompts, a killed gateway and a cloud that goes; online, client-away, "
                "broker-away, offline: commands on their way to a runner, and who is away meanwhile",
            ),
            Option("link", "BROKER", "redis (the default) or rabbitmq, for the last four: a broker of the demo's own"),
        ),
    )
}
