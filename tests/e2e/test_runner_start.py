"""What a runner says that can't start: whether the command line or the config is wrong, and never a password."""

import pytest

from tests.e2e.harness import assert_says, until
from tests.e2e.runners import Host

SIGNED = '[[link]]\nname = "a"\nurl = "redis://127.0.0.1"\n'


@pytest.mark.parametrize(
    ("config", "argv", "why"),
    [
        ("", (), "runner.link = (not set) can't be used: it is the name of a [[link]] of the config (it has none)"),
        ("", ("--link", "nowhere"), "--link nowhere can't be used: the config has no [[link]] of that name"),
        ("", ("--link", "http://127.0.0.1"), "address of a broker"),
        ("", ("--link", "redis://u:hidden-word@127.0.0.1"), "have their own settings"),
        ("", ("--link", "redis://127.0.0.1?password=hidden-word"), "have their own settings"),
        ("", ("--link", "redis://127.0.0.1:hidden-word"), "it is no address"),
        ("", ("--link", "redis:/127.0.0.1/hidden-word"), "--link (hidden) can't"),
        ("", ("--link", "redis://192.0.2.1"), "set unsigned = true"),
        ("", ("--link=redis://127.0.0.1", "--name", "A b"), "at most 64"),
        ('[[link]]\nname = "a"\nurl = "rediss://192.0.2.1"', ("--link", "a"), "set unsigned = true"),
        ('[[link]]\nname = "a"\nurl = "redis://192.0.2.1"\nkey = "env:K"\npassword = "env:P"', (), "TLS only"),
        ('[[link]]\nname = "a"\nurl = "redis://127.0.0.1"\npassword = "hidden-word"', (), "plain"),
        (f'{SIGNED}key = "env:K"\naccepted_keys = ["env:A", "hidden-word"]', (), "plain"),
        (f'{SIGNED}accepted_keys = ["env:A"]', (), "without one nothing is signed"),
        (
            '[runner]\nlink = "abc"\n[[link]]\nname = "abd"\nurl = "redis://127.0.0.1"',
            (),
            "no link of that name (did you mean abd?), only abd",
        ),
        (
            '[runner]\nlink = "abc"',
            (),
            "runner.link = 'abc' can't be used: there is no link of that name, and no other",
        ),
        ('[runner]\nexecutors = ["codex"]', ("--link", "redis://127.0.0.1"), "a runner offers"),
    ],
)
def test_a_runner_that_can_not_serve_does_not_start(host: Host, config: str, argv: tuple[str, ...], why: str) -> None:
    host.configure(config)
    said = host.call(*argv)
    assert said.returncode == 1
    assert why in said.stderr
    assert "hidden-word" not in said.stderr


def test_what_the_command_line_gets_wrong_is_not_laid_at_the_config(host: Host) -> None:
    code = "option_bad_value"
    host.configure("".join(f'[[link]]\nname = "{name}"\nurl = "redis://127.0.0.1"\n' for name in ("cable", "radio")))
    for argv, parts in (
        (("--link", "kable"), ("--link kable", "did you mean cable?", "(cable, radio)", "the URL of a broker")),
        (("--link", "redis://192.0.2.1"), ("--link (hidden)", "give it a key", "(cable, radio)")),
        (("--link", "cable", "--name", "A b"), ("--name 'A b'", "a name of at most 64")),
    ):
        said = host.call(*argv)
        assert said.returncode == 1
        assert_says(code, said.stderr)
        assert "config's" not in said.stderr
        for part in parts:
            assert part in said.stderr


def test_words_that_mean_nothing_are_answered_with_the_usage(host: Host) -> None:
    for argv in (("--nonsense",), ("--link",), ("--link", ""), ("--name=",), ("--health=1",)):
        said = host.call(*argv)
        assert said.returncode == 2
        assert "usage: omnid runner" in said.stderr


@pytest.mark.parametrize("scheme", ["redis", "amqp"])
def test_a_broker_that_is_away_is_told_in_the_log_once_and_nowhere_else(host: Host, scheme: str) -> None:
    link = f'[[link]]\nname = "cable"\nurl = "{scheme}://127.0.0.1:9"\nretry_base_s = 0.05\nretry_max_s = 0.05\n'
    host.configure(f'[runner]\nlink = "cable"\nname = "r"\n{link}')
    host.run()
    until(lambda: host.logged("link_down"), host.how_it_is)
    assert host.end() == 0
    assert len(host.logged("link_down")) == 1
    assert host.said.read_text() == ""
