"""Which runner gets a task, how runners are by their heartbeats, and when they count as lost."""

from typing import Any

import msgspec
import pytest

from omnid.flow.fleet import Fleet
from omnid.model import Gate, Heartbeat, Problem
from omnid.route.runners import UNHEARD, Seat, Seats
from omnid.settings_links import Remote
from tests.fakes.clock import FakeClock

DOWN = Problem("link_down", "The link cable is down: x.", "", "")


def remote(name: str, *executors: str, **fields: Any) -> Remote:
    return Remote(name=name, link="cable", executors=executors or ("command",), **fields)


def beat(slots: int = 2, **fields: Any) -> Heartbeat:
    executors = fields.pop("executors", {"command": slots})
    return Heartbeat("1", fields.pop("incarnation", 1), slots, 0, fields.pop("load", 0.0), executors, **fields)


@pytest.fixture
def fleet(clock: FakeClock) -> Fleet:
    made = Fleet(clock)
    made.configure([remote("a"), remote("b")])
    made.link_up("cable")
    return made


def test_the_runner_that_is_filled_least_gets_the_next_and_then_the_one_with_less_load() -> None:
    seats = Seats(
        [
            Seat("busy", frozenset(), 4, 2, {"command": 4}, 0.1),
            Seat("idle", frozenset(), 4, 4, {"command": 4}, 0.9),
            Seat("spare", frozenset(), 8, 4, {"command": 1}, 0.0),
        ]
    )
    assert seats.rooms() == {"command": 2 + 4 + 1}
    assert [seats.take("command", ()) for _ in range(8)] == [
        "idle",
        "idle",
        "spare",
        "busy",
        "idle",
        "busy",
        "idle",
        None,
    ]


def test_a_label_that_some_runner_has_must_be_the_runners() -> None:
    seats = Seats(
        [
            Seat("plain", frozenset(), 8, 8, {"command": 8}),
            Seat("gpu", frozenset({"gpu", "repo:x"}), 8, 2, {"command": 8}),
        ],
        frozenset({"gpu", "repo:x", "repo:y"}),
    )
    assert seats.take("command", ("nightly", "gpu")) == "gpu"
    assert seats.take("command", ("repo:y",)) is None
    assert not seats.could("command", ("gpu", "repo:y"))
    assert seats.take("command", ("nightly",)) == "plain"
    assert seats.take("command", ("gpu", "repo:x")) == "gpu"
    assert seats.take("command", ("gpu",)) is None
    assert seats.take("other", ()) is None


def test_a_label_that_nobody_is_known_to_have_waits_for_those_who_have_not_been_heard_yet(fleet: Fleet) -> None:
    fleet.configure([remote("a"), remote("b", labels=("mac",)), remote("c", "other")])
    fleet.hear("a", beat(4))
    assert fleet.seats().take("command", ("gpu",)) is None
    assert fleet.waits("command", ("gpu",)) == "b has not been heard yet"
    assert fleet.seats().take("command", ()) == "a"
    fleet.hear("b", beat(labels=("gpu",)))
    assert fleet.seats().take("command", ("gpu", "nightly")) == "b"


def test_a_label_waits_for_nobody_whose_lease_is_over(fleet: Fleet) -> None:
    fleet.hear("a", beat(4))
    assert fleet.seats().lacks("command") == {frozenset({UNHEARD})}
    fleet.lose(fleet.peers["b"])
    assert fleet.seats().take("command", ("nightly",)) == "a"
    assert fleet.seats().lacks("command") == {frozenset[str]()}


def test_a_label_waits_no_longer_than_a_lease_for_who_is_behind_a_link_that_is_down(
    fleet: Fleet, clock: FakeClock
) -> None:
    fleet.configure([remote("a"), msgspec.structs.replace(remote("b"), link="other")])
    fleet.hear("a", beat(4))
    assert fleet.seats().take("command", ("gpu",)) is None
    assert fleet.waits("command", ("gpu",)) == "the link other to b is down"
    clock.now_s += 59
    fleet.hear("a", beat(4))
    assert fleet.seats().take("command", ("gpu",)) is None
    clock.now_s += 1
    assert fleet.seats().take("command", ("gpu",)) == "a"


