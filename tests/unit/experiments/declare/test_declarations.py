"""What an experiments file declares beside arms by weight: units, segments, conditions on the user,
ramps, stopped arms, interleaving, and how long a guardrail looks."""

from __future__ import annotations

import pytest

from services.experiments.declare import config_reader
from services.experiments.declare.config import (
    ExperimentsConfig,
    ExperimentsError,
    Ramp,
    moving_changes,
)
from services.experiments.declare.metrics import (
    DEFAULT_OBSERVE_S,
    DEFAULT_SERVING_OBSERVE_S,
    Guardrail,
    Metric,
    Plan,
)
from services.experiments.declare.reader.conditions import MAX_SEGMENTS
from services.experiments.declare.reader.experiments import MAX_STEPS
from services.experiments.declare.reader.file import MAX_DECLARED_UNITS
from services.experiments.declare.targeting import Condition
from tests.domains import FILMS

KINDS = """\
version: 1
units: [household, device]
segments:
  - {name: evening, where: {context: {hour: {at_least: 18}}}}
  - {name: newcomers, where: {user: {click: {below: 10}}}}
metrics:
  - {name: failed, kind: ratio, of: error, per: request, better: lower}
  - {name: ctr, kind: ratio, of: click, per: impression, better: higher}
layers:
  - name: homes
    parameters: [rerank.like_weight]
    experiments:
      - name: grown
        unit: household
        ramp: {steps: [1, 2.5, 50], hold_s: 60, min_units: 0, gate: holds}
        where: {user: {click: {at_least: 10}}}
        arms:
          - {name: control, weight: 50}
          - {name: bad, weight: 25, stopped: true}
          - {name: good, weight: 25}
        guardrails:
          - {metric: failed, allowed_absolute_harm: 0.01}
          - {metric: ctr, allowed_harm: 0.1, observe_s: 600}
  - name: lists
    parameters: [rerank.diversity]
    experiments:
      - name: diverse
        interleave: team_draft
        traffic: 20
        arms:
          - {name: plain}
          - {name: mixed, parameters: {rerank.diversity: 0.2}}
"""
INTERLEAVING = "interleave: team_draft"
STEPS = "[1, 2.5, 50]"
GUARDRAILS = KINDS[KINDS.index("        guardrails:") : KINDS.index("  - name: lists")]


def edited(old: str, new: str) -> str:
    assert KINDS.count(old) == 1, old
    return KINDS.replace(old, new)


def parsed(text: str) -> ExperimentsConfig:
    return config_reader.parse(text.encode(), "e.yaml", FILMS)


def test_everything_reads_as_written() -> None:
    config = parsed(KINDS)
    assert config.units == ("household", "device")
    evening, newcomers = config.segments
    assert (evening.name, evening.line) == ("evening", 4)
    assert evening.where == (Condition("hour", "at_least", (18.0,)),)
    assert newcomers.where == (Condition("click", "below", (10.0,), of_user=True),)
    (grown,), (diverse,) = (layer.experiments for layer in config.layers)
    assert grown.unit == "household"
    assert grown.ramp == Ramp((100, 250, 5_000), 60.0, 0, "holds")
    assert [c.text for c in grown.where] == ["user.click at_least 10"]
    assert [a.stopped for a in grown.arms] == [False, True, False]
    failed, ctr = grown.plan.guardrails
    assert (failed.observe_s, ctr.observe_s) == (None, 600.0)
    assert diverse.interleave == "team_draft"
    assert [(a.name, a.first, a.end, a.enrolled) for a in diverse.arms] == [
        ("plain", 0, 0, 2_000),
        ("mixed", 0, 0, 2_000),
    ]


def test_an_experiment_with_a_ramp_stands_at_its_first_step() -> None:
    grown = parsed(KINDS).layers[0].experiments[0]
    assert [arm.enrolled for arm in grown.arms] == [100, 100, 100]
    assert grown.ramp_step == 0


def test_a_ramp_that_says_nothing_else_waits_for_an_hour_and_a_hundred_units() -> None:
    grown = parsed(edited(", hold_s: 60, min_units: 0, gate: holds", "")).layers[0].experiments[0]
    assert grown.ramp == Ramp((100, 250, 5_000), 3_600.0, 100, "no_breach")


