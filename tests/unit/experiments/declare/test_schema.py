"""The published JSON Schema: the keys of the reader, nothing that the reader accepts refused."""

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import jsonschema
import pytest
import yaml
from typer.testing import CliRunner

from services.experiments.cli.experiments import app
from services.experiments.declare import config_reader
from services.experiments.declare.config import ExperimentsError
from services.experiments.declare.reader.file import json_schema
from tests.cases import generate
from tests.domains import FILMS
from tests.unit.experiments.declare.test_config_reader import CONDITIONAL, GOOD
from tests.unit.experiments.declare.test_declarations import KINDS

REPOSITORY = Path(__file__).parents[4]
SHIPPED = (REPOSITORY / "experiments.yaml").read_text(encoding="utf-8")
SCHEMA = json_schema(FILMS)
VALIDATOR = jsonschema.Draft7Validator(
    SCHEMA, format_checker=jsonschema.Draft7Validator.FORMAT_CHECKER
)


class EditorLoader(yaml.SafeLoader):
    """YAML as editors see it: timestamps are text and every key is text."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {
        first: [(tag, regexp) for tag, regexp in resolvers if not tag.endswith(":timestamp")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        return {str(k): v for k, v in super().construct_mapping(node, deep).items()}


def errors(text: str) -> list[str]:
    document = yaml.load(text, EditorLoader)
    return [f"{e.json_path}: {e.message}" for e in VALIDATOR.iter_errors(document)]


def reader_refuses(text: str) -> bool:
    try:
        config_reader.parse(text.encode(), "e", FILMS)
    except ExperimentsError:
        return True
    return False


def test_the_schema_is_itself_valid_and_is_what_the_command_prints() -> None:
    jsonschema.Draft7Validator.check_schema(SCHEMA)
    assert json.loads(CliRunner().invoke(app, ["schema"]).output) == SCHEMA


@pytest.mark.parametrize(
    "text",
    [
        SHIPPED,
        GOOD,
        CONDITIONAL,
        json.dumps(generate.CONFIG),
        json.dumps(generate.OPEN_CONFIG),
        json.dumps(generate.KINDS_CONFIG),
        KINDS,
        "version: 1\nlayers: []\n",
    ],
    ids=["shipped", "good", "conditional", "cases", "open cases", "kinds cases", "kinds", "empty"],
)
def test_what_the_reader_accepts_the_schema_accepts(text: str) -> None:
    assert not reader_refuses(text)
    assert errors(text) == []


def edited(text: str, old: str, new: str) -> str:
    assert text.count(old) == 1, old
    return text.replace(old, new)


@pytest.mark.parametrize(
    ("text", "where"),
    [
        (edited(GOOD, "version: 1", "version: 2"), "$.version"),
        (edited(GOOD, "version: 1\n", ""), "$: 'version' is a required"),
        (edited(GOOD, "        buckets: [0, 5000]", "        bukets: [0, 5000]"), "bukets"),
        (edited(GOOD, "{name: control, weight: 50}", "{weight: 50}"), "arms[0]: 'name'"),
        (edited(GOOD, "{name: control,", "{name: a b,"), "arms[0].name"),
        (edited(GOOD, "{name: control,", "{name: 7,"), "arms[0].name"),
        (edited(GOOD, "control, weight: 50", "control, weight: -50"), "arms[0].weight"),
        (edited(GOOD, "control, weight: 50", "control, weight: '50'"), "arms[0].weight"),
        (edited(GOOD, "traffic: 10\n", "traffic: 101\n"), "experiments[1].traffic"),
        (edited(GOOD, "like_weight: 3", "like_weight: 101"), "['rerank.like_weight']"),
        (edited(GOOD, "like_weight: 3", "like_weight: high"), "['rerank.like_weight']"),
        (edited(GOOD, "like_weight: 3", "like_weigth: 3"), "rerank.like_weigth"),
        (edited(GOOD, "[retrieval.num_candidates]", "[nothing]"), "layers[1].parameters[0]"),
        (edited(GOOD, "salt: mix-2", "salt: 'a:b'"), "experiments[1].salt"),
        (edited(GOOD, "buckets: [0, 5000]", "buckets: [0, 10001]"), "experiments[0].buckets[1]"),
        (edited(GOOD, "buckets: [0, 5000]", "buckets: [0]"), "experiments[0].buckets"),
        (edited(GOOD, "42: treatment", f"{'x' * 257}: treatment"), "allow_list"),
        (edited(GOOD, "42: treatment", "'': treatment"), "allow_list"),
        (edited(GOOD, "enabled: false", "enabled: maybe"), "experiments[1].enabled"),
        (edited(GOOD, "enabled: false", "unit: the device"), "experiments[1].unit"),
        (edited(GOOD, "experiments: []", "experiments: {}"), "layers[1].experiments"),
        (edited(GOOD, "experiments: []", "experiments: [{name: x, arms: []}]"), "arms"),
        (edited(CONDITIONAL, "percent: 2.5", "percent: 250"), "$.holdout.percent"),
        (edited(CONDITIONAL, "salt: out", "unit: user"), "$.holdout"),
        (edited(CONDITIONAL, "2026-12-01T10:00:00+01:00", "2026-12-01"), "[0].start"),
        (edited(CONDITIONAL, "2026-12-01T10:00:00+01:00", "2026-12-01T10:00:00"), "[0].start"),
        (edited(CONDITIONAL, "surface: {in:", "surface: {inn:"), "where.surface"),
        (edited(CONDITIONAL, "[home, detail]", "[]"), "where.surface.in"),
        (edited(CONDITIONAL, "[home, detail]", "home"), "where.surface.in"),
        (edited(CONDITIONAL, "at_least: 18", "at_leats: 18"), "where.context.hour"),
        (edited(CONDITIONAL, "at_least: 18", "at_least: [18]"), "where.context.hour.at_least"),
        (edited(CONDITIONAL, "{not_in: [1, 49]}", "{}"), "where.context.country"),
    ],
)
def test_the_schema_finds_wrong_keys_types_and_ranges(text: str, where: str) -> None:
    assert reader_refuses(text)
    assert any(where in error for error in errors(text)), errors(text)


def blocks(schema: dict[str, Any], path: str = "") -> dict[str, list[str]]:
    """Path -> keys of every mapping in the schema whose keys are fixed."""
    found = {}
    if schema.get("additionalProperties") is False:
        found[path] = list(schema["properties"])
    for key, child in schema.get("properties", {}).items():
        found |= blocks(child, f"{path}.{key}" if path else key)
    if isinstance(schema.get("additionalProperties"), dict):
        found |= blocks(schema["additionalProperties"], f"{path}.x")
    if "items" in schema and isinstance(schema["items"], dict):
        found |= blocks(schema["items"], f"{path}[0]")
    return found


# One file with every mapping that there is; {} marks where an unknown key is put.
WHOLE = """\
version: 1
@: 0
holdout: {percent: 1, @holdout: 0}
segments:
  - name: s
    @segments[0]: 0
    where:
      @segments[0].where: 0
      surface: {in: [home], @segments[0].where.surface: 0}
      context: {x: {below: 1, @segments[0].where.context.x: 0}}
      user:
        @segments[0].where.user: 0
        impression: {below: 1, @segments[0].where.user.impression: 0}
        click: {below: 1, @segments[0].where.user.click: 0}
        like: {below: 1, @segments[0].where.user.like: 0}
