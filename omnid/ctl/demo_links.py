"""The demos of links: commands on their way to a runner, and one after the other who is away meanwhile."""

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from omnid.ctl.context import Context
from omnid.ctl.demo import Daemon, End, Place, Signals, Teller, place, toml, wait_for_supervisors
from omnid.ctl.demo_broker import BROKERS, Broker, free_port
from omnid.ctl.demo_links_count import Count, Ledgers
from omnid.ctl.demo_ways import Gone, HttpWay, SocketWay, Way
from omnid.errors import Rejected

JOBS = 16
STARTED, DONE, DOOR = "started", "done", "door"
PAGE = 5
URGENT = 5
"""The priority of those that are in a hurry."""
_STEP_S = 90.0
"""How long each step may take; the longest is a start of RabbitMQ after it was killed."""
_TIMEOUT_S = 120.0
_RUNNER, _LINK = "afar", "broker"
_BOTH = """\
[[executor]]
name = "afar"
kind = "command"
[[link]]
name = "broker"
url = "{scheme}://127.0.0.1:{port}"
user = {user}
password = "file:{root}/password"
key = "file:{root}/key"
timeout_s = 1.0
retry_base_s = 0.1
retry_max_s = 1.0
ping_every_s = 0.5
"""
_DAEMON = """\
[daemon]
name = "home"
keep_awake = false
[notify]
to = []
[agents]
allow = ["afar"]
[http]
listen = "127.0.0.1:{http_port}"
[[origin]]
name = "http"
token = "file:{root}/token"
[[remote]]
name = "afar"
link = "broker"
executors = ["afar"]
"""
_RUNNER_CONFIG = """\
[daemon]
slots_max = 1
[runner]
link = "broker"
name = "afar"
executors = ["afar"]
beat_s = 0.5
"""
SCENARIOS: Mapping[str, str] = {
    "online": "everybody is there",
    "client-away": "the clients are cut in the middle of a call and stay away",
    "broker-away": "the broker is killed, and later frozen",
    "offline": "client, broker, daemon and runner all go",
}


def run(scenario: str, context: Context, signals: Signals) -> End:
    """Tells one of them, in a place of its own; raises Rejected(`demo_needs`) where its broker isn't installed."""
    kind = BROKERS[context.given.text("link") or "redis"]
    missing = kind.missing()
    if missing is not None:
        raise Rejected("demo_needs", detail=missing)
    with place(context.world.environ, partial(LinkPlace, kind)) as made:
        return _Story(Teller(context, signals), made).tell(scenario)


class LinkPlace(Place):
    """A broker, a daemon, and a runner with one slot."""

    def __init__(self, kind: type[Broker], root: str, environ: Mapping[str, str]) -> None:
        super().__init__(root, environ)
        self.broker = kind(os.path.join(root, "broker"), self.outside)
        self.http_port, self.token = free_port(), secrets.token_hex(16)
        for name, text in (("password", self.broker.password), ("token", self.token), ("key", secrets.token_hex(32))):
            self._write(name, text)
        both = _BOTH.format(
            scheme=self.broker.scheme, port=self.broker.port, user=toml(self.broker.user), root=self.root
        )
        config = _DAEMON.format(http_port=self.http_port, root=self.root) + both
        self.daemon = Daemon(os.path.join(root, "daemon"), config, self.outside)
        self._runner: subprocess.Popen[bytes] | None = None
        self._runner_state = os.path.join(root, "runner")
        self._write("runner.toml", _RUNNER_CONFIG + both)

    def _write(self, name: str, text: str) -> None:
        with open(os.path.join(self.root, name), "w", encoding="utf-8") as file:
            file.write(text)

    def start_runner(self) -> int:
        """Starts the runner, anew where it was killed; gives its pid."""
        variables = {"OMNID_CONFIG": os.path.join(self.root, "runner.toml"), "OMNID_STATE": self._runner_state}
        self._runner = subprocess.Popen(
            [sys.executable, "-m", "omnid", "runner"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**self.outside, **variables},
            start_new_session=True,
        )
        return self._runner.pid

    def kill_runner(self) -> None:
        """Ends the runner with SIGKILL, where it runs; what it has started goes on."""
        if self._runner is not None:
            self._runner.send_signal(signal.SIGKILL)
            self._runner.wait()
            self._runner = None

    def ledger(self, name: str) -> list[str]:
        """Gives the names of the commands that have written themselves into a ledger, in that order."""
        try:
            with open(os.path.join(self.work, name), encoding="utf-8") as file:
                return file.read().splitlines()
        except FileNotFoundError:
            return []

    def open_door(self) -> None:
        """Lets the first command go on."""
        with open(os.path.join(self.work, DOOR), "w", encoding="ascii"):
            pass

    def close(self) -> None:
        """See `Place.close`: the daemon, the runner, what its supervisors still hold, and the broker."""
        try:
            self.daemon.kill()
            self.kill_runner()
            self.open_door()
            wait_for_supervisors(os.path.join(self._runner_state, "runner"))
        finally:
            self.broker.close()


