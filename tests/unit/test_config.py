"""The config: defaults, sources, and that whatever is wrong is named whole."""

import re
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omnid import config
from omnid.errors import Rejected
from omnid.settings import CommandExecutor, McpExecutor

SHIPPED = Path(__file__).parents[2] / "config" / "omnid.toml"


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {"HOME": str(tmp_path)}


def written(tmp_path: Path, text: str) -> str:
    path = tmp_path / "omnid.toml"
    path.write_text(text)
    return str(path)


def problems_of(tmp_path: Path, text: str, **environ: str) -> list[str]:
    return [str(problem) for problem in config.check({"HOME": "/home/u", **environ}, written(tmp_path, text))]


def examples() -> str:
    """The commented examples at the end of the shipped config, as they would stand in a file."""
    text = SHIPPED.read_text().partition("# [[executor]]")
    return re.sub(r"(?m)^# ?(?=[a-z_]+ = |\[\[|# )", "", "[[executor]]" + text[2])


@pytest.mark.parametrize(
    "text",
    [
        '[agents]\nallow = ["a\\u0000b"]',
        '[[executor]]\nname = "x"\nkind = "command"\nargv = ["a\\u0000b"]',
        '[[executor]]\nname = "x"\nkind = "command"\nenv_set = { A = "a\\u0000b" }',
        '[[executor]]\nname = "x"\nkind = "mcp"\nargv = ["a"]\narguments = { "a\\u0000" = [1] }',
    ],
)
def test_nul_is_refused(tmp_path: Path, text: str) -> None:
    assert any("NUL" in problem for problem in problems_of(tmp_path, text))


def test_a_missing_and_an_empty_file_give_the_defaults(tmp_path: Path, environ: dict[str, str]) -> None:
    missing = config.load(environ, str(tmp_path / "none.toml"))
    empty = config.load(environ, written(tmp_path, ""))
    assert missing.config == empty.config
    assert missing.config.state.dir == str(tmp_path / ".local/state/omnid")
    assert missing.config.socket.path == str(tmp_path / ".local/state/omnid/omnid.sock")
    assert missing.config.daemon.slots_max >= 4
    agents = {name: CommandExecutor(name=name, profile=name) for name in ("claude-code", "codex", "gemini", "openclaw")}
    assert missing.config.executors() == {"command": CommandExecutor(name="command"), **agents}
    assert not any(key.startswith("executor.codex") for key, _, _ in missing.rows()), "nobody asked for it"
    assert {origin for _, _, origin in missing.rows()} == {"default"}


def test_an_executor_of_an_agents_name_has_its_profile(tmp_path: Path, environ: dict[str, str]) -> None:
    text = "[[executor]]\nname = 'codex'\nkind = 'command'\nconcurrency = 2\n"
    loaded = config.load(environ, written(tmp_path, text))
    assert loaded.config.executors()["codex"] == CommandExecutor(name="codex", profile="codex", concurrency=2)
    assert ("executor.codex.concurrency", 2, "file") in list(loaded.rows())


def test_the_shipped_config_is_the_defaults(tmp_path: Path, environ: dict[str, str]) -> None:
    shipped = config.load(environ, str(SHIPPED))
    assert shipped.config == config.load(environ, str(tmp_path / "none.toml")).config


def test_the_examples_of_the_shipped_config_show_every_key_of_an_executor(
    tmp_path: Path, environ: dict[str, str]
) -> None:
    loaded = config.load(environ, written(tmp_path, examples()))
    claude, memory = loaded.config.executors()["claude"], loaded.config.executors()["memory"]
    assert isinstance(claude, CommandExecutor)
    assert isinstance(memory, McpExecutor)
    shown = {table["name"]: set(table) - {"kind"} for table in tomllib.loads(examples())["executor"]}
    assert shown["claude"] == set(CommandExecutor.__struct_fields__)
    assert shown["memory"] | shown["tracker"] == set(McpExecutor.__struct_fields__)
    for name, kind in config._LISTS.items():
        tables = tomllib.loads(examples())[name]
        assert set[str]().union(*tables) == set(kind.__struct_fields__)
    assert claude.result.cost_usd == "total_cost_usd"


