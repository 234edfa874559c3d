"""The operations called by name, with a host of a few lines around them."""

from typing import Any

import pytest

from omnid.api.methods import METHODS, Api
from omnid.errors import OmnidError
from omnid.flow.caller import Caller
from omnid.flow.control import Cancelling
from tests.fakes.world import PERSON, World
from tests.unit.test_handler import Host


class Calls:
    """The operations, called by name."""

    def __init__(self, world: World) -> None:
        self.host = Host()
        self.world = world
        self.api = Api(world.context, world.gates, Cancelling(world.context), self.host)

    async def __call__(self, _name: str, _caller: Caller = PERSON, **params: Any) -> Any:
        return await self.api.call(_caller, _name, METHODS[_name].params(**params))


async def code(awaited: Any) -> str:
    with pytest.raises(OmnidError) as caught:
        await awaited
    return caught.value.code
