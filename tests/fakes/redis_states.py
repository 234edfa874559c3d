"""What Redis says that passes by itself, each by a real server that is brought there, and out of it again."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.fakes.brokers import Redis, free_port, until


class State:
    """A server that can get into a state, and out of it."""

    code: str

    @staticmethod
    def settings() -> tuple[str, ...]:
        """Gives what it is started with."""
        return ()

    def __init__(self, broker: Redis) -> None:
        self.broker = broker

    def ready(self) -> None:
        """Does what the server needs before it serves."""

    def enter(self) -> None:
        raise NotImplementedError

    def leave(self) -> None:
        raise NotImplementedError


class Snapshot(State):
    """Its snapshot can't be written."""

    code = "MISCONF"

    @staticmethod
    def settings() -> tuple[str, ...]:
        return ("--save", "3600 1")

    def enter(self) -> None:
        (self.broker.directory / "dump.rdb").mkdir()
        self._save("err")

    def leave(self) -> None:
        (self.broker.directory / "dump.rdb").rmdir()
        self._save("ok")

    def _save(self, status: str) -> None:
        with self.broker.client() as client:
            client.bgsave()
            until(lambda: client.info("persistence")["rdb_last_bgsave_status"] == status)


class Replica(State):
    """It has become the replica of another."""

    code = "READONLY"

    def enter(self) -> None:
        with self.broker.client() as client:
            client.replicaof("127.0.0.1", free_port())

    def leave(self) -> None:
        with self.broker.client() as client:
            client.replicaof("NO", "ONE")


class Cluster(State):
    """It is a cluster in which nobody has a slot."""

    code = "CLUSTERDOWN"

    @staticmethod
    def settings() -> tuple[str, ...]:
        return ("--cluster-enabled", "yes", "--cluster-node-timeout", "500", "--cluster-port", str(free_port()))

    def ready(self) -> None:
        self.leave()

    def enter(self) -> None:
        self._slots("DELSLOTSRANGE", "fail")

    def leave(self) -> None:
        self._slots("ADDSLOTSRANGE", "ok")

    def _slots(self, command: str, state: str) -> None:
        with self.broker.client() as client:
            client.execute_command("CLUSTER", command, 0, 16_383)
            until(lambda: client.cluster("INFO")["cluster_state"] == state)


class Loading(State):
    """It reads what it has kept."""

    code = "LOADING"

    def enter(self) -> None:
        with self.broker.client() as client, client.pipeline(transaction=False) as pipeline:
            for number in range(100 * 1024):  # It answers after each 1,024.
                pipeline.set(f"other:{number}", "x")
            pipeline.execute()
        self.broker.kill()
        self.broker.settings = ("--key-load-delay", "20")
        self.broker._spawn()

    def leave(self) -> None:
        with self.broker.client() as client:
            client.config_set("key-load-delay", 0)


STATES: tuple[type[State], ...] = (Snapshot, Replica, Cluster, Loading)


@contextmanager
def running(directory: Path, settings: tuple[str, ...] = (), through: tuple[str, ...] = ()) -> Iterator[Redis]:
    """A server of the test's own."""
    broker = Redis(directory)
    broker.settings, broker.through = settings, through
    try:
        broker.start()
        yield broker
    finally:
        broker.close()


@contextmanager
def stateful(kind: type[State], directory: Path) -> Iterator[State]:
    """A server that can get into this state, and serves."""
    with running(directory, kind.settings()) as broker:
        state = kind(broker)
        state.ready()
        yield state