def test_conditions_may_ask_for_the_counts_of_the_profile_and_for_nothing_else_in_it() -> None:
    assert FILMS.events.tested == ("impression", "click", "like")


@pytest.mark.parametrize(
    ("text", "line", "path", "reason", "fix"),
    [
        (edited("[household, device]", "household"), 2, "units", "not a list", "[] for none"),
        (edited("[household, device]", "[household, user]"), 2, "units[1]",
         "'user' is always a unit", "Delete it"),
        (edited("[household, device]", "[household, household]"), 2, "units[1]",
         "units[0] has the same name 'household'", "Declare a unit once"),
        (edited("[household, device]", "[household, 7]"), 2, "units[1]", "not text", "quotes"),
        (edited("[household, device]", "[household, a b]"), 2, "units[1]", "not a name", "64"),
        (edited("[household, device]", f"[household, {', '.join(f'u{i}' for i in range(8))}]"), 2,
         f"units[{MAX_DECLARED_UNITS}]", "more than 8 units", "Delete some"),
        (edited("unit: household", "unit: houshold"), 14, "experiments[0].unit",
         "'houshold' is not a unit", "Write `household` if you mean that, or declare"),
        (edited("units: [household, device]\n", ""), 13, "experiments[0].unit",
         "'household' is not a unit", "Use one of user, session, or declare it in `units`"),
        (edited("name: newcomers", "name: evening"), 5, "segments[1].name",
         "segments[0] has the same name 'evening'", "name of its own"),
        (edited("name: newcomers, where: {user: {click: {below: 10}}}", "name: newcomers"), 5,
         "segments[1].where", "missing", "Add `where:`"),
        (edited("{user: {click: {below: 10}}}", "{}"), 5, "segments[1].where", "no condition",
         "a number of the user's"),
        (edited("{click: {below: 10}}", "{clicks: {below: 10}}"), 5,
         "segments[1].where.user.clicks", "no such number of users", "Write `click`"),
        (edited("{click: {below: 10}}", "{last_event_ms: {below: 10}}"), 5,
         "where.user.last_event_ms", "no such number", "Use one of impression, click, like"),
        (edited("click: {at_least: 10}", "click: {at_least: many}"), 16,
         "where.user.click.at_least", "'many' is not a number", "user features are numbers"),
        (edited("click: {at_least: 10}", "click: {atleast: 10}"), 16,
         "where.user.click.atleast", "operator is not known", "Write `at_least`"),
        (edited("click: {at_least: 10}", "click: 10"), 16, "where.user.click", "not a mapping",
         "key: value"),
        (edited(STEPS, "[]"), 15, "ramp.steps", "this one has 0", "[1, 5, 10, 25, 50]"),
        (edited(STEPS, f"[{', '.join(str(i + 1) for i in range(MAX_STEPS + 1))}]"), 15,
         "ramp.steps", "1 to 20 steps, and this one has 21", "[1, 5"),
        (edited(STEPS, "[1, 1]"), 15, "ramp.steps[1]", "1 is not more than 1, the step before",
         "rise"),
        (edited(STEPS, "[5, 2.5]"), 15, "ramp.steps[1]", "2.5 is not more than 5", "rise"),
        (edited(STEPS, "[0, 5]"), 15, "ramp.steps[0]", "nobody would be in", "above 0"),
        (edited(STEPS, "[1, 101]"), 15, "ramp.steps[1]", "'101' is not a percentage", "0 to 100"),
        (edited(STEPS, "50"), 15, "ramp.steps", "not a list", "- "),
        (edited(f"steps: {STEPS}, ", ""), 15, "ramp.steps", "missing", "Add `steps:`"),
        (edited("hold_s: 60", "hold_s: 0"), 15, "ramp.hold_s", "not such a number", "2592000"),
        (edited("min_units: 0", "min_units: -1"), 15, "ramp.min_units", "not such", "from 0 to"),
        (edited("min_units: 0", "min_units: 1.5"), 15, "ramp.min_units", "not such", "whole"),
        (edited("gate: holds", "gate: hold"), 15, "ramp.gate", "'hold' cannot stand here",
         "Write `holds`"),
        (edited(GUARDRAILS, ""), 15, "ramp.gate",
         "no guardrail that could be shown to hold", "Write `no_breach`, or list `guardrails`"),
        (edited(GUARDRAILS, "        guardrails: []\n"), 15, "ramp.gate",
         "no guardrail that could be shown to hold", "Write `no_breach`, or list `guardrails`"),
        (edited("        where: {user", "        traffic: 5\n        where: {user"), 16,
         "experiments[0].traffic", "the ramp says what the traffic is", "Delete this key"),
        (edited("name: good, weight: 25", "name: good, weight: 25, traffic: 5"), 20,
         "arms[2].traffic", "so that the split between them stays", "Delete this key, or the ramp"),
        (edited("{name: control, weight: 50}", "{name: control, weight: 50, stopped: true}"), 18,
         "arms[0].stopped", "control's parameters", "Stop another arm, or write `enabled: false`"),
        (edited("stopped: true", "stopped: 1"), 19, "arms[1].stopped", "not a switch", "true"),
        (edited("observe_s: 600", "observe_s: 86401"), 23, "guardrails[1].observe_s",
         "the experiment observes a unit for 86400 s only", "a longer `observe_s`"),
        (edited("observe_s: 600", "observe_s: 0"), 23, "guardrails[1].observe_s", "not such",
         "above 0"),
        (edited("team_draft", "teamdraft"), 28, "experiments[0].interleave", "cannot stand here",
         "Write `team_draft`"),
        (edited("{name: plain}", "{name: plain, weight: 50}"), 31, "arms[0].weight",
         "every unit sees both arms", "Delete this key"),
        (edited("{name: plain}", "{name: plain, traffic: 50}"), 31, "arms[0].traffic",
         "every unit sees both arms", "Give the experiment `traffic`"),
        (edited("{name: plain}", "{name: plain, stopped: true}"), 31, "arms[0].stopped",
         "one arm alone cannot be interleaved", "enabled: false"),
        (edited("{name: plain}", "{name: interleaved}"), 31, "arms", "stands for both arms",
         "another name"),
        (edited("          - {name: plain}\n", ""), 31, "arms", "and here are 1", "List two arms"),
        (edited("{name: plain}", "{name: plain}\n          - {name: other}"), 31, "arms",
         "and here are 3", "List two arms"),
        (edited(INTERLEAVING, f"{INTERLEAVING}\n        allow_list: {{1: plain}}"), 29,
         "allow_list", "all see both", "Delete this key, or `interleave`"),
        (edited(INTERLEAVING, f"{INTERLEAVING}\n        primary: {{metric: ctr}}"),
         29, "primary", "one result, which of its arms' rankings users prefer",
         "Delete this key, or `interleave`"),
        (edited(INTERLEAVING, f"{INTERLEAVING}\n        secondary: []"), 29, "secondary",
         "one result", "Delete this key"),
        (edited(INTERLEAVING, f"{INTERLEAVING}\n        guardrails: []"), 29, "guardrails",
         "one result", "Delete this key"),
        (edited(f"        {INTERLEAVING}\n", ""), 30, "arms[0].weight", "missing", "Add `weight:`"),
        (edited(f"        {INTERLEAVING}", "        window_s: 60"), 28, "experiments[0].window_s",
         "metrics have windows of their own", "write `window_s` in the metrics"),
        (edited(INTERLEAVING, f"{INTERLEAVING}\n        window_s: 0"), 29,
         "experiments[0].window_s", "not such a number", "above 0"),
    ],
)  # fmt: skip
def test_a_wrong_declaration_names_its_line_its_path_the_reason_and_the_fix(
    text: str, line: int, path: str, reason: str, fix: str
) -> None:
    with pytest.raises(ExperimentsError) as caught:
        parsed(text)
    (message, *_) = caught.value.lines()
    assert message.startswith(f"e.yaml:{line}: ")
    assert f"{path}: " in message
    assert reason in message
    assert fix in message.partition(reason)[2]