def test_the_environment_goes_over_the_file_and_the_file_over_the_default(
    tmp_path: Path, environ: dict[str, str]
) -> None:
    path = written(tmp_path, "[daemon]\nslots_max = 3\n[limits]\nafter_max = 7\n[agents]\nallow = ['command']\n")
    environ |= {"OMNID_DAEMON__SLOTS_MAX": "9", "OMNID_LOG__LEVEL": "debug", "OMNID_AGENTS__ALLOW": "[]"}
    loaded = config.load(environ, path)
    assert (loaded.config.daemon.slots_max, loaded.config.limits.after_max, loaded.config.log.level) == (9, 7, "debug")
    assert loaded.config.agents.allow == ()
    origins = {key: origin for key, _, origin in loaded.rows()}
    keys = ("daemon.slots_max", "limits.after_max", "log.level", "log.files_max")
    assert [origins[key] for key in keys] == ["env", "file", "env", "default"]


def test_the_paths_have_variables_of_their_own(tmp_path: Path, environ: dict[str, str]) -> None:
    path = written(tmp_path, "[state]\ndir = '~/here'\n[socket]\npath = '/run/o.sock'\n")
    loaded = config.load(environ, path)
    assert loaded.config.state.dir == str(tmp_path / "here")
    loaded = config.load(environ | {"OMNID_STATE": "/srv/o", "OMNID_SOCKET": "/srv/s"}, path)
    assert (loaded.config.state.dir, loaded.config.socket.path) == ("/srv/o", "/srv/s")
    assert loaded.origins["state.dir"] == loaded.origins["socket.path"] == "env"


