"""Who may sign a message, and with which keys."""

from typing import Any

import pytest

from omnid.errors import Rejected
from omnid.link.interface import Poison
from omnid.link.message import COMMANDS, Codec
from tests.contract.links import command

KEY = "a key of 16 bytes and more"


@pytest.mark.parametrize("keys", [("short",), (KEY, ("short",))])
def test_a_key_that_keeps_nobody_out_is_refused(keys: Any) -> None:
    with pytest.raises(Rejected) as caught:
        Codec("cable", "r", COMMANDS, *keys)
    assert caught.value.code == "link_refused"


def test_what_is_signed_with_an_accepted_key_is_read_and_nothing_is_signed_with_it() -> None:
    old, new = KEY, "a new key of 16 bytes"
    ends = {keys: Codec("cable", "r", COMMANDS, keys[0], keys[1:]) for keys in ((old,), (old, new), (new, old), (new,))}
    sent = {keys: end.encode("r", [command(1)])[0] for keys, end in ends.items()}
    assert sent[old, new] == sent[old,] != sent[new, old] == sent[new,]
    for keys, end in ends.items():
        read = {signed: end.read(sent[signed,])[1] for signed in (old, new)}
        assert {signed for signed, one in read.items() if one == command(1)} == set(keys)
        assert isinstance(end.read(sent[old,].replace(b'"mac":"', b'"mac":"f'))[1], Poison)
