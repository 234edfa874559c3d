"""The demo of an outage: twelve prompts, a channel that is limited, a gateway that is killed and a cloud that goes."""

import contextlib
import glob
import importlib.util
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, Self

from omnid.ctl import demo_cloud, demo_outage_tasks, demo_tiny_model
from omnid.ctl.context import Context
from omnid.ctl.demo import Daemon, End, Place, Signals, Teller, night_zone, place, toml
from omnid.ctl.demo_cloud import ANSWERED, BEGUN, HOST, LIMITED, LOCAL
from omnid.ctl.demo_outage_tasks import CALL_USD, CAP_USD, CLOUD, FREE, GATEWAY, JOBS, LATER, PAID, Job
from omnid.errors import Retryable
from omnid.states import TERMINAL
from omnid.worker.supervisor import STARTED, read_record

_STEP_S = 60.0
"""How long each step may take; the longest is a start of LiteLLM."""
_CENT_USD = 0.01
_KEYS = {"DEMO_FREE": "made-up-1", "DEMO_PAID": "made-up-2", "DEMO_BACKUP": "made-up-3"}
_CONFIG = """\
[daemon]
slots_max = 4
zone = {zone}
keep_awake = false
[notify]
to = []
[budget]
day_usd = {cap_usd}
[models]
output_tokens_max = 4000
[mode]
gateway_probe_every_s = 0.5
cloud_probe_every_s = 1.0
[brainstem]
argv = {local}
base_url = "http://{host}:{local_port}{local_path}/v1"
memory_bytes_min = 300000000
[[channel]]
name = "{free}"
profile = "compatible"
base_url = "{url}/{free}/v1"
key = "env:DEMO_FREE"
free = true
models = ["demo"]
[[channel]]
name = "{paid}"
profile = "openrouter"
base_url = "{url}/{paid}/v1"
key = "env:DEMO_PAID"
backup_keys = ["env:DEMO_BACKUP"]
models = [{{ name = "demo", input_usd = 1, output_usd = 10 }}]
"""


def run(context: Context, signals: Signals) -> End:
    """Tells it, in a place of its own."""
    with place(context.world.environ, OutagePlace) as made:
        return _Story(Teller(context, signals), made).tell()


class OutagePlace(Place):
    """A daemon, and a scripted cloud that can be taken away and brought back."""

    def __init__(self, root: str, environ: Mapping[str, str]) -> None:
        super().__init__(root, environ)
        # MLX leaves a directory of its own among the temporary files.
        self.outside.update(_KEYS, TMPDIR=root)
        self.has_gateway = importlib.util.find_spec("litellm") is not None
        self._cloud_files = os.path.join(root, "cloud")
        os.mkdir(self._cloud_files)
        demo_outage_tasks.lay_out(self._cloud_files, has_gateway=self.has_gateway)
        self._ports = [_held_port(), _held_port()]
        here, local = (port.getsockname()[1] for port in self._ports)
        self._cloud_argv = _cloud_argv(self._cloud_files, here)
        self.has_mlx = _tiny_model(os.path.join(root, "model"), self.outside)
        local_argv = _cloud_argv(self._cloud_files, local)
        if self.has_mlx:
            # Its server doesn't share a port with whoever holds it.
            self._ports[1].close()
            local_argv = [sys.executable, "-m", "mlx_lm", "server", "--model", os.path.join(root, "model")]
            local_argv += ["--host", HOST, "--port", str(local)]
        self._cloud: subprocess.Popen[bytes] | None = None
        config = _CONFIG.format(
            zone=toml(night_zone(time.gmtime().tm_hour)),
            cap_usd=CAP_USD,
            local=toml(local_argv),
            host=HOST,
            local_port=local,
            local_path="" if self.has_mlx else f"/{LOCAL}",
            url=f"http://{HOST}:{here}",
            free=FREE,
            paid=PAID,
        )
        self.daemon = Daemon(os.path.join(root, "daemon"), config, self.outside)

    def cloud_comes(self) -> None:
        """Starts the cloud, at the same address each time."""
        self._cloud = subprocess.Popen(
            self._cloud_argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=self.outside,
            start_new_session=True,
        )
        said = self._cloud.stdout
        # Its end makes it readable too.
        if said is None or not select.select([said], [], [], _STEP_S)[0] or not said.readline():
            raise Retryable("demo_failed", detail="the scripted cloud doesn't start")

    def cloud_goes(self) -> None:
        """Ends the cloud with SIGKILL, where it runs: its connections break off, and nobody is at its address."""
        if self._cloud is not None:
            self._cloud.kill()
            self._cloud.communicate()
            self._cloud = None

    def kill_gateway(self) -> int:
        """Ends the gateway with SIGKILL, and gives its pid."""
        found = glob.glob(os.path.join(glob.escape(self.daemon.state_dir), "spool", "server-gateway*", STARTED))
        record = None if not found else read_record(STARTED, os.path.dirname(max(found, key=os.path.getmtime)))
        if record is None:
            raise Retryable("demo_failed", detail="there is no gateway, though calls go through it")
        with contextlib.suppress(ProcessLookupError):
            os.kill(record["pid"], signal.SIGKILL)
        return int(record["pid"])

    def ledger(self) -> list[str]:
        """Reads what the cloud has counted."""
        return demo_cloud.ledger(self._cloud_files)

    def close(self) -> None:
        """See `Place.close`: the daemon with its gateway and its local model, then the cloud."""
        self.daemon.kill()
        self.daemon.wait_for_supervisors()
        self.cloud_goes()
        for port in self._ports:
            port.close()


