"""Every setting with its default and range: the shapes of the config, which `config` reads.

Times are seconds, sizes are bytes, counts end in ``_max``, money is US dollars; config/omnid.toml says what each means.
"""

from typing import Annotated, Any, ClassVar, Literal

from msgspec import Meta, field

from omnid.patterns import LOCAL_URL, NAME_OR_NONE, ORIGIN_OR_ALL, SAFE_URL, TIME_OR_NONE, WEIGHTS_NAME
from omnid.settings_links import Link, Remote, Runner
from omnid.settings_types import GIB, KIB, MIB, Bytes, Count, ExitCode, Hours, Name, Seconds, Section, Usd, Words

COMMAND = "command"
"""The name of the executor that is there without any config: it runs what a person asks it to."""
MODEL = "model"
"""The name of the executor that is there where the config has channels: it answers prompts."""
OFFLINE = "model-offline"
"""The one beside it for prompts that don't wait for the cloud: no gate of the cloud closes it."""
DESKTOP = "desktop"
"""The place for notices that needs no destination in the config."""
EVERY_OTHER = "*"
"""The name of the section for origins that have none of their own."""
NO_PROFILE = "none"
PROMPT = "{task.prompt}"
AGENT_PROGRAMS = {"claude": "claude-code", "codex": "codex", "gemini": "gemini", "openclaw": "openclaw"}
"""Programs of agents, and the executors that are there for them without any config; each has a profile of its name."""


class State(Section, frozen=True, kw_only=True):
    """Where the journal, the spool and the lock live."""

    dir: str = ""


class Daemon(Section, frozen=True, kw_only=True):
    """The daemon as a whole."""

    name: Annotated[str, Meta(pattern=NAME_OR_NONE)] = ""
    slots_max: Annotated[int, Meta(ge=0)] = 0
    stop_grace_s: Seconds = 10.0
    zone: str = ""
    keep_awake: bool = True


class Socket(Section, frozen=True, kw_only=True):
    """The socket that clients connect to, and what one client may take."""

    path: str = ""
    clients_max: Count = 256
    requests_max: Count = 256
    message_bytes_max: Bytes = 4 * MIB
    write_buffer_bytes_max: Bytes = 8 * MIB
    stall_s: Seconds = 30.0


class Http(Section, frozen=True, kw_only=True):
    """MCP and REST over HTTP: off unless `listen` names an address."""

    listen: str = ""
    token: str = ""
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    certificate: str = ""
    private_key: str = ""
    body_bytes_max: Bytes = 4 * MIB
    body_s: Seconds = 30.0
    connections_max: Count = 256
    sessions_max: Count = 1000
    session_idle_s: Seconds = 1800.0
    requests_per_s_max: Count = 1000


class Limits(Section, frozen=True, kw_only=True):
    """What tasks may hold and leave behind."""

    input_bytes_max: Bytes = MIB
    output_head_bytes: Bytes = 64 * KIB
    output_tail_bytes: Bytes = 64 * KIB
    spool_bytes_max: Bytes = 256 * MIB
    spool_total_bytes_max: Bytes = 4 * GIB
    waiting_tasks_max: Count = 1_000_000
    batch_tasks_max: Count = 10_000
    labels_max: Count = 32
    after_max: Count = 256
    notes_max: Count = 1_000
    asks_max: Count = 100
    ask_bytes_max: Bytes = 16 * KIB


class Store(Section, frozen=True, kw_only=True):
    """The database; how it syncs is no setting, because promise 1 hangs on it."""

    free_bytes_min: Bytes = 128 * MIB
    wal_bytes_max: Annotated[int, Meta(ge=MIB)] = 64 * MIB
    group_ms: Annotated[float, Meta(ge=0, le=100)] = 2.0
    group_max: Count = 256


class Retention(Section, frozen=True, kw_only=True):
    """How long finished tasks, answers to sessions, and the history of what was deleted are kept."""

    finished_days: Annotated[float, Meta(gt=0, le=36_500)] = 30.0
    finished_max: Count = 100_000
    kept_days_min: Annotated[float, Meta(ge=0, le=36_500)] = 7.0
    answers_days: Annotated[float, Meta(gt=0, le=36_500)] = 2.0
    answers_max: Count = 100_000
    deleted_days: Annotated[float, Meta(gt=0, le=36_500)] = 2.0
    calls_days: Annotated[float, Meta(ge=32, le=36_500)] = 93.0
    batch: Count = 500


