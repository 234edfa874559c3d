"""The config: every setting with its default and range, read once, checked whole, never changed in place.

A value comes from ``OMNID_<SECTION>__<KEY>`` in the environment, else from the file, else from the default here. What
depends on the machine (paths, cores) is filled in by `load`, so readers of a `Config` never see "automatic".
Times are seconds, sizes are bytes, counts end in ``_max``; config/omnid.toml says what each setting means.
"""

import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Annotated, Any, ClassVar, Literal, cast, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta, Struct

from omnid import platform
from omnid.errors import Rejected
from omnid.secrets import looks_plain

Count = Annotated[int, Meta(ge=1)]
Bytes = Annotated[int, Meta(ge=1024)]
Seconds = Annotated[float, Meta(gt=0, le=366 * 86400)]
ExitCode = Annotated[int, Meta(ge=0, le=255)]
Origin = Literal["default", "file", "env"]

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
CONFIG_BYTES_MAX = MIB
SHOWN_CHARS_MAX = 200
SLOTS_MIN = 4
AT_START = ("state.", "socket.", "store.", "log.")
"""The sections that are read when the daemon starts: a reload that changes them is refused, except for `LIVE`."""
LIVE = frozenset({"store.free_bytes_min"})
COMMAND = "command"
"""The name of the executor that is there without any config: it runs what a person asks it to."""

_EXECUTOR_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_VARIABLE = re.compile(r"OMNID_([A-Z]+)__([A-Z0-9_]+)")


