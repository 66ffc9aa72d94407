"""Reading experiments.yaml: what is refused, on which line, and that everything is reported."""

import contextlib
import itertools
import math
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.experiments.declare import config_reader
from services.experiments.declare.config import ExperimentsConfig, ExperimentsError
from services.experiments.declare.targeting import Condition
from tests.domains import FILMS

REPOSITORY = Path(__file__).parents[4]

GOOD = """\
version: 1
layers:
  - name: value
    parameters: [rerank.like_weight, rerank.diversity]
    experiments:
      - name: weight
        buckets: [0, 5000]
        arms:
          - {name: control, weight: 50}
          - {name: treatment, weight: 50, traffic: 12.5, parameters: {rerank.like_weight: 3}}
        allow_list: {42: treatment, "née": control}
      - name: mix
        salt: mix-2
        buckets: [5000, 10000]
        traffic: 10
        enabled: false
        arms:
          - {name: all, weight: 100, parameters: {rerank.diversity: 0.2}}
  - name: depth
    parameters: [retrieval.num_candidates]
    experiments: []
"""


def lines_of(text: str | bytes) -> list[str]:
    data = text.encode() if isinstance(text, str) else text
    with pytest.raises(ExperimentsError) as caught:
        config_reader.parse(data, "e.yaml", FILMS)
    return caught.value.lines()


def edited(old: str, new: str) -> str:
    assert GOOD.count(old) == 1, old
    return GOOD.replace(old, new)


def test_a_good_file_reads_as_written() -> None:
    value, depth = config_reader.parse(GOOD.encode(), "e.yaml", FILMS).layers
    assert (value.name, value.salt) == ("value", "value")
    weight, mix = value.experiments
    assert (weight.unit, weight.buckets, weight.enabled) == ("user", (0, 5000), True)
    assert [(a.name, a.first, a.end, a.enrolled) for a in weight.arms] == [
        ("control", 0, 5000, 10_000),
        ("treatment", 5000, 10_000, 1_250),
    ]
    assert weight.arms[1].parameters == {"rerank.like_weight": 3.0}
    assert weight.allow_list == {"42": "treatment", "née": "control"}
    assert (mix.salt, mix.enabled, mix.arms[0].enrolled) == ("mix-2", False, 1_000)
    assert depth.experiments == ()


def test_a_file_without_layers_is_fine() -> None:
    assert config_reader.parse(b"version: 1\nlayers: []\n", "e", FILMS) == ExperimentsConfig()


def test_the_shipped_file_is_valid() -> None:
    assert config_reader.load(REPOSITORY / "experiments.yaml", FILMS).layers


