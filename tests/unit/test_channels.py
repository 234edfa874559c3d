"""Channels made whole by their profiles, what is wrong with them, and what a call can cost."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omnid import channels, config
from omnid.settings import Channel, ChannelModel

PRICED = ChannelModel(name="m", input_usd=3.0, output_usd=15.0)


def problems_of(tmp_path: Path, text: str) -> list[str]:
    path = tmp_path / "omnid.toml"
    path.write_text(text)
    return [str(problem) for problem in config.check({"HOME": "/home/u"}, str(path))]


@pytest.mark.parametrize(
    "lines",
    [
        "name = 'cliproxyapi'\nkey = 'env:K'\nmodels = ['gemini-2.5-pro']\nopt_in = true",
        "name = 'openrouter'\nkey = 'env:K'\nmodels = ['openai/gpt-5-mini']",
        "name = 'anthropic'\nkey = 'env:K'",
        "name = 'openai'\nkey = 'env:K'\nmodels = ['gpt-5-mini']",
        "name = 'lab'\nbase_url = 'http://127.0.0.1:9/v1'\nmodels = ['m']",
        "name = 'ollama'\nmodels = ['qwen3:8b']",
        "name = 'llamacpp'",
    ],
)
def test_three_lines_make_a_channel(tmp_path: Path, lines: str) -> None:
    assert problems_of(tmp_path, f"[[channel]]\n{lines}") == []
    (channel,) = config.load({"HOME": "/home/u"}, str(tmp_path / "omnid.toml")).config.channel
    assert channel.base_url.startswith("http")
    assert channel.profile == (channel.name if channel.name != "lab" else "compatible")
    assert None not in (channel.wire, channel.free, channel.local, channel.relay, channel.expected_latency_s)
    assert channel.relay is (channel.name == "cliproxyapi")
    assert all(isinstance(model, ChannelModel) for model in channel.models)
    assert channels.whole(channel) == channel


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("name = 'openrouter'\nmodels = ['m']", "channel.openrouter.key"),
        ("name = 'openrouter'\nkey = 'sk-or-0123456789abcdef0123'\nmodels = ['m']", "plain text"),
        ("name = 'openrouter'\nkey = 'env:K'\nbackup_keys = ['oops']\nmodels = ['m']", "plain text"),
        ("name = 'openrouter'\nkey = 'env:K'", "the cheapest first"),
        ("name = 'openrouter'\nkey = 'env:K'\nmodels = ['m', 'm']", "two of them are called m"),
        ("name = 'cliproxyapi'\nkey = 'env:K'\nmodels = ['m']", "their providers may forbid"),
        ("name = 'lab'\nmodels = ['m']", "channel.lab.base_url"),
        ("name = 'lab'\nkey = 'env:K'\nbase_url = 'http://example.org'\nmodels = ['m']", "https only"),
        ("name = 'lab'\nbase_url = 'https://u:p@example.org'\nmodels = ['m']", "holds no password"),
        ("name = 'lab'\nbase_url = 'http://[::1'\nmodels = ['m']", "channel.lab.base_url"),
        ("name = 'lab'\nprofile = 'opnrouter'\nkey = 'env:K'\nmodels = ['m']", "it is one of anthropic"),
        ("name = 'ollama'\nmodels = [{ name = 'm', price = 1 }]", "channel.ollama.models"),
        ("name = 'brainstem'\nbase_url = 'http://127.0.0.1:9/v1'\nmodels = ['m']", "is the local model's"),
    ],
)
def test_what_is_wrong_is_named_and_no_key_is_shown(tmp_path: Path, lines: str, said: str) -> None:
    problems = problems_of(tmp_path, f"[[channel]]\n{lines}")
    assert any(said in problem for problem in problems), problems
    assert not any("sk-or" in problem or "u:p" in problem for problem in problems)


def test_the_models_of_a_free_channel_cost_nothing_unless_they_say_so() -> None:
    channel = channels.whole(Channel(name="ollama", models=("a", PRICED)))
    assert [channels.cost_microusd(model, 10, 10) for model in channels.models_of(channel)] == [0, 180]


def test_relays_show_the_cloud_only_where_nothing_else_does() -> None:
    proxy = channels.whole(Channel(name="cliproxyapi", key="env:K", models=("m",), opt_in=True))
    lab = channels.whole(Channel(name="lab", base_url="http://127.0.0.1:9/v1", models=("m",), relay=True))
    router = channels.whole(Channel(name="openrouter", key="env:K", models=("m",)))
    local = channels.whole(Channel(name="ollama", models=("m",)))
    assert channels.signs_of_cloud((proxy, lab, local, router)) == [router]
    assert channels.signs_of_cloud((proxy, lab, local)) == [proxy, lab]
    assert channels.signs_of_cloud((local,)) == []


def test_an_unknown_price_is_no_price_of_nothing() -> None:
    assert channels.most_microusd(ChannelModel(name="m"), "hello", 10) is None
    assert channels.cost_microusd(ChannelModel(name="m", input_usd=1.0), 1, 1) is None


def test_the_keys_come_once_each_and_in_order() -> None:
    assert channels.keys_of(Channel(name="c", key="env:A", backup_keys=("env:B", "env:A"))) == ("env:A", "env:B")
    assert channels.keys_of(Channel(name="c")) == ("",)


@given(st.text(), st.integers(1, 100_000), st.floats(0, 1000), st.floats(0, 1000))
def test_no_call_costs_more_than_the_most(text: str, output: int, input_usd: float, output_usd: float) -> None:
    model = ChannelModel(name="m", input_usd=input_usd, output_usd=output_usd)
    most = channels.most_microusd(model, text, output)
    used = channels.cost_microusd(model, len(text.encode(errors="surrogatepass")), output)
    assert most is not None
    assert used is not None
    assert 0 <= used <= most
    assert channels.about_tokens(text) <= channels.most_tokens(text)


@pytest.mark.parametrize(
    ("name", "listed"),
    [
        ("gpt-5", {"gpt-5"}),
        ("claude-haiku-4-5", {"claude-haiku-4-5-20251001"}),
        ("gpt-5", {"gpt-5-2026-01-31"}),
        ("claude-haiku-latest", {"claude-haiku-20251001"}),
        ("qwen3", {"qwen3:latest"}),
        ("openai/gpt-5:online", {"openai/gpt-5"}),
        ("gemini-2.5-pro", {"models/gemini-2.5-pro"}),
        ("openai/gpt-5", {"openai/*"}),
    ],
)
def test_a_model_is_known_by_the_names_that_providers_take_for_it(name: str, listed: set[str]) -> None:
    made = channels.whole(Channel(name="lab", base_url="http://127.0.0.1:9/v1", models=(name,)))
    assert list(channels.absent(made, listed)) == []


def test_an_absent_model_is_named_with_the_nearest_that_is_there() -> None:
    models = (
        "gpt-5-mini",
        "gpt5",
        "zzz",
        "qwen3:8b",
        ChannelModel(name="mine", id="theirs"),
        ChannelModel(name="theirs"),
    )
    made = channels.whole(Channel(name="lab", base_url="http://127.0.0.1:9/v1", models=models))
    assert list(channels.absent(made, {"gpt-5", "gpt-5-nano", "theirs", "qwen3:latest"})) == [
        ("gpt-5-mini", "gpt-5-nano"),
        ("gpt5", "gpt-5"),
        ("zzz", ""),
        ("qwen3:8b", "qwen3:latest"),
    ]
    # It serves what it was started with, whatever a call names.
    assert list(channels.absent(channels.whole(Channel(name="llamacpp")), {"qwen.gguf"})) == []
