"""What clients see of runners on other hosts."""

from omnid.api.shapes import Empty
from omnid.api.shapes_runners import RunnerList, RunnerView
from omnid.flow.caller import Caller
from omnid.flow.context import Context
from omnid.flow.fleet import Peer


class RunnerViews:
    """Shows how runners are."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def all(self) -> list[RunnerView]:
        """Gives the runners, by name."""
        return [self._one(peer) for _, peer in sorted(self._context.fleet.peers.items())]

    async def list(self, _caller: Caller, _params: Empty) -> RunnerList:
        """Gives the runners on other hosts, and how they are."""
        context = self._context
        return RunnerList(self.all(), context.end_name, context.clock.wall_ms())

    def _one(self, peer: Peer) -> RunnerView:
        said = peer.heartbeat
        return RunnerView(
            name=peer.name,
            link=peer.link,
            state=self._context.fleet.state(peer),
            since_ms=peer.lost_at_ms,
            version=said and said.version,
            slots=said and said.slots,
            running=said and said.running,
            load=said and said.load,
            executors={} if said is None else said.executors,
            labels=sorted(peer.labels),
            heard_at_ms=peer.heard_at_ms,
            attempts=len(peer.open),
        )
