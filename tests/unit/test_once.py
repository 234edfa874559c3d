"""A session's request is done once: its repeat is answered with the answer of then."""

import pytest

from omnid.errors import Rejected
from omnid.flow.caller import Caller
from omnid.flow.once import once
from omnid.model import Submitted
from omnid.store import journal
from omnid.store.interface import Tx
from tests.fakes.world import World

pytestmark = pytest.mark.anyio


ANSWER = Submitted("i", "t1", "idle", True)


class Counted:
    def __init__(self) -> None:
        self.times = 0

    def __call__(self, tx: Tx) -> Submitted:
        self.times += 1
        journal.take_number(tx, "user")
        return ANSWER


async def test_a_repeat_is_answered_and_not_done_also_after_a_start(world: World) -> None:
    fn = Counted()
    caller = Caller(session="s", request_id="1")
    for _ in range(2):
        assert await world.write(once(caller, "m", {"a": 1, "b": 2}, fn, Submitted)) == ANSWER
        assert await world.write(once(caller, "m", {"b": 2, "a": 1}, fn, Submitted)) == ANSWER
        await world.restart()
    assert fn.times == 1


@pytest.mark.parametrize(("method", "params"), [("other", {"a": 1}), ("m", {"a": 2})])
async def test_a_request_id_is_used_for_one_thing(world: World, method: str, params: object) -> None:
    fn = Counted()
    caller = Caller(session="s", request_id="1")
    await world.write(once(caller, "m", {"a": 1}, fn, Submitted))
    with pytest.raises(Rejected) as caught:
        await world.write(once(caller, method, params, fn, Submitted))
    assert caught.value.code == "busy_key"
    assert fn.times == 1


@pytest.mark.parametrize(
    "caller", [Caller(), Caller(session="s"), Caller(request_id="1")], ids=["nobody", "no id", "no session"]
)
async def test_without_a_session_nothing_is_kept(world: World, caller: Caller) -> None:
    fn = Counted()
    for _ in range(2):
        await world.write(once(caller, "m", {}, fn, Submitted))
    assert fn.times == 2
    assert await world.rows("SELECT count(*) FROM answer") == [(0,)]


async def test_other_sessions_and_requests_are_others(world: World) -> None:
    fn = Counted()
    for session, request_id in (("s", "1"), ("s", "2"), ("r", "1"), ("r", '"1"')):
        await world.write(once(Caller(session=session, request_id=request_id), "m", {}, fn, Submitted))
    assert fn.times == 4


async def test_what_failed_is_not_kept(world: World) -> None:
    def fail(tx: Tx) -> Submitted:
        raise Rejected("unknown_task", task="t1", hint="")

    caller = Caller(session="s", request_id="1")
    with pytest.raises(Rejected):
        await world.write(once(caller, "m", {}, fail, Submitted))
    assert await world.write(once(caller, "m", {}, Counted(), Submitted)) == ANSWER
