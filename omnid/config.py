"""The config: every setting with its default and range, read once, checked whole, never changed in place.

A value comes from ``OMNID_<SECTION>__<KEY>`` in the environment, else from the file, else from the default here. What
depends on the machine (paths, cores) is filled in by `load`, so readers of a `Config` never see "automatic".
"""

import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from typing import Any, Literal, cast, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Struct

from omnid import channels, platform, servers
from omnid.config_problems import bad, hint, money, presets, remotes, rights, runners, unknown
from omnid.errors import Rejected
from omnid.patterns import said
from omnid.secrets import is_reference, looks_plain
from omnid.settings import (
    AGENT_PROGRAMS,
    COMMAND,
    DESKTOP,
    MIB,
    MODEL,
    NO_PROFILE,
    OFFLINE,
    Cap,
    Channel,
    CommandExecutor,
    Config,
    Destination,
    Executor,
    McpExecutor,
    ModelExecutor,
    Preset,
    Rule,
)
from omnid.settings import Origin as OriginSection
from omnid.settings_links import Link, Remote

Origin = Literal["default", "file", "env"]

CONFIG_BYTES_MAX = MIB
SLOTS_MIN = 4
AT_START = ("daemon.name", "state.", "socket.", "http.", "store.", "log.", "workspace.dir", "brainstem.dir")
"""The settings that are read when the daemon starts: a reload that changes them is refused, except for `LIVE`."""
LIVE = frozenset({"store.free_bytes_min"})

_EXECUTOR_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_VARIABLE = re.compile(r"OMNID_([A-Z]+)__([A-Z0-9_]+)")
_KINDS: dict[str, type[Executor]] = {"command": CommandExecutor, "mcp": McpExecutor, "model": ModelExecutor}
_LISTS: dict[str, type[Any]] = {
    "rule": Rule,
    "cap": Cap,
    "origin": OriginSection,
    "destination": Destination,
    "channel": Channel,
    "link": Link,
    "remote": Remote,
    "preset": Preset,
}
"""The lists of sections beside `executor`: ``[[rule]]`` and the like, each with a name of its own."""


BUILT_IN: dict[str, Executor] = {
    COMMAND: CommandExecutor(name=COMMAND),
    **{name: CommandExecutor(name=name, profile=name) for name in AGENT_PROGRAMS.values()},
}
"""The executors that are there without any config."""
WITH_CHANNELS: dict[str, Executor] = {
    **BUILT_IN,
    MODEL: ModelExecutor(name=MODEL),
    OFFLINE: ModelExecutor(name=OFFLINE),
}
"""Those that are there where the config has channels."""

_SECTIONS: dict[str, type[Any]] = {
    name: kind for name, kind in get_type_hints(Config).items() if name not in ("executor", *_LISTS)
}


class Loaded(Struct, frozen=True):
    """A config, the file it came from (which need not exist), and the origin of each key that isn't a default."""

    config: Config
    path: str
    origins: dict[str, Origin]

    def rows(self) -> Iterator[tuple[str, Any, Origin]]:
        """Gives key, value and origin of every setting; secrets appear as the references that the config holds."""
        for section, values in msgspec.to_builtins(self.config).items():
            if section in _SECTIONS:
                for key, value in values.items():
                    yield f"{section}.{key}", value, self.origins.get(f"{section}.{key}", "default")
        for kind in ("executor", *_LISTS):
            for item in getattr(self.config, kind):
                if item.name != COMMAND and item == WITH_CHANNELS.get(item.name):
                    continue  # An agent or a model that nobody has set anything of.
                origin = self.origins.get(f"{kind}.{item.name}", "default")
                for key, value in msgspec.to_builtins(item).items():
                    if key != "name":
                        yield f"{kind}.{item.name}.{key}", value, origin


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
            raise bad(key, after[key], f"the running daemon uses {value}, and only a restart can change that")
    if new.config.http.listen and _tokens(loaded.config) != _tokens(new.config):
        detail = "tokens are read when the daemon starts, and only a restart can change them"
        raise bad("origin.token", None, detail)
    return new


def _tokens(settings: Config) -> dict[str, str]:
    return {section.name: section.token for section in settings.origin if section.token}


