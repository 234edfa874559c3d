"""The log's entries: how a change is written down, read, and applied again. Pure."""

from collections.abc import Mapping
from hashlib import sha256
from typing import Any

import msgspec

from omnid.store.interface import BLOB_BYTES_MIN, Collection

HLC_COUNTER_BITS = 16

_encoder = msgspec.json.Encoder()
_heads = msgspec.json.Decoder(dict[str, int])


class Body(msgspec.Struct, frozen=True, omit_defaults=True):
    """What an entry holds: the fields with their new values, and for an edit the heads that they replace."""

    f: dict[str, msgspec.Raw] = {}
    p: dict[str, int] = {}


_body = msgspec.json.Decoder(Body)


def next_hlc(last: int, wall_ms: int) -> int:
    """Gives the next hybrid logical clock: it follows wall time and never goes back (Kulkarni et al., 2014)."""
    return max(last + 1, wall_ms << HLC_COUNTER_BITS)


def hlc_wall_ms(hlc: int) -> int:
    """Gives the wall time inside a hybrid logical clock."""
    return hlc >> HLC_COUNTER_BITS


Cells = tuple[dict[str, Any], dict[str, Any], list[tuple[str, str]]]
"""Fields as a table holds them, the same as the log holds them, and the values that go to `blob`."""


def cells(collection: Collection, fields: Mapping[str, Any]) -> Cells:
    """Encodes fields for the table and for the log; large values become digests."""
    columns = dict(fields)
    if collection.json.isdisjoint(columns) and collection.large.isdisjoint(columns):
        return columns, dict(fields), []
    logged = dict(fields)
    blobs: list[tuple[str, str]] = []
    for name in collection.json:
        value = fields.get(name)
        if value is not None:
            raw = _encoder.encode(value)
            columns[name] = raw.decode()
            logged[name] = msgspec.Raw(raw)
    for name in collection.large:
        if name in columns:
            _digest(name, columns, logged, blobs)
    return columns, logged, blobs


def _digest(name: str, columns: dict[str, Any], logged: dict[str, Any], blobs: list[tuple[str, str]]) -> None:
    """Moves a large value out of its row; the column that isn't used is emptied."""
    text = columns[name]
    if text is None or len(text) <= BLOB_BYTES_MIN:
        columns[f"{name}_blob"] = None
        return
    digest = sha256(text.encode()).hexdigest()
    blobs.append((digest, text))
    columns[name], columns[f"{name}_blob"] = None, digest
    del logged[name]
    logged[f"{name}_blob"] = digest


def encode_body(fields: Mapping[str, Any], prev: Mapping[str, int]) -> str:
    """Encodes an entry's body as JSON; fields that are None are kept in an edit and left out by the caller else."""
    return _encoder.encode({"f": fields, "p": prev} if prev else {"f": fields}).decode()


def decode_body(text: str) -> Body:
    """Reads an entry's body; raises msgspec.DecodeError where it is damaged."""
    return _body.decode(text)


def encode_heads(heads: Mapping[str, int]) -> str | None:
    """Encodes the heads of a row; a row that was never edited has none."""
    return _encoder.encode(dict(heads)).decode() if heads else None


def decode_heads(text: str | None) -> dict[str, int]:
    """Reads the heads of a row."""
    return _heads.decode(text) if text else {}


def column_values(collection: Collection, body: Body) -> dict[str, Any]:
    """Gives the columns that an entry sets, exactly as `cells` gave them when it was written."""
    columns: dict[str, Any] = {}
    for name, raw in body.f.items():
        field = name.removesuffix("_blob")
        value = msgspec.json.decode(raw)
        if name in collection.json and value is not None:
            columns[name] = bytes(raw).decode()
        else:
            columns[name] = value
        if field in collection.large:
            columns.setdefault(field if name != field else f"{field}_blob", None)
    return columns
