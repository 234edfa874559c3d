"""The settings of links to brokers, and of the runner at their other end."""

from typing import Annotated

from msgspec import Meta

from omnid.patterns import LABEL, NAME_OR_NONE
from omnid.settings_types import Count, Name, Seconds, Section

Label = Annotated[str, Meta(pattern=LABEL)]
"""What a runner can do that others can't: ``gpu``, ``repo:x``."""


class Link(Section, frozen=True, kw_only=True):
    """A broker that carries commands to runners and results back; `password` and all keys are references."""

    name: Name
    url: str
    user: str = ""
    password: str = ""
    key: str = ""
    accepted_keys: Annotated[tuple[str, ...], Meta(max_length=8)] = ()
    unsigned: bool = False
    ca: str = ""
    timeout_s: Seconds = 10.0
    retry_base_s: Seconds = 0.5
    retry_max_s: Seconds = 30.0
    stable_s: Seconds = 30.0
    ping_every_s: Seconds = 5.0
    slow_s: Seconds = 1.0
    batch_max: Annotated[int, Meta(ge=1, le=4096)] = 64


class Runner(Section, frozen=True, kw_only=True):
    """What `omnid runner` is called, which link it listens to, and what it offers."""

    link: str = ""
    name: Annotated[str, Meta(pattern=NAME_OR_NONE)] = ""
    executors: tuple[str, ...] = ()
    labels: tuple[Label, ...] = ()
    beat_s: Seconds = 5.0
    drain_s: Seconds = 10.0


class Remote(Section, frozen=True, kw_only=True):
    """A runner elsewhere that the daemon sends commands to; what it names as executors runs on such runners alone."""

    name: Name
    link: Name
    executors: tuple[str, ...]
    labels: tuple[Label, ...] = ()
    window_max: Count = 256
    lease_s: Seconds = 60.0