class Retry(Section, frozen=True, kw_only=True):
    """How often and when a failed attempt is tried again, unless the task says otherwise."""

    attempts_max: Annotated[int, Meta(ge=1, le=1000)] = 3
    backoff_base_s: Seconds = 1.0
    backoff_max_s: Seconds = 300.0


class Task(Section, frozen=True, kw_only=True):
    """What an attempt gets, unless the task or its executor says otherwise."""

    timeout_s: Seconds = 3600.0
    kill_grace_s: Seconds = 5.0
    answer_timeout_s: Seconds = 86_400.0


class Agents(Section, frozen=True, kw_only=True):
    """What agents may do without asking, and how large a tree of tasks submitted from inside tasks may grow."""

    allow: tuple[str, ...] = ()
    depth_max: Count = 5
    children_max: Count = 200


class Workspace(Section, frozen=True, kw_only=True):
    """Where agents work: a worktree of their own for each task, unless the task or its executor says otherwise."""

    dir: str = ""
    prewarm: Annotated[int, Meta(ge=0, le=16)] = 0
    setup: tuple[str, ...] = ()
    setup_timeout_s: Seconds = 600.0
    kept_max: Count = 50
    bytes_max: Bytes = 20 * GIB


class Budget(Section, frozen=True, kw_only=True):
    """The lid on money; a cap of 0 is none. Days and months are those of `daemon.zone`."""

    run_usd: Annotated[float, Meta(gt=0, le=1e9)] = 5.0
    task_usd: Usd = 0.0
    day_usd: Usd = 0.0
    month_usd: Usd = 0.0
    notice_share: Annotated[float, Meta(gt=0, le=1)] = 0.8
    repeats_max: Count = 5
    repeats_s: Seconds = 3600.0


class Models(Section, frozen=True, kw_only=True):
    """What prompts get, unless they say otherwise, and which of them count as hard."""

    default: str = "cheap"
    hard: str = "strong"
    hard_labels: tuple[str, ...] = ("hard",)
    hard_kinds: tuple[str, ...] = ("programming",)
    hard_tokens: Count = 8000
    output_tokens_max: Count = 4096
    connect_timeout_s: Seconds = 10.0
    silence_timeout_s: Seconds = 120.0
    answer_bytes_max: Bytes = 8 * MIB


class Gateway(Section, frozen=True, kw_only=True):
    """The child process that holds LiteLLM."""

    start_timeout_s: Seconds = 60.0
    memory_bytes_max: Bytes = 512 * MIB


class Mode(Section, frozen=True, kw_only=True):
    """When the gateway and the cloud count as gone and as back, who mends the gateway, and what is kept of outages."""

    gateway_failures_max: Count = 2
    gateway_good_min: Count = 2
    gateway_probe_s_max: Seconds = 1.0
    gateway_probe_every_s: Seconds = 10.0
    repair_executor: str = ""
    repair_every_s: Seconds = 3600.0
    cloud_failures_max: Count = 3
    cloud_good_min: Count = 2
    cloud_probe_every_s: Seconds = 30.0
    wake_grace_s: Seconds = 30.0
    snapshots_max: Annotated[int, Meta(ge=0, le=100)] = 3
    snapshots_bytes_max: Bytes = 4 * GIB


class Brainstem(Section, frozen=True, kw_only=True):
    """The local model that is woken when the cloud is gone: a command that serves the OpenAI wire at `base_url`."""

    argv: tuple[str, ...] = ()
    base_url: Annotated[str, Meta(pattern=LOCAL_URL)] = "http://127.0.0.1:8642/v1"
    model: str = "default_model"
    weights: Annotated[str, Meta(pattern=WEIGHTS_NAME)] = "mlx-community/Qwen2.5-7B-Instruct-4bit"
    dir: str = ""
    hub: Annotated[str, Meta(pattern=SAFE_URL)] = "https://huggingface.co"
    context_tokens: Count = 8192
    memory_bytes_min: Annotated[int, Meta(ge=0)] = 0
    start_timeout_s: Seconds = 120.0
    idle_s: Seconds = 900.0


class Notify(Section, frozen=True, kw_only=True):
    """What people are told, where, and when not."""

    to: tuple[str, ...] = ("desktop",)
    language: Literal["en", "zh-TW"] = "en"
    quiet: Hours = ""
    group_s: Annotated[float, Meta(ge=0, le=86400)] = 10.0
    per_hour_max: Count = 20
    digest_at: Annotated[str, Meta(pattern=TIME_OR_NONE)] = ""