class Count(NamedTuple):
    """What the cloud's ledger and the journal add up to."""

    done: int
    lost: int
    billed_twice: int
    """Calls that were answered for a prompt that had an answer."""
    cut: int
    """Calls that broke off, of which nobody knows what they cost."""
    spent_usd: float
    cap_usd: float
    agrees: bool
    """Whether the journal has booked what the cloud has counted, and no more counts against the cap than it allows."""

    @classmethod
    def of(cls, ledger: Iterable[str], completed: Iterable[str], jobs: Iterable[Job], today: Mapping[str, Any]) -> Self:
        """Counts; `completed` are the names of the prompts that the journal has done."""
        lines = [line.split(" ", 2) for line in ledger]
        answers = Counter(prompt for what, _, prompt in lines if what == ANSWERED)
        begun = sum(what == BEGUN for what, _, _ in lines)
        paid = sum(what == ANSWERED and channel == PAID for what, channel, _ in lines)
        finished, wanted = set(completed), list(jobs)
        # What the local model has answered the cloud doesn't know.
        done = sum(job.name in finished and (job.offline == "local" or job.prompt in answers) for job in wanted)
        amounts, cap_usd = today["amounts"], today["limit_usd"]
        counted_usd = amounts["spent_usd"] + amounts["reserved_usd"] + amounts["unknown_usd"]
        billed_usd = demo_outage_tasks.spent_usd(paid)
        agrees = abs(billed_usd - amounts["spent_usd"]) < _CENT_USD and counted_usd < cap_usd + _CENT_USD
        return cls(
            done,
            len(wanted) - done,
            answers.total() - len(answers),
            begun - answers.total(),
            amounts["spent_usd"],
            cap_usd,
            agrees,
        )

    def __str__(self) -> str:
        return (
            f"{self.done} done, {self.lost} lost, {self.billed_twice} billed twice, "
            f"spent ${self.spent_usd:.2f} of ${self.cap_usd:.2f}"
        )

    @property
    def good(self) -> bool:
        """Whether nothing was lost, billed twice or spent beyond the lid."""
        return self.lost == self.billed_twice == 0 and self.agrees