@pytest.mark.parametrize(
    ("text", "line", "path", "reason"),
    [
        (edited("version: 1", "version: 2"), 1, "version", "version is not known"),
        (edited("version: 1\n", ""), 1, "version", "missing"),
        (
            edited("        buckets: [0, 5000]", "        bukets: [0, 5000]"),
            7,
            "bukets",
            "not known",
        ),
        (edited("{name: control, weight: 50}", "{weight: 50}"), 9, "arms[0].name", "missing"),
        (edited("{name: control,", "{name: a b,"), 9, "arms[0].name", "not a name"),
        (edited("{name: control,", "{name: on,"), 9, "arms[0].name", "not text"),
        (edited("{name: control,", "{name: 7,"), 9, "arms[0].name", "not text"),
        (edited("{name: control,", "{name: ,"), 9, "arms[0].name", "missing"),
        (edited("{name: control,", "{name: [],"), 9, "arms[0].name", "missing"),
        (edited("{name: control,", "{name: treatment,"), 10, "arms[1].name", "already an arm"),
        (edited("control, weight: 50", "control, weight: 40"), 9, "arms", "add up to 90"),
        (edited("control, weight: 50", "control, weight: 49.999"), 9, "weight", "percentage"),
        (edited("control, weight: 50", "control, weight: .nan"), 9, "weight", "percentage"),
        (edited("control, weight: 50", "control, weight: .inf"), 9, "weight", "percentage"),
        (edited("control, weight: 50", "control, weight: -50"), 9, "weight", "percentage"),
        (edited("control, weight: 50", "control, weight: '50'"), 9, "weight", "percentage"),
        (edited("traffic: 10\n", "traffic: 101\n"), 15, "traffic", "percentage"),
        (edited("traffic: 10\n", "traffic: 10%\n"), 15, "traffic", "percentage"),
        (edited("like_weight: 3", "like_weight: 101"), 10, "rerank.like_weight", "0 to 100"),
        (edited("like_weight: 3", "like_weight: .nan"), 10, "rerank.like_weight", "not a number"),
        (edited("like_weight: 3", "like_weight: high"), 10, "rerank.like_weight", "not a number"),
        (edited("like_weight: 3", "like_weight: [3]"), 10, "rerank.like_weight", "not a number"),
        (edited("like_weight: 3", "like_weight: !!int x"), 10, "like_weight", "not a number"),
        (edited("like_weight: 3", "like_weight: !!bool x"), 10, "like_weight", "not a number"),
        (
            edited("like_weight: 3", "like_weigth: 3"),
            10,
            "like_weigth",
            "Write `rerank.like_weight`",
        ),
        (edited("like_weight: 3", "like_weight: " + "9" * 5000), 10, "like_weight", "not a number"),
        (edited("{rerank.diversity: 0.2}", "{ranking.enabled: no}"), 18, "enabled", "not own"),
        (edited("[retrieval.num_candidates]", "[rerank.diversity]"), 20, "parameters", "owns"),
        (edited("[retrieval.num_candidates]", "[nothing]"), 20, "parameters[0]", "no parameter"),
        (edited("name: depth", "name: value"), 19, "layers[1].name", "same name"),
        (edited("name: mix", "name: weight"), 12, "experiments[1].name", "same name"),
        (edited("salt: mix-2", "salt: weight"), 13, "experiments[1].salt", "same salt"),
        (edited("salt: mix-2", "salt: value"), 13, "experiments[1].salt", "same salt"),
        (edited("salt: mix-2", "salt: 'a:b'"), 13, "experiments[1].salt", "not a name"),
        (edited("buckets: [0, 5000]", "buckets: [0, 10001]"), 7, "buckets", "not a range"),
        (edited("buckets: [0, 5000]", "buckets: [5, 5]"), 7, "buckets", "not a range"),
        (edited("buckets: [0, 5000]", "buckets: [0]"), 7, "buckets", "not a range"),
        (edited("buckets: [0, 5000]", "buckets: 50"), 7, "buckets", "not a list"),
        (edited("42: treatment", "42: teatment"), 11, "allow_list.42", "no arm"),
        (edited("42: treatment", "0x2a: treatment"), 11, "allow_list", "two ways"),
        (edited("42: treatment", f"{'x' * 257}: treatment"), 11, "allow_list", "too long"),
        (edited("42: treatment", "'': treatment"), 11, "allow_list", "empty"),
        (edited("42: treatment", "[a]: treatment"), 11, "allow_list", "plain text"),
        (edited("42: treatment, ", "née: control, "), 11, "allow_list.née", "twice"),
        (edited("  - name: depth", "  - name: depth\n    name: d"), 20, "layers[1].name", "twice"),
        (edited("enabled: false", "enabled: maybe"), 16, "enabled", "switch"),
        (edited("enabled: false", "unit: device"), 16, "unit", "not a unit"),
        (edited("experiments: []", "experiments: {}"), 21, "experiments", "not a list"),
        (edited("experiments: []", "experiments:"), 21, "experiments", "not a list"),
        (edited("experiments: []", "experiments: [7]"), 21, "experiments[0]", "not a mapping"),
        (edited("experiments: []", "experiments: [{name: x, arms: []}]"), 21, "arms", "no arm"),
        (edited("experiments: []", "experiments: [{name: x}]"), 21, "arms", "missing"),
        (edited("experiments: []", "experiments: [*a]"), 21, "", "aliases"),
        (edited("experiments: []", "experiments: ["), 22, "", "expected"),
        ("", 1, "", "empty"),
        ("# nothing\n", 1, "", "empty"),
        ("[]", 1, "", "not a mapping"),
        ("version: 1\nlayers: []\n---\nversion: 1\n", 3, "", "another document"),
        ("version: 1\nlayers: [\x07]\n", 2, "", "control character"),
        (b"version: 1\nlayers: [\xff]\n", 2, "", "UTF-8"),
        ("[" * 5000, 1, "", "nested"),
        (edited("42: treatment", r'"\ud800": treatment'), 11, "", "UTF-8"),
        (edited("salt: mix-2", r'salt: "\ud83d\ude00"'), 13, "", "UTF-8"),
        (edited("name: depth", r'name: "\udfff"'), 19, "", "UTF-8"),
        (edited("{name: control,", r'{name: "a\ud800",'), 9, "", "UTF-8"),
        (edited("enabled: false", r'"\ud800": false'), 16, "", "UTF-8"),
    ],
)
def test_an_error_names_its_line_its_path_and_the_reason(
    text: str | bytes, line: int, path: str, reason: str
) -> None:
    (message, *_) = lines_of(text)
    assert message.startswith(f"e.yaml:{line}: ")
    assert path in message
    assert reason in message
    assert message.endswith(".")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("buckets: [5000, 10000]", "buckets: [4999, 10000]"), "buckets [4999, 5000) also belong"),
        (("traffic: 10\n", "unit: session\n"), "has the unit 'user'"),
        (("traffic: 10\n", "allow_list: {42: all}\n"), "lists the same id"),
    ],
)
def test_only_enabled_experiments_of_a_layer_must_exclude_each_other(
    change: tuple[str, str], reason: str
) -> None:
    off = edited(*change)
    config_reader.parse(off.encode(), "e.yaml", FILMS)
    (message,) = lines_of(off.replace("enabled: false", "enabled: true"))
    assert message.startswith("e.yaml:12: layers[0].experiments[1]")
    assert reason in message


