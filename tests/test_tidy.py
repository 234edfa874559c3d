"""What a machine can check of the house's rules, beyond what the linters know."""

import ast
import io
import json
import os
import re
import string
import subprocess
import sys
import tokenize
import tomllib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from omnid import config, states
from omnid.errors import OmnidError
from omnid.messages import CATALOGUE

ROOT = Path(__file__).parents[1]
SOURCE = sorted((ROOT / "omnid").rglob("*.py"))
PYTHON = sorted(
    path
    for name in ("omnid", "tests", "bench", "scripts")
    for path in (ROOT / name).rglob("*.py")
    if "node_modules" not in path.parts  # Some packages bring Python too.
)
TREES = {path: ast.parse(path.read_text(), str(path)) for path in PYTHON}

FUNCTION_LINES_MAX = 70
FILE_LINES_MAX = 500

# Where time and chance may be taken from the system, and why not from a Clock.
TIME_AND_CHANCE = {
    "omnid/clock.py": "is the real clock",
    "omnid/api/client.py": "names its session, and the simulation has no socket",
    "omnid/ctl/": "shows times to a person, and the simulation has none",
    "omnid/relay": "names its session, before there is a daemon",
    "omnid/worker/": "runs in a process of its own, and knows nothing of omnid",
}
# Who may run on one backend alone, and why.
ADAPTERS = {
    "omnid/link/rabbitmq.py": "aio-pika runs on asyncio",
    "omnid/link/rabbitmq_wire.py": "aio-pika's channels run on asyncio",
    "omnid/link/redis.py": "redis-py's client runs on asyncio",
    "omnid/lookups.py": "it is asyncio's pool of threads that waits for names",
    "omnid/readable.py": "watches a file on either backend as that does best",
    "omnid/worker/gateway.py": "LiteLLM runs on asyncio",
}
# Libraries that know asyncio only, wherever they are imported.
OF_ASYNCIO = {"aio_pika", "aiohttp", "aiormq", "redis"}
# What a worker may import beside the standard library.
WORKERS_NEED = {"gateway.py": {"litellm", "httpx"}, "brainstem.py": {"mlx", "mlx_lm"}}
CHANCE = re.compile(
    r"(time\.time(_ns)?|(datetime\.)?datetime\.(now|utcnow|today)|(datetime\.)?date\.today|random\.\w+|os\.urandom"
    r"|uuid\.uuid\d|uuid\d|secrets\.(token|rand)\w*)"
)
SQL = re.compile(
    r"\s*(SELECT\s.+\sFROM|INSERT\s+INTO|UPDATE\s+\w+\s+SET|DELETE\s+FROM|CREATE\s+\w+|PRAGMA\s)", re.DOTALL
)


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
    for name, node in calls(path):
        # Late, by name: also where the import is handed to a thread.
        if any(one.endswith(("import_module", "__import__")) for one in (name, *map(ast.unparse, node.args))):
            yield from (str(arg.value) for arg in node.args if isinstance(arg, ast.Constant))