class _Job(NamedTuple):
    """One command: its name, who submits it, and how urgent it is."""

    name: str
    priority: int = 0

    def submit(self, directory: str) -> dict[str, Any]:
        """Gives the parameters of its submit; the first one waits for the door."""
        wait = f"until [ -e {DOOR} ]; do sleep 0.05; done; " if self.name == "c1" else ""
        # Each line is one write to a file that is opened with O_APPEND, so no two of them mix.
        script = f"echo {self.name} >> {STARTED}; {wait}echo {self.name} >> {DONE}"
        return {
            "argv": ["sh", "-c", script],
            "cwd": directory,
            "executor": "afar",
            "key": self.name,
            "priority": self.priority,
            "timeout_s": _TIMEOUT_S,
        }


class _Agent:
    """Submits commands and reads their results."""

    def __init__(self, way: Way, directory: str) -> None:
        self.way = way
        self._directory = directory
        self.jobs: list[_Job] = []
        self.ids: dict[str, str] = {}
        """Task -> the command's name, of what was acknowledged."""
        self.read: list[str] = []
        self.batches: list[int] = []
        self._cursor: str | None = None

    def submit(self, job: _Job) -> dict[str, Any]:
        """Submits one, and gives the answer."""
        answer = self.way.submit(job.submit(self._directory))
        self.jobs.append(job)
        self.ids[answer["id"]] = job.name
        return answer

    def cut(self, job: _Job, share: float) -> None:
        """Sends a submit, or that share of it, and is gone."""
        self.way.cut(job.submit(self._directory), share)

    def read_all(self) -> bool:
        """Reads what is there; tells whether the results of all that it has submitted have come."""
        page = self.way.results(self._cursor, PAGE)
        if page.get("next") is not None:
            self._cursor = page["next"]
            read: list[str] = [task["id"] for task in page["tasks"]]
            self.read += [self.ids.get(id, id) for id in read]
            self.batches.append(len(page["tasks"]))
        return len(self.read) >= len(self.jobs)


