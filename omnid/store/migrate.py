"""Brings a database to the newest schema: numbered files, one transaction each; newer ones are refused."""

import re
from importlib.resources import files
from pathlib import Path

import apsw

from omnid.errors import Rejected
from omnid.store.sqlite import mapped

APPLICATION_ID = 0x6F6D6E69
"""`omni` in the header of the file, so that another program's database is never touched."""


def schemas() -> list[tuple[int, str]]:
    """Gives the schema files as (number, statements), in order."""
    found: list[tuple[int, str]] = []
    for entry in files("omnid.store").joinpath("schema").iterdir():
        match = re.fullmatch(r"(\d{4})_\w+\.sql", entry.name)
        if match:
            found.append((int(match.group(1)), entry.read_text(encoding="utf-8")))
    return sorted(found)


def migrate(connection: apsw.Connection, path: Path, steps: list[tuple[int, str]] | None = None) -> int:
    """Runs the schema files that the database lacks and gives its schema's number.

    Raises Rejected(`schema_newer`, `not_a_database`) and changes nothing then.
    """
    steps = schemas() if steps is None else steps
    newest = steps[-1][0]
    try:
        found = int(connection.pragma("user_version"))
        application = int(connection.pragma("application_id"))
        empty = not list(connection.execute("SELECT 1 FROM sqlite_schema LIMIT 1"))
        if not empty and application != APPLICATION_ID:
            raise Rejected("not_a_database", path=path, detail="it was made by another program")
        if found > newest:
            raise Rejected("schema_newer", path=path, found=found, known=newest)
        for number, text in steps:
            if number > found:
                _step(connection, number, text)
    except apsw.Error as error:
        raise mapped(error, path) from error
    return newest


def _step(connection: apsw.Connection, number: int, text: str) -> None:
    with connection:
        connection.execute(text)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {number}")