metrics:
  - {name: m, kind: mean, of: click, better: higher, @metrics[0]: 0}
  - {name: n, kind: mean, of: like, better: higher}
layers:
  - name: one
    @layers[0]: 0
    parameters: [rerank.diversity]
    experiments:
      - name: e
        @layers[0].experiments[0]: 0
        where:
          @layers[0].experiments[0].where: 0
          surface: {in: [home], @layers[0].experiments[0].where.surface: 0}
          context: {x: {below: 1, @layers[0].experiments[0].where.context.x: 0}}
          user:
            @layers[0].experiments[0].where.user: 0
            impression: {below: 1, @layers[0].experiments[0].where.user.impression: 0}
            click: {below: 1, @layers[0].experiments[0].where.user.click: 0}
            like: {below: 1, @layers[0].experiments[0].where.user.like: 0}
        ramp: {steps: [1], @layers[0].experiments[0].ramp: 0}
        arms:
          - {name: a, weight: 100, @layers[0].experiments[0].arms[0]: 0}
        primary: {metric: m, minimal_effect: 1, @layers[0].experiments[0].primary: 0}
        secondary:
          - {metric: n, minimal_effect: 1, @layers[0].experiments[0].secondary[0]: 0}
        guardrails:
          - {metric: m, allowed_harm: 1, @layers[0].experiments[0].guardrails[0]: 0}