def _settings(settings: Config) -> Iterator[tuple[str, Any]]:
    for section, values in msgspec.to_builtins(settings).items():
        if section in _SECTIONS:
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
    for name in settings.keys() - _SECTIONS.keys() - {"executor", *_LISTS}:
        reader.problems.append(unknown(name, [*_SECTIONS, "executor", *_LISTS]))
    lists: dict[str, Any] = {name: reader.named(name, kind, settings.get(name, [])) for name, kind in _LISTS.items()}
    lists["channel"] = reader.channels(lists["channel"])
    executors = reader.executors(settings.get("executor", []), WITH_CHANNELS if lists["channel"] else BUILT_IN)
    reader.environment(environ, sections)
    reader.together(sections, executors)
    reader.http(sections["http"], lists["origin"], environ)
    reader.places(sections["notify"], lists["destination"], executors)
    reader.problems += money(executors, lists["cap"])
    reader.problems += rights(executors, lists["origin"])
    reader.problems += runners(sections["runner"], lists["link"], executors)
    reader.problems += remotes(lists["remote"], lists["link"], executors)
    reader.problems += presets(lists["preset"])
    places = platform.paths(environ, settings)
    for variable, key in (("OMNID_STATE", "state.dir"), ("OMNID_SOCKET", "socket.path")):
        if environ.get(variable):
            reader.origins[key] = "env"
    sections["state"]["dir"], sections["socket"]["path"] = places
    if not sections["daemon"].get("slots_max"):
        sections["daemon"]["slots_max"] = max(SLOTS_MIN, os.cpu_count() or 1)
    made: dict[str, Any] = {name: kind(**sections[name]) for name, kind in _SECTIONS.items()}
    return Loaded(Config(**made, executor=executors, **lists), path, reader.origins), reader.problems


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
            self.problems.append(bad(name, table, f"it is a section: write [{name}] and its keys below"))
            return values
        fields = _fields(_SECTIONS[name])
        for key, value in cast(dict[str, Any], table).items():
            if key not in fields:
                self.problems.append(unknown(f"{name}.{key}", [f"{name}.{field}" for field in fields]))
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
                self.problems.append(unknown(variable, list(known)))

    def executors(self, tables: object, built_in: Mapping[str, Executor]) -> tuple[Executor, ...]:
        """Checks the executors of the file and adds the built-in ones that the file doesn't override."""
        found: dict[str, Executor] = {}
        for position, table in enumerate(self._tables("executor", tables)):
            executor = self._executor(f"executor[{position}]", table)
            if executor is not None:
                self._found("executor", executor.name, executor, found)
        return tuple({**built_in, **found}.values())

    def named(self, what: str, kind: type[Any], tables: object) -> tuple[Any, ...]:
        """Checks a list of sections that each have a name."""
        found: dict[str, Any] = {}
        fields = _fields(kind)
        for position, table in enumerate(self._tables(what, tables)):
            before = len(self.problems)
            values: dict[str, Any] = {}
            where = f"{what}.{table.get('name') or position}"
            for key, value in table.items():
                if key in fields:
                    self._take(values, f"{where}.{key}", key, value, fields[key], None)
                else:
                    self.problems.append(unknown(f"{where}.{key}", [f"{where}.{field}" for field in fields]))
            missing = [f.name for f in msgspec.structs.fields(kind) if f.required and f.name not in table]
            self.problems += [bad(f"{where}.{key}", None, "it has no default") for key in missing]
            if len(self.problems) == before:
                self._found(what, values["name"], kind(**values), found)
        return tuple(found.values())

    def channels(self, given: tuple[Channel, ...]) -> tuple[Channel, ...]:
        """Checks the channels as wholes, and fills in what their profiles know."""
        for channel in given:
            where = f"channel.{channel.name}"
            for reference in (channel.key, *channel.backup_keys):
                if reference and not is_reference(reference):
                    self.problems.append(Rejected("secret_plain", key=f"{where}.key"))
            for key, detail in channels.problems(channel):
                # An address may hold a password.
                value = None if key == "base_url" and "@" in channel.base_url else getattr(channel, key) or None
                self.problems.append(bad(f"{where}.{key}", value, detail))
        return tuple(channels.whole(channel) for channel in given)

    def _tables(self, what: str, tables: object) -> Iterator[dict[str, Any]]:
        """Gives the sections of a list one by one, without those that are none."""
        if not isinstance(tables, list):
            self.problems.append(bad(what, tables, f"it is a list: write [[{what}]] above each"))
            return
        for position, table in enumerate(cast(list[Any], tables)):
            if isinstance(table, dict):
                yield cast(dict[str, Any], table)
            else:
                self.problems.append(bad(f"{what}[{position}]", table, f"write [[{what}]] and its keys below"))

    def _found(self, what: str, name: str, item: Any, found: dict[str, Any]) -> None:
        if name in found:
            self.problems.append(bad(f"{what}.name", name, f"another {what} has that name"))
        found[name] = item
        self.origins[f"{what}.{name}"] = "file"

    def together(self, sections: dict[str, dict[str, Any]], executors: tuple[Executor, ...]) -> None:
        """Checks what can only be judged together."""
        names = [executor.name for executor in executors]
        allow, repair = sections["agents"].get("allow", ()), sections["mode"].get("repair_executor") or COMMAND
        for key, name in [*(("agents.allow", name) for name in allow), ("mode.repair_executor", repair)]:
            if name not in names:
                detail = f"there is no executor of that name{hint(name, names)}"
                self.problems.append(bad(key, name, detail))
        for section, lower, upper in (
            ("retry", "backoff_base_s", "backoff_max_s"),
            ("limits", "spool_bytes_max", "spool_total_bytes_max"),
        ):
            low, high = (sections[section].get(key, _default(section, key)) for key in (lower, upper))
            if low > high:
                self.problems.append(bad(f"{section}.{lower}", low, f"it is more than {section}.{upper} = {high}"))
        zone = sections["daemon"].get("zone", "")
        try:
            platform.zone(zone)
        except ValueError as error:
            self.problems.append(bad("daemon.zone", zone, f"{error}{hint(zone, platform.zones())}"))
            del sections["daemon"]["zone"]
        for section, key in (("state", "dir"), ("socket", "path"), ("workspace", "dir"), ("brainstem", "dir")):
            path = sections[section].get(key, "")
            if self.origins.get(f"{section}.{key}") == "file" and path and not path.startswith(("/", "~/")):
                self.problems.append(bad(f"{section}.{key}", path, "a path starts with / or ~/"))

    def http(self, http: dict[str, Any], origins: tuple[OriginSection, ...], environ: Mapping[str, str]) -> None:
        """Checks that HTTP is open to nobody who shouldn't come in, and makes its paths absolute."""
        listen, token = http.get("listen", ""), http.get("token", "")
        address = platform.host_port(listen)
        if listen and address is None:
            detail = 'it is an address and a port, as in "127.0.0.1:7373" or "[::1]:7373"'
            self.problems.append(bad("http.listen", listen, detail))
        if token and not is_reference(token):
            self.problems.append(Rejected("secret_plain", key="http.token"))
        any_token = token or any(section.token for section in origins)
        if address is not None and not any_token and not platform.is_loopback(address[0]):
            detail = f"{listen} can be reached from elsewhere, and whoever reaches it could hand over tasks"
            self.problems.append(bad("http.token", token or None, detail))
        if bool(http.get("certificate")) != bool(http.get("private_key")):
            detail = "TLS needs http.certificate and http.private_key, both"
            self.problems.append(bad("http.certificate", http.get("certificate"), detail))
        for key in ("certificate", "private_key"):
            if path := http.get(key):
                http[key] = platform.absolute(path, environ)

    def places(
        self, notify: dict[str, Any], destinations: tuple[Destination, ...], executors: tuple[Executor, ...]
    ) -> None:
        """Checks where answers and notices go."""
        names = [DESKTOP, *(section.name for section in destinations)]
        for name in notify.get("to", ()):
            if name not in names:
                detail = f"there is no destination of that name{hint(name, names)}"
                self.problems.append(bad("notify.to", name, detail))
        mcp = [executor.name for executor in executors if isinstance(executor, McpExecutor)]
        for section in destinations:
            where = f"destination.{section.name}"
            if section.kind == "command" and not section.argv:
                self.problems.append(bad(f"{where}.argv", [], "a command needs its program"))
            if section.kind in ("webhook", "apprise"):
                self._url_of(section, where)
            if section.secret and not is_reference(section.secret):
                self.problems.append(Rejected("secret_plain", key=f"{where}.secret"))
            if section.executor is not None and section.executor not in mcp:
                detail = f"there is no mcp executor of that name{hint(section.executor, mcp)}"
                self.problems.append(bad(f"{where}.executor", section.executor, detail))

    def _url_of(self, section: Destination, where: str) -> None:
        """Checks an URL: those of Apprise hold keys, and a webhook's goes over TLS unless it stays on the machine."""
        if is_reference(section.url):
            return
        if section.kind == "apprise" and section.url:
            self.problems.append(Rejected("secret_plain", key=f"{where}.url"))
        elif not servers.is_guarded(section.url):
            detail = "it begins with https:// (or http:// and a loopback address), and holds no password"
            self.problems.append(bad(f"{where}.url", section.url or None, detail))

    def _executor(self, where: str, given: dict[str, Any]) -> Executor | None:
        """Checks one executor; None where it can't be made."""
        before = len(self.problems)
        name, kind = given.get("name"), given.get("kind")
        if not isinstance(name, str) or not _EXECUTOR_NAME.fullmatch(name):
            detail = "a name has 1 to 64 of a-z 0-9 . _ - and starts with a letter or a digit"
            self.problems.append(bad(f"{where}.name", name, detail))
        else:
            where = f"executor.{name}"
        if not isinstance(kind, str) or kind not in _KINDS:
            self.problems.append(bad(f"{where}.kind", kind, f"it is one of {', '.join(_KINDS)}"))
            return None
        if name in (COMMAND, MODEL) and kind != name:
            self.problems.append(bad(f"{where}.kind", kind, f"this name belongs to the built-in executor of {name}s"))
        values: dict[str, Any] = {}
        fields = _fields(_KINDS[kind])
        for key, value in given.items():
            if key in fields:
                self._take(values, f"{where}.{key}", key, value, fields[key], None)
            elif key != "kind":
                self.problems.append(unknown(f"{where}.{key}", [f"{where}.{field}" for field in (*fields, "kind")]))
        self._environment_of(where, values)
        self._profile_of(where, given, values)
        if kind == "mcp" and len(self.problems) == before:
            self._server_of(where, values)
        return _KINDS[kind](**values) if len(self.problems) == before else None

    def _server_of(self, where: str, values: dict[str, Any]) -> None:
        secrets = {"token": values.get("token", ""), **values.get("headers", {})}
        self.problems += [
            Rejected("secret_plain", key=f"{where}.{name if name == 'token' else f'headers.{name}'}")
            for name, value in secrets.items()
            if looks_plain(name, value)
        ]
        known = not is_reference(values.get("url", ""))
        for key, value, detail in servers.problems(values, url_is_known=known):
            self.problems.append(bad(f"{where}.{key}", value, detail))

    def _profile_of(self, where: str, given: dict[str, Any], values: dict[str, Any]) -> None:
        """Refuses a profile that isn't known, and gives an executor of an agent's name that agent's."""
        name, known = values.get("profile"), [*AGENT_PROGRAMS.values(), NO_PROFILE]
        if name is not None and name not in known:
            detail = f"it is one of {', '.join(known)}{hint(name, known)}"
            self.problems.append(bad(f"{where}.profile", name, detail))
        elif name is None and given["kind"] == COMMAND and given.get("name") in AGENT_PROGRAMS.values():
            values["profile"] = given["name"]

    def _environment_of(self, where: str, values: dict[str, Any]) -> None:
        for variable, value in values.get("env_set", {}).items():
            if looks_plain(variable, value):
                self.problems.append(Rejected("secret_plain", key=f"{where}.env_set.{variable}"))

    def _take(self, values: dict[str, Any], key: str, field: str, value: Any, hint: Any, origin: Origin | None) -> None:
        try:
            values[field] = msgspec.convert(value, hint)
        except msgspec.ValidationError as error:
            choices = [
                choice for part in (hint, *get_args(hint)) if get_origin(part) is Literal for choice in get_args(part)
            ]
            detail = f"it is one of {', '.join(choices)}" if choices else said(error).replace("`", "")
            self.problems.append(bad(key, value, detail.replace(" - at $", " at ")))
            return
        if _holds_nul(value):
            self.problems.append(bad(key, value, "it holds a NUL character, which no program takes"))
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