def test_all_errors_of_a_file_are_reported_in_the_order_of_its_lines() -> None:
    text = GOOD
    for old, new in [
        ("version: 1", "version: one"),
        ("control, weight: 50", "control, weight: 5x"),
        ("42: treatment", "42: nobody"),
        ("traffic: 10\n", "trafic: 10\n"),
        ("[retrieval.num_candidates]", "[rerank.diversity]"),
    ]:
        text = text.replace(old, new)
    found = [int(message.split(":")[1]) for message in lines_of(text)]
    assert found == [1, 9, 11, 15, 20]


def test_a_misspelt_key_gets_the_right_one_suggested() -> None:
    (message,) = lines_of(edited("traffic: 10\n", "trafic: 10\n"))
    assert message == (
        "e.yaml:15: layers[0].experiments[1].trafic: this key is not known. "
        "Write `traffic` if you mean that."
    )


CONDITIONAL = """\
version: 1
holdout: {percent: 2.5, salt: out}
layers:
  - name: value
    parameters: [rerank.diversity]
    experiments:
      - name: mix
        start: 2026-12-01T10:00:00+01:00
        stop: "2026-12-24T00:00:00.250Z"
        where:
          surface: {in: [home, detail]}
          context:
            hour: {at_least: 18, below: 22.5}
            country: {not_in: [1, 49]}
        arms: [{name: a, weight: 50}, {name: b, weight: 50}]
        allow_list: {1: a}
      - name: next
        start: 2026-12-24T00:00:00.250Z
        arms: [{name: all, weight: 100}]
        allow_list: {1: all}
"""


def changed(old: str, new: str) -> str:
    assert CONDITIONAL.count(old) == 1, old
    return CONDITIONAL.replace(old, new)


def test_holdout_instants_and_conditions_read_as_written() -> None:
    config = config_reader.parse(CONDITIONAL.encode(), "e.yaml", FILMS)
    assert (config.holdout.salt, config.holdout.percent) == ("out", 2.5)
    mix, after = config.layers[0].experiments
    assert mix.start_ms == datetime(2026, 12, 1, 9, tzinfo=UTC).timestamp() * 1000
    assert (
        mix.stop_ms == after.start_ms == datetime(2026, 12, 24, tzinfo=UTC).timestamp() * 1e3 + 250
    )
    assert after.stop_ms == math.inf
    assert mix.where == (
        Condition("", "in", ("home", "detail")),
        Condition("hour", "at_least", (18.0,)),
        Condition("hour", "below", (22.5,)),
        Condition("country", "not_in", (1.0, 49.0)),
    )


def test_without_a_holdout_nobody_is_held_out() -> None:
    assert config_reader.parse(GOOD.encode(), "e", FILMS).holdout.buckets == 0
    named = config_reader.parse(GOOD.encode() + b"holdout: {percent: 5}\n", "e", FILMS).holdout
    assert (named.salt, named.buckets) == ("holdout", 500)


WHERE = "hour: {at_least: 18, below: 22.5}"


