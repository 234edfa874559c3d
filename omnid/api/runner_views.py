"""What clients see of runners on other hosts."""

from collections.abc import Sequence

from omnid.api.shapes import Empty, Finding
from omnid.api.shapes_runners import RunnerList, RunnerView
from omnid.flow.caller import Caller
from omnid.flow.context import Context
from omnid.flow.fleet import Peer, State


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

    def findings(self) -> Sequence[Finding]:
        """Gives how the runners are, as findings of `doctor`; of those whose link is down the link's finding tells."""
        fleet = self._context.fleet
        states: list[tuple[str, Peer, State]] = [
            (name, fleet.peers[name], fleet.state(fleet.peers[name])) for name in sorted(fleet.peers)
        ]
        return [_finding(name, peer, state) for name, peer, state in states if state != "link_down"]

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


def _finding(name: str, peer: Peer, state: State) -> Finding:
    if state == "lost":
        detail = f"nothing was heard of it for {peer.lease_s:g} s or longer; {len(peer.open)} attempts are on it"
        do = f"Start it (omnid runner --link {peer.link or 'LINK'} --name {name}), or take its [[remote]] out."
        return Finding(f"runner {name}", ok=False, detail=detail, do=do)
    said: dict[State, str] = {"up": "it is up", "leaving": "it is leaving", "expected": "it has not been heard yet"}
    return Finding(f"runner {name}", ok=True, detail=said[state])
