"""The demos of links as people run them: a broker, a daemon and a runner, and nothing of them afterwards."""

import json
import os
import signal
import sys

import pytest

from omnid.ctl.demo_links import SCENARIOS
from tests.e2e.ground import DEMO, Ground

GOOD = "16 submitted, 16 done, 0 lost, 0 done twice, 0 out of order"
TOLD = {
    "online": "c1, c2, c14, c15, c16, c3, c4",
    "client-away": "it is the task of then",
    "broker-away": "Redis is back, and then frozen",
    "offline": "The daemon first.",
}
CHANGED = """
import sys
from omnid.ctl import demo_links
from omnid.ctl.main import main
of = demo_links.LinkPlace.ledger
demo_links.LinkPlace.ledger = lambda place, name: [*of(place, name), *(["c3"] if name == "done" else [])]
sys.exit(main(["demo", "--scenario", "online"]))
"""


def argv(scenario: str, *more: str) -> list[str]:
    return [*DEMO, "--scenario", scenario, *more]


def flat(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_it_loses_nothing_through_redis(ground: Ground, scenario: str) -> None:
    code, out = ground.run(argv(scenario))
    assert (code, out.splitlines()[-1]) == (0, GOOD), out
    assert TOLD[scenario] in flat(out)
    assert max(map(len, out.splitlines())) <= 80
    ground.assert_untouched()


@pytest.mark.parametrize("scenario", ["client-away", "offline"])
def test_it_loses_nothing_through_rabbitmq(ground: Ground, scenario: str) -> None:
    code, out = ground.run(argv(scenario, "--link", "rabbitmq", "--json"))
    (line,) = out.splitlines()
    assert (code, json.loads(line)["result"]) == (
        0,
        {"submitted": 16, "done": 16, "lost": 0, "twice": 0, "disordered": 0},
    )
    ground.assert_untouched()


@pytest.mark.parametrize(
    ("number", "mark"),
    [(signal.SIGINT, b"2. Redis is killed"), (signal.SIGTERM, b"SIGSTOP")],
)
def test_a_signal_ends_it_and_nothing_is_left(ground: Ground, number: int, mark: bytes) -> None:
    ground.assert_ended_by(number, argv("broker-away"), mark, GOOD)


def test_what_is_done_twice_is_no_good_end(ground: Ground) -> None:
    code, out = ground.run([sys.executable, "-c", CHANGED])
    assert (code, out.splitlines()[-1]) == (1, GOOD.replace("0 done twice", "1 done twice")), out
    ground.assert_untouched()


@pytest.mark.parametrize(("link", "name"), [("redis", "Redis"), ("rabbitmq", "RabbitMQ")])
def test_without_a_broker_it_says_what_is_missing(ground: Ground, link: str, name: str) -> None:
    hidden = ground.home.parent / "hidden"
    hidden.mkdir()
    (hidden / "sitecustomize.py").write_text(
        "from omnid.ctl.demo_broker import BROKERS\nfor kind in BROKERS.values():\n    kind._program = lambda: None\n"
    )
    ground.environ["PYTHONPATH"] += f"{os.pathsep}{hidden}"
    code, out = ground.run(argv("online", "--link", link))
    assert code == 1
    assert f"{name} isn't installed here: apt install {link}-server" in flat(out)
    ground.assert_untouched()


def test_without_its_client_it_says_how_to_get_it(ground: Ground) -> None:
    hidden = ground.home.parent / "hidden"
    hidden.mkdir()
    (hidden / "sitecustomize.py").write_text(
        "import importlib.util\nof = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, package=None: None if name == 'redis' else of(name, package)\n"
    )
    ground.environ["PYTHONPATH"] += f"{os.pathsep}{hidden}"
    code, out = ground.run(argv("online", "--json"))
    assert (code, json.loads(out)["error"]["code"]) == (1, "demo_needs"), out
    assert "pip install 'omnid[redis]'" in out
    ground.assert_untouched()


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--scenario", "online", "--link", "kafka"), "--link is one of redis, rabbitmq, not 'kafka'"),
        (("--scenario", "night", "--link", "redis"), "--link goes with --scenario online"),
    ],
)
def test_a_link_that_means_nothing_is_misuse(ground: Ground, words: tuple[str, ...], why: str) -> None:
    code, out = ground.run([*DEMO, *words])
    assert (code, why in flat(out)) == (2, True), out
    ground.assert_untouched()