@pytest.mark.parametrize(
    ("text", "line", "path", "reason"),
    [
        (changed("{percent: 2.5, salt: out}", "{salt: out}"), 2, "holdout.percent", "missing"),
        (changed("percent: 2.5", "percent: 2.555"), 2, "holdout.percent", "not a percentage"),
        (changed("{percent: 2.5, salt: out}", "5"), 2, "holdout", "not a mapping"),
        (changed("salt: out", "unit: user"), 2, "holdout.unit", "not known"),
        (changed("salt: out", "salt: mix"), 7, "experiments[0].salt", "holdout has the same salt"),
        (changed("2026-12-01T10:00:00+01:00", "2026-12-01"), 8, "start", "not an instant"),
        (changed("2026-12-01T10:00:00+01:00", "2026-12-01T10:00:00"), 8, "start", "not an instant"),
        (changed("2026-12-01T10:00:00+01:00", "2026-11-31T10:00:00Z"), 8, "start", "not an inst"),
        (changed("2026-12-01T10:00:00+01:00", "1796115600"), 8, "start", "not an instant"),
        (changed("2026-12-01T10:00:00+01:00", "[]"), 8, "start", "not an instant"),
        (changed('"2026-12-24T00:00:00.250Z"', "2026-12-01T09:00:00Z"), 9, "stop", "same instant"),
        (changed('"2026-12-24T00:00:00.250Z"', "2026-11-01T09:00:00Z"), 9, "stop", "before it st"),
        (changed("start: 2026-12-24T00:00:00.250Z", "start: 2026-12-24T00:00:00.249Z"), 17,
         "experiments[1].buckets", "also belong to layers[0].experiments[0]"),
        (changed("start: 2026-12-24T00:00:00.250Z", "unit: session"), 17, "unit", "unit 'user'"),
        (changed("surface: {in:", "surface: {inn:"), 11, "where.surface.inn", "operator is not"),
        (changed("surface: {in:", "surfaces: {in:"), 11, "where.surfaces", "key is not known"),
        (changed("surface: {in: [home, detail]}", "surface: home"), 11, "surface", "not a mapping"),
        (changed("surface: {in: [home, detail]}", "surface: {}"), 11, "surface", "no operator"),
        (changed("[home, detail]", "home"), 11, "where.surface.in", "not a list"),
        (changed("[home, detail]", "[]"), 11, "where.surface.in", "list is empty"),
        (changed("[home, detail]", "[home, 7]"), 11, "surface.in[1]", "not text"),
        (changed("[home, detail]", "[home, detail], equals: home"), 11, "equals", "not known"),
        (changed(WHERE, "hour: {at_leats: 18}"), 13, "context.hour.at_leats", "Write `at_least`"),
        (changed(WHERE, "hour: {at_least: '18'}"), 13, "hour.at_least", "'18' is not a number"),
        (changed(WHERE, "hour: {at_least: true}"), 13, "hour.at_least", "not a number"),
        (changed(WHERE, "hour: {at_least: .nan}"), 13, "hour.at_least", "not a number"),
        (changed(WHERE, "hour: {at_least: .inf}"), 13, "hour.at_least", "not a number"),
        (changed(WHERE, f"hour: {{at_least: 1{'0' * 400}}}"), 13, "hour.at_least", "not a number"),
        (changed(WHERE, "hour: {at_least: [18]}"), 13, "hour.at_least", "not a number"),
        (changed(WHERE, "hour: {in: [18, home]}"), 13, "context.hour.in[1]", "not a number"),
        (changed(WHERE, "hour: {at_least: 18, at_least: 19}"), 13, "hour.at_least", "twice"),
        (changed(WHERE, "'': {at_least: 18}"), 13, "where.context.", "empty or too long"),
        (changed(WHERE, f"{'h' * 257}: {{at_least: 18}}"), 13, "where.context.", "too long"),
        (changed(WHERE, "hour > 18: {}"), 13, "context.hour > 18", "no operator"),
        (changed("start: 2026-12-24T00:00:00.250Z", "start: 2026-12-24T00:00:00.250Z\n"
                 "        where: {}"), 19, "experiments[1].where", "no condition"),
    ],
)  # fmt: skip
def test_a_wrong_holdout_instant_or_condition_names_its_line_its_path_and_the_reason(
    text: str, line: int, path: str, reason: str
) -> None:
    (message, *_) = lines_of(text)
    assert message.startswith(f"e.yaml:{line}: ")
    assert path in message
    assert reason in message
    assert message.endswith(".")


@pytest.mark.parametrize("order", [1, -1])
def test_experiments_that_follow_each_other_may_share_buckets_and_ids_in_any_order(
    order: int,
) -> None:
    head, *parts = CONDITIONAL.split("      - name: ")
    text = head + "".join(f"      - name: {part}" for part in parts[::order])
    names = [e.name for _, e in config_reader.parse(text.encode(), "e", FILMS).experiments()]
    assert names == ["mix", "next"][::order]


