"""Loads the named queries of queries.sql; `$1` becomes `?1`, because SQLite binds `$1` by first appearance."""

import re
from functools import cache
from importlib.resources import files

from omnid.store.interface import COLLECTIONS, Collection

_BLOCK = re.compile(r"^-- (name|fragment): (\w+)$", re.MULTILINE)


def parse(text: str) -> dict[str, str]:
    """Splits a file of ``-- name: x`` blocks into {name: statement}, with fragments put in.

    Raises ValueError where a name comes twice, and KeyError where a fragment is unknown.
    """
    parts = _BLOCK.split(text)
    fragments: dict[str, str] = {}
    statements: dict[str, str] = {}
    for sort, name, body in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
        if name in fragments or name in statements:
            raise ValueError(f"the query {name} is there twice")
        text = "\n".join(line for line in body.splitlines() if not line.startswith("--")).strip()
        (fragments if sort == "fragment" else statements)[name] = text
    for name, statement in statements.items():
        whole = re.sub(r"\{(\w+)\}", lambda match: fragments[match.group(1)], statement)
        statements[name] = re.sub(r"\$(\d+)", r"?\1", whole)
    return statements


@cache
def queries() -> dict[str, str]:
    """Gives all named queries, read once: those of queries.sql, and some for each logged table."""
    found = parse(files("omnid.store").joinpath("queries.sql").read_text(encoding="utf-8"))
    for name, collection in COLLECTIONS.items():
        columns = ", ".join(columns_of(collection))
        statements = {
            "page": "SELECT {columns} FROM {name} WHERE ord > ?1 ORDER BY ord LIMIT ?2",
            "heads": "SELECT ord, heads FROM {name} WHERE id = ?1",
            "count": "SELECT count(*) FROM {name}",
            "delete": "DELETE FROM {name} WHERE id = ?1",
            "forget": "DELETE FROM {name} WHERE id IN (SELECT value FROM json_each(?1))",
        }
        for what, statement in statements.items():
            found[f"{what}_{name}"] = statement.format(columns=columns, name=name)
    for name in (*COLLECTIONS, "change", "blob"):
        found[f"check_{name}"] = f"PRAGMA quick_check({name})"
    return found


@cache
def insert_sql(table: str, columns: tuple[str, ...]) -> str:
    """Builds an INSERT for a logged table."""
    marks = ", ".join(f"?{i}" for i in range(1, len(columns) + 1))
    return f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({marks})"  # noqa: S608 - names from COLLECTIONS only.


@cache
def update_sql(table: str, columns: tuple[str, ...]) -> str:
    """Builds an UPDATE by `ord` (the last parameter) for a logged table."""
    sets = ", ".join(f"{name} = ?{i}" for i, name in enumerate(columns, 1))
    return f"UPDATE {table} SET {sets} WHERE ord = ?{len(columns) + 1}"  # noqa: S608 - names from COLLECTIONS only.


def columns_of(collection: Collection) -> tuple[str, ...]:
    """Gives the columns of a logged table in the order in which a replay compares them."""
    names = ["ord", "id"]
    for field in collection.fields:
        names.append(field)
        if field in collection.large:
            names.append(f"{field}_blob")
    return (*names, "heads")