def texts(path: Path) -> Iterator[str]:
    """The texts of a file, without its docstrings."""
    said = {
        id(node.value)
        for node in ast.walk(TREES[path])
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in said:
            yield node.value


def tracked() -> Iterator[Path]:
    """Every file of the project, without what tools leave behind."""
    for folder, below, names in os.walk(ROOT):
        below[:] = [
            name for name in below if name == ".ci" or not name.startswith((".", "__pycache__", "node_modules"))
        ]
        yield from (
            Path(folder, name) for name in names if not name.startswith(".venv") and Path(folder, name) != ROOT / ".git"
        )


def test_functions_and_files_are_short() -> None:
    long = [
        f"{name_of(path)}: {n} lines" for path in PYTHON if (n := len(path.read_text().splitlines())) > FILE_LINES_MAX
    ]
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > FUNCTION_LINES_MAX:
                    long.append(f"{name_of(path)}:{node.lineno} {node.name}: {lines} lines")
    assert long == []


def test_nothing_runs_on_one_backend_alone() -> None:
    of_one = {"asyncio", "trio", *OF_ASYNCIO}
    found = [name_of(path) for path in SOURCE if of_one & {name.split(".")[0] for name in imports(path)}]
    assert found == list(ADAPTERS)


def test_only_ctl_prints() -> None:
    found = {name_of(path) for path in SOURCE for name, _ in calls(path) if name == "print"}
    assert [name for name in found if not name.startswith("omnid/ctl/")] == []


def test_only_the_store_knows_sql() -> None:
    found = {name_of(path) for path in SOURCE for text in texts(path) if SQL.match(text)}
    found |= {name_of(path) for path in SOURCE if {"apsw", "sqlite3"} & set(imports(path))}
    assert [name for name in found if not name.startswith("omnid/store/")] == []
    assert found, "the search finds no SQL even in the store"


def test_time_and_chance_come_from_the_clock() -> None:
    allowed = tuple(TIME_AND_CHANCE)
    found = [
        f"{name_of(path)}:{node.lineno} {name}"
        for path in SOURCE
        for name, node in calls(path)
        if CHANCE.fullmatch(name) and not name_of(path).startswith(allowed)
    ]
    assert [place for place in found if not place.endswith(" uuid7")] == []


def test_workers_know_nothing_of_omnid_but_each_other() -> None:
    for path in (ROOT / "omnid" / "worker").rglob("*.py"):
        allowed = sys.stdlib_module_names | WORKERS_NEED.get(path.name, set())
        # A file beside it is found by its own name where a worker is run by its path.
        beside = {other.stem for other in path.parent.glob("*.py")}
        known = {name for name in imports(path) if not name.startswith("omnid.worker.")}
        assert {name.split(".")[0] for name in known} <= allowed | beside, name_of(path)


def test_workers_load_what_is_no_standard_library_when_they_need_it() -> None:
    for path in (ROOT / "omnid" / "worker").rglob("*.py"):
        top = {
            alias for node in TREES[path].body if isinstance(node, ast.Import) for alias in (n.name for n in node.names)
        }
        assert top <= sys.stdlib_module_names, name_of(path)


def test_the_supervisor_of_every_command_starts_with_little() -> None:
    code = f"import sys; sys.path.insert(0, {str(ROOT / 'omnid' / 'worker')!r}); import supervisor; print(*sys.modules)"
    argv = [sys.executable, "-I", "-S", "-c", code]
    loaded = subprocess.run(argv, capture_output=True, check=True, text=True, timeout=60).stdout.split()
    assert {"supervisor", "json"} <= set(loaded)
    # Each takes as long to load as half of all the rest.
    assert {"typing", "subprocess", "pathlib", "logging"} & set(loaded) == set()


@pytest.mark.parametrize(
    ("module", "own"),
    [
        ("omnid.relay", {"api", "errors", "messages", "platform", "relay", "relay_session", "wire"}),
        ("omnid.ctl.main", {"api", "ctl", "durations", "errors", "messages", "platform", "wire"}),
        ("omnid.api.client", {"api", "errors", "messages", "platform", "wire"}),
    ],
)
def test_what_stands_in_front_of_the_daemon_needs_the_standard_library_alone(module: str, own: set[str]) -> None:
    code = (
        f"import json, sys; before = set(sys.modules); import {module}; print(json.dumps([*set(sys.modules) - before]))"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, check=True, timeout=60)
    loaded = [name.split(".") for name in json.loads(done.stdout)]
    assert {name[0] for name in loaded} <= sys.stdlib_module_names | {"omnid"}
    assert {name[1] for name in loaded if name[0] == "omnid" and len(name) > 1} <= own


def test_every_setting_is_in_the_shipped_config_with_a_comment_and_nothing_else_is() -> None:
    text = (ROOT / "config" / "omnid.toml").read_text()
    assert {name: set(table) for name, table in tomllib.loads(text).items()} == {
        name: set(kind.__struct_fields__) for name, kind in config._SECTIONS.items()
    }
    lines = text.splitlines()
    bare = [line for above, line in pairwise(lines) if " = " in line and above == "" != line]
    assert bare == []


def error_calls() -> Iterator[tuple[str, str | None, set[str | None]]]:
    """Place, code and fields of everything that fills in a message of the catalogue."""
    kinds = {"OmnidError", "Problem.make", "LinkDown", "LinkFull"} | {
        kind.__name__ for kind in OmnidError.__subclasses__()
    }
    for path in SOURCE:
        for name, node in calls(path):
            if name.removeprefix("errors.").removeprefix("model.") in kinds:
                code = node.args[0].value if node.args and isinstance(node.args[0], ast.Constant) else None
                yield f"{name_of(path)}:{node.lineno}", code, {keyword.arg for keyword in node.keywords}


def fields_of(code: str) -> set[str]:
    return {field for text in CATALOGUE[code] for _, field, _, _ in string.Formatter().parse(text) if field}


def test_every_error_says_what_why_and_what_to_do() -> None:
    for code, message in CATALOGUE.items():
        assert re.fullmatch(r"[a-z]+(_[a-z]+)*", code)
        for text in message:
            assert re.fullmatch(r"\{\w+\}|\S.+[.?}]", text), f"{code}: {text!r} is no sentence"


def test_every_error_that_is_raised_is_in_the_catalogue_with_its_fields() -> None:
    wrong = [
        f"{place}: {code} takes {sorted(fields_of(code)) if code in CATALOGUE else 'a code of the catalogue'}"
        for place, code, fields in error_calls()
        if code not in CATALOGUE or fields != fields_of(code)
    ]
    assert wrong == []


def test_every_error_of_the_catalogue_is_raised_somewhere() -> None:
    assert sorted(CATALOGUE.keys() - {code for _, code, _ in error_calls()}) == []


def test_the_diagram_of_states_is_the_table() -> None:
    assert f"```mermaid\n{states.mermaid()}\n```" in (ROOT / "docs" / "states.md").read_text()


def test_no_check_is_switched_off_without_a_name_and_a_reason() -> None:
    bad = []
    for path in PYTHON:
        for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline):
            if token.type == tokenize.COMMENT and re.search(
                r"noqa|type: ?ignore|pyright:|nosec|pragma:|fmt:", token.string
            ):
                named = re.match(r"# (noqa: [A-Z]+\d+(, [A-Z]+\d+)*|pyright: ignore\[\w+(, \w+)*\])(.*)", token.string)
                in_source = path in SOURCE
                if named is None or (in_source and not re.match(r" - \S.*\.", named[4])):
                    bad.append(f"{name_of(path)}:{token.start[0]} {token.string}")
    assert bad == []


def test_no_test_is_skipped() -> None:
    skips = re.compile(r"(pytest\.)?(mark\.)?(skip|skipif|xfail|importorskip)")
    found = [name_of(path) for path in PYTHON for name, _ in calls(path) if skips.fullmatch(name)]
    assert found == []


def test_nothing_names_a_registry_or_a_place_on_somebody_s_machine() -> None:
    # In pieces, so that this file isn't found.
    hosts = [
        "pypi" + ".org",
        "python" + "hosted",
        "registry." + "npmjs",
        "deb." + "debian",
        "--index" + "-url ",
        "find" + "-links",
    ]
    places = [
        "/wo" + "rk/",
        "/ro" + "ot/",
        "/Users/" + "(?!me/)[a-z]{2,}/",
        "/home/" + "(?!me/)[a-z]{2,}/",
        "/opt/" + "(wheels|pypi)",
    ]
    pattern = re.compile("|".join(hosts + [rf"(?<![\w.}}~-]){place}" for place in places]))
    found = [
        f"{name_of(path)}: {match[0]}"
        for path in tracked()
        if (match := pattern.search(path.read_text(errors="replace")))
    ]
    assert found == []