"""


@pytest.mark.parametrize("path", sorted(p for p in blocks(SCHEMA) if not p.endswith(".parameters")))
def test_reader_and_schema_name_the_same_keys(path: str) -> None:
    marker = f"@{path}: 0"
    assert marker in WHOLE
    any_name = "zzzzzzzz: {below: 1}" if path.endswith(".user") else "zzzzzzzz: 0"
    text = WHOLE.replace(marker, any_name)
    text = re.sub(r"^ *@[^\n]*\n", "", text, flags=re.MULTILINE)
    text = re.sub(r", @[^,}]*", "", text)
    with pytest.raises(ExperimentsError) as caught:
        config_reader.parse(text.encode(), "e", FILMS)
    (line,) = caught.value.lines()
    where = f"{path}.zzzzzzzz" if path else "zzzzzzzz"
    assert f": {where}: " in line
    _, _, listed = line.rstrip(".").rpartition(" one of ")
    assert set(listed.split(", ")) == set(blocks(SCHEMA)[path])


def test_the_parameters_of_an_arm_are_those_of_the_code_with_their_ranges() -> None:
    arm = SCHEMA["properties"]["layers"]["items"]["properties"]["experiments"]["items"]
    schema = arm["properties"]["arms"]["items"]["properties"]["parameters"]
    assert schema["additionalProperties"] is False
    assert schema["properties"].keys() == FILMS.parameters.by_name.keys()
    for name, spec in FILMS.parameters.by_name.items():
        one = schema["properties"][name]
        assert one["default"] == spec.default
        assert spec.meaning in one["description"]
        validator = jsonschema.Draft7Validator(one)
        assert validator.is_valid(spec.default)
        if isinstance(spec.default, bool | str):
            assert not validator.is_valid(7)
            continue
        for bound, outside in ((spec.low, -1), (spec.high, 1)):
            if math.isinf(bound):
                continue
            assert validator.is_valid(type(spec.default)(bound))
            assert not validator.is_valid(bound + outside)


def test_every_key_is_explained() -> None:
    def unexplained(schema: dict[str, Any], path: str) -> list[str]:
        missing = [] if "description" in schema else [path]
        for key, child in schema.get("properties", {}).items():
            is_operand = path.endswith(".surface") or ".user." in path
            missing += [] if is_operand else unexplained(child, f"{path}.{key}")
        if isinstance(schema.get("items"), dict) and "properties" in schema["items"]:
            items = schema["items"]["properties"]
            missing += [m for k, c in items.items() for m in unexplained(c, f"{path}[0].{k}")]
        return missing

    top = SCHEMA["properties"]
    assert [m for key, child in top.items() for m in unexplained(child, key)] == []


def test_the_shipped_file_documents_every_key_and_every_operator() -> None:
    words = set(re.findall(r"[a-z_]+", SHIPPED))
    keys = {
        key for block in blocks(SCHEMA).values() for key in block
    } - FILMS.parameters.by_name.keys()
    assert keys - words == set()


def uncommented(indent: int, keys: str, text: str) -> str:
    """`text` with the comments that begin with one of the keys, at that indent, taken for real."""
    return re.sub(rf"^{' ' * indent}# (?={keys})", " " * indent, text, flags=re.MULTILINE)


def test_what_the_shipped_file_shows_in_comments_is_valid_where_it_stands() -> None:
    """The keys of the file and of the first experiment, taken out of their comments."""
    top = "holdout:|  percent:|  salt: holdout|units:|segments:|  - {name: evening|  - {name: newco"
    keys = (
        "start:|stop:|where:|  surface:|  context:|    hour:|    country:|buckets:|enabled:|"
        "  user:|    click:|observe_s:|planned_units:"
    )
    text = uncommented(8, keys, uncommented(0, top, SHIPPED))
    text = uncommented(10, "- {metric: click_rate", uncommented(12, "traffic:|stopped:", text))
    config = config_reader.parse(text.encode(), "e", FILMS)
    assert errors(text) == []
    assert config.holdout.percent == 5
    experiment = config.layers[0].experiments[0]
    assert experiment.start_ms < experiment.stop_ms
    assert [c.text for c in experiment.where] == [
        "surface in [home]",
        "context.hour at_least 18",
        "context.hour below 22",
        "context.country not_in [1, 49]",
        "user.click at_least 10",
    ]
    assert experiment.arms[1].stopped
    assert experiment.plan.guardrails[-1].observe_s == 3600
    assert config.units == ("household", "device")
    assert [s.where[0].text for s in config.segments] == [
        "context.hour at_least 18",
        "user.click below 10",
    ]


def test_the_ramp_that_the_shipped_file_shows_is_valid_in_place_of_traffic() -> None:
    text = re.sub(r"^        traffic: 100 .*\n", "", SHIPPED, count=1, flags=re.MULTILINE)
    text = uncommented(8, "ramp:|  steps:|  hold_s:|  min_units:|  gate:", text)
    (experiment,) = config_reader.parse(text.encode(), "e", FILMS).layers[0].experiments
    assert errors(text) == []
    assert experiment.ramp is not None
    assert experiment.ramp.steps == (100, 500, 1_000, 2_500, 5_000)
    assert [arm.traffic for arm in experiment.arms] == [1, 1]


def test_the_second_layer_that_the_shipped_file_shows_is_valid() -> None:
    head, tail = SHIPPED.split("  # A second layer", 1)
    rest = tail.split("\n", 1)[1]
    text = head + re.sub(r"^  # ", "  ", rest, flags=re.MULTILINE)
    assert errors(text) == []
    by_weight, interleaving = config_reader.parse(text.encode(), "e", FILMS).layers[1].experiments
    assert by_weight.interleave is None
    assert interleaving.interleave == "team_draft"


def test_a_key_that_must_be_there_has_no_default() -> None:
    def blocks(node: object) -> Iterator[dict[str, Any]]:
        if isinstance(node, dict):
            yield node
            for value in node.values():
                yield from blocks(value)
        elif isinstance(node, list):
            for value in node:
                yield from blocks(value)

    required = [(b, key) for b in blocks(SCHEMA) for key in b.get("required", ())]
    assert len(required) > 10
    assert not [key for block, key in required if "default" in block["properties"].get(key, {})]