class _Story:
    """The same beginning and end for all of them, and in between what the scenario is about."""

    def __init__(self, teller: Teller, made: LinkPlace) -> None:
        self._teller = teller
        self._place = made
        self._label = made.broker.label
        self._client = made.daemon.client
        self._agents = [
            _Agent(way, made.work)
            for way in (
                SocketWay(made.daemon.variables["OMNID_SOCKET"], "socket"),
                HttpWay(made.http_port, made.token),
            )
        ]
        self._names: dict[str, str] = {}

    def tell(self, scenario: str) -> End:
        """Goes through it."""
        try:
            self._introduce(scenario)
            {
                "online": self._online,
                "client-away": self._client_away,
                "broker-away": self._broker_away,
                "offline": self._offline,
            }[scenario]()
            count = self._count()
        finally:
            for agent in self._agents:
                agent.way.close()
        return End(count._asdict(), str(count), count.good and count.submitted == JOBS)

    def _introduce(self, scenario: str) -> None:
        made = self._place
        self._teller.say(
            f"{JOBS} commands on their way through {self._label} to a runner: {SCENARIOS[scenario]}. All of it happens "
            f"in {made.root}; your own omnid and your own {self._label}, if you have them, are not touched."
        )
        self._teller.chapter("1. Broker, daemon and runner")
        made.broker.start()
        self._teller.signals.check()
        pid = made.daemon.start()
        self._teller.signals.check()
        self._teller.say(
            f"{self._label} (pid {made.broker.pid}) syncs what it confirms. The daemon (pid {pid}) takes commands, and "
            f"the runner (pid {made.start_runner()}), which could be on another host, runs one at a time. The first "
            "thing that a command does is to write its name into a ledger, and so is the last."
        )

    def _online(self) -> None:
        self._teller.chapter("2. The commands go in")
        self._hold_the_first()
        for number in range(2, JOBS + 1):
            self._submit(number, priority=URGENT if number > JOBS - 3 else 0)
        self._teller.say(
            f"{JOBS} commands. The first is at work, and the others wait: only as many as the runner needs next are "
            "sent ahead. The last three are urgent, so they overtake what isn't sent yet."
        )
        self._why(JOBS)
        self._place.open_door()
        self._finish("3. They are done")

    def _client_away(self) -> None:
        here, there = self._agents
        self._teller.chapter("2. Two clients are cut off")
        self._hold_the_first()
        for number in range(2, 7):
            self._submit(number)
        for number in range(8, 11):
            self._submit(number, there)
        here.cut(_Job("c7"), 1.0)
        there.cut(_Job("c11"), 0.5)
        self._teller.say(
            "One over the socket, one over HTTP. Both go in the middle of a submit: the first when its request was "
            "complete, the second with a half of it. Neither knows what became of it."
        )
        self._teller.chapter("3. Work goes on without them")
        self._place.open_door()
        self._need(lambda: len(self._place.ledger(DONE)) >= 9, "what was acknowledged to be done")
        self._teller.say(f"{len(self._place.ledger(DONE))} commands were done meanwhile. Their results wait.")
        self._teller.chapter("4. They come back")
        said = [self._submit(7, here)["created"], self._submit(11, there)["created"]]
        for number in range(12, JOBS + 1):
            self._submit(number, self._agents[number % 2])
        self._teller.say(
            "Each sends its cut submit again, with the same key: "
            + " and ".join("it is a new task" if created else "it is the task of then" for created in said)
            + f". Then they submit the rest, and read their results, at most {PAGE} at once."
        )
        self._finish("5. They are done")

    def _broker_away(self) -> None:
        broker = self._place.broker
        self._teller.chapter(f"2. {self._label} is killed")
        self._hold_the_first()
        for number in range(2, 6):
            self._submit(number)
        pid = broker.pid
        broker.kill()
        took_ms = self._timed(range(6, 11))
        self._teller.say(
            f"kill -9 {pid}, with a command at work and others on their way. Five more are submitted all the same; the "
            f"answers took {took_ms:.1f} ms, when each was on the daemon's disk."
        )
        self._until_link_down(10)
        self._place.open_door()
        self._need(lambda: "c1" in self._place.ledger(DONE), "the runner to end what it had begun")
        self._teller.say("The runner has ended what it had begun, and keeps the result.")
        self._teller.chapter(f"3. {self._label} is back, and then frozen")
        broker.start()
        self._need(lambda: len(self._place.ledger(DONE)) == 10, "all of them to be done")
        self._teller.say("All that waited was sent by itself, in its order. Now SIGSTOP: connections stay, no answers.")
        broker.freeze()
        try:
            took_ms = self._timed(range(11, JOBS + 1))
            self._teller.say(f"Six more are submitted; the answers took {took_ms:.1f} ms.")
            self._until_link_down(JOBS)
        finally:
            broker.thaw()
        self._finish("4. It answers again")

    def _offline(self) -> None:
        here, made = self._agents[0], self._place
        self._teller.chapter("2. All of them go")
        self._hold_the_first()
        for number in range(2, 6):
            self._submit(number)
        here.cut(_Job("c6"), 1.0)
        made.broker.kill()
        made.daemon.kill()
        made.kill_runner()
        self._teller.say(
            f"The client is cut in the middle of a submit, and {self._label}, the daemon and the runner get a kill -9, "
            "while the first command is at work. It doesn't notice: it has a supervisor of its own."
        )
        made.open_door()
        self._need(lambda: "c1" in made.ledger(DONE), "the first command to end")
        self._teller.chapter("3. They come back, one after the other")
        made.daemon.start()
        self._teller.signals.check()
        known = not self._submit(6)["created"]
        took_ms = self._timed(range(7, JOBS + 1))
        self._teller.say(
            f"The daemon first. The client sends its cut submit again, which is "
            f"{'the task of then' if known else 'a new task'}, and the rest of its commands: the answers took "
            f"{took_ms:.1f} ms, with no broker in sight."
        )
        self._until_link_down(JOBS)
        made.start_runner()
        made.broker.start()
        self._teller.say(f"Then the runner, which finds what has ended without it, and then {self._label}.")
        self._finish("4. They are done")

    def _hold_the_first(self) -> None:
        self._submit(1)
        self._need(lambda: self._place.ledger(STARTED) == ["c1"], "the first command to be at work")

    def _submit(self, number: int, agent: _Agent | None = None, priority: int = 0) -> dict[str, Any]:
        self._teller.signals.check()
        job = _Job(f"c{number}", priority)
        answer = (agent or self._agents[0]).submit(job)
        self._names[job.name] = answer["name"]
        return answer

    def _timed(self, numbers: Sequence[int]) -> float:
        """Submits several, and gives how long one took on average, in ms."""
        since_s = time.monotonic()
        for number in numbers:
            self._submit(number)
        return 1000 * (time.monotonic() - since_s) / len(numbers)

    def _until_link_down(self, number: int) -> None:
        """Waits until the daemon has noticed, and shows what it says of a command."""
        self._need(lambda: self._reason(number) == "link", "the daemon to notice")
        self._why(number)

    def _reason(self, number: int) -> str | None:
        reason: str | None = self._client.get(self._names[f"c{number}"])["task"]["reason"]
        return reason

    def _finish(self, title: str) -> None:
        self._teller.chapter(title)
        self._teller.wait(self._all_read, _STEP_S, "the results")

    def _all_read(self) -> bool:
        try:
            left = [agent for agent in self._agents if not agent.read_all()]
        except Gone:
            return False
        return not left

    def _count(self) -> Count:
        made = self._place
        jobs = {job.name: job for agent in self._agents for job in agent.jobs}
        views = {name: self._client.get(self._names[name]) for name in jobs}
        # The ids of tasks grow, and so do those of attempts.
        order = sorted(jobs, key=lambda name: views[name]["task"]["id"])
        begun = {name: view["attempts"][0]["id"] for name, view in views.items() if view["attempts"]}
        for name, view in views.items():
            if view["task"]["state"] != "completed":
                self._why(int(name[1:]))
        ledgers = Ledgers(
            [[name for name in order if jobs[name].priority == priority] for priority in (0, URGENT)],
            sorted(begun, key=lambda name: begun[name]),
            made.ledger(STARTED),
            made.ledger(DONE),
            [agent.read for agent in self._agents],
        )
        self._teller.say("The ledger, as the commands wrote it:")
        self._teller.say(", ".join(ledgers.done), indent=2)
        batches = [size for agent in self._agents for size in agent.batches]
        self._teller.say(f"The clients have read {sum(batches)} results, {max(batches, default=0)} at once at most.")
        return Count.of(ledgers)

    def _need(self, found: Callable[[], bool], what: str) -> None:
        self._teller.need(found, _STEP_S, what)

    def _why(self, number: int) -> None:
        self._teller.omnictl(self._place.daemon, "why", self._names[f"c{number}"])
