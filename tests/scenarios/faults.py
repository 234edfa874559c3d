"""Which faults a run meets, drawn from its seed."""

import random
from typing import NamedTuple

SCENARIOS = ("online", "client-away", "broker-away", "offline")
BROKER = ("killed", "frozen", "cut off", "full", "given another password")
SOCKET, HTTP = 0, 1
"""The two clients."""
LASTS_S_MAX = 3.0
HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS


class Fault(NamedTuple):
    """What happens at one time."""

    lasts_s: float
    broker: str = ""
    """How the broker goes away, one of `BROKER`; "": it is there."""
    clients: tuple[int, ...] = ()
    """Which of them are cut in the middle of a call, and away for that long."""
    daemon: bool = False
    """Whether the daemon is killed."""
    runner: bool = False
    """Whether the runner is killed."""
    clock_ms: int = 0
    """By how much the clock of the daemon's host is off from then on."""
    runner_clock_ms: int = 0
    """By how much that of the runner's host is."""
    early: bool = True
    """Whether what was killed is there again before the broker is."""

    def __str__(self) -> str:
        parts = [f"broker {self.broker}"] if self.broker else []
        parts += [f"client {('socket', 'HTTP')[client]} cut" for client in self.clients]
        parts += [f"{name} killed" for name, hit in (("daemon", self.daemon), ("runner", self.runner)) if hit]
        clocks = (("daemon", self.clock_ms), ("runner", self.runner_clock_ms))
        parts += [f"clock of the {name} {off_ms / HOUR_MS:+.1f} h" for name, off_ms in clocks if off_ms]
        return f"{' and '.join(parts)} for {self.lasts_s:.1f} s"


def drawn(scenario: str, seed: int, count: int, lasts_s_max: float = LASTS_S_MAX) -> list[Fault]:
    """Draws so many faults; every kind of the scenario comes before one comes again."""
    chance = random.Random(f"{seed} {scenario}")
    kinds: list[Fault] = []
    while len(kinds) < count:
        made = _kinds(scenario, chance, lasts_s_max)
        kinds += chance.sample(made, len(made))
    return kinds[:count]


def _kinds(scenario: str, chance: random.Random, lasts_s_max: float) -> list[Fault]:
    def lasts_s() -> float:
        return chance.uniform(0.2, lasts_s_max)

    def off_ms() -> int:
        return round(chance.uniform(-6, 6) * HOUR_MS)

    match scenario:
        case "online":
            return [
                Fault(chance.uniform(0.0, 0.5), daemon=daemon, runner=runner)
                for daemon, runner in ((True, False), (False, True), (True, True))
            ]
        case "client-away":
            return [Fault(lasts_s(), clients=clients) for clients in ((SOCKET,), (HTTP,), (SOCKET, HTTP))]
        case "broker-away":
            return [Fault(lasts_s(), broker) for broker in BROKER]
        case _:
            return [
                Fault(
                    lasts_s(),
                    broker,
                    (SOCKET, HTTP),
                    daemon=True,
                    runner=chance.random() < 0.5,
                    clock_ms=off_ms(),
                    runner_clock_ms=off_ms(),
                    early=chance.random() < 0.5,
                )
                for broker in BROKER
            ]