class _Section(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What all parts of the config have in common."""


class State(_Section, frozen=True, kw_only=True):
    """Where the journal, the spool and the lock live."""

    dir: str = ""


class Daemon(_Section, frozen=True, kw_only=True):
    """The daemon as a whole."""

    slots_max: Annotated[int, Meta(ge=0)] = 0
    stop_grace_s: Seconds = 10.0


class Socket(_Section, frozen=True, kw_only=True):
    """The socket that clients connect to, and what one client may take."""

    path: str = ""
    clients_max: Count = 256
    requests_max: Count = 256
    message_bytes_max: Bytes = 4 * MIB
    write_buffer_bytes_max: Bytes = 8 * MIB
    stall_s: Seconds = 30.0


class Limits(_Section, frozen=True, kw_only=True):
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


class Store(_Section, frozen=True, kw_only=True):
    """The database; how it syncs is no setting, because promise 1 hangs on it."""

    free_bytes_min: Bytes = 128 * MIB
    wal_bytes_max: Annotated[int, Meta(ge=MIB)] = 64 * MIB
    group_ms: Annotated[float, Meta(ge=0, le=100)] = 2.0
    group_max: Count = 256


class Retention(_Section, frozen=True, kw_only=True):
    """How long finished tasks, answers to sessions, and the history of what was deleted are kept."""

    finished_days: Annotated[float, Meta(gt=0, le=36_500)] = 30.0
    finished_max: Count = 100_000
    answers_days: Annotated[float, Meta(gt=0, le=36_500)] = 2.0
    answers_max: Count = 100_000
    deleted_days: Annotated[float, Meta(gt=0, le=36_500)] = 2.0
    batch: Count = 500


class Retry(_Section, frozen=True, kw_only=True):
    """How often and when a failed attempt is tried again, unless the task says otherwise."""

    attempts_max: Annotated[int, Meta(ge=1, le=1000)] = 3
    backoff_base_s: Seconds = 1.0
    backoff_max_s: Seconds = 300.0


class Task(_Section, frozen=True, kw_only=True):
    """What an attempt gets, unless the task or its executor says otherwise."""

    timeout_s: Seconds = 3600.0
    kill_grace_s: Seconds = 5.0


class Agents(_Section, frozen=True, kw_only=True):
    """What agents may do without asking."""

    allow: tuple[str, ...] = ()


class Log(_Section, frozen=True, kw_only=True):
    """The daemon's log: JSON lines in the state directory."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    bytes_max: Bytes = 10 * MIB
    files_max: Annotated[int, Meta(ge=1, le=100)] = 5


class ResultMapping(_Section, frozen=True, kw_only=True):
    """Where a result in JSON keeps its parts, as dotted paths (``usage.cost``); none of them: the output is text."""

    output: str | None = None
    error: str | None = None
    is_error: str | None = None
    cost_usd: str | None = None


class _Executor(_Section, frozen=True, kw_only=True, tag_field="kind"):
    """What all executors have in common; None means that the setting of the daemon or the task holds."""

    kind: ClassVar[str]
    name: str
    concurrency: Count | None = None
    idempotent: bool = False
    timeout_s: Seconds | None = None
    argv: tuple[str, ...] = ()
    cwd: str | None = None
    env: tuple[str, ...] = ()
    env_set: dict[str, str] = {}


class CommandExecutor(_Executor, frozen=True, kw_only=True, tag="command"):
    """Runs programs. `argv` comes before what the task asks for; `env` names variables to pass on, `env_set` sets some.

    With `probe` (a program and its arguments, ending with 0 when all is well) an executor that was down
    is found to be well again, and `omnictl doctor` says how it is.
    """

    kind: ClassVar[str] = "command"
    success_exit_codes: tuple[ExitCode, ...] = (0,)
    result: ResultMapping = ResultMapping()
    probe: tuple[str, ...] = ()


class McpExecutor(_Executor, frozen=True, kw_only=True, tag="mcp"):
    """Calls tools of an MCP server that `argv` starts; `tool` and `arguments` are used where the task names none.

    Texts in `arguments` may hold ``{task.id}`` and the like. The server ends when nothing has used it for `idle_s`;
    one that keeps dying is started again after `restart_base_s`, doubling up to `restart_max_s`.
    """

    kind: ClassVar[str] = "mcp"
    tool: str | None = None
    arguments: dict[str, Any] = {}
    start_timeout_s: Seconds = 30.0
    call_timeout_s: Seconds | None = None
    idle_s: Seconds = 300.0
    restart_base_s: Seconds = 1.0
    restart_max_s: Seconds = 60.0


Executor = CommandExecutor | McpExecutor
_KINDS: dict[str, type[Executor]] = {"command": CommandExecutor, "mcp": McpExecutor}


class Config(_Section, frozen=True, kw_only=True):
    """All settings. Made by `load`, which also fills in paths and slots; `executor` always holds `COMMAND`."""

    state: State = State()
    daemon: Daemon = Daemon()
    socket: Socket = Socket()
    limits: Limits = Limits()
    store: Store = Store()
    retention: Retention = Retention()
    retry: Retry = Retry()
    task: Task = Task()
    agents: Agents = Agents()
    log: Log = Log()
    executor: tuple[Executor, ...] = ()

    def executors(self) -> dict[str, Executor]:
        """Gives the executors by name."""
        return {executor.name: executor for executor in self.executor}


_SECTIONS: dict[str, type[Any]] = {name: kind for name, kind in get_type_hints(Config).items() if name != "executor"}


class Loaded(Struct, frozen=True):
    """A config, the file it came from (which need not exist), and the origin of each key that isn't a default."""

    config: Config
    path: str
    origins: dict[str, Origin]

    def rows(self) -> Iterator[tuple[str, Any, Origin]]:
        """Gives key, value and origin of every setting; secrets appear as the references that the config holds."""
        for section, values in msgspec.to_builtins(self.config).items():
            if section != "executor":
                for key, value in values.items():
                    yield f"{section}.{key}", value, self.origins.get(f"{section}.{key}", "default")
        for executor in self.config.executor:
            origin = self.origins.get(f"executor.{executor.name}", "default")
            for key, value in msgspec.to_builtins(executor).items():
                if key != "name":
                    yield f"executor.{executor.name}.{key}", value, origin


def load(environ: Mapping[str, str], path: str | None = None) -> Loaded:
    """Reads the config at `path`, or where `platform.config_path` finds it; a missing or empty file gives the defaults.

    Raises Rejected (``config_unreadable``, ``config_unknown_key``, ``config_bad_value``, ``secret_plain``) with the
    first problem; `check` gives all of them.
    """
    loaded, problems = _read(environ, path or platform.config_path(environ))
    if problems:
        raise problems[0]
    return loaded


def check(environ: Mapping[str, str], path: str | None = None) -> list[Rejected]:
    """Gives everything that is wrong with the config that `load` would read: nothing, if it is fine."""
    return _read(environ, path or platform.config_path(environ))[1]


def reload(loaded: Loaded, environ: Mapping[str, str]) -> Loaded:
    """Reads the same file again and gives a new config, whole; the old one stays as it is.

    Raises Rejected as `load` does, and also where something changed that a running daemon can't change.
    """
    new = load(environ, loaded.path)
    before, after = dict(_settings(loaded.config)), dict(_settings(new.config))
    for key, value in before.items():
        if value != after[key] and key.startswith(AT_START) and key not in LIVE:
            raise _bad(key, after[key], f"the running daemon uses {value}, and only a restart can change that")
    return new


def _settings(settings: Config) -> Iterator[tuple[str, Any]]:
    for section, values in msgspec.to_builtins(settings).items():
        if section != "executor":
            for key, value in values.items():
                yield f"{section}.{key}", value


def _read(environ: Mapping[str, str], path: str) -> tuple[Loaded, list[Rejected]]:
    """Goes on after a problem with the default of that key, so that one look finds all of them."""
    reader = _Reader()
    try:
        settings = _parse(path)
    except Rejected as error:
        reader.problems.append(error)
        settings = {}
    sections = {name: reader.section(name, settings.get(name, {})) for name in _SECTIONS}
    for name in settings.keys() - _SECTIONS.keys() - {"executor"}:
        reader.problems.append(_unknown(name, [*_SECTIONS, "executor"]))
    executors = reader.executors(settings.get("executor", []))
    reader.environment(environ, sections)
    reader.together(sections, executors)
    places = platform.paths(environ, settings)
    for variable, key in (("OMNID_STATE", "state.dir"), ("OMNID_SOCKET", "socket.path")):
        if environ.get(variable):
            reader.origins[key] = "env"
    sections["state"]["dir"], sections["socket"]["path"] = places
    if not sections["daemon"].get("slots_max"):
        sections["daemon"]["slots_max"] = max(SLOTS_MIN, os.cpu_count() or 1)
    made = {name: kind(**sections[name]) for name, kind in _SECTIONS.items()}
    return Loaded(Config(**made, executor=executors), path, reader.origins), reader.problems


def _parse(path: str) -> dict[str, Any]:
    try:
        content = platform.read_config(path, CONFIG_BYTES_MAX)
        return tomllib.loads(content.decode())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        detail = (isinstance(error, OSError) and error.strerror) or error
        raise Rejected("config_unreadable", path=path, detail=detail) from error


class _Reader:
    """Turns what TOML and the environment say into checked values, and gathers the problems and the origins."""

    def __init__(self) -> None:
        self.problems: list[Rejected] = []
        self.origins: dict[str, Origin] = {}

    def section(self, name: str, table: object) -> dict[str, Any]:
        """Checks the keys of one section of the file."""
        values: dict[str, Any] = {}
        if not isinstance(table, dict):
            self.problems.append(_bad(name, table, f"it is a section: write [{name}] and its keys below"))
            return values
        fields = _fields(_SECTIONS[name])
        for key, value in cast(dict[str, Any], table).items():
            if key not in fields:
                self.problems.append(_unknown(f"{name}.{key}", [f"{name}.{field}" for field in fields]))
            else:
                self._take(values, f"{name}.{key}", key, value, fields[key], "file")
        return values

    def environment(self, environ: Mapping[str, str], sections: dict[str, dict[str, Any]]) -> None:
        """Lays what ``OMNID_<SECTION>__<KEY>`` say over the sections of the file."""
        known = {
            f"OMNID_{section}__{key}".upper(): (section, key, hint)
            for section, kind in _SECTIONS.items()
            for key, hint in _fields(kind).items()
        }
        for variable, text in environ.items():
            if variable in known:
                section, key, hint = known[variable]
                self._take(sections[section], f"{section}.{key}", key, _value_of(text, hint), hint, "env")
            elif _VARIABLE.fullmatch(variable):
                self.problems.append(_unknown(variable, list(known)))

    def executors(self, tables: object) -> tuple[Executor, ...]:
        """Checks the executors of the file and adds the built-in one where the file doesn't override it."""
        found: dict[str, Executor] = {}
        if not isinstance(tables, list):
            self.problems.append(_bad("executor", tables, "executors are a list: write [[executor]] above each"))
            tables = []
        for position, table in enumerate(cast(list[Any], tables)):
            executor = self._executor(f"executor[{position}]", table)
            if executor is None:
                continue
            if executor.name in found:
                self.problems.append(_bad("executor.name", executor.name, "another executor has that name"))
            found[executor.name] = executor
            self.origins[f"executor.{executor.name}"] = "file"
        return tuple({COMMAND: CommandExecutor(name=COMMAND), **found}.values())

    def together(self, sections: dict[str, dict[str, Any]], executors: tuple[Executor, ...]) -> None:
        """Checks what can only be judged together."""
        names = [executor.name for executor in executors]
        for name in sections["agents"].get("allow", ()):
            if name not in names:
                detail = f"there is no executor of that name{_hint(name, names)}"
                self.problems.append(_bad("agents.allow", name, detail))
        for section, lower, upper in (
            ("retry", "backoff_base_s", "backoff_max_s"),
            ("limits", "spool_bytes_max", "spool_total_bytes_max"),
        ):
            low, high = (sections[section].get(key, _default(section, key)) for key in (lower, upper))
            if low > high:
                self.problems.append(_bad(f"{section}.{lower}", low, f"it is more than {section}.{upper} = {high}"))
        for section, key in (("state", "dir"), ("socket", "path")):
            path = sections[section].get(key, "")
            if self.origins.get(f"{section}.{key}") == "file" and path and not path.startswith(("/", "~/")):
                self.problems.append(_bad(f"{section}.{key}", path, "a path starts with / or ~/"))

    def _executor(self, where: str, table: object) -> Executor | None:
        """Checks one executor; None where it can't be made."""
        before = len(self.problems)
        if not isinstance(table, dict):
            self.problems.append(_bad(where, table, "write [[executor]] and its keys below"))
            return None
        given = cast(dict[str, Any], table)
        name, kind = given.get("name"), given.get("kind")
        if not isinstance(name, str) or not _EXECUTOR_NAME.fullmatch(name):
            detail = "a name has 1 to 64 of a-z 0-9 . _ - and starts with a letter or a digit"
            self.problems.append(_bad(f"{where}.name", name, detail))
        else:
            where = f"executor.{name}"
        if not isinstance(kind, str) or kind not in _KINDS:
            self.problems.append(_bad(f"{where}.kind", kind, f"it is one of {', '.join(_KINDS)}"))
            return None
        if name == COMMAND and kind != COMMAND:
            self.problems.append(_bad(f"{where}.kind", kind, "this name belongs to the built-in executor of commands"))
        values: dict[str, Any] = {}
        fields = _fields(_KINDS[kind])
        for key, value in given.items():
            if key in fields:
                self._take(values, f"{where}.{key}", key, value, fields[key], None)
            elif key != "kind":
                self.problems.append(_unknown(f"{where}.{key}", [f"{where}.{field}" for field in (*fields, "kind")]))
        self._environment_of(where, values)
        if kind == "mcp" and not values.get("argv") and len(self.problems) == before:
            self.problems.append(_bad(f"{where}.argv", [], "an MCP server needs the command that starts it"))
        return _KINDS[kind](**values) if len(self.problems) == before else None

    def _environment_of(self, where: str, values: dict[str, Any]) -> None:
        for variable, value in values.get("env_set", {}).items():
            if looks_plain(variable, value):
                self.problems.append(Rejected("secret_plain", key=f"{where}.env_set.{variable}"))

    def _take(self, values: dict[str, Any], key: str, field: str, value: Any, hint: Any, origin: Origin | None) -> None:
        try:
            values[field] = msgspec.convert(value, hint)
        except msgspec.ValidationError as error:
            choices = get_args(hint) if get_origin(hint) is Literal else ()
            detail = f"it is one of {', '.join(choices)}" if choices else str(error).replace("`", "")
            self.problems.append(_bad(key, value, detail.replace(" - at $", " at ")))
            return
        if _holds_nul(value):
            self.problems.append(_bad(key, value, "it holds a NUL character, which no program takes"))
        if origin is not None:
            self.origins[key] = origin


def _fields(kind: type[Any]) -> dict[str, Any]:
    hints = get_type_hints(kind, include_extras=True)
    return {name: hints[name] for name in kind.__struct_fields__}


def _holds_nul(value: object) -> bool:
    if isinstance(value, dict):
        return any(_holds_nul(part) for pair in cast(dict[str, Any], value).items() for part in pair)
    if isinstance(value, list):
        return any(map(_holds_nul, cast(list[Any], value)))
    return isinstance(value, str) and "\0" in value


def _default(section: str, key: str) -> Any:
    return getattr(_SECTIONS[section](), key)


def _value_of(text: str, hint: Any) -> Any:
    """Reads a variable as TOML would read the value, so that lists and numbers work; text needs no quotes."""
    if hint is str:
        return text
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _hint(name: str, known: list[str]) -> str:
    near = get_close_matches(name, known, n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def _unknown(key: str, known: list[str]) -> Rejected:
    return Rejected("config_unknown_key", key=key, hint=_hint(key, known))


def _bad(key: str, value: object, detail: str) -> Rejected:
    # A secret in a place where none belongs must not come out with the error.
    shown = "(not set)" if value is None else "(hidden)" if looks_plain(key, str(value)) else repr(value)
    return Rejected("config_bad_value", key=key, value=shown[:SHOWN_CHARS_MAX], detail=detail)