def test_a_window_is_twice_the_slots_and_no_more_than_the_config_says(fleet: Fleet) -> None:
    assert fleet.seats().rooms() == {}, "nobody was heard"
    assert fleet.hear("a", beat(2))
    assert fleet.seats().rooms() == {"command": 4}
    for number in range(3):
        fleet.took(f"a{number}", "a", "command")
    assert fleet.seats().rooms() == {"command": 1}
    assert fleet.seats(ended=["a1", "unknown"]).rooms() == {"command": 2}
    assert fleet.let_go("a0")
    assert not fleet.let_go("a0")
    assert fleet.seats().rooms() == {"command": 2}
    assert fleet.seats(frozenset({"command"})).rooms() == {}
    assert fleet.seats(frozenset({"*"})).rooms() == {}
    fleet.configure([remote("a", window_max=3)])
    assert fleet.seats().rooms() == {"command": 1}


def test_an_executor_takes_no_more_than_twice_what_its_runner_runs_of_it_at_once(fleet: Fleet) -> None:
    fleet.configure([remote("a", "command", "single")])
    fleet.hear("a", beat(4, executors={"command": 4, "single": 1}))
    seats = fleet.seats()
    assert [seats.take("single", ()) for _ in range(3)] == ["a", "a", None]
    assert seats.rooms() == {"command": 6}


def test_what_was_given_back_is_not_offered_again_before_the_next_heartbeat(fleet: Fleet) -> None:
    fleet.hear("a", beat())
    fleet.took("x", "a", "command")
    fleet.bounce("x")
    assert fleet.seats().rooms() == {}
    assert fleet.waits("command", ()) == "a doesn't offer it; b has not been heard yet"
    assert fleet.hear("a", beat()), "that may let something start"
    assert fleet.seats().rooms() == {"command": 3}


def test_only_news_wakes_the_dispatcher(fleet: Fleet) -> None:
    assert fleet.hear("a", beat())
    assert not fleet.hear("a", beat(load=3.0))
    assert fleet.hear("a", beat(3))
    assert fleet.hear("a", beat(3, leaving=True))
    assert fleet.seats().rooms() == {}, "it is leaving"
    assert not fleet.hear("nobody", beat())


def test_a_lease_runs_while_its_link_is_up_and_anew_when_it_comes_back(fleet: Fleet, clock: FakeClock) -> None:
    fleet.hear("a", beat())
    peer = fleet.peers["a"]
    clock.now_s += 50
    assert fleet.lease_ends_s(peer) == pytest.approx(clock.monotonic_s() + 10)
    fleet.link_down("cable")
    assert (fleet.lease_ends_s(peer), fleet.state(peer)) == (None, "link_down")
    clock.now_s += 1000
    fleet.link_up("cable")
    assert fleet.lease_ends_s(peer) == pytest.approx(clock.monotonic_s() + 60)
    assert fleet.state(peer) == "expected", "so long ago it may be gone by now"
    clock.now_s += 30
    fleet.bear_with()
    assert fleet.lease_ends_s(peer) == pytest.approx(clock.monotonic_s() + 60)
    fleet.lose(peer)
    assert (fleet.lease_ends_s(peer), fleet.state(peer)) == (None, "lost")
    fleet.alive("a")
    assert fleet.state(peer) == "lost", "only a heartbeat says what it takes"
    fleet.hear("a", beat())
    assert fleet.state(peer) == "up"


def test_a_runner_that_moves_to_a_link_that_is_up_is_asked_at_once(fleet: Fleet) -> None:
    fleet.link_up("other")
    peer = fleet.peers["a"]
    before, peer.watched_s, peer.unanswered = peer.token, 100.0, 9
    fleet.configure([msgspec.structs.replace(remote("a"), link="other"), remote("b"), remote("c")])
    assert (peer.watched_s, peer.unanswered) == (float("-inf"), 0)
    tokens = {peer.token for peer in fleet.peers.values()}
    assert len(tokens) == 3
    assert tokens.isdisjoint({before, ""})
    assert not fleet.hear("a", beat(token=before)), "it was said over the other link"


def test_heartbeats_that_lay_at_the_broker_say_nothing(fleet: Fleet, clock: FakeClock) -> None:
    peer = fleet.peers["a"]
    before = peer.token
    assert fleet.hear("a", beat(token=before))
    fleet.link_down("cable")
    clock.now_s += 100
    fleet.link_up("cable")
    assert peer.token != before
    assert not fleet.hear("a", beat(3, token=before))
    fleet.alive("a")  # A result may have lain there too.
    assert fleet.state(peer) == "expected"
    assert fleet.seats().rooms() == {}
    assert fleet.lease_ends_s(peer) == pytest.approx(clock.monotonic_s() + 60)
    assert fleet.hear("a", beat(token=peer.token))
    assert fleet.state(peer) == "up"
    clock.now_s += 50
    fleet.alive("a")
    assert fleet.lease_ends_s(peer) == pytest.approx(clock.monotonic_s() + 60)
    assert not fleet.hear("a", beat()), "an earlier version says nothing of what it answers"
    assert peer.heard_s == clock.monotonic_s()


