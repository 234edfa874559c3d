"""``omnictl links``: a figure stands where somebody measures it, and nowhere else."""

from tests.fakes.ctl_world import LINKS, Daemon, Ran


def test_latency_and_loss_are_those_of_the_broker_and_nobody_has_any_of_the_clients():
    lines = Ran("links", daemon=Daemon(link__list=LINKS), environ={"COLUMNS": "200"}).out.splitlines()
    figures = [line.strip() for line in lines if line.startswith("  ")]
    assert figures == [
        "2 connected",
        "latency 12.3 ms, 15 % lost, 7 waiting",
        "slow",
        "no channel of the config needs it",
    ]
