"""Laws of the reader of schema.yaml: what is written is read, and nothing else is an error."""

import json
import re
from typing import Any, ClassVar

import jsonschema
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models.schema.declaration import Declaration
from models.schema.read import SchemaError, json_schema, parse
from models.yaml_reader.problems import Problem
from tests.unit.models.schema.declarations import TRAPS, declarations
from tests.unit.models.schema.shop import TEXT
from tests.unit.models.schema.test_read import FILMS
from tests.unit.models.schema.written import written

SCHEMA = json_schema()
VALIDATOR = jsonschema.Draft7Validator(SCHEMA)
INLINE = TEXT.replace("values_file: categories.txt", "values: [Shoes, Hats]")
LINE_ENDS = re.compile(r"\r\n|[\n\r\x85\u2028\u2029]")


class EditorLoader(yaml.CSafeLoader):
    """YAML as editors see it: timestamps are text and every key is text."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {
        first: [(tag, regexp) for tag, regexp in resolvers if not tag.endswith(":timestamp")]
        for first, resolvers in yaml.CSafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        return {
            str(key.value): self.construct_object(value, deep=True) for key, value in node.value
        }


def errors(document: object) -> list[str]:
    return [f"{e.json_path}: {e.message}" for e in VALIDATOR.iter_errors(document)]


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(declarations(), st.sampled_from((None, True, False)))
def test_any_declaration_that_is_written_is_read_and_the_schema_accepts_it(
    declaration: Declaration, flow: bool | None
) -> None:
    document = json.loads(json.dumps(written(declaration)))  # nothing in it stands twice
    text = yaml.safe_dump(document, sort_keys=False, allow_unicode=True, default_flow_style=flow)
    assert parse(text.encode(), "schema.yaml") == declaration
    assert errors(document) == []


# What YAML takes for something else than it seems, or for nothing.
FRAGMENTS = st.sampled_from(
    [*"{}[]#|>%@`~'\"\t\r\n\xe9\ufeff\u2028\x07", *TRAPS]
) | st.sampled_from(
    [
        "[]",
        "{}",
        "*x",
        "!!int",
        "-",
        "?",
        ":",
        "<<:",
        "007",
        "1_000",
        "18:30",
        "2020-01-01",
        "1e999",
        "-1",
        "any",
        "click",
    ]
).map("{} ".format)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """The shop's file with a few words, lines or bytes replaced, doubled or gone."""
    parts = re.findall(r"\w+|\s+|.", INLINE)
    for _ in range(draw(st.integers(1, 4))):
        at, size = draw(st.integers(0, len(parts) - 1)), draw(st.integers(0, 3))
        twice = [*parts[at : at + 8], *parts[at : at + 8]]
        parts[at : at + size] = draw(FRAGMENTS.map(lambda text: [text]) | st.just(twice))
    return "".join(parts).encode()


def problems_of(data: bytes) -> list[Problem]:
    """What is wrong with a file; empty if it has a Declaration."""
    try:
        assert isinstance(parse(data, "schema.yaml"), Declaration)
    except SchemaError as error:
        return error.problems or [Problem(0, "", "", "")]
    return []


@settings(max_examples=300, deadline=None)
@given(damaged() | st.binary(max_size=40) | st.text(max_size=40).map(str.encode))
def test_any_bytes_are_a_declaration_or_told_with_lines_and_repairs(data: bytes) -> None:
    problems = problems_of(data)
    lines = len(LINE_ENDS.split(data.decode(errors="replace")))
    assert all(1 <= p.line <= lines and p.reason and p.fix for p in problems)
    if not problems:
        assert errors(yaml.load(data.decode("utf-8-sig"), EditorLoader)) == []


@pytest.mark.parametrize("text", [TEXT, FILMS.read_text()], ids=["shop", "films"])
def test_the_schema_accepts_whole_files(text: str) -> None:
    assert errors(yaml.load(text, EditorLoader)) == []


@pytest.mark.parametrize(
    ("old", "new", "where"),
    [
        ("format: 1", "format: 2", "$.format"),
        ("id: 2,", "id: 256,", "$.events.click.id"),
        ("[90d, 12h]", "[90]", "$.user.counts.click.half_lives[0]"),
        ("type: flag, default", "type: flags, default", "$.item.fields.in_stock.type"),
        ("{since: any}", "{sinse: any}", "$.derived.idle"),
        ("diversity: category", "diversity: a b", "$.diversity"),
        ("  formula:", "  formulas:", "$.value"),
    ],
)
def test_the_schema_finds_wrong_keys_types_and_ranges(old: str, new: str, where: str) -> None:
    assert TEXT.count(old) == 1
    found = errors(yaml.load(TEXT.replace(old, new), EditorLoader))
    assert any(error.startswith(f"{where}: ") for error in found), found


def keys(schema: dict[str, Any], path: str = "") -> dict[str, dict[str, Any]]:
    """Every key of the schema by its path, with what the schema says of it."""
    found = {}
    for key, child in schema.get("properties", {}).items():
        found |= {f"{path}.{key}": child} | keys(child, f"{path}.{key}")
    if isinstance(named := schema.get("additionalProperties"), dict):
        found |= keys(named, f"{path}.*")
    return found


def test_the_schema_is_valid_and_explains_every_key() -> None:
    jsonschema.Draft7Validator.check_schema(SCHEMA)
    every = keys(SCHEMA)
    assert ".item.fields.*.scale" in every
    assert [path for path, schema in every.items() if not schema.get("description")] == []


def test_the_shop_uses_every_key() -> None:
    words = set(re.findall(r"[a-z_]+(?=:)", TEXT)) | {"values_file"}
    assert {path.rpartition(".")[2] for path in keys(SCHEMA)} - words == set()