def test_no_more_segments_than_a_reader_can_look_at() -> None:
    def with_segments(count: int) -> str:
        one = "  - {{name: s{}, where: {{surface: {{in: [home]}}}}}}\n"
        return "version: 1\nlayers: []\nsegments:\n" + "".join(map(one.format, range(count)))

    assert len(parsed(with_segments(MAX_SEGMENTS)).segments) == MAX_SEGMENTS
    with pytest.raises(ExperimentsError) as caught:
        parsed(with_segments(MAX_SEGMENTS + 3))
    (message,) = caught.value.lines()
    assert message.startswith(f"e.yaml:{4 + MAX_SEGMENTS}: segments[{MAX_SEGMENTS}]: ")


def test_a_folder_may_declare_units_and_segments_in_any_file_and_once() -> None:
    head, tail = KINDS.split("metrics:\n")
    sources = {
        "a.yaml": b"version: 1\nmetrics:\n" + tail.encode(),
        "b.yaml": head.encode() + b"layers: []\n",
    }
    assert config_reader.parse_all(sources, "d", FILMS) == parsed(KINDS)
    with pytest.raises(ExperimentsError) as caught:
        config_reader.parse_all(sources | {"c.yaml": head.encode() + b"layers: []\n"}, "d", FILMS)
    places = [line.split(": ")[:2] for line in caught.value.lines()]
    assert places == [
        ["d/c.yaml:2", "units[0]"],
        ["d/c.yaml:2", "units[1]"],
        ["d/c.yaml:4", "segments[0].name"],
        ["d/c.yaml:5", "segments[1].name"],
    ]