MCP = "[[executor]]\nname = 'a'\nkind = 'mcp'\n"
FAR = MCP + "url = 'https://a.b/mcp'\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[daemn]", "daemn (did you mean daemon?)"),
        ("[daemon]\nzone = 'Europe/Belin'", "did you mean Europe/Berlin?"),
        ("[daemon]\nzone = '../etc'", "there is no time zone ../etc"),
        ("[daemon]\nslot_max = 3", "daemon.slot_max (did you mean daemon.slots_max?)"),
        ("daemon = 3", "daemon = 3 can't be used: it is a section"),
        ("[socket]\nclients_max = 0", "socket.clients_max = 0 can't be used: Expected int >= 1"),
        ("[socket]\nclients_max = '9'", "socket.clients_max = '9' can't be used: Expected int, got str"),
        ("[task]\ntimeout_s = nan", "task.timeout_s = nan can't be used"),
        ("[task]\ntimeout_s = inf", "task.timeout_s = inf can't be used"),
        ("[log]\nlevel = 'loud'", "log.level = 'loud' can't be used: it is one of debug, info, warning, error"),
        ("[retry]\nbackoff_max_s = 0.5", "retry.backoff_base_s = 1.0 can't be used: it is more than"),
        ("[limits]\nspool_total_bytes_max = 2048", "limits.spool_bytes_max = 268435456 can't be used"),
        ("[agents]\nallow = ['comand']", "there is no executor of that name (did you mean command?)"),
        (
            "[mode]\nrepair_executor = 'claud-code'",
            "mode.repair_executor = 'claud-code' can't be used: there is no exe",
        ),
        ("[brainstem]\ndir = 'here'", "brainstem.dir = 'here' can't be used: a path starts with / or ~/"),
        ("[brainstem]\nbase_url = 'http://10.0.0.5:80/v1'", "can't be used: Expected an address on this machine with"),
        ("[brainstem]\nbase_url = 'http://localhost/v1'", "can't be used: Expected an address on this machine with"),
        ("[brainstem]\nhub = 'http://hub.example'", "'http://hub.example' can't be used: Expected an address"),
        ("[brainstem]\nhub = 'https://me:pw@hub.example'", "brainstem.hub = 'https://(hidden)@hub.example' can't be"),
        ("[brainstem]\nweights = 'qwen'", "brainstem.weights = 'qwen' can't be used: Expected a name like"),
        ("[state]\ndir = 'here'", "state.dir = 'here' can't be used: a path starts with / or ~/"),
        ("[workspace]\ndir = 'here'", "workspace.dir = 'here' can't be used: a path starts with / or ~/"),
        ("[", "can't be read: "),
        ("executor = 3", "it is a list: write [[executor]] above each"),
        ("[[rule]]\nname = 'a'", "rule.a.executor = (not set) can't be used: it has no default"),
        ("[[rule]]\nname = 'a'\nexecutor = ['b']\nlane = 'x'", "rule.a.lane = 'x' can't be used"),
        ("[[rule]]\nname = 'a'\nexecutor = []", "rule.a.executor = [] can't be used"),
        ("[[rule]]\nname = 'a'\nexecutor = ['b']\ntext = ['a*b']", "rule.a.text = ['a*b'] can't be used"),
        ("[[cap]]\nname = 'a'\ndai_usd = 1", "did you mean cap.a.day_usd?"),
        ("[[destination]]\nname = 'a'\nkind = 'openclaw'\n" * 2, "another destination has that name"),
        ("[[destination]]\nname = 'a'\nkind = 'command'", "destination.a.argv = [] can't be used"),
        ("[[destination]]\nname = 'a'\nkind = 'webhook'", "destination.a.url = (not set) can't be used"),
        ("[[destination]]\nname = 'a'\nkind = 'webhook'\nurl = 'http://example.org/'", "destination.a.url = 'http://e"),
        (
            "[[destination]]\nname = 'a'\nkind = 'webhook'\nurl = 'https://me:pw@example.org/'",
            "it begins with https://",
        ),
        ("[[destination]]\nname = 'a'\nkind = 'apprise'\nurl = 'tgram://1/2'", "destination.a.url holds what looks"),
        (
            "[[destination]]\nname = 'a'\nkind = 'webhook'\nurl = 'https://a.b/'\nsecret = 'x'",
            "destination.a.secret holds what looks",
        ),
        (
            "[[destination]]\nname = 'a'\nkind = 'openclaw'\nexecutor = 'claude'",
            "there is no mcp executor of that name",
        ),
        ("[notify]\nto = ['desktp']", "notify.to = 'desktp' can't be used: there is no destination of that name (did"),
        ("[[cap]]\nname = 'a'\nday_usd = 1", "a cap holds for one label or for one executor"),
        ("[[cap]]\nname = 'a'\nlabel = 'x'\nexecutor = 'command'\nday_usd = 1", "for one label or for one executor"),
        ("[[cap]]\nname = 'a'\nexecutor = 'comand'\nday_usd = 1", "did you mean command?"),
        ("[[cap]]\nname = 'a'\nlabel = 'x'", "a cap needs day_usd or month_usd"),
        ("[budget]\nrun_usd = 0", "budget.run_usd"),
        ("[budget]\nday_usd = -1", "budget.day_usd = -1 can't be used"),
        ("[notify]\nquiet = '8-9'", "notify.quiet = '8-9' can't be used"),
        ("executor = [3]", "executor[0] = 3 can't be used: write [[executor]]"),
        ("[[executor]]\nname = 'A b'\nkind = 'command'", "executor[0].name = 'A b' can't be used: a name has 1 to 64"),
        ("[[executor]]\nkind = 'command'", "executor[0].name = (not set) can't be used"),
        ("[[executor]]\nname = 'a'\nkind = 'x'", "executor.a.kind = 'x' can't be used: it is one of command, mcp"),
        ("[[executor]]\nname = 'a'\nkind = 'mcp'", "executor.a.argv = [] can't be used: an MCP server needs"),
        (FAR + "argv = ['x']", "executor.a.argv = ['x'] can't be used: an MCP server needs the command"),
        (FAR + "env_set = { A = 'b' }", "executor.a.env_set = {'A': 'b'} can't be used: it is for a server that omnid"),
        (MCP + "argv = ['x']\nverify = false", "executor.a.verify = False can't be used: it is for a server at a url"),
        (MCP + "url = 'ftp://a.b/'", "executor.a.url = 'ftp://a.b/' can't be used: it begins with https://"),
        (MCP + "url = 'https://me:pw@a.b/'", "executor.a.url = (not set) can't be used: it begins with https://"),
        (MCP + "url = 'http://a.b/'\ntoken = 'env:X'", "executor.a.url = 'http://a.b/' can't be used: it begins with"),
        (FAR + "token = 'tiger'", "executor.a.token holds what looks"),
        (FAR + "headers = { X-Api-Key = 'tiger' }", "executor.a.headers.X-Api-Key holds what looks"),
        (FAR + "headers = { Host = 'c.d' }", "executor.a.headers.Host = 'Host' can't be used: omnid sets"),
        (FAR + "headers = { 'a b' = 'c' }", "executor.a.headers.a b = 'a b' can't be used: it is no name"),
        (FAR + "ca_file = 'ca.pem'", "executor.a.ca_file = 'ca.pem' can't be used: a path starts with /"),
        ("[[executor]]\nname = 'command'\nkind = 'mcp'\nargv = ['x']", "this name belongs to the built-in"),
        ("[[executor]]\nname = 'a'\nkind = 'command'\nidempotnt = true", "did you mean executor.a.idempotent?"),
        ("[[executor]]\nname = 'a'\nkind = 'command'\nresult.outpt = 'x'", "executor.a.result = {'outpt': 'x'}"),
        ("[[executor]]\nname = 'a'\nkind = 'command'\n" * 2, "another executor has that name"),
        ("[[executor]]\nname = 'a'\nkind = 'command'\nprofile = 'claude'", "it is one of claude-code, codex, gemini"),
        (
            "[daemon]\nzone = 'Mars/Olympus'",
            "daemon.zone = 'Mars/Olympus' can't be used: there is no time zone Mars/Olympus",
        ),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, says: str) -> None:
    found = problems_of(tmp_path, text)
    assert len(found) == 1
    assert says in found[0]
    with pytest.raises(Rejected) as raised:
        config.load({"HOME": "/home/u"}, written(tmp_path, text))
    assert str(raised.value) == found[0]
    assert raised.value.what
    assert raised.value.why
    assert raised.value.do