@given(st.text(min_size=1, max_size=3, alphabet=st.characters()))
def test_any_id_is_read_as_it_is_or_refused_with_its_line(unit: str) -> None:
    escaped = "".join(f"\\U{ord(c):08x}" for c in unit)
    text = edited("42: treatment", f'"{escaped}": treatment')
    if any("\ud800" <= c <= "\udfff" for c in unit):
        (message,) = lines_of(text)
        assert message.startswith("e.yaml:11: ")
        message.encode()
    elif unit != "née":
        config = config_reader.parse(text.encode(), "e.yaml", FILMS)
        assert config.layers[0].experiments[0].allow_list[unit] == "treatment"


def test_weights_are_added_exactly() -> None:
    for weights in (("33.33", "33.33", "33.34"), ("0.1", "0.2", "99.7"), ("14.29", "85.71", "0")):
        arms = "".join(f"{{name: a{i}, weight: {w}}}, " for i, w in enumerate(weights))
        text = edited("experiments: []", f"experiments: [{{name: x, arms: [{arms}]}}]")
        (x,) = config_reader.parse(text.encode(), "e", FILMS).layers[1].experiments
        ends = list(itertools.accumulate(round(float(w) * 100) for w in weights))
        assert [arm.end for arm in x.arms] == ends
        assert ends[-1] == 10_000


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_no_bytes_raise_anything_but_an_experiments_error(data: bytes) -> None:
    # They may be a file: constants of this module are among what is drawn.
    with contextlib.suppress(ExperimentsError):
        config_reader.parse(data, "e", FILMS)


@given(
    st.sampled_from([GOOD, CONDITIONAL]),
    st.integers(0, len(CONDITIONAL)),
    st.integers(0, 10),
    st.sampled_from(["", "{", "[", "- ", ": ", "~", "!!int ", "&a ", "*a", "\n", "0", "\t"]),
)
def test_no_edit_of_a_good_file_raises_anything_but_an_experiments_error(
    good: str, at: int, cut: int, piece: str
) -> None:
    text = good[:at] + piece + good[at + cut :]
    problems: list[str] = []
    try:
        config_reader.parse(text.encode(), "e", FILMS)
    except ExperimentsError as error:
        problems = error.lines()
    assert all(line.startswith("e:") and line.endswith(".") for line in problems)


@pytest.mark.parametrize("value", ["18:30", "0x1f", "1_000", "0x" + "f" * 4000, "9" * 5000])
def test_what_only_yaml_takes_for_a_number_is_refused(value: str) -> None:
    text = f"""
version: 1
layers:
  - name: a
    parameters: [rerank.like_weight]
    experiments:
      - name: e
        arms:
          - {{name: c, weight: 50}}
          - {{name: t, weight: 50, parameters: {{rerank.like_weight: {value}}}}}
"""
    with pytest.raises(ExperimentsError) as error:
        config_reader.parse(text.encode(), "f", FILMS)
    assert "is not a number" in str(error.value)


# However large or strange the file is.


def test_a_value_of_a_megabyte_is_cut_in_errors_and_so_are_names_and_lists() -> None:
    long = "x" * 1_000_000
    for text in (
        edited("enabled: false", f"enabled: {long}"),
        edited("enabled: false", f"{long}: false"),
        edited("name: depth", f"name: {long}"),
        edited("42: treatment", f"42: {long}"),
        edited("42: treatment", f"{long}: {long}"),
        edited("version: 1", f"version: {'9' * 4500}"),
        edited("version: 1", f'version: "\\{long}"'),
    ):
        lines = lines_of(text)
        assert max(map(len, lines)) < 1500
    (line, *_) = lines_of(edited("enabled: false", f"enabled: {long}"))
    assert "'xxxx" in line
    assert "characters] xxx" in line
    assert "is not a switch. Write `true` or `false`." in line


def test_of_many_errors_the_first_are_shown_and_the_others_counted() -> None:
    lines = lines_of("version: 1\nlayers:\n" + "  - 7\n" * 3000)
    assert len(lines) == 201
    assert lines[-1] == "e.yaml: there are 2,800 more problems. Repair these first."


@pytest.mark.parametrize("opening", ["[", "{a: ", "- ", "? "])
def test_a_file_that_is_nested_deeply_is_refused_where_it_is_too_deep(opening: str) -> None:
    for text in (opening * 200_000, "version: 1\nlayers: " + "[" * 150 + "]" * 150):
        (line,) = lines_of(text)
        assert "nested too deeply" in line
    assert line.startswith("e.yaml:2: ")