ONE = """\
version: 1
layers:
  - name: {layer}
    experiments:
      - {{name: {name}, interleave: team_draft, arms: [{{name: a}}, {{name: b}}]{more}}}
"""


def interleaving(name: str, more: str = "") -> bytes:
    return ONE.format(layer=f"layer-{name}", name=name, more=more).encode()


@pytest.mark.parametrize(
    ("more", "other", "refused"),
    [
        ("", "", True),
        (", stop: 2026-12-02T00:00:00Z", ", start: 2026-12-01T23:59:59.999Z", True),
        (", stop: 2026-12-02T00:00:00Z", ", start: 2026-12-02T00:00:00Z", False),
        (", start: 2026-12-02T00:00:00Z", ", stop: 2026-12-02T00:00:00Z", False),
        (", enabled: false", "", False),
        ("", ", enabled: false", False),
    ],
)
def test_no_two_experiments_of_any_file_interleave_at_the_same_time(
    more: str, other: str, refused: bool
) -> None:
    sources = {"a.yaml": interleaving("one", more), "b.yaml": interleaving("two", other)}
    if not refused:
        assert len(config_reader.parse_all(sources, "d", FILMS).layers) == 2
        return
    with pytest.raises(ExperimentsError) as caught:
        config_reader.parse_all(sources, "d", FILMS)
    (message,) = caught.value.lines()
    assert message.startswith("d/b.yaml:5: layers[0].experiments[0].interleave: layers[0]")
    assert "of a.yaml interleaves at the same time" in message
    assert "enabled: false" in message


def test_experiments_of_one_layer_may_interleave_at_once_on_separate_buckets() -> None:
    """A request is in one experiment of a layer at most, and so interleaved once at most."""
    one, two = (
        ONE.format(layer="l", name=name, more=f", buckets: {buckets}")
        for name, buckets in (("one", [0, 5000]), ("two", [5000, 10000]))
    )
    both = one + two.splitlines(keepends=True)[-1]
    (layer,) = parsed(both).layers
    assert [e.interleave for e in layer.experiments] == ["team_draft"] * 2
    with pytest.raises(ExperimentsError) as caught:
        parsed(both.replace("[0, 5000]", "[0, 5001]"))
    assert [p.path for p in caught.value.problems] == ["layers[0].experiments[1].buckets"]


def test_arms_by_weight_do_not_hinder_interleaving() -> None:
    assert len(parsed(KINDS).layers) == 2


@pytest.mark.parametrize("method", ["balanced", "probabilistic"])
def test_a_method_that_there_is_no_more_is_refused_and_the_one_there_is_named(method: str) -> None:
    with pytest.raises(ExperimentsError) as caught:
        parsed(ONE.replace("team_draft", method).format(layer="l", name="e", more=""))
    (problem,) = caught.value.problems
    assert problem.reason == f"{method!r} cannot stand here"
    assert problem.fix == "Use one of team_draft"


BY_METRICS = (
    edited("        interleave: team_draft\n", "")
    .replace("{name: plain}", "{name: plain, weight: 50}")
    .replace("{name: mixed,", "{name: mixed, weight: 50,")
)