def test_that_a_runner_leaves_counts_however_long_it_lay_at_the_broker(fleet: Fleet, clock: FakeClock) -> None:
    peer = fleet.peers["a"]
    before = peer.token
    fleet.hear("a", beat(token=before))
    fleet.link_down("cable")
    fleet.link_up("cable")
    assert fleet.state(peer) == "up", "its lease still runs"
    other = msgspec.structs.replace(beat(3, token=before, leaving=True), incarnation=7)
    assert not fleet.hear("a", other), "it was another process"
    clock.now_s += 1
    peer.watched_s = clock.monotonic_s()
    assert fleet.hear("a", beat(3, token=before, leaving=True))
    assert (fleet.state(peer), peer.heard_s, peer.watched_s) == ("leaving", 0.0, float("-inf"))
    assert not fleet.hear("a", beat(3, token=before, leaving=True))
    assert fleet.hear("a", beat(token=peer.token))
    assert fleet.state(peer) == "up"


def test_a_gate_says_what_keeps_an_executor_from_every_runner(fleet: Fleet) -> None:
    link = Gate("link:cable", "link", "cable", 1, None, DOWN)
    assert fleet.gate("command", {}) is None, "they may be heard any moment"
    for name in ("a", "b"):
        fleet.lose(fleet.peers[name])
    gate = fleet.gate("command", {})
    assert gate is not None
    assert (gate.cause, gate.subject, gate.problem and gate.problem.code) == ("executor", "command", "no_runner")
    fleet.link_down("cable")
    fleet.next_try = lambda name: 7 if name == "cable" else None
    gate = fleet.gate("command", {"cable": link})
    assert gate is not None
    assert (gate.cause, gate.wake_at_ms) == ("link", 7)
    fleet.link_up("cable")
    fleet.hear("b", beat())
    assert fleet.gate("command", {}) is None


def test_a_runner_that_leaves_the_config_stays_until_its_attempts_have_ended(fleet: Fleet, clock: FakeClock) -> None:
    fleet.hear("a", beat())
    fleet.took("x", "a", "command")
    fleet.took("y", "unknown", "command")
    fleet.configure([])
    assert sorted(fleet.peers) == ["a", "unknown"]
    assert "command" not in fleet.executors
    assert fleet.seats().rooms() == {}
    assert fleet.lease_ends_s(fleet.peers["a"]) == pytest.approx(clock.monotonic_s() + 60)
    fleet.let_go("x")
    fleet.forget_gone()
    assert sorted(fleet.peers) == ["unknown"]


def test_a_command_is_withdrawn_only_before_it_is_tried_to_be_sent(fleet: Fleet) -> None:
    for name in ("x", "y"):
        fleet.took(name, "a", "command", unsent=True)
    fleet.took("z", "a", "command")
    fleet.sends(["x"])
    for name in ("x", "y", "z"):
        fleet.withdraw(name)
    assert [fleet.is_withdrawn(name) for name in ("x", "y", "z")] == [False, True, False]


def test_what_a_living_runner_has_nothing_of_is_gone_after_a_while(fleet: Fleet, clock: FakeClock) -> None:
    peer = fleet.peers["a"]
    for name in ("x", "y", "z"):
        fleet.took(name, "a", "command")
    said = beat(2)
    for attempts, running, missing in (
        (None, 0, []),
        (("y", "z"), 1, ["x"]),
        (("x", "y"), 1, []),
        (("y",), 1, ["z", "x"]),
        ((), 0, ["z", "y", "x"]),
    ):
        fleet.hear("a", msgspec.structs.replace(said, attempts=attempts, running=running))
        assert list(peer.missing) == missing, attempts
    clock.now_s += 100
    fleet.hear("a", msgspec.structs.replace(said, attempts=("y",), running=1))
    clock.now_s += 30
    fleet.hear("a", msgspec.structs.replace(said, attempts=(), running=0))
    assert fleet.gone(peer) == ["z", "x"], "y was there in between"
    fleet.let_go("x")
    assert fleet.gone(peer) == ["z"]
    fleet.link_down("cable")
    fleet.link_up("cable")
    assert fleet.gone(peer) == []


def test_what_was_never_sent_is_not_missing(fleet: Fleet) -> None:
    for name in ("sent", "unsent", "withdrawn"):
        fleet.took(name, "a", "command", unsent=True)
    fleet.sends(["sent"])
    fleet.withdraw("withdrawn")
    fleet.hear("a", beat(2, attempts=()))
    assert list(fleet.peers["a"].missing) == ["sent"]
