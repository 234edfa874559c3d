"""The demo of an outage as people run it, and the scripted cloud that it needs."""

import json
import signal
import sys

import pytest

from omnid.ctl.demo_cloud import COST_USD
from omnid.ctl.demo_outage import Count
from omnid.ctl.demo_outage_tasks import JOBS, LATER
from tests.e2e.ground import DEMO, Ground
from tests.e2e.netns import alone

OUTAGE = (*DEMO, "--scenario", "outage")
GOOD = "12 done, 0 lost, 0 billed twice, spent $0.18 of $0.70"
HIDDEN = """
import importlib.util
of = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name in ("litellm", "mlx_lm") else of(name, package)
"""
CHANGED = """
import sys
from omnid.ctl import demo_outage
from omnid.ctl.main import main
of = demo_outage.OutagePlace.ledger
demo_outage.OutagePlace.ledger = lambda place: [*of(place), *%r]
sys.exit(main(["demo", "--scenario", "outage"]))
"""
TODAY = {"amounts": {"spent_usd": COST_USD, "reserved_usd": 0.0, "unknown_usd": 0.04, "calls": 3}, "limit_usd": 0.7}
ASKED, OTHER = JOBS[0].prompt, JOBS[1].prompt


def flat(text: str) -> str:
    return " ".join(text.split())


@pytest.fixture
def bare(ground: Ground) -> Ground:
    """Where neither LiteLLM nor MLX is installed, which takes less time."""
    hidden = ground.home.parent / "hidden"
    hidden.mkdir()
    (hidden / "sitecustomize.py").write_text(HIDDEN)
    ground.environ["PYTHONPATH"] += f":{hidden}"
    return ground


@pytest.mark.timeout(240)
def test_two_at_once_tell_the_outage_without_a_terminal_and_without_a_network(ground: Ground) -> None:
    out, _ = ground.assert_two_at_once(alone(OUTAGE), OUTAGE, GOOD)
    story = flat(out)
    for part in (
        "through the gateway: the first in order; before it, free: it answered with an error: HTTP 429",
        "directly: direct, with a backup key; before it, paid: the gateway broke off: its process has gone",
        "The gateway was started again meanwhile, and is well.",
        "s; none of the channels answers; the cloud is ",
        "free demo: env:DEMO_FREE is limited until",
        "t11 waits for the cloud (No channel can be reached: none of the channels answers)",
        "The call went to brainstem (default_model) directly",
        "6 calls were cut before they were answered.",
        "what they had reserved, $0.24, stays counted against the lid",
    ):
        assert part in story, out
    assert max(map(len, out.splitlines())) <= 80
    assert "\x1b" not in out


def test_without_litellm_and_mlx_it_goes_on(bare: Ground) -> None:
    code, out = bare.run([*OUTAGE, "--json"])
    (line,) = out.splitlines()
    assert (code, json.loads(line)["result"]) == (
        0,
        {
            "done": 12,
            "lost": 0,
            "billed_twice": 0,
            "cut": 3,
            "spent_usd": 0.18,
            "cap_usd": 0.7,
            "agrees": True,
        },
    )
    bare.assert_untouched()


@pytest.mark.parametrize(
    ("number", "mark"),
    [
        (signal.SIGINT, b"your own"),
        (signal.SIGTERM, b"2. The free channel"),
        (signal.SIGHUP, b"--offline"),
        (signal.SIGINT, b"5. The cloud is back"),
    ],
)
def test_a_signal_ends_it_and_nothing_is_left(bare: Ground, number: int, mark: bytes) -> None:
    bare.assert_ended_by(number, OUTAGE, mark, " billed twice, spent")


def test_what_the_cloud_has_answered_twice_is_no_good_end(bare: Ground) -> None:
    code, out = bare.run([sys.executable, "-c", CHANGED % [f"answered free {ASKED}"]])
    assert (code, out.splitlines()[-1]) == (1, GOOD.replace("0 billed", "1 billed")), out
    assert "LiteLLM isn't installed here" in flat(out)
    assert "MLX isn't installed here" in flat(out)
    bare.assert_untouched()


@pytest.mark.parametrize(
    ("ledger", "completed", "count", "agrees"),
    [
        ([f"answered paid {ASKED}", f"answered free {OTHER}"], 2, (2, 0, 0), True),
        ([f"answered paid {ASKED}", f"limited free {OTHER}"], 2, (1, 1, 0), True),
        ([f"answered paid {ASKED}", f"answered free {OTHER}"], 1, (1, 1, 0), True),
        ([f"answered paid {ASKED}", f"answered free {ASKED}", f"answered free {OTHER}"], 2, (2, 0, 1), True),
        ([f"answered paid {ASKED}", f"answered paid {OTHER}"], 2, (2, 0, 0), False),
    ],
)
def test_the_count(ledger: list[str], completed: int, count: tuple[int, ...], agrees: bool) -> None:
    jobs = JOBS[:2]
    found = Count.of(ledger, [job.name for job in jobs[:completed]], jobs, TODAY)
    assert (found[:3], found.agrees) == (count, agrees)
    assert found.good == (found.lost == found.billed_twice == 0 and agrees)
    assert not Count.of(ledger, [job.name for job in jobs], jobs, {**TODAY, "limit_usd": 0.04}).good, "beyond the lid"


def test_what_the_local_model_answers_the_cloud_need_not_know() -> None:
    (local,) = [job for job in LATER if job.offline == "local"]
    today = {**TODAY, "amounts": {**TODAY["amounts"], "spent_usd": 0.0}}
    assert Count.of([f"begun paid {ASKED}"], [local.name], [local], today)[:4] == (1, 0, 0, 1)