class _Story:
    """Six chapters."""

    def __init__(self, teller: Teller, made: OutagePlace) -> None:
        self._teller = teller
        self._place = made
        self._client = made.daemon.client
        self._names: dict[str, str] = {}
        self._ids: dict[str, str] = {}

    def tell(self) -> End:
        """Goes through all chapters."""
        self._introduce()
        self._submit()
        self._limit()
        if self._place.has_gateway:
            self._kill_gateway()
        self._lose_cloud()
        self._bring_back()
        count = self._count()
        return End(count._asdict(), str(count), count.good)

    def _introduce(self) -> None:
        self._teller.say(
            f"{len(JOBS) + len(LATER)} prompts for models, and an hour in which all ways to them fail, one after the "
            "other. The cloud is a script on this machine that answers, and counts its answers; the keys are made up, "
            f"and nothing leaves this machine. All of it happens in {self._place.root}; your own omnid, if you have "
            "one, is not touched."
        )
        notes = ["MLX isn't installed here, so the local model is a stand-in too."]
        if self._place.has_mlx:
            notes = ["The local model is a tiny one with random weights in MLX's real server: it answers nonsense."]
        if not self._place.has_gateway:
            notes.append(
                "LiteLLM isn't installed here (pip install 'omnid[models]'), so all calls go directly, and there is "
                "no gateway to kill."
            )
        for note in notes:
            self._teller.say("")
            self._teller.say(note)

    def _submit(self) -> None:
        self._teller.chapter("1. The prompts are queued")
        self._place.cloud_comes()
        self._teller.signals.check()
        pid = self._place.daemon.start()
        self._teller.signals.check()
        self._take(JOBS)
        self._teller.say(
            f"The daemon (pid {pid}) has two channels: one that costs nothing, and one that is paid, with a backup "
            f"key. A day may cost ${CAP_USD:.2f}, and each paid call reserves the ${CALL_USD:.2f} that it can cost at "
            "most before it is made."
        )
        self._teller.table([(self._names[job.name], job.name, job.prompt) for job in JOBS])

    def _take(self, jobs: Iterable[Job]) -> None:
        jobs = tuple(jobs)
        answer = self._client.call("omnid/task.submit_batch", {"tasks": [job.submit() for job in jobs]})
        for job, task in zip(jobs, answer["tasks"], strict=True):
            self._names[job.name], self._ids[job.name] = task["name"], task["id"]

    def _limit(self) -> None:
        self._teller.chapter("2. The free channel is limited")
        first = [job.name for job in JOBS if not job.needs]
        self._need(lambda: self._all_completed(first), "the first prompts")
        limited = next(line.split(" ", 2)[2] for line in self._place.ledger() if line.startswith(LIMITED))
        name = next(job.name for job in JOBS if job.prompt == limited)
        self._teller.say("It has answered two prompts, and says 429 since. The others were answered by the paid one.")
        self._why(name)

    def _kill_gateway(self) -> None:
        self._teller.chapter("3. The gateway is killed")
        jobs = [job for job in JOBS if job.held_for == GATEWAY]
        self._need(lambda: self._all_held(jobs), "three calls to be under way")
        pid = self._place.kill_gateway()
        names = self._several(jobs)
        self._teller.say(
            f"kill -9 {pid}: LiteLLM, which runs in a process of its own, in the middle of the calls of {names}. They "
            "go on at once as new calls, directly and with the backup key."
        )
        self._need(lambda: self._all_completed([job.name for job in jobs]), "them to be answered")
        self._why(jobs[0].name)
        self._need(lambda: self._is_over(GATEWAY), "the gateway to be back")
        self._teller.say("The gateway was started again meanwhile, and is well.")

    def _lose_cloud(self) -> None:
        self._teller.chapter("4. The cloud is gone")
        jobs = [job for job in JOBS if job.held_for == CLOUD]
        self._need(lambda: self._all_held(jobs), "three calls to be under way")
        self._place.cloud_goes()
        self._need(lambda: self._client.status()["mode"] == "brainstem", "omnid to notice")
        self._take(LATER)
        plan, note = (self._names[job.name] for job in LATER)
        self._teller.say(
            f"The calls of {self._several(jobs)} broke off, and nobody is at the cloud's address any more. omnid has "
            f"noticed, and started the local model. Two more prompts are submitted: {plan} waits for the cloud, and "
            f"{note} takes what there is (--offline local)."
        )
        self._teller.omnictl(self._place.daemon, "mode")
        self._need(lambda: self._all_completed([LATER[1].name]), "the local model")
        self._why(LATER[1].name)
        self._why(LATER[0].name)

    def _bring_back(self) -> None:
        self._teller.chapter("5. The cloud is back")
        self._place.cloud_comes()
        self._need(self._all_ended, "the rest to be answered")
        self._need(lambda: self._is_over(CLOUD), "the mode to be normal")
        self._teller.say("All that waited has gone on by itself, and the local model is asleep again.")
        self._teller.omnictl(self._place.daemon, "outages")

    def _count(self) -> Count:
        self._teller.chapter("6. What came of it")
        jobs = (*JOBS, *LATER)
        completed = [job.name for job in jobs if self._state(job.name) == "completed"]
        count = Count.of(self._place.ledger(), completed, jobs, self._client.status()["today"])
        unknown_usd = self._client.status()["today"]["amounts"]["unknown_usd"]
        self._teller.say(
            f"{count.cut} calls were cut before they were answered. Nobody can know whether they will be billed, so "
            f"what they had reserved, ${unknown_usd:.2f}, stays counted against the lid until the day is over."
        )
        self._teller.omnictl(self._place.daemon, "spend")
        if not count.agrees:
            self._teller.say("The journal's money doesn't agree with what the cloud has counted, or passes the lid.")
        return count

    def _need(self, found: Callable[[], bool], what: str) -> None:
        self._teller.need(found, _STEP_S, what)

    def _all_held(self, jobs: Iterable[Job]) -> bool:
        begun = {line.split(" ", 2)[2] for line in self._place.ledger() if line.startswith(BEGUN)}
        return all(job.prompt in begun for job in jobs)

    def _is_over(self, cause: str) -> bool:
        """Tells whether there was an outage of this cause, and none is left."""
        found = [one for one in self._client.call("omnid/outage.list", {})["outages"] if one["cause"] == cause]
        return bool(found) and all(one["ended_at_ms"] for one in found) and self._client.status()["mode"] == "normal"

    def _state(self, name: str) -> str:
        return str(self._client.get(self._ids[name])["task"]["state"])

    def _all_completed(self, names: Iterable[str]) -> bool:
        return all(self._state(name) == "completed" for name in names)

    def _all_ended(self) -> bool:
        return all(self._state(name) in TERMINAL for name in self._ids)

    def _several(self, jobs: Iterable[Job]) -> str:
        *names, last = (self._names[job.name] for job in jobs)
        return f"{', '.join(names)} and {last}"

    def _why(self, name: str) -> None:
        self._teller.omnictl(self._place.daemon, "why", self._names[name])


def _held_port() -> socket.socket:
    """Binds a free port without listening, so that nobody else gets it while nobody serves there."""
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    held.bind((HOST, 0))
    return held


def _tiny_model(directory: str, environ: Mapping[str, str]) -> bool:
    """Makes the weights of a model; False where MLX is not there."""
    if importlib.util.find_spec("mlx_lm") is None:
        return False
    argv = [sys.executable, "-I", demo_tiny_model.__file__, directory]
    with contextlib.suppress(subprocess.TimeoutExpired):
        done = subprocess.run(
            argv, env=environ, stdin=subprocess.DEVNULL, capture_output=True, timeout=_STEP_S, check=False
        )
        return done.returncode == 0
    return False


def _cloud_argv(files: str, port: int) -> list[str]:
    return [sys.executable, "-I", "-S", demo_cloud.__file__, files, str(port)]
