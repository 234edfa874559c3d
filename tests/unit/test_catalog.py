"""The choice of channel, key and model, with its reasons."""

from collections.abc import Mapping

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omnid.channels import whole
from omnid.route import catalog
from omnid.route.catalog import ChannelFacts, Choice, Facts, KeyFacts, Prompt
from omnid.settings import Channel, ChannelModel, Models

NOW_MS = 1_800_000_000_000
FREE = whole(Channel(name="cliproxyapi", key="env:P1", opt_in=True, models=("free-a", "free-b")))
PAID = whole(
    Channel(
        name="openrouter",
        key="env:P2",
        backup_keys=("env:P2B",),
        models=(
            ChannelModel(name="small", input_usd=1.0, output_usd=2.0, context_tokens=100_000),
            ChannelModel(name="big", aliases=("hero",), input_usd=10.0, output_usd=20.0, output_tokens_max=100),
        ),
    )
)
LOCAL = whole(Channel(name="ollama", models=("qwen",)))
ALL = (FREE, PAID)


def choose(
    prompt: Prompt | None = None,
    channels: tuple[Channel, ...] = ALL,
    keys: Mapping[tuple[str, str], KeyFacts] | None = None,
    way: catalog.Way = "gateway",
) -> Choice:
    return catalog.choose(channels, Models(), prompt or Prompt("hi"), Facts(NOW_MS, way, keys or {}))


def order(choice: Choice) -> list[str]:
    return [f"{candidate.channel} {candidate.key} {candidate.model.name}" for candidate in choice.candidates]


def test_the_order_of_the_config_is_the_order_of_preference() -> None:
    choice = choose()
    assert order(choice) == ["cliproxyapi env:P1 free-a", "openrouter env:P2 small", "openrouter env:P2B small"]
    assert [candidate.reason for candidate in choice.candidates] == [
        "the first in order",
        "next in order",
        "a backup key",
    ]
    assert (choice.turned_down, choice.wake_at_ms, choice.hard) == ((), None, None)
    assert choice.candidates[0].most_microusd == 0
    assert choice.candidates[1].most_microusd == (2 + 64) * 1 + 4096 * 2


@pytest.mark.parametrize(
    ("prompt", "why"),
    [
        (Prompt("hi", labels=("hard",)), "label hard"),
        (Prompt("word " * 8000), "tokens, more than 8000"),
        (Prompt("hi", kind="programming"), "kind programming"),
    ],
)
def test_a_hard_prompt_goes_past_the_free_channel_to_the_strong_model(prompt: Prompt, why: str) -> None:
    choice = choose(prompt)
    assert why in (choice.hard or "")
    assert order(choice) == ["openrouter env:P2 big", "openrouter env:P2B big", "cliproxyapi env:P1 free-b"]
    assert "so before cliproxyapi" in choice.candidates[0].reason
    assert "though the prompt is hard" in choice.candidates[-1].reason


def test_programming_with_an_executor_is_not_hard() -> None:
    assert choose(Prompt("hi", kind="programming", has_executor=True)).hard is None


def test_a_channel_slower_than_expected_goes_behind() -> None:
    slow = {"cliproxyapi": ChannelFacts(latencies_s=(2.5, 2.5, 0.1))}
    choice = catalog.choose(ALL, Models(), Prompt("hi"), Facts(NOW_MS, channels=slow))
    assert [candidate.channel for candidate in choice.candidates] == ["openrouter", "openrouter", "cliproxyapi"]
    assert choice.candidates[0].reason == "cliproxyapi is slow"
    assert choice.candidates[-1].reason == "slower than 2 s at the median"


def test_two_calls_are_too_few_for_a_median() -> None:
    facts = ChannelFacts().took(9.0).took(9.0)
    assert facts.p50_s() is None
    assert facts.took(9.0).p50_s() == 9.0


def test_a_limited_key_gives_way_to_the_next_and_all_limited_give_the_first_time() -> None:
    keys = {("openrouter", "env:P2"): KeyFacts(closed_until_ms=NOW_MS + 5000)}
    choice = choose(channels=(PAID,), keys=keys)
    assert order(choice) == ["openrouter env:P2B small"]
    assert choice.candidates[0].reason == "a backup key"
    assert [(down.key, down.until_ms) for down in choice.turned_down] == [("env:P2", NOW_MS + 5000)]
    keys[("openrouter", "env:P2B")] = KeyFacts(closed_until_ms=NOW_MS + 3000)
    choice = choose(channels=(PAID,), keys=keys)
    assert (choice.candidates, choice.wake_at_ms) == ((), NOW_MS + 3000)


def test_a_limit_that_has_passed_is_none() -> None:
    assert len(choose(channels=(PAID,), keys={("openrouter", "env:P2"): KeyFacts(NOW_MS)}).candidates) == 2


def test_a_refused_key_gives_no_time() -> None:
    choice = choose(channels=(FREE,), keys={("cliproxyapi", "env:P1"): KeyFacts(refused="HTTP 401")})
    assert (choice.candidates, choice.wake_at_ms) == ((), None)
    assert choice.turned_down[0].reason == "its key is refused: HTTP 401"