def test_check_finds_all_problems_at_once(tmp_path: Path) -> None:
    text = "[socket]\nclients_max = 0\nfoo = 1\n[[executor]]\nname = 'a'\nkind = 'mcp'\n"
    found = problems_of(tmp_path, text, OMNID_LOG__LEVL="x", OMNID_LOG__FILES_MAX="many")
    assert len(found) == 5
    assert any("OMNID_LOG__LEVL (did you mean OMNID_LOG__LEVEL?)" in problem for problem in found)


@pytest.mark.parametrize(
    "text",
    [
        "[[executor]]\nname = 'a'\nkind = 'command'\nenv_set = { API_KEY = 'hunter2' }",
        "[[executor]]\nname = 'a'\nkind = 'command'\nenv_set = { X = 'sk-ant-REDACTED' }",
        "[[executor]]\nname = 'a'\nkind = 'sk-ant-REDACTED'",
        "[socket]\npath = 'sk-ant-REDACTED'",
        "[log]\nlevel = 'sk-ant-REDACTED'",
        "[[link]]\nname = 'a'\nurl = 'redis://u:hunter2@127.0.0.1'",
        "[[link]]\nname = 'a'\nurl = 'redis://127.0.0.1?password=hunter2'",
        "[[link]]\nname = 'a'\nurl = 'redis://127.0.0.1:hunter2'",
        "[runner]\nlink = 'redis://127.0.0.1?password=hunter2'",
    ],
)
def test_a_secret_in_plain_text_is_refused_and_not_repeated(tmp_path: Path, text: str) -> None:
    (problem,) = config.check({"HOME": "/home/u"}, written(tmp_path, text.replace("REDACTED", "a1" * 20)))
    assert "a1a1" not in str(problem)
    assert "hunter2" not in str(problem)


def test_a_reference_to_a_secret_is_taken_and_shown_as_such(tmp_path: Path, environ: dict[str, str]) -> None:
    text = "[[executor]]\nname = 'a'\nkind = 'command'\nenv_set = { API_KEY = 'env:MY_KEY', CI = '1' }"
    loaded = config.load(environ | {"MY_KEY": "hunter2"}, written(tmp_path, text))
    shown = {key: value for key, value, _ in loaded.rows()}
    assert shown["executor.a.env_set"] == {"API_KEY": "env:MY_KEY", "CI": "1"}
    assert "hunter2" not in str(shown)