@pytest.mark.parametrize(
    ("after", "what"),
    [
        (BY_METRICS, "whether it interleaves"),
        (edited("name: plain", "name: flat"), "names, order or weights"),
    ],
)
def test_what_would_mix_the_credit_of_two_rankings_wants_a_new_salt(after: str, what: str) -> None:
    (problem,) = moving_changes(parsed(KINDS), parsed(after))
    assert what in problem.reason
    assert "new salt" in problem.fix
    with_salt = after.replace("name: diverse\n", "name: diverse\n        salt: again\n")
    assert moving_changes(parsed(KINDS), parsed(with_salt)) == []


def test_swapping_two_interleaved_arms_is_a_moving_change() -> None:
    plain, mixed = (
        "          - {name: plain}\n",
        "- {name: mixed, parameters: {rerank.diversity: 0.2}}",
    )
    swapped = KINDS.replace(plain, "") + plain
    assert f"{mixed}\n{plain}" in swapped
    (problem,) = moving_changes(parsed(KINDS), parsed(swapped))
    assert "order" in problem.reason


def test_to_begin_and_to_end_interleaving_under_one_salt_is_a_moving_change() -> None:
    weighted = (
        KINDS.replace(f"        {INTERLEAVING}\n", "")
        .replace("{name: plain}", "{name: plain, weight: 50}")
        .replace("{name: mixed,", "{name: mixed, weight: 50,")
    )
    for old, new in ((KINDS, weighted), (weighted, KINDS)):
        (problem,) = moving_changes(parsed(old), parsed(new))
        assert "interleaves" in problem.reason


@pytest.mark.parametrize(
    "harmless",
    [
        edited("stopped: true", "stopped: false"),
        edited(STEPS, "[5, 10]"),
        edited("ramp: {steps: [1, 2.5, 50], hold_s: 60, min_units: 0, gate: holds}", "traffic: 9"),
        edited("traffic: 20", "ramp: {steps: [10, 20]}"),
        edited("click: {below: 10}", "click: {below: 20}"),
        edited("[household, device]", "[household]"),
    ],
)
def test_ramps_segments_and_stopped_arms_may_change_while_experiments_run(harmless: str) -> None:
    assert moving_changes(parsed(KINDS), parsed(harmless)) == []


def test_an_arm_cannot_be_deleted_from_a_running_experiment_only_stopped() -> None:
    """Whatever the others' weights become, some of their units would move: so it is refused."""
    for weights in (("75", "25"), ("50", "50")):
        gone = edited("          - {name: bad, weight: 25, stopped: true}\n", "")
        gone = gone.replace("control, weight: 50", f"control, weight: {weights[0]}")
        gone = gone.replace("good, weight: 25", f"good, weight: {weights[1]}")
        (problem,) = moving_changes(parsed(KINDS), parsed(gone))
        assert "names, order or weights" in problem.reason


LATENCY = Metric("p99", "quantile", "latency", "lower", quantile=0.99)
CTR = Metric("ctr", "ratio", "click", "higher", per="impression")
CLICKS_PER_REQUEST = Metric("cpr", "ratio", "click", "higher", per="request")
ERRORS = Metric("failed", "ratio", "error", "lower", per="request")


@pytest.mark.parametrize(
    ("guardrail", "plan_s", "seconds"),
    [
        (Guardrail(LATENCY, 0.1), DEFAULT_OBSERVE_S, DEFAULT_SERVING_OBSERVE_S),
        (Guardrail(ERRORS, 0.1), DEFAULT_OBSERVE_S, DEFAULT_SERVING_OBSERVE_S),
        (Guardrail(ERRORS, 0.1), 30.0, 30.0),
        (Guardrail(CTR, 0.1), 7_200.0, 7_200.0),
        (Guardrail(CLICKS_PER_REQUEST, 0.1), 7_200.0, 7_200.0),
        (Guardrail(LATENCY, 0.1, observe_s=600.0), DEFAULT_OBSERVE_S, 600.0),
        (Guardrail(CTR, 0.1, observe_s=600.0), DEFAULT_OBSERVE_S, 600.0),
    ],
)
def test_guardrails_on_serving_look_at_a_minute_and_those_on_feedback_as_long_as_the_goals(
    guardrail: Guardrail, plan_s: float, seconds: float
) -> None:
    assert guardrail.seconds(Plan(guardrails=(guardrail,), observe_s=plan_s)) == seconds
