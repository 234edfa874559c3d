"""The OpenAPI document: valid, made from the shapes, and true of every answer."""

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

from omnid.api.mcp_tools import HIDDEN
from omnid.api.openapi import document
from omnid.api.rest import ROUTES, STATUS, status_of
from omnid.errors import OmnidError, Rejected, Retryable
from omnid.messages import CATALOGUE
from tests.unit.test_errors_catalogue import fields_of


def served() -> dict[str, Any]:
    return msgspec.json.decode(msgspec.json.encode(document()))


def test_it_is_valid() -> None:
    assert [error.message for error in OpenAPIV31SpecValidator(served()).iter_errors()] == []
    broken = served()
    broken["paths"]["/tasks"]["get"]["responses"] = {"200": {}}
    assert list(OpenAPIV31SpecValidator(broken).iter_errors()), "the validator looks"


def test_every_schema_is_one_and_every_reference_leads_somewhere() -> None:
    made = served()
    for name, schema in made["components"]["schemas"].items():
        Draft202012Validator.check_schema(schema)
        assert not HIDDEN.get(name, frozenset()) & schema.get("properties", {}).keys()
    for reference in references(made):
        part: Any = made
        for step in reference.removeprefix("#/").split("/"):
            part = part[step]


def references(part: Any) -> Iterator[str]:
    if isinstance(part, dict):
        if isinstance(part.get("$ref"), str):
            yield part["$ref"]
        for value in part.values():
            yield from references(value)
    elif isinstance(part, list):
        for value in part:
            yield from references(value)


def test_every_address_is_described_once_with_all_that_it_takes() -> None:
    made = served()
    described = {(verb.upper(), path) for path, verbs in made["paths"].items() for verb in verbs}
    assert described == {(route.verb, route.path) for route in ROUTES} | {("GET", "/openapi.json")}
    names = [one["operationId"] for verbs in made["paths"].values() for one in verbs.values()]
    assert len(set(names)) == len(names)
    submit = made["paths"]["/tasks"]["post"]["requestBody"]["content"]["application/json"]["schema"]["properties"]
    assert {"argv", "key", "after", "labels"} <= submit.keys()
    assert not {"origin", "ref"} & submit.keys(), "they are for people"
    listed = {one["name"]: one for one in made["paths"]["/tasks"]["get"]["parameters"]}
    assert listed["states"]["schema"]["type"] == "array"
    assert (
        made["paths"]["/tasks/{task}/cancel"]["post"]["requestBody"]["content"]["application/json"]["schema"][
            "properties"
        ]
        == {}
    )


@pytest.mark.parametrize("code", CATALOGUE)
@pytest.mark.parametrize("kind", [Rejected, Retryable])
def test_every_error_has_a_status(code: str, kind: type[OmnidError]) -> None:
    status = status_of(kind(code, **fields_of(code)))
    assert status in (400, 403, 404, 409, 413, 422, 429, 500, 503)
    if code not in STATUS:
        assert status == (422 if kind is Rejected else 503)


def test_statuses_are_of_errors_that_there_are() -> None:
    assert STATUS.keys() <= CATALOGUE.keys()