def test_an_unreadable_file_is_refused(tmp_path: Path, environ: dict[str, str]) -> None:
    for content in (b"\xff\xfe", b"#" * (config.CONFIG_BYTES_MAX + 1)):
        (tmp_path / "bad.toml").write_bytes(content)
        with pytest.raises(Rejected, match="can't be read"):
            config.load(environ, str(tmp_path / "bad.toml"))
    with pytest.raises(Rejected, match="can't be read"):
        config.load(environ, str(tmp_path))


def test_reload_gives_a_new_config_or_refuses_whole(tmp_path: Path, environ: dict[str, str]) -> None:
    path = written(tmp_path, "[limits]\nafter_max = 7\n")
    before = config.load(environ, path)
    written(tmp_path, "[limits]\nafter_max = 8\n")
    assert config.reload(before, environ).config.limits.after_max == 8
    for text in ("[limits]\nafter_max = 9\n[log]\nfoo = 1", "[state]\ndir = '/elsewhere'"):
        written(tmp_path, text)
        with pytest.raises(Rejected):
            config.reload(before, environ)
    assert before.config.limits.after_max == 7


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner, max_size=3)))
def test_any_value_anywhere_is_taken_or_refused_with_its_key(value: object) -> None:
    reader = config._Reader()
    values = reader.section("limits", {"after_max": value})
    assert (values == {"after_max": value}) != bool(reader.problems)
    assert all("limits.after_max" in str(problem) for problem in reader.problems)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("name = 'ci'\ntoken = 'file:/x'\nexecutors = ['command']\nlabels = []\nday_usd = 1", None),
        ("name = '*'\ncomplete = true", None),
        ("name = 'Visual-Studio-Code'", None),
        ("name = 'user'", "people's own"),
        ("name = '*'\ntoken = 'file:/x'", "names one origin"),
        ("name = 'agent'\ntoken = 'file:/x'", "anybody could be it"),
        ("name = 'ci'\ntoken = 'a-token-of-some-length'", "plain text"),
        ("name = 'ci'\nexecutors = ['comand']", "did you mean command"),
        ("name = 'a/b'", "origin.a/b.name"),
        ("name = 'ci'\nlabel = []", "origin.ci.label"),
    ],
)
def test_what_an_origin_may_is_checked(tmp_path: Path, environ: dict[str, str], text: str, what: str | None) -> None:
    problems = config.check(environ, written(tmp_path, f"[[origin]]\n{text}\n"))
    assert [what in str(problem) for problem in problems] == ([] if what is None else [True])


def test_tokens_of_origins_open_http_and_change_with_a_restart_only(tmp_path: Path, environ: dict[str, str]) -> None:
    def text(token: str, listen: str = "0.0.0.0:7373") -> str:
        return f"[http]\nlisten = '{listen}'\n[[origin]]\nname = 'ci'\ntoken = '{token}'\nday_usd = {len(token)}\n"

    loaded = config.load(environ, written(tmp_path, text("env:A")))
    written(tmp_path, text("env:B"))
    with pytest.raises(Rejected, match="only a restart"):
        config.reload(loaded, environ)
    written(tmp_path, text("env:A").replace("day_usd = 5", "day_usd = 9"))
    assert config.reload(loaded, environ).config.origin[0].day_usd == 9


@pytest.mark.parametrize(
    "text",
    [
        FAR + "token = 'env:X'\nheaders = { X-Team = 'us' }\nca_file = '/ca.pem'\nverify = false",
        MCP + "url = 'http://127.0.0.1:7373/mcp'\ntoken = 'env:X'",
        MCP + "url = 'http://nas.local:8000/@team/mcp'",
        MCP + "url = 'env:FAR_URL'\ntoken = 'env:X'",
    ],
)
def test_servers_at_a_url(tmp_path: Path, environ: dict[str, str], text: str) -> None:
    assert config.check(environ, written(tmp_path, text)) == []
