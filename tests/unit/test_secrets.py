"""References to secrets: how they are resolved, and how secrets in plain text are told."""

import os
import shlex
import sys
from pathlib import Path

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omnid import secrets
from omnid.errors import Rejected
from omnid.secrets import Secrets


def command(code: str) -> str:
    return f"exec:{shlex.join([sys.executable, '-S', '-c', code])}"


async def test_each_kind_of_reference_is_resolved(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("from-a-file\n")
    keeper = Secrets({"MY_KEY": "from-the-environment"})
    assert await keeper.resolve("env:MY_KEY") == "from-the-environment"
    assert await keeper.resolve(f"file:{tmp_path}/key") == "from-a-file"
    assert await keeper.resolve(command("print('from a command')")) == "from a command"


async def test_a_command_gets_no_shell() -> None:
    assert await Secrets({}).resolve("exec:echo '$HOME;' a") == "$HOME; a"


@pytest.mark.parametrize(
    ("reference", "says"),
    [
        ("env:NOT_SET", "not set"),
        ("file:/nonexistent/key", "No such file"),
        ("exec:/nonexistent/program", "No such file"),
        ("exec:", "starts with none of"),
        ("exec: ", "no command"),
        ("exec:'", "closing quotation"),
        (command("import sys; print('hush'); sys.exit(3)"), "exit code 3"),
        (command("pass"), "it is empty"),
        (command("print('hush' * 100_000)"), "more than 65536 bytes"),
        (command("import os; os.write(1, b'hush' + bytes([255]))"), "can't decode"),
        ("hush", "starts with none of"),
    ],
)
async def test_what_cannot_be_had_is_explained_without_the_secret(reference: str, says: str) -> None:
    with pytest.raises(Rejected) as raised:
        await Secrets({}).resolve(reference)
    assert raised.value.code == "secret_missing"
    assert says in raised.value.what
    assert "hush" not in raised.value.what.replace(reference, "")
    if reference == "hush":
        assert "hush" not in str(raised.value)


async def test_a_command_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secrets, "EXEC_TIMEOUT_S", 1.0)
    code = f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    with anyio.fail_after(30), pytest.raises(Rejected, match=r"no answer in 1\.0 s"):
        await Secrets({}).resolve(command(code))
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


async def test_a_fifo_without_a_writer_does_not_hold_us(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with anyio.fail_after(30), pytest.raises(Rejected, match="it is empty"):
        await Secrets({}).resolve(f"file:{tmp_path}/fifo")


async def test_what_was_handed_out_is_redacted_and_only_that() -> None:
    keeper = Secrets({"MY_KEY": "correct-horse", "SHORT": "a"})
    assert keeper.redact("correct-horse") == "correct-horse"
    await keeper.resolve("env:MY_KEY")
    await keeper.resolve("env:SHORT")
    assert keeper.redact("a correct-horse runs") == "a [env:MY_KEY] runs"


async def test_the_memory_of_secrets_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secrets, "REMEMBERED_MAX", 2)
    keeper = Secrets({f"KEY_{n}": f"secret-{n}" for n in range(3)})
    for n in range(3):
        await keeper.resolve(f"env:KEY_{n}")
    assert keeper.redact("secret-0 secret-1 secret-2") == "secret-0 [env:KEY_1] [env:KEY_2]"


@pytest.mark.parametrize("name", ["API_KEY", "apikey", "GITHUB_TOKEN", "password", "Client-Secret", "authorization"])
def test_names_of_secrets_are_known(name: str) -> None:
    assert secrets.is_key_name(name)


@pytest.mark.parametrize("name", ["key", "idempotency_key", "tokens_max", "keyboard", "path", "author"])
def test_other_names_are_not_taken_for_them(name: str) -> None:
    assert not secrets.is_key_name(name)


@pytest.mark.parametrize("value", ["sk-" + "a1" * 12, "ghp_" + "a1" * 12, "AKIA" + "A1" * 8, "a1" * 24])
def test_keys_are_known_by_their_look(value: str) -> None:
    assert secrets.looks_plain("X", value)


@pytest.mark.parametrize("value", ["", "1", "/usr/local/bin:/usr/bin", "en_GB.UTF-8", "https://example.org/a/b?c=d"])
def test_ordinary_values_are_not(value: str) -> None:
    assert not secrets.looks_plain("X", value)


@given(st.sampled_from(secrets.SCHEMES), st.text(min_size=1))
def test_a_reference_never_looks_plain(scheme: str, rest: str) -> None:
    assert secrets.is_reference(f"{scheme}:{rest}")
    assert not secrets.looks_plain("API_KEY", f"{scheme}:{rest}")