class Outbox(Section, frozen=True, kw_only=True):
    """What waits to be delivered, and for how long."""

    rows_max: Count = 10_000
    retry_base_s: Seconds = 2.0
    retry_max_s: Seconds = 900.0
    give_up_days: Annotated[float, Meta(gt=0, le=366)] = 7.0


class Schedules(Section, frozen=True, kw_only=True):
    """How many schedules there may be, and from when on a run counts as missed."""

    count_max: Count = 1_000
    late_s: Seconds = 60.0


class Log(Section, frozen=True, kw_only=True):
    """The daemon's log: JSON lines in the state directory."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    bytes_max: Bytes = 10 * MIB
    files_max: Annotated[int, Meta(ge=1, le=100)] = 5


WorkspaceKind = Literal["worktree", "copy", "none"]


class ResultMapping(Section, frozen=True, kw_only=True):
    """Where a result in JSON keeps its parts, as dotted paths (``usage.cost``); none of them: the output is text."""

    output: str | None = None
    error: str | None = None
    is_error: str | None = None
    cost_usd: str | None = None


class _Executor(Section, frozen=True, kw_only=True, tag_field="kind"):
    """What all executors have in common; None means that the setting of the daemon or the task holds."""

    kind: ClassVar[str]
    name: str
    concurrency: Count | None = None
    idempotent: bool = False
    timeout_s: Seconds | None = None
    argv: tuple[str, ...] = ()
    cwd: str | None = None
    env: tuple[str, ...] = ()
    env_set: dict[str, str] = field(default_factory=dict[str, str])
    only: Hours = ""
    cost_max_usd: Usd | None = None


class CommandExecutor(_Executor, frozen=True, kw_only=True, tag="command"):
    """Runs programs. `argv` comes before what the task asks for; `env` names variables to pass on, `env_set` sets some.

    With `probe` (a program and its arguments, ending with 0 when all is well) an executor that was down
    is found to be well again, and `omnictl doctor` says how it is. With a `profile` it knows the agent that it runs:
    its sessions, its limits, its costs; `permission_mode` and `allowed_tools` are then the agent's.
    """

    kind: ClassVar[str] = "command"
    success_exit_codes: tuple[ExitCode, ...] = (0,)
    result: ResultMapping = ResultMapping()
    probe: tuple[str, ...] = ()
    profile: str | None = None
    permission_mode: str | None = None
    allowed_tools: tuple[str, ...] | None = None
    workspace: WorkspaceKind | None = None


class McpExecutor(_Executor, frozen=True, kw_only=True, tag="mcp"):
    """Calls tools of an MCP server that `argv` starts, or that is at `url`.

    `tool` and `arguments` are used where the task names none. Texts in `arguments` may hold ``{task.id}`` and the like.
    The server ends (or the session with it) when nothing has used it for `idle_s`; one that keeps failing is started
    again after `restart_base_s`, doubling up to `restart_max_s`. `url`, `token` and the values of `headers` may be
    references to secrets; `ca_file` holds the certificates to trust in place of the system's, and without `verify` any
    is trusted.
    """

    kind: ClassVar[str] = "mcp"
    url: str = ""
    token: str = ""
    headers: dict[str, str] = field(default_factory=dict[str, str])
    ca_file: str = ""
    verify: bool = True
    connect_timeout_s: Seconds = 10.0
    tool: str | None = None
    arguments: dict[str, Any] = field(default_factory=dict[str, Any])
    start_timeout_s: Seconds = 30.0
    call_timeout_s: Seconds | None = None
    idle_s: Seconds = 300.0
    restart_base_s: Seconds = 1.0
    restart_max_s: Seconds = 60.0


class ModelExecutor(_Executor, frozen=True, kw_only=True, tag="model"):
    """Answers prompts through the channels. `model` is a name or an alias, `system` what is said before each prompt."""

    kind: ClassVar[str] = "model"
    model: str | None = None
    system: str = ""
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    output_tokens_max: Count | None = None


Executor = CommandExecutor | McpExecutor | ModelExecutor


class Rule(Section, frozen=True, kw_only=True):
    """Sends tasks that fit to the first of its executors that can be used; all that it names must fit."""

    name: Name
    executor: Annotated[tuple[str, ...], Meta(min_length=1)]
    kind: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    text: tuple[Words, ...] = ()
    bytes_min: Annotated[int, Meta(ge=0)] = 0
    bytes_max: Annotated[int, Meta(ge=0)] | None = None
    lane: tuple[str, ...] = ()
    hours: Hours = ""


class Cap(Section, frozen=True, kw_only=True):
    """The most that one label or one executor may cost in a day or a month."""

    name: Name
    label: str | None = None
    executor: str | None = None
    day_usd: Usd = 0.0
    month_usd: Usd = 0.0


class Origin(Section, frozen=True, kw_only=True):
    """What the agents of one origin may do, or (`EVERY_OTHER`) those of every origin without a section of its own.

    None is no bound. `token` lets whoever has it in over HTTP, as this origin and no other.
    """

    name: Annotated[str, Meta(pattern=ORIGIN_OR_ALL)]
    token: str = ""
    executors: tuple[str, ...] | None = None
    labels: tuple[str, ...] | None = None
    complete: bool = False
    day_usd: Usd = 0.0
    month_usd: Usd = 0.0


ProfileName = Literal["anthropic", "cliproxyapi", "compatible", "llamacpp", "ollama", "openai", "openrouter"]
WireFormat = Literal["openai", "anthropic"]


class ChannelModel(Section, frozen=True, kw_only=True):
    """A model that a channel reaches. Prices are US dollars per million tokens; None is unknown, never 0.

    `id` is what the provider calls it; without one that is its name.
    """

    name: str
    id: str = ""
    aliases: tuple[str, ...] = ()
    input_usd: Usd | None = None
    output_usd: Usd | None = None
    context_tokens: Count | None = None
    output_tokens_max: Count | None = None


class Channel(Section, frozen=True, kw_only=True):
    """One way to reach models. `channels.whole` fills in what its profile knows."""

    name: Name
    profile: ProfileName | None = None
    base_url: str = ""
    wire: WireFormat | None = None
    key: str = ""
    backup_keys: tuple[str, ...] = ()
    models: tuple[str | ChannelModel, ...] = ()
    free: bool | None = None
    local: bool | None = None
    relay: bool | None = None
    expected_latency_s: Seconds | None = None
    requests_per_minute_max: Count | None = None
    concurrency: Count | None = None
    opt_in: bool = False


class Destination(Section, frozen=True, kw_only=True):
    """A place that answers and notices can be delivered to; `target` is where at it, unless the answer names one."""

    name: Name
    kind: Literal["command", "webhook", "openclaw", "apprise"]
    argv: tuple[str, ...] = ()
    url: str = ""
    secret: str = ""
    executor: str | None = None
    channel: str = ""
    target: str = ""
    timeout_s: Seconds = 30.0


class Preset(Section, frozen=True, kw_only=True):
    """A schedule of the config: its `task` has the fields of a submit, its texts may hold ``{params.x}``.

    It runs at its times (`cron`, `every` or `at`), on events, and by hand; see `model.Schedule`.
    """

    name: Name
    task: dict[str, Any]
    params: dict[str, str] = field(default_factory=dict[str, str])
    cron: str = ""
    zone: str = ""
    every: str = ""
    at: str = ""
    times_max: Count | None = None
    on: tuple[str, ...] = ()
    missed: Literal["run_once", "run_all", "skip"] = "run_once"
    missed_max: Annotated[int, Meta(ge=1, le=1000)] = 10
    overlap: Literal["skip", "queue", "kill"] = "skip"


class Config(Section, frozen=True, kw_only=True):
    """All settings. Made by `load`, which also fills in paths and slots; `executor` always holds `COMMAND`."""

    state: State = State()
    daemon: Daemon = Daemon()
    socket: Socket = Socket()
    http: Http = Http()
    limits: Limits = Limits()
    store: Store = Store()
    retention: Retention = Retention()
    retry: Retry = Retry()
    task: Task = Task()
    agents: Agents = Agents()
    workspace: Workspace = Workspace()
    budget: Budget = Budget()
    models: Models = Models()
    gateway: Gateway = Gateway()
    mode: Mode = Mode()
    brainstem: Brainstem = Brainstem()
    notify: Notify = Notify()
    outbox: Outbox = Outbox()
    runner: Runner = Runner()
    schedules: Schedules = Schedules()
    log: Log = Log()
    executor: tuple[Executor, ...] = ()
    rule: tuple[Rule, ...] = ()
    cap: tuple[Cap, ...] = ()
    origin: tuple[Origin, ...] = ()
    destination: tuple[Destination, ...] = ()
    channel: tuple[Channel, ...] = ()
    link: tuple[Link, ...] = ()
    remote: tuple[Remote, ...] = ()
    preset: tuple[Preset, ...] = ()

    def executors(self) -> dict[str, Executor]:
        """Gives the executors by name."""
        return {executor.name: executor for executor in self.executor}