def test_past_the_gateway_the_backup_key_comes_first() -> None:
    choice = choose(way="direct")
    assert order(choice) == ["cliproxyapi env:P1 free-a", "openrouter env:P2B small", "openrouter env:P2 small"]
    assert choice.candidates[0].reason == "direct, with the primary key, as there is no backup key"
    assert choice.candidates[1].reason == "direct, with a backup key"


def test_an_open_breaker_and_a_full_channel_are_turned_down() -> None:
    closed = {"cliproxyapi": ChannelFacts(closed_until_ms=NOW_MS + 1, why_closed="overloaded")}
    choice = catalog.choose((FREE,), Models(), Prompt("hi"), Facts(NOW_MS, channels=closed))
    assert (choice.wake_at_ms, choice.turned_down[0].reason) == (NOW_MS + 1, "overloaded")
    narrow = msgspec.structs.replace(FREE, concurrency=1)
    busy = {"cliproxyapi": ChannelFacts(running=1)}
    choice = catalog.choose((narrow,), Models(), Prompt("hi"), Facts(NOW_MS, channels=busy))
    assert choice.candidates == ()
    assert "at once" in choice.turned_down[0].reason


def test_the_rate_that_a_channel_declares_is_kept() -> None:
    narrow = msgspec.structs.replace(FREE, requests_per_minute_max=2)
    times = (NOW_MS - 70_000, NOW_MS - 50_000, NOW_MS - 10_000)
    choice = choose(channels=(narrow,), keys={("cliproxyapi", "env:P1"): KeyFacts(calls_at_ms=times)})
    assert choice.wake_at_ms == NOW_MS + 10_000
    choice = choose(channels=(narrow,), keys={("cliproxyapi", "env:P1"): KeyFacts(calls_at_ms=times[:2])})
    assert len(choice.candidates) == 1


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("cheap", ["cliproxyapi free-a", "openrouter small", "ollama qwen"]),
        ("strong", ["cliproxyapi free-b", "openrouter big", "ollama qwen"]),
        ("local", ["ollama qwen"]),
        ("hero", ["openrouter big"]),
        ("qwen", ["ollama qwen"]),
        ("none-such", []),
    ],
)
def test_a_model_is_asked_for_by_alias_or_name(wanted: str, found: list[str]) -> None:
    choice = choose(Prompt("hi", model=wanted), channels=(*ALL, LOCAL))
    names = dict.fromkeys(f"{candidate.channel} {candidate.model.name}" for candidate in choice.candidates)
    assert list(names) == found
    assert len({down.channel for down in choice.turned_down}) == 3 - len(found)


def test_an_alias_of_ones_own_comes_before_its_meaning() -> None:
    channel = whole(Channel(name="ollama", models=("a", ChannelModel(name="b", aliases=("cheap",)))))
    found = catalog.resolve(channel, "cheap")
    assert found is not None
    assert found.name == "b"
    assert catalog.known_names([channel]) == ["cheap", "strong", "local", "a", "b"]


def test_what_does_not_fit_the_context_is_turned_down_and_the_output_has_the_models_limit() -> None:
    choice = choose(Prompt("x" * 300_000, model="small"), channels=(PAID,))
    assert choice.candidates == ()
    assert "don't fit in 100000" in choice.turned_down[0].reason
    assert choose(Prompt("hi", model="big"), channels=(PAID,)).candidates[0].output_tokens_max == 100


@given(
    st.dictionaries(
        st.sampled_from([("cliproxyapi", "env:P1"), ("openrouter", "env:P2"), ("openrouter", "env:P2B")]),
        st.builds(KeyFacts, closed_until_ms=st.none() | st.integers(NOW_MS - 10, NOW_MS + 10)),
    ),
    st.sampled_from(("gateway", "direct")),
)
def test_every_key_is_a_candidate_or_turned_down_and_a_time_is_given_only_where_all_wait(
    keys: dict[tuple[str, str], KeyFacts], way: catalog.Way
) -> None:
    choice = choose(keys=keys, way=way)
    chosen = {(candidate.channel, candidate.key) for candidate in choice.candidates}
    down = {(reason.channel, reason.key) for reason in choice.turned_down}
    assert not chosen & down
    assert len(chosen | down) == 3
    assert (choice.wake_at_ms is None) == bool(chosen)
    assert all(reason.until_ms is None or reason.until_ms > NOW_MS for reason in choice.turned_down)


def test_a_channel_that_can_not_be_reached_goes_behind_until_its_time() -> None:
    away = {"cliproxyapi": ChannelFacts(away_until_ms=NOW_MS + 1)}
    choice = catalog.choose(ALL, Models(), Prompt("hi"), Facts(NOW_MS, channels=away))
    assert [candidate.channel for candidate in choice.candidates] == ["openrouter", "openrouter", "cliproxyapi"]
    assert choice.candidates[0].reason == "cliproxyapi can't be reached"
    assert choice.candidates[-1].reason == "it could not be reached lately"
    again = catalog.choose(ALL, Models(), Prompt("hi"), Facts(NOW_MS + 1, channels=away))
    assert again.candidates[0].channel == "cliproxyapi"
    assert [
        one.channel for one in catalog.choose((FREE,), Models(), Prompt("hi"), Facts(NOW_MS, channels=away)).candidates
    ]
