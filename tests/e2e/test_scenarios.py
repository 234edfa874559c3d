"""The four ways to be offline, in short: `make scenarios` is the same with 2,000 commands and 20 faults.

`OMNID_SEED` repeats the choices of an earlier run (not its timing).
"""

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.contract.links import KINDS, Kit
from tests.fakes.brokers import Broker
from tests.scenarios import clients
from tests.scenarios.faults import drawn
from tests.scenarios.run import run

SEED = int(os.environ.get("OMNID_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 32)
COMMANDS = 24
LASTS_S_MAX = 1.6
FAULTS = {"online": 2, "client-away": 2, "broker-away": 5, "offline": 2}


# `rabbitmqctl` alone takes many seconds on a busy machine; what stands still is found after a minute, see `STALL_S`.
@pytest.mark.timeout(600)
@pytest.mark.parametrize("scenario", FAULTS)
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_lost_done_twice_or_out_of_order(
    kind: str, scenario: str, brokers: Callable[[str], Broker], tmp_path: Path
) -> None:
    told: list[str] = [f"seed {SEED}"]
    faults = drawn(scenario, SEED, FAULTS[scenario], LASTS_S_MAX)
    outcome = run(Kit(kind, brokers(kind), scenario), tmp_path, faults, SEED, COMMANDS, told.append)
    assert str(outcome.counted) == "24 submitted, 24 done, 0 lost, 0 done twice, 0 out of order", told
    assert outcome.counted.good
    assert scenario != "client-away" or outcome.batch_max > 1, "results come back in batches"


def test_what_is_done_twice_is_counted(
    brokers: Callable[[str], Broker], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every third command writes itself down twice."""
    twice = 'case {key} in *[369]) echo "{key} again" >> done;; esac'
    monkeypatch.setattr(clients, "SCRIPT", f"{clients.SCRIPT}; {twice}")
    outcome = run(Kit("redis", brokers("redis"), "wrong"), tmp_path, [], 1, 10, lambda _: None)
    assert outcome.counted == (10, 10, 0, 2, 0)
    assert not outcome.counted.good
